"""The one place where a picture becomes a crop: decoding, conversion to RGB, resizing.

Training, evaluation, calibration, verification, benchmarks and applications all come through here, so what a model
was measured with is what it runs with. Colour order, scale, mean and std are not here: they live inside the graph.
"""

import io
import os
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from reidkit.errors import DataError, ImageError
from reidkit.types import InputSpec, ResizeFilter

MAX_PIXELS = 64_000_000
"""Larger pictures are refused before decoding: a hostile PNG of a few kilobytes can hold gigabytes of pixels."""

_FILTERS: dict[ResizeFilter, Image.Resampling] = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".gif"})
"""File names that `image_files` takes for pictures, in lower case."""


def image_files(root: Path | str) -> list[Path]:
    """Every picture below a folder, sorted by path; hidden files and folders are left out. A file gives itself.

    Raises:
        DataError: no such folder, or one that cannot be listed.
    """
    root = Path(root)
    if root.is_file():
        return [root]

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be listed", got=error.strerror, expected="a readable folder")

    found = []
    for folder, folders, names in os.walk(root, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            Path(folder, name)
            for name in names
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES
        ]
    return sorted(found, key=lambda path: path.as_posix())


def open_image(source: Path | str | bytes) -> Image.Image:
    """Decodes a picture of any mode to 8-bit RGB, upright as its EXIF orientation says.

    16-bit grey is scaled to 8 bits, a palette is looked up, CMYK is converted, transparency is dropped (not blended,
    as fast-reid and torchreid do), an animation gives its first frame.

    Raises:
        ImageError: no such file, not a picture, truncated, floating-point, or more than MAX_PIXELS pixels.
    """
    name = f"The file of {len(source):,} bytes" if isinstance(source, bytes) else str(source)
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            if image.width * image.height > MAX_PIXELS:
                raise _too_large(name, f"{image.width} x {image.height} pixels")
            return _to_rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError:
        raise ImageError(f"No such picture: {name}", fix="check the path") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(name, error) from None
    except UnidentifiedImageError:
        raise ImageError(f"{name} is not a picture", expected=_KNOWN, fix="replace or remove the file") from None
    except ImageError:
        raise
    except Exception as error:  # Pillow's plugins raise almost anything on damaged files
        if isinstance(error, OSError) and error.errno is not None:
            raise ImageError(f"{name} cannot be read", got=error.strerror, fix="check the path") from error
        kind = "is truncated or damaged" if isinstance(error, (OSError, SyntaxError)) else "cannot be decoded"
        detail = str(error) or type(error).__name__
        raise ImageError(f"{name} {kind}", got=detail, fix="replace or remove the file") from error


_KNOWN = "JPEG, PNG or another format that Pillow reads"


def _too_large(name: str, got: object) -> ImageError:
    return ImageError(
        f"{name} is too large to decode",
        got=got,
        expected=f"at most {MAX_PIXELS:,} pixels",
        fix="cut the person or vehicle out, or shrink the picture",
    )


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow's own conversion clips at 255: a 16-bit picture would come out white. It reads 16-bit PGM as mode I.
        values = np.clip(np.asarray(image, dtype=np.float32), 0, 65535)
        image = Image.fromarray(np.rint(values / 257).astype(np.uint8))  # 257 = 65535 / 255
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range")
    if image.mode == "P":
        # A palette may carry transparency in its info; RGBA reads it without a complaint, RGB drops it after.
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")  # convert would copy it once more


def resize(image: Image.Image, spec: InputSpec) -> UInt8[np.ndarray, "height width 3"]:
    """Resizes an RGB picture straight to the spec's height and width (the aspect ratio is not kept).

    The filter is Pillow's: it widens its support when shrinking, which OpenCV's filters of the same names do not.
    """
    if image.size != (spec.width, spec.height):
        image = image.resize((spec.width, spec.height), _FILTERS[spec.resize])
    return np.asarray(image, dtype=np.uint8)


def load_crop(source: Path | str | bytes, spec: InputSpec) -> UInt8[np.ndarray, "height width 3"]:
    """Decodes and resizes one picture: RGB, 0 to 255, ready for `Embedder.embed`.

    Raises:
        ImageError: as `open_image`.
    """
    return resize(open_image(source), spec)


def available_cores() -> int:
    """Processor cores that this process may run on, which in a container can be fewer than the machine has."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1
