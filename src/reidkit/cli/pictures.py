"""Pictures that the user names: a file, a folder, or a data set's crops, with what is known of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from reidkit.cli import console
from reidkit.data.labels import crops_by_name, unlabelled_crops, unnamed_files
from reidkit.errors import DataError
from reidkit.imaging import image_files
from reidkit.types import Crop


@dataclass(frozen=True, slots=True)
class Pictures:
    """Crops and the names that their identities and cameras have; `labelled` unless only the files are known."""

    crops: tuple[Crop, ...]
    labelled: bool
    pid_names: Mapping[int, str] = field(default_factory=lambda: MappingProxyType({}))
    camera_names: Mapping[int, str] = field(default_factory=lambda: MappingProxyType({}))


def picture_files(root: Path) -> list[Path]:
    """Every picture at or below `root`, at least one.

    Raises:
        DataError: `root` is not there or cannot be listed, or holds no pictures.
    """
    files = image_files(root)
    if not files:
        raise DataError(f"{root} holds no pictures", got="0 pictures", expected="JPEG, PNG or other picture files")
    return files


def read_pictures(root: Path) -> Pictures:
    """Every picture at or below `root`, labelled by file names where all of them tell. Says so where junk is left out.

    Raises:
        DataError: `root` is not there or cannot be listed, or holds no pictures but junk.
    """
    files = picture_files(root)
    named = crops_by_name(files)
    if named is None:
        odd = unnamed_files(files)
        if len(odd) < len(files):
            console.warn(
                f"{len(odd)} of {len(files)} file names in {root} tell no identity and camera "
                f"(the first: {odd[0].name!r}), so all its pictures are taken as unlabelled"
            )
        return Pictures(tuple(unlabelled_crops(files)), labelled=False)
    if not named.crops:
        raise DataError(f"{root} holds nothing but junk", got=f"{len(files)} pictures named -1", expected="others, too")
    if named.junk:
        console.say(f"{len(named.junk)} of {len(files)} pictures in {root} are junk by their names (-1): left out")
    return Pictures(named.crops, True, named.pid_names, named.camera_names)
