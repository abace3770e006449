"""Engines that do not fit are built again only when that is asked for, and as they were built before."""

import shutil
from types import SimpleNamespace
from typing import Any

import pytest

from reidkit.bundle import open_bundle
from reidkit.cli import opening
from reidkit.cli.opening import open_embedder, open_way
from reidkit.deploy import choose as choosing
from reidkit.deploy.ways import Way
from reidkit.errors import BundleError, RuntimeMissing
from reidkit.runtime.engine_facts import EngineFacts, Machine, Profile, graph_digest
from reidkit.runtime.engine_store import FOLDER, open_engine, read_store, write_engine
from reidkit.types import EmbedderSpec, InputSpec

HERE = Machine("tensorrt", "8.6.0", "NVIDIA H200", "9.0")


@pytest.fixture
def bundle(tiny_bundle, tmp_path):
    return open_bundle(shutil.copytree(tiny_bundle, tmp_path / "m.reid"))


class Opened:
    """As much of an embedder as nobody looks at, and what it was opened from."""

    spec = EmbedderSpec(InputSpec(32, 16), 512, False, None, "tensorrt", "float16", "cuda")

    def __init__(self, facts, data):
        self.facts, self.data = facts, data

    def embed(self, crops):
        raise AssertionError


@pytest.fixture
def built(monkeypatch):
    """A machine with an H200 and TensorRT 8.6.0: opens what the real store gives for it; tells what was built."""
    calls: list[dict] = []

    def load(opened, name, *, device=None, precision=None, via=None):
        facts, data = open_engine(opened, name, precision, via, HERE)
        return Opened(facts, data)

    def build_engine(opened, name, *, precision, via, device, rebuild, batches=(1, 8, 64), **more):
        calls.append({"precision": precision, "via": via, "batches": list(batches), "device": device, **more})
        assert rebuild
        facts = made(opened, precision=precision, via=via or "network", created="2030", **more)
        return write_engine(opened, facts, b"built again")

    monkeypatch.setattr(opening, "load", load)
    monkeypatch.setattr(opening, "build_engine", build_engine)
    return calls


def opened(*arguments, **options) -> Any:
    return open_embedder(*arguments, **options)


def made(bundle, **changes):
    via = changes.get("via", "network")
    values = {"version": "8.6.0", "precision": "float16", "via": via, "graph": graph_digest(bundle, via)}
    values |= {"profiles": (Profile(1, 4, 4), Profile(5, 32, 32)), "gpu": "NVIDIA H200", "compute_capability": "9.0"}
    return EngineFacts("tensorrt", **values | changes)


def put(bundle, **changes):
    return write_engine(bundle, made(bundle, **changes), b"kernels")


def test_an_engine_that_fits_is_opened_as_it_is(bundle, built):
    facts = put(bundle)
    for rebuild in (False, True):
        assert opened(bundle, "tensorrt", rebuild=rebuild).facts == facts
    assert built == []


@pytest.mark.parametrize("change", [{"version": "8.6.1"}, {"graph": "0" * 64}, {"gpu": "NVIDIA A100"}])
def test_one_that_does_not_fit_is_built_as_it_was(bundle, built, change):
    put(bundle, via="parser", options=("refit",), workspace=1 << 30, effort=5, **change)
    with pytest.raises(RuntimeMissing, match=r"No tensorrt engine of m\.reid fits this machine"):
        open_embedder(bundle, "tensorrt")
    assert built == []
    embedder = opened(bundle, "tensorrt", rebuild=True)
    assert embedder.data == b"built again"
    settings = {"precision": "float16", "via": "parser", "batches": [4, 32], "device": "cuda"}
    assert built == [settings | {"options": ("refit",), "workspace": 1 << 30, "effort": 5}]


def test_where_none_was_built_the_usual_one_is(bundle, built):
    with pytest.raises(RuntimeMissing, match="No tensorrt engine was built"):
        open_way(Way("tensorrt"), bundle)
    embedder: Any = open_way(Way("tensorrt"), bundle, device="cuda:0", rebuild=True)
    assert embedder.data == b"built again"
    assert built == [{"precision": "float16", "via": None, "batches": [1, 8, 64], "device": "cuda:0"}]
    open_way(Way("tensorrt", "float32", "parser"), bundle, rebuild=True)
    assert built[1:] == [{"precision": "float32", "via": "parser", "batches": [1, 8, 64], "device": "cuda"}]


@pytest.mark.parametrize("damage", ["engine", "facts"])
def test_a_damaged_one_is_built_again(bundle, built, damage):
    facts = put(bundle)
    suffix = ".engine" if damage == "engine" else ".json"
    (file,) = (bundle.path / FOLDER).glob(f"*{suffix}")
    file.write_bytes(b"junk")
    with pytest.raises(BundleError):
        open_embedder(bundle, "tensorrt")
    assert opened(bundle, "tensorrt", rebuild=True).data == b"built again"
    assert built[0]["batches"] == ([4, 32] if damage == "engine" else [1, 8, 64])
    assert [stored.name for stored in read_store(bundle)] == [facts.name]


def test_the_youngest_of_several_is_the_pattern(bundle, built):
    put(bundle, version="8.5.2", profiles=(Profile(1, 2, 2),), created="2024")
    put(bundle, version="8.5.3", profiles=(Profile(1, 3, 3),), created="2025")
    open_embedder(bundle, "tensorrt", rebuild=True)
    assert built[0]["batches"] == [3]


def test_which_of_several_precisions_is_not_guessed(bundle, built):
    put(bundle, precision="float32", graph="0" * 64)
    put(bundle, precision="float16", graph="0" * 64)
    with pytest.raises(RuntimeMissing, match=r"No tensorrt engine of m\.reid fits this machine"):
        open_embedder(bundle, "tensorrt", rebuild=True)
    assert built == []
    assert opened(bundle, "tensorrt", precision="float32", rebuild=True).facts.precision == "float32"


