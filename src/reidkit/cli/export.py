"""`reid export`: a trained checkpoint becomes a bundle."""

from pathlib import Path
from typing import Annotated

import typer

from reidkit.bundle import LicenceClass
from reidkit.cli import console, options


def export(
    checkpoint: Annotated[Path, typer.Argument(help="A run of `reid train`, or its model.safetensors.")],
    out: Annotated[Path, typer.Option("--out", help="The bundle to write: NAME.reid.")],
    name: Annotated[str | None, typer.Option("--name", help="Name of the model (default: the bundle's).")] = None,
    licence: Annotated[LicenceClass, typer.Option("--licence", help="Class of licence of the weights.")] = "unknown",
    overwrite: options.Overwrite = False,
) -> None:
    """Export a trained model once: graph with pre-processing inside, weights, golden embeddings."""
    from reidkit.export.torch_export import export_checkpoint

    with console.spinner("exporting"):
        bundle = export_checkpoint(checkpoint, out, name=name, licence=licence, overwrite=overwrite)
    console.say(f"wrote {bundle.path}")
