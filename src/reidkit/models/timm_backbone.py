"""Any network of timm (PyTorch Image Models) as a backbone, without its classifier and with fresh weights.

Axes: `n` crops, `c` channels, `h` x `w` positions of a feature map.
"""

import difflib
import importlib
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from reidkit.architecture import TimmSpec
from reidkit.errors import ConfigError

_ABSENT_OPERATOR = "operator torchvision::nms does not exist"


def timm_backbone(spec: TimmSpec, *, pooled: bool) -> tuple[nn.Module, int]:
    """Builds a network of timm, and says how many channels it gives. Nothing is downloaded.

    It is timm's own module, so every name in its state dict is timm's. A forward hook brings its output into the form
    that a head takes.

    Args:
        spec: of the network.
        pooled: True leaves pooling to the network, which then gives (n, c, 1, 1); False asks for its last feature map,
            (n, c, h, w). A network that pools by a layer of its own (a class token, attention) has only the former.

    Returns:
        The network, a picture in, (n, c, h, w) out; and c.

    Raises:
        ConfigError: a name that timm does not know; a size that is missing or impossible; no feature map to pool.
        ModuleNotFoundError: timm or torchvision is not installed.
    """
    timm = import_timm()
    if not timm.is_model(spec.name):
        raise _unknown(spec.name, timm.list_models())
    # What it gives is found out on a second copy, on the meta device: nothing is computed, and the copy that is used
    # has not run yet. (LeViT and its kin remember position biases at their first run, before any weights are loaded.)
    with torch.device("meta"):
        probe = _create(timm, spec, pooled=pooled)
        dim = _channels(probe, spec, pooled=pooled)
    network = _create(timm, spec, pooled=pooled)
    network.register_forward_hook(_with_positions if pooled else _FORMATS[_output_format(network)])
    return network, dim


def classifier_of(spec: TimmSpec) -> tuple[str, ...]:
    """The names of the layers that classify in timm's own network, which a backbone does without.

    Raises:
        ConfigError: a name that timm does not know.
        ModuleNotFoundError: timm or torchvision is not installed.
    """
    timm = import_timm()
    if not timm.is_model(spec.name):
        raise _unknown(spec.name, timm.list_models())
    layers = timm.get_pretrained_cfg(spec.name).classifier
    return (layers,) if isinstance(layers, str) else tuple(layers or ())


def import_timm() -> Any:
    """Imports timm, which imports torchvision; see `import_torchvision`.

    Raises:
        ModuleNotFoundError: timm or torchvision is not installed.
    """
    import_torchvision()
    return importlib.import_module("timm")


def import_torchvision() -> Any:
    """Imports torchvision; also beside a PyTorch without CUDA, where its wheel for CUDA cannot be imported as it is.

    On PyPI torchvision comes built for CUDA, and its library of operators does not load beside a PyTorch built for
    processors only. That alone does torchvision no harm, but at its import it describes two of those operators to
    PyTorch, which has never heard of them. Declaring them first is enough. Nothing can call them: they have no
    implementation, so a call is an error, and no network that embeds crops suppresses boxes.

    Raises:
        ModuleNotFoundError: torchvision is not installed.
    """
    cpu_only = torch.version.cuda is None and torch.version.hip is None
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if not cpu_only or _ABSENT_OPERATOR not in str(error):
            raise
        _declare_box_operators()
        # The failed import left behind the parts of torchvision that had succeeded; they stay valid and are reused.
        return importlib.import_module("torchvision")


def _declare_box_operators() -> None:
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def _unknown(name: str, known: list[str]) -> ConfigError:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return ConfigError(
        f"timm has no network {name!r}",
        expected="one of " + ", ".join(known) if len(known) <= 20 else f"one of {len(known)} (timm.list_models())",
        fix=f"did you mean {near[0]!r}?" if near else None,
    )


