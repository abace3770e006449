"""CUHK03 under the new protocol (767 training and 700 test identities; Li et al., CVPR 2014; Zhong et al., CVPR 2017).

It comes in two variants: crops by a detector, and crops labelled by hand. Two layouts are on people's disks:

    cuhk03-np/detected/bounding_box_train/0001_c1_1.png     and query/, bounding_box_test/; the same in labeled/
    cuhk03/images_detected/1_001_1_01.png                   as torchreid extracts it, with splits_new_detected.json

The second is named PAIR_PERSON_VIEW_IMAGE: a person is a pair of cameras and a number within it, the camera is the
view. The split file is used for file names only: its paths are those of the machine that wrote it, and it numbers
training people anew, so that their numbers collide with those of the test people.
"""

import json
import re
from pathlib import Path, PureWindowsPath
from typing import Any, Literal, get_args

from reidkit.data.naming import (
    BOX_FOLDERS,
    NamedFolders,
    Sighting,
    contents,
    count,
    first_few,
    holds_names,
    make_split,
    missing_files,
    read_named_folders,
)
from reidkit.errors import DataError, unknown_name
from reidkit.types import SUBSETS, Split

LAYOUT: str = (
    "detected/ or labeled/, each with bounding_box_train/, query/, bounding_box_test/ and 0001_c1_1.png; or "
    "images_detected/, splits_new_detected.json (or labeled) and 1_001_1_01.png"
)

Variant = Literal["detected", "labeled"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)

_NAMES = NamedFolders(
    "CUHK03-NP",
    BOX_FOLDERS,
    re.compile(r"(?P<identity>\d{4})_(?P<camera>c[12])_\d+\.(?:png|jpe?g)", re.ASCII | re.IGNORECASE),
    "0001_c1_1.png",
)
_EXTRACTED = re.compile(r"(?P<identity>\d_\d{3})_(?P<camera>[12])_\d{2}\.(?:png|jpe?g)", re.ASCII | re.IGNORECASE)


def claims(root: Path) -> bool:
    """Whether the folder looks like CUHK03 in either layout, whole or not; or like one variant of CUHK03-NP."""
    extracted = any((root / f"images_{variant}").is_dir() for variant in VARIANTS)
    return extracted or any(holds_names(folder, _NAMES) for folder in (root, *(root / variant for variant in VARIANTS)))


def load(root: Path, variant: str | None = None) -> Split:
    """Parses one variant of CUHK03 under the new protocol.

    Args:
        root: the folder that holds the variants, or the folder of one variant of CUHK03-NP.
        variant: "detected" or "labeled"; None takes "detected", or the variant whose folder `root` is.

    Raises:
        ConfigError: there is no such variant.
        DataError: the variant is not there, not whole, or its files or its split file are not what they should be.
    """
    if variant is not None and variant not in VARIANTS:
        raise unknown_name("variant of CUHK03", variant, VARIANTS)
    if holds_names(root, _NAMES):
        if variant is not None and root.name in VARIANTS and root.name != variant:
            raise DataError(
                f"{root} is not the {variant} variant", got=root.name, fix=f"give the folder {root.with_name(variant)}"
            )
        return make_split("cuhk03", root, **read_named_folders(root, _NAMES))
    variant = variant or "detected"
    if (root / variant).is_dir():
        return make_split("cuhk03", root, **read_named_folders(root / variant, _NAMES), variant=variant)
    if (root / f"images_{variant}").is_dir():
        return _load_extracted(root, variant)
    raise DataError(
        f"{root} has no {variant} variant of CUHK03",
        got=contents(root),
        expected=f"{variant}/ or images_{variant}/",
        fix=f"choose the other variant ({' or '.join(VARIANTS)}), or check the path",
    )


def _load_extracted(root: Path, variant: str) -> Split:
    file, pictures = root / f"splits_new_{variant}.json", root / f"images_{variant}"
    names = _read_split_file(file)
    subsets = {}
    for subset in SUBSETS:
        matches = [_EXTRACTED.fullmatch(name) for name in names[subset]]
        misnamed = [name for name, match in zip(names[subset], matches, strict=True) if match is None]
        if misnamed:
            raise DataError(
                f"{file} names {count(len(misnamed), 'file')} that cannot be CUHK03's",
                got=first_few(misnamed),
                expected="names such as 1_001_1_01.png",
                fix="extract the data set again",
            )
        subsets[subset] = [
            Sighting(pictures / match.string, match["identity"], match["camera"])
            for match in matches
            if match is not None
        ]
        missing = missing_files(item.path for item in subsets[subset])
        if missing:
            raise DataError(
                f"{file} names {count(len(missing), 'file')} not to be found in {pictures}",
                got=first_few([path.name for path in missing]),
                fix="extract the data set again",
            )
    return make_split("cuhk03", root, **subsets, variant=variant)


def _read_split_file(file: Path) -> dict[str, list[str]]:
    expected = 'a list with one table of "train", "query" and "gallery", each a list of [path, pid, camid]'
    fix = "extract the data set again"
    try:
        splits: Any = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise DataError(
            f"{file.parent} has pictures but no {file.name}", got=contents(file.parent), expected=file.name, fix=fix
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read as JSON", got=error, expected=expected, fix=fix) from error
    try:
        (split,) = splits
        # Windows' rules know both separators: the file may have been written on either system.
        return {subset: [PureWindowsPath(path).name for path, _, _ in split[subset]] for subset in SUBSETS}
    except (TypeError, ValueError, KeyError) as error:
        got = f"no {error} in it" if isinstance(error, KeyError) else str(error)
        raise DataError(f"{file} is not a split of the new protocol", got=got, expected=expected, fix=fix) from error
