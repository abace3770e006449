"""Weights out as files for others, and back in: to the bit."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from reidkit.architecture import HeadSpec, ModelSpec, ResNetSpec
from reidkit.bundle import open_bundle
from reidkit.calibration import Range
from reidkit.checkpoints.loading import load_foreign
from reidkit.errors import ConfigError, ModelError, OutputError
from reidkit.export.weights_file import export_weights
from reidkit.manifest import Provenance
from reidkit.models.checkpoint import CheckpointFacts, load_checkpoint, load_floats, load_ranges, save_checkpoint
from reidkit.models.model import build_model
from reidkit.types import InputSpec

SPEC = ModelSpec(ResNetSpec(ibn="a", last_stride=2, max_pool="pad"), HeadSpec(gem_learned=True, gem_p=2.5))
FACTS = CheckpointFacts(SPEC, InputSpec(64, 32, color="bgr"), "vehicle", Provenance(dataset="cars"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of `reid train`, as it leaves it."""
    torch.manual_seed(3)
    model = build_model(SPEC, identities=3)
    for buffer in model.buffers():
        if buffer.ndim:
            buffer.uniform_(0.5, 1.5)
    folder = tmp_path_factory.mktemp("run")
    save_checkpoint(folder / "model.safetensors", model, FACTS)
    return folder


def same_bits(got, wanted):
    assert set(got) == set(wanted)
    for name, tensor in wanted.items():
        assert got[name].dtype == tensor.dtype
        assert got[name].shape == tensor.shape
        assert torch.equal(got[name], tensor), name


@pytest.mark.parametrize("suffix", [".wts", ".safetensors"])
def test_out_and_in_again_is_bit_equal(run, tmp_path, suffix):
    out = tmp_path / f"model{suffix}"
    export_weights(run, out)
    foreign = load_foreign(out)
    same_bits(foreign.model.state_dict(), load_file(run / "model.safetensors"))
    assert (foreign.spec, foreign.input, foreign.dialect) == (SPEC, FACTS.input, "reidkit")
    assert foreign.assumptions == ()


def test_ranges_of_a_run_in_eight_bits_come_along(run, tmp_path):
    model, facts = load_checkpoint(run / "model.safetensors")
    ranges = {"backbone.conv1:output": Range(0.0, 2.5)}
    save_checkpoint(tmp_path / "bits.safetensors", model, facts, ranges=ranges, floats=["backbone.conv1"])
    export_weights(tmp_path / "bits.safetensors", tmp_path / "out.safetensors")
    assert load_ranges(tmp_path / "out.safetensors") == ranges
    assert load_floats(tmp_path / "out.safetensors") == ("backbone.conv1",)


def test_a_wts_file_without_its_description_keeps_every_bit(run, tmp_path):
    out = tmp_path / "model.wts"
    export_weights(run, out)
    (tmp_path / "model.wts.json").unlink()
    settings = ("backbone.max_pool=pad", "backbone.last_stride=2", "input.height=64", "input.width=32")
    foreign = load_foreign(out, overrides=settings)
    same_bits(foreign.model.state_dict(), load_file(run / "model.safetensors"))
    assert foreign.dialect == "fastreid-2021-03"
    assert foreign.spec == replace(SPEC, head=replace(SPEC.head, gem_p=foreign.spec.head.gem_p))


def test_the_names_and_values_are_those_that_others_read(run, tmp_path):
    out = tmp_path / "model.wts"
    export_weights(run, out)
    first, *lines = out.read_text().splitlines()
    tensors = load_file(run / "model.safetensors")
    assert int(first) == len(lines) == len(tensors)
    words = {line.split(" ")[0]: line.split(" ")[1:] for line in lines}
    assert words["heads.pool_layer.p"] == ["1", "40200000"]  # 2.5
    assert words["backbone.layer1.0.bn1.IN.weight"] == ["32", *["3f800000"] * 32]
    assert words["backbone.bn1.num_batches_tracked"] == ["1", "00000000"]


def test_a_bundle_gives_its_weights_but_no_classifier(tiny_bundle, tmp_path):
    out = tmp_path / "tiny.safetensors"
    export_weights(tiny_bundle, out)
    model, facts = load_checkpoint(out)
    same_bits(model.state_dict(), load_file(tiny_bundle / "weights.safetensors"))
    assert facts.architecture == open_bundle(tiny_bundle).manifest.architecture
    assert facts.provenance == open_bundle(tiny_bundle).manifest.provenance


def test_what_cannot_be_written(run, tmp_path):
    with pytest.raises(
        ConfigError, match=r"Cannot write weights in this format\n  got: model.pth\n  expected: one of .wts"
    ):
        export_weights(run, tmp_path / "model.pth")
    (tmp_path / "model.wts").write_text("mine")
    with pytest.raises(OutputError, match=r"model.wts already exists"):
        export_weights(run, tmp_path / "model.wts")
    assert (tmp_path / "model.wts").read_text() == "mine"
    export_weights(run, tmp_path / "model.wts", overwrite=True)
    assert (tmp_path / "model.wts").read_text().startswith("1")
    with pytest.raises(ModelError, match="No such checkpoint"):
        export_weights(tmp_path, tmp_path / "other.wts")
