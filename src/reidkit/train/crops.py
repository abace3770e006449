"""The crops of a training set: decoded once, kept on disk, and given to the network without making it wait.

Axes: `n` crops, `batch` of them, `height` x `width` pixels, RGB, uint8.

    FOLDER/<sha256 of everything that decides the crops>.npy
        the crops as `np.save` writes them, uint8 n x height x width x 3
        after them what the name is the sha256 of, and the CRC-32 of the pixels, as JSON

What decides them is size and filter, Pillow, the code that decodes, and the bytes of every picture in order
(`reidkit.cache`). An entry is believed when all of it is as it was written: length, header, pixels by their CRC-32, and
what it says it is. That costs about as long as reading the file, which the run is about to do. It finds damage, not
forgery: whoever may write to the folder can write other pixels, but nothing that runs.
"""

import io
import json
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO, Protocol, runtime_checkable

import numpy as np
import PIL
import torch
from jaxtyping import Integer, UInt8
from numpy.lib import format as npy
from torch import Tensor

import reidkit
from reidkit.cache import CacheFolder, canonical, pictures_sha256, sources_sha256
from reidkit.decoding import stream_crops
from reidkit.errors import DataError, ImageError, InputError
from reidkit.train.prefetch import CudaLane, gather, prefetched
from reidkit.train.settings import fraction
from reidkit.types import InputSpec, Progress, no_progress

LIMIT = 16 << 30
"""Bytes that the folder of crops may take, where nobody says: MSMT17 at 256 x 128 takes 3.2 GB."""

_FORMAT = 1
_UPLOAD = 1 << 26  # bytes that go to the GPU at once when all of them go


# -- decoding, once ----------------------------------------------------------------------------------------------------


def load_crops(
    files: Sequence[Path],
    spec: InputSpec,
    *,
    folder: Path | None,
    limit: int = LIMIT,
    progress: Progress = no_progress,
) -> UInt8[np.ndarray, "n {spec.height} {spec.width} 3"]:
    """Decodes pictures, or maps what was decoded of the same ones before: read-only, read from the disk as it is used.

    A folder that cannot be used and a disk that is full cost a warning in the log; the crops are then in memory. Two
    processes that ask for the same crops at once both decode them: let one ask first.

    Args:
        files: pictures, one crop each.
        spec: size and filter; the rest of it makes no difference.
        folder: that keeps crops, as `reidkit.cache.default_folder("crops")`; None keeps nothing.
        limit: bytes that the folder may take; what was not used for longest goes first.
        progress: of the decoding.

    Raises:
        ImageError: the first picture that cannot be decoded; nothing is kept.
    """
    shape = (len(files), spec.height, spec.width, 3)
    pictures = pictures_sha256(files) if folder is not None and files else None
    if folder is None or pictures is None:
        return _decode_to_memory(files, spec, progress)  # which says what is wrong with a file that cannot be read
    cache = CacheFolder(folder, suffix=".npy", limit=limit, holds="crops", made="decoded")
    about = _about(spec, pictures, len(files))
    entry = cache.entry(about)
    found = cache.recall(entry, lambda: _read_entry(entry, about, shape))
    if found is not None:
        progress(len(files), len(files))
        return found
    size = _entry_size(about, shape)
    if cache.takes(size):
        try:
            with cache.new_entry(entry, size) as stream:
                _write_entry(stream, files, spec, about, progress)
                if pictures_sha256(files) != pictures:
                    raise OSError("the pictures changed while they were decoded")
        except OSError as error:
            cache.warn(error)
        else:
            found = cache.recall(entry, lambda: _read_entry(entry, about, shape))
    return _decode_to_memory(files, spec, progress) if found is None else found


def _about(spec: InputSpec, pictures: str, count: int) -> str:
    facts: dict[str, Any] = {
        "format": _FORMAT,
        "sources": sources_sha256(Path(reidkit.__file__).parent, ["decoding.py", "imaging.py"]),
        "libraries": {"pillow": PIL.__version__},
        "input": {"height": spec.height, "width": spec.width, "resize": spec.resize},
        "pictures": {"count": count, "sha256": pictures},
    }
    return canonical(facts)


def _decode_to_memory(files: Sequence[Path], spec: InputSpec, progress: Progress) -> UInt8[np.ndarray, "n h w 3"]:
    crops = np.empty((len(files), spec.height, spec.width, 3), dtype=np.uint8)
    _decode(files, spec, progress, crops.__setitem__)
    return crops


