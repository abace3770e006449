"""fast-reid's config.yaml: read safely, believed where no tensor says otherwise, refused where one does."""

from pathlib import Path
from typing import Any

import pytest
import torch
from numpy.random import default_rng

from foreign_checkpoints import Drawn, make_fastreid_resnet, make_torchreid_osnet, save_fastreid
from reidkit.architecture import ResNetSpec
from reidkit.checkpoints import fastreid
from reidkit.checkpoints.fastreid_config import read_config
from reidkit.checkpoints.loading import load_foreign
from reidkit.checkpoints.reading import Reading
from reidkit.errors import ConfigError, ModelError

DUMPED = """
MODEL:
  META_ARCHITECTURE: Baseline
  BACKBONE: {NAME: build_resnet_backbone, DEPTH: 18x, LAST_STRIDE: 2, NORM: syncBN, WITH_IBN: false, WITH_NL: true}
  HEADS: {NAME: EmbeddingHead, EMBEDDING_DIM: 0, WITH_BNNECK: true, POOL_LAYER: GeneralizedMeanPooling, NORM: BN}
  LOSSES: {NAME: !!python/tuple [CrossEntropyLoss, TripletLoss]}
  PIXEL_MEAN: [127.5, 127.5, 127.5]
  PIXEL_STD: [127.5, 127.5, 127.5]
INPUT: {SIZE_TEST: [320, 160]}
"""


def written(folder: Path, text: str, name: str = "config.yaml") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def read(config: Path, **options: Any) -> Reading:
    drawn = make_fastreid_resnet(default_rng(0), **{"depth": 18, "classes": 2, **options})
    return fastreid.read({name: torch.from_numpy(array) for name, array in drawn.items()}, config=config)


def test_what_no_tensor_shows_is_taken_from_the_config(tmp_path: Path) -> None:
    reading = read(written(tmp_path, DUMPED))
    assert isinstance(reading.spec.backbone, ResNetSpec)
    assert reading.spec.backbone.last_stride == 2
    assert reading.spec.backbone.non_local == "none"  # a ResNet-18 has none, whatever WITH_NL says
    assert (reading.spec.head.pooling, reading.spec.head.gem_learned) == ("gem", False)
    assert (reading.input.height, reading.input.width) == (320, 160)
    assert reading.input.mean == reading.input.std == (127.5, 127.5, 127.5)
    assert [a.key for a in reading.assumptions] == ["backbone.max_pool"]


def test_missing_keys_have_fast_reids_defaults_and_each_is_said(tmp_path: Path) -> None:
    reading = read(written(tmp_path, "MODEL: {}"))
    assert isinstance(reading.spec.backbone, ResNetSpec)
    assert reading.spec.backbone.last_stride == 1
    assert reading.spec.head.pooling == "average"
    assert (reading.input.height, reading.input.width) == (256, 128)
    defaults = {a.key for a in reading.assumptions if "fast-reid's default, as the config does not say" in a.text}
    assert defaults == {"head.pooling", "backbone.last_stride", "input.height", "input.mean", "input.std"}
    one = read(written(tmp_path, "MODEL: {PIXEL_MEAN: [127.5, 127.5, 127.5]}"))
    assert "input.std" in {a.key for a in one.assumptions}
    assert "input.mean" not in {a.key for a in one.assumptions}
    with pytest.raises(ConfigError, match="The last stride cannot be this"):
        read(written(tmp_path, "MODEL: {BACKBONE: {LAST_STRIDE: 0}}"))


def test_a_config_that_says_nothing_decides_nothing(tmp_path: Path) -> None:
    old = {"era": "2020-08", "depth": 50, "non_local": True}
    assert "head.pooling" in read(written(tmp_path, "MODEL: {}"), **old).undecided
    said = read(written(tmp_path, "MODEL: {HEADS: {POOL_LAYER: avgpool}}"), **old)
    assert (said.spec.head.pooling, dict(said.undecided)) == ("average", {})


