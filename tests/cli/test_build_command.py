"""`reid build`: what is asked of the builder, and the fastest engine of this processor found for real."""

import shutil

import numpy as np
import pytest
from PIL import Image

import reidkit
from reidkit.bundle import open_bundle
from reidkit.cli import build as command
from reidkit.cli.build import parse_batches
from reidkit.deploy import choose as choosing
from reidkit.deploy.choose import Chosen, Trial, choose
from reidkit.deploy.ways import Way
from reidkit.errors import ConfigError
from reidkit.runtime.engine_facts import Choice, EngineFacts, Pick, Profile
from reidkit.runtime.engine_store import write_engine


@pytest.fixture
def bundle(tiny_bundle, tmp_path):
    return shutil.copytree(tiny_bundle, tmp_path / "m.reid")


@pytest.fixture
def asked(monkeypatch):
    """What the builder was asked for, call by call."""
    calls = []

    def build_engine(bundle, runtime, **how):
        calls.append((runtime, how))
        return EngineFacts(
            runtime,
            "8.6.0",
            how["precision"],
            "network",
            "0" * 64,
            (Profile(1, 1, 8),),
            size=2_500_000,
            build_seconds=61.4,
        )

    monkeypatch.setattr(command, "build_engine", build_engine)
    return calls


def test_the_usual_engine(run, bundle, asked):
    status, out, err = run("build", bundle)
    assert status == 0, err
    assert asked == [
        (
            "tensorrt",
            {
                "precision": "float16",
                "via": None,
                "batches": [1, 8, 64],
                "workspace": None,
                "options": [],
                "effort": None,
                "device": "cuda",
                "rebuild": False,
            },
        )
    ]
    assert out == (
        "tensorrt-8.6.0-ccany-float16-network: 2.5 MB, built in 61 s\n"
        f"not verified, for no card is here: run `reid verify {bundle} --runtime tensorrt` where it is used\n"
    )


def test_an_engine_that_was_there_is_not_said_to_have_been_built(run, bundle, monkeypatch):
    opened = open_bundle(bundle)
    facts = EngineFacts("tensorrt", "8.6.0", "float16", "network", "0" * 64, (Profile(1, 1, 8),), build_seconds=61.4)
    there = write_engine(opened, facts, b"kernels")
    monkeypatch.setattr(command, "build_engine", lambda *_, **__: there)
    status, out, err = run("build", bundle)
    assert status == 0, err
    assert out.startswith(f"{there.name}: 0.0 MB, there already\n")


def test_everything_that_can_be_said(run, bundle, asked):
    words = "--runtime tensorrt-rtx --precision bf16 --via parser --batch 4,1 --workspace 2GiB --version-compatible"
    words += " --hardware-compatible --refit --weight-stripped --effort 5 --device cuda:1 --rebuild"
    status, _, err = run("build", bundle, *words.split())
    assert status == 0, err
    assert asked == [
        (
            "tensorrt-rtx",
            {
                "precision": "bfloat16",
                "via": "parser",
                "batches": [4, 1],
                "workspace": 2 << 30,
                "options": ["version-compatible", "hardware-compatible", "refit", "weight-stripped"],
                "effort": 5,
                "device": "cuda:1",
                "rebuild": True,
            },
        )
    ]


@pytest.mark.parametrize("text", ["", "1,,2", "0", "-1", "two", "1.5"])
def test_batches_that_cannot_be_read(text):
    with pytest.raises(ConfigError, match="Cannot read --batch"):
        parse_batches(text)