def test_several_that_fit_are_not_built_again(bundle, built):
    put(bundle, precision="float32")
    put(bundle, precision="float16")
    with pytest.raises(RuntimeMissing, match="Several tensorrt engines"):
        open_embedder(bundle, "tensorrt", rebuild=True)
    assert built == []


def test_without_weights_it_is_not_built_without_weights_again(bundle, built, monkeypatch):
    put(bundle, options=("weight-stripped",))

    def no_weights(*arguments, **options):
        raise RuntimeMissing("The engine has no weights")

    monkeypatch.setattr(opening, "load", no_weights)
    with pytest.raises(RuntimeMissing, match="The engine has no weights"):
        open_embedder(bundle, "tensorrt", rebuild=True)
    assert built == []


def test_an_engine_that_is_not_built_is_not_built(bundle, built, monkeypatch):
    def missing(*arguments, **options):
        raise RuntimeMissing("openvino is not installed")

    monkeypatch.setattr(opening, "load", missing)
    with pytest.raises(RuntimeMissing, match="openvino is not installed"):
        open_embedder(bundle, "openvino", rebuild=True)
    assert built == []


def test_a_card_that_tensorrt_rtx_does_not_know_gets_no_engine(bundle, built, monkeypatch):
    cuda = pytest.importorskip("reidkit.runtime.cuda")
    card = SimpleNamespace(name="NVIDIA H200", compute_capability="9.0")
    monkeypatch.setattr(cuda, "card", lambda device="cuda": card)
    with pytest.raises(RuntimeMissing, match="tensorrt-rtx does not run on NVIDIA H200"):
        open_embedder(bundle, "tensorrt-rtx", rebuild=True)
    assert built == []


# What was chosen


@pytest.fixture
def asked(monkeypatch):
    """What was to be chosen, call by call; chosen for real, in no time."""
    calls = []

    def choose(bundle, **how):
        how.pop("progress")
        calls.append(how)
        return choosing.choose(bundle, **how, seconds=0.0)

    monkeypatch.setattr(opening, "choose", choose)
    return calls


def test_the_fastest_is_found_again_for_the_same_batches(bundle, asked):
    with pytest.raises(RuntimeMissing, match="not yet found out which engine"):
        open_embedder(bundle, "auto", device="cpu")
    assert asked == []
    first = choosing.choose(bundle, batches=[1, 2], device="cpu", seconds=0.0)
    assert open_embedder(bundle, "auto", device="cpu", rebuild=True).spec.precision == "float32"
    assert asked == []
    (file,) = (bundle.path / FOLDER).glob("auto-cpu-*.json")
    file.write_text(file.read_text().replace(f'"{first.choice.picks[0].runtime}"', '"slowest"'))
    with pytest.raises(RuntimeMissing, match="cannot be opened any more: slowest in float32"):
        open_embedder(bundle, "auto", device="cpu")
    open_embedder(bundle, "auto", device="cpu", rebuild=True)
    assert asked == [{"precision": "float32", "batches": [1, 2], "device": "cpu"}]
    file.write_text("junk")
    with pytest.raises(BundleError, match=r"auto-cpu-.*\.json cannot be read"):
        open_embedder(bundle, "auto", device="cpu")


def test_every_command_that_opens_engines_has_the_option(run, bundle, market, monkeypatch, tmp_path):
    """Each gets to the one place with what was asked for."""
    seen = []

    def open_embedder(bundle, runtime, **how):
        seen.append((runtime, how.get("rebuild")))
        raise RuntimeMissing("nothing is opened")

    monkeypatch.setattr(opening, "open_embedder", open_embedder)
    monkeypatch.setattr("reidkit.cli.measuring.open_embedder", open_embedder)
    monkeypatch.setattr("reidkit.cli.embed.open_embedder", open_embedder)
    commands = [
        ("verify", bundle.path),
        ("bench", bundle.path),
        ("evaluate", bundle.path, "--data", market),
        ("compare", bundle.path, bundle.path, "--data", market),
        ("search", bundle.path, "--data", market, "--out", tmp_path / "a.html"),
        ("embed", bundle.path, "--data", market, "--out", tmp_path / "a.npz"),
    ]
    for command in commands:
        for option in ([], ["--rebuild"]):
            run(*command, "--runtime", "tensorrt" if option else "onnxruntime", *option)
    assert seen == [("onnxruntime", False), ("tensorrt", True)] * len(commands)


def test_rebuild_is_idle_where_nothing_is_opened(run, tmp_path):
    status, _, err = run("evaluate", "--embeddings", tmp_path / "a.npz", tmp_path / "b.npz", "--rebuild")
    assert status == 2
    assert "--rebuild would change nothing beside --embeddings" in err


@pytest.mark.parametrize(
    ("runtime", "given", "expected"),
    [
        ("onnxruntime", ["--optimization", "basic"], {"optimization": "basic", "threads": 1}),
        ("openvino", ["--hint", "throughput"], {"hint": "throughput", "threads": 1}),
    ],
)
def test_evaluate_and_embed_tune_the_engine(run, tiny_bundle, market, tmp_path, monkeypatch, runtime, given, expected):
    asked = []
    load = opening.load
    monkeypatch.setattr(opening, "load", lambda *engine, **options: asked.append(options) or load(*engine, **options))
    for arguments in (["evaluate"], ["embed", "--out", tmp_path / "e.npz"]):
        told = ["--runtime", runtime, "--threads-per-call", 1, *given]
        assert run(*arguments, tiny_bundle, "--data", market, *told)[0] == 0
    assert [options.items() >= expected.items() for options in asked] == [True, True]
