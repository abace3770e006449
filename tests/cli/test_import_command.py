"""`reid import` of a checkpoint, as a user runs it."""

import json

import numpy as np
import openvino
import pytest
import torch
from numpy.random import default_rng
from openvino import opset13

from foreign_checkpoints import make_fastreid_resnet, save_fastreid
from numpy_networks import fastreid_resnet
from reidkit.bundle import open_bundle

CONFIG = """
MODEL:
  META_ARCHITECTURE: Baseline
  BACKBONE: {NAME: build_resnet_backbone, DEPTH: 18x, LAST_STRIDE: 1, WITH_IBN: true, WITH_NL: false, FEAT_DIM: 512}
  HEADS: {NAME: EmbeddingHead, POOL_LAYER: GeneralizedMeanPooling, WITH_BNNECK: true, NUM_CLASSES: 5}
INPUT: {SIZE_TEST: [64, 32]}
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    tensors = make_fastreid_resnet(default_rng(0), era="2021-04", depth=18, ibn=True, classes=5)
    folder = tmp_path_factory.mktemp("fastreid")
    save_fastreid(folder / "model_best.pth", tensors, extras={"epoch": 119, "metric": 0.5})
    (folder / "config.yaml").write_text(CONFIG)
    return folder / "model_best.pth", tensors


@pytest.mark.slow
def test_a_checkpoint_becomes_a_bundle_that_says_how(run, checkpoint, tmp_path):
    path, tensors = checkpoint
    out = tmp_path / "theirs.reid"
    status, printed, _ = run(
        "import", path, "--config", path.with_name("config.yaml"), "--set", "input.color=rgb", "--out", out
    )
    assert status == 0
    for line in (
        "found: a checkpoint of fast-reid",
        "found: ResNet-18 with IBN-a, last stride 1, ceiling max-pool; GeM 3, BNneck",
        "found: beside the weights the file says: epoch 119, metric 0.5",
        "assumed: max-pooling without padding",
        "assumed: it tells persons apart (otherwise: --task vehicle)",
        "found: set by hand: input.color=rgb",
        "wrote ",
    ):
        assert line in printed
    bundle = open_bundle(out)
    manifest, golden = bundle.manifest, bundle.golden()
    assert manifest.provenance.dialect == "fastreid-2021-03"
    assert any("--set backbone.max_pool=pad" in text for text in manifest.provenance.assumptions)
    assert "set by hand: input.color=rgb" in manifest.provenance.assumptions
    assert (manifest.input.height, manifest.input.width, manifest.input.resize) == (64, 32, "bicubic")
    assert manifest.cost is not None
    # Everything with a weight but the classifier, buffers left out.
    learned = {n: a for n, a in tensors.items() if not n.endswith(("running_mean", "running_var", "tracked"))}
    assert manifest.cost.parameters == sum(a.size for n, a in learned.items() if n != "heads.weight")
    pixels = (golden.crops - np.array([123.675, 116.28, 103.53])) / np.array([58.395, 57.12, 57.375])
    expected = fastreid_resnet(tensors, pixels.transpose(0, 3, 1, 2), depth=18, ibn=True, pooling="gem", gem_p=3.0)
    np.testing.assert_allclose(golden.embeddings, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    status, printed, _ = run("info", out)
    assert status == 0
    assert "fastreid-2021-03" in printed
    assert "\N{REPLACEMENT CHARACTER}" not in printed
    status, printed, _ = run("info", out, "--json")
    assert json.loads(printed)["architecture"]["head"]["pooling"] == "gem"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--layout", "nchw"], "--layout says nothing about a checkpoint"),
        (["--output", "x"], "--output says nothing about a checkpoint"),
        (["--architecture", "resnet18"], "missing"),
        (["--architecture", "resnet19"], "Unknown model 'resnet19'"),
        (["--architecture", "resnet18", "--dialect", "fastreid"], "leave --config and --dialect out"),
        (["--key", "weights"], "has no weights under 'weights'"),
        (["--size", "64"], "Cannot read --size"),
        (["--mean", "1,2"], "Cannot read --mean"),
        (["--dialect", "fastreed"], "Unknown dialect 'fastreed'"),
        (["--dialect", "fastreid-2020"], "heads.weight: since 2021-03"),
        (["--set", "backbone.depht=50"], "did you mean 'depth'"),
        (["--set", "backbone.depth=50"], "missing"),
        (["--set", "head=3"], "head has the wrong type"),
        (["--allow-missing", "heads.nothing"], "--allow-missing heads.nothing fits nothing"),
        (["--config", "absent.yaml"], "absent.yaml"),
    ],
)
def test_what_a_user_may_get_wrong(run, checkpoint, tmp_path, options, message):
    status, _, complaint = run("import", checkpoint[0], "--out", tmp_path / "x.reid", *options)
    assert status == 2
    assert message in complaint
    assert list(tmp_path.iterdir()) == []


def test_options_of_checkpoints_say_nothing_about_a_graph(run, tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"")
    for option, value in (
        ("--config", "c.yaml"),
        ("--set", "a=b"),
        ("--allow-missing", "x"),
        ("--dialect", "fastreid"),
    ):
        status, _, complaint = run("import", tmp_path / "x.onnx", "--out", tmp_path / "x.reid", option, value)
        assert status == 2
        assert f"{option} says nothing about an ONNX graph" in complaint


def test_a_place_that_is_taken_is_refused_before_the_work(run, checkpoint, tmp_path):
    (tmp_path / "x.reid").mkdir()
    (tmp_path / "x.reid" / "mine").touch()
    status, _, complaint = run("import", checkpoint[0], "--out", tmp_path / "x.reid")
    assert status == 2
    assert "already exists" in complaint


def test_a_hostile_pickle_is_refused_and_never_runs(run, tmp_path):
    class Trap:
        def __reduce__(self):
            return type(tmp_path).touch, (tmp_path / "ran",)

    torch.save({"model": {"backbone.conv1.weight": torch.zeros(1), "x": Trap()}}, tmp_path / "trap.pth")
    status, _, complaint = run("import", tmp_path / "trap.pth", "--out", tmp_path / "x.reid")
    assert status == 2
    assert "trap.pth" in complaint
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "trap.pth", weights_only=False)
    assert (tmp_path / "ran").exists()  # the trap does work


@pytest.fixture
def ir(tmp_path):
    """The mean of each channel, in the order in which it comes, as the files that others would hand out."""
    data = opset13.parameter([1, 3, 12, 8], np.float32, name="data")
    mean = opset13.reduce_mean(data, opset13.constant(np.array([2, 3])), keep_dims=False)
    model = openvino.Model([opset13.result(mean)], [data], "net")
    openvino.save_model(model, str(tmp_path / "net.xml"), compress_to_fp16=False)
    return tmp_path / "net.xml"


BARE = ("--color", "bgr", "--scale", "1", "--mean", "0,0,0", "--std", "1,1,1", "--resize", "bilinear")


def test_an_openvino_ir_becomes_a_bundle_that_every_command_takes(run, ir, tmp_path):
    out = tmp_path / "net.reid"
    status, printed, _ = run("import", ir, "--out", out, *BARE)
    assert status == 0
    assert "note: The graph was made for batches of 1; now it takes any" in printed
    bundle = open_bundle(out)
    golden, size = bundle.golden(), bundle.manifest.input
    np.testing.assert_allclose(golden.embeddings, golden.crops.mean(axis=(1, 2))[:, ::-1], rtol=1e-5)
    assert (size.height, size.width, size.color, size.resize) == (12, 8, "bgr", "bilinear")
    status, printed, _ = run("verify", out)
    assert status == 0
    assert "openvino" in printed
    assert run("info", out)[0] == 0
    assert run("bench", out, "--batch", 2, "--seconds", 0, "--hint", "throughput", "--threads-per-call", 1)[0] == 0
    status, _, complaint = run("verify", out, "--runtime", "onnxruntime")
    assert status == 1
    assert "OpenVINO IR" in " ".join((printed + complaint).split()) or "onnxruntime" in complaint


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "16x8"], "takes crops of another size"),
        (["--output", "x"], "has no output 'x'"),
        (["--architecture", "resnet18"], "--architecture says nothing about an OpenVINO IR"),
        (["--config", "c.yaml"], "--config says nothing about an OpenVINO IR"),
    ],
)
def test_what_a_user_may_get_wrong_about_an_ir(run, ir, tmp_path, options, message):
    status, _, complaint = run("import", ir, "--out", tmp_path / "x.reid", *BARE, *options)
    assert status == 2
    assert message in " ".join(complaint.split())
    assert not (tmp_path / "x.reid").exists()


def test_the_weights_of_an_ir_are_not_what_is_named(run, ir, tmp_path):
    status, _, complaint = run("import", ir.with_suffix(".bin"), "--out", tmp_path / "x.reid")
    assert status == 2
    assert "net.bin holds the weights of net.xml" in complaint


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--runtime", "onnxruntime", "--hint", "latency"], "onnxruntime knows no hint"),
        (["--runtime", "openvino", "--optimization", "basic"], "openvino knows no optimization"),
        (["--threads-per-call", 1, "--record"], "Timings with options of an engine are not recorded"),
    ],
)
def test_options_of_engines_that_bench_refuses(run, ir, tmp_path, options, message):
    assert run("import", ir, "--out", tmp_path / "x.reid", *BARE)[0] == 0
    status, _, complaint = run("bench", tmp_path / "x.reid", *options)
    assert status == 2
    assert message in " ".join(complaint.split())