def _create(timm: ModuleType, spec: TimmSpec, *, pooled: bool) -> nn.Module:
    """The network without its classifier, built for the size of the spec where its weights depend on one."""
    options: dict[str, Any] = {} if pooled else {"global_pool": ""}
    if _fixed_size(timm, spec.name):
        if spec.size is None:
            raise ConfigError(
                f"{spec.name} is built for one size of picture, and none is given",
                expected="height and width of the crops",
                fix="set the backbone's size to that of the crops, such as [256, 128]",
            )
        options["img_size"] = spec.size
    try:
        try:
            network = timm.create_model(spec.name, pretrained=False, num_classes=0, **options)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            # Some that were trained at one size take others as they are; the probe tells whether they take this one.
            options.pop("img_size")
            network = timm.create_model(spec.name, pretrained=False, num_classes=0, **options)
    except Exception as error:  # assertions, ValueErrors and RuntimeErrors, each network in its own words
        raise ConfigError(
            f"timm cannot build {_described(spec)}" + ("" if pooled else " without its own pooling"),
            got=str(error).partition("\n")[0] or type(error).__name__,
            fix="choose another size" if pooled else 'choose another size, or pooling "own"',
        ) from error
    _check_patches(network, spec)
    return network


def _fixed_size(timm: ModuleType, name: str) -> bool:
    """Whether the weights of a network depend on the size of its crops."""
    try:
        return bool(getattr(timm.get_pretrained_cfg(name), "fixed_input_size", False))
    except RuntimeError as error:  # a name with a tag behind its point that timm has not given to this network
        raise _unknown(name, timm.list_pretrained(f"{name.partition('.')[0]}.*")) from error


def _check_patches(network: nn.Module, spec: TimmSpec) -> None:
    """A crop that patches do not cover loses its last rows and columns without a word."""
    patch = getattr(getattr(network, "patch_embed", None), "patch_size", None)
    if spec.size is None or patch is None:
        return
    rows, columns = (patch, patch) if isinstance(patch, int) else patch
    height, width = spec.size
    if height % rows or width % columns:
        raise ConfigError(
            f"{spec.name} cuts crops into patches of {rows}x{columns}, which do not cover this size",
            got=f"{height}x{width} (height x width)",
            expected=f"a multiple of {rows} and of {columns}",
            fix=f"set the backbone's size to [{_nearest(height, rows)}, {_nearest(width, columns)}]",
        )


def _nearest(pixels: int, patch: int) -> int:
    return max(1, round(pixels / patch)) * patch


def _channels(probe: nn.Module, spec: TimmSpec, *, pooled: bool) -> int:
    """Channels of what the network gives, from the shapes alone."""
    config: Any = probe.default_cfg
    size: tuple[int, int] = spec.size or tuple(config["input_size"][1:])
    try:
        with torch.inference_mode():
            output = probe.eval()(torch.empty(1, 3, *size, device="meta"))
    except Exception as error:
        raise ConfigError(
            f"{spec.name} does not take crops of {size[0]}x{size[1]} (height x width)",
            got=str(error).partition("\n")[0] or type(error).__name__,
            fix="set the backbone's size to another",
        ) from error
    shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if not isinstance(output, Tensor) or output.ndim != (2 if pooled else 4):
        raise ConfigError(
            f"{spec.name} gives no {'embedding' if pooled else 'feature map'}",
            got=shape,
            expected="(1, channels)" if pooled else "one of four axes",
            fix="choose another pooling" if pooled else 'choose pooling "own"',
        )
    return output.shape[_channel_axis(probe, pooled=pooled)]


def _described(spec: TimmSpec) -> str:
    return spec.name if spec.size is None else f"{spec.name} for {spec.size[0]}x{spec.size[1]} (height x width)"


def _output_format(network: nn.Module) -> str:
    return str(getattr(network, "output_fmt", "NCHW"))


def _channel_axis(network: nn.Module, *, pooled: bool) -> int:
    return 1 if pooled else _output_format(network).index("C")


def _with_positions(network: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    return output[:, :, None, None]


def _channels_first(network: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    return output.permute(0, 3, 1, 2).contiguous()


def _as_it_is(network: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    return output


_FORMATS = {"NCHW": _as_it_is, "NHWC": _channels_first}
"""Hooks that turn a feature map to NCHW, by what timm says of it."""
