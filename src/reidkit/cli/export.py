"""`reid export`: a trained checkpoint becomes a bundle, or a file of weights for others."""

from pathlib import Path
from typing import Annotated

import typer

from reidkit.cli import console, options
from reidkit.errors import ConfigError
from reidkit.manifest import LicenceClass


def export(
    source: Annotated[Path, typer.Argument(help="A run of `reid train`, its model.safetensors, or a bundle.")],
    out: Annotated[
        Path, typer.Option("--out", help="The bundle to write, NAME.reid; or its weights: NAME.wts, NAME.safetensors.")
    ],
    name: Annotated[str | None, typer.Option("--name", help="Name of the model (default: the bundle's).")] = None,
    licence: Annotated[
        LicenceClass | None, typer.Option("--licence", help="Class of licence of the weights (default: unknown).")
    ] = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Export a trained model once: graph with pre-processing inside, weights, golden embeddings."""
    from reidkit.export.torch_export import export_checkpoint
    from reidkit.export.weights_file import SUFFIXES, export_weights

    with console.spinner("exporting"):
        if out.suffix in SUFFIXES:
            if name is not None or licence is not None:
                raise ConfigError(f"{out.name} has no place for --name and --licence", fix="leave them out")
            export_weights(source, out, overwrite=overwrite)
        else:
            export_checkpoint(source, out, name=name, licence=licence or "unknown", overwrite=overwrite)
    beside = f" and {out.name}.json, which belongs to it" if out.suffix == ".wts" else ""
    console.say(f"wrote {out}{beside}")
