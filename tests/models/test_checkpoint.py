"""What a checkpoint gives back, and everything that is no checkpoint."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, load_file, save_file

from reidkit.architecture import HeadSpec, ModelSpec, ResNetSpec
from reidkit.bundle import Bundle, open_bundle
from reidkit.errors import ModelError
from reidkit.manifest import Provenance
from reidkit.models.checkpoint import (
    CheckpointFacts,
    build_model,
    deployed_weights,
    load_checkpoint,
    load_deployed,
    load_weights,
    save_checkpoint,
)
from reidkit.models.model import EmbeddingModel
from reidkit.types import InputSpec

SPEC = ModelSpec(ResNetSpec(last_stride=2), HeadSpec(gem_learned=True, gem_p=2.5))
FACTS = CheckpointFacts(
    SPEC,
    InputSpec(32, 16, color="bgr", mean=(0.1, 0.2, 0.3)),
    "vehicle",
    Provenance(source="run", dataset="folder cars", recipe={"seed": 3, "optim": {"lr": 0.1}}),
)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(7)
    model = EmbeddingModel(SPEC, identities=4)
    for buffer in model.buffers():
        if buffer.ndim:
            buffer.uniform_(0.5, 1.5)
    return model.to(memory_format=torch.channels_last)  # as training leaves it


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "model.safetensors"
    save_checkpoint(path, model, FACTS)
    return path


def written(path, tensors, metadata=None):
    """A safetensors file with other tensors, and the metadata of a good checkpoint unless told otherwise."""
    save_file(tensors, path, metadata)
    return path


@pytest.fixture(scope="module")
def metadata(checkpoint):
    with safe_open(checkpoint, framework="pt") as file:
        return file.metadata()


def test_round_trip_is_equal_to_the_bit(model, checkpoint):
    loaded, facts = load_checkpoint(checkpoint)
    assert facts == FACTS
    assert loaded.spec == SPEC
    assert not loaded.training
    wanted, got = model.state_dict(), loaded.state_dict()
    assert list(got) == list(wanted)
    assert all(torch.equal(got[name], wanted[name]) and got[name].dtype == wanted[name].dtype for name in wanted)


def test_the_same_model_gives_the_same_bytes(model, checkpoint, tmp_path):
    save_checkpoint(tmp_path / "again.safetensors", model, FACTS)
    assert (tmp_path / "again.safetensors").read_bytes() == checkpoint.read_bytes()


def test_saving_leaves_the_model_as_it_was(model, tmp_path):
    save_checkpoint(tmp_path / "model.safetensors", model, FACTS)
    assert model.training
    assert model.backbone.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


def test_the_spec_of_a_model_builds_it_again(model):
    again = build_model(model.spec, identities=4)
    assert {n: t.shape for n, t in again.state_dict().items()} == {n: t.shape for n, t in model.state_dict().items()}


def test_no_such_file(tmp_path):
    with pytest.raises(ModelError, match=r"No such checkpoint: .*absent\.safetensors\n  to do: check the path"):
        load_checkpoint(tmp_path / "absent.safetensors")


def test_a_folder_is_no_checkpoint(tmp_path):
    with pytest.raises(ModelError, match="No such checkpoint"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("kept", [0, 5, 1000, -1])
def test_truncated(checkpoint, tmp_path, kept):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(checkpoint.read_bytes()[:kept])
    with pytest.raises(
        ModelError, match=r"broken\.safetensors cannot be read as a checkpoint[\s\S]*a safetensors file"
    ):
        load_checkpoint(broken)


def test_a_pickle_is_refused_and_never_runs(tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    for name, write in (
        ("raw.pkl", lambda p: p.write_bytes(pickle.dumps(Trap()))),
        ("model.pth", lambda p: torch.save(Trap(), p)),
    ):
        write(tmp_path / name)
        with pytest.raises(ModelError, match="cannot be read as a checkpoint"):
            load_checkpoint(tmp_path / name)
    assert not (tmp_path / "ran").exists()
    pickle.loads((tmp_path / "raw.pkl").read_bytes())
    assert (tmp_path / "ran").exists()  # the trap does work


@pytest.mark.parametrize("content", [None, {"other": "x"}, {"reidkit": "null"}, {"reidkit": "5"}, {"reidkit": "[1]"}])
def test_a_safetensors_file_of_somebody_else(tmp_path, content):
    path = written(tmp_path / "other.safetensors", {"a": torch.zeros(1)}, content)
    with pytest.raises(ModelError, match=r"does not say what it is\n  expected: a checkpoint written by `reid train`"):
        load_checkpoint(path)


def test_metadata_that_is_no_json(tmp_path):
    path = written(tmp_path / "odd.safetensors", {"a": torch.zeros(1)}, {"reidkit": "{"})
    with pytest.raises(ModelError, match="cannot be read as a checkpoint"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": {"family": "resnext", "options": {}}}, r"Unknown architecture family 'resnext'[\s\S]*resnet"),
        ({"architecture": {"backbone": {"family": "resnext"}}}, r"'resnext'[\s\S]*resnet, osnet, timm"),
        ({"architecture": {"backbone": {"family": "resnet", "deph": 18}}}, "did you mean 'depth'"),
        ({"architecture": {"backbone": {"family": "resnet", "depth": 20}}}, r"No ResNet of this depth[\s\S]*20"),
        ({"task": "boat"}, "boat"),
        ({"colour": 1}, "Unknown key 'checkpoint.colour'"),
    ],
)
def test_metadata_that_no_reidkit_wrote(tmp_path, checkpoint, metadata, change, message):
    described = json.loads(metadata["reidkit"]) | change
    path = written(tmp_path / "new.safetensors", load_file(checkpoint), {"reidkit": json.dumps(described)})
    with pytest.raises(ModelError, match=r"describes a model this reidkit cannot build\n  got: [\s\S]*" + message):
        load_checkpoint(path)


def test_every_tensor_that_does_not_fit_is_counted_and_named(tmp_path, checkpoint, metadata):
    tensors = load_file(checkpoint)
    for name in [name for name in tensors if name.startswith("backbone.layer1.0.bn2")]:
        del tensors[name]  # five of them: four are named, the rest counted
    tensors["backbone.extra.weight"] = torch.zeros(2)
    tensors["backbone.conv1.weight"] = torch.zeros(64, 3, 3, 3)
    tensors["backbone.bn1.bias"] = torch.zeros(64, dtype=torch.float16)
    path = written(tmp_path / "changed.safetensors", tensors, metadata)
    with pytest.raises(ModelError) as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert message.startswith(f"The weights of {path} do not fit the architecture")
    assert "5 missing: backbone.layer1.0.* (5)" in message
    assert "1 unexpected: backbone.extra.weight" in message
    assert (
        "1 of another shape: backbone.conv1.weight; backbone.conv1.weight is (64, 3, 3, 3), not (64, 3, 7, 7)"
        in message
    )
    assert "1 of another type: backbone.bn1.bias; backbone.bn1.bias is float16, not float32" in message


@pytest.mark.parametrize("classifier", [torch.zeros(()), torch.zeros(4), torch.zeros(0, 512), torch.zeros(10**9, 0)])
def test_a_classifier_that_is_no_table_is_named_and_takes_no_memory(tmp_path, checkpoint, metadata, classifier):
    tensors = load_file(checkpoint) | {"heads.weight": classifier}
    path = written(tmp_path / "odd.safetensors", tensors, metadata)
    with pytest.raises(ModelError, match=r"1 of another shape: heads\.weight"):
        load_checkpoint(path)


def test_weights_that_do_not_fit_change_nothing(model):
    target = build_model(FACTS.architecture, identities=4)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    tensors = dict(model.state_dict())
    del tensors["heads.weight"]
    with pytest.raises(ModelError, match=r"The weights of a test do not fit.*\n  got: 1 missing: heads\.weight"):
        load_weights(target, tensors, source="a test")
    assert all(torch.equal(before[name], tensor) for name, tensor in target.state_dict().items())


def test_a_model_without_classifier_goes_round_too(tmp_path):
    model = EmbeddingModel(ModelSpec())
    facts = replace(FACTS, architecture=model.spec)
    save_checkpoint(tmp_path / "model.safetensors", model, facts)
    loaded, _ = load_checkpoint(tmp_path / "model.safetensors")
    assert loaded.heads.weight is None


def test_a_checkpoint_of_the_first_schema_is_read(tmp_path, checkpoint, metadata, model):
    options = {"depth": 18, "ibn": "a", "last_stride": 2, "pooling": "gem", "gem_p": 2.5, "gem_learned": True}
    described = json.loads(metadata["reidkit"]) | {"architecture": {"family": "resnet", "options": options}}
    path = written(tmp_path / "old.safetensors", load_file(checkpoint), {"reidkit": json.dumps(described)})
    assert load_checkpoint(path)[1] == FACTS


def test_deployed_weights_hold_all_but_the_classifier(model):
    tensors = load(deployed_weights(model, FACTS))
    wanted = model.state_dict()
    assert set(tensors) == set(wanted) - {"heads.weight"}
    assert all(torch.equal(tensors[name], wanted[name]) for name in tensors)


def test_a_bundle_gives_its_network_back(tiny_bundle):
    bundle = open_bundle(tiny_bundle)
    deployed, golden = load_deployed(bundle), bundle.golden()
    with torch.inference_mode():
        got = deployed(torch.from_numpy(golden.crops))
    torch.testing.assert_close(got, torch.from_numpy(golden.embeddings), rtol=1e-5, atol=1e-6)
    assert not deployed.training


def test_a_bundle_without_known_network_is_refused(tiny_bundle):
    bundle = open_bundle(tiny_bundle)
    foreign = Bundle(bundle.path, replace(bundle.manifest, architecture=None))
    with pytest.raises(ModelError, match=r"tiny\.reid is a foreign graph\n  expected: a bundle with an architecture"):
        load_deployed(foreign)
    narrower = Bundle(bundle.path, replace(bundle.manifest, architecture=ModelSpec(ResNetSpec(ibn="none"))))
    with pytest.raises(ModelError, match=r"do not fit the architecture\n  got: 30 missing: [\s\S]*42 unexpected"):
        load_deployed(narrower)