def test_the_old_gempool_was_learned(tmp_path: Path) -> None:
    config = written(tmp_path, "MODEL: {HEADS: {POOL_LAYER: gempool}}")
    old = make_fastreid_resnet(default_rng(0), era="2020-08", depth=18, classes=2)
    save_fastreid(tmp_path / "old.pth", old)
    with pytest.raises(ModelError, match=r"1 missing: heads.pool_layer.p"):
        load_foreign(tmp_path / "old.pth", config=config)
    assert not read(config, era="2021-01").spec.head.gem_learned


@pytest.mark.parametrize(
    ("name", "pooling", "learned"),
    [
        ("avgpool", "average", False),
        ("fastavgpool", "average", False),
        ("GlobalAvgPool", "average", False),
        ("maxpool", "max", False),
        ("GlobalMaxPool", "max", False),
        ("avgmaxpool", "average+max", False),
        ("AdaptiveAvgMaxPool", "average+max", False),
        ("gempool", "gem", False),
        ("GeneralizedMeanPooling", "gem", False),
        ("gempoolP", "gem", True),
    ],
)
def test_poolings_of_all_times(tmp_path: Path, name: str, pooling: str, learned: bool) -> None:
    head = read(written(tmp_path, f"MODEL: {{HEADS: {{POOL_LAYER: {name}}}}}")).spec.head
    assert (head.pooling, head.gem_learned) == (pooling, learned)


def test_a_learned_exponent_in_the_file_wins(tmp_path: Path) -> None:
    config = written(tmp_path, "MODEL: {HEADS: {POOL_LAYER: avgpool}}")
    reading = read(config, pooling="gem")
    assert (reading.spec.head.pooling, reading.spec.head.gem_learned) == ("gem", True)
    assert any("config's avgpool is not what the file holds" in finding for finding in reading.findings)
    # The gempool of before September 2020 was learned.
    assert read(written(tmp_path, "MODEL: {HEADS: {POOL_LAYER: gempool}}"), pooling="gem").spec.head.gem_learned


