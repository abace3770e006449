"""timm's networks as backbones: shapes, names, sizes, and torchvision's import beside a PyTorch without CUDA."""

import contextlib
import copy
import io
import subprocess
import sys
import warnings
from importlib.util import find_spec

import numpy as np
import onnxruntime
import pytest
import torch

from reidkit.architecture import TimmSpec
from reidkit.errors import ConfigError
from reidkit.models.timm_backbone import import_timm, timm_backbone

with_timm = pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed")


def build(name, size=None, *, pooled=False):
    torch.manual_seed(0)
    network, dim = timm_backbone(TimmSpec(name=name, size=size), pooled=pooled)
    return network.eval(), dim


@with_timm
@pytest.mark.parametrize(
    ("name", "size", "dim", "stride"),
    [
        ("resnet18", None, 512, 32),
        ("convnext_atto", None, 320, 32),
        ("mobilenetv3_small_050", None, 1024, 32),
        # Its maps are NHWC inside timm, and its weights depend on the size of the crops.
        ("swin_tiny_patch4_window7_224", (64, 32), 768, 32),
    ],
)
def test_the_last_feature_map_is_channels_first(name, size, dim, stride):
    network, channels = build(name, size)
    with torch.inference_mode():
        x = network(torch.randn(2, 3, 64, 32))
    assert channels == dim
    assert x.shape == (2, dim, 64 // stride, 32 // stride)


@with_timm
def test_channels_last_is_turned_and_not_reshaped():
    network, _ = build("swin_tiny_patch4_window7_224", (64, 32))
    picture = torch.randn(1, 3, 64, 32)
    with torch.inference_mode():
        theirs = network.forward_features(picture)
        ours = network(picture)
    assert theirs.shape == (1, 2, 1, 768)
    assert torch.equal(ours[0, :, 1, 0], theirs[0, 1, 0])


@with_timm
@pytest.mark.parametrize(("name", "size"), [("vit_tiny_patch16_224", (64, 32)), ("resnet18", None)])
def test_its_own_pooling_gives_what_timm_gives(name, size):
    network, dim = build(name, size, pooled=True)
    options = {} if size is None else {"img_size": size}
    theirs = import_timm().create_model(name, pretrained=False, num_classes=0, **options).eval()
    theirs.load_state_dict(network.state_dict())
    picture = torch.randn(2, 3, 64, 32)
    with torch.inference_mode():
        assert network(picture).shape == (2, dim, 1, 1)
        assert torch.equal(network(picture).flatten(1), theirs(picture))


@with_timm
@pytest.mark.parametrize("pooled", [True, False])
def test_names_are_those_of_timm(pooled):
    network, _ = build("convnext_atto", pooled=pooled)
    theirs = import_timm().create_model("convnext_atto", pretrained=False)
    wanted = {name: t.shape for name, t in theirs.state_dict().items() if not name.startswith("head.fc.")}
    assert {name: t.shape for name, t in network.state_dict().items()} == wanted
    assert dict(network.named_parameters()).keys() == wanted.keys()


@with_timm
def test_a_network_that_remembers_at_its_first_run_has_not_run_yet():
    # LeViT keeps its position biases from the first evaluation on. Weights that are loaded later have to count.
    network, _ = build("levit_128s", (64, 32), pooled=True)
    other = copy.deepcopy(network)
    weights = {name: t + 0.1 if "attention_biases" in name else t for name, t in network.state_dict().items()}
    other.load_state_dict({name: torch.randn_like(t) if "biases" in name else t for name, t in weights.items()})
    picture = torch.randn(1, 3, 64, 32)
    with torch.inference_mode():
        assert not torch.equal(network(picture), other(picture))


@with_timm
def test_on_the_meta_device_too():
    with torch.device("meta"):
        network, dim = build("test_vit", (64, 32), pooled=True)
    assert dim == 64
    assert {parameter.device.type for parameter in network.parameters()} == {"meta"}


@with_timm
@pytest.mark.parametrize(
    ("name", "size", "pooled", "words"),
    [
        ("convnext_tyni", None, False, "timm has no network 'convnext_tyni'.*did you mean 'convnext_tiny'"),
        ("hf-hub:someone/model", None, False, "timm has no network 'hf-hub:someone/model'"),
        ("resnet18.nobody_in1k", None, False, "timm has no network 'resnet18.nobody_in1k'.*resnet18.a1_in1k"),
        (
            "vit_tiny_patch16_224",
            None,
            True,
            r"one size of picture, and none is given.*size to that of the crops, such as \[256, 128\]",
        ),
        ("vit_tiny_patch16_224", (60, 32), True, r"patches of 16x16.*60x32.*size to \[64, 32\]"),
        ("vit_tiny_patch16_224", (64, 32), False, r"gives no feature map.*\(1, 9, 192\).*pooling \"own\""),
        ("nest_tiny", (64, 32), True, "cannot build nest_tiny for 64x32.*square"),
        ("efficientvit_b0", None, False, 'without its own pooling.*Cannot disable pooling.*pooling "own"'),
    ],
)
def test_what_cannot_be_is_refused_with_what_to_do(name, size, pooled, words):
    with pytest.raises(ConfigError, match=f"(?s){words}"):
        timm_backbone(TimmSpec(name=name, size=size), pooled=pooled)


@with_timm
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "pooled"), [("test_convnext", None, False), ("test_vit", (64, 32), True)], ids=["convnet", "vit"]
)
def test_its_graph_takes_any_batch(name, size, pooled):
    network, _ = build(name, size, pooled=pooled)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # the exporter's, about libraries that are not needed here
        program = torch.onnx.export(
            network,
            (torch.zeros(2, 3, 64, 32),),
            input_names=["x"],
            dynamic_shapes={"x": {0: torch.export.Dim("n")}},
            opset_version=18,
            dynamo=True,
            verbose=False,
        )
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        picture = torch.randn(batch, 3, 64, 32)
        with torch.inference_mode():
            expected = network(picture).numpy()
        (got,) = session.run(None, {"x": picture.numpy()})
        np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())


