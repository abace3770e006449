import numpy as np
import pytest
from PIL import Image

from reidkit.cli import main


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path_factory, monkeypatch):
    """What one test embedded is not there for another."""
    monkeypatch.setenv("REIDKIT_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def run(capsys):
    """Runs a command; gives its exit status, output and complaints."""

    def call(*arguments: object) -> tuple[int, str, str]:
        status = main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return call


@pytest.fixture(scope="session")
def market(tmp_path_factory):
    """Six people of plain colours, seen by two cameras, in Market-1501 layout; one query has no other camera."""
    root = tmp_path_factory.mktemp("data") / "market"
    rng = np.random.default_rng(0)
    for pid in range(1, 7):
        color = rng.integers(0, 256, 3)
        subset = "bounding_box_train" if pid <= 3 else "bounding_box_test"
        for camera in (1, 2):
            for frame in range(2):
                noise = rng.integers(-10, 10, (64, 32, 3))
                picture = Image.fromarray(np.clip(color + noise, 0, 255).astype(np.uint8))
                folder = "query" if pid > 3 and frame == 0 else subset
                path = root / folder / f"{pid:04d}_c{camera}s1_{frame:06d}_00.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                picture.save(path)
    for frame in range(2):
        lonely = Image.fromarray(rng.integers(0, 256, (64, 32, 3), dtype=np.uint8))
        lonely.save(root / ("query" if frame == 0 else "bounding_box_test") / f"0009_c1s1_{frame:06d}_00.jpg")
    return root
