"""`reid embed`: pictures become a table of embeddings."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from jaxtyping import Int64

from reidkit.atomic import output_file
from reidkit.bundle import open_bundle
from reidkit.cli import console, options
from reidkit.cli.pictures import Pictures, read_pictures
from reidkit.data import load_split
from reidkit.data.labels import own_numbers
from reidkit.errors import ConfigError, DataError
from reidkit.evaluate import EmbeddedCrops, embed_crops
from reidkit.runtime import load
from reidkit.types import SUBSETS

_Table = dict[str, Any]  # arrays by column; np.ndarray would not fit the other arguments of np.savez
_Writer = Callable[[Path, _Table], None]


def embed(
    bundle: options.BundlePath,
    out: Annotated[Path, typer.Option("--out", help="Table to write: .npz or .parquet.")],
    images: Annotated[Path | None, typer.Option("--images", help="A picture, or a folder of pictures.")] = None,
    data: Annotated[Path | None, typer.Option("--data", help="A data set, instead of --images.")] = None,
    subset: Annotated[
        list[str] | None, typer.Option("--subset", help="Of the data set (default: query and gallery).")
    ] = None,
    runtime: options.Runtime = "onnxruntime",
    device: options.Device = "cpu",
    batch: options.BatchSize = 32,
    threads: options.Threads = None,
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
    write = _writer(out)
    opened = open_bundle(bundle)
    pictures = _pictures(images, data, subset, data_format, variant)
    if out.suffix.lower() == ".parquet":
        _check_text(pictures)
    embedder = load(opened, runtime, device=device)
    with output_file(out) as temporary:  # first of all: a place that cannot be written to costs no embedding
        with console.progress_bar("embedding") as progress:
            embedded = embed_crops(
                embedder,
                pictures.crops,
                batch_size=batch,
                threads=threads,
                unreadable="skip" if skip_unreadable else "raise",
                progress=progress,
            )
        console.warn_unreadable(embedded.unreadable)
        write(temporary, _table(embedded, pictures))
    console.say(f"wrote {len(embedded.crops)} embeddings of width {embedder.spec.dim} to {out}")


def _writer(out: Path) -> _Writer:
    match out.suffix.lower():
        case ".npz":
            return _write_npz
        case ".parquet":
            return _parquet_writer()
        case suffix:
            raise ConfigError(f"Cannot write {out.name}", got=suffix or "no suffix", expected=".npz or .parquet")


def _pictures(
    images: Path | None, data: Path | None, subset: list[str] | None, data_format: str | None, variant: str | None
) -> Pictures:
    if images is not None and data is None:
        return read_pictures(images)
    if data is None or images is not None:
        raise ConfigError("Say what to embed", expected="either --images or --data")
    subsets = options.each_of(SUBSETS, subset or ("query", "gallery"), what="subset")
    split = load_split(data, data_format, variant=variant)
    crops = tuple(crop for name in subsets for crop in split.subset(name))
    if not crops:
        raise DataError(f"{data} has no crops to embed", got=f"an empty {' and '.join(subsets)}", fix="name --subset")
    return Pictures(crops, True, split.pid_names, split.camera_names)


def _check_text(pictures: Pictures) -> None:
    """Refuses names that are no Unicode (bytes from another system), which a Parquet column cannot hold."""
    texts = [str(crop.path) for crop in pictures.crops]
    for text in (*texts, *pictures.pid_names.values(), *pictures.camera_names.values()):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise DataError(
                f"A Parquet table cannot hold the name {text!r}",
                expected="names in UTF-8",
                fix="write .npz, or rename the file",
            ) from None


def _table(embedded: EmbeddedCrops, pictures: Pictures) -> _Table:
    crops, labels = embedded.crops, embedded.labels
    return {
        "path": np.array([str(crop.path) for crop in crops]),
        "pid": _numbered(labels.pids, pictures.pid_names),
        "camid": _numbered(labels.camids, pictures.camera_names),
        "identity": np.array([pictures.pid_names.get(crop.pid, "") for crop in crops]),
        "camera": np.array([pictures.camera_names.get(crop.camid, "") for crop in crops]),
        "embedding": embedded.embeddings,
    }


def _numbered(values: Int64[np.ndarray, " n"], names: Mapping[int, str]) -> Int64[np.ndarray, " n"]:
    own = own_numbers(names)
    return np.array([own.get(value, value) for value in values.tolist()], dtype=np.int64)


def _write_npz(path: Path, table: _Table) -> None:
    with path.open("wb") as stream:
        np.savez(stream, **table)


def _parquet_writer() -> _Writer:
    # Found missing now, not after an hour of embedding.
    import pyarrow as pa
    from pyarrow import parquet

    def write(path: Path, table: _Table) -> None:
        embeddings = table["embedding"]
        columns = {name: pa.array(values.tolist()) for name, values in table.items() if name != "embedding"}
        columns["embedding"] = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.ravel()), embeddings.shape[1])
        parquet.write_table(pa.table(columns), path)

    return write
