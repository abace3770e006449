"""MSMT17: 4,101 identities, 15 cameras, in two editions (Wei et al., CVPR 2018). V2 differs by blurred faces.

Lists say which picture belongs where; the official training set is `list_train` and `list_val` together. Training and
test folder both count their people from 0000: these are different people, named `train/0000` and `test/0000` here.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from reidkit.data.naming import Sighting, contents, count, first_few, make_split, missing_files
from reidkit.errors import DataError
from reidkit.types import Split

LAYOUT: str = (
    "train/, test/ (V1) or mask_train_v2/, mask_test_v2/ (V2), with list_train.txt, list_val.txt, list_query.txt, "
    "list_gallery.txt"
)

_EDITIONS = (("train", "test"), ("mask_train_v2", "mask_test_v2"))
_LISTS = ("list_train.txt", "list_val.txt", "list_query.txt", "list_gallery.txt")
_CAMERA = re.compile(r"[^_]+_[^_]+_(\d+)_", re.ASCII)


def claims(root: Path) -> bool:
    """Whether the folder looks like MSMT17, whole or not."""
    lists = any((root / name).is_file() for name in _LISTS)
    return any(
        (root / folder).is_dir() and (lists or folder.startswith("mask_")) for pair in _EDITIONS for folder in pair
    )


def load(root: Path) -> Split:
    """Parses either edition of MSMT17; a line is `0000/0000_000_01_0303morning_0008_0.jpg 0`, camera 01, identity 0.

    Pictures that no list names are left out, as the official protocol does.

    Raises:
        DataError: a folder or list is missing, a line cannot be read, or a listed file is not there.
    """
    train, test = _edition(root)
    missing = [name for name in _LISTS if not (root / name).is_file()]
    if missing:
        raise DataError(
            f"{root} is not whole: no {' and no '.join(missing)}",
            got=contents(root),
            expected=f"MSMT17 with {', '.join(_LISTS)}",
            fix="unpack the data set again, or check the path",
        )
    found = [
        _read_list(root / name, root / folder, part)
        for name, folder, part in zip(
            _LISTS, (train, train, test, test), ("train", "train", "test", "test"), strict=True
        )
    ]
    _check_files(root, found)
    return make_split("msmt17", root, train=found[0] + found[1], query=found[2], gallery=found[3])


def _edition(root: Path) -> tuple[str, str]:
    whole = [pair for pair in _EDITIONS if all((root / folder).is_dir() for folder in pair)]
    if len(whole) != 1:
        raise DataError(
            f"{root} holds {'both editions' if whole else 'no whole edition'} of MSMT17",
            got=contents(root),
            expected="either train/ and test/, or mask_train_v2/ and mask_test_v2/",
            fix="keep each edition in a folder of its own, with its lists",
        )
    return whole[0]


def _read_list(file: Path, folder: Path, part: str) -> list[Sighting]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read", got=error, expected="a text file in UTF-8") from error
    return [_read_line(f"{file}, line {i}", line, folder, part) for i, line in enumerate(lines, 1) if line.strip()]


def _read_line(where: str, line: str, folder: Path, part: str) -> Sighting:
    fields = line.split()
    expected = "FOLDER/FILE IDENTITY, such as 0000/0000_000_01_0303morning_0008_0.jpg 0"
    fix = "take the list from the original archive"
    if len(fields) != 2:
        raise DataError(f"{where}: not a file and an identity", got=repr(line), expected=expected, fix=fix)
    name, number = fields
    if not (number.isascii() and number.isdigit()):
        raise DataError(f"{where}: the identity is not a number", got=repr(number), expected=expected, fix=fix)
    camera = _CAMERA.match(name.rpartition("/")[2])
    if camera is None:
        raise DataError(
            f"{where}: the file name tells no camera",
            got=name,
            expected="the camera's number in the third field, as 01 in 0000_000_01_0303morning_0008_0.jpg",
            fix=fix,
        )
    return Sighting(folder / name, f"{part}/{int(number):04d}", camera[1])


def _check_files(root: Path, found: Sequence[Sequence[Sighting]]) -> None:
    for name, sightings in zip(_LISTS, found, strict=True):
        missing = missing_files(item.path for item in sightings)
        if missing:
            raise DataError(
                f"{count(len(missing), 'file')} named in {root / name} cannot be found",
                got=first_few(missing),
                expected=f"all {len(sightings):,} files on disk",
                fix="unpack the pictures again",
            )
