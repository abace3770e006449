"""VeRi-776: 776 vehicles, 20 cameras (Liu et al., ECCV 2016).

Its queries lie in the gallery once more, under the same identity and camera: the protocol leaves them out.
"""

import re
from pathlib import Path
from types import MappingProxyType

from reidkit.data.naming import NamedFolders, holds_names, make_split, read_named_folders
from reidkit.types import Split

LAYOUT: str = "image_train/, image_query/, image_test/ with 0001_c001_00016450_0.jpg"

_NAMES = NamedFolders(
    "VeRi-776",
    MappingProxyType({"train": "image_train", "query": "image_query", "gallery": "image_test"}),
    re.compile(r"(?P<identity>\d+)_(?P<camera>c\d+)_\d+_\d+\.(?:jpe?g|png)", re.ASCII | re.IGNORECASE),
    "0001_c001_00016450_0.jpg",
)


def claims(root: Path) -> bool:
    """Whether the folder looks like VeRi-776, whole or not."""
    return holds_names(root, _NAMES)


def load(root: Path) -> Split:
    """Parses VeRi-776; names are `IDENTITY_cCAMERA_FRAME_BOX.jpg`.

    Raises:
        DataError: a folder is missing or files are misnamed.
    """
    return make_split("veri776", root, **read_named_folders(root, _NAMES))
