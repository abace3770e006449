"""The strict fit, and the one entry, whatever the source."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.random import default_rng

from foreign_checkpoints import Drawn, make_torchreid_osnet, make_torchvision_resnet, save_fastreid
from reidkit.architecture import HeadSpec, ModelSpec, OSNetSpec, ResNetSpec, TimmSpec
from reidkit.checkpoints.loading import load_foreign
from reidkit.checkpoints.starting import starting_weights
from reidkit.errors import ConfigError, ModelError
from reidkit.fitting import group_names, misfit
from reidkit.manifest import Provenance
from reidkit.models.checkpoint import CheckpointFacts, save_checkpoint
from reidkit.models.model import EmbeddingModel
from reidkit.models.timm_backbone import import_timm
from reidkit.types import InputSpec
from reidkit.wts import write_wts

CLASSIFIER = "heads.weight"


@pytest.fixture(scope="module")
def tensors() -> Drawn:
    """A small network of fast-reid: its OSNet has torchreid's names, and its head its own."""
    osnet = make_torchreid_osnet(default_rng(0), width=0.25)
    drawn = {f"backbone.{n}": a for n, a in osnet.items() if not n.startswith(("fc.", "classifier."))}
    neck = {n.replace("conv5.bn", "heads.bottleneck.0"): a for n, a in osnet.items() if n.startswith("conv5.bn.")}
    return {**drawn, **neck, CLASSIFIER: default_rng(1).standard_normal((3, 128)).astype(np.float32)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.pth"


def test_names_are_grouped_by_block_and_counted() -> None:
    assert group_names(["heads.weight", "backbone.layer3.4.bn1.bias", "backbone.layer3.4.conv1.weight"]) == (
        "backbone.layer3.4.* (2), heads.weight"
    )
    assert group_names([f"backbone.layer{s}.{i}.bn1.bias" for s in (1, 2, 3) for i in range(4)]) == (
        "backbone.layer1.* (4), backbone.layer2.* (4), backbone.layer3.* (4)"
    )
    assert group_names(f"p{i}" for i in range(10)).endswith("p7, and 2 more groups")
    assert group_names(["b1.0.10.x.bias", "b1.0.9.x.bias"]) == "b1.0.9.x.bias, b1.0.10.x.bias"


def test_every_kind_of_fault_is_listed() -> None:
    wanted = {name: torch.zeros(2) for name in ("a", "b", "c")}
    got = {"a": torch.zeros(3), "b": torch.zeros(2, dtype=torch.int64), "d": torch.zeros(2)}
    faults = misfit(wanted, got)
    for line in ("1 missing: c", "1 unexpected: d", "1 of another shape: a; a is (3,), not (2,)"):
        assert line in faults.describe()
    assert "1 of another type: b; b is int64, not float32" in faults.describe()
    assert not misfit(wanted, wanted)


def test_missing_weights_are_refused_and_may_be_allowed(path: Path, tensors: Drawn) -> None:
    save_fastreid(path, {n: a for n, a in tensors.items() if not n.startswith("backbone.conv2.1.gate.fc1")})
    with pytest.raises(ModelError, match=r"2 missing: backbone.conv2.1.\* \(2\)\n"):
        load_foreign(path)
    loaded = load_foreign(path, allow_missing=["backbone.conv2.1.gate.fc?.*"])
    assert any("2 missing tensors keep fresh initial values, as allowed" in text for text in loaded.assumptions)
    with pytest.raises(ModelError, match=r"--allow-missing backbone.conv2.7.\* fits nothing that is missing"):
        load_foreign(path, allow_missing=["backbone.conv2.*", "backbone.conv2.7.*"])


def test_a_missing_classifier_names_its_option(path: Path, tensors: Drawn) -> None:
    save_fastreid(path, {n: a for n, a in tensors.items() if n != CLASSIFIER})
    with pytest.raises(ModelError, match=r"1 missing: heads.weight\n(.*\n)*  to do: .*--allow-missing heads.weight"):
        load_foreign(path)
    loaded = load_foreign(path, allow_missing=[CLASSIFIER])
    assert CLASSIFIER not in loaded.model.state_dict()
    assert "missing, as allowed, and not built: heads.weight" in loaded.findings


def test_unexpected_weights_are_refused_and_may_be_left_out(path: Path, tensors: Drawn) -> None:
    save_fastreid(path, {**tensors, "memory.queue": np.zeros(3, np.float32)})
    with pytest.raises(ModelError, match=r"1 unexpected: memory\.queue"):
        load_foreign(path)
    loaded = load_foreign(path, allow_unexpected=["memory.*"])
    assert any("1 unexpected tensors were left out, as allowed: memory.queue" in f for f in loaded.findings)
    with pytest.raises(ModelError, match=r"--allow-unexpected memry.\* fits nothing that is unexpected"):
        load_foreign(path, allow_unexpected=["memry.*"])


def test_a_weight_of_another_shape_is_refused(path: Path, tensors: Drawn) -> None:
    save_fastreid(path, {**tensors, "backbone.conv1.conv.weight": np.zeros((16, 7, 7, 3), np.float32)})
    with pytest.raises(ModelError, match=r"backbone.conv1.conv.weight is \(16, 7, 7, 3\), not \(16, 3, 7, 7\)"):
        load_foreign(path)


@pytest.mark.parametrize("kind", ["float16", "float64"])
def test_other_floats_become_float32_and_that_is_said(path: Path, tensors: Drawn, kind: str) -> None:
    save_fastreid(path, {n: a.astype(kind) if a.dtype == np.float32 else a for n, a in tensors.items()})
    loaded = load_foreign(path)
    got = loaded.model.state_dict()["backbone.conv1.conv.weight"]
    assert got.dtype == torch.float32
    assert np.array_equal(got, tensors["backbone.conv1.conv.weight"].astype(kind).astype(np.float32))
    assert any(f"of {kind} were converted to float32" in finding for finding in loaded.findings)


def test_some_counters_missing_is_damage(path: Path, tensors: Drawn) -> None:
    save_fastreid(path, {n: a for n, a in tensors.items() if n != "backbone.conv1.bn.num_batches_tracked"})
    with pytest.raises(ModelError, match=r"1 missing: backbone.conv1.bn.num_batches_tracked"):
        load_foreign(path)


def test_a_wts_file_without_shapes_gives_the_same_network(tmp_path: Path, tensors: Drawn) -> None:
    save_fastreid(tmp_path / "model.pth", tensors)
    write_wts(tmp_path / "model.wts", {n: np.asarray(a, np.float32) for n, a in tensors.items()})
    for beside in tmp_path.glob("*.json"):
        beside.unlink()
    flat, whole = load_foreign(tmp_path / "model.wts"), load_foreign(tmp_path / "model.pth")
    assert flat.spec == whole.spec
    loaded = flat.model.state_dict()
    assert loaded.keys() == tensors.keys()
    for name, array in tensors.items():
        assert loaded[name].shape == np.shape(array)
        assert np.array_equal(loaded[name], array), name


def test_reidkits_own_checkpoint_says_itself_what_it_is(tmp_path: Path) -> None:
    spec = ModelSpec(OSNetSpec(width=0.25), HeadSpec(pooling="average"))
    model = EmbeddingModel(spec, identities=4)
    path = tmp_path / "model.safetensors"
    origin = Provenance(dataset="cars", recipe={"seed": 3}, dialect="torchreid")
    save_checkpoint(path, model, CheckpointFacts(spec, InputSpec(64, 32), "vehicle", origin))
    loaded = load_foreign(path)
    assert (loaded.task, loaded.provenance) == ("vehicle", origin)
    with pytest.raises(ConfigError, match="tells apart another thing\n  got: person\n  expected: vehicle"):
        load_foreign(path, task="person")
    assert (loaded.dialect, loaded.input, loaded.spec) == ("reidkit", InputSpec(64, 32), spec)
    assert torch.equal(loaded.model.state_dict()[CLASSIFIER], model.state_dict()[CLASSIFIER])
    weights = starting_weights(path, spec.backbone)
    assert torch.equal(weights["backbone.conv1.conv.weight"], model.backbone.state_dict()["conv1.conv.weight"])
    with pytest.raises(ModelError, match="says itself what it is"):
        load_foreign(path, config=tmp_path / "config.yaml")


def test_files_that_are_nobodys(path: Path, tensors: Drawn) -> None:
    torch.save({"optimizer": {"state": {}, "param_groups": []}, "epoch": 3}, path)
    with pytest.raises(ModelError, match=r"holds no weights\n  got: the keys optimizer, epoch"):
        load_foreign(path)
    torch.save({"encoder.0.weight": torch.zeros(2), "encoder.0.bias": torch.zeros(2), "x": torch.zeros(1)}, path)
    with pytest.raises(ModelError, match=r"Cannot tell.*\n  got: encoder.0.weight \(2 tensors encoder.\*\), x"):
        load_foreign(path)
    torch.save({"backbone.stem.weight": torch.zeros(2), CLASSIFIER: torch.zeros(2)}, path)
    with pytest.raises(ModelError, match=r"backbone is none that reidkit knows\n  got: backbone.stem.weight"):
        load_foreign(path)
    save_fastreid(path, tensors)
    with pytest.raises(ModelError, match="no checkpoint of reidkit"):
        load_foreign(path, dialect="reidkit")


def test_one_of_two_sets_of_weights_is_chosen_by_its_key(path: Path, tensors: Drawn) -> None:
    weights = {name: torch.from_numpy(np.asarray(array)) for name, array in tensors.items()}
    torch.save({"state_dict": {"x": torch.zeros(1)}, "state_dict_ema": weights}, path)
    with pytest.raises(ModelError, match=r"holds 2 sets of weights[\s\S]*--key state_dict"):
        load_foreign(path)
    loaded = load_foreign(path, key="state_dict_ema")
    assert torch.equal(loaded.model.state_dict()[CLASSIFIER], weights[CLASSIFIER])
    torch.save({"net": weights}, path)
    with pytest.raises(ModelError, match=r"holds no weights[\s\S]*--key NAME"):
        load_foreign(path)
    assert load_foreign(path, key="net").spec == loaded.spec


def test_a_prefix_that_only_some_names_have_is_named(path: Path, tensors: Drawn) -> None:
    mixed = {name if name == CLASSIFIER else f"module.{name}": array for name, array in tensors.items()}
    save_fastreid(path, mixed)
    with pytest.raises(
        ModelError, match=r"names begin with module\.\n  got: without it: heads\.weight\n  expected: all"
    ):
        load_foreign(path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("backbone.conv1.bn.running_var", -1.0, r"variances below 0\n  got: backbone\.conv1\.bn\.running_var"),
        ("backbone.conv1.bn.weight", np.nan, r"not finite\n  got: backbone\.conv1\.bn\.weight"),
    ],
)
def test_values_that_no_network_can_have_are_named(
    path: Path, tensors: Drawn, name: str, value: float, message: str
) -> None:
    save_fastreid(path, {**tensors, name: np.full_like(tensors[name], value)})
    with pytest.raises(ModelError, match=message):
        load_foreign(path)


