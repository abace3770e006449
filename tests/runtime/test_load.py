import importlib.util
import sys

import numpy as np
import pytest

from conditions import as_installed
from reidkit import runtime
from reidkit.errors import BundleError, ConfigError, RuntimeMissing
from reidkit.runtime import ENGINES, RUNTIMES, Engine, RuntimeName, installed, load
from reidkit.types import Embedder
from small_bundle import write

LIBRARIES: dict[RuntimeName, str] = {"onnxruntime": "onnxruntime", "openvino": "openvino", "pytorch": "torch"}
CROPS = np.random.default_rng(3).integers(0, 256, (5, 4, 2, 3), dtype=np.uint8)
GRAPH_ENGINES = [
    pytest.param(name, marks=pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"no {name} here"))
    for name in ("onnxruntime", "openvino")
]


def hide(monkeypatch: pytest.MonkeyPatch, name: RuntimeName) -> None:
    """Makes an engine's library as good as not installed."""
    monkeypatch.delitem(sys.modules, ENGINES[name].module, raising=False)
    monkeypatch.setitem(sys.modules, LIBRARIES[name], None)


@pytest.mark.parametrize("name", GRAPH_ENGINES)
@pytest.mark.parametrize("batch", [None, 2])
def test_an_engine_gives_the_mean_color(make_bundle, name, batch):
    embedder = load(make_bundle(batch=batch), name, threads=1)
    assert isinstance(embedder, Embedder)
    assert (embedder.spec.runtime, embedder.spec.device, embedder.spec.precision) == (name, "cpu", "float32")
    assert (embedder.spec.dim, embedder.spec.batch, embedder.spec.normalized) == (3, batch, False)
    first = embedder.embed(CROPS)
    kept = first.copy()
    np.testing.assert_allclose(first, CROPS.mean(axis=(1, 2)), rtol=1e-5)
    np.testing.assert_allclose(embedder.embed(CROPS[::-1])[::-1], CROPS.mean(axis=(1, 2)), rtol=1e-5)
    np.testing.assert_array_equal(first, kept)  # the second call did not write over the first one's answer
    assert embedder.embed(CROPS[:0]).shape == (0, 3)


def test_onnxruntime_is_what_load_takes_by_itself(make_bundle):
    assert load(str(make_bundle().path)).spec.runtime == "onnxruntime"


def test_an_unknown_runtime_suggests_the_nearest(make_bundle):
    bundle = make_bundle()
    with as_installed(), pytest.raises(ConfigError) as caught:
        load(bundle, "onnxrutime")  # pyright: ignore[reportArgumentType]
    assert str(caught.value) == (
        f"Unknown runtime 'onnxrutime'\n  expected: one of {', '.join(RUNTIMES)}\n  to do: did you mean 'onnxruntime'?"
    )


def test_what_can_be_loaded_is_an_engine_or_what_was_chosen():
    assert (*ENGINES, "auto") == RUNTIMES
    assert "auto" not in installed()


def test_a_path_that_is_no_bundle(tmp_path):
    with pytest.raises(BundleError, match=r"none\.reid does not exist"):
        load(tmp_path / "none.reid")


@pytest.mark.parametrize(("name", "extra"), [("onnxruntime", "onnx"), ("openvino", "openvino"), ("pytorch", "train")])
def test_a_missing_library_names_the_command(make_bundle, monkeypatch, name, extra):
    bundle = make_bundle(weights=b"weights")
    hide(monkeypatch, name)
    with pytest.raises(RuntimeMissing) as caught:
        load(bundle, name)
    assert str(caught.value) == (f"{LIBRARIES[name]} is not installed\n  to do: pip install 'reidkit[{extra}]'")


@pytest.mark.parametrize("missing", ["our_own_typo", "onnxruntime.half_installed"])
def test_a_module_missing_inside_is_not_mistaken_for_the_library(make_bundle, monkeypatch, tmp_path, missing):
    (tmp_path / "engine_with_a_typo.py").write_text(f"import onnxruntime\nimport {missing}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(runtime.ENGINES, "onnxruntime", Engine("engine_with_a_typo", "onnxruntime", "onnx"))
    with pytest.raises(ModuleNotFoundError, match=f"No module named '{missing}'"):
        load(make_bundle(), "onnxruntime")
    assert "engine_with_a_typo" not in sys.modules


def test_pytorch_cannot_build_a_foreign_graph_and_says_so_without_torch(make_bundle, monkeypatch):
    hide(monkeypatch, "pytorch")
    with pytest.raises(RuntimeMissing) as caught:
        load(make_bundle(), "pytorch")
    assert str(caught.value).startswith(
        "mean.reid is a foreign graph without named weights, which pytorch cannot build\n"
        "  expected: one of onnxruntime, openvino"
    )


class TestInstalled:
    @pytest.mark.parametrize("name", LIBRARIES)
    def test_a_library_that_is_hidden_is_not_installed(self, monkeypatch, name):
        before = installed()
        hide(monkeypatch, name)
        assert installed() == [other for other in before if other != name]

    def test_they_are_those_whose_library_can_be_found(self):
        here = [name for name, library in LIBRARIES.items() if importlib.util.find_spec(library) is not None]
        assert [name for name in installed() if name in LIBRARIES] == here

    def test_for_a_foreign_graph_without_those_that_need_weights(self, make_bundle):
        assert installed(make_bundle()) == [name for name in installed() if name in ("onnxruntime", "openvino")]

    def test_for_a_bundle_with_weights_all_that_need_not_be_built_first(self, make_bundle):
        ready = [name for name in installed() if not ENGINES[name].built]
        assert installed(make_bundle(weights=b"weights")) == ready


@pytest.mark.parametrize("name", GRAPH_ENGINES)
def test_a_graph_that_is_none_names_engine_and_file(tmp_path, name):
    bundle = write(tmp_path / "m.reid")  # its hashes are right, its graph is no graph
    with pytest.raises(
        BundleError,
        match=rf"^{name} cannot open .*model\.onnx\n  got: .+\n  to do: update {name}, or choose another runtime",
    ):
        load(bundle, name)


def test_tensorrt_without_the_bindings_of_cuda(make_bundle, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError("No module named 'cuda.bindings'", name="cuda.bindings")

    monkeypatch.setattr(runtime.importlib, "import_module", missing)
    with pytest.raises(RuntimeMissing) as caught:
        load(make_bundle(), "tensorrt")
    assert str(caught.value) == "cuda-bindings is not installed\n  to do: pip install cuda-bindings"
