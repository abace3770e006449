"""fast-reid's checkpoints of every time, against the NumPy networks; and everything that must be refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.random import default_rng

from foreign_checkpoints import Drawn, make_fastreid_mgn, make_fastreid_resnet, prefixed, save_fastreid
from foreign_layouts import ERAS
from numpy_networks import fastreid_mgn, fastreid_resnet
from reidkit.architecture import ResNetSpec
from reidkit.checkpoints import fastreid
from reidkit.checkpoints.loading import Foreign, load_foreign
from reidkit.checkpoints.reading import Reading
from reidkit.checkpoints.starting import starting_weights
from reidkit.errors import ConfigError, ModelError
from reidkit.types import Task

SPANS = {
    "2020-08": "fastreid-2020",
    "2020-10": "fastreid-2020-09",
    "2020-11": "fastreid-2020-11",
    "2021-01": "fastreid-2020-12",
    "2021-04": "fastreid-2021-03",
}


def drawn(**options: Any) -> Drawn:
    return make_fastreid_resnet(default_rng(0), **{"depth": 18, **options})


@pytest.fixture(scope="module")
def plain() -> Drawn:
    return drawn()


def read(tensors: Drawn, dialect: str | None = None, config: Path | None = None, task: Task = "person") -> Reading:
    named = {n: torch.from_numpy(a) for n, a in tensors.items()}
    return fastreid.read(named, dialect=dialect, config=config, task=task)


def load(tmp_path: Path, tensors: Drawn, **options: Any) -> Foreign:
    save_fastreid(tmp_path / "model.pth", tensors)
    return load_foreign(tmp_path / "model.pth", **options)


def check(loaded: Foreign, truth: Any, tensors: Drawn, **options: Any) -> None:
    """Our output is the NumPy network's."""
    pixels = default_rng(1).standard_normal((2, 3, 96 if loaded.spec.branches == "mgn" else 48, 32))
    with torch.inference_mode():
        got = loaded.model(torch.from_numpy(pixels).float()).numpy()
    expected = truth(tensors, pixels, **options)
    assert np.abs(got - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("era", SPANS)
def test_every_era_gives_what_the_straight_line_network_gives(tmp_path: Path, era: str) -> None:
    tensors = drawn(era=era, depth=18, ibn=True, classes=3)
    dialect = SPANS[era]
    loaded = load(tmp_path, tensors, dialect=dialect)
    pool, neck = ERAS[era].max_pool, ERAS[era].neck
    check(loaded, fastreid_resnet, tensors, depth=18, ibn=True, max_pool=pool, neck=neck)
    assert loaded.dialect == dialect
    assert loaded.extras["epoch"] == 119
    assert loaded.input.mean == (123.675, 116.28, 103.53)  # shortest decimals, not float32's 123.67500305
    assert (loaded.input.scale, loaded.input.resize) == (1.0, "bicubic")


@pytest.mark.parametrize("era", SPANS)
def test_every_era_is_detected_from_its_keys(era: str) -> None:
    reading = read(drawn(era=era, depth=50, non_local=True, pooling="gem", classes=3))
    backbone = reading.spec.backbone
    assert isinstance(backbone, ResNetSpec)
    assert backbone.non_local == ("half" if era in ("2020-10", "2020-11") else "one")
    # September and November 2020 have the same keys; the later one, with ceil, is assumed and said.
    assert backbone.max_pool == ("pad" if era == "2020-08" else "ceil")
    assert SPANS[era] in reading.dialect.split(" or ")
    assert len(reading.dialect.split(" or ")) == (2 if era in ("2020-10", "2020-11") else 1)
    assert "backbone.max_pool" in {a.key for a in reading.assumptions}


def test_the_sbs_of_today_whole(tmp_path: Path) -> None:
    tensors = drawn(depth=50, ibn=True, non_local=True, pooling="gem", classes=3)
    loaded = load(tmp_path, prefixed(tensors))
    check(loaded, fastreid_resnet, tensors, depth=50, ibn=True, non_local=True, pooling="gem")
    assert (loaded.input.height, loaded.input.width) == (384, 128)
    text = "\n".join([*loaded.findings, *loaded.assumptions])
    assert "heads.weight: since 2021-03" in text
    assert "learned exponent, from heads.pool_layer.p" in text
    assert "384 x 128, as in SBS (otherwise: --set input.height=256)" in text
    assert "prefix 'module.'" in text


def test_squeeze_excitation_and_embedding_layer(tmp_path: Path) -> None:
    tensors = drawn(depth=18, se=True, embedding_dim=16, classes=3)
    loaded = load(tmp_path, tensors)
    check(loaded, fastreid_resnet, tensors, depth=18, se=True, embedding_layer=True)
    assert loaded.spec.head.embedding_dim == 16


def test_mgn(tmp_path: Path) -> None:
    tensors = make_fastreid_mgn(default_rng(0), classes=2)
    loaded = load(tmp_path, tensors)
    check(loaded, fastreid_mgn, tensors)
    assert loaded.dialect == "fastreid-mgn, fastreid-2021-03"
    with pytest.raises(ModelError, match="fit no single backbone"):
        starting_weights(tmp_path / "model.pth", ResNetSpec(depth=50))
    with pytest.raises(ModelError, match="an MGN and is offered as fastreid\n"):
        read(tensors, "fastreid")
    del tensors["b33_head.weight"]
    headless = {name: a for name, a in tensors.items() if not name.startswith(("b31_head.", "b22_head."))}
    with pytest.raises(ModelError, match=r"got: 6 heads: b22_head, b31_head missing"):
        read(headless)
    with pytest.raises(ModelError, match=r"b1_head\.\* and b33_head\.\* are built differently"):
        read(tensors)
    with pytest.raises(ModelError, match=r"reduction layers end in a ReLU"):
        read({**tensors, "b1_pool.1.weight": np.ones((256, 2048, 1, 1), np.float32)})


def test_distilled(tmp_path: Path) -> None:
    tensors = drawn(teachers=(34,), pooling="gem", classes=3)
    loaded = load(tmp_path, tensors)
    check(loaded, fastreid_resnet, tensors, depth=18, preactivation=True, pooling="gem")
    assert isinstance(loaded.spec.backbone, ResNetSpec)
    # Where the ReLUs stand changes nothing behind the last of them, so the numbers alone would not show it.
    assert loaded.spec.backbone.preactivation
    assert loaded.spec.backbone.non_local == "none"
    assert loaded.dialect == "fastreid-distilled, fastreid-2021-03"
    assert loaded.input.height == 256
    assert any("28 tensors that only a distiller needs were left out" in finding for finding in loaded.findings)


def test_a_distilled_checkpoint_offered_as_plain_is_refused(tmp_path: Path, plain: Drawn) -> None:
    tensors = drawn(teachers=(18,), classes=3)
    with pytest.raises(ModelError, match=r"distilled network and is offered as fastreid\n.*margin0_1.*28 tensors"):
        read(tensors, "fastreid")
    with pytest.raises(ModelError, match=r"is not what --set backbone.preactivation says"):
        load(tmp_path, tensors, overrides=["backbone.preactivation=false"])
    config = tmp_path / "config.yaml"
    config.write_text("MODEL: {META_ARCHITECTURE: Distiller, BACKBONE: {NAME: build_resnet_backbone}}")
    with pytest.raises(ModelError, match="distilled checkpoint comes with the config of a plain network"):
        read(tensors, config=config)
    config.write_text("MODEL: {BACKBONE: {NAME: build_resnet_backbone_distill}}")
    with pytest.raises(ModelError, match=r"offered as fastreid\n.*build_resnet_backbone_distill in"):
        read(plain, "fastreid", config)
    for reading in (read(plain, config=config), read(plain, "fastreid-distilled")):
        assert reading.dialect == "fastreid-distilled, fastreid-2021-03"
        assert isinstance(reading.spec.backbone, ResNetSpec)
        assert reading.spec.backbone.preactivation


def test_a_distilled_network_does_not_run_its_non_local_blocks(tmp_path: Path) -> None:
    tensors = drawn(era="2021-01", depth=50, non_local=True, pooling="gem", classes=2)
    loaded = load(tmp_path, tensors, dialect="fastreid-distilled")
    check(loaded, fastreid_resnet, tensors, depth=50, preactivation=True, pooling="gem")
    assert isinstance(loaded.spec.backbone, ResNetSpec)
    assert (loaded.spec.backbone.preactivation, loaded.spec.backbone.non_local) == (True, "none")
    # Five blocks: eight weights and biases, and a batch normalisation of five tensors.
    assert sum(name.startswith("backbone.NL_") for name in tensors) == 65
    assert any(finding.startswith("65 tensors of non-local blocks") for finding in loaded.findings)
    assert loaded.dialect == "fastreid-distilled, fastreid-2020-12"
    config = tmp_path / "config.yaml"
    config.write_text("MODEL: {BACKBONE: {NAME: build_resnet_backbone_distill, WITH_NL: true}}")
    assert read(tensors, config=config).spec.backbone == loaded.spec.backbone


def test_the_wrong_era_is_refused_and_names_the_keys(plain: Drawn) -> None:
    with pytest.raises(
        ModelError, match=r"not of the dialect fastreid-2020 \(until 2020-09-10\)\n.*heads.weight: since"
    ):
        read(plain, "fastreid-2020")
    with pytest.raises(ConfigError, match="Unknown dialect 'fastreid-2019'"):
        load_foreign_of_nothing("fastreid-2019")


def load_foreign_of_nothing(dialect: str) -> None:
    from reidkit.checkpoints.detection import source_of

    source_of({}, file="x", dialect=dialect)


def test_a_crossed_dialect_is_refused_until_the_max_pooling_is_said(tmp_path: Path) -> None:
    tensors = drawn(era="2020-08", classes=3)
    tensors["heads.weight"] = tensors.pop("heads.classifier.weight")
    with pytest.raises(ModelError, match="keys are of different times") as caught:
        load(tmp_path, tensors)
    for line in ("heads.bnneck.*: until 2020-09-10", "heads.weight: since 2021-03", "--set backbone.max_pool=ceil"):
        assert line in str(caught.value)
    loaded = load(tmp_path, tensors, overrides=["backbone.max_pool=pad"])
    check(loaded, fastreid_resnet, tensors, depth=18, max_pool="pad", neck="bnneck")
    assert loaded.dialect == "fastreid-crossed"
    assert any("crossed dialect" in finding for finding in loaded.findings)


def test_two_names_for_one_thing_are_refused(plain: Drawn) -> None:
    with pytest.raises(ModelError, match=r"heads.classifier.weight and heads.weight"):
        read({**plain, "heads.classifier.weight": plain["heads.weight"]})
    bnneck = {n.replace("bottleneck.0", "bnneck"): a for n, a in plain.items() if "bottleneck.0" in n}
    with pytest.raises(ModelError, match=r"heads.bnneck.\* and heads.bottleneck.0.\*"):
        read({**plain, **bnneck})
    old = drawn(era="2020-08", classes=3)
    for order in (1, -1):  # whichever comes last
        tensors = dict([*old.items(), ("heads.bottleneck.0.running_mean", np.ones(512, np.float32))][::order])
        with pytest.raises(
            ModelError, match=r"Two tensors of the file are one weight.*\n.*\n  expected: one of them"
        ) as caught:
            read(tensors)
        for name in ("heads.bnneck.running_mean", "heads.bottleneck.0.running_mean"):
            assert name in str(caught.value)


def test_the_old_reduction_head_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match=r"ReductionHead, a LeakyReLU between"):
        read(drawn(era="2020-08", embedding_dim=16))


