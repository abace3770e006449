"""Small versions of pictures, for pages and sheets."""

import logging
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from PIL import Image

from reidkit.errors import ImageError
from reidkit.imaging import open_image, resize
from reidkit.types import InputSpec, Progress, no_progress

log = logging.getLogger(__name__)


def thumbnails(paths: Iterable[Path], side: int, *, progress: Progress = no_progress) -> dict[Path, Image.Image | None]:
    """Decodes each picture once and shrinks it to at most `side` pixels; None for one that cannot be decoded.

    Small pictures keep their size; the aspect ratio is kept. What was wrong with a picture is logged.
    """
    wanted: Sequence[Path] = list(dict.fromkeys(paths))
    found: dict[Path, Image.Image | None] = {}
    for done, path in enumerate(wanted, start=1):
        try:
            image = open_image(path)
        except ImageError as error:
            log.warning("%s", error)
            found[path] = None
        else:
            found[path] = fitted(image, side, side, enlarge=False)
        progress(done, len(wanted))
    return found


def fitted(image: Image.Image, width: int, height: int, *, enlarge: bool = True) -> Image.Image:
    """A picture resized to fit into a box, its aspect ratio kept."""
    scale = min(width / image.width, height / image.height)
    if scale > 1 and not enlarge:
        return image
    size = InputSpec(
        height=max(1, round(image.height * scale)), width=max(1, round(image.width * scale)), resize="lanczos"
    )
    return Image.fromarray(resize(image, size))


def box(images: Mapping[Path, Image.Image | None], area: int) -> tuple[int, int]:
    """Width and height of one box of `area` square pixels that suits most of the pictures.

    People are tall and vehicles are broad; the median aspect ratio decides, within 1:2.5 and 2.5:1.
    """
    ratios = [image.width / image.height for image in images.values() if image is not None]
    ratio = min(max(statistics.median(ratios), 0.4), 2.5) if ratios else 0.5
    return round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
