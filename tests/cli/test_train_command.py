"""`reid train`: what it says, what it leaves, with which status it ends. The training itself is tested elsewhere."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from reidkit.bundle import open_bundle
from reidkit.cli import outcome, train
from reidkit.data import load_split
from reidkit.deploy import verify
from reidkit.errors import DataError
from reidkit.export import torch_export
from reidkit.report.training_curves import read_log

REID = Path(sysconfig.get_path("scripts")) / "reid"
TINY = [
    part
    for setting in (
        "input.height=32", "input.width=16", "batches.identities=2", "batches.crops=2", "augment.pad=2",
    )
    for part in ("--set", setting)
]  # fmt: skip
SMALL = ["--recipe", "demo", "--model", "osnet-x0.25", *TINY]
LONG = ["--set", "optim.epochs=8"]


def says(*lines: str) -> str:
    return "\n".join(lines) + "\n"


@pytest.fixture
def tiny_export(monkeypatch, tiny_bundle):
    """In place of an export, which takes ten seconds, a copy of a bundle that was made before."""

    def copy(source, out, *, licence, overwrite):
        assert (source / "model.safetensors").is_file()
        assert licence == "unknown"
        shutil.copytree(tiny_bundle, out, dirs_exist_ok=overwrite)
        return open_bundle(out)

    monkeypatch.setattr(torch_export, "export_checkpoint", copy)


def test_what_a_run_ends_with(run, market, tmp_path, tiny_export):
    folder = tmp_path / "night"
    validated = ["--set", "validation.every=1", "--set", "validation.on=test"]
    arguments = ["--data", market, "--out", folder, *SMALL, "--set", "optim.epochs=2", *validated]
    status, out, err = run("train", *arguments)
    assert status == 0, err
    bundle, card, curves = folder / "night.reid", folder / "night-card", folder / "curves.png"
    assert re.search(r"trained on 12 crops of 3 identities: 6 steps in \d+ s, best mAP [\d.]+% and rank-1 [\d.]+%", out)
    for line in (f"wrote {bundle}", f"recorded in {bundle}", f"wrote {card}.md and {card}.html", f"wrote {curves}"):
        assert out.count(line + "\n") == 1
    assert out.count("passed") == 3
    assert {path.name for path in folder.iterdir()} == {
        "model.safetensors", "last.safetensors", "log.csv", "night.reid", "night-card.md",
        "night-card.html", "curves.png",
    }  # fmt: skip

    manifest = open_bundle(bundle).manifest
    (accuracy,) = manifest.accuracy
    assert (accuracy.dataset, accuracy.runtime) == ("market1501 market", "onnxruntime")
    assert (accuracy.queries, accuracy.tta, accuracy.refinement) == (6, "none", "none")
    measured = f"{100 * accuracy.mAP:.2f}"
    assert measured in out
    assert measured in card.with_suffix(".md").read_text(encoding="utf-8")
    with Image.open(curves) as picture:
        picture.load()
        assert picture.format == "PNG"

    # In a log file, a line an epoch and one for each measurement.
    log = read_log(folder / "log.csv")
    figures = [f"mAP {100 * value:.1f} %" for value in log.mean_ap[np.isfinite(log.mean_ap)]]
    assert re.findall(r"mAP [\d.]+ %(?=  rank-1 [\d.]+ %  \()", err) == figures
    assert err.count("(the best so far)") >= 1
    lines = [line for line in err.splitlines() if line.startswith("epoch ") and "step" in line]
    pattern = r"epoch \d\.\d/2  step \d/6  loss \S+  identity \S+  triplet \S+  lr \S+  \S+ images/s  \S+ left"
    assert len(lines) == 2
    assert all(re.fullmatch(pattern, line) for line in lines)

    # The same command again is refused before any work, and --overwrite replaces all of it.
    status, out, err = run("train", *arguments)
    assert (status, out) == (2, "")
    assert err == says(f"error: {bundle} already exists", "  to do: choose another name, or say --overwrite")
    status, _, err = run("train", *arguments, "--resume")
    assert status == 2
    assert f"error: The run in {folder} cannot be resumed: it has ended" in err


@pytest.mark.slow
def test_two_processes_write_one_bundle_and_one_of_them_talks(market, tmp_path):
    folder = tmp_path / "pair"
    here = Path(__file__).parent
    command = [sys.executable, here / "quick_reid.py", "train", "--data", market, "--out", folder, "--recipe", "demo"]
    ended = subprocess.run(
        [*command, *TINY, "--devices", "2", "--set", "optim.epochs=1"],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(here.parent)},
    )
    assert ended.returncode == 0, ended.stderr
    for line in ("trained on 12 crops of 3 identities: ", f"wrote {folder / 'pair.reid'}\n", "recorded in "):
        assert ended.stdout.count(line) == 1
    for line in ("crops: ", "step "):
        assert ended.stderr.count(line) == 1
    for word in ("Traceback", "Initializing distributed", "gloo", "Warning", "error"):
        assert word not in ended.stderr
    assert {path.name for path in folder.iterdir()} == {
        "model.safetensors", "log.csv", "pair.reid", "pair-card.md", "pair-card.html", "curves.png",
    }  # fmt: skip
    manifest = open_bundle(folder / "pair.reid").manifest
    assert manifest.name == "pair"
    assert len(manifest.accuracy) == 1
    assert manifest.provenance.recipe["optim"]["epochs"] == 1.0


class Interrupted(NamedTuple):
    folder: Path
    command: list[str]
    ended: subprocess.CompletedProcess


@pytest.fixture(scope="module")
def interrupted(market, tmp_path_factory):
    """A run that got Ctrl-C."""
    folder = tmp_path_factory.mktemp("runs") / "a run"
    command = ["train", "--data", str(market), "--out", str(folder), *SMALL, *LONG, "--no-cache"]
    process = subprocess.Popen([REID, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        log = folder / "log.csv"
        while not (log.exists() and log.read_text().count("\n") > 1):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    return Interrupted(folder, command, subprocess.CompletedProcess(command, process.returncode, out, err))


def test_an_interrupt_says_how_to_go_on(interrupted):
    folder, command, ended = interrupted
    assert (ended.returncode, ended.stdout) == (130, "")
    *_, stopped, go_on = ended.stderr.splitlines()
    assert re.fullmatch(
        rf"stopped after step \d+ of 24; everything needed to go on is in {re.escape(str(folder / 'state.pt'))}",
        stopped,
    )
    assert go_on == f"to go on: {shlex.join(['reid', *command, '--resume'])}"
    assert {path.name for path in folder.iterdir()} == {"log.csv", "state.pt"}


@pytest.mark.parametrize(("arguments", "resumable"), [((), False), (("--resume",), True)])
def test_only_a_run_that_saved_something_is_said_to_be_resumable(
    run, interrupted, market, tmp_path, monkeypatch, arguments, resumable
):
    """Ctrl-C before anything was saved, where an earlier run left its state."""

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    folder = tmp_path / "run"
    shutil.copytree(interrupted.folder, folder)
    monkeypatch.setattr(train, "learn", interrupt)
    status, _, err = run("train", "--data", market, "--out", folder, *SMALL, *LONG, "--overwrite", *arguments)
    assert status == 130
    assert ("to go on: reid train" in err) == resumable
    assert err.count("--resume") == resumable
    assert ("interrupted; files that were not finished are not there" in err) != resumable


def test_a_resumed_run_ends_as_any_other(run, interrupted, tmp_path, tiny_export):
    folder = tmp_path / "again"
    shutil.copytree(interrupted.folder, folder)
    at = interrupted.command.index("--out") + 1
    status, out, err = run(*interrupted.command[:at], folder, *interrupted.command[at + 1 :], "--resume")
    assert status == 0, err
    assert {path.name for path in folder.iterdir()} == {
        "model.safetensors", "log.csv", "again.reid", "again-card.md", "again-card.html", "curves.png",
    }  # fmt: skip
    assert out.count("passed") == 3
    assert read_log(folder / "log.csv").epoch[-1] == 8


def test_what_may_not_be_resumed_or_begun_anew(run, interrupted, market, tmp_path):
    folder = tmp_path / "again"
    shutil.copytree(interrupted.folder, folder)
    state = (folder / "state.pt").read_bytes()
    status, _, err = run("train", "--data", market, "--out", folder, *SMALL, "--set", "optim.epochs=9", "--resume")
    assert status == 2
    assert "error: A run cannot be resumed with another recipe\n  got: optim.epochs = 9.0 (the run: 8.0)\n" in err
    status, _, err = run("train", "--data", market, "--out", folder, *SMALL, *LONG)
    assert status == 2
    assert f"error: {folder} holds a run that was interrupted\n" in err
    assert "to do: go on with it by --resume, choose another folder, or say --overwrite\n" in err
    (folder / "curves.png").touch()  # of an earlier run
    status, _, err = run("train", "--data", market, "--out", folder, *SMALL, *LONG, "--resume")
    assert status == 2
    assert f"error: {folder / 'curves.png'} already exists\n" in err
    assert (folder / "state.pt").read_bytes() == state


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "optim.epoch=1"], "Unknown key 'optim.epoch'"),
        (["--set", "optim.epoch=1"], "did you mean 'epochs'?"),
        (["--recipe", "bag-of-trick"], "did you mean 'bag-of-tricks'?"),
        (["--device", "cuda", "--devices", "2"], "There are fewer GPUs than asked for\n  got: 1\n  expected: 2\n"),
        (["--device", "cuda", "--devices", "2"], "to do: say --devices 1\n"),
        (["--device", "cuda:1"], "PyTorch sees no such CUDA device\n  got: cuda:1\n"),
        (["--device", "tpu"], "Unknown device 'tpu'"),
        (["--resume"], "No such state of a run: "),
        (["--teacher", "nobody"], "No teacher at nobody"),
        (["--devices", "0"], "Invalid value for '--devices'"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_any_work(run, market, tmp_path, monkeypatch, arguments, message):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    status, out, err = run("train", "--data", market, "--out", tmp_path / "run", *SMALL, *arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_named_like_a_bundle(run, market, tmp_path):
    status, _, err = run("train", "--data", market, "--out", tmp_path / "x.reid", *SMALL)
    assert status == 2
    assert f"error: --out is the folder of the run\n  got: {tmp_path / 'x.reid'}\n" in err


def test_the_help_names_every_recipe(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    status, out, _ = run("train", "--help")
    assert status == 0
    folder = Path(train.__file__).parents[1] / "train" / "recipes"
    names = sorted(path.stem for path in folder.glob("*.toml"))
    assert "from-scratch" in names
    assert ", ".join(names) in " ".join(re.sub("[│\n]", " ", out).split())


# -- a part of the outcome that cannot be made -------------------------------------------------------------------------


@pytest.fixture
def brief(run, market, interrupted, tmp_path, monkeypatch):
    """The command with a training that is over at once; gives status, output, complaints and the names of files."""
    folder = tmp_path / "run"

    def learn(*_, **__):
        folder.mkdir()
        shutil.copy(interrupted.folder / "log.csv", folder)
        save_file({"x": torch.zeros(1)}, folder / "model.safetensors")

    def call(*arguments, data=market):
        status, out, err = run("train", "--data", data, "--out", folder, *SMALL, *arguments)
        return status, out, err, {path.name for path in folder.iterdir()} - {"log.csv"}

    monkeypatch.setattr(train, "learn", learn)
    return call


def test_without_a_bundle(brief):
    status, out, _, files = brief("--no-bundle")
    assert (status, files) == (0, {"model.safetensors", "curves.png"})
    assert "reid\n" not in out


def test_an_engine_that_disagrees_is_status_1_and_the_rest_is_made(brief, monkeypatch, tiny_export):
    monkeypatch.setitem(verify.TOLERANCES, "float32", verify.Tolerance(0.0, 1.0))
    status, out, err, files = brief()
    assert status == 1
    assert "FAILED" in out
    assert "run.reid is not verified: an engine above does not give what PyTorch gave\n" in err
    assert files == {"model.safetensors", "run.reid", "run-card.md", "run-card.html", "curves.png"}


def without(monkeypatch, library, *ours):
    """The library is not installed, and our modules that need it were not imported yet."""

    class Missing:
        @staticmethod
        def find_spec(name, *_):
            if name == library:
                raise ModuleNotFoundError(f"No module named {library!r}", name=library)

    for name in [name for name in sys.modules if name.split(".")[0] == library or name in ours]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Missing, *sys.meta_path])


def test_without_the_libraries_of_reports(brief, monkeypatch, tiny_export):
    without(monkeypatch, "matplotlib", "reidkit.report.training_curves", "reidkit.report.plotting")
    without(monkeypatch, "jinja2", "reidkit.report.card", "reidkit.report.document", "reidkit.report.pages")
    status, _, err, files = brief()
    assert (status, files) == (0, {"model.safetensors", "run.reid"})
    assert "warning: the card is left out: jinja2 is not installed; pip install 'reidkit[report]' brings it\n" in err
    assert re.search(
        r"warning: \S+curves.png is left out: matplotlib is not installed; pip install 'reidkit\[report\]' brings it",
        err,
    )


def test_without_the_exporter(brief, monkeypatch):
    def fail(*_, **__):
        raise ModuleNotFoundError("No module named 'onnxscript'", name="onnxscript")

    monkeypatch.setattr(torch_export, "export_checkpoint", fail)
    status, _, err, files = brief()
    assert (status, files) == (0, {"model.safetensors", "curves.png"})
    assert (
        "run.reid with its card is left out: onnxscript is not installed; pip install 'reidkit[train]' brings it" in err
    )


def test_a_test_picture_that_is_broken_costs_the_accuracy_alone(brief, market, tmp_path, tiny_export):
    copy = tmp_path / "market"
    shutil.copytree(market, copy)
    (copy / "query" / "0004_c1s1_000000_00.jpg").write_bytes(b"no picture")
    status, out, err, files = brief(data=copy)
    assert status == 2
    assert f"error: {copy / 'query' / '0004_c1s1_000000_00.jpg'} " in err
    assert "recorded" not in out
    assert files == {"model.safetensors", "run.reid", "run-card.md", "run-card.html", "curves.png"}
    assert open_bundle(tmp_path / "run" / "run.reid").manifest.accuracy == ()


def test_data_without_a_test_part(brief, market, tmp_path, tiny_export):
    rows = [f"{path},{path.name[:4]},{path.name[6]},train" for path in (market / "bounding_box_train").iterdir()]
    (tmp_path / "people.csv").write_text(says("path,pid,camid,subset", *rows))
    status, out, _, files = brief(data=tmp_path / "people.csv")
    assert status == 0
    assert f"accuracy is not measured: {tmp_path / 'people.csv'} has no query and gallery\n" in out
    assert "run-card.md" in files


def test_accuracy_is_measured_where_the_run_was(market, tmp_path, tiny_bundle, monkeypatch):
    asked = []

    def refuse(bundle, split, runtime, settings, *, model):
        asked.append((runtime, settings.device, settings.cached))
        raise DataError("enough")

    monkeypatch.setattr(outcome, "measure", refuse)
    for device in ("cpu", "cuda:1"):
        with pytest.raises(DataError, match="enough"):
            outcome._measure(open_bundle(tiny_bundle), load_split(market), device, cached=False)
    assert asked == [("onnxruntime", "cpu", False), ("pytorch", "cuda:1", False)]


# -- the machine -------------------------------------------------------------------------------------------------------


def test_threads(monkeypatch):
    given = []
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    monkeypatch.setattr(train, "available_cores", lambda: 12)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    train._set_threads(None, 1)
    assert given == []  # whoever sets the variable has decided
    train._set_threads(5, 2)
    assert (given, os.environ["OMP_NUM_THREADS"]) == ([5], "5")
    monkeypatch.delenv("OMP_NUM_THREADS")
    train._set_threads(None, 1)
    train._set_threads(None, 5)
    train._set_threads(None, 100)
    assert given == [5, 12, 2, 1]


def test_crops_are_kept_unless_they_are_not_to_be(run, market, tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(train, "learn", lambda *_, cache, **__: kept.append(cache))
    monkeypatch.setenv("REIDKIT_CACHE", str(tmp_path / "cache"))
    for arguments in ([], ["--no-cache"]):
        run("train", "--data", market, "--out", tmp_path / "run", *SMALL, "--no-bundle", *arguments)
    assert kept == [tmp_path / "cache" / "crops", None]