def test_a_missing_neck_is_refused_until_somebody_says_so(tmp_path: Path) -> None:
    tensors = drawn(with_bnneck=False, classes=3)
    with pytest.raises(ModelError, match=r"no BNneck \(heads.bottleneck.0.\*\).*say --set head.neck=false"):
        load(tmp_path, tensors)
    check(load(tmp_path, tensors, overrides=["head.neck=false"]), fastreid_resnet, tensors, depth=18, neck="none")
    with pytest.raises(ModelError, match=r"5 missing: heads.bottleneck.0.\* \(5\)"):
        load(tmp_path, tensors, overrides=["head.neck=true"])
    config = tmp_path / "config.yaml"
    config.write_text("MODEL: {HEADS: {NAME: EmbeddingHead}}")
    assert "head.neck" in read(tensors, config=config).undecided
    config.write_text("MODEL: {HEADS: {WITH_BNNECK: false}}")
    check(load(tmp_path, tensors, config=config), fastreid_resnet, tensors, depth=18, neck="none")
    with pytest.raises(ModelError, match=r"no BNneck \(heads.bottleneck.1.\*\)"):
        load(tmp_path, drawn(embedding_dim=16, with_bnneck=False, classes=3))


def test_an_embedding_layer_with_a_bias_is_no_fast_reids() -> None:
    tensors = drawn(embedding_dim=16, classes=3)
    bias = {"heads.bottleneck.0.bias": np.ones(16, np.float32)}
    with pytest.raises(
        ModelError, match=r"no fast-reid.*\n  got: heads.bottleneck.0.bias\n(.*\n)*.*with its JSON beside"
    ):
        read({**tensors, **bias})


