"""The trunk against fast-reid's published layout: names, shapes, sizes, and each part by hand."""

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view

from reidkit.architecture import CATALOGUE, STAGE_BLOCKS, HeadSpec, ModelSpec, ResNetSpec
from reidkit.models.blocks import InstanceBatchNorm, NonLocal, SqueezeExcitation
from reidkit.models.head import Head
from reidkit.models.resnet import ResidualBlock, ResNet


def on_meta(spec):
    """A network without values, which takes no time and no memory."""
    with torch.device("meta"):
        return ResNet(spec).eval()


def shapes(module):
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def affine(name, channels):
    return {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}


def batch_norm(name, channels):
    statistics = {f"{name}.running_mean": (channels,), f"{name}.running_var": (channels,)}
    return {**affine(name, channels), **statistics, f"{name}.num_batches_tracked": ()}


def block_layout(name, convolutions, *, halved, se, instance_norm):
    """Names and shapes of a block's convolutions with their normalisations, SE and instance normalisation."""
    layout = {}
    for number, shape in enumerate(convolutions, start=1):
        width = shape[0]
        layout[f"{name}.conv{number}.weight"] = shape
        if number == 1 and halved:
            layout |= affine(f"{name}.bn1.IN", width // 2) | batch_norm(f"{name}.bn1.BN", width // 2)
        else:
            layout |= batch_norm(f"{name}.bn{number}", width)
    if se:
        layout |= {f"{name}.se.fc.0.weight": (width // 16, width), f"{name}.se.fc.2.weight": (width, width // 16)}
    if instance_norm:
        layout |= affine(f"{name}.IN", width)
    return layout


def published_layout(*, blocks, bottleneck, ibn="none", se=False, attention=None):
    """Names and shapes of a ResNet, written out from checkpoints of fast-reid and of IBN-Net's authors."""
    layout = {"conv1.weight": (64, 3, 7, 7)}
    layout |= affine("bn1", 64) if ibn == "b" else batch_norm("bn1", 64)
    inputs = 64
    for stage, count in enumerate(blocks, start=1):
        width = 32 * 2**stage
        outputs = width * 4 if bottleneck else width
        for index in range(count):
            if bottleneck:
                convolutions = [(width, inputs, 1, 1), (width, width, 3, 3), (outputs, width, 1, 1)]
            else:
                convolutions = [(width, inputs, 3, 3), (width, width, 3, 3)]
            name = f"layer{stage}.{index}"
            last_of_early = ibn == "b" and stage < 3 and index == count - 1
            layout |= block_layout(
                name, convolutions, halved=ibn == "a" and stage < 4, se=se, instance_norm=last_of_early
            )
            if inputs != outputs:
                layout[f"{name}.downsample.0.weight"] = (outputs, inputs, 1, 1)
                layout |= batch_norm(f"{name}.downsample.1", outputs)
            inputs = outputs
    for name, (channels, inner) in (attention or {}).items():
        for part in ("g", "theta", "phi"):
            layout |= {f"{name}.{part}.weight": (inner, channels, 1, 1), f"{name}.{part}.bias": (inner,)}
        layout |= {f"{name}.W.0.weight": (channels, inner, 1, 1), f"{name}.W.0.bias": (channels,)}
        layout |= batch_norm(f"{name}.W.1", channels)
    return layout


def attention_layout(inner2, inner3, *, third=3):
    names = {f"NL_2.{i}": (512, inner2) for i in range(2)}
    return names | {f"NL_3.{i}": (1024, inner3) for i in range(third)}


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (ResNetSpec(depth=18, ibn="a"), {"blocks": (2, 2, 2, 2), "bottleneck": False, "ibn": "a"}),
        (ResNetSpec(depth=18, ibn="none", se=True), {"blocks": (2, 2, 2, 2), "bottleneck": False, "se": True}),
        (ResNetSpec(depth=34, ibn="b"), {"blocks": (3, 4, 6, 3), "bottleneck": False, "ibn": "b"}),
        (ResNetSpec(depth=50, ibn="none"), {"blocks": (3, 4, 6, 3), "bottleneck": True}),
        (ResNetSpec(depth=50, ibn="b"), {"blocks": (3, 4, 6, 3), "bottleneck": True, "ibn": "b"}),
        (
            ResNetSpec(depth=50, ibn="a", non_local="half"),
            {"blocks": (3, 4, 6, 3), "bottleneck": True, "ibn": "a", "attention": attention_layout(256, 512)},
        ),
        (
            ResNetSpec(depth=101, ibn="a", se=True, non_local="one"),
            {
                "blocks": (3, 4, 23, 3),
                "bottleneck": True,
                "ibn": "a",
                "se": True,
                "attention": attention_layout(1, 1, third=9),
            },
        ),
        (ResNetSpec(depth=152, ibn="none"), {"blocks": (3, 8, 36, 3), "bottleneck": True}),
    ],
)
def test_names_and_shapes_are_the_published_ones(spec, expected):
    network = on_meta(spec)
    assert shapes(network) == published_layout(**expected)
    assert network.dim == (2048 if expected["bottleneck"] else 512)


@pytest.mark.parametrize(
    ("spec", "tensors", "parameters"),
    [
        (ModelSpec(ResNetSpec(depth=50, ibn="none"), HeadSpec(pooling="average")), 324, None),  # BoT R50
        # Every parameter counts: the classifier, GeM's exponent, and the neck's bias, which is never trained.
        (CATALOGUE["sbs-r50-ibn"], 416, 25_078_864),
        (CATALOGUE["sbs-r101-ibn"], 834, None),
    ],
)
def test_tensors_and_parameters_are_as_many_as_published_with_751_identities(spec, tensors, parameters):
    network = on_meta(spec.backbone)
    with torch.device("meta"):
        head = Head(spec.head, network.dim, 751)
    assert len(network.state_dict()) + len(head.state_dict()) == tensors
    if parameters is not None:
        assert sum(p.numel() for module in (network, head) for p in module.parameters()) == parameters


@pytest.mark.parametrize(
    ("depth", "torchvision"),
    [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032), (101, 44_549_160), (152, 60_192_808)],
)
def test_parameters_add_up_to_those_of_torchvision_without_its_classifier(depth, torchvision):
    network = on_meta(ResNetSpec(depth=depth, ibn="none"))
    classifier = 1000 * network.dim + 1000
    assert sum(p.numel() for p in network.parameters()) == torchvision - classifier


