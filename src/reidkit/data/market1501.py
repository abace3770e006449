"""Market-1501: 1,501 identities, 6 cameras, with distractors and junk in the gallery (Zheng et al., ICCV 2015).

In `bounding_box_test`, `0000` marks distractors (they count as wrong) and `-1` junk (ranked nowhere, 3,819 crops).
"""

import re
from pathlib import Path

from reidkit.data.naming import BOX_FOLDERS, NamedFolders, Sighting, holds_names, make_split, read_named_folders
from reidkit.types import Split, Subset

LAYOUT: str = "bounding_box_train/, query/, bounding_box_test/ with 0002_c1s1_000451_03.jpg"

# Some copies carry the suffix twice (0002_c1s1_000451_03.jpg.jpg).
_NAMES = NamedFolders(
    "Market-1501",
    BOX_FOLDERS,
    re.compile(r"(?P<identity>-1|\d+)_(?P<camera>c\d+)s\d+_\d+_\d+(?:\.(?:jpe?g|png))+", re.ASCII | re.IGNORECASE),
    "0002_c1s1_000451_03.jpg",
)
_DISTRACTOR, _JUNK = "0000", "-1"


def claims(root: Path) -> bool:
    """Whether the folder looks like Market-1501, whole or not."""
    return holds_names(root, _NAMES)


def load(root: Path) -> Split:
    """Parses Market-1501; names are `IDENTITY_cCAMERAsSEQUENCE_FRAME_BOX.jpg`.

    Raises:
        DataError: a folder is missing, files are misnamed, or junk or distractors lie outside `bounding_box_test`.
    """
    found = read_named_folders(root, _NAMES)
    subsets: dict[Subset, list[Sighting]] = {
        subset: [_named(item) for item in sightings if subset != "gallery" or item.identity != _JUNK]
        for subset, sightings in found.items()
    }
    junk = [_named(item) for item in found["gallery"] if item.identity == _JUNK]
    return make_split("market1501", root, **subsets, junk=junk)


def _named(sighting: Sighting) -> Sighting:
    return sighting._replace(identity=None) if sighting.identity in (_DISTRACTOR, _JUNK) else sighting
