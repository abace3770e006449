"""`reid import`: anyone's model becomes a bundle. One verb for all: the file says what it is."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from reidkit.architecture import named_model
from reidkit.cli import console, options
from reidkit.config import from_dict
from reidkit.errors import ConfigError
from reidkit.manifest import LicenceClass
from reidkit.types import ColorOrder, InputSpec, ResizeFilter, Task

_List = list[str] | None

_GRAPHS = {".onnx": "an ONNX graph", ".xml": "an OpenVINO IR"}
"""What a file is that holds a whole graph, by its suffix."""


def import_model(
    file: Annotated[
        Path,
        typer.Argument(
            help="A checkpoint (fast-reid, torchreid, torchvision, timm), FILE.wts, FILE.onnx, or FILE.xml (OpenVINO)."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="The bundle to write: NAME.reid.")],
    config: Annotated[Path | None, typer.Option("--config", help="Checkpoint: fast-reid's config.yaml.")] = None,
    dialect: Annotated[
        str | None, typer.Option("--dialect", help="Checkpoint: who wrote it (default: found out and said).")
    ] = None,
    overrides: Annotated[
        _List,
        typer.Option("--set", metavar="NAME=VALUE", help="Checkpoint: change what was found: backbone.max_pool=pad."),
    ] = None,
    allow_missing: Annotated[
        _List, typer.Option("--allow-missing", metavar="NAME", help="Checkpoint: weights that may be missing.")
    ] = None,
    allow_unexpected: Annotated[
        _List, typer.Option("--allow-unexpected", metavar="NAME", help="Checkpoint: weights that are to be dropped.")
    ] = None,
    architecture: Annotated[
        str | None,
        typer.Option(
            "--architecture",
            help="The network of `reid models` that it is, where it cannot say: timm, ONNX; .wts without torch.",
        ),
    ] = None,
    key: Annotated[str | None, typer.Option("--key", help="Checkpoint: where in the file the weights are.")] = None,
    size: Annotated[
        str | None, typer.Option("--size", metavar="HEIGHTxWIDTH", help="Of its crops (default: what the file says).")
    ] = None,
    color: Annotated[ColorOrder | None, typer.Option("--color", help="Its order of channels (graphs: rgb).")] = None,
    scale: Annotated[float | None, typer.Option("--scale", help="Divisor of 0 to 255 pixels (graphs: 255).")] = None,
    mean: Annotated[
        str | None, typer.Option("--mean", metavar="A,B,C", help="In its own channel order (graphs: ImageNet's).")
    ] = None,
    std: Annotated[
        str | None, typer.Option("--std", metavar="A,B,C", help="In its own channel order (graphs: ImageNet's).")
    ] = None,
    resize: Annotated[
        ResizeFilter | None, typer.Option("--resize", help="Filter its crops were resized with (graphs: bilinear).")
    ] = None,
    output: Annotated[str | None, typer.Option("--output", help="Graphs: name of the output, of several.")] = None,
    layout: Annotated[
        Literal["nchw", "nhwc"] | None, typer.Option("--layout", help="Graphs: of its input (default: what it says).")
    ] = None,
    task: Annotated[
        Task | None, typer.Option("--task", help="What it tells apart (default: what the file says, else person).")
    ] = None,
    licence: Annotated[LicenceClass, typer.Option("--licence", help="Class of licence of the weights.")] = "unknown",
    no_torch: Annotated[
        bool,
        typer.Option(
            "--no-torch",
            help=".wts, .safetensors with fast-reid's names: take them as they are, as is done where torch is missing.",
        ),
    ] = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Take a foreign model into a bundle, with its pre-processing inside the graph; every weight is accounted for."""
    pixels = _pixels(color, scale, mean, std, resize)
    graph = _GRAPHS.get(file.suffix.lower())
    if graph is not None and (architecture is None or file.suffix.lower() != ".onnx"):
        _refuse(graph, config=config, dialect=dialect, set=overrides, architecture=architecture)
        _refuse(graph, key=key, no_torch=no_torch)
        _refuse(graph, allow_missing=allow_missing, allow_unexpected=allow_unexpected)
        _import_graph(
            file,
            out,
            size,
            pixels,
            output=output,
            layout=layout,
            task=task or "person",
            licence=licence,
            over=overwrite,
        )
        return
    if file.suffix.lower() == ".bin" and (xml := file.with_suffix(".xml")).is_file():
        raise ConfigError(f"{file.name} holds the weights of {xml.name}", fix=f"import {xml}, which names them")
    _refuse("a checkpoint", output=output, layout=layout)
    if size is not None:
        pixels["height"], pixels["width"] = options.parse_size(size)
    changes = [*(f"input.{name}={_toml(value)}" for name, value in pixels.items()), *(overrides or ())]
    if no_torch or _torch_is_missing(file):
        what = "weights that are taken as they are, without torch"
        _refuse(what, config=config, dialect=dialect, key=key)
        _refuse(what, allow_missing=allow_missing, allow_unexpected=allow_unexpected)
        _import_network(file, out, architecture, changes, task=task, licence=licence, over=overwrite)
        return
    from reidkit.export.foreign_checkpoint import import_checkpoint

    with console.spinner("importing"):
        imported = import_checkpoint(
            file,
            out,
            config=config,
            dialect=dialect,
            architecture=architecture,
            key=key,
            overrides=changes,
            allow_missing=allow_missing or (),
            allow_unexpected=allow_unexpected or (),
            task=task,
            licence=licence,
            overwrite=overwrite,
        )
    for finding in imported.findings:
        console.say(f"found: {finding}")
    for assumption in imported.assumptions:
        console.say(f"assumed: {assumption}")
    console.say(f"wrote {imported.bundle.path}")