def test_every_normalisation_has_the_published_epsilon():
    norms = (torch.nn.BatchNorm2d, torch.nn.InstanceNorm2d)
    epsilons = [m.eps for m in on_meta(ResNetSpec(depth=50, non_local="one")).modules() if isinstance(m, norms)]
    assert epsilons == [1e-5] * (1 + 13 * 4 + 3 * 3 + 4 + 5)


@pytest.mark.parametrize(
    ("height", "width", "options", "expected"),
    [
        (256, 128, {"last_stride": 1}, (16, 8)),
        (256, 128, {"last_stride": 2}, (8, 4)),
        (384, 128, {"depth": 50}, (24, 8)),
        (32, 16, {"last_stride": 1}, (2, 1)),
        (32, 16, {"last_stride": 2}, (1, 1)),
        (33, 17, {"last_stride": 1}, (2, 1)),  # 17 x 9, pooled 8 x 4; padded it would be 9 x 5
        (33, 17, {"max_pool": "pad"}, (3, 2)),
        (35, 19, {"last_stride": 1}, (3, 2)),  # 18 x 10, pooled 9 x 5: the ceiling counts, a floor would give 8 x 4
        (35, 19, {"last_stride": 2}, (2, 1)),
        (19, 3, {"last_stride": 1}, (2, 1)),  # the smallest that works
    ],
)
def test_size_of_the_last_feature_map(height, width, options, expected):
    network = on_meta(ResNetSpec(**options))
    got = network(torch.zeros(1, 3, height, width, device="meta"))
    assert tuple(got.shape) == (1, network.dim, *expected)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("ceil", [5.0, 9.0, 9.0, -7.0]),  # windows 0..2, 2..4, 4..6, and the cut one 6..7
        ("pad", [5.0, 3.0, 9.0, 4.0]),  # windows -1..1, 1..3, 3..5, 5..7
    ],
)
def test_where_the_stem_pools(kind, expected):
    row = torch.tensor([5.0, 1.0, 2.0, 3.0, 9.0, 4.0, -7.0, -8.0])
    got = on_meta(ResNetSpec(max_pool=kind)).maxpool(row.view(1, 1, 1, 8).expand(1, 1, 3, 8))
    assert got[0, 0, 0].tolist() == expected


@pytest.mark.parametrize(("depth", "strided"), [(18, "conv1"), (50, "conv2")])
@pytest.mark.parametrize("last_stride", [1, 2])
def test_strides_sit_on_the_first_convolution_of_3x3_and_on_the_shortcut(depth, strided, last_stride):
    network = on_meta(ResNetSpec(depth=depth, last_stride=last_stride))
    for stage, stride in ((1, 1), (2, 2), (3, 2), (4, last_stride)):
        first, *others = getattr(network, f"layer{stage}")
        strides = {name: m.stride[0] for name, m in first.named_modules() if isinstance(m, torch.nn.Conv2d)}
        assert strides.pop(strided) == stride
        assert strides.pop("downsample.0", stride) == stride
        assert set(strides.values()) == {1}
        assert all(m.stride == (1, 1) for other in others for m in other.modules() if isinstance(m, torch.nn.Conv2d))