def test_buffers_are_the_normalisation_and_must_be_usable() -> None:
    tensors = drawn(era="2021-01", classes=3)
    tensors["pixel_mean"] = np.full((1, 3, 1, 1), 127.5, np.float32)
    assert read(tensors).input.mean == (127.5, 127.5, 127.5)
    tensors["pixel_std"] = np.zeros((1, 3, 1, 1), np.float32)
    with pytest.raises(ModelError, match="pixel_std cannot be used"):
        read(tensors)


def test_the_default_normalisation_is_two_assumptions(tmp_path: Path, plain: Drawn) -> None:
    keys = {a.key for a in read(plain).assumptions}
    assert {"input.mean", "input.std"} <= keys
    loaded = load(tmp_path, plain, overrides=["input.mean=[127.5, 127.5, 127.5]"])
    assert loaded.input.std == (58.395, 57.12, 57.375)
    assert [text for text in loaded.assumptions if "ImageNet" in text] == [
        "ImageNet's standard deviation, fast-reid's default (otherwise: --set input.std=[127.5, 127.5, 127.5])"
    ]


def test_recipes_for_vehicles(tmp_path: Path) -> None:
    learned = read(drawn(pooling="gem", classes=2), task="vehicle")
    assert (learned.input.height, learned.input.width) == (256, 256)
    assert any("256 x 256, as in VeRi, VehicleID and VERI-Wild" in str(a) for a in learned.assumptions)
    fixed = read(drawn(classes=2), task="vehicle")
    assert (fixed.spec.head.pooling, fixed.spec.head.gem_learned) == ("gem", False)
    config = tmp_path / "config.yaml"
    config.write_text("MODEL: {HEADS: {POOL_LAYER: avgpool}}\nINPUT: {SIZE_TEST: [320, 320]}")
    said = read(drawn(classes=2), config=config, task="vehicle")
    assert (said.spec.head.pooling, said.input.height, said.input.width) == ("average", 320, 320)


