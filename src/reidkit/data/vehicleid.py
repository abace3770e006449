"""VehicleID: 26,328 vehicles, from the front or from behind (Liu et al., "Deep Relative Distance Learning", CVPR 2016).

    VehicleID_V1.0/image/0000001.jpg
    VehicleID_V1.0/train_test_split/train_list.txt          and test_list_800.txt, test_list_1600.txt, ...

A line of a list is a picture's name without its suffix, and the number of its vehicle. Test sets of several sizes share
the pictures; a result means nothing without the size. Cameras are not told.

Each test list is query and gallery at once: the protocol draws one crop of every vehicle to be found, ten times, and
those that are not drawn ask (`vehicleid` of `reidkit.metrics.protocol`). fast-reid draws once, at loading.
"""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from reidkit.data.naming import (
    Sighting,
    contents,
    count,
    entries,
    first_few,
    make_split,
    missing_files,
    require_folders,
)
from reidkit.errors import DataError, unknown_name
from reidkit.types import Split

LAYOUT: str = "image/ with 0000001.jpg, train_test_split/ with train_list.txt and test_list_800.txt (or 1600, 2400 ...)"

VARIANTS: Mapping[str, str] = MappingProxyType(
    {
        "small": "800",
        "medium": "1600",
        "large": "2400",
        **{vehicles: vehicles for vehicles in ("800", "1600", "2400", "3200", "6000", "13164")},
    }
)
"""Vehicles of each test set, as its list is named; those with a name are the paper's."""

_PICTURES, _LISTS, _TRAIN = "image", "train_test_split", "train_list.txt"
_TEST_NAME = re.compile(r"test_list_\d+\.txt", re.ASCII)
_LINE = re.compile(r"(?P<picture>\d+)\s+(?P<vehicle>\d+)", re.ASCII)


def claims(root: Path) -> bool:
    """Whether the folder looks like VehicleID, whole or not."""
    names = entries(root / _LISTS)[0] if (root / _LISTS).is_dir() else []
    # VeRi-Wild has a training list of the same name, but of other pictures in another folder.
    return any(_TEST_NAME.fullmatch(name) for name in names) or (_TRAIN in names and (root / _PICTURES).is_dir())


def load(root: Path, variant: str | None = None) -> Split:
    """Parses VehicleID with one of its test sets.

    Args:
        root: the folder that holds `image` and `train_test_split`.
        variant: "small" (which None takes), "medium", "large", or the number of vehicles.

    Raises:
        ConfigError: there is no such variant.
        DataError: a folder, a list or a picture is missing, or a list is empty, malformed or names a picture twice.
    """
    if variant is not None and variant not in VARIANTS:
        raise unknown_name("variant of VehicleID", variant, VARIANTS)
    require_folders(root, (_PICTURES, _LISTS), "VehicleID")
    train = _read_list(root, _TRAIN)
    vehicles = VARIANTS[variant or "small"]
    test = _read_list(root, f"test_list_{vehicles}.txt")
    return make_split("vehicleid", root, train=train, query=test, gallery=test, variant=vehicles)


def _read_list(root: Path, name: str) -> list[Sighting]:
    file = root / _LISTS / name
    lines = _lines(file)
    found = [_LINE.fullmatch(line) for line in lines]
    wrong = [f"line {n + 1}: {line!r}" for n, line in enumerate(lines) if found[n] is None]
    if wrong:
        raise DataError(
            f"{count(len(wrong), 'line')} of {file} cannot be VehicleID's",
            got=first_few(wrong),
            expected="lines such as '0000001 1': a picture without its suffix, and a vehicle",
            fix="unpack the data set again",
        )
    pictures = root / _PICTURES
    sightings = [Sighting(pictures / f"{match['picture']}.jpg", match["vehicle"], None) for match in found if match]
    twice = [path.stem for path, times in Counter(item.path for item in sightings).items() if times > 1]
    if twice:
        raise DataError(
            f"{file} lists {count(len(twice), 'picture')} more than once",
            got=first_few(twice),
            expected="each once, with one vehicle",
            fix="unpack the data set again",
        )
    missing = missing_files(item.path for item in sightings)
    if missing:
        raise DataError(
            f"{file} names {count(len(missing), 'picture')} not to be found in {pictures}",
            got=first_few([path.name for path in missing]),
            expected=f"all {len(sightings):,}",
            fix="unpack the data set again",
        )
    return sightings


def _lines(file: Path) -> list[str]:
    """The lines of a list, without blank ones at its end."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(
            f"{file.parent} has no {file.name}",
            got=contents(file.parent),
            expected=file.name,
            fix="unpack the data set again, or choose a variant whose list is there",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read", got=error, expected="a list as VehicleID has it") from error
    lines = [line.strip() for line in text.rstrip().splitlines()]
    if not lines:
        raise DataError(
            f"{file} is empty", expected="a line for each picture, such as '0000001 1'", fix="unpack the data set again"
        )
    return lines
