"""From names on disk to a `Split`: what the parsers share.

A parser says for every picture which identity and camera the data set writes for it (a `Sighting`); `make_split`
numbers them. Nothing here opens a picture. Everything is sorted by code point, so it reads the same on every machine.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from reidkit.errors import DataError
from reidkit.types import DISTRACTOR, UNKNOWN_CAMERA, Crop, Split, Subset

_CLUTTER = frozenset({"thumbs.db", "desktop.ini", "__macosx"})


class Sighting(NamedTuple):
    """One picture, with identity and camera as the data set writes them.

    Attributes:
        path: the picture file.
        identity: or None for a distractor, and for junk.
        camera: or None where the data set does not say.
    """

    path: Path
    identity: str | None
    camera: str | None


@dataclass(frozen=True, slots=True)
class NamedFolders:
    """Three folders full of pictures whose file names tell identity and camera, as Market-1501 set the fashion.

    Attributes:
        title: the data set, for messages.
        folders: the folder of every subset.
        pattern: of a whole file name, with the groups `identity` and `camera`.
        example: a file name that matches.
    """

    title: str
    folders: Mapping[Subset, str]
    pattern: re.Pattern[str]
    example: str


BOX_FOLDERS: Mapping[Subset, str] = MappingProxyType(
    {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
)
"""The folders of Market-1501, which DukeMTMC-reID and CUHK03-NP took over: only the file names tell them apart."""


def entries(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the files and of the folders in a folder, each sorted; hidden ones and Thumbs.db are left out.

    Raises:
        DataError: the folder cannot be listed.
    """
    files: list[str] = []
    folders: list[str] = []
    try:
        with os.scandir(folder) as found:
            for entry in found:
                if not entry.name.startswith(".") and entry.name.lower() not in _CLUTTER:
                    (folders if entry.is_dir() else files).append(entry.name)
    except OSError as error:
        raise DataError(f"{folder} cannot be listed", got=error.strerror, expected="a readable folder") from error
    return sorted(files), sorted(folders)


def holds_names(root: Path, layout: NamedFolders) -> bool:
    """Whether any of the layout's folders is there and has a file named as the layout says."""
    return any(
        layout.pattern.fullmatch(name)
        for folder in layout.folders.values()
        if (root / folder).is_dir()
        for name in entries(root / folder)[0]
    )


def read_named_folders(root: Path, layout: NamedFolders) -> dict[Subset, list[Sighting]]:
    """The pictures of the three folders, by subset.

    Raises:
        DataError: a folder is missing, or files are not named as the layout says.
    """
    require_folders(root, layout.folders.values(), layout.title)
    return {subset: _read_names(root / folder, layout) for subset, folder in layout.folders.items()}


def _read_names(folder: Path, layout: NamedFolders) -> list[Sighting]:
    files, folders = entries(folder)
    matches = [layout.pattern.fullmatch(name) for name in files]
    misnamed = [name for name, match in zip(files, matches, strict=True) if match is None]
    misnamed += [f"{name}/" for name in folders]
    if misnamed:
        raise DataError(
            f"{count(len(misnamed), 'name')} in {folder} cannot be {layout.title}'s",
            got=first_few(misnamed),
            expected=f"names such as {layout.example}",
            fix="rename or remove them; a CSV takes files of any name",
        )
    return [
        Sighting(folder / match.string, match["identity"], match["camera"]) for match in matches if match is not None
    ]


def require_folders(root: Path, names: Iterable[str], title: str) -> None:
    """Refuses a root without these folders.

    Raises:
        DataError: one of them is missing.
    """
    names = list(names)
    missing = [name for name in names if not (root / name).is_dir()]
    if missing:
        raise DataError(
            f"{root} is not whole: no folder {' and no folder '.join(missing)}",
            got=contents(root),
            expected=f"{title} with {', '.join(f'{name}/' for name in names)}",
            fix="unpack the data set again, or check the path",
        )


def missing_files(paths: Iterable[Path]) -> list[Path]:
    """Those of the paths where no file is. Lists every folder once, which for 126,000 files beats asking for each."""
    listed: dict[str, set[str]] = {}
    missing = []
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in listed:
            try:
                listed[folder] = set(os.listdir(folder or "."))  # noqa: PTH208 (names, not 126,000 Path objects)
            except OSError:
                listed[folder] = set()
        # A file system may know a file under another spelling (letter case, Unicode form) than the list does.
        if name not in listed[folder] and not path.is_file():
            missing.append(path)
    return missing


def make_split(
    name: str,
    root: Path,
    *,
    train: Sequence[Sighting] = (),
    query: Sequence[Sighting] = (),
    gallery: Sequence[Sighting] = (),
    junk: Sequence[Sighting] = (),
    variant: str | None = None,
) -> Split:
    """Numbers identities and cameras from 0, in code-point order of their names over the whole split.

    Args:
        name: of the format.
        root: the folder or file that was read.
        train: the pictures to learn from.
        query: the pictures to ask with.
        gallery: the pictures to be found.
        junk: the pictures that are ranked nowhere.
        variant: which of several test sets.

    Raises:
        DataError: there is no picture at all, one comes twice in a subset, or one to train or ask with has no identity.
    """
    everything = [*train, *query, *gallery, *junk]
    if not everything:
        raise DataError(f"{root} holds no pictures", expected="a data set with at least one crop", fix="check the path")
    for subset, sightings in (("train", train), ("query", query)):
        nobody = [sighting.path.name for sighting in sightings if sighting.identity is None]
        if nobody:
            raise DataError(
                f"{count(len(nobody), f'{subset} picture')} of {root} named as junk or distractors",
                got=first_few(nobody),
                expected="junk and distractors in the gallery only",
                fix="move them to the gallery's folder or remove them",
            )
    pid_names = dict(enumerate(sorted({item.identity for item in everything if item.identity is not None})))
    camera_names = dict(enumerate(sorted({item.camera for item in everything if item.camera is not None})))
    pids = {identity: pid for pid, identity in pid_names.items()}
    camids = {camera: camid for camid, camera in camera_names.items()}

    def crops(sightings: Sequence[Sighting]) -> tuple[Crop, ...]:
        keyed = sorted((item.path.as_posix(), place) for place, item in enumerate(sightings))
        twice = [path for (path, _), (following, _) in pairwise(keyed) if path == following]
        if twice:
            raise DataError(f"{root} lists pictures twice in one subset", got=first_few(twice), expected="each once")
        ordered = (sightings[place] for _, place in keyed)
        return tuple(
            Crop(
                item.path,
                DISTRACTOR if item.identity is None else pids[item.identity],
                UNKNOWN_CAMERA if item.camera is None else camids[item.camera],
            )
            for item in ordered
        )

    return Split(
        format=name,
        root=root,
        train=crops(train),
        query=crops(query),
        gallery=crops(gallery),
        junk=crops(junk),
        pid_names=MappingProxyType(pid_names),
        camera_names=MappingProxyType(camera_names),
        variant=variant,
    )


def contents(folder: Path) -> str:
    """What is in a folder, in a few words for a message."""
    files, folders = entries(folder)
    names = [f"{name}/" for name in folders] + files
    return f"{folder.name or folder} with {first_few(names)}" if names else "an empty folder"


def first_few(names: Sequence[object], limit: int = 5) -> str:
    """The first names and how many more there are, for a message."""
    shown = ", ".join(str(name) for name in names[:limit])
    return f"{shown} and {len(names) - limit:,} more" if len(names) > limit else shown


def count(number: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun: `1 file`, `12,936 files`."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