def test_recipes_without_a_config() -> None:
    agw = read(drawn(depth=50, non_local=True, classes=2))
    assert (agw.spec.head.pooling, agw.spec.head.gem_learned, agw.input.height) == ("gem", False, 256)
    plain = read(drawn(classes=2))
    assert (plain.spec.head.pooling, plain.input.height) == ("average", 256)
    old = read(drawn(era="2020-08", depth=50, non_local=True, classes=2))
    assert "head.pooling" in old.undecided  # AGW's exponent was learned then


def test_overrides_take_the_place_of_assumptions(tmp_path: Path, plain: Drawn) -> None:
    overrides = ["backbone.max_pool=pad", "head.pooling=max", "backbone.last_stride=2", "input.height=384"]
    loaded = load(tmp_path, plain, overrides=overrides)
    check(loaded, fastreid_resnet, plain, depth=18, max_pool="pad", pooling="max", last_stride=2)
    assert loaded.input.height == 384
    left = {text.partition("otherwise: --set ")[2].partition("=")[0] for text in loaded.assumptions}
    assert {key for key in left if key} == {"input.mean", "input.std"}
    with pytest.raises(ModelError, match=r"do not fit the network\n  got: \d+ missing: backbone"):
        load(tmp_path, plain, overrides=["backbone.ibn=a"])
    with pytest.raises(ConfigError, match="max_poll"):
        load(tmp_path, plain, overrides=["backbone.max_poll=pad"])


