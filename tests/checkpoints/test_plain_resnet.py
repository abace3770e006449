"""ImageNet ResNets of torchvision, timm and IBN-Net: as networks, and as starting weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.random import default_rng

from foreign_checkpoints import (
    Drawn,
    make_fastreid_resnet,
    make_torchreid_osnet,
    make_torchvision_resnet,
)
from numpy_networks import torchvision_resnet
from reidkit.architecture import OSNetSpec, ResNetSpec
from reidkit.checkpoints.loading import load_foreign
from reidkit.checkpoints.starting import starting_weights
from reidkit.errors import ModelError

PLAIN = ResNetSpec(depth=18, ibn="none")


def saved(path: Path, tensors: Drawn) -> Path:
    torch.save({name: torch.from_numpy(array) for name, array in tensors.items()}, path)
    return path


def without_counters(tensors: Drawn) -> Drawn:
    """As the files were that torchvision published before PyTorch 0.4.1."""
    return {name: array for name, array in tensors.items() if not name.endswith("num_batches_tracked")}


@pytest.mark.parametrize("ibn", [False, True])
def test_a_plain_resnet_is_a_network(tmp_path: Path, ibn: bool) -> None:
    tensors = make_torchvision_resnet(default_rng(0), depth=18, ibn=ibn)
    loaded = load_foreign(saved(tmp_path / "resnet18.pth", without_counters(tensors)))
    pixels = default_rng(1).standard_normal((2, 3, 64, 32))
    with torch.inference_mode():
        got = loaded.model(torch.from_numpy(pixels).float()).numpy()
    expected = torchvision_resnet(tensors, pixels, depth=18, ibn=ibn)
    assert np.abs(got - expected).max() < 1e-4 * np.abs(expected).max()
    assert loaded.spec.backbone == ResNetSpec(depth=18, ibn="a" if ibn else "none", last_stride=2, max_pool="pad")
    assert "not trained for re-identification" in loaded.assumptions[0]
    assert "no anti-aliased down-sampling: timm's resnetaa and resnetblur have the same names" in loaded.assumptions
    for key in ("input.mean", "input.std"):
        assert any(f"--set {key}=[0.5, 0.5, 0.5]" in text for text in loaded.assumptions)
    assert any("as before PyTorch 0.4.1" in finding for finding in loaded.findings)


def test_relatives_are_refused_by_name(tmp_path: Path) -> None:
    deep = {name: np.ones(1, np.float32) for name in ("conv1.0.weight", "layer1.0.conv1.weight")}
    with pytest.raises(ModelError, match=r"deep stem.*\n  got: conv1.0.weight"):
        load_foreign(saved(tmp_path / "d.pth", deep))
    blocks = [f"layer{stage}.{i}" for stage, count in enumerate((3, 4, 6, 3), 1) for i in range(count)]
    names = ["conv1.weight", *(f"{block}.conv{i}.weight" for block in blocks for i in (1, 2, 3))]
    bottlenecks = dict.fromkeys(names, np.ones(1, np.float32))
    wide = {"layer1.0.conv1.weight": np.ones((128, 64, 1, 1), np.float32)}
    for groups, name in ((1, "a wide ResNet"), (32, "a ResNeXt with 32 groups")):
        wide["layer1.0.conv2.weight"] = np.ones((128, 128 // groups, 3, 3), np.float32)
        with pytest.raises(ModelError, match=name):
            load_foreign(saved(tmp_path / "w.pth", {**bottlenecks, **wide}))
    mixed = {name: array for name, array in bottlenecks.items() if name != "layer2.1.conv3.weight"}
    with pytest.raises(ModelError, match="three in 15 of 16"):
        load_foreign(saved(tmp_path / "m.pth", mixed))


@pytest.mark.parametrize("make", [make_torchvision_resnet, make_fastreid_resnet])
def test_starting_weights_of_any_project(tmp_path: Path, make: Any) -> None:
    tensors = make(default_rng(0), depth=18)
    path = saved(tmp_path / "weights.pth", tensors)
    weights = starting_weights(path, ResNetSpec(depth=18, ibn="none", last_stride=1, max_pool="ceil"))
    prefix = "" if make is make_torchvision_resnet else "backbone."
    assert np.array_equal(weights["backbone.layer4.1.conv2.weight"], tensors[f"{prefix}layer4.1.conv2.weight"])
    assert all(name.startswith("backbone.") for name in weights)
    assert len(weights) == 120  # 20 convolutions, and 20 normalisations of five tensors


def test_starting_weights_that_do_not_fit(tmp_path: Path) -> None:
    path = saved(tmp_path / "resnet18.pth", make_torchvision_resnet(default_rng(0), depth=18))
    with pytest.raises(ModelError, match="bn1 holds plain batch normalisation there, and IBN-a here") as caught:
        starting_weights(path, ResNetSpec(depth=18, ibn="a"))
    assert "42 missing: backbone.layer1.0.* (7)" in str(caught.value)
    with pytest.raises(ModelError, match="they are a ResNet-18's, and it is a ResNet-34"):
        starting_weights(path, ResNetSpec(depth=34, ibn="none"))
    osnet = saved(tmp_path / "osnet.pth", make_torchreid_osnet(default_rng(0)))
    with pytest.raises(ModelError, match="do not fit the backbone"):
        starting_weights(osnet, PLAIN)
    assert len(starting_weights(osnet, OSNetSpec(width=0.25))) > 100
