"""The state of a run between two steps: with it a run that was interrupted goes on as if nothing had happened.

A file of `torch.save` that holds tensors and plain values only. It is read without running anything that is in it, and
its sums (CRC-32, which every zip archive has) are checked, which `torch.load` does not.
"""

import hashlib
import io
import json
import logging
import math
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import reidkit
from reidkit.atomic import output_file
from reidkit.config import to_dict
from reidkit.errors import TrainingError
from reidkit.train.recipe import Recipe
from reidkit.types import Crop

STATE = "state.pt"
"""Name of the file in the folder of a run."""

_FORMAT = "reidkit run state 1"
_MOST_DIFFERENCES = 12  # listed in a message
_ANEW = "choose the state.pt of a run of `reid train`, or train anew"

_logger = logging.getLogger(__name__)


def _versions() -> dict[str, str]:
    return {"reidkit": reidkit.__version__, "torch": str(torch.__version__)}


@dataclass(frozen=True, slots=True)
class RunState:
    """Everything that decides how a run goes on. Tensors are on the CPU when read, and anywhere when written.

    Attributes:
        recipe: of the run, as plain values.
        data: what was trained on; see `data_digest`.
        stage: of the recipe's stages, counted from 0.
        step: batches done within the stage.
        model: state dict of the network.
        criterion: state dict of the losses.
        optimizer: state dict of the optimiser.
        random: of each process, in the order of ranks, its `random_states`.
        ema: state dict of the average of the weights.
        scaler: state dict of the gradient scaler.
        best: the best figure so far.
        without_best: measurements in a row since then.
        mining_round: number of the round of mining that `mined` is of; None when batches are not mined.
        mined: the batches of that round.
        losses: of the steps that no report has told of yet.
        origin: what else decides the outcome, in words: the files that the run began with.
        versions: of reidkit and torch.
    """

    recipe: dict[str, Any]
    data: str
    stage: int
    step: int
    model: dict[str, Tensor]
    criterion: dict[str, Tensor]
    optimizer: dict[str, Any]
    random: list[dict[str, Tensor]]
    ema: dict[str, Tensor] | None = None
    scaler: dict[str, Any] | None = None
    best: float | None = None
    without_best: int = 0
    mining_round: int | None = None
    mined: list[np.ndarray] | None = None
    losses: Tensor | None = None
    origin: dict[str, str | None] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=_versions)


def save_state(path: Path | str, state: RunState) -> None:
    """Writes a state, whole or not at all: whatever goes wrong, the file that was there before stays.

    Raises:
        OutputError: the disk is full, or the file cannot be written.
        TrainingError: something in it is neither a tensor nor a plain value, and could not be read again.
    """
    values = {item.name: getattr(state, item.name) for item in fields(state)}
    if state.mined is not None:
        values["mined"] = [torch.tensor(batch, dtype=torch.int64) for batch in state.mined]
    if state.best is not None:
        values["best"] = float(state.best)  # numpy's numbers could be written, but not read again
    # First to memory: torch turns a full disk into a RuntimeError about positions in an archive.
    buffer = io.BytesIO()
    torch.save({"format": _FORMAT, **values}, buffer)
    with output_file(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())
        _load(temporary, mmap=True)  # what could not be read again must not replace what can


def load_state(path: Path | str) -> RunState:
    """Reads a state; nothing in the file is run.

    Raises:
        TrainingError: no such file, truncated or damaged, or no state of a run.
    """
    path = Path(path)
    if not path.is_file():
        raise TrainingError(f"No such state of a run: {path}", expected=STATE, fix=_ANEW)
    values = _read(path)
    if not isinstance(values, dict) or values.get("format") != _FORMAT:
        got = values.get("format") if isinstance(values, dict) else None
        raise TrainingError(
            f"{path} is no state of a run that this reidkit can go on with",
            got=f"format {got!r}",
            expected=repr(_FORMAT),
            fix=_ANEW,
        )
    del values["format"]
    wrong = [str(name) for name in values.keys() ^ _CHECKS.keys()]
    wrong += [name for name, check in _CHECKS.items() if name in values and not check(values[name])]
    if wrong:
        raise TrainingError(
            f"{path} is no state of a run",
            got=f"missing, unknown or of a wrong type: {', '.join(sorted(wrong))}",
            fix=_ANEW,
        )
    if values["mined"] is not None:
        values["mined"] = [batch.numpy() for batch in values["mined"]]
    return RunState(**values)