def _decode(files: Sequence[Path], spec: InputSpec, progress: Progress, store: Callable[[int, Any], object]) -> None:
    # Closed also when something fails: the workers would decode on for as long as the traceback is held.
    with closing(stream_crops(files, spec)) as stream:
        for i, crop in enumerate(stream):
            if isinstance(crop, ImageError):
                raise crop
            store(i, crop)
            progress(i + 1, len(files))


def _write_entry(stream: BinaryIO, files: Sequence[Path], spec: InputSpec, about: str, progress: Progress) -> None:
    """Writes each crop as it is decoded: a data set may be larger than the memory."""
    checksum = 0

    def store(_: int, crop: np.ndarray) -> None:
        nonlocal checksum
        pixels = np.ascontiguousarray(crop).data
        checksum = zlib.crc32(pixels, checksum)
        stream.write(pixels)

    stream.write(_header((len(files), spec.height, spec.width, 3)))
    _decode(files, spec, progress, store)
    stream.write(_trailer(about, checksum))


def _read_entry(entry: Path, about: str, shape: tuple[int, int, int, int]) -> UInt8[np.ndarray, "n h w 3"]:
    """Maps an entry that anything may have happened to.

    Raises:
        FileNotFoundError: there is none.
        OSError: it cannot be read.
        DataError: it is not what was written under this name.
    """
    status = entry.lstat()
    if not stat.S_ISREG(status.st_mode) or status.st_size != _entry_size(about, shape):
        raise DataError(
            f"{entry} is no entry of the cache", got="a link, or something else that is no file of its size"
        )
    header = _header(shape)
    with entry.open("rb") as stream:
        start = stream.read(len(header))
        crops = np.memmap(stream, np.uint8, "r", offset=len(header), shape=shape)
        stream.seek(len(header) + crops.nbytes)
        end = stream.read()
    if start != header or end != _trailer(about, zlib.crc32(crops.data)):
        raise DataError(f"{entry} is no entry of the cache", got="other contents than were written")
    return crops


def _header(shape: tuple[int, int, int, int]) -> bytes:
    stream = io.BytesIO()
    description = {"descr": npy.dtype_to_descr(np.dtype(np.uint8)), "fortran_order": False, "shape": shape}
    npy.write_array_header_1_0(stream, description)
    return stream.getvalue()


def _trailer(about: str, checksum: int) -> bytes:
    return json.dumps({"about": about, "crc32": f"{checksum:08x}"}).encode()


def _entry_size(about: str, shape: tuple[int, int, int, int]) -> int:
    n, height, width, channels = shape
    return len(_header(shape)) + n * height * width * channels + len(_trailer(about, 0))


# -- where they are, and how a batch comes to the network --------------------------------------------------------------


@runtime_checkable
class CropSource(Protocol):
    """Crops that are somewhere, and batches of them on the device of the network.

    All that take indices raise InputError where one is no crop's, before anything is computed.
    """

    def describe(self) -> str:
        """How many bytes are where: "834 MB on cuda:0"."""
        ...

    def batch(self, indices: Integer[np.ndarray, " batch"]) -> UInt8[Tensor, "batch height width 3"]:
        """The crops of these indices, on the device."""
        ...

    def stream(self, batches: Iterable[np.ndarray]) -> Iterator[tuple[Tensor, np.ndarray]]:
        """Each batch on the device, with its indices.

        The batches are those of an epoch, or of a round of mining: they are all drawn before the first one is given.
        An iterator that is not used up has to be closed (`contextlib.closing`).
        """
        ...


def place_crops(
    crops: UInt8[np.ndarray, "n height width 3"], device: torch.device, *, share: float = 0.5
) -> CropSource:
    """Puts crops where batches of them come quickest.

    On a processor they stay where they are. A GPU takes all of them when they fit, and gathers batches itself. When
    they do not, threads gather batches in pinned memory, and those are copied while the GPU works on earlier ones.

    Args:
        crops: in memory, or mapped from a file.
        device: of the network: a processor, or a CUDA device.
        share: of the GPU's free memory that the crops may take; 0 keeps them off it.

    Raises:
        ConfigError: `share` is not from 0 to 1.
    """
    fraction("share", share)
    if device.type == "cpu":
        return HostCrops(crops)
    if device.index is None:
        device = torch.device(device.type, torch.cuda.current_device())
    free, _ = torch.cuda.mem_get_info(device)
    return ResidentCrops(crops, device) if crops.nbytes <= share * free else StreamedCrops(crops, device)


