"""The command line end to end on a tiny model and tiny pictures: results, exit status, messages."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reidkit.bundle import open_bundle
from reidkit.cli import main


@pytest.fixture(scope="module")
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


@pytest.fixture
def run(capsys):
    """Runs a command; gives its exit status, output and complaints."""

    def call(*arguments: object) -> tuple[int, str, str]:
        status = main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return call


def is_png(path):
    with Image.open(path) as image:
        image.load()
        return image.format == "PNG"


def test_version_and_help(run):
    assert run("--version")[1].startswith("reidkit ")
    status, out, _ = run("--help")
    assert status == 0
    assert "import" in out
    assert "search" in out


def test_unknown_command(run):
    status, _, err = run("serch")
    assert status == 2
    assert "No such command" in err


def test_info(run, tiny_bundle):
    status, out, _ = run("info", tiny_bundle)
    assert status == 0
    assert "32 x 16 (height x width)" in out
    assert "512-d" in out
    assert "resnet depth=18 ibn=a" in out
    manifest = json.loads(run("info", tiny_bundle, "--json")[1])
    assert manifest["input"]["height"] == 32
    assert set(manifest["files"]) == {"model.onnx", "golden.npz", "weights.safetensors"}


def test_info_refuses_a_changed_bundle(run, tiny_bundle, tmp_path):
    copy = shutil.copytree(tiny_bundle, tmp_path / "copy.reid")
    data = bytearray((copy / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "model.onnx").write_bytes(data)
    status, _, err = run("info", copy)
    assert status == 2
    assert f"error: {copy / 'model.onnx'} is not the file that the manifest was written for" in err


def test_verify(run, tiny_bundle):
    status, out, _ = run("verify", tiny_bundle)
    assert status == 0
    assert out.count("passed") == 3


def test_verify_fails_with_status_1(run, tiny_bundle, monkeypatch):
    from reidkit.deploy import verify

    monkeypatch.setitem(verify.TOLERANCES, "float32", verify.Tolerance(0.0, 1.0))
    status, out, _ = run("verify", tiny_bundle, "--runtime", "openvino")
    assert status == 1
    assert "FAILED" in out


def test_unknown_runtime(run, tiny_bundle):
    status, _, err = run("verify", tiny_bundle, "--runtime", "openvin")
    assert status == 2
    assert "Unknown runtime 'openvin'" in err
    assert "did you mean 'openvino'?" in err


def test_evaluate(run, tiny_bundle, market, tmp_path):
    copy = shutil.copytree(tiny_bundle, tmp_path / "copy.reid")
    status, out, _ = run("evaluate", copy, "--data", market, "--json", tmp_path / "a.json", "--record")
    assert status == 0
    assert "6 of 7 queries are valid; 1 have no match from another camera" in out
    report = json.loads((tmp_path / "a.json").read_text())
    assert report["queries"] == {"total": 7, "valid": 6}
    assert set(report["rank"]) == {"1", "5", "10"}
    assert report["rank"]["10"] == 1.0
    assert 0 < report["mINP"] <= report["mAP"] <= 1
    (recorded,) = open_bundle(copy).manifest.accuracy
    assert recorded.mAP == report["mAP"]
    assert "rank-1" in run("info", copy)[1]


def test_evaluate_names_an_unreadable_picture(run, tiny_bundle, market, tmp_path):
    copy = shutil.copytree(market, tmp_path / "market")
    broken = copy / "query" / "0004_c1s1_000000_00.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    status, _, err = run("evaluate", tiny_bundle, "--data", copy)
    assert status == 2
    assert f"error: {broken} is truncated or damaged" in err
    status, out, err = run("evaluate", tiny_bundle, "--data", copy, "--skip-unreadable")
    assert status == 0
    assert "5 of 6 queries are valid" in out
    assert "1 pictures could not be read" in err


def test_evaluate_refuses_what_is_no_data_set(run, tiny_bundle, tmp_path):
    status, _, err = run("evaluate", tiny_bundle, "--data", tmp_path)
    assert status == 2
    assert str(tmp_path) in err
    assert "bounding_box_train" in err  # what a data set looks like


def test_bench(run, tiny_bundle, market, tmp_path):
    files = ("--csv", tmp_path / "t.csv", "--plot", tmp_path / "t.png", "--images", market / "query")
    status, out, _ = run("bench", tiny_bundle, "--batch", 1, "--batch", 3, "--seconds", 0, *files)
    assert status == 0
    rows = list(csv.DictReader((tmp_path / "t.csv").read_text().splitlines()))
    assert [(row["runtime"], row["batch"], row["decode"]) for row in rows[:4]] == [
        ("onnxruntime", "1", "False"),
        ("onnxruntime", "1", "True"),
        ("onnxruntime", "3", "False"),
        ("onnxruntime", "3", "True"),
    ]
    assert len(rows) == 12
    assert "images/s" in out
    assert is_png(tmp_path / "t.png")


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_embed(run, tiny_bundle, market, tmp_path, suffix):
    out = tmp_path / f"e{suffix}"
    assert run("embed", tiny_bundle, "--images", market / "query", "--out", out)[0] == 0
    if suffix == ".npz":
        with np.load(out, allow_pickle=False) as arrays:
            table = {name: arrays[name] for name in arrays.files}
    else:
        from pyarrow import parquet

        read = parquet.read_table(out).to_pydict()
        table = {name: np.array(values) for name, values in read.items()}
    assert set(table) == {"path", "pid", "camid", "embedding"}
    assert table["pid"].tolist() == [4, 4, 5, 5, 6, 6, 9]
    assert table["camid"].tolist() == [1, 2, 1, 2, 1, 2, 1]
    assert table["embedding"].shape == (7, 512)
    assert Path(table["path"][0]) == market / "query" / "0004_c1s1_000000_00.jpg"


def test_embed_bad_input(run, tiny_bundle, market, tmp_path):
    assert "expected: .npz or .parquet" in run("embed", tiny_bundle, "--images", market, "--out", tmp_path / "e.csv")[2]
    assert "either --images or --data" in run("embed", tiny_bundle, "--out", tmp_path / "e.npz")[2]
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "holds no pictures" in run("embed", tiny_bundle, "--images", empty, "--out", tmp_path / "e.npz")[2]
    assert not (tmp_path / "e.npz").exists()


def test_search_with_labels(run, tiny_bundle, market, tmp_path):
    page = tmp_path / "s.html"
    folders = ("--query", market / "query", "--gallery", market / "bounding_box_test")
    assert run("search", tiny_bundle, *folders, "--top", 3, "--out", page)[0] == 0
    html = page.read_text()
    assert "0004_c1s1_000000_00.jpg" in html
    assert "mAP" in html
    assert is_png(tmp_path / "s.png")
    again = tmp_path / "again.html"
    assert run("search", tiny_bundle, "--data", market, "--top", 3, "--out", again)[0] == 0
    assert "mAP" in again.read_text()


def test_search_without_labels(run, tiny_bundle, market, tmp_path):
    gallery = tmp_path / "gallery"
    gallery.mkdir()
    for i, path in enumerate(sorted((market / "bounding_box_test").iterdir())):
        shutil.copy(path, gallery / f"picture {i}.jpg")
    (gallery / "broken.jpg").write_bytes(b"no picture")
    page = tmp_path / "s.html"
    status, _, err = run(
        "search", tiny_bundle, "--query", gallery / "picture 0.jpg", "--gallery", gallery, "--out", page
    )
    assert status == 0
    assert "1 pictures cannot be read and were left out" in err
    assert "broken.jpg is not a picture" in err
    assert "mAP" not in page.read_text()


@pytest.mark.parametrize(
    ("query", "gallery", "message"),
    [
        ("query", "empty", "The gallery is empty"),
        ("empty", "query", "The query is empty"),
        ("query", "nowhere", "No such file or folder"),
    ],
)
def test_search_bad_input(run, tiny_bundle, market, tmp_path, query, gallery, message):
    (tmp_path / "empty").mkdir()
    folders = {"query": market / "query", "empty": tmp_path / "empty", "nowhere": tmp_path / "nowhere"}
    page = tmp_path / "s.html"
    status, _, err = run("search", tiny_bundle, "--query", folders[query], "--gallery", folders[gallery], "--out", page)
    assert status == 2
    assert message in err
    assert not page.exists()


def test_search_needs_both_or_data(run, tiny_bundle, market, tmp_path):
    _, _, err = run("search", tiny_bundle, "--query", market, "--out", tmp_path / "s.html")
    assert "expected: --query and --gallery, or --data alone" in err


def test_inspect(run, market):
    status, out, _ = run("data", "inspect", market)
    assert status == 0
    assert "6 of 7 queries are valid" in out
    assert "0009_c1s1_000000_00.jpg" in out
    assert json.loads(run("data", "inspect", market, "--json")[1])["valid_queries"] == 6


def test_inspect_fails_on_errors(run, market, tmp_path):
    copy = shutil.copytree(market, tmp_path / "market")
    broken = copy / "query" / "0004_c1s1_000000_00.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    status, out, _ = run("data", "inspect", copy)
    assert status == 1
    assert str(broken) in out


def test_train_and_export(run, market, tmp_path):
    settings = ["input.height=32", "input.width=16", "batches.identities=3", "batches.crops=2", "optim.epochs=1"]
    changes = [part for setting in settings for part in ("--set", setting)]
    status, out, _ = run("train", "--data", market, "--out", tmp_path / "run", *changes)
    assert status == 0
    assert "trained on 12 crops of 3 identities: 2 steps" in out
    status, out, _ = run("export", tmp_path / "run", "--out", tmp_path / "m.reid", "--licence", "permissive")
    assert status == 0
    manifest = open_bundle(tmp_path / "m.reid").manifest
    assert manifest.licence == "permissive"
    assert manifest.provenance.recipe is not None
    assert manifest.provenance.recipe["optim"]["epochs"] == 1.0
    status, _, err = run("export", tmp_path / "run", "--out", tmp_path / "m.reid")
    assert status == 2
    assert "already exists" in err


def test_train_suggests_the_nearest_key(run, market, tmp_path):
    status, _, err = run("train", "--data", market, "--out", tmp_path / "run", "--set", "optim.epoch=1")
    assert status == 2
    assert "Unknown key 'optim.epoch'" in err
    assert "did you mean 'epochs'?" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "256"], "Cannot read --size"),
        (["--mean", "0,0"], "Cannot read --mean"),
    ],
)
def test_import_bad_options(run, tmp_path, arguments, message):
    _, _, err = run("import", tmp_path / "x.onnx", "--out", tmp_path / "x.reid", "--size", "8x8", *arguments)
    assert message in err


def test_import_unknown_suffix(run, tmp_path):
    _, _, err = run("import", tmp_path / "x.tflite", "--out", tmp_path / "x.reid")
    assert "Cannot tell what x.tflite is" in err


def test_file_names_are_not_markup(run, tmp_path):
    _, _, err = run("info", tmp_path / "[red]x[/nothing].reid")
    assert "[red]x[/nothing].reid does not exist" in err
