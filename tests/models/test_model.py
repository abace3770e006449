"""The whole network against a straight-line forward pass in numpy, in float64, written from the papers."""

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view

from reidkit.architecture import HeadSpec, ModelSpec, ResNetSpec
from reidkit.models.model import DeployedModel, EmbeddingModel, Preprocess
from reidkit.types import InputSpec

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def randomised(spec, *, identities=None, seed=0):
    """A model whose every weight and running statistic is random, so that none can be left out unseen."""
    generator = torch.Generator().manual_seed(seed)
    model = EmbeddingModel(spec, identities=identities).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2.0, generator=generator)
            elif tensor.ndim == 1 and name.endswith(".weight"):
                tensor.normal_(1.0, 0.2, generator=generator)
            elif tensor.ndim == 1 and name != "heads.pool_layer.p":
                tensor.normal_(0.0, 0.2, generator=generator)
    return model


class ByHand:
    """ResNet-18 in numpy, one line a layer, from a state dict by fast-reid's names."""

    def __init__(self, model):
        self.w = {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}

    def conv(self, x, name, stride=1, pad=0):
        kernel = self.w[f"{name}.weight"]
        x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
        windows = sliding_window_view(x, kernel.shape[2:], axis=(2, 3))[:, :, ::stride, ::stride]
        return np.tensordot(windows, kernel, axes=([1, 4, 5], [1, 2, 3])).transpose(0, 3, 1, 2)

    def affine(self, x, name):
        return x * self.w[f"{name}.weight"][:, None, None] + self.w[f"{name}.bias"][:, None, None]

    def batch_norm(self, x, name):
        mean, var = self.w[f"{name}.running_mean"], self.w[f"{name}.running_var"]
        return self.affine((x - mean[:, None, None]) / np.sqrt(var + 1e-5)[:, None, None], name)

    def instance_norm(self, x, name):
        mean, var = x.mean(axis=(2, 3), keepdims=True), x.var(axis=(2, 3), keepdims=True)
        return self.affine((x - mean) / np.sqrt(var + 1e-5), name)

    def norm(self, x, name):
        if f"{name}.IN.weight" not in self.w:
            return self.batch_norm(x, name)
        half = x.shape[1] // 2
        first, rest = self.instance_norm(x[:, :half], f"{name}.IN"), self.batch_norm(x[:, half:], f"{name}.BN")
        return np.concatenate([first, rest], axis=1)

    def max_pool(self, x):
        """3 x 3, stride 2, no padding; a last window that hangs over the edge takes what there is."""
        hang = [(0, -(size - 3) % 2) for size in x.shape[2:]]
        x = np.pad(x, ((0, 0), (0, 0), *hang), constant_values=-np.inf)
        return sliding_window_view(x, (3, 3), axis=(2, 3))[:, :, ::2, ::2].max(axis=(4, 5))

    def block(self, x, name, stride):
        shortcut = x
        if f"{name}.downsample.0.weight" in self.w:
            shortcut = self.batch_norm(self.conv(x, f"{name}.downsample.0", stride), f"{name}.downsample.1")
        x = np.maximum(self.norm(self.conv(x, f"{name}.conv1", stride, 1), f"{name}.bn1"), 0)
        return np.maximum(self.batch_norm(self.conv(x, f"{name}.conv2", 1, 1), f"{name}.bn2") + shortcut, 0)

    def embed(self, x, last_stride, pool):
        x = np.maximum(self.batch_norm(self.conv(x, "backbone.conv1", 2, 3), "backbone.bn1"), 0)
        x = self.max_pool(x)
        for stage, stride in ((1, 1), (2, 2), (3, 2), (4, last_stride)):
            x = self.block(x, f"backbone.layer{stage}.0", stride)
            x = self.block(x, f"backbone.layer{stage}.1", 1)
        return self.batch_norm(pool(x), "heads.bottleneck.0")[:, :, 0, 0]


def gem(x, p=3.0):
    return (np.maximum(x, 1e-6) ** p).mean(axis=(2, 3), keepdims=True) ** (1 / p)


POOLS = {
    "gem": gem,
    "average": lambda x: x.mean(axis=(2, 3), keepdims=True),
    "max": lambda x: x.max(axis=(2, 3), keepdims=True),
}


def relative_error(got, expected):
    return np.linalg.norm(got - expected, axis=1).max() / np.linalg.norm(expected, axis=1).min()