class HostCrops:
    """Crops for a network on the processor: a batch is gathered when it is asked for."""

    def __init__(self, crops: UInt8[np.ndarray, "n height width 3"]) -> None:
        self._place = _host_place(crops)
        self._crops = np.asarray(crops)

    def describe(self) -> str:
        """As `CropSource`."""
        return self._place

    def batch(self, indices: Integer[np.ndarray, " batch"]) -> UInt8[Tensor, "batch height width 3"]:
        """As `CropSource`; the tensor is the caller's own."""
        return _gathered(self._crops, _checked(indices, len(self._crops)))

    def stream(self, batches: Iterable[np.ndarray]) -> Iterator[tuple[Tensor, np.ndarray]]:
        """As `CropSource`."""
        for indices in [_checked(indices, len(self._crops)) for indices in batches]:
            yield _gathered(self._crops, indices), indices


class ResidentCrops:
    """Crops that are all on the device.

    Attributes:
        pixels: the crops there.
    """

    def __init__(self, crops: UInt8[np.ndarray, "n height width 3"], device: torch.device) -> None:
        self.pixels = torch.empty(crops.shape, dtype=torch.uint8, device=device)
        rows = max(1, _UPLOAD * len(crops) // max(1, crops.nbytes))
        for start in range(0, len(crops), rows):
            piece = np.array(crops[start : start + rows])  # copied: what is mapped from a file may not be written to
            self.pixels[start : start + rows].copy_(torch.from_numpy(piece))

    def describe(self) -> str:
        """As `CropSource`."""
        return f"{_megabytes(self.pixels.nbytes)} on {self.pixels.device}"

    def batch(self, indices: Integer[np.ndarray, " batch"]) -> UInt8[Tensor, "batch height width 3"]:
        """As `CropSource`."""
        chosen = torch.from_numpy(_checked(indices, len(self.pixels)))
        return self.pixels.index_select(0, chosen.to(self.pixels.device))

    def stream(self, batches: Iterable[np.ndarray]) -> Iterator[tuple[Tensor, np.ndarray]]:
        """As `CropSource`. The indices of all batches go to the device at once: a copy a batch would wait for it."""
        checked = [_checked(indices, len(self.pixels)) for indices in batches]
        if not checked:
            return
        chosen = torch.from_numpy(np.concatenate(checked)).to(self.pixels.device)
        for part, indices in zip(chosen.split([len(indices) for indices in checked]), checked, strict=True):
            yield self.pixels.index_select(0, part), indices


class StreamedCrops:
    """Crops that are not on the device, since they do not fit there: batches are copied to it ahead of their use."""

    def __init__(self, crops: UInt8[np.ndarray, "n height width 3"], device: torch.device) -> None:
        self._place = f"{_host_place(crops)}, copied to {device} batch by batch"
        self._crops = np.asarray(crops)
        self._device = device

    def describe(self) -> str:
        """As `CropSource`."""
        return self._place

    def batch(self, indices: Integer[np.ndarray, " batch"]) -> UInt8[Tensor, "batch height width 3"]:
        """As `CropSource`; nothing is prefetched."""
        return _gathered(self._crops, _checked(indices, len(self._crops))).to(self._device)

    def stream(self, batches: Iterable[np.ndarray]) -> Iterator[tuple[Tensor, np.ndarray]]:
        """As `CropSource`."""
        checked = [_checked(indices, len(self._crops)) for indices in batches]
        return prefetched(self._crops, checked, CudaLane(self._device))


def _gathered(crops: np.ndarray, indices: np.ndarray) -> Tensor:
    out = np.empty((len(indices), *crops.shape[1:]), dtype=np.uint8)
    gather(crops, indices, out)
    return torch.from_numpy(out)


def _checked(indices: np.ndarray, n: int) -> np.ndarray:
    """Indices as int64, all of them of crops: on a GPU a wrong one would stop the whole process."""
    if indices.ndim != 1 or indices.dtype.kind not in "iu":
        raise InputError(
            "These are no indices of crops", got=f"{indices.dtype} {indices.shape}", expected="integers in one row"
        )
    wrong = indices[(indices < 0) | (indices >= n)]
    if len(wrong):
        raise InputError(f"There is no crop {wrong[0]}", got=f"{len(wrong)} such indices", expected=f"0 to {n - 1}")
    return np.ascontiguousarray(indices, dtype=np.int64)


def _host_place(crops: np.ndarray) -> str:
    return f"{_megabytes(crops.nbytes)} {'mapped from the disk' if isinstance(crops, np.memmap) else 'in memory'}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.0f} MB"
