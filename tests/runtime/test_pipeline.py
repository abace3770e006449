import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reidkit import imaging
from reidkit.errors import ConfigError, DataError, ImageError
from reidkit.runtime.pipeline import embed_files
from reidkit.types import EmbedderSpec, InputSpec


class MeanColor:
    """An embedder whose answer is the mean colour; remembers how many crops came together."""

    spec = EmbedderSpec(InputSpec(4, 2), 3, False, None, "test", "float32", "cpu")

    def __init__(self) -> None:
        self.batches: list[int] = []

    def embed(self, crops: np.ndarray) -> np.ndarray:
        self.batches.append(len(crops))
        return crops.mean(axis=(1, 2)).astype(np.float32)


def write_greys(folder: Path, n: int) -> list[Path]:
    files = [folder / f"{i:03}.png" for i in range(n)]
    for i, file in enumerate(files):
        Image.new("L", (3, 3), i).save(file)
    return files


def decoding_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("reidkit-decode")]


@pytest.mark.parametrize(
    ("n", "batch_size", "batches"),
    [(7, 3, [3, 3, 1]), (6, 3, [3, 3]), (2, 3, [2]), (3, 1, [1, 1, 1]), (1, 32, [1])],
)
def test_every_picture_in_order_and_in_batches(tmp_path, n, batch_size, batches):
    embedder = MeanColor()
    done: list[tuple[int, int]] = []
    result = embed_files(
        embedder,
        write_greys(tmp_path, n),
        batch_size=batch_size,
        workers=3,
        progress=lambda i, total: done.append((i, total)),
    )
    assert result.embeddings.tolist() == [[i, i, i] for i in range(n)]
    assert result.rows.tolist() == list(range(n))
    assert result.unreadable == ()
    assert embedder.batches == batches
    assert done == [(i + 1, n) for i in range(n)]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 32])
def test_unreadable_pictures_are_left_out_and_reported(tmp_path, batch_size):
    files = write_greys(tmp_path, 8)
    for broken in (0, 3, 4, 7):
        files[broken].write_text("no picture")
    result = embed_files(MeanColor(), files, batch_size=batch_size, workers=2, unreadable="skip")
    assert result.rows.tolist() == [1, 2, 5, 6]
    assert result.embeddings[:, 0].tolist() == [1, 2, 5, 6]
    assert [str(error).split(" is not")[0] for error in result.unreadable] == [str(files[i]) for i in (0, 3, 4, 7)]


def test_by_itself_the_first_unreadable_picture_stops_it(tmp_path):
    files = write_greys(tmp_path, 100)
    files[5].write_text("no picture")
    files[6].unlink()
    with pytest.raises(ImageError) as caught:
        embed_files(MeanColor(), files, batch_size=2, workers=2)
    assert str(caught.value).startswith(f"{files[5]} is not a picture\n")
    assert decoding_threads() == []  # also while the error, and with it the frame, is held


def test_an_engine_that_fails_stops_the_decoding(tmp_path):
    class Broken(MeanColor):
        def embed(self, crops: np.ndarray) -> np.ndarray:
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory") as caught:
        embed_files(Broken(), write_greys(tmp_path, 100), batch_size=2, workers=2)
    assert decoding_threads() == []
    del caught


def test_no_files():
    with pytest.raises(DataError) as caught:
        embed_files(MeanColor(), [])
    assert str(caught.value) == ("There is no picture to embed\n  got: 0 files, 0 unreadable\n  expected: at least one")


def test_no_file_that_can_be_read(tmp_path):
    files = [tmp_path / "a.jpg", tmp_path / "b.jpg"]
    with pytest.raises(DataError, match="There is no picture to embed\n  got: 2 files, 2 unreadable"):
        embed_files(MeanColor(), files, unreadable="skip", workers=1)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_of_nothing(tmp_path, batch_size):
    with pytest.raises(ConfigError) as caught:
        embed_files(MeanColor(), write_greys(tmp_path, 1), batch_size=batch_size)
    assert str(caught.value) == f"The batch size is out of range\n  got: {batch_size}\n  expected: 1 or more"


def test_decoding_never_runs_further_ahead_than_four_batches(monkeypatch):
    batch_size, n = 3, 60
    lock, started, consumed = threading.Lock(), 0, 0

    def load_crop(source: Path, spec: InputSpec) -> np.ndarray:
        nonlocal started
        with lock:
            started += 1
        return np.zeros((spec.height, spec.width, 3), dtype=np.uint8)

    class Watching(MeanColor):
        def embed(self, crops: np.ndarray) -> np.ndarray:
            nonlocal consumed
            consumed += len(crops)
            deadline = time.monotonic() + 5
            while started < min(n, consumed + 4 * batch_size) and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(0.002)
            ahead.append(started - consumed)
            return super().embed(crops)

    ahead: list[int] = []
    monkeypatch.setattr(imaging, "load_crop", load_crop)
    embed_files(Watching(), [Path("x.jpg")] * n, batch_size=batch_size, workers=3)
    assert ahead == [min(n - 3 * (i + 1), 12) for i in range(20)]