def test_what_crops_the_network_takes_is_said(path: Path, tensors: Drawn) -> None:
    save_fastreid(path, tensors)
    loaded = load_foreign(path, overrides=["input.height=128"])
    assert any(
        text.startswith("crops of 128x128 (height x width), bicubic, rgb; mean [123.675") for text in loaded.findings
    )


@pytest.mark.parametrize("override", ["input.mean=[0.5, 0.5, 0.5]", "input.std=[0.2, 0.2, 0.2]"])
def test_fractions_for_pixels_of_0_to_255_are_refused(path: Path, tensors: Drawn, override: str) -> None:
    save_fastreid(path, tensors)
    with pytest.raises(ConfigError, match=r"are fractions, and this network takes pixels of 0 to 255"):
        load_foreign(path, overrides=[override])
    loaded = load_foreign(path, overrides=[override, "input.scale=255"])
    assert loaded.input.scale == 255


def test_timms_own_checkpoint_has_to_be_named(path: Path) -> None:
    timm = import_timm()
    theirs = timm.create_model("resnetblur18", num_classes=7).eval()
    torch.save(theirs.state_dict(), path)
    loaded = load_foreign(path, architecture="timm:resnetblur18", overrides=["input.height=64", "input.width=32"])
    assert "the classifier is left out: fc.weight, fc.bias" in loaded.findings
    assert loaded.dialect == "weights of timm:resnetblur18"
    x = torch.randn(2, 3, 64, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = theirs.forward_head(theirs.forward_features(x), pre_logits=True)
        assert torch.allclose(loaded.model(x), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ModelError, match="unexpected"):
        load_foreign(path, architecture="timm:convnext_atto")
    with pytest.raises(ConfigError, match="Of a network that is named nothing is detected"):
        load_foreign(path, architecture="timm:resnetblur18", dialect="fastreid")
    weights = starting_weights(path, TimmSpec(name="resnetblur18"))
    assert torch.equal(weights["backbone.conv1.weight"], theirs.state_dict()["conv1.weight"])


def test_training_with_non_local_blocks_can_start_from_a_plain_resnet(path: Path) -> None:
    drawn = make_torchvision_resnet(default_rng(0), depth=50)
    torch.save({name: torch.from_numpy(np.asarray(array)) for name, array in drawn.items()}, path)
    backbone = ResNetSpec(depth=50, ibn="none", non_local="one")
    weights = starting_weights(path, backbone)
    assert np.array_equal(weights["backbone.layer3.5.conv2.weight"], drawn["layer3.5.conv2.weight"])
    assert not weights["backbone.NL_3.2.W.1.weight"].any()  # a fresh block adds nothing
    with pytest.raises(ModelError, match=r"bn1 holds plain batch normalisation there, and IBN-a here"):
        starting_weights(path, replace(backbone, ibn="a"))


def test_training_can_start_from_a_run_or_a_bundle(tmp_path: Path, tiny_bundle: Path) -> None:
    spec = ModelSpec(OSNetSpec(width=0.25), HeadSpec(pooling="average"))
    model = EmbeddingModel(spec)
    facts = CheckpointFacts(spec, InputSpec(64, 32), "person", Provenance())
    save_checkpoint(tmp_path / "run" / "model.safetensors", model, facts)
    weights = starting_weights(tmp_path / "run", spec.backbone)
    assert torch.equal(weights["backbone.conv1.conv.weight"], model.backbone.state_dict()["conv1.conv.weight"])
    assert "backbone.layer4.1.bn2.bias" in starting_weights(tiny_bundle, ResNetSpec())
