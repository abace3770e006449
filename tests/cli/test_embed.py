"""`reid embed` end to end on a tiny model and tiny pictures."""

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from reidkit.types import UNKNOWN_IDENTITY


def read(file):
    if file.suffix == ".npz":
        with np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    return {name: np.array(values) for name, values in parquet.read_table(file).to_pydict().items()}


def embed(run, bundle, out, *source):
    status, _, err = run("embed", bundle, *source, "--out", out)
    assert status == 0, err
    return read(out)


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_embed(run, tiny_bundle, market, tmp_path, suffix):
    table = embed(run, tiny_bundle, tmp_path / f"e{suffix}", "--images", market / "query")
    assert set(table) == {"path", "pid", "camid", "identity", "camera", "embedding"}
    assert table["pid"].tolist() == [4, 4, 5, 5, 6, 6, 9]
    assert table["camid"].tolist() == [1, 2, 1, 2, 1, 2, 1]
    assert (table["pid"].dtype, table["camid"].dtype) == (np.int64, np.int64)
    assert table["identity"].tolist() == ["0004", "0004", "0005", "0005", "0006", "0006", "0009"]
    assert table["camera"].tolist() == ["c1", "c2", "c1", "c2", "c1", "c2", "c1"]
    assert table["embedding"].shape == (7, 512)
    assert Path(table["path"][0]) == market / "query" / "0004_c1s1_000000_00.jpg"


def test_a_folder_and_its_data_set_give_the_same_table(run, tiny_bundle, market, tmp_path):
    copy = shutil.copytree(market, tmp_path / "market")
    gallery = copy / "bounding_box_test"
    for name in ("0000_c2s1_000009_00.jpg", "-1_c1s1_000009_00.jpg"):
        shutil.copy(gallery / "0004_c1s1_000001_00.jpg", gallery / name)
    by_name = embed(run, tiny_bundle, tmp_path / "a.npz", "--images", gallery)
    parsed = embed(run, tiny_bundle, tmp_path / "b.npz", "--data", copy, "--subset", "gallery")
    assert (by_name["pid"][0], by_name["identity"][0], by_name["camera"][0]) == (-1, "", "c2")
    for column, values in by_name.items():
        np.testing.assert_array_equal(values, parsed[column], err_msg=column)
    assert "1 of 9 pictures" in run("embed", tiny_bundle, "--images", gallery, "--out", tmp_path / "c.npz")[1]


def test_names_that_are_no_numbers_are_numbered(run, tiny_bundle, market, tmp_path):
    pictures = sorted((market / "query").iterdir())
    for place, picture in zip(("train/x", "query/ann", "gallery/ann", "gallery/bob"), pictures, strict=False):
        (tmp_path / "set" / place).mkdir(parents=True)
        shutil.copy(picture, tmp_path / "set" / place / "hall_1.jpg")
    table = embed(run, tiny_bundle, tmp_path / "e.npz", "--data", tmp_path / "set")
    assert table["identity"].tolist() == ["ann", "ann", "bob"]
    assert table["pid"].tolist() == [0, 0, 1]
    assert (table["camera"].tolist(), table["camid"].tolist()) == (["hall"] * 3, [0] * 3)


def test_unlabelled_pictures_are_no_distractors(run, tiny_bundle, market, tmp_path):
    copy = shutil.copytree(market / "query", tmp_path / "pictures")
    (copy / "0004_c1s1_000000_00.jpg").rename(copy / "holiday.jpg")
    out = tmp_path / "e.npz"
    status, _, err = run("embed", tiny_bundle, "--images", copy, "--out", out)
    assert status == 0
    assert f"1 of 7 file names in {copy} tell no identity and camera (the first: 'holiday.jpg')" in err
    table = read(out)
    assert table["pid"].tolist() == [UNKNOWN_IDENTITY] * 7
    assert table["camid"].tolist() == [-1] * 7
    assert table["identity"].tolist() == table["camera"].tolist() == [""] * 7


@pytest.fixture
def no_embedding(monkeypatch):
    monkeypatch.setattr("reidkit.cli.embed.embed_crops", lambda *_, **__: pytest.fail("embedded"))


@pytest.mark.usefixtures("no_embedding")
def test_a_missing_writer_is_found_before_embedding(run, tiny_bundle, market, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    status, _, err = run("embed", tiny_bundle, "--images", market / "query", "--out", tmp_path / "e.parquet")
    assert status == 2
    assert "pyarrow is not installed" in err
    assert "reidkit[parquet]" in err


@pytest.mark.usefixtures("no_embedding")
def test_a_bad_place_is_found_before_embedding(run, tiny_bundle, market, tmp_path):
    (tmp_path / "e.npz").mkdir()
    status, _, err = run("embed", tiny_bundle, "--images", market / "query", "--out", tmp_path / "e.npz")
    assert status == 2
    assert f"Cannot write {tmp_path / 'e.npz'}" in err


@pytest.mark.skipif(sys.platform != "linux", reason="the file system takes Unicode names only")
def test_a_name_that_is_no_unicode(run, tiny_bundle, market, tmp_path, monkeypatch):
    copy = shutil.copytree(market / "query", tmp_path / "pictures")
    odd = Path(os.fsdecode(os.fsencode(copy) + b"/caf\xe9.jpg"))
    (copy / "0004_c1s1_000000_00.jpg").rename(odd)
    table = embed(run, tiny_bundle, tmp_path / "e.npz", "--images", copy)
    assert str(odd) in table["path"].tolist()
    monkeypatch.setattr("reidkit.cli.embed.embed_crops", lambda *_, **__: pytest.fail("embedded"))
    status, _, err = run("embed", tiny_bundle, "--images", copy, "--out", tmp_path / "e.parquet")
    assert status == 2
    assert r"cannot hold the name" in err
    assert r"caf\udce9.jpg" in err
    assert "to do: write .npz, or rename the file" in err


def test_embed_bad_input(run, tiny_bundle, market, tmp_path):
    assert "expected: .npz or .parquet" in run("embed", tiny_bundle, "--images", market, "--out", tmp_path / "e.csv")[2]
    assert "either --images or --data" in run("embed", tiny_bundle, "--out", tmp_path / "e.npz")[2]
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "holds no pictures" in run("embed", tiny_bundle, "--images", empty, "--out", tmp_path / "e.npz")[2]
    assert "cannot be listed" in run("embed", tiny_bundle, "--images", empty / "x", "--out", tmp_path / "e.npz")[2]
    (empty / "-1_c1s1_000009_00.jpg").touch()
    assert "nothing but junk" in run("embed", tiny_bundle, "--images", empty, "--out", tmp_path / "e.npz")[2]
    assert not (tmp_path / "e.npz").exists()