def _torch_is_missing(file: Path) -> bool:
    """Whether a file that could be taken without torch has to be; said aloud, since torch would find out more."""
    if file.suffix not in (".wts", ".safetensors"):
        return False
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        console.note("torch is not installed: weights are taken under fast-reid's names, and nothing is found out")
        return True
    return False


def _import_network(
    file: Path,
    out: Path,
    architecture: str | None,
    changes: list[str],
    *,
    task: Task | None,
    licence: LicenceClass,
    over: bool,
) -> None:
    from reidkit.deploy.network_import import import_network

    spec = None if architecture is None else named_model(architecture)
    with console.progress_bar("importing") as progress:
        bundle = import_network(
            file,
            out,
            spec=spec,
            overrides=changes,
            task=task,
            licence=licence,
            overwrite=over,
            progress=progress,
        )
    for assumption in bundle.manifest.provenance.assumptions:
        console.say(f"note: {assumption}")
    console.say(f"wrote {bundle.path}")


def _import_graph(
    file: Path,
    out: Path,
    size: str | None,
    pixels: dict[str, Any],
    *,
    output: str | None,
    layout: Literal["nchw", "nhwc"] | None,
    task: Task,
    licence: LicenceClass,
    over: bool,
) -> None:
    if file.suffix.lower() == ".onnx":
        from reidkit.deploy.foreign_onnx import graph_input_size as input_size
        from reidkit.deploy.foreign_onnx import import_onnx as import_network
    else:
        from reidkit.deploy.foreign_openvino import import_ir as import_network
        from reidkit.deploy.foreign_openvino import ir_input_size as input_size

    stated = options.parse_size(size) if size is not None else input_size(file, layout=layout)
    if stated is None:
        raise ConfigError(f"{file.name} takes crops of any size", fix="say which: --size 256x128 (height x width)")
    values = {"height": stated[0], "width": stated[1], "resize": "bilinear", **pixels}
    spec = from_dict(InputSpec, values, where="input")
    with console.progress_bar("importing") as progress:
        imported = import_network(
            file,
            out,
            spec=spec,
            task=task,
            licence=licence,
            output=output,
            layout=layout,
            overwrite=over,
            progress=progress,
        )
    for note in imported.notes:
        console.say(f"note: {note}")
    console.say(f"wrote {imported.bundle.path}")


def _pixels(
    color: ColorOrder | None, scale: float | None, mean: str | None, std: str | None, resize: ResizeFilter | None
) -> dict[str, Any]:
    """What was said about the input, by the names of `InputSpec`."""
    said = {
        "color": color,
        "scale": scale,
        "mean": None if mean is None else _triple("--mean", mean),
        "std": None if std is None else _triple("--std", std),
        "resize": resize,
    }
    return {name: value for name, value in said.items() if value is not None}


def _refuse(what: str, **given: object) -> None:
    wrong = [f"--{name.replace('_', '-')}" for name, value in given.items() if value]
    if wrong:
        raise ConfigError(f"{', '.join(wrong)} says nothing about {what}", fix="leave it out")


def _toml(value: object) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _triple(name: str, text: str) -> tuple[float, float, float]:
    try:
        a, b, c = (float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"Cannot read {name}", got=text, expected="three numbers, such as 0.5,0.5,0.5") from None
    return a, b, c
