"""Labels read off file names, for pictures that lie in no known layout."""

import re
from collections.abc import Sequence
from pathlib import Path

from reidkit.types import DISTRACTOR, UNKNOWN_CAMERA, Crop

_NAME = re.compile(r"(?P<identity>-?\d+)_c(?P<camera>\d+)(?=[s_.])", re.ASCII)


def crops_by_name(paths: Sequence[Path]) -> list[Crop] | None:
    """Reads identity and camera off names such as `0002_c1s1_000451_03.jpg`.

    Market-1501, DukeMTMC-reID, CUHK03-NP and VeRi-776 name their files so.
    Identity 0000 and -1 become DISTRACTOR. Only when every name is of that form are they believed.

    Returns:
        Crops in the order of the paths, or None when any name says nothing.
    """
    matches = [_NAME.match(path.name) for path in paths]
    if not paths or any(match is None for match in matches):
        return None
    pids = [int(match["identity"]) for match in matches if match is not None]
    camids = [int(match["camera"]) for match in matches if match is not None]
    return [
        Crop(path, pid if pid > 0 else DISTRACTOR, camid) for path, pid, camid in zip(paths, pids, camids, strict=True)
    ]


def unlabelled_crops(paths: Sequence[Path]) -> list[Crop]:
    """Crops of which only the file is known."""
    return [Crop(path, DISTRACTOR, UNKNOWN_CAMERA) for path in paths]
