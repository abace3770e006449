"""A small network in which it is known what rounding ruins: one value, of which one channel is 1,000 times the others.

The steps of its grid are then larger than all that the other channels have to say. The value stands between two layers
of one block, so both have to be float, and nothing else has to.
"""

import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from reidkit.bundle import Golden, open_bundle, write_bundle
from reidkit.deploy import verify
from reidkit.deploy.quantize.calibrate import calibration_of, observe
from reidkit.deploy.quantize.pictures import pictures_of
from reidkit.deploy.quantize.quantize import kept_in_float, quantize
from reidkit.deploy.quantize.sensitivity import search
from reidkit.deploy.verify import measure_on
from reidkit.errors import BundleError, ConfigError, InputError
from reidkit.imaging import load_crop
from reidkit.manifest import Embedding, Manifest
from reidkit.runtime import load
from reidkit.types import Crop, InputSpec, Split

HEIGHT, WIDTH, CHANNELS = 16, 8, 8
HUGE = 1000.0
LAYERS = ("stem", "trunk.0.conv1", "trunk.0.conv2", "trunk.1.conv1", "trunk.1.conv2", "trunk.1.conv3", "trunk.2.conv1")
RUINED = ("trunk.1.conv1", "trunk.1.conv2")
GROUPS = ["stem", "trunk.0", "trunk.1", "trunk.2"]


