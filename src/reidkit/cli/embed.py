"""`reid embed`: pictures become a table of embeddings."""

from pathlib import Path
from typing import Annotated

import typer

from reidkit.atomic import output_file
from reidkit.bundle import open_bundle
from reidkit.cli import console, options
from reidkit.cli.opening import Tuning, open_embedder
from reidkit.cli.pictures import Pictures, read_pictures
from reidkit.data import load_split
from reidkit.errors import ConfigError, DataError
from reidkit.evaluate import embed_crops
from reidkit.evaluate.embeddings_file import check_format, check_names, write_embeddings
from reidkit.types import SUBSETS


def embed(
    bundle: options.BundlePath,
    out: Annotated[Path, typer.Option("--out", help="Table to write: .npz or .parquet.")],
    images: Annotated[Path | None, typer.Option("--images", help="A picture, or a folder of pictures.")] = None,
    data: Annotated[Path | None, typer.Option("--data", help="A data set, instead of --images.")] = None,
    subset: Annotated[
        list[str] | None, typer.Option("--subset", help="Of the data set (default: query and gallery).")
    ] = None,
    runtime: options.Runtime = "onnxruntime",
    device: options.Device = None,
    precision: options.PrecisionOption = None,
    threads_per_call: options.ThreadsPerCall = None,
    hint: options.HintOption = None,
    optimization: options.OptimizationOption = None,
    rebuild: options.Rebuild = False,
    batch: options.BatchSize = 32,
    workers: options.Workers = None,
    skip_unreadable: options.SkipUnreadable = False,
    data_format: options.DataFormat = None,
    variant: options.DataVariant = None,
) -> None:
    """Write path, pid, camid, identity, camera and embedding of every picture.

    Labels are read off a data set, or off file names such as 0002_c1s1_000451_03.jpg; junk (-1) is left out. identity
    and camera are the names that the data set uses, empty where there is none. pid and camid are the numbers in those
    names (7 for 0007, 3 for c3), or where they are no numbers, their places in the sorted names. pid -1 is a
    distractor, -2 an unknown identity; camid -1 is an unknown camera.
    """
    check_format(out)
    arithmetic = options.parse_precision(precision)
    tuning = Tuning(threads_per_call, hint, optimization)
    tuning.check([runtime])
    opened = open_bundle(bundle)
    pictures = _pictures(images, data, subset, data_format, variant)
    texts = [str(crop.path) for crop in pictures.crops]
    check_names(out, [*texts, *pictures.pid_names.values(), *pictures.camera_names.values()])
    embedder = open_embedder(opened, runtime, device=device, precision=arithmetic, rebuild=rebuild, tuning=tuning)
    with output_file(out) as temporary:  # first of all: a place that cannot be written to costs no embedding
        with console.progress_bar("embedding") as progress:
            embedded = embed_crops(
                embedder,
                pictures.crops,
                batch_size=batch,
                workers=workers,
                unreadable="skip" if skip_unreadable else "raise",
                progress=progress,
            )
        console.warn_unreadable(embedded.unreadable)
        write_embeddings(temporary, embedded, pid_names=pictures.pid_names, camera_names=pictures.camera_names)
    console.say(f"wrote {len(embedded.crops)} embeddings of width {embedder.spec.dim} to {out}")


def _pictures(
    images: Path | None, data: Path | None, subset: list[str] | None, data_format: str | None, variant: str | None
) -> Pictures:
    if images is not None and data is None:
        options.refuse_idle({"--subset": subset, "--format": data_format, "--variant": variant}, "without --data")
        return read_pictures(images)
    if data is None or images is not None:
        raise ConfigError("Say what to embed", expected="either --images or --data")
    subsets = options.each_of(SUBSETS, subset or ("query", "gallery"), what="subset")
    split = load_split(data, data_format, variant=variant)
    crops = tuple(crop for name in subsets for crop in split.subset(name))
    if not crops:
        raise DataError(f"{data} has no crops to embed", got=f"an empty {' and '.join(subsets)}", fix="name --subset")
    return Pictures(crops, True, split.pid_names, split.camera_names)
