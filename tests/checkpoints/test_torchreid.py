"""torchreid's OSNets and ResNets, against the NumPy networks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.random import default_rng

from foreign_checkpoints import Drawn, make_torchreid_osnet, make_torchreid_resnet50, prefixed, save_torchreid
from numpy_networks import torchreid_osnet, torchreid_resnet50
from reidkit.architecture import OSNetSpec, ResNetSpec
from reidkit.checkpoints import torchreid
from reidkit.checkpoints.detection import source_of
from reidkit.checkpoints.loading import Foreign, load_foreign
from reidkit.errors import ModelError


def load(tmp_path: Path, tensors: Drawn, **options: Any) -> Foreign:
    save_torchreid(tmp_path / "model.pth.tar", tensors)
    return load_foreign(tmp_path / "model.pth.tar", **options)


def check(loaded: Foreign, expected: Any, pixels: Any) -> None:
    with torch.inference_mode():
        got = loaded.model(torch.from_numpy(pixels).float()).numpy()
    assert np.abs(got - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("variant", ["plain", "ibn", "ain"])
def test_osnet(tmp_path: Path, variant: Any) -> None:
    tensors = make_torchreid_osnet(default_rng(0), variant=variant)
    loaded = load(tmp_path, prefixed(tensors))
    pixels = default_rng(1).standard_normal((2, 3, 64, 32))
    check(loaded, torchreid_osnet(tensors, pixels, variant=variant), pixels)
    assert loaded.spec.backbone == OSNetSpec(width=0.25, variant=variant)
    assert (loaded.input.height, loaded.input.width, loaded.input.resize) == (256, 128, "bilinear")
    assert (loaded.input.scale, loaded.input.mean[0]) == (255.0, 0.485)
    assert any("2 tensors of the classifier were left out" in finding for finding in loaded.findings)


@pytest.mark.parametrize("width", [0.5, 0.75, 1.0])
def test_widths_are_read_from_the_stem(width: float) -> None:
    tensors = make_torchreid_osnet(default_rng(0), width=width)
    reading = torchreid.read({name: torch.from_numpy(array) for name, array in tensors.items()})
    assert reading.spec.backbone == OSNetSpec(width=width)


@pytest.mark.parametrize("fc512", [False, True])
def test_resnet50(tmp_path: Path, fc512: bool) -> None:
    tensors = make_torchreid_resnet50(default_rng(0), fc512=fc512)
    loaded = load(tmp_path, tensors)
    pixels = default_rng(1).standard_normal((1, 3, 64, 32))
    check(loaded, torchreid_resnet50(tensors, pixels), pixels)
    assert isinstance(loaded.spec.backbone, ResNetSpec)
    assert loaded.spec.backbone.last_stride == (1 if fc512 else 2)
    assert any(f"--set backbone.last_stride={2 if fc512 else 1}" in text for text in loaded.assumptions)


def test_a_resnet_without_its_classifier_is_torchreids_when_that_is_said(tmp_path: Path) -> None:
    tensors = make_torchreid_resnet50(default_rng(0))
    headless = {name: array for name, array in tensors.items() if not name.startswith("classifier.")}
    named = {name: torch.from_numpy(array) for name, array in headless.items()}
    source, reason = source_of(named, file="x", dialect="torchreid")
    assert (source.name, reason) == ("torchreid", "a ResNet, and --dialect")
    assert source_of(named, file="x")[0].name == "torchvision, timm or IBN-Net"
    loaded = load(tmp_path, headless, dialect="torchreid")
    assert any("last stride 2, as in torchreid's ResNets" in text for text in loaded.assumptions)
    with pytest.raises(ModelError, match=r"2 unexpected: backbone.fc.\* \(2\)"):
        load(tmp_path, {**headless, "fc.weight": np.ones((5, 2048)), "fc.bias": np.ones(5)}, dialect="torchreid")


def test_mean_and_std_are_assumed_one_by_one(tmp_path: Path) -> None:
    loaded = load(tmp_path, make_torchreid_osnet(default_rng(0)), overrides=["input.mean=[0.5, 0.5, 0.5]"])
    assert [text for text in loaded.assumptions if "ImageNet" in text] == [
        "ImageNet's standard deviation, torchreid's default (otherwise: --set input.std=[0.5, 0.5, 0.5])"
    ]


def test_what_is_not_torchreids_or_not_reidkits(tmp_path: Path) -> None:
    osnet = make_torchreid_osnet(default_rng(0))
    odd = {**osnet, "conv1.conv.weight": np.ones((24, 3, 7, 7), np.float32)}
    with pytest.raises(ModelError, match=r"OSNet of an unknown width\n  got: 24 channels"):
        load(tmp_path, odd)
    with pytest.raises(ModelError, match=r"another head than torchreid's networks\n  got: fc.0, fc.1, fc.3"):
        load(tmp_path, {**osnet, "fc.3.weight": np.ones((4, 512), np.float32)})
    resnet = {"conv1.weight": np.ones((64, 3, 7, 7), np.float32), "layer1.0.conv1.weight": np.ones(1, np.float32)}
    with pytest.raises(ModelError, match="resnet50mid"):
        load(tmp_path, {**resnet, "classifier.weight": np.ones(1), "fc_fusion.0.weight": np.ones(1, np.float32)})
    hacnn = {"conv.conv.weight": np.ones(1), "inception1.stream1.0.conv.weight": np.ones(1), "ha1.x": np.ones(1)}
    with pytest.raises(ModelError, match=r"Cannot tell what network .* holds\n  got: conv.conv.weight, inception1"):
        load(tmp_path, hacnn)
    with pytest.raises(ModelError, match="takes no config"):
        load(tmp_path, osnet, config=tmp_path / "config.yaml")
    with pytest.raises(ModelError, match="is not of the dialect fastreid"):
        load(tmp_path, osnet, dialect="fastreid")
