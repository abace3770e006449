"""Which parser reads a folder or file, told by its folders and file names."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from reidkit.data import cuhk03, dukemtmc, folder, market1501, msmt17, table, vehicleid, veri776
from reidkit.data.naming import contents, entries
from reidkit.errors import ConfigError, DataError, unknown_name
from reidkit.imaging import IMAGE_SUFFIXES
from reidkit.types import Split


class Parser(Protocol):
    """What every module of a format has."""

    LAYOUT: str
    """What it reads, in a line for people."""

    def claims(self, root: Path) -> bool:
        """Whether `root` looks like this format, whole or not."""
        ...

    def load(self, root: Path) -> Split:
        """Parses `root`; raises DataError where it is not what it should be."""
        ...


class VariantParser(Protocol):
    """What a module of a format has where one data set comes in several variants."""

    def load(self, root: Path, variant: str | None = None) -> Split:
        """Parses one variant of `root`, None being the usual one; raises ConfigError where there is no such variant."""
        ...


FORMATS: Mapping[str, Parser] = MappingProxyType(
    {
        "market1501": market1501,
        "dukemtmc": dukemtmc,
        "msmt17": msmt17,
        "cuhk03": cuhk03,
        "veri776": veri776,
        "vehicleid": vehicleid,
        "folder": folder,
        "table": table,
    }
)
"""Every format by name; `FORMATS[name].LAYOUT` says what it looks like on disk."""

VARIANT_FORMATS: Mapping[str, VariantParser] = MappingProxyType({"cuhk03": cuhk03, "vehicleid": vehicleid})
"""Those of them that come in variants."""


def load_split(root: Path | str, format: str | None = None, *, variant: str | None = None) -> Split:  # noqa: A002
    """Parses a data set; opens no picture.

    Identities and cameras are numbered from 0, in code-point order of the data set's own names over the whole split;
    `pid_names` and `camera_names` lead back. Distractors and junk have no number (`DISTRACTOR`).

    Args:
        root: the data set's folder; or its parent, when exactly one of the folders inside is a data set; or a CSV file.
        format: one of FORMATS; None tells it by folders and file names.
        variant: of CUHK03, "detected" (which None takes) or "labeled"; of VehicleID, the test set: "small" (which None
            takes), "medium", "large", or its number of vehicles.

    Raises:
        ConfigError: there is no such format or variant.
        DataError: nothing is at `root`, it is no data set, it could be several, or it is not whole; see the formats.
    """
    root = Path(root)
    if format is not None and format not in FORMATS:
        raise unknown_name("format", format, FORMATS)
    if not root.exists():
        raise DataError(f"No such folder or file: {root}", expected="a data set", fix="check the path")
    name, home = _find(root, format)
    if name in VARIANT_FORMATS:
        return VARIANT_FORMATS[name].load(home, variant)
    if variant is not None:
        raise ConfigError(
            f"{home} has no variants",
            got=f"variant {variant!r} of {name}",
            expected=f"only with {' or '.join(VARIANT_FORMATS)}",
        )
    return FORMATS[name].load(home)


def is_data_set(root: Path | str) -> bool:
    """Whether a folder or file looks like a data set, whole or not, rather than a folder of pictures."""
    root = Path(root)
    return bool(_candidates(root, None)) if root.is_dir() else table.claims(root)


def _find(root: Path, name: str | None) -> tuple[str, Path]:
    """The format and the folder or file it lies in: `root`, or the only folder inside that is a data set."""
    if not root.is_dir() and (name == "table" or (name is None and table.claims(root))):
        return "table", root
    if not root.is_dir() or name == "table":
        raise _wrong_kind(root, name)
    found = _candidates(root, name)
    if len(found) > 1:
        raise _ambiguous(root, found)
    if found:
        return found[0]
    if name is not None:
        return name, root  # its own parser says best what is missing
    raise DataError(
        f"{root} is no data set that reidkit knows",
        got=_inside(root),
        expected="one of these layouts" + "".join(f"\n    {known:<11} {FORMATS[known].LAYOUT}" for known in FORMATS),
        fix="check the path, or describe the data set in a CSV",
    )


def _candidates(root: Path, name: str | None) -> list[tuple[str, Path]]:
    return _claimants(root, name) or [
        item
        for child in entries(root)[1]
        if os.access(root / child, os.R_OK | os.X_OK)
        for item in _claimants(root / child, name)
    ]


def _claimants(place: Path, name: str | None) -> list[tuple[str, Path]]:
    if name is not None:
        return [(name, place)] if FORMATS[name].claims(place) else []
    special = [(known, place) for known in FORMATS if known != "folder" and FORMATS[known].claims(place)]
    # Plain folders come last: with less to tell them by, they would also claim what other formats lay out.
    return special or ([("folder", place)] if folder.claims(place) else [])


def _wrong_kind(root: Path, name: str | None) -> DataError:
    if root.is_dir():
        return DataError(f"{root} is a folder", expected=FORMATS["table"].LAYOUT, fix="give the CSV file itself")
    what = "a picture" if root.suffix.lower() in IMAGE_SUFFIXES else "a file"
    if name is None:
        return DataError(f"{root} is {what}, not a data set", expected="a folder, or a CSV file", fix="check the path")
    return DataError(f"{root} is {what}", expected=f"a folder with {FORMATS[name].LAYOUT}", fix="give the folder")


def _ambiguous(root: Path, found: Iterable[tuple[str, Path]]) -> DataError:
    choices = ", ".join(f"{place} as {name}" for name, place in found)
    return DataError(
        f"{root} could be read in more than one way",
        got=choices,
        expected="one data set",
        fix="give the data set's own folder, or name the format",
    )


def _inside(root: Path) -> str:
    """What a message says of a folder that nobody claims: its names, and those in its first folder."""
    folders = entries(root)[1]
    return contents(root) + (f"; {contents(root / folders[0])}" if folders else "")
