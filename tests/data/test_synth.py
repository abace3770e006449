import errno
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reidkit.data import inspect_split, load_split
from reidkit.data.synth import synthesize
from reidkit.data.synth.identity import LOWER_COLORS, UPPER_COLORS, draw_identity
from reidkit.errors import ConfigError, OutputError

MARKET = re.compile(r"(-1|\d{4})_c([1-9])s([1-6])_(\d{6})_(\d{2})\.jpg")
FOLDERS = ("bounding_box_train", "query", "bounding_box_test")


def labels(path: Path) -> tuple[int, int]:
    """(pid, camera) of a file, by Market-1501's own pattern; any other name fails."""
    match = MARKET.fullmatch(path.name)
    assert match, path.name
    return int(match[1]), int(match[2])


def parsed(folder: Path) -> list[tuple[int, int]]:
    return [labels(path) for path in sorted(folder.iterdir())]


def hashes(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*.jpg"))
    }


synthesize_small = partial(synthesize, identities=6, cameras=3, crops_per_camera=2)


@pytest.fixture(scope="module")
def progress_calls():
    return []


@pytest.fixture(scope="module")
def small(tmp_path_factory, progress_calls):
    """Drawn in this process: the work is too little for another."""
    out = tmp_path_factory.mktemp("synth") / "small"
    return synthesize_small(out, seed=5, progress=lambda done, total: progress_calls.append((done, total)))


@pytest.fixture(scope="module")
def crowd(tmp_path_factory):
    # In processes of their own, where conftest's type checks do not slow the drawing.
    out = tmp_path_factory.mktemp("synth") / "crowd"
    return synthesize(out, identities=34, cameras=4, crops_per_camera=2, seed=1, test_fraction=0.94, workers=2)


def test_folders_and_counts(small):
    assert sorted(path.name for path in small.iterdir()) == sorted((*FOLDERS, ".reidkit-synth"))
    assert Counter(parsed(small / "bounding_box_train")) == {(pid, cam): 2 for pid in (1, 2, 3) for cam in (1, 2, 3)}
    assert Counter(parsed(small / "query")) == {(pid, cam): 1 for pid in (4, 5, 6) for cam in (1, 2, 3)}
    gallery = Counter(pid for pid, _ in parsed(small / "bounding_box_test"))
    assert gallery == {4: 3, 5: 3, 6: 3, 0: 2, -1: 2}


def test_train_and_test_share_nobody(small):
    train = {pid for pid, _ in parsed(small / "bounding_box_train")}
    query = {pid for pid, _ in parsed(small / "query")}
    gallery = {pid for pid, _ in parsed(small / "bounding_box_test")}
    assert not train & (query | gallery)
    assert gallery - query == {0, -1}


def test_a_query_file_is_in_no_gallery(small):
    assert not {p.name for p in (small / "query").iterdir()} & {p.name for p in (small / "bounding_box_test").iterdir()}


def test_crops_are_jpeg_64_by_128(small):
    for path in small.rglob("*.jpg"):
        with Image.open(path) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (64, 128)), path.name


def test_no_two_crops_are_the_same_and_none_is_blank(small):
    assert len(set(hashes(small).values())) == len(list(small.rglob("*.jpg")))
    for path in small.rglob("*.jpg"):
        with Image.open(path) as image:
            assert np.asarray(image).std() > 5, path.name


def test_the_first_train_crop_is_named_as_in_market(small):
    assert min(p.name for p in (small / "bounding_box_train").iterdir()) == "0001_c1s1_000151_00.jpg"


def test_the_same_bytes_with_two_workers_and_with_one(small, tmp_path):
    assert hashes(synthesize_small(tmp_path / "again", seed=5, workers=2)) == hashes(small)


def test_another_seed_draws_other_pictures_under_the_same_names(small, tmp_path):
    other = hashes(synthesize_small(tmp_path / "other", seed=6, workers=2))
    assert other.keys() == hashes(small).keys()
    assert not set(other.values()) & set(hashes(small).values())


def test_a_person_stays_the_same_when_more_people_cameras_and_crops_are_drawn(small, tmp_path):
    more = synthesize(tmp_path / "more", identities=8, cameras=4, crops_per_camera=3, seed=5, workers=2)
    name = "bounding_box_train/0002_c2s1_000176_00.jpg"
    assert (more / name).read_bytes() == (small / name).read_bytes()


def test_progress_counts_every_file(small, progress_calls):
    total = len(list(small.rglob("*.jpg")))
    assert progress_calls[0] == (0, total)
    assert progress_calls[-1] == (total, total)
    assert progress_calls == sorted(progress_calls)


def test_a_dozen_people_in_a_row_wear_a_dozen_colours_and_no_pair_twice():
    def nearest(color, palette):
        return int(np.argmin([np.abs(np.subtract(color, other)).sum() for other in palette]))

    people = [draw_identity(3, number) for number in range(len(UPPER_COLORS) * len(LOWER_COLORS))]
    uppers = [nearest(who.upper_cloth.color, UPPER_COLORS) for who in people]
    assert all(len(set(uppers[i : i + 12])) == 12 for i in range(0, len(uppers), 12))
    assert draw_identity(3, 0) == people[0]
    trousered = [
        (upper, nearest(who.lower_cloth.color, LOWER_COLORS))
        for who, upper in zip(people, uppers, strict=True)
        if who.lower_cloth != who.upper_cloth
    ]
    assert len(set(trousered)) == len(trousered)


