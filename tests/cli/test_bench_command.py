"""`reid bench` over engines and precisions, and `--precision` of the other commands."""

import csv

import numpy as np
import pytest

from reidkit.cli.bench import _print
from reidkit.errors import RuntimeMissing
from reidkit.manifest import Latency

QUICK = ("--batch", 1, "--seconds", 0)


def test_every_combination_that_is_there(run, tiny_bundle, tmp_path):
    engines = ("--runtime", "onnxruntime", "--runtime", "pytorch", "--precision", "bf16", "--precision", "fp32")
    status, out, err = run("bench", tiny_bundle, *QUICK, *engines, "--csv", tmp_path / "t.csv")
    assert status == 0
    rows = list(csv.DictReader((tmp_path / "t.csv").read_text().splitlines()))
    assert [(row["runtime"], row["precision"]) for row in rows[::2]] == [
        ("onnxruntime", "float32"),
        ("pytorch", "bfloat16"),
        ("pytorch", "float32"),
    ]
    assert {row["gpu_ms"] for row in rows} == {""}
    assert "onnxruntime bfloat16 is left out: onnxruntime does not run this bundle in bfloat16 here" in err
    assert "GPU ms" not in out


def test_where_nothing_runs_it_is_said_what_to_look_at(run, tiny_bundle, monkeypatch):
    def absent(*_, **__):
        raise RuntimeMissing("it is not here")

    monkeypatch.setattr("reidkit.cli.bench.open_way", absent)
    status, _, err = run(
        "bench", tiny_bundle, *QUICK, "--runtime", "pytorch", "--runtime", "onnxruntime", "--precision", "fp32"
    )
    assert status == 2
    assert err.count("is left out: it is not here") == 2
    assert "None of these engines can run this bundle here\n  got: device not named" in err
    assert "`reid doctor` says what is here" in err


@pytest.mark.usefixtures("plain_processor")
def test_one_combination_that_is_not_there_is_an_error(run, tiny_bundle):
    status, _, err = run("bench", tiny_bundle, *QUICK, "--runtime", "openvino", "--precision", "fp16")
    assert status == 2
    assert "error: openvino does not run this bundle in float16 here" in err


def test_what_a_card_says_is_in_the_table(capsys):
    row = Latency(
        "tensorrt", "float16", "cuda", "A card", 8, False, 1.5, 1.75, 5333.3, 99, "parser", 1.25, 2**20, 3_000_000, 61.0
    )
    plain = Latency("pytorch", "float32", "cpu", "A processor", 8, False, 15.0, 17.0, 533.3, 9)
    _print([row, plain])
    card, processor = capsys.readouterr().out.split("A processor")
    processor, engines = processor.split("engine MB")
    for word in ("A card", "tensorrt by parser", "GPU ms", "1.250"):
        assert word in card
    assert "tensorrt" not in processor.partition("GPU MB")[0]
    assert "GPU ms" not in processor
    assert "tensorrt by parser" in engines
    assert "pytorch" not in engines
    assert [word for word in engines.split() if word[0].isdigit()] == ["1", "3.0", "61"]


@pytest.mark.parametrize("command", ["evaluate", "search"])
def test_commands_open_an_engine_in_the_precision_asked_for(run, tiny_bundle, market, tmp_path, monkeypatch, command):
    opened = []
    from reidkit.cli import opening

    load = opening.load
    monkeypatch.setattr(opening, "load", lambda *a, **k: opened.append(k["precision"]) or load(*a, **k))
    extra = ("--out", tmp_path / "s.html") if command == "search" else ()
    arguments = (tiny_bundle, "--data", market, "--runtime", "pytorch", "--precision", "fp16", *extra)
    status, _, err = run(command, *arguments)
    assert (status, opened) == (0, ["float16"]), err


def test_two_precisions_are_compared(run, tiny_bundle, market):
    command = ("compare", tiny_bundle, tiny_bundle, "--data", market, "--runtime", "pytorch")
    status, out, err = run(*command, "--precision", "fp32", "--precision", "bf16")
    assert status == 0, err
    assert "tiny, float32 and tiny, bfloat16 do not differ beyond chance" in out
    status, _, err = run(*command, *["--precision", "fp32"] * 3)
    assert status == 2
    assert "Two models are compared, in a precision each\n  got: 3 times --precision" in err


def test_embeddings_in_half_precision(run, tiny_bundle, market, tmp_path):
    tables = []
    for precision in ("fp16", "fp32"):
        out = tmp_path / f"{precision}.npz"
        arguments = ("--data", market, "--out", out, "--runtime", "pytorch", "--precision", precision)
        assert run("embed", tiny_bundle, *arguments)[0] == 0
        with np.load(out) as arrays:
            tables.append(arrays["embedding"])
    half, single = tables
    assert 0 < np.abs(half - single).max() < 0.1 * np.abs(single).max()


def test_saved_embeddings_have_no_precision_to_choose(run, tmp_path):
    status, _, err = run("evaluate", "--embeddings", "q.npz", "g.npz", "--precision", "fp16")
    assert status == 2
    assert "--precision would change nothing beside --embeddings" in err
