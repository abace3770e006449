"""A network placed for embedding: which numbers are rounded, which are not, and what stays as the process set it."""

import numpy as np
import pytest
import torch
from torch import nn

from reidkit.architecture import ModelSpec, OSNetSpec, ResNetSpec
from reidkit.models.deployed import PlacedModel, _float32_products, open_device, precisions
from reidkit.models.model import DeployedModel, EmbeddingModel
from reidkit.types import InputSpec

CPU = torch.device("cpu")
SIZE = InputSpec(64, 32)  # at 32 x 16 oneDNN's convolutions in bfloat16 with AMX read what nobody wrote
CROPS = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 64, 32, 3), dtype=np.uint8))


def deployed(spec=None):
    torch.manual_seed(0)
    network = EmbeddingModel(spec or ModelSpec(backbone=OSNetSpec(width=0.25))).eval()
    return DeployedModel(network, SIZE).eval()


@pytest.mark.parametrize(("precision", "cosine"), [("float32", 1 - 1e-6), ("float16", 0.99999), ("bfloat16", 0.9995)])
@pytest.mark.parametrize(
    "spec", [ModelSpec(backbone=OSNetSpec(width=0.25)), ModelSpec(backbone=ResNetSpec(depth=18, ibn="b", se=True))]
)
def test_a_placed_network_gives_what_the_network_gives(spec, precision, cosine):
    model = deployed(spec)
    with torch.inference_mode():
        expected = model(CROPS)
        got = PlacedModel(model, CPU, precision)(CROPS)
    assert got.dtype == torch.float32
    assert nn.functional.cosine_similarity(got, expected).min() >= cosine
    assert torch.equal(got, expected) == (precision == "float32")


def test_what_is_rounded_and_what_is_not():
    placed = PlacedModel(deployed(ModelSpec(backbone=ResNetSpec(ibn="a", se=True))), CPU, "float16")
    kinds = {}
    for name, module in placed.named_modules():
        for parameter in module.parameters(recurse=False):
            where = "head" if ".heads." in f".{name}." else type(module).__name__
            kinds.setdefault(where, set()).add(parameter.dtype)
    low = {"Conv2d", "Linear"}
    assert kinds == {
        name: {torch.float16 if name in low else torch.float32}
        for name in (*low, "BatchNorm2d", "InstanceNorm2d", "head")
    }


def test_instance_statistics_and_gem_see_float32(monkeypatch):
    seen = []
    for kind in (nn.InstanceNorm2d, nn.BatchNorm2d):
        forward = kind.forward
        monkeypatch.setattr(
            kind, "forward", lambda self, x, f=forward: seen.append((type(self).__name__, x.dtype)) or f(self, x)
        )
    placed = PlacedModel(deployed(ModelSpec(backbone=ResNetSpec(ibn="a"))), CPU, "bfloat16")
    with torch.inference_mode():
        placed(CROPS)
    assert {dtype for name, dtype in seen if name == "InstanceNorm2d"} == {torch.float32}
    assert {dtype for name, dtype in seen[:-1] if name == "BatchNorm2d"} == {torch.bfloat16}
    assert seen[-1] == ("BatchNorm2d", torch.float32)  # the neck


def test_large_maps_do_not_overflow_where_they_are_pooled():
    model = deployed(ModelSpec(backbone=ResNetSpec(ibn="none")))
    model.model.backbone = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 512, 1))
    with torch.no_grad():
        for parameter in model.model.backbone.parameters():
            parameter.fill_(30.0)  # maps of about 90, whose third power is beyond float16
    with torch.inference_mode():
        expected = model(CROPS)
        got = PlacedModel(model, CPU, "float16")(CROPS)
    np.testing.assert_allclose(got, expected, rtol=5e-3)


def test_precisions_of_devices():
    assert precisions(open_device("cpu")) == ("float32", "float16", "bfloat16")
    assert precisions(torch.device("cuda", 1)) == ("float32", "tf32", "float16", "bfloat16")


def flags():
    return (
        *(torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision),
        *(torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32),
    )


def by_the_older_name():
    torch.set_float32_matmul_precision("medium")


def by_the_newer_name():
    torch.backends.cuda.matmul.fp32_precision = "tf32"


@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("caller", [lambda: None, by_the_older_name, by_the_newer_name])
def test_what_the_process_has_set_is_put_back(caller, tf32):
    try:
        caller()
        before = flags()
        with _float32_products(tf32=tf32):
            assert flags()[0] == ("tf32" if tf32 else "ieee")
            assert flags()[2:] == (True, before[3], tf32)  # cuDNN itself stays on
        assert flags() == before
        if caller is by_the_older_name:
            assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cuda.matmul.fp32_precision = torch.backends.mkldnn.matmul.fp32_precision = "none"
