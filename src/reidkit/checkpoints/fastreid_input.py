"""What a network of fast-reid wants to see: from the file, its config, or the recipes."""

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from reidkit.checkpoints.fastreid_config import FastReidConfig
from reidkit.checkpoints.fastreid_file import BUFFERS, FastReidFile
from reidkit.checkpoints.reading import Assumption, Notes
from reidkit.errors import ModelError
from reidkit.types import InputSpec, Task

MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)

UNSAID = "fast-reid's default, as the config does not say"


def read_input(
    tensors: Mapping[str, Tensor], file: FastReidFile, config: FastReidConfig | None, task: Task
) -> tuple[InputSpec, Notes]:
    """Size and normalisation of a network's input, and where they are from.

    Args:
        tensors: by the names of the file.
        file: what the names show.
        config: that comes with it.
        task: what the network tells apart; its recipes have their size.

    Raises:
        ModelError: the file's own normalisation cannot be used.
    """
    (mean, std), notes = _normalization(tensors, file, config)
    if config and config.size:
        size = config.size
    else:
        size, assumption = _size_by_default() if config else _size_by_recipe(file, task)
        notes += Notes(assumptions=(assumption,))
    return InputSpec(*size, resize="bicubic", color="rgb", scale=1.0, mean=mean, std=std), notes


_Color = tuple[float, float, float]


def _normalization(
    tensors: Mapping[str, Tensor], file: FastReidFile, config: FastReidConfig | None
) -> tuple[tuple[_Color, _Color], Notes]:
    """The file's mean and standard deviation, or the config's, or ImageNet's."""
    said_mean, said_std = (config.mean, config.std) if config else (None, None)
    said = said_mean or MEAN, said_std or STD
    if file.buffers:
        held = _buffer(tensors, BUFFERS[0]), _buffer(tensors, BUFFERS[1])
        findings = [f"normalisation from pixel_mean and pixel_std: mean {held[0]}, std {held[1]}"]
        if (said_mean or said_std) and not np.allclose(held, said, rtol=1e-5):
            findings.append(f"the config's mean {said[0]} and std {said[1]} differ: the file is believed")
        return held, Notes(tuple(findings))
    default = UNSAID if config else "fast-reid's default"
    assumptions: list[Assumption] = []
    if said_mean is None:
        assumptions.append(Assumption(f"ImageNet's mean, {default}", "input.mean=[127.5, 127.5, 127.5]"))
    if said_std is None:
        assumptions.append(Assumption(f"ImageNet's standard deviation, {default}", "input.std=[127.5, 127.5, 127.5]"))
    return said, Notes(assumptions=tuple(assumptions))


def _size_by_default() -> tuple[tuple[int, int], Assumption]:
    return (256, 128), Assumption(f"crops of 256 x 128, {UNSAID}", "input.height=384")


def _size_by_recipe(file: FastReidFile, task: Task) -> tuple[tuple[int, int], Assumption]:
    if task == "vehicle":
        size, recipe = (256, 256), "VeRi, VehicleID and VERI-Wild"
    elif file.distilled:
        size, recipe = (256, 128), "the distilled networks"
    elif file.mgn:
        size, recipe = (384, 128), "MGN"
    elif not file.head.learned:
        size, recipe = (256, 128), "AGW and the bag of tricks"
    else:
        size, recipe = (384, 128), "SBS"
        if file.head.neck == "bnneck":
            recipe += ", though AGW, whose exponent was then learned too, took 256 x 128"
    setting = "input.height=256" if size[0] == 384 else "input.height=384"
    return size, Assumption(f"crops of {size[0]} x {size[1]}, as in {recipe}", setting)


def _buffer(tensors: Mapping[str, Tensor], name: str) -> tuple[float, float, float]:
    values = tensors[name].flatten().tolist() if name in tensors else []
    if len(values) != 3 or not np.isfinite(values).all() or (name == BUFFERS[1] and min(values) <= 0):
        raise ModelError(f"{name} cannot be used", got=values or "nothing", expected="three numbers, and std above 0")
    # The shortest decimals that are these float32 values: 123.675, not 123.67500305.
    red, green, blue = (float(str(np.float32(value))) for value in values)
    return red, green, blue
