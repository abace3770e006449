from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

LayOut = Callable[..., Path]


@pytest.fixture
def lay_out(tmp_path: Path) -> LayOut:
    """Writes files of one byte, no pictures: a parser that opens one would fail. Gives the folder they lie in."""

    def write(names: Iterable[str], root: str = "set") -> Path:
        for name in names:
            file = tmp_path / root / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"x")
        return tmp_path / root

    return write
