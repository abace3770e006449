"""Plain folders: one folder for each identity, the camera in front of the first underscore of the file name.

    ROOT/IDENTITY/CAMERA_ANYTHING.jpg               one pool of crops
    ROOT/train/IDENTITY/CAMERA_ANYTHING.jpg         subsets; query/ and gallery/ come together, train/ is optional

**Cameras.** A file name without underscore tells no camera. When one name of the split tells none, all its cameras are
unknown (a log line says so): half-known cameras would make some same-camera matches junk and others not. With unknown
cameras nothing is junk.

**One pool.** Without subfolders, `train` is all crops. For evaluation, when cameras are known, the query is the first
crop of each identity and camera, and the gallery is all crops: the query itself is there, but the protocol leaves out
what shows the same identity by the same camera. When they are unknown, the query is the first crop of each identity and
the gallery is all the others. Both ways, a model that was trained on this split is measured on crops it has seen.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from reidkit.data.naming import Sighting, contents, count, entries, first_few, make_split
from reidkit.errors import DataError
from reidkit.imaging import IMAGE_SUFFIXES
from reidkit.types import SUBSETS, Split, Subset

LAYOUT: str = "IDENTITY/CAMERA_NAME.jpg, at the top or in train/, query/, gallery/"

# Folders of other formats: with misnamed files in them, they must not pass for identities.
_RESERVED = frozenset({"bounding_box_train", "bounding_box_test", "image_train", "image_query", "image_test"})

_logger = logging.getLogger(__name__)


def claims(root: Path) -> bool:
    """Whether there are folders with pictures in them where identities should be."""
    folders = entries(root)[1]
    if _RESERVED.intersection(folders):
        return False
    subsets = [root / name for name in folders if name in SUBSETS]
    places = (
        [place / name for place in subsets for name in entries(place)[1]] if subsets else [root / n for n in folders]
    )
    return any(_is_picture(name) for place in places for name in entries(place)[0])


def load(root: Path) -> Split:
    """Parses plain folders; identities and cameras may have any names.

    Raises:
        DataError: query or gallery comes alone, pictures lie outside identity folders, something else lies inside, or
            the text before the first underscore is always the identity, not a camera.
    """
    files, folders = entries(root)
    present: list[Subset] = [subset for subset in SUBSETS if subset in folders]
    if present:
        _check_subsets(root, files, folders)
        subsets = _with_cameras(root, {subset: _read_identities(root / subset) for subset in present})
    else:
        subsets = _divide(_with_cameras(root, {"train": _read_identities(root)})["train"])
    return make_split("folder", root, **subsets)


def _check_subsets(root: Path, files: Sequence[str], folders: Sequence[str]) -> None:
    if ("query" in folders) != ("gallery" in folders):
        there, missing = ("query", "gallery") if "query" in folders else ("gallery", "query")
        raise DataError(
            f"{root} has {there}/ but no {missing}/",
            got=contents(root),
            expected="query/ and gallery/ together, or neither",
            fix=f"add {missing}/, or remove {there}/",
        )
    others = [name for name in folders if name not in SUBSETS]
    if others:
        raise DataError(
            f"{root} has folders beside train/, query/ and gallery/",
            got=first_few([f"{name}/" for name in others]),
            expected="no others, as they would be left out",
            fix="rename them to train, query or gallery, or move them elsewhere",
        )
    _refuse_loose_pictures(root, files, "SUBSET/IDENTITY/CAMERA_NAME.jpg")


def _read_identities(folder: Path) -> list[Sighting]:
    files, identities = entries(folder)
    _refuse_loose_pictures(folder, files, "IDENTITY/CAMERA_NAME.jpg")
    sightings = []
    strangers = []
    for identity in identities:
        place = folder / identity
        names, inner = entries(place)
        strangers += [f"{identity}/{name}" for name in names if not _is_picture(name)]
        strangers += [f"{identity}/{name}/" for name in inner]
        sightings += [Sighting(place / name, identity, _camera(name)) for name in names]
    if strangers:
        raise DataError(
            f"{count(len(strangers), 'entry', 'entries')} in {folder} cannot be taken for crops",
            got=first_few(strangers),
            expected="pictures only, straight inside each identity's folder",
            fix="move them elsewhere; a CSV takes any layout",
        )
    return sightings


def _refuse_loose_pictures(folder: Path, files: Sequence[str], expected: str) -> None:
    loose = [name for name in files if _is_picture(name)]
    if loose:
        raise DataError(
            f"{count(len(loose), 'picture')} in {folder} without an identity",
            got=first_few(loose),
            expected=expected,
            fix="put each into the folder of its identity",
        )


def _with_cameras(root: Path, subsets: dict[Subset, list[Sighting]]) -> dict[Subset, list[Sighting]]:
    """The subsets as they are when all cameras are known, else without any camera."""
    everything = [item for sightings in subsets.values() for item in sightings]
    unknown = [item.path for item in everything if item.camera is None]
    if unknown:
        if len(unknown) < len(everything):
            _logger.warning(
                "%s: %d of %d file names tell no camera (%s): all cameras are taken as unknown",
                root,
                len(unknown),
                len(everything),
                first_few(unknown, 1),
            )
        return {subset: [item._replace(camera=None) for item in items] for subset, items in subsets.items()}
    if len({item.identity for item in everything}) > 1 and all(item.camera == item.identity for item in everything):
        raise DataError(
            f"The file names in {root} start with the identity where the camera should be",
            got=f"{everything[0].identity}/{everything[0].path.name}",
            expected="IDENTITY/CAMERA_NAME.jpg",
            fix="rename the files to start with the camera, or describe the data set in a CSV",
        )
    return subsets


def _divide(pool: list[Sighting]) -> dict[Subset, list[Sighting]]:
    ordered = sorted(pool, key=lambda item: item.path.as_posix())
    first: dict[tuple[str | None, str | None], Sighting] = {}
    for item in ordered:
        first.setdefault((item.identity, item.camera), item)
    query = list(first.values())
    if all(item.camera is not None for item in query):
        return {"train": ordered, "query": query, "gallery": ordered}
    asked = {item.path for item in query}
    return {"train": ordered, "query": query, "gallery": [item for item in ordered if item.path not in asked]}


def _camera(name: str) -> str | None:
    camera, underscore, _ = name.partition("_")
    return camera if underscore and camera else None


def _is_picture(name: str) -> bool:
    return Path(name).suffix.lower() in IMAGE_SUFFIXES
