"""DukeMTMC-reID: 1,404 identities, 8 cameras (Ristani et al., ECCVW 2016; Zheng et al., ICCV 2017).

The gallery holds 408 further identities that no query asks for; they count as wrong like Market-1501's distractors.
"""

import re
from pathlib import Path

from reidkit.data.naming import BOX_FOLDERS, NamedFolders, holds_names, make_split, read_named_folders
from reidkit.types import Split

LAYOUT: str = "bounding_box_train/, query/, bounding_box_test/ with 0001_c2_f0046182.jpg"

_NAMES = NamedFolders(
    "DukeMTMC-reID",
    BOX_FOLDERS,
    re.compile(r"(?P<identity>\d+)_(?P<camera>c\d+)_f\d+\.(?:jpe?g|png)", re.ASCII | re.IGNORECASE),
    "0001_c2_f0046182.jpg",
)


def claims(root: Path) -> bool:
    """Whether the folder looks like DukeMTMC-reID, whole or not."""
    return holds_names(root, _NAMES)


def load(root: Path) -> Split:
    """Parses DukeMTMC-reID; names are `IDENTITY_cCAMERA_fFRAME.jpg`.

    Raises:
        DataError: a folder is missing or files are misnamed.
    """
    return make_split("dukemtmc", root, **read_named_folders(root, _NAMES))
