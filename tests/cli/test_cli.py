"""The command line end to end on a tiny model and tiny pictures: results, exit status, messages."""

import csv
import json
import shutil
import subprocess
import sys

import pytest
from PIL import Image

import reidkit
from reidkit.bundle import open_bundle
from small_bundle import sign


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


@pytest.mark.parametrize(
    ("option", "status", "out", "err"),
    [("--version", 0, f"reidkit {reidkit.__version__}\n", ""), ("--verson", 2, "", "reid [OPTIONS] COMMAND")],
)
def test_the_package_run_as_a_module_is_the_command(option, status, out, err):
    command = [sys.executable, "-m", "reidkit", option]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (status, out)
    assert err in done.stderr
    assert "__main__" not in done.stderr


def test_unknown_command(run):
    status, _, err = run("serch")
    assert status == 2
    assert "No such command" in err


def test_info(run, tiny_bundle):
    status, out, _ = run("info", tiny_bundle)
    assert status == 0
    assert "32 x 16 (height x width)" in out
    assert "512-d" in out
    assert "ResNet-18 with IBN-a, last stride 1" in out
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
    assert out.endswith(f"wrote {tmp_path / 't.csv'}\nwrote {tmp_path / 't.png'}\n")


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


def test_train_and_export(run, market, tmp_path, graphs_by_layers):
    settings = ["input.height=32", "input.width=16", "batches.identities=3", "batches.crops=2", "optim.epochs=1"]
    changes = [part for setting in settings for part in ("--set", setting)]
    recipe = ["--recipe", "demo", *changes, "--no-bundle"]
    status, out, _ = run("train", "--data", market, "--out", tmp_path / "run", *recipe)
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
    (tmp_path / "x.tflite").write_bytes(b"TFL3" * 10)
    _, _, err = run("import", tmp_path / "x.tflite", "--out", tmp_path / "x.reid")
    assert "x.tflite holds no weights that reidkit can read" in err


def test_file_names_are_not_markup(run, tmp_path):
    _, _, err = run("info", tmp_path / "[red]x[/nothing].reid")
    assert "[red]x[/nothing].reid does not exist" in err


def test_info_shows_a_strangers_words_as_words(run, tiny_bundle, tmp_path):
    """A manifest that is signed rightly may still say anything."""
    folder = tmp_path / "x.reid"
    shutil.copytree(tiny_bundle, folder)
    accuracy = {
        "dataset": "[bold]d", "protocol": "p", "metric": "cosine", "runtime": "[/red]", "precision": "float32",
        "device": "cpu", "rank1": 0.5, "mAP": 0.5, "mINP": 0.5, "queries": 1, "gallery": 1,
    }  # fmt: skip
    sign(folder, {"name": "\x1b[2J\u202ex", "accuracy": [accuracy], "provenance": {"init": "resnet50.pth"}})
    status, out, _ = run("info", folder)
    assert status == 0
    assert "measured ([/red])" in out
    assert "[bold]d" in out
    assert "resnet50.pth" in out
    assert "\x1b" not in out