def network(ruined=()):
    """3 x 3 convolutions with ReLU, then the mean; a value behind each layer in `ruined` has one huge channel."""
    rng = np.random.default_rng(5)
    nodes = [
        helper.make_node("Cast", ["crops"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["pixels", "scale"], ["unit"]),
        helper.make_node("Transpose", ["unit"], ["value0"], perm=[0, 3, 1, 2]),
    ]
    weights = [numpy_helper.from_array(np.array(255, np.float32), "scale")]
    before = 1.0
    for i, name in enumerate(LAYERS):
        channels = CHANNELS if i else 3
        kernel = rng.normal(size=(CHANNELS, channels, 3, 3)) / np.sqrt(4.5 * channels)
        bias = rng.uniform(0.2, 0.4, CHANNELS)  # so that nothing is 0 throughout
        kernel[0] = np.abs(kernel[0]) / np.abs(kernel[0]).sum()  # a mean, which is always there
        kernel[:, 0] /= before
        before = HUGE if name in ruined else 1.0
        kernel[0], bias[0] = kernel[0] * before, bias[0] * before
        weights.append(numpy_helper.from_array(kernel.astype(np.float32), f"{name}.weight"))
        weights.append(numpy_helper.from_array(bias.astype(np.float32), f"{name}.bias"))
        nodes += [
            helper.make_node("Conv", [f"value{i}", f"{name}.weight", f"{name}.bias"], [f"sum{i}"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", [f"sum{i}"], [f"value{i + 1}"]),
        ]
    nodes += [
        helper.make_node("GlobalAveragePool", [f"value{len(LAYERS)}"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["embeddings"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("crops", TensorProto.UINT8, ["n", HEIGHT, WIDTH, 3])],
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["n", CHANNELS])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """Ten people whom two cameras see twice: a coarse pattern of colours each, and noise."""
    root, rng = tmp_path_factory.mktemp("people"), np.random.default_rng(1)
    crops = []
    for pid in range(10):
        pattern = rng.integers(60, 196, (4, 2, 3)).repeat(4, axis=0).repeat(4, axis=1)
        for camid in range(2):
            for shot in range(2):
                path = root / f"{pid}_{camid}_{shot}.png"
                noisy = pattern + rng.normal(scale=18, size=pattern.shape)
                Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path)
                crops.append(Crop(path, pid, camid))
    query, gallery = (tuple(crop for crop in crops if crop.camid == camid) for camid in range(2))
    return Split("folder", root, train=gallery, query=query, gallery=gallery)


@pytest.fixture(scope="module")
def make(split, tmp_path_factory):
    def bundle_and_table(ruined=()):
        crops = np.random.default_rng(0).integers(0, 256, (2, HEIGHT, WIDTH, 3), dtype=np.uint8)
        bundle = write_bundle(
            tmp_path_factory.mktemp("bundle") / "net.reid",
            Manifest("net", "person", InputSpec(HEIGHT, WIDTH), Embedding(CHANNELS)),
            model=network(ruined),
            golden=Golden(crops, np.ones((2, CHANNELS), np.float32)),
        )
        return bundle, calibration_of(bundle, observe(bundle, pictures_of(split), threads=1), "minmax")

    return bundle_and_table


@pytest.fixture(scope="module")
def ruined(make):
    return make({"trunk.1.conv1"})


@pytest.fixture(scope="module")
def found(ruined, split):
    bundle, table = ruined
    return search(bundle, table, split, max_map_drop=0.02, threads=1)


def test_the_ruined_block_is_where_it_hurts(found):
    assert found.rounded.drop > 0.1  # so there is something to find
    assert [row.name for row in found.groups] == GROUPS
    by_error, by_gain = min(found.groups, key=lambda r: r.error), max(found.groups, key=lambda r: r.gain.difference)
    assert by_error.name == by_gain.name == "trunk.1"
    assert by_error.error < 0.1 * min(row.error for row in found.groups if row.name != "trunk.1")
    assert by_gain.gain.interval.low > 0
    assert by_gain.gain.difference == pytest.approx(by_gain.trial.mean_ap - found.rounded.mean_ap)


def test_only_the_layers_beside_the_ruined_value_stay_float(found):
    assert found.met
    assert found.chosen.floats == RUINED
    assert found.chosen.drop <= 0.02
    assert [row.kept for row in found.groups] == [(), (), RUINED, ()]
    # The stem has 3 inputs and the others 8, and maps are equally large: of 51 shares two layers have 8 each.
    assert found.float_share == pytest.approx(16 / 51)
    assert [row.share for row in found.groups] == pytest.approx([3 / 51, 16 / 51, 24 / 51, 8 / 51])


def test_the_choice_is_measured_as_it_will_run(found, ruined, split, tmp_path):
    """Quantised into a bundle, and embedded and compared one by one."""
    bundle, table = ruined
    shutil.copytree(bundle.path, tmp_path / "net.reid")
    quantized = quantize(open_bundle(tmp_path / "net.reid"), kept_in_float(table, found.chosen.floats))
    crops = np.stack([load_crop(crop.path, bundle.manifest.input) for crop in (*split.query, *split.gallery)])
    a, b = load(bundle, threads=1).embed(crops), load(quantized, precision="int8", threads=1).embed(crops)
    cosines = [float(x @ y / np.linalg.norm(x) / np.linalg.norm(y)) for x, y in zip(a, b, strict=True)]
    assert found.chosen.agreement.mean_cosine == pytest.approx(np.mean(cosines), abs=1e-6)
    assert found.chosen.agreement.min_cosine == pytest.approx(min(cosines), abs=1e-6)
    measured = measure_on(load(quantized, precision="int8", threads=1), split)
    assert found.chosen.mean_ap == measured.report.mean_ap


def test_the_same_again_and_from_a_table_with_layers_in_float(found, ruined, split):
    bundle, table = ruined
    steps, tried = [], []
    again = search(
        bundle,
        kept_in_float(table, ("stem",)),
        split,
        max_map_drop=0.02,
        reference=measure_on(load(bundle, threads=1), split),
        threads=1,
        each=tried.append,
        progress=lambda done, total: steps.append((done, total)),
    )
    assert (again.chosen.floats, again.rounded.mean_ap) == (found.chosen.floats, found.rounded.mean_ap)
    assert [(row.name, row.kept, row.error) for row in again.groups] == [
        (row.name, row.kept, row.error) for row in found.groups
    ]
    assert len({trial.floats for trial in tried}) == len(tried) == again.trials
    crops = len(split.query) + len(split.gallery)
    assert steps[-1] == (crops * again.trials, crops * again.trials)
    assert steps == sorted(steps)
    assert steps[0][1] == 5 * crops  # all in eight bits, and four groups


def test_nothing_stays_float_where_nothing_has_to(make, split):
    bundle, table = make()
    found = search(bundle, table, split, threads=1)
    assert found.met
    assert found.chosen is found.rounded
    assert found.chosen.floats == ()
    assert found.float_share == 0
    assert found.trials == 5  # the groups were measured all the same
    assert all(row.kept == () for row in found.groups)


def test_a_drop_that_cannot_be_met_is_said(make, split):
    """Every value between two layers is ruined: but for the first layer or the last, all have to be float."""
    bundle, table = make(LAYERS[:-1])
    found = search(bundle, table, split, max_map_drop=0.0, threads=1)
    assert not found.met
    assert found.chosen.drop > 0
    assert set(found.chosen.floats) != set(LAYERS)


def test_what_the_gate_would_refuse_is_not_chosen(ruined, split, monkeypatch):
    """All mAP may be lost, and still embeddings have to be near."""
    monkeypatch.setitem(verify.TOLERANCES, "int8", verify.Tolerance(0.25, 0.9, mean=verify.Tolerance(0.25, 0.99)))
    bundle, table = ruined
    found = search(bundle, table, split, max_map_drop=1.0, threads=1)
    assert found.rounded.agreement.mean_cosine < 0.99
    assert not found.rounded.meets
    assert found.met
    assert found.chosen.agreement.passed
    assert set(found.chosen.floats) <= set(RUINED)


def test_what_cannot_be_searched(ruined, make, split):
    bundle, table = ruined
    for drop in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="The drop of mAP that is allowed is out of range"):
            search(bundle, table, split, max_map_drop=drop)
    other, _ = make()
    with pytest.raises(BundleError, match="made from another graph"):
        search(other, table, split)
    elsewhere = measure_on(load(bundle, threads=1), replace(split, query=split.query[2:]))
    with pytest.raises(InputError, match="different queries"):
        search(bundle, table, split, reference=elsewhere, threads=1)
