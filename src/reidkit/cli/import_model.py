"""`reid import`: anyone's model becomes a bundle. One verb for all, by suffix."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from reidkit.bundle import LicenceClass
from reidkit.cli import console, options
from reidkit.errors import ConfigError, ModelError
from reidkit.types import ColorOrder, InputSpec, ResizeFilter, Task


def import_model(
    file: Annotated[Path, typer.Argument(help="The model: FILE.onnx.")],
    out: Annotated[Path, typer.Option("--out", help="The bundle to write: NAME.reid.")],
    size: Annotated[
        str | None, typer.Option("--size", metavar="HEIGHTxWIDTH", help="Of its crops (default: what the graph says).")
    ] = None,
    color: Annotated[ColorOrder, typer.Option("--color", help="Order of channels it was trained with.")] = "rgb",
    scale: Annotated[float, typer.Option("--scale", help="Divisor of the 0 to 255 pixel values.")] = 255.0,
    mean: Annotated[
        str, typer.Option("--mean", metavar="A,B,C", help="In its own channel order.")
    ] = "0.485,0.456,0.406",
    std: Annotated[str, typer.Option("--std", metavar="A,B,C", help="In its own channel order.")] = "0.229,0.224,0.225",
    resize: Annotated[ResizeFilter, typer.Option("--resize", help="Filter its crops were resized with.")] = "bilinear",
    output: Annotated[str | None, typer.Option("--output", help="Name of the output, where it has several.")] = None,
    layout: Annotated[
        Literal["nchw", "nhwc"] | None, typer.Option("--layout", help="Of its input (default: what the graph says).")
    ] = None,
    task: Annotated[Task, typer.Option("--task", help="What it tells apart.")] = "person",
    licence: Annotated[LicenceClass, typer.Option("--licence", help="Class of licence of the weights.")] = "unknown",
    overwrite: options.Overwrite = False,
) -> None:
    """Take a foreign model into a bundle, with its pre-processing inside the graph."""
    if file.suffix.lower() != ".onnx":
        raise ModelError(
            f"Cannot tell what {file.name} is",
            got=file.suffix or "no suffix",
            expected=".onnx",
            fix="export it to ONNX",
        )
    from reidkit.deploy.foreign_onnx import graph_input_size, import_onnx

    stated = _size(size) if size is not None else graph_input_size(file, layout=layout)
    if stated is None:
        raise ConfigError(f"{file.name} takes crops of any size", fix="say which: --size 256x128 (height x width)")
    height, width = stated
    spec = InputSpec(
        height, width, resize=resize, color=color, scale=scale, mean=_triple("--mean", mean), std=_triple("--std", std)
    )
    with console.progress_bar("importing") as progress:
        imported = import_onnx(
            file,
            out,
            spec=spec,
            task=task,
            licence=licence,
            output=output,
            layout=layout,
            overwrite=overwrite,
            progress=progress,
        )
    for note in imported.notes:
        console.say(f"note: {note}")
    console.say(f"wrote {imported.bundle.path}")


def _size(text: str) -> tuple[int, int]:
    height, separator, width = text.lower().partition("x")
    if not separator or not (height.isdecimal() and width.isdecimal()):
        raise ConfigError("Cannot read --size", got=text, expected="HEIGHTxWIDTH, such as 256x128")
    return int(height), int(width)


def _triple(name: str, text: str) -> tuple[float, float, float]:
    try:
        a, b, c = (float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"Cannot read {name}", got=text, expected="three numbers, such as 0.5,0.5,0.5") from None
    return a, b, c
