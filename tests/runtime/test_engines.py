"""Every engine gives what the network gives, for whatever array of crops a caller may hold."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import onnxruntime
import openvino
import pytest
import torch

import reidkit
from conditions import as_installed
from reidkit.bundle import Bundle, open_bundle
from reidkit.errors import InputError, ModelError, RuntimeMissing
from reidkit.models.checkpoint import load_deployed
from reidkit.runtime import ENGINES
from reidkit.runtime.contract import check_crops, run_in_batches
from reidkit.runtime.openvino import OpenVinoEmbedder
from reidkit.runtime.openvino_core import CORE
from reidkit.types import Embedder, EmbedderSpec, InputSpec

NAMES = ["onnxruntime", "openvino", "pytorch"]
COVERED_ELSEWHERE = {"inductor": "test_inductor", "tensorrt": "test_tensorrt", "tensorrt-rtx": "test_tensorrt"}
"""Engines that take a minute to open, or run on a card alone, and the tests that hold them to the same."""


@pytest.fixture(scope="module")
def embedders(tiny_bundle):
    return {name: reidkit.load(tiny_bundle, name, threads=1) for name in NAMES}


@pytest.fixture(params=NAMES)
def embedder(request, embedders):
    return embedders[request.param]


@pytest.fixture(scope="module")
def network(tiny_bundle):
    """The network in float64, with the pre-processing by hand."""
    model = load_deployed(open_bundle(tiny_bundle)).model.double()

    def embed(crops):
        x = (crops / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        with torch.inference_mode():
            # The head pools in float32, so the trunk alone is taken in float64.
            features = model.backbone(torch.from_numpy(x.transpose(0, 3, 1, 2))).numpy()
        pooled = torch.from_numpy((np.maximum(features, 1e-6) ** 3).mean(axis=(2, 3), keepdims=True) ** (1 / 3))
        with torch.inference_mode():
            return model.heads.bottleneck(pooled).flatten(1).numpy()

    return embed


def test_no_engine_is_forgotten():
    assert {*NAMES, *COVERED_ELSEWHERE} == set(ENGINES)


def random_crops(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 32, 16, 3), dtype=np.uint8)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_engines_agree_with_the_network(embedder, network, n):
    crops = random_crops(n, seed=n)
    got, expected = embedder.embed(crops), network(crops)
    assert got.dtype == np.float32
    assert got.shape == (n, 512)
    errors = np.linalg.norm(got - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert errors.max() < 1e-4


def test_an_embedding_does_not_depend_on_its_batch(embedder):
    crops = random_crops(5)
    together = embedder.embed(crops)
    alone = np.concatenate([embedder.embed(crop[None]) for crop in crops])
    np.testing.assert_allclose(together, alone, rtol=1e-3, atol=1e-4)


def test_what_an_engine_gave_stays_when_it_runs_again(embedder):
    first = embedder.embed(random_crops(2, seed=1))
    kept = first.copy()
    embedder.embed(random_crops(2, seed=2))
    np.testing.assert_array_equal(first, kept)


def test_an_engine_says_what_it_is(embedder, tiny_bundle):
    spec = embedder.spec
    assert isinstance(embedder, Embedder)
    assert spec.runtime in NAMES
    assert spec == EmbedderSpec(
        input=open_bundle(tiny_bundle).manifest.input,
        dim=512,
        normalized=False,
        batch=None,
        runtime=spec.runtime,
        precision="float32",
        device="cpu",
    )


def test_crops_may_be_read_only_reversed_or_cut_out(embedder):
    crops = random_crops(3)
    expected = embedder.embed(crops)
    locked = crops.copy()
    locked.setflags(write=False)
    bgr = np.ascontiguousarray(crops[..., ::-1])
    wide = np.zeros((3, 40, 30, 3), np.uint8)
    wide[:, 5:37, 9:25] = crops
    for view in (locked, bgr[..., ::-1], wide[:, 5:37, 9:25], np.asfortranarray(crops)):
        np.testing.assert_array_equal(embedder.embed(view), expected)


def test_no_crops_give_no_embeddings(embedder):
    got = embedder.embed(np.empty((0, 32, 16, 3), np.uint8))
    assert got.shape == (0, 512)
    assert got.dtype == np.float32


@pytest.mark.parametrize("shape", [(2, 16, 32, 3), (2, 33, 16, 3), (2, 32, 15, 3)])
def test_crops_of_another_size_are_refused(embedder, shape):
    with pytest.raises(
        InputError, match=r"The crops do not fit the model\n  got: uint8 \(2, [\s\S]*\(n, 32, 16, 3\), RGB"
    ):
        embedder.embed(np.zeros(shape, np.uint8))


@pytest.mark.parametrize(
    ("crops", "got"),
    [
        (np.zeros((2, 32, 16, 3), np.float32), r"float32 \(2, 32, 16, 3\)"),
        (np.zeros((2, 3, 32, 16), np.uint8), r"uint8 \(2, 3, 32, 16\)"),
        (np.zeros((2, 32, 16, 4), np.uint8), r"uint8 \(2, 32, 16, 4\)"),
        (np.zeros((32, 16, 3), np.uint8), r"uint8 \(32, 16, 3\)"),
    ],
)
def test_arrays_that_are_no_crops_are_refused(embedders, crops, got):
    # By the check that every engine begins with: our own annotations would stop these arrays under test before it.
    with pytest.raises(InputError, match=rf"The crops do not fit the model\n  got: {got}\n  expected: uint8"):
        check_crops(crops, embedders["onnxruntime"].spec)


def test_the_bundle_of_a_path_and_the_open_one_are_the_same(tiny_bundle):
    crops = random_crops(1)
    opened = reidkit.load(open_bundle(tiny_bundle), "onnxruntime").embed(crops)
    np.testing.assert_array_equal(reidkit.load(str(tiny_bundle), "onnxruntime").embed(crops), opened)


# -- devices -----------------------------------------------------------------------------------------------------------


def test_pytorch_on_a_graphics_card_that_is_not_there(tiny_bundle, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(
        RuntimeMissing, match=r"PyTorch sees no such CUDA device\n  got: cuda:1\n  to do: say --device cpu"
    ):
        reidkit.load(tiny_bundle, "pytorch", device="cuda:1")


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "meta", ""])
def test_pytorch_on_an_unknown_device(tiny_bundle, device):
    with pytest.raises(RuntimeMissing, match=rf"Unknown device '{device}'\n  expected: cpu, cuda or cuda:N"):
        reidkit.load(tiny_bundle, "pytorch", device=device)


def test_onnxruntime_never_moves_to_the_processor_in_silence(tiny_bundle, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    text = (
        r"This build of ONNX Runtime has no cuda\n  got: CPUExecutionProvider\n  expected: CUDAExecutionProvider\n.*gpu"
    )
    with pytest.raises(RuntimeMissing, match=text):
        reidkit.load(tiny_bundle, "onnxruntime", device="cuda")

    class Fallen:
        """A session whose provider did not start: ONNX Runtime goes on with the processor."""

        def __init__(self, *_, **__):
            pass

        def get_providers(self):
            return ["CPUExecutionProvider"]

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", Fallen)
    with pytest.raises(RuntimeMissing, match=r"ONNX Runtime could not start cuda\n  got: CPUExecutionProvider"):
        reidkit.load(tiny_bundle, "onnxruntime", device="cuda")


def test_onnxruntime_on_an_unknown_device(tiny_bundle):
    with pytest.raises(
        RuntimeMissing, match=r"ONNX Runtime has no device 'cdua' here\n  expected: cpu, cuda or cuda:N"
    ):
        reidkit.load(tiny_bundle, "onnxruntime", device="cdua")


def test_onnxruntime_takes_a_card_by_number_and_no_tf32(tiny_bundle, monkeypatch):
    asked = {}

    class Session:
        def __init__(self, path, options, providers):
            asked["providers"] = providers

        def get_providers(self):
            return ["CUDAExecutionProvider"]

        def get_inputs(self):
            return [type("Input", (), {"name": "crops"})()]

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    with as_installed():
        reidkit.load(tiny_bundle, "onnxruntime", device="cuda:2")
    assert asked["providers"] == [("CUDAExecutionProvider", {"device_id": "2", "use_tf32": "0"})]


def test_engines_may_be_called_from_several_threads(embedder):
    crops = random_crops(4)
    expected = embedder.embed(crops)
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(lambda _: embedder.embed(crops), range(16)):
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_openvino_on_a_device_that_is_not_there(tiny_bundle):
    listed = ", ".join(CORE.available_devices)
    with pytest.raises(RuntimeMissing, match=rf"OpenVINO sees no device MOON\n  expected: one of {listed}"):
        reidkit.load(tiny_bundle, "openvino", device="moon")


def test_openvino_computes_in_float32(tiny_bundle, monkeypatch):
    seen = {}
    initialise = OpenVinoEmbedder.__init__

    def opened(self, compiled, spec, hint):
        initialise(self, compiled, spec, hint)
        seen["precision"] = compiled.get_property("INFERENCE_PRECISION_HINT")
        seen["threads"] = compiled.get_property("INFERENCE_NUM_THREADS")

    monkeypatch.setattr(OpenVinoEmbedder, "__init__", opened)
    reidkit.load(tiny_bundle, "openvino", threads=1)
    assert seen == {"precision": openvino.Type.f32, "threads": 1}


def test_pytorch_sets_its_threads(tiny_bundle):
    before = torch.get_num_threads()
    try:
        reidkit.load(tiny_bundle, "pytorch", threads=3)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


# -- bundles that an engine cannot run ---------------------------------------------------------------------------------


def test_a_foreign_graph_runs_where_no_weights_are_needed(tiny_bundle):
    bundle = open_bundle(tiny_bundle)
    files = {name: digest for name, digest in bundle.manifest.files.items() if name != "weights.safetensors"}
    foreign = Bundle(bundle.path, replace(bundle.manifest, architecture=None, files=files))
    assert reidkit.load(foreign, "onnxruntime").embed(random_crops(1)).shape == (1, 512)
    text = r"tiny\.reid is a foreign graph without named weights, which pytorch cannot build\n  expected: one of onnxr"
    with pytest.raises(RuntimeMissing, match=text):
        reidkit.load(foreign, "pytorch")
    unnamed = Bundle(bundle.path, replace(bundle.manifest, architecture=None))
    with pytest.raises(ModelError, match=r"tiny\.reid is a foreign graph"):
        reidkit.load(unnamed, "pytorch")


# -- graphs of a fixed batch -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 3, 4, 7, 8])
def test_a_fixed_batch_is_filled_up_and_cut_again(n):
    spec = EmbedderSpec(InputSpec(2, 2), 1, False, 4, "fake", "float32", "cpu")
    seen = []

    def run(part):
        seen.append(len(part))
        return part[:, 0, 0, :1].astype(np.float32)

    crops = np.zeros((n, 2, 2, 3), np.uint8)
    crops[:, 0, 0, 0] = np.arange(n)
    assert run_in_batches(crops, spec, run)[:, 0].tolist() == list(range(n))
    assert seen == [4] * -(-n // 4)