def _read(path: Path) -> Any:
    """What `torch.save` wrote: tensors and plain values."""
    damaged = "it is truncated or damaged, or no such file at all"
    try:
        with zipfile.ZipFile(path) as archive:
            damage = archive.testzip()
    except Exception as error:  # zipfile raises almost anything on damaged files
        raise _unreadable(path, damaged) from error
    if damage is not None:
        raise _unreadable(path, f"{damage} is damaged")
    return _load(path)


def _load(path: Path, *, mmap: bool = False) -> Any:
    """As `torch.load`; with `mmap`, tensors are read when they are looked at."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except MemoryError:
        raise
    except Exception as error:  # almost anything, with the advice to run what is in the file
        raise _unreadable(path, "it holds something else than tensors and plain values, which is never run") from error


def _unreadable(path: Path, got: str) -> TrainingError:
    return TrainingError(f"{path} cannot be read as the state of a run", got=got, fix=_ANEW)


# -- what a file has to hold -------------------------------------------------------------------------------------------


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_table(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def _is_tensors(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(k, str) and isinstance(t, Tensor) for k, t in value.items())


def _is_batch(value: object) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.int64 and value.ndim == 1


def _is_random(value: object) -> bool:
    return _is_tensors(value) and all(t.dtype == torch.uint8 and t.ndim == 1 for t in value.values())  # pyright: ignore[reportAttributeAccessIssue]


def _is_optimizer(value: object) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"state", "param_groups"}
        and isinstance(value["state"], dict)
        and isinstance(value["param_groups"], list)
        and all(_is_table(group) for group in value["param_groups"])
    )


def _or_none(check: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: value is None or check(value)


def _list_of(check: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, list) and all(map(check, value))


_CHECKS: dict[str, Callable[[Any], bool]] = {
    "recipe": _is_table,
    "data": lambda value: isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None,
    "stage": _is_count,
    "step": _is_count,
    "model": _is_tensors,
    "criterion": _is_tensors,
    "optimizer": _is_optimizer,
    "random": lambda value: value != [] and _list_of(_is_random)(value),
    "ema": _or_none(_is_tensors),
    "scaler": _or_none(_is_table),
    "best": _or_none(lambda value: isinstance(value, float) and math.isfinite(value)),
    "without_best": _is_count,
    "mining_round": _or_none(_is_count),
    "mined": _or_none(_list_of(_is_batch)),
    "losses": _or_none(lambda value: isinstance(value, Tensor) and value.ndim == 2),
    "origin": lambda value: _is_table(value) and all(text is None or isinstance(text, str) for text in value.values()),
    "versions": lambda value: _is_table(value) and all(isinstance(version, str) for version in value.values()),
}


# -- random numbers ----------------------------------------------------------------------------------------------------


def random_states(generator: torch.Generator) -> dict[str, Tensor]:
    """Where the random numbers of this process are: of augmentation, of torch, and of torch on the GPU.

    Args:
        generator: of augmentation, on the device of the network.
    """
    device = generator.device
    states = {"cpu": torch.get_rng_state(), f"augmentation on {device.type}": generator.get_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_random(state: RunState, generator: torch.Generator, *, rank: int = 0, processes: int = 1) -> None:
    """Goes on with the random numbers of a run.

    Args:
        state: of the run.
        generator: of augmentation, on the device of the network.
        rank: of this process.
        processes: of this run.

    Raises:
        TrainingError: the run was on another number or kind of devices, where random numbers are others.
    """
    if len(state.random) != processes:
        raise TrainingError(
            "The run cannot be resumed on another number of devices",
            got=processes,
            expected=len(state.random),
            fix=f"say --devices {len(state.random)}, or train anew",
        )
    saved, expected = state.random[rank], random_states(generator)
    if saved.keys() != expected.keys() or any(saved[name].shape != expected[name].shape for name in saved):
        raise TrainingError(
            "The run cannot be resumed on another kind of device: its random numbers are others there",
            got=generator.device.type,
            expected="a device with random numbers for " + ", ".join(saved),
            fix="choose the device of the run with --device, or train anew",
        )
    torch.set_rng_state(saved["cpu"])
    generator.set_state(saved[f"augmentation on {generator.device.type}"])
    if "cuda" in saved:
        torch.cuda.set_rng_state(saved["cuda"], generator.device)


# -- the same run ------------------------------------------------------------------------------------------------------


def data_digest(crops: Sequence[Crop], root: Path) -> str:
    """The sha256 of what a run learns from: of every crop, in order, its file, identity and camera.

    Files count by their names below `root`, so a data set may move; their contents are not read.

    Args:
        crops: to learn from.
        root: of the data set: its folder, or the file that lists it.
    """
    folder = root.parent if root.is_file() else root
    digest = hashlib.sha256()
    for crop in crops:
        name = crop.path.relative_to(folder) if crop.path.is_relative_to(folder) else crop.path
        digest.update(json.dumps([name.as_posix(), int(crop.pid), int(crop.camid)]).encode() + b"\n")
    return digest.hexdigest()


def check_same(state: RunState, recipe: Recipe, data_digest: str) -> None:
    """Refuses to go on with another recipe or other data: the outcome would be that of neither run.

    Other versions of reidkit or torch, which may round otherwise, are a warning in the log.

    Args:
        state: of the run.
        recipe: to go on with.
        data_digest: of the data to go on with.

    Raises:
        TrainingError: lists the keys of the recipe that differ, or says that the data do.
    """
    found = [f"{key} = {now!r} (the run: {was!r})" for key, was, now in _differences(state.recipe, to_dict(recipe))]
    if found:
        more = [f"and {len(found) - _MOST_DIFFERENCES} more"] if len(found) > _MOST_DIFFERENCES else []
        raise TrainingError(
            "A run cannot be resumed with another recipe",
            got="; ".join(found[:_MOST_DIFFERENCES] + more),
            expected="the recipe of the run",
            fix="resume with the same recipe and --set as before, or train anew",
        )
    if state.data != data_digest:
        raise TrainingError(
            "A run cannot be resumed with other training data",
            got="other files, identities or cameras",
            expected=f"the crops of the run, sha256 {state.data[:12]}...",
            fix="resume with the data as they were, or train anew",
        )
    if state.versions != _versions():
        _logger.warning(
            "the run was begun with %s and goes on with %s; its weights may differ from those of a run without a break",
            *(
                ", ".join(f"{name} {version}" for name, version in which.items())
                for which in (state.versions, _versions())
            ),
        )


def check_origin(state: RunState, origin: Mapping[str, str | None]) -> None:
    """Refuses to go on with another teacher, or to say of the outcome that it began with other weights.

    Args:
        state: of the run.
        origin: as in `RunState`.

    Raises:
        TrainingError: says what differs.
    """
    found = [(key, was, now) for key, was, now in _differences(state.origin, origin)]
    if found:
        raise TrainingError(
            "A run cannot be resumed with other files than it began with",
            got="; ".join(f"--{key} {now or 'none'}" for key, _, now in found),
            expected="; ".join(f"--{key} {was or 'none'}" for key, was, _ in found),
            fix="resume with the same --task, --init and --teacher, or train anew",
        )


class _Absent:
    def __repr__(self) -> str:
        return "absent"


_ABSENT = _Absent()


def _differences(was: Any, now: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted key, old value and new value of all that differs; of a table that one side lacks, the table.

    A key that is absent says what None says: a reidkit that did not know it did what None asks for.
    """
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys((*was, *now)):
            dotted = f"{where}.{key}" if where else key
            yield from _differences(was.get(key, _ABSENT), now.get(key, _ABSENT), dotted)
    elif was != now and not (_is_nothing(was) and _is_nothing(now)):
        yield where, was, now


def _is_nothing(value: Any) -> bool:
    return value is None or value is _ABSENT
