"""Labels read off file names, for pictures that lie in no known layout; and the numbers that a data set itself uses."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from reidkit.types import DISTRACTOR, UNKNOWN_CAMERA, UNKNOWN_IDENTITY, Crop

_NAME = re.compile(r"(?P<identity>-?\d+)_(?P<camera>c\d+)(?=[s_.])", re.ASCII)
_NUMBER = re.compile(r"c?(?P<number>\d{1,18})", re.ASCII)  # 18 digits fit an int64


@dataclass(frozen=True, slots=True)
class NamedCrops:
    """What the names of some picture files say.

    Attributes:
        crops: numbered as they are named, so that the numbers of two folders mean the same people and cameras.
        junk: named -1, neither right nor wrong: ranked nowhere.
        pid_names: an identity as the names write it.
        camera_names: a camera as the names write it.
    """

    crops: tuple[Crop, ...]
    junk: tuple[Crop, ...]
    pid_names: Mapping[int, str]
    camera_names: Mapping[int, str]


def crops_by_name(paths: Sequence[Path]) -> NamedCrops | None:
    """Reads identity and camera off names such as `0002_c1s1_000451_03.jpg`.

    Market-1501, DukeMTMC-reID, CUHK03-NP and VeRi-776 name their files so. As in Market-1501, identity 0000 becomes
    DISTRACTOR and -1 is junk. Only when every name is of that form are they believed.

    Returns:
        Crops in the order of the paths, or None when any name says nothing (`unnamed_files` tells which).
    """
    matches = [_NAME.match(path.name) for path in paths]
    if not paths or any(match is None for match in matches):
        return None
    crops: list[Crop] = []
    junk: list[Crop] = []
    pid_names: dict[int, str] = {}
    camera_names: dict[int, str] = {}
    for path, match in zip(paths, matches, strict=True):
        assert match is not None
        pid, camid = int(match["identity"]), int(match["camera"].removeprefix("c"))
        camera_names.setdefault(camid, match["camera"])
        if pid > 0:
            pid_names.setdefault(pid, match["identity"])
        (junk if pid < 0 else crops).append(Crop(path, pid if pid > 0 else DISTRACTOR, camid))
    return NamedCrops(tuple(crops), tuple(junk), MappingProxyType(pid_names), MappingProxyType(camera_names))


def unnamed_files(paths: Sequence[Path]) -> list[Path]:
    """Files whose names tell no identity and camera."""
    return [path for path in paths if _NAME.match(path.name) is None]


def unlabelled_crops(paths: Sequence[Path]) -> list[Crop]:
    """Crops of which only the file is known."""
    return [Crop(path, UNKNOWN_IDENTITY, UNKNOWN_CAMERA) for path in paths]


def own_numbers(names: Mapping[int, str]) -> dict[int, int]:
    """The data set's own number for each of a split's numbers: 7 for `0007`, camera 3 for `c3`.

    Where any name is no number, or two names are the same one, the split's numbers stay.

    Args:
        names: `pid_names` or `camera_names` of a split.
    """
    matches = {number: _NUMBER.fullmatch(name) for number, name in names.items()}
    own = {number: int(match["number"]) for number, match in matches.items() if match is not None}
    return own if len(set(own.values())) == len(names) else {number: number for number in names}