@pytest.mark.parametrize(
    ("depth", "second", "third"),
    [(50, {2: 0, 3: 1}, {3: 0, 4: 1, 5: 2}), (101, {2: 0, 3: 1}, {14 + i: i for i in range(9)})],
)
def test_a_non_local_block_follows_each_of_the_last_blocks(depth, second, third):
    network = on_meta(ResNetSpec(depth=depth, non_local="one"))
    ran = []
    for name, module in network.named_modules():
        if isinstance(module, (ResidualBlock, NonLocal)):
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
    network(torch.zeros(1, 3, 64, 32, device="meta"))
    expected = []
    for stage, (blocks, attention) in enumerate(
        zip(STAGE_BLOCKS[depth], ({}, second, third, {}), strict=True), start=1
    ):
        for index in range(blocks):
            expected.append(f"layer{stage}.{index}")
            if index in attention:
                expected.append(f"NL_{stage}.{attention[index]}")
    assert ran == expected


def randomise(module, seed=0, spread=0.2):
    """Gives every weight and running statistic a value of its own, so that none can be left out unseen."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2.0, generator=generator)
            elif tensor.ndim == 1:
                tensor.normal_(1.0 if name.endswith(".weight") else 0.0, spread, generator=generator)
    return module.eval()


class ByHand:
    """The layers in NumPy, in float64, from the formulas and a module's weights."""

    def __init__(self, module):
        self.w = {name: tensor.double().numpy() for name, tensor in module.state_dict().items()}

    def conv(self, x, name, stride=1, pad=0):
        kernel = self.w[f"{name}.weight"]
        x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
        windows = sliding_window_view(x, kernel.shape[2:], axis=(2, 3))[:, :, ::stride, ::stride]
        y = np.tensordot(windows, kernel, axes=([1, 4, 5], [1, 2, 3])).transpose(0, 3, 1, 2)
        return y + self.w[f"{name}.bias"][:, None, None] if f"{name}.bias" in self.w else y

    def affine(self, x, name):
        return x * self.w[f"{name}.weight"][:, None, None] + self.w[f"{name}.bias"][:, None, None]

    def batch_norm(self, x, name):
        mean, var = self.w[f"{name}.running_mean"], self.w[f"{name}.running_var"]
        return self.affine((x - mean[:, None, None]) / np.sqrt(var + 1e-5)[:, None, None], name)

    def instance_norm(self, x, name):
        mean, var = x.mean(axis=(2, 3), keepdims=True), x.var(axis=(2, 3), keepdims=True)
        return self.affine((x - mean) / np.sqrt(var + 1e-5), name)


@pytest.mark.parametrize("channels", [6, 5])
def test_instance_batch_norm_by_hand(channels):
    layer = randomise(InstanceBatchNorm(channels))
    # A spread of about the epsilon, so that another epsilon would show.
    x = np.random.default_rng(1).normal(0.3, 4e-3, (3, channels, 4, 5))
    layer.BN.running_var.uniform_(1e-5, 3e-5)
    hand, half = ByHand(layer), channels // 2
    expected = np.concatenate([hand.instance_norm(x[:, :half], "IN"), hand.batch_norm(x[:, half:], "BN")], axis=1)
    got = layer(torch.from_numpy(x).float()).detach().numpy()
    np.testing.assert_allclose(got, expected, rtol=2e-4, atol=2e-4)


def se_by_hand(hand, x, name):
    squeezed = x.mean(axis=(2, 3)) @ hand.w[f"{name}.0.weight"].T
    excited = np.maximum(squeezed, 0) @ hand.w[f"{name}.2.weight"].T
    return x / (1 + np.exp(-excited))[:, :, None, None]