def test_the_fastest_is_found_and_run(run, bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "choose", lambda *a, **how: choose(*a, **how | {"seconds": 0.0}))
    missing = run("verify", bundle, "--runtime", "auto", "--device", "cpu")
    assert missing[0] == 1
    assert f"to do: reid build {bundle} --runtime auto --device cpu" in missing[2]
    status, out, err = run("build", bundle, "--runtime", "auto", "--batch", "1,2", "--device", "cpu")
    assert status == 0, err
    lines = out.splitlines()
    assert [line.split()[0] for line in lines if "float32" in line][:3] == ["onnxruntime", "openvino", "pytorch"]
    assert "ms, 1" in out
    assert "GPU" not in out
    assert "  inductor: compiling for a processor takes a minute and gains nothing; " in out
    assert lines[-1].startswith("chosen for m.reid here")
    status, out, err = run("verify", bundle, "--runtime", "auto", "--device", "cpu")
    assert status == 0, err
    assert out.count("passed") == 1
    status, out, err = run("bench", bundle, "--runtime", "auto", "--device", "cpu", "--seconds", 0, "--batch", 1)
    assert status == 0, err
    assert "without" in out
    picture = tmp_path / "a.png"
    Image.fromarray(open_bundle(bundle).golden().crops[0]).save(picture)
    table = tmp_path / "a.npz"
    words = ("--images", picture, "--out", table, "--runtime", "auto", "--device", "cpu")
    status, out, err = run("embed", bundle, *words)
    assert status == 0, err
    np.testing.assert_allclose(
        np.load(table)["embedding"], open_bundle(bundle).golden().embeddings[:1], rtol=1e-3, atol=1e-3
    )


def test_auto_on_a_data_set_with_two_engines(run, bundle, market, monkeypatch):
    """As if one engine had been the fastest for one crop, and another for more."""
    ways = (Way("onnxruntime", "float32"), Way("openvino", "float32"))
    monkeypatch.setattr(choosing, "winners_of", lambda timed: ways)
    choose(bundle, batches=[1, 4], device="cpu", seconds=0.0)
    assert reidkit.load(bundle, "auto", device="cpu").spec.runtime == "onnxruntime+openvino"
    for command_words in (("verify", bundle, "--data", market), ("evaluate", bundle, "--data", market)):
        status, out, err = run(*command_words, "--runtime", "auto", "--device", "cpu")
        assert status == 0, err
        assert "onnxruntime+openvino" in out


def test_the_table_of_a_card(run, bundle, monkeypatch):
    """Of two engines that share the batches, and of one that failed."""
    network, eager, parser = (
        Way("tensorrt", "float16", "network"),
        Way("pytorch", "float16"),
        Way("tensorrt", "float16", "parser"),
    )
    trials = (
        Trial(eager, ms=(5.25, 5.75), gpu_ms=(5.125, None)),
        Trial(network, ms=(0.5, 6.0), gpu_ms=(0.375, 2.5)),
        Trial(parser, reason="it fails verification"),
    )
    choice = Choice("NVIDIA H200; a Xeon", "cuda", "0" * 64, "float16", (Pick(None, "pytorch", "float16"),))
    found = Chosen((1, 64), trials, (network, eager), choice)
    asked = []
    monkeypatch.setattr(command, "choose", lambda bundle, **how: asked.append(how) or found)
    status, out, err = run("build", bundle, "--runtime", "auto")
    assert status == 0, err
    (how,) = asked
    assert (how["precision"], how["batches"], how["device"]) == (None, [1, 4, 16, 64], None)
    cells = [[cell.strip() for cell in line.replace("┃", "│").split("│")] for line in out.splitlines()]
    assert cells[0] == ["NVIDIA H200; a Xeon"]
    assert cells[1] == ["runtime", "precision", "ms, 1", "ms, 64", "GPU ms, 1", "GPU ms, 64"]
    assert cells[3] == ["pytorch", "float16", "5.25", "5.75", "5.125", ""]
    assert cells[4] == ["tensorrt by network", "float16", "0.50", "6.00", "0.375", "2.500"]
    assert cells[-2] == ["tensorrt float16 by parser: it fails verification"]
    assert cells[-1] == ["chosen for m.reid here, by batch: tensorrt float16 by network at 1, pytorch float16 at 64"]


@pytest.mark.parametrize(
    "words", ["--via parser", "--workspace 1GiB", "--effort 0", "--rebuild", "--refit", "--hardware-compatible"]
)
def test_what_would_be_ignored_is_refused(run, bundle, words):
    status, _, err = run("build", bundle, "--runtime", "auto", *words.split())
    assert status == 2
    assert f"{words.split()[0]} would change nothing of --runtime auto" in err


def test_an_unknown_flavour(run, bundle):
    status, _, err = run("build", bundle, "--runtime", "tensort")
    assert status == 2
    assert "Unknown runtime to build for 'tensort'" in err
