"""What export writes: a graph that says nothing of its maker, gives what PyTorch gave, and is the same every time."""

import getpass
import hashlib
import shutil
import socket
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file

import reidkit
from reidkit.architecture import HeadSpec, ModelSpec, ResNetSpec
from reidkit.bundle import open_bundle
from reidkit.errors import BundleError, ModelError, OutputError
from reidkit.export.torch_export import OPSET, export_checkpoint, export_model, onnx_graph
from reidkit.manifest import Provenance
from reidkit.models.checkpoint import CheckpointFacts, load_deployed, save_checkpoint
from reidkit.models.model import DeployedModel, EmbeddingModel, build_model
from reidkit.types import InputSpec


@pytest.fixture
def graph(tiny_bundle):
    return onnx.load(open_bundle(tiny_bundle).model)


@pytest.fixture(scope="module")
def model(tiny_bundle):
    """The bundle's own network once more, as training would leave it: in training mode, channels last."""
    return load_deployed(open_bundle(tiny_bundle)).model.train().to(memory_format=torch.channels_last)


def facts_of(model, spec=None, **changes):
    return CheckpointFacts(model.spec, spec or InputSpec(32, 16), "person", Provenance(**changes))


def test_the_bundle_opens_and_says_what_it_is(tiny_bundle):
    manifest = open_bundle(tiny_bundle).manifest
    assert (manifest.name, manifest.task, manifest.licence) == ("tiny", "person", "unknown")
    assert (manifest.embedding.dim, manifest.embedding.normalized, manifest.batch) == (512, False, None)
    assert manifest.precision == "float32"
    assert manifest.architecture == ModelSpec()
    assert manifest.cost is not None
    assert manifest.cost.parameters == sum(p.numel() for p in load_deployed(open_bundle(tiny_bundle)).parameters())
    assert sorted(manifest.files) == ["golden.npz", "model.onnx", "weights.safetensors"]


def test_the_graph_takes_any_number_of_uint8_crops(graph):
    (crops,), (embeddings,) = graph.graph.input, graph.graph.output
    assert (crops.name, crops.type.tensor_type.elem_type) == ("crops", onnx.TensorProto.UINT8)
    assert (embeddings.name, embeddings.type.tensor_type.elem_type) == ("embeddings", onnx.TensorProto.FLOAT)
    batch, *fixed = crops.type.tensor_type.shape.dim
    assert batch.dim_param
    assert not batch.HasField("dim_value")
    assert [dim.dim_value for dim in fixed] == [32, 16, 3]
    out, width = embeddings.type.tensor_type.shape.dim
    assert out.dim_param == batch.dim_param
    assert width.dim_value == 512


def test_the_graph_keeps_to_plain_onnx(graph):
    assert [(opset.domain, opset.version) for opset in graph.opset_import] == [("", OPSET)]
    assert not graph.functions
    operators = {node.op_type for node in graph.graph.node}
    assert {node.domain for node in graph.graph.node} == {""}
    # TensorRT 8.6 and the writers of other formats know these.
    assert operators <= {
        *("Add", "BatchNormalization", "Cast", "Clip", "Concat", "Conv", "Flatten", "InstanceNormalization", "MaxPool"),
        *("Mul", "Pow", "ReduceMean", "Relu", "Reshape", "Slice", "Split", "Squeeze", "Transpose"),
    }, operators


def test_no_pooling_brings_arithmetic_on_shapes():
    """Average and maximum; GeM, in the graph above, has all operators named."""
    head = HeadSpec(pooling="average+max", embedding_dim=8)
    model = DeployedModel(build_model(ModelSpec(ResNetSpec(ibn="none"), head)), InputSpec(32, 16)).eval()
    graph = onnx.load_from_string(onnx_graph(model, InputSpec(32, 16)))
    operators = {node.op_type for node in graph.graph.node}
    assert not operators & {"Shape", "Range", "Gather", "GatherND", "Expand", "Unsqueeze"}, operators