@pytest.mark.parametrize(
    ("spec", "size"),
    [
        (ModelSpec(), (32, 16)),
        (ModelSpec(ResNetSpec(last_stride=2), HeadSpec(gem_learned=True, gem_p=2.2)), (35, 19)),
        (ModelSpec(ResNetSpec(ibn="none"), HeadSpec(pooling="average")), (41, 27)),
        (ModelSpec(ResNetSpec(ibn="none", last_stride=2), HeadSpec(pooling="max")), (8, 8)),
    ],
)
def test_the_whole_network_by_hand(spec, size):
    model = randomised(spec)
    x = np.random.default_rng(3).normal(0, 1, (2, 3, *size))
    pool = POOLS[spec.head.pooling] if spec.head.pooling != "gem" else lambda x: gem(x, spec.head.gem_p)
    with torch.inference_mode():
        got = model(torch.from_numpy(x).float()).numpy()
    assert relative_error(got, ByHand(model).embed(x, spec.backbone.last_stride, pool)) < 1e-4
    lengths = np.linalg.norm(got, axis=1)
    assert np.abs(lengths - 1).min() > 0.5  # not normalised


@pytest.mark.parametrize("color", ["rgb", "bgr"])
def test_from_pixels_to_embedding_by_hand(color):
    model = randomised(ModelSpec(), seed=4)
    spec = InputSpec(32, 16, color=color)
    crops = np.random.default_rng(5).integers(0, 256, (3, 32, 16, 3), dtype=np.uint8)
    with torch.inference_mode():
        got = DeployedModel(model, spec).eval()(torch.from_numpy(crops)).numpy()
    ordered = crops if color == "rgb" else crops[..., ::-1]
    x = (ordered / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    assert relative_error(got, ByHand(model).embed(x.transpose(0, 3, 1, 2), 1, gem)) < 1e-4


def test_in_training_the_metric_loss_sees_the_embedding_before_the_neck_and_the_classifier_after_it():
    model = randomised(ModelSpec(), identities=5)  # in evaluation mode: dropped or batch statistics play no part
    x = torch.from_numpy(np.random.default_rng(6).normal(0, 1, (2, 3, 32, 16))).float()
    with torch.inference_mode():
        before, logits = model.training_outputs(x)
        after = model(x)
    by_hand = ByHand(model)
    expected = by_hand.batch_norm(before.double().numpy()[:, :, None, None], "heads.bottleneck.0")[:, :, 0, 0]
    np.testing.assert_allclose(after, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(logits, after.double().numpy() @ by_hand.w["heads.weight"].T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("color", ["rgb", "bgr"])
@pytest.mark.parametrize(
    ("scale", "mean", "std"),
    [
        (255.0, IMAGENET_MEAN, IMAGENET_STD),
        (1.0, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
        (1.0, (127.5, 127.5, 127.5), (127.5, 127.5, 127.5)),
    ],
)
def test_preprocessing_of_every_pixel_value_by_hand(color, scale, mean, std):
    values = np.arange(256, dtype=np.uint8)
    crops = np.stack([values, values[::-1], np.roll(values, 7)], axis=-1).reshape(1, 16, 16, 3)
    spec = InputSpec(16, 16, color=color, scale=scale, mean=mean, std=std)
    got = Preprocess(spec)(torch.from_numpy(crops)).numpy()
    ordered = crops.astype(np.float64) if color == "rgb" else crops.astype(np.float64)[..., ::-1]
    expected = ((ordered / scale - mean) / std).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


def test_preprocessing_is_exact_at_both_ends():
    plain = Preprocess(InputSpec(1, 2, scale=255.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)))
    centred = Preprocess(InputSpec(1, 2, scale=1.0, mean=(127.5, 127.5, 127.5), std=(127.5, 127.5, 127.5)))
    crops = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 2, 1).expand(1, 1, 2, 3)
    assert plain(crops).tolist() == [[[[0.0, 1.0]]] * 3]
    assert centred(crops).tolist() == [[[[-1.0, 1.0]]] * 3]


def test_preprocessing_leaves_the_crops_as_they_were_and_adds_no_weights():
    crops = torch.randint(0, 256, (2, 4, 3, 3), dtype=torch.uint8)
    before, preprocess = crops.clone(), Preprocess(InputSpec(4, 3))
    assert torch.equal(preprocess(crops), preprocess(crops))
    assert torch.equal(crops, before)
    pixels = crops.permute(0, 3, 1, 2).float()
    kept = pixels.clone()
    assert torch.equal(preprocess.normalize(pixels), preprocess(crops))
    assert torch.equal(pixels, kept)
    assert not preprocess.state_dict()