def average_precisions(root: Path, size: tuple[int, int], metric: str) -> list[float]:
    """Market's protocol by hand: for each query, walk down the gallery by distance of raw pixels."""

    def pixels(path):
        with Image.open(path) as image:
            return np.asarray(image.resize(size, Image.Resampling.BILINEAR), dtype=np.float64).ravel()

    gallery = []
    for path in sorted((root / "bounding_box_test").iterdir()):
        pid, cam = labels(path)
        if pid != -1:
            gallery.append((pid, cam, pixels(path)))
    result = []
    for path in sorted((root / "query").iterdir()):
        pid, cam = labels(path)
        mine = pixels(path)
        ranked = []
        for other_pid, other_cam, values in gallery:
            if (other_pid, other_cam) == (pid, cam):
                continue
            if metric == "euclidean":
                distance = float(np.linalg.norm(mine - values))
            else:
                distance = 1 - float(mine @ values / np.linalg.norm(mine) / np.linalg.norm(values))
            ranked.append((distance, other_pid == pid))
        hits, precisions = 0, []
        for rank, (_, right) in enumerate(sorted(ranked), start=1):
            if right:
                hits += 1
                precisions.append(hits / rank)
        result.append(sum(precisions) / len(precisions))
    return result


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_raw_pixels_do_not_find_people_across_cameras(crowd, metric):
    precisions = average_precisions(crowd, (16, 32), metric)
    assert len(precisions) == 32 * 4
    # Chance is about 0.04: nearness of pixels says something, and far from enough.
    assert 0.05 < np.mean(precisions) < 0.30


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"identities": 3},
            ["identities is out of range", "got: 3", "4 to 9999", "to do: choose a number in that range"],
        ),
        ({"identities": 10_000}, ["identities is out of range", "got: 10000", "four digits"]),
        ({"cameras": 1}, ["cameras is out of range", "got: 1", "2 to 9", "another camera"]),
        ({"cameras": 10}, ["cameras is out of range", "got: 10", "one digit"]),
        ({"crops_per_camera": 1}, ["crops_per_camera is out of range", "got: 1", "one is the query"]),
        ({"seed": -1}, ["seed is out of range", "got: -1"]),
        ({"workers": 0}, ["workers is out of range", "got: 0"]),
        ({"test_fraction": 1.0}, ["cannot be split", "60 identities with test_fraction 1.0", "at least 2"]),
        ({"identities": 5, "test_fraction": 0.2}, ["cannot be split", "5 identities", "nearer to 0.5"]),
    ],
)
def test_impossible_numbers_are_refused_before_anything_is_written(tmp_path, options, words):
    with pytest.raises(ConfigError) as caught:
        synthesize(tmp_path / "out", **options)
    for word in words:
        assert word in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_stays_unless_it_was_drawn_and_is_to_be_overwritten(small, tmp_path):
    def draw(out: Path, **options: bool) -> Path:
        return synthesize(out, identities=4, cameras=2, crops_per_camera=2, workers=1, **options)

    drawn = shutil.copytree(small, tmp_path / "drawn")
    (drawn / "stale.txt").touch()
    with pytest.raises(OutputError, match=r"drawn already exists\n  to do: choose another name, or say --overwrite"):
        draw(drawn)
    draw(drawn, overwrite=True)
    assert sorted(path.name for path in drawn.iterdir()) == sorted((*FOLDERS, ".reidkit-synth"))

    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "precious.txt").write_text("mine")
    with pytest.raises(OutputError) as caught:
        draw(mine, overwrite=True)
    assert "nothing was removed\n  got: a folder with precious.txt, and no .reidkit-synth\n" in str(caught.value)
    assert [path.name for path in mine.iterdir()] == ["precious.txt"]


def test_the_marker_does_not_disturb_whoever_reads_the_data_set(small):
    split = load_split(small)
    inspection = inspect_split(split)
    assert (split.format, len(split.train), len(split.query)) == ("market1501", 18, 9)
    assert "reidkit-synth" not in repr((split, inspection))


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupted_run_leaves_nothing(tmp_path, workers):
    def interrupt(done, total):
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthesize(tmp_path / "out", identities=4, cameras=2, crops_per_camera=2, workers=workers, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path, monkeypatch):
    def full(self, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match=r"Cannot write .*out[\s\S]*free some space"):
        synthesize(tmp_path / "out", identities=4, cameras=2, crops_per_camera=2, workers=1)
    assert list(tmp_path.iterdir()) == []


def test_a_script_without_a_main_guard_is_told_what_to_do(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from reidkit.data.synth import synthesize\n"
        f"synthesize({str(tmp_path / 'out')!r}, identities=4, cameras=2, crops_per_camera=2, workers=2)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "A process that drew pictures died" in done.stderr
    assert "__name__ == '__main__'" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["script.py"]