def test_a_missing_torchvision_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ModuleNotFoundError) as caught:
        import_timm()
    assert caught.value.name == "torchvision"


IMPORTS = """
import sys, torch
from reidkit.models.timm_backbone import import_timm

torch.version.hip = None
torch.version.cuda = "13.0"
try:
    import_timm()
except RuntimeError as error:
    print("with CUDA:", error)
torch.version.cuda = None
sys.modules["timm"] = None
try:
    import_timm()
except ModuleNotFoundError as error:
    print("missing:", error.name)
del sys.modules["timm"]
print("without:", import_timm().name, sys.modules["torchvision"].loads)
print("again:", import_timm() is import_timm(), sys.modules["torchvision"].loads)
try:
    torch.ops.torchvision.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
except NotImplementedError:
    print("not callable")
"""


def test_torchvision_is_imported_beside_a_pytorch_that_lacks_its_operators(tmp_path):
    """A stand-in that does at its import what torchvision does, in a process where no operator is known yet."""
    for package in ("torchvision", "timm"):
        (tmp_path / package).mkdir()
    (tmp_path / "torchvision/extension.py").write_text("loads = 1\n")
    (tmp_path / "torchvision/__init__.py").write_text(
        "import torch\n"
        "from torchvision.extension import loads\n"
        "for name in ('nms', 'qnms'):\n"
        "    torch.library.register_fake(f'torchvision::{name}')(lambda dets, scores, iou_threshold: scores)\n"
    )
    (tmp_path / "timm/__init__.py").write_text("import torchvision\nname = 'stand-in'\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{IMPORTS}"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, *rest = done.stdout.splitlines()
    assert first.startswith("with CUDA: operator torchvision::nms does not exist")
    assert rest == ["missing: timm", "without: stand-in 1", "again: True 1", "not callable"]