def test_buffers_in_the_file_win(tmp_path: Path) -> None:
    reading = read(written(tmp_path, DUMPED), era="2021-01")
    assert reading.input.mean == (123.675, 116.28, 103.53)
    assert any("config's mean (127.5, 127.5, 127.5)" in finding for finding in reading.findings)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("BACKBONE: {DEPTH: 50x}", "wrong depth\n  got: depth: 50x in the config, 18x in the file"),
        ("BACKBONE: {DEPTH: 50}", "wrong depth"),
        ("BACKBONE: {WITH_IBN: true}", "wrong WITH_IBN\n  got: WITH_IBN: True in the config, False in the file"),
        ("BACKBONE: {WITH_SE: true}", "wrong WITH_SE"),
        ("HEADS: {EMBEDDING_DIM: 256}", "wrong EMBEDDING_DIM\n  got: EMBEDDING_DIM: 256 in the config, 0 in the file"),
        ("HEADS: {WITH_BNNECK: false}", "wrong WITH_BNNECK"),
        (
            "BACKBONE: {NAME: build_osnet_backbone, DEPTH: x1_0}",
            r"wrong BACKBONE.NAME\n  got: BACKBONE.NAME: build_osnet_backbone in the config, a ResNet in the file",
        ),
        ("META_ARCHITECTURE: MGN", "config and the checkpoint are of different networks"),
    ],
)
def test_a_config_of_another_network_is_refused(tmp_path: Path, entry: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read(written(tmp_path, f"MODEL: {{{entry}}}"))


def test_an_osnet_with_the_config_of_a_resnet_is_refused(tmp_path: Path) -> None:
    osnet: Drawn = {f"backbone.{n}": a for n, a in make_torchreid_osnet(default_rng(0)).items() if n[:2] != "fc"}
    config = written(tmp_path, "MODEL: {BACKBONE: {NAME: build_resnet_backbone}}")
    with pytest.raises(ModelError, match=r"wrong BACKBONE.NAME\n.*an OSNet in the file"):
        fastreid.read({name: torch.from_numpy(array) for name, array in osnet.items()}, config=config)


def test_a_cropless_config_is_fine(tmp_path: Path) -> None:
    assert read_config(written(tmp_path, "MODEL: {}\nINPUT: {CROP: {ENABLED: false}}")).size is None


def test_a_non_local_network_with_a_config_without(tmp_path: Path) -> None:
    config = written(tmp_path, "MODEL: {BACKBONE: {WITH_NL: false}}")
    with pytest.raises(ModelError, match="wrong WITH_NL"):
        read(config, depth=50, non_local=True)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("META_ARCHITECTURE: MoCo", r"MODEL.META_ARCHITECTURE\n  got: MoCo"),
        ("BACKBONE: {NAME: build_vit_backbone}", r"MODEL.BACKBONE.NAME\n  got: build_vit_backbone"),
        ("BACKBONE: {NORM: GN}", r"MODEL.BACKBONE.NORM\n  got: GN"),
        ("HEADS: {NORM: IN}", r"MODEL.HEADS.NORM\n  got: IN"),
        ("HEADS: {NAME: AttrHead}", r"MODEL.HEADS.NAME\n  got: AttrHead"),
        ("HEADS: {POOL_LAYER: ClipGlobalAvgPool}", r"MODEL.HEADS.POOL_LAYER\n  got: ClipGlobalAvgPool"),
        ("HEADS: {POOL_LAYER: gempol}", "did you mean 'gempool'"),
        ("BACKBONE: {LAST_STRIDE: '1'}", "MODEL.BACKBONE.LAST_STRIDE has the wrong type"),
        ("BACKBONE: 3", "MODEL.BACKBONE.NAME cannot be there"),
        ("PIXEL_MEAN: [1, 2]", "MODEL.PIXEL_MEAN cannot be this"),
    ],
)
def test_what_reidkit_has_not_is_refused_by_name(tmp_path: Path, entry: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_config(written(tmp_path, f"MODEL: {{{entry}}}"))


def test_base_is_followed_and_overridden(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    written(tmp_path, "MODEL: {BACKBONE: {DEPTH: 50x, WITH_IBN: true}, HEADS: {POOL_LAYER: maxpool}}", "Base.yml")
    written(tmp_path, "_BASE_: ../Base.yml\nINPUT: {SIZE_TEST: '(384, 128)'}", "below/Middle.yml")
    config = read_config(written(tmp_path, "_BASE_: Middle.yml\nMODEL: {BACKBONE: {DEPTH: 101x}}", "below/top.yml"))
    assert (config.depth, config.ibn, config.pooling, config.size) == ("101x", True, "maxpool", (384, 128))


def test_base_that_goes_round_or_nowhere(tmp_path: Path) -> None:
    written(tmp_path, "_BASE_: b.yml", "a.yml")
    written(tmp_path, "_BASE_: a.yml", "b.yml")
    with pytest.raises(ConfigError, match=r"builds on itself through _BASE_\n  got: a.yml > b.yml > a.yml"):
        read_config(tmp_path / "a.yml")
    with pytest.raises(ConfigError, match=r"No such file: .*gone.yml, which .*c.yml builds on"):
        read_config(written(tmp_path, "_BASE_: gone.yml", "c.yml"))


def test_code_in_a_config_is_refused_and_not_run(tmp_path: Path) -> None:
    proof = tmp_path / "ran"
    text = f"MODEL: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{proof}']]"
    with pytest.raises(ConfigError, match=r"more than plain values\n  got: .*python/object/apply:pathlib.Path.touch"):
        read_config(written(tmp_path, text))
    assert not proof.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "cannot be read as YAML"),
        ("- 1", "is no config of fast-reid"),
        (
            "OUTPUT_DIR: x\nSOLVER: {}",
            r"is no config of fast-reid: it says nothing of a MODEL\n  got: OUTPUT_DIR, SOLVER",
        ),
        ("MODEL:", "it says nothing of a MODEL"),
        ("MODEL: {}\nINPUT: {CROP: {ENABLED: true, SIZE: [224, 224]}}", "got: INPUT.CROP.ENABLED true"),
    ],
)
def test_other_files(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_config(written(tmp_path, text))