def test_instance_normalisation_survives_as_itself(graph):
    nodes = [node for node in graph.graph.node if node.op_type == "InstanceNormalization"]
    assert len(nodes) == 6  # one a block of stages 1 to 3
    for node in nodes:
        (epsilon,) = [attribute.f for attribute in node.attribute if attribute.name == "epsilon"]
        assert epsilon == pytest.approx(1e-5)


def test_nothing_in_the_bundle_tells_where_it_was_made(tiny_bundle, graph):
    facts = {
        str(Path(reidkit.__file__).parent),
        str(Path(__file__).parents[2]),
        str(Path(torch.__file__).parent),
        str(tiny_bundle.parent),
        str(Path.home()),
        sys.prefix,
        socket.gethostname(),
        getpass.getuser(),
        "site-packages",
        "torch_export.py",
        ".py",
        "stack_trace",
        "pkg.torch",
    }
    # A word like "root" or "app" may be part of an honest name; a path or a longer name may not.
    facts = {fact.encode() for fact in facts if len(fact) > 4 or not fact.isalnum()} - {b"/"}
    for tensor in graph.graph.initializer:  # random bytes spell anything: only the words around them are searched
        tensor.ClearField("raw_data")
    bundle = open_bundle(tiny_bundle)
    weights = bundle.weights.read_bytes()
    texts = {
        "model.onnx": graph.SerializeToString(),
        "weights.safetensors": weights[8 : 8 + int.from_bytes(weights[:8], "little")],
        "manifest.json": (tiny_bundle / "manifest.json").read_bytes(),
    }
    assert b"backbone.conv1.weight" in texts["model.onnx"]
    assert [(name, fact) for name, text in texts.items() for fact in facts if fact in text] == []


def test_no_note_is_left_in_the_graph(graph):
    parts = [graph, graph.graph, *graph.graph.node, *graph.graph.initializer, *graph.graph.value_info]
    assert not any(part.metadata_props for part in parts)
    assert not any(part.doc_string for part in [*parts, *graph.graph.input, *graph.graph.output])


def test_the_weights_are_the_models_and_hold_no_classifier(tiny_bundle):
    bundle = open_bundle(tiny_bundle)
    torch.manual_seed(0)
    wanted = EmbeddingModel(ModelSpec()).state_dict()
    weights = load_file(bundle.weights)
    assert {name: tensor.shape for name, tensor in weights.items()} == {n: t.shape for n, t in wanted.items()}
    assert torch.equal(weights["backbone.conv1.weight"], wanted["backbone.conv1.weight"])


@pytest.mark.slow
def test_the_same_weights_give_the_same_graph_and_the_model_is_left_alone(model, tiny_bundle, tmp_path):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    bundle = export_model(model, facts_of(model), tmp_path / "again.reid", name="again", licence="permissive")
    first = open_bundle(tiny_bundle)
    assert bundle.manifest.files == first.manifest.files  # the hashes of all three files
    assert bundle.manifest.licence == "permissive"
    assert model.training
    assert model.backbone.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.slow