def test_squeeze_and_excitation_by_hand():
    layer = randomise(SqueezeExcitation(48), spread=1.0)
    x = np.random.default_rng(2).normal(0.2, 3.0, (2, 48, 3, 4))
    got = layer(torch.from_numpy(x).float()).detach().numpy()
    np.testing.assert_allclose(got, se_by_hand(ByHand(layer), x, "fc"), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("inner", [1, 3])
def test_non_local_by_hand(inner):
    layer = randomise(NonLocal(6, inner), seed=3)
    x = np.random.default_rng(3).normal(0, 1, (2, 6, 4, 3))
    hand = ByHand(layer)
    theta, phi, g = (hand.conv(x, name).reshape(2, inner, 12) for name in ("theta", "phi", "g"))
    y = np.zeros((2, inner, 12))
    for i in range(12):
        for j in range(12):
            f = (theta[:, :, i] * phi[:, :, j]).sum(axis=1) / 12  # one number a crop, no softmax
            y[:, :, i] += f[:, None] * g[:, :, j]
    attended = hand.batch_norm(hand.conv(y.reshape(2, inner, 4, 3), "W.0"), "W.1")
    got = layer(torch.from_numpy(x).float()).detach().numpy()
    np.testing.assert_allclose(got, attended + x, rtol=1e-4, atol=1e-5)
    assert np.abs(attended).max() > 0.1  # there is something to see


def test_a_new_non_local_block_changes_nothing():
    x = torch.randn(2, 6, 4, 3, generator=torch.Generator().manual_seed(4))
    assert torch.equal(NonLocal(6, 1).train()(x), x)


BLOCKS = {
    "plain": {},
    "halved": {"ibn": "a"},
    "squeezed": {"se": True},
    "instance": {"ibn": "b"},
    "preactivated": {"preactivation": True},
    "all at once": {"ibn": "b", "se": True, "preactivation": True},
}


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize(("inputs", "stride"), [(32, 1), (12, 2)])
@pytest.mark.parametrize("kind", BLOCKS)
def test_a_block_by_hand(kind, depth, inputs, stride):
    spec = ResNetSpec(**{"depth": depth, "ibn": "none", **BLOCKS[kind]})
    width = 32 if depth == 18 else 8  # both give 32 channels
    halved, instance_norm = spec.ibn == "a", spec.ibn == "b"
    block = ResidualBlock(spec, inputs, width, stride, halved=halved, instance_norm=instance_norm)
    hand = ByHand(randomise(block, seed=5))
    x = np.random.default_rng(6).normal(0, 1, (2, inputs, 6, 5))
    got = block(given := torch.from_numpy(x).float()).detach().numpy()
    np.testing.assert_array_equal(given, x.astype(np.float32))  # the caller's map is left as it was

    def relu(values):
        return np.maximum(values, 0)

    def first_norm(values):
        if not halved:
            return hand.batch_norm(values, "bn1")
        half = width // 2
        parts = hand.instance_norm(values[:, :half], "bn1.IN"), hand.batch_norm(values[:, half:], "bn1.BN")
        return np.concatenate(parts, axis=1)

    x = relu(x) if spec.preactivation else x
    if depth == 18:
        y = relu(first_norm(hand.conv(x, "conv1", stride, 1)))
        y = hand.batch_norm(hand.conv(y, "conv2", 1, 1), "bn2")
    else:
        y = relu(first_norm(hand.conv(x, "conv1")))
        y = relu(hand.batch_norm(hand.conv(y, "conv2", stride, 1), "bn2"))
        y = hand.batch_norm(hand.conv(y, "conv3"), "bn3")
    y = se_by_hand(hand, y, "se.fc") if spec.se else y
    y = y + (
        x if inputs == 32 and stride == 1 else hand.batch_norm(hand.conv(x, "downsample.0", stride), "downsample.1")
    )
    y = hand.instance_norm(y, "IN") if instance_norm else y
    expected = y if spec.preactivation else relu(y)
    assert (expected < 0).any() == spec.preactivation
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)


def test_the_stem_of_ibn_b_normalises_each_picture():
    network = randomise(ResNet(ResNetSpec(ibn="b")), seed=7)
    x = np.random.default_rng(7).normal(0, 1, (2, 3, 24, 16))
    hand = ByHand(network)
    seen = []
    network.maxpool.register_forward_pre_hook(lambda _, args: seen.append(args[0].numpy().copy()))
    with torch.inference_mode():
        network(torch.from_numpy(x).float())
    expected = np.maximum(hand.instance_norm(hand.conv(x, "conv1", 2, 3), "bn1"), 0)
    np.testing.assert_allclose(seen[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{"ibn": "a"}, {"ibn": "b", "se": True, "last_stride": 2}])
def test_preactivation_moves_the_relus_and_leaves_the_last_feature_map_as_it_is(options):
    plain, moved = randomise(ResNet(ResNetSpec(**options)), seed=8), ResNet(ResNetSpec(**options, preactivation=True))
    moved.load_state_dict(plain.state_dict())
    seen, stages = {}, ("layer1", "layer2", "layer3", "layer4")
    for network in (plain, moved.eval()):
        for stage in stages:
            last = getattr(network, stage)[-1]
            last.register_forward_hook(lambda _m, _i, out, key=(network, stage): seen.update({key: out.clone()}))
    x = torch.randn(2, 3, 48, 32, generator=torch.Generator().manual_seed(9))
    with torch.inference_mode():
        torch.testing.assert_close(moved(x), plain(x), rtol=1e-4, atol=1e-4)
    for stage in stages:
        before = seen[moved, stage]
        assert (before < 0).any()
        torch.testing.assert_close(before.clamp(min=0), seen[plain, stage], rtol=1e-4, atol=1e-4)
