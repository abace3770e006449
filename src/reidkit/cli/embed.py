"""`reid embed`: pictures become a table of embeddings."""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from reidkit.atomic import output_file
from reidkit.bundle import open_bundle
from reidkit.cli import console, options
from reidkit.data import load_split
from reidkit.data.labels import crops_by_name, unlabelled_crops
from reidkit.errors import ConfigError, DataError
from reidkit.evaluate import EmbeddedCrops, embed_crops
from reidkit.imaging import image_files
from reidkit.runtime import load
from reidkit.types import SUBSETS, Crop


def embed(
    bundle: options.BundlePath,
    out: Annotated[Path, typer.Option("--out", help="Table to write: .npz or .parquet.")],
    images: Annotated[Path | None, typer.Option("--images", help="A picture, or a folder of pictures.")] = None,
    data: Annotated[Path | None, typer.Option("--data", help="A data set, instead of --images.")] = None,
    subset: Annotated[
        list[str] | None, typer.Option("--subset", help="Of the data set [default: query and gallery].")
    ] = None,
    runtime: options.Runtime = "onnxruntime",
    device: options.Device = "cpu",
    batch: options.BatchSize = 32,
    threads: options.Threads = None,
    skip_unreadable: options.SkipUnreadable = False,
    data_format: options.DataFormat = None,
    variant: options.DataVariant = None,
) -> None:
    """Write path, pid, camid and embedding of every picture; -1 is an unknown identity or camera."""
    if out.suffix not in _WRITERS:
        raise ConfigError(f"Cannot write {out.name}", got=out.suffix, expected=" or ".join(_WRITERS))
    opened = open_bundle(bundle)
    if (images is None) == (data is None):
        raise ConfigError("Say what to embed", expected="either --images or --data")
    crops: list[Crop]
    if images is not None:
        crops = _crops(images)
    else:
        assert data is not None
        subsets = options.each_of(SUBSETS, subset or ("query", "gallery"), what="subset")
        split = load_split(data, data_format, variant=variant)
        crops = [crop for name in subsets for crop in split.subset(name)]
    embedder = load(opened, runtime, device=device)
    with console.progress_bar("embedding") as progress:
        embedded = embed_crops(
            embedder,
            crops,
            batch_size=batch,
            threads=threads,
            unreadable="skip" if skip_unreadable else "raise",
            progress=progress,
        )
    console.warn_unreadable(embedded.unreadable)
    with output_file(out) as temporary:
        _WRITERS[out.suffix](temporary, embedded)
    console.say(f"wrote {len(embedded.crops)} embeddings of width {embedder.spec.dim} to {out}")


def _crops(images: Path) -> list[Crop]:
    if not images.exists():
        raise DataError(f"No such file or folder: {images}", fix="check the path")
    files = image_files(images)
    if not files:
        raise DataError(f"{images} holds no pictures", expected="JPEG, PNG or other picture files")
    return crops_by_name(files) or unlabelled_crops(files)


def _write_npz(path: Path, embedded: EmbeddedCrops) -> None:
    labels = embedded.labels
    with path.open("wb") as stream:
        np.savez(
            stream,
            path=np.array([str(crop.path) for crop in embedded.crops]),
            pid=labels.pids,
            camid=labels.camids,
            embedding=embedded.embeddings,
        )


def _write_parquet(path: Path, embedded: EmbeddedCrops) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    labels, dim = embedded.labels, embedded.embeddings.shape[1]
    columns = {
        "path": pa.array([str(crop.path) for crop in embedded.crops]),
        "pid": pa.array(labels.pids),
        "camid": pa.array(labels.camids),
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(embedded.embeddings.ravel()), dim),
    }
    parquet.write_table(pa.table(columns), path)


_WRITERS = {".npz": _write_npz, ".parquet": _write_parquet}
