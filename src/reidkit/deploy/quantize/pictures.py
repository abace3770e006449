"""Which pictures ranges are learned of: spread over identities and cameras, by a seed, and told where they are from."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reidkit.calibration import Source
from reidkit.data import is_data_set, load_split
from reidkit.errors import ConfigError, DataError
from reidkit.types import Crop, Split, Subset


@dataclass(frozen=True, slots=True)
class Pictures:
    """Pictures to calibrate with.

    Attributes:
        crops: all that there are to choose from.
        root: folder that their names are told below.
        dataset: format and folder, or the folder alone.
        source: subset that they are of.
    """

    crops: tuple[Crop, ...]
    root: Path
    dataset: str
    source: Source


def pictures_of(split: Split, subset: Subset = "train") -> Pictures:
    """The pictures of a data set's subset.

    Test pictures have to be asked for: accuracy that is then measured on them is of pictures that were seen.

    Raises:
        DataError: the subset is empty.
    """
    crops = split.subset(subset)
    if not crops:
        others = [name for name in ("train", "query", "gallery") if split.subset(name)]
        raise DataError(
            f"{split.root} has no {subset} pictures to calibrate with",
            got=f"only {' and '.join(others)}" if others else "no pictures at all",
            fix="take pictures that accuracy is not measured on; or say --subset to take those all the same",
        )
    return Pictures(crops, split.root, split.name, subset)


def pictures_tested_on(root: Path, files: Collection[Path]) -> Pictures | None:
    """The pictures of a folder as those of the data set around it, where all of them are query or gallery there.

    Args:
        root: the folder.
        files: in it.
    """
    folder = root if root.is_dir() else root.parent
    places = dict.fromkeys((folder.absolute(), folder.resolve()))  # a link is known by its own place and by the other
    found = (_tested_in(place, {place / file.relative_to(folder) for file in files}) for place in places)
    return next((pictures for pictures in found if pictures is not None), None)


def _tested_in(folder: Path, wanted: Collection[Path]) -> Pictures | None:
    """The pictures of a folder by their whole paths, where the data set around it tests on all of them."""
    around = folder.parent
    if not is_data_set(around):
        return None
    try:
        split = load_split(around)
    except DataError:  # several data sets, or a part of one: which pictures are tested on is not said
        return None
    found: dict[Subset, tuple[Crop, ...]] = {
        name: tuple(crop for crop in split.subset(name) if crop.path in wanted) for name in ("query", "gallery")
    }
    crops = {crop.path: crop for part in found.values() for crop in part}
    if len(crops) < len(wanted):
        return None
    most = max(found, key=lambda name: len(found[name]))
    return Pictures(tuple(crops.values()), split.root, split.name, most)


def in_order_of_choice(crops: Sequence[Crop], seed: int) -> list[Crop]:
    """All crops, any first part of which is spread over identities and cameras as evenly as they allow.

    Identities take turns, in an order drawn anew for each round; each gives a crop of that of its cameras which has
    been taken least often so far, of several such of the one that it has most of.

    Args:
        crops: to choose from; unknown identities and cameras count as one each.
        seed: 0 or above.

    Raises:
        ConfigError: the seed is negative.
    """
    if seed < 0:
        raise ConfigError("The seed of random numbers must be 0 or above", got=seed)
    rng = np.random.default_rng(seed)
    waiting: dict[int, dict[int, list[Crop]]] = {}
    for place in rng.permutation(len(crops)):
        crop = crops[place]
        waiting.setdefault(crop.pid, {}).setdefault(crop.camid, []).append(crop)
    taken: dict[int, int] = {}
    order: list[Crop] = []
    while waiting:
        identities = sorted(waiting)
        for place in rng.permutation(len(identities)):
            cameras = waiting[identities[place]]
            camid = min(cameras, key=lambda camera: (taken.get(camera, 0), -len(cameras[camera]), camera))
            order.append(cameras[camid].pop())
            taken[camid] = taken.get(camid, 0) + 1
            if not cameras[camid]:
                del cameras[camid]
            if not cameras:
                del waiting[identities[place]]
    return order
