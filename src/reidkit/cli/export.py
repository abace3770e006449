"""`reid export`: a trained checkpoint becomes a bundle, or files for others: weights, OpenVINO's and Caffe's."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from reidkit.bundle import Bundle, open_bundle
from reidkit.cli import console, options
from reidkit.errors import ConfigError
from reidkit.manifest import CHECKPOINT, LicenceClass, checkpoint_file
from reidkit.types import Precision

_WEIGHTS = (".wts", ".safetensors")
_CAFFE = (".prototxt", ".caffemodel")
_OPENVINO = (".xml", ".bin")
_WITHOUT_FACTS = (*_WEIGHTS, *_CAFFE, *_OPENVINO)


def export(
    source: Annotated[Path, typer.Argument(help="A run of `reid train`, its model.safetensors, or a bundle.")],
    out: Annotated[
        Path,
        typer.Option(
            "--out", help="The bundle to write, NAME.reid; its weights, .wts or .safetensors; or .xml, or .prototxt."
        ),
    ],
    name: Annotated[str | None, typer.Option("--name", help="Name of the model (default: the bundle's).")] = None,
    licence: Annotated[
        LicenceClass | None, typer.Option("--licence", help="Class of licence of the weights (default: unknown).")
    ] = None,
    precision: Annotated[
        str | None, typer.Option("--precision", help="Of .xml: fp32, fp16 or int8 (default: the graph's own).")
    ] = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Export a trained model once: graph with pre-processing inside, weights, golden embeddings.

    A bundle gives its weights as a file, its graph as OpenVINO IR, NAME.xml and NAME.bin, or itself as Caffe files,
    NAME.prototxt and NAME.caffemodel.
    """
    if out.suffix in _WITHOUT_FACTS and (name is not None or licence is not None):
        raise ConfigError(f"{out.name} has no place for --name and --licence", fix="leave them out")
    if out.suffix not in _OPENVINO:
        options.refuse_idle({"--precision": precision}, f"in {out.name}")
    arithmetic = options.parse_precision(precision)
    beside = ""
    with console.spinner("exporting"):
        if out.suffix in _CAFFE:
            _to_caffe(source, out, overwrite=overwrite)
            beside = f" and {out.with_suffix('.caffemodel').name}, which belongs to it"
        elif out.suffix in _OPENVINO:
            _to_openvino(source, out, arithmetic, overwrite=overwrite)
            beside = f" and {out.with_suffix('.bin').name}, which belongs to it"
        elif out.suffix in _WEIGHTS:
            from reidkit.export.weights_file import export_weights

            export_weights(source, out, overwrite=overwrite)
            if out.suffix == ".wts":
                beside = f" and {out.name}.json, which belongs to it"
        else:
            from reidkit.export.torch_export import export_checkpoint

            export_checkpoint(source, out, name=name, licence=licence or "unknown", overwrite=overwrite)
    console.say(f"wrote {out}{beside}")
    if out.suffix not in (*_CAFFE, *_OPENVINO, ".safetensors"):
        _warn_of_ranges(source, out)


def _warn_of_ranges(source: Path, out: Path) -> None:
    """Says that a run for eight bits has learned more than what was written."""
    from reidkit.models.checkpoint import load_ranges

    file = checkpoint_file(source)
    if not file.is_file() or load_ranges(file) is None:  # a bundle has no ranges of a run
        return
    bundle = "BUNDLE" if out.suffix in _WEIGHTS else shlex.quote(str(out))
    console.warn(
        f"{source} was trained for eight bits, and {out.name} is in floats: "
        f"`reid quantize {bundle} --ranges {shlex.quote(str(source))} --calibration DATA` makes the int8 graphs"
    )


def _to_caffe(source: Path, out: Path, *, overwrite: bool) -> None:
    """Needs a bundle and no torch."""
    from reidkit.deploy.caffe import write_caffe

    write_caffe(_bundle(source, out, "Caffe files are"), out, overwrite=overwrite)


def _to_openvino(source: Path, out: Path, precision: Precision | None, *, overwrite: bool) -> None:
    """Needs a bundle and no torch."""
    from reidkit.deploy.openvino_ir import write_ir

    write_ir(_bundle(source, out, "OpenVINO IR is"), out, precision=precision, overwrite=overwrite)


def _bundle(source: Path, out: Path, what: str) -> Bundle:
    """The bundle that files for others are written from; a run is to be made one first."""
    if source.suffix == ".safetensors" or (source / CHECKPOINT).is_file():
        raise ConfigError(
            f"{what} written from a bundle",
            got=source,
            expected="NAME.reid",
            fix=f"reid export {shlex.quote(str(source))} --out {shlex.quote(out.stem + '.reid')}, then export that",
        )
    return open_bundle(source)
