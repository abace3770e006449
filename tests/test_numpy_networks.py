"""The independent truth is true: its layers by hand and against torch, its checkpoints by published counts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from foreign_checkpoints import (
    make_fastreid_mgn,
    make_fastreid_resnet,
    make_torchreid_osnet,
    make_torchreid_resnet50,
    make_torchvision_resnet,
    prefixed,
    save_fastreid,
    save_torchreid,
)
from foreign_layouts import (
    ERAS,
    fastreid_mgn_layout,
    fastreid_resnet_layout,
    parameters,
    timm_resnet_d_layout,
    torchreid_osnet_layout,
    torchreid_resnet50_layout,
    torchvision_resnet_layout,
)
from numpy_layers import (
    Array,
    batch_norm,
    convolve,
    generalized_mean,
    halve,
    ibn_a,
    instance_norm,
    max_pool_3x3,
    non_local_block,
    squeeze_excite,
)
from numpy_networks import (
    Variant,
    fastreid_mgn,
    fastreid_resnet,
    parts,
    torchreid_osnet,
    torchreid_resnet50,
    torchvision_resnet,
)

SBS = {"ibn": True, "non_local": True, "pooling": "gem", "classes": 751}


def pixels(rng: np.random.Generator, height: int = 64, width: int = 32) -> Array:
    return rng.standard_normal((2, 3, height, width))


def shifted(one: Array, other: Array) -> float:
    return float(np.abs(one - other).max() / np.abs(other).max())


def doubled(tensors: Mapping[str, NDArray[Any]]) -> dict[str, Array]:
    """The tensors in the precision of the networks, so that running them many times converts them once."""
    return {name: tensor.astype(np.float64) for name, tensor in tensors.items()}


def names(layout: Any) -> list[str]:
    return [entry.name for entry in layout]


def test_a_convolution_is_its_sum() -> None:
    rng = np.random.default_rng(0)
    x, weight, bias = rng.standard_normal((1, 4, 5, 4)), rng.standard_normal((6, 2, 3, 3)), rng.standard_normal(6)
    y = convolve(x, weight, bias, stride=2, padding=1)
    assert y.shape == (1, 6, 3, 2)
    around = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    for out in range(6):
        group = around[0, 2 * (out // 3) : 2 * (out // 3) + 2]
        for row in range(3):
            for column in range(2):
                window = group[:, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
                assert y[0, out, row, column] == pytest.approx((window * weight[out]).sum() + bias[out])


@pytest.mark.parametrize(
    ("size", "stride", "padding", "groups"), [(7, 2, 3, 1), (1, 2, 0, 1), (1, 1, 0, 4), (3, 1, 1, 8)]
)
def test_a_convolution_is_torchs(size: int, stride: int, padding: int, groups: int) -> None:
    rng = np.random.default_rng(1)
    x, weight = rng.standard_normal((2, 8, 9, 6)), rng.standard_normal((16, 8 // groups, size, size))
    theirs = F.conv2d(torch.from_numpy(x), torch.from_numpy(weight), stride=stride, padding=padding, groups=groups)
    np.testing.assert_allclose(convolve(x, weight, stride=stride, padding=padding), theirs.numpy(), atol=1e-12)


@pytest.mark.parametrize("size", [(3, 4), (5, 6), (8, 7), (16, 9)])
@pytest.mark.parametrize(("padding", "ceil_mode"), [(0, True), (1, False)])
def test_max_pooling_is_torchs(size: tuple[int, int], padding: int, ceil_mode: bool) -> None:
    x = np.random.default_rng(2).standard_normal((2, 3, *size)) - 5
    theirs = F.max_pool2d(torch.from_numpy(x), 3, 2, padding, ceil_mode=ceil_mode)
    np.testing.assert_array_equal(max_pool_3x3(x, padding=padding, ceil_mode=ceil_mode), theirs.numpy())


def test_the_two_max_poolings_by_hand() -> None:
    x = np.arange(6.0).reshape(1, 1, 1, 6).repeat(6, axis=2)
    assert max_pool_3x3(x, padding=0, ceil_mode=True)[0, 0, 0].tolist() == [2, 4, 5]
    assert max_pool_3x3(x, padding=1, ceil_mode=False)[0, 0, 0].tolist() == [1, 3, 5]


def test_the_norms_are_torchs() -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((2, 6, 5, 4))
    tensors = {f"bn.{part}": rng.uniform(0.5, 2, 6) for part in ("weight", "bias", "running_mean", "running_var")}
    weight, bias, mean, variance = (torch.from_numpy(tensor) for tensor in tensors.values())
    theirs = F.batch_norm(torch.from_numpy(x), mean, variance, weight, bias)
    np.testing.assert_allclose(batch_norm(tensors, "bn", x), theirs.numpy(), atol=1e-12)
    np.testing.assert_allclose(batch_norm(tensors, "bn", x[:, :, 0, 0]), theirs.numpy()[:, :, 0, 0], atol=1e-12)
    theirs = F.instance_norm(torch.from_numpy(x), weight=weight, bias=bias)
    np.testing.assert_allclose(instance_norm(tensors, "bn", x), theirs.numpy(), atol=1e-12)


def test_ibn_norms_the_first_half_by_the_image() -> None:
    rng = np.random.default_rng(4)
    x = rng.standard_normal((2, 4, 5, 3)) * 3 + 1
    tensors = {"n.IN.weight": np.ones(2), "n.IN.bias": np.zeros(2), "n.BN.weight": np.full(2, 2.0)}
    tensors |= {"n.BN.bias": np.ones(2), "n.BN.running_mean": np.full(2, 1.0), "n.BN.running_var": np.full(2, 9.0)}
    y = ibn_a(tensors, "n", x)
    np.testing.assert_allclose(y[:, :2].mean((2, 3)), 0, atol=1e-12)
    np.testing.assert_allclose(y[:, :2].std((2, 3)), 1, rtol=1e-4)
    np.testing.assert_allclose(y[:, 2:], (x[:, 2:] - 1) / 3 * 2 + 1, atol=1e-4)


def test_a_non_local_block_by_hand() -> None:
    ones = {f"n.{part}.weight": np.ones((1, 1, 1, 1)) for part in ("g", "theta", "phi", "W.0")}
    biases = {f"n.{part}.bias": np.zeros(1) for part in ("g", "theta", "phi", "W.0")}
    norm = {"weight": np.full(1, 0.5), "bias": np.zeros(1), "running_mean": np.zeros(1)}
    norms = {f"n.W.1.{part}": tensor for part, tensor in {**norm, "running_var": np.full(1, 1 - 1e-5)}.items()}
    x = np.array([1.0, 3.0]).reshape(1, 1, 2, 1)
    # y at i is x_i times the mean over j of x_j^2, which is 5; half of it is added.
    np.testing.assert_allclose(non_local_block(ones | biases | norms, "n", x).ravel(), [1 + 2.5, 3 + 7.5])


def test_squeeze_and_excitation_by_hand() -> None:
    x = np.array([1.0, 3.0, -2.0, -2.0]).reshape(1, 2, 2, 1)
    tensors = {"se.fc.0.weight": np.array([[1.0, 0.5]]), "se.fc.2.weight": np.array([[np.log(3)], [0.0]])}
    # The means are 2 and -2, the hidden unit 1, the gates sigmoid(ln 3) = 3/4 and sigmoid(0) = 1/2.
    np.testing.assert_allclose(squeeze_excite(tensors, "se", x).ravel(), [0.75, 2.25, -1, -1])


def test_poolings_by_hand() -> None:
    x = np.array([1.0, 2.0, 3.0, -4.0]).reshape(1, 1, 2, 2)
    assert generalized_mean(x, 2.0).item() == pytest.approx((14 / 4) ** 0.5)
    assert halve(np.arange(15.0).reshape(1, 1, 3, 5)).ravel().tolist() == [3, 5]


def test_checkpoints_have_the_published_sizes() -> None:
    assert len(names(fastreid_resnet_layout(**SBS))) == 416
    assert parameters(fastreid_resnet_layout(**SBS)) == 25_078_864
    assert len(names(fastreid_resnet_layout())) == 324
    assert len(names(fastreid_resnet_layout(depth=101, **SBS))) == 834
    assert len(names(fastreid_mgn_layout())) == 728
    assert parameters(torchvision_resnet_layout(depth=18, classes=1000)) == 11_689_512
    assert parameters(torchvision_resnet_layout(depth=50, classes=1000)) == 25_557_032
    assert parameters(timm_resnet_d_layout(depth=50, classes=1000)) == 25_576_264
    # torchreid prints 2.2 million parameters for osnet_x1_0 without its classifier.
    assert parameters(torchreid_osnet_layout(width=1.0, classes=0)) == pytest.approx(2.17e6, rel=0.01)


@pytest.mark.parametrize(
    ("era", "head", "pixel_buffers", "inner"),
    [
        ("2020-08", ["bnneck.weight", "classifier.weight"], True, 1),
        ("2020-10", ["bottleneck.0.weight", "classifier.weight"], True, 256),
        ("2020-11", ["bottleneck.0.weight", "classifier.weight"], True, 256),
        ("2021-01", ["bottleneck.0.weight", "classifier.weight"], True, 1),
        ("2021-04", ["bottleneck.0.weight", "weight"], False, 1),
    ],
)
def test_each_era_names_its_tensors(era: str, head: list[str], pixel_buffers: bool, inner: int) -> None:
    shapes = {entry.name: entry.shape for entry in fastreid_resnet_layout(era=era, **SBS)}
    assert sorted(n[6:] for n in shapes if n.startswith("heads.") and n.endswith("weight")) == sorted(head)
    assert shapes["heads.pool_layer.p"] == (1,)
    assert ({"pixel_mean", "pixel_std"} <= shapes.keys()) == pixel_buffers
    assert shapes["backbone.NL_2.1.theta.weight"] == (inner, 512, 1, 1)
    assert len(shapes) == 416 + 2 * pixel_buffers


def test_an_embedding_layer_moves_the_neck() -> None:
    now = names(fastreid_resnet_layout(embedding_dim=256))
    assert [n for n in now if n.startswith("heads.") and n.endswith("weight")] == [
        "heads.weight",
        "heads.bottleneck.0.weight",
        "heads.bottleneck.1.weight",
    ]
    before = names(fastreid_resnet_layout(era="2020-08", embedding_dim=256))
    assert {"heads.bottleneck.0.weight", "heads.bottleneck.1.running_var", "heads.bnneck.running_var"} <= set(before)


def test_an_overhaul_student_carries_its_connectors_along() -> None:
    plain = set(names(fastreid_resnet_layout(depth=34)))
    shapes = {entry.name: entry.shape for entry in fastreid_resnet_layout(depth=34, teachers=(101, 18))}
    assert len(shapes.keys() - plain) == 2 * 4 * (1 + 6)
    assert next(iter(shapes)) == "margin0_1"
    assert shapes["margin0_4"] == (1, 2048, 1, 1)
    assert shapes["connectors_0.3.0.weight"] == (2048, 512, 1, 1)
    assert shapes["connectors_1.0.1.running_var"] == (64,)


def test_torchreid_names_are_in_order() -> None:
    ain = names(torchreid_osnet_layout(variant="ain"))
    assert ain[:3] == ["conv1.conv.weight", "conv1.bn.weight", "conv1.bn.bias"]
    assert "conv2.0.conv3.bn.weight" not in ain
    assert "conv3.0.conv3.bn.weight" in ain
    assert ain[-4:] == ["fc.1.running_var", "fc.1.num_batches_tracked", "classifier.weight", "classifier.bias"]
    assert "conv2.2.0.conv.weight" in names(torchreid_osnet_layout(variant="ibn"))
    assert "fc.0.weight" not in names(torchreid_resnet50_layout())
    wrapped = prefixed(make_torchreid_osnet(np.random.default_rng(0)))
    assert all(name.startswith("module.") for name in wrapped)


def test_every_option_of_a_fastreid_resnet_shows_in_its_output() -> None:
    rng = np.random.default_rng(5)
    tensors = doubled(make_fastreid_resnet(rng, era="2020-08", se=True, **SBS))
    options: dict[str, Any] = {"depth": 50, "ibn": True, "se": True, "non_local": True, "max_pool": "pad"}
    options |= {"pooling": "gem", "neck": "bnneck"}
    x = pixels(rng, 32, 16)
    truth = fastreid_resnet(tensors, x, **options)
    assert truth.shape == (2, 2048)
    assert 0.1 < truth.std() < 10
    changes = [{"se": False}, {"non_local": False}, {"max_pool": "ceil"}, {"last_stride": 2}, {"preactivation": True}]
    changes += [{"gem_p": 3.0}, {"pooling": "average"}, {"pooling": "max"}, {"pooling": "average+max"}]
    for change in [*changes, {"neck": "none"}]:
        assert shifted(fastreid_resnet(tensors, x, **{**options, **change}), truth) > 0.005, change


@pytest.mark.parametrize(("era", "neck"), [("2020-08", "bnneck"), ("2021-04", "bottleneck")])
def test_the_older_reduction_head_has_an_activation(era: str, neck: Any) -> None:
    rng = np.random.default_rng(6)
    tensors = make_fastreid_resnet(rng, depth=18, era=era, embedding_dim=16)
    x = pixels(rng)
    features = fastreid_resnet(tensors, x, depth=18, neck="none")
    reduced = features @ tensors["heads.bottleneck.0.weight"][:, :, 0, 0].T
    normed = batch_norm(tensors, "heads.bottleneck.1", reduced)
    if era == "2020-08":
        normed = batch_norm(tensors, "heads.bnneck", np.maximum(normed, 0.1 * normed))
    truth = fastreid_resnet(tensors, x, depth=18, embedding_layer=True, neck=neck)
    np.testing.assert_allclose(truth, normed, rtol=1e-10)


def test_mgn_has_eight_features_of_its_three_branches() -> None:
    rng = np.random.default_rng(7)
    tensors = doubled(make_fastreid_mgn(rng, embedding_dim=8))
    x = pixels(rng, 48, 16)
    truth = fastreid_mgn(tensors, x)
    assert truth.shape == (2, 64)
    assert 0.1 < truth.std() < 10
    order = ["b1", "b2", "b3", "b21", "b22", "b31", "b32", "b33"]
    biases = {f"{name}_head.bottleneck.1.bias": place for place, name in enumerate(order)}
    raised = fastreid_mgn(tensors | {name: tensors[name] + place for name, place in biases.items()}, x)
    np.testing.assert_allclose((raised - truth)[0].reshape(8, 8), np.arange(8)[:, None].repeat(8, 1), atol=1e-5)


def test_parts_are_cut_along_the_height() -> None:
    rows = np.arange(8.0).reshape(1, 1, 8, 1)
    assert [part.ravel().tolist() for part in parts(rows, 3)] == [[0, 1, 2], [3, 4, 5], [6, 7]]


@pytest.mark.parametrize("variant", ["plain", "ibn", "ain"])
def test_osnet_answers_after_its_last_activation(variant: Variant) -> None:
    rng = np.random.default_rng(8)
    truth = torchreid_osnet(make_torchreid_osnet(rng, variant=variant), pixels(rng), variant=variant)
    assert truth.shape == (2, 512)
    assert truth.min() == 0
    assert 0.1 < truth.std() < 10
    assert shifted(truth[:1], truth[1:]) > 0.01


def test_torchreid_resnet50_strides_with_its_head() -> None:
    rng = np.random.default_rng(9)
    tensors = make_torchreid_resnet50(rng, fc512=True)
    x = pixels(rng)
    features = torchvision_resnet(tensors, x, depth=50, last_stride=1)
    reduced = features @ tensors["fc.0.weight"].T + tensors["fc.0.bias"]
    expected = np.maximum(batch_norm(tensors, "fc.1", reduced), 0)
    np.testing.assert_allclose(torchreid_resnet50(tensors, x), expected, rtol=1e-10)
    headless = {name: tensor for name, tensor in tensors.items() if not name.startswith("fc.")}
    np.testing.assert_array_equal(torchreid_resnet50(headless, x), torchvision_resnet(headless, x, depth=50))


def test_the_last_stride_and_ibn_show_in_a_plain_resnet() -> None:
    rng = np.random.default_rng(10)
    tensors = make_torchvision_resnet(rng, depth=18, ibn=True)
    x = pixels(rng)
    truth = torchvision_resnet(tensors, x, depth=18, ibn=True)
    assert shifted(torchvision_resnet(tensors, x, depth=18, ibn=True, last_stride=1), truth) > 0.01


def test_files_hold_what_they_were_given(tmp_path: Path) -> None:
    tensors = make_torchreid_osnet(np.random.default_rng(11))
    save_fastreid(tmp_path / "a.pth", tensors, extras={"epoch": 7})
    save_torchreid(tmp_path / "b.pth", tensors)
    ours, theirs = (torch.load(tmp_path / name, weights_only=True) for name in ("a.pth", "b.pth"))
    assert list(ours) == ["model", "optimizer", "lr_sched", "warmup_sched", "epoch", "metric"]
    assert ours["epoch"] == 7
    assert list(ours["model"]) == list(theirs["state_dict"]) == list(tensors)
    assert ours["model"]["conv1.bn.num_batches_tracked"].dtype == torch.int64
    assert ours["model"]["conv1.bn.num_batches_tracked"].shape == ()
    np.testing.assert_array_equal(ours["model"]["fc.0.weight"].numpy(), tensors["fc.0.weight"])
    save_fastreid(tmp_path / "c.pth", tensors, as_numpy=True)
    arrays = torch.load(tmp_path / "c.pth", weights_only=False)["model"]
    assert all(isinstance(array, np.ndarray) for array in arrays.values())


def test_the_eras_are_the_five_of_the_table() -> None:
    assert [era.max_pool for era in ERAS.values()] == ["pad", "pad", "ceil", "ceil", "ceil"]
