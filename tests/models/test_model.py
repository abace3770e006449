"""The whole network against a straight-line forward pass in numpy, in float64, written from the papers."""

import numpy as np
import pytest
import torch

from numpy_layers import batch_norm
from numpy_networks import fastreid_resnet
from reidkit.architecture import HeadSpec, ModelSpec, ResNetSpec
from reidkit.models.mgn import MGN
from reidkit.models.model import DeployedModel, EmbeddingModel, Preprocess, build_model
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


def weights_of(model):
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def by_hand(model, x):
    """The embedding by the network that the tests keep in numpy, which shares no code with the models."""
    backbone, head = model.spec.backbone, model.spec.head
    return fastreid_resnet(
        weights_of(model),
        x,
        depth=backbone.depth,
        ibn=backbone.ibn == "a",
        last_stride=backbone.last_stride,
        pooling=head.pooling,
        gem_p=None if head.gem_learned else head.gem_p,
    )


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
    with torch.inference_mode():
        got = model(torch.from_numpy(x).float()).numpy()
    assert relative_error(got, by_hand(model, x)) < 1e-4
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
    assert relative_error(got, by_hand(model, x.transpose(0, 3, 1, 2))) < 1e-4


def test_in_training_the_metric_loss_sees_the_embedding_before_the_neck_and_the_classifier_after_it():
    model = randomised(ModelSpec(), identities=5)  # in evaluation mode: dropped or batch statistics play no part
    x = torch.from_numpy(np.random.default_rng(6).normal(0, 1, (2, 3, 32, 16))).float()
    with torch.inference_mode():
        (outputs,) = model.training_outputs(x)
        after = model(x)
    weights = weights_of(model)
    expected = batch_norm(weights, "heads.bottleneck.0", outputs.pooled.double().numpy())
    np.testing.assert_allclose(after, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(outputs.embedding, after)
    assert outputs.classifier is model.heads.weight
    assert outputs.classifier.shape == (5, 512)
    assert outputs.whole


def test_a_model_of_each_kind_is_built_by_its_spec():
    with torch.device("meta"):
        assert isinstance(build_model(ModelSpec()), EmbeddingModel)
        assert isinstance(build_model(ModelSpec(branches="mgn"), identities=3), MGN)


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