def test_damaged_networks_are_refused_with_their_cause(plain: Drawn) -> None:
    halved = drawn(ibn=True)
    cases: list[tuple[Drawn, str]] = [
        (
            {**plain, "backbone.layer5.0.conv1.weight": np.ones((2, 2, 3, 3), np.float32)},
            "a stage more than a ResNet: layer5",
        ),
        (
            {n: a for n, a in plain.items() if ".layer3.1." not in n},
            r"make up no ResNet\n  got: \[2, 2, 1, 2\] basic blocks",
        ),
        ({n: a for n, a in plain.items() if ".layer3.0." not in n}, r"all of layer3\n  got: the blocks \[1\]"),
        (
            {**halved, "backbone.layer2.1.bn1.IN.weight": np.ones(48, np.float32)},
            r"halve the channels of layer2.1\n  got: 48 of instance",
        ),
        (
            {n: a for n, a in halved.items() if not n.startswith("backbone.layer2.1.bn1.IN")},
            r"IBN-a as any known network has it\n  got: not in layer2.1",
        ),
        (
            {**plain, "heads.pool_layer.p": np.ones(2, np.float32)},
            r"heads.pool_layer.p is no exponent of GeM\n  got: 2 values",
        ),
        (
            {**plain, "heads.weight": np.ones((0, 512), np.float32)},
            r"heads.weight cannot be a classifier.*\n  got: 0 values",
        ),
        ({**plain, "heads.weight": np.ones((2, 500), np.float32)}, r"got: 1000 values\n  expected: a multiple of 512"),
        ({**plain, "backbone.cls_token": np.ones((1, 1, 8), np.float32)}, "backbone is a vision transformer"),
        (drawn(era="2020-08", se=True), "put squeeze and excitation into the weights"),
    ]
    for tensors, message in cases:
        with pytest.raises(ModelError, match=message):
            read(tensors)


def test_non_local_blocks_of_an_unknown_kind_are_refused() -> None:
    tensors = drawn(depth=50, non_local=True, classes=2)
    name = "backbone.NL_3.1.g.weight"
    with pytest.raises(ModelError, match=r"NL_3.1 has an inner width.*\n  got: 7 channels\n  expected: 1 or 512"):
        read({**tensors, name: np.ones((7, 1024, 1, 1), np.float32)})
    with pytest.raises(ModelError, match=r"not those of a ResNet-50\n  got: \[0, 2, 2, 0\]"):
        read({n: a for n, a in tensors.items() if ".NL_3.2." not in n})
    with pytest.raises(ModelError, match="differ in their inner width"):
        read({**tensors, name: np.ones((512, 1024, 1, 1), np.float32)})