def test_a_checkpoint_becomes_a_bundle(tiny_bundle, tmp_path, capfd):
    spec = ModelSpec(ResNetSpec(last_stride=2, ibn="none"), HeadSpec(gem_learned=True, gem_p=2.5))
    model = EmbeddingModel(spec, identities=5).eval()
    run = tmp_path / "run"
    save_checkpoint(run / "model.safetensors", model, facts_of(model, InputSpec(41, 27, color="bgr"), dataset="d"))
    bundle = export_checkpoint(run, tmp_path / "other.reid")
    assert capfd.readouterr() == ("", "")  # PyTorch's exporter likes to talk
    manifest, crops = bundle.manifest, bundle.golden().crops
    assert manifest.name == "other"
    assert manifest.provenance.dataset == "d"
    digest = hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()
    assert manifest.provenance.source_sha256 == digest
    assert set(load_file(bundle.weights)) == set(model.state_dict()) - {"heads.weight"}
    # PyTorch without the pre-processing module: channels turned, mean and std of ImageNet.
    x = (crops[..., ::-1] / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    with torch.inference_mode():
        expected = model(torch.from_numpy(x.transpose(0, 3, 1, 2)).float()).numpy()
    for runtime in ("onnxruntime", "openvino", "pytorch"):
        got = reidkit.load(bundle, runtime).embed(crops)
        errors = np.linalg.norm(got - expected, axis=1) / np.linalg.norm(expected, axis=1)
        assert errors.max() < 1e-4, runtime


def test_golden_embeddings_are_what_the_network_gives(tiny_bundle):
    bundle = open_bundle(tiny_bundle)
    golden = bundle.golden()
    assert golden.crops.shape == (8, 32, 16, 3)
    x = (golden.crops / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    with torch.inference_mode():
        expected = load_deployed(bundle).model(torch.from_numpy(x.transpose(0, 3, 1, 2)).float()).numpy()
    np.testing.assert_allclose(golden.embeddings, expected, rtol=1e-3, atol=1e-4)
    # Values tell crops apart, all but those of channels that are dead in a random network.
    assert (golden.embeddings.std(axis=0) > 0).mean() > 0.9


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_model_that_gives_no_numbers_is_refused(tmp_path, value):
    model = EmbeddingModel(ModelSpec())
    with torch.no_grad():
        model.backbone.layer4[1].bn2.weight[3] = value
    with pytest.raises(ModelError, match=r"gives values that are not finite\n  expected: finite embeddings\n  to do"):
        export_model(model, facts_of(model), tmp_path / "bad.reid", name="bad")
    assert not list(tmp_path.iterdir())


def test_no_such_checkpoint(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(ModelError, match=r"No such checkpoint: .*run.model\.safetensors"):
        export_checkpoint(tmp_path / "run", tmp_path / "out.reid")
    assert not (tmp_path / "out.reid").exists()


def test_a_bundle_that_is_there_stays(model, tiny_bundle, tmp_path, monkeypatch):
    graph = open_bundle(tiny_bundle).model.read_bytes()
    monkeypatch.setattr("reidkit.export.torch_export.onnx_graph", lambda *_: graph)
    out = tmp_path / "mine.reid"
    shutil.copytree(tiny_bundle, out)
    with pytest.raises(
        OutputError, match=r"mine\.reid already exists\n  to do: choose another name, or say --overwrite"
    ):
        export_model(model, facts_of(model), out, name="second")
    assert open_bundle(out).manifest.name == "tiny"
    export_model(model, facts_of(model), out, name="second", overwrite=True)
    assert open_bundle(out).manifest.name == "second"


def test_a_bad_place_is_refused_before_the_work(model, tmp_path, monkeypatch):
    def work(*_, **__):
        pytest.fail("worked before the check")

    monkeypatch.setattr("reidkit.export.torch_export.load_checkpoint", work)
    monkeypatch.setattr("reidkit.export.torch_export.golden_crops", work)
    mine = tmp_path / "mine.reid"
    mine.mkdir()
    (mine / "photo.jpg").write_bytes(b"dear")

    def export_both(out, **options):
        with pytest.raises((BundleError, OutputError)) as first:
            export_checkpoint(tmp_path / "run", out, **options)
        with pytest.raises((BundleError, OutputError)) as second:
            export_model(model, facts_of(model), out, name="x", **options)
        assert str(first.value) == str(second.value)
        return str(first.value)

    assert export_both(tmp_path / "m.onnx").startswith("A bundle's name must end in .reid\n")
    assert export_both(mine) == f"{mine} already exists\n  to do: choose another name, or say --overwrite"
    assert "nothing was removed\n  got: a folder with photo.jpg" in export_both(mine, overwrite=True)
    assert [file.name for file in mine.iterdir()] == ["photo.jpg"]


def test_a_failing_translation_is_a_model_error(model, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no operator for this")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(ModelError, match=r"PyTorch cannot translate this model to ONNX\n  got: no operator for this"):
        export_model(model, replace(facts_of(model), task="vehicle"), tmp_path / "bad.reid", name="bad")
    assert not list(tmp_path.iterdir())
