"""Ranges of a bundle's graph, held to ONNX Runtime and NumPy on all pictures at once; and everything that is wrong."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import helper

from quantizable_bundle import nodes, weights, write, write_pictures
from reidkit.bundle import IrGraph, file_sha256, write_bundle
from reidkit.calibration import Picture, Range, calibration_bytes
from reidkit.deploy.quantize.calibrate import calibration_of, observe, quantizable_graph
from reidkit.deploy.quantize.emit import quantized_graph
from reidkit.deploy.quantize.pictures import in_order_of_choice
from reidkit.deploy.quantize.placement import PLACEMENT, place
from reidkit.errors import BundleError, ConfigError, DataError, ImageError, ModelError
from reidkit.imaging import load_crop
from rounded_graphs import run


@pytest.fixture
def pictures(tmp_path):
    return write_pictures(tmp_path / "people")


@pytest.fixture
def bundle(tmp_path):
    return write(tmp_path / "small.reid")


def seen_at_once(bundle, crops, *names):
    """Every value on all crops, without anything of ours."""
    pixels = np.stack([load_crop(crop.path, bundle.manifest.input) for crop in crops])
    return dict(zip(names, run(onnx.load(bundle.model), {"crops": pixels}, *names), strict=True))


VALUES = ("a", "b", "d", "e", "x")


def test_values_are_seen_as_they_are_on_the_chosen_pictures(bundle, pictures):
    told = []
    observed = observe(bundle, pictures, images=9, seed=4, threads=1, progress=lambda *done: told.append(done))
    chosen = in_order_of_choice(pictures.crops, 4)[:9]
    assert sorted(observed.values) == [*VALUES]
    for name, values in seen_at_once(bundle, chosen, *VALUES).items():
        histogram = observed.values[name]
        assert histogram.low == pytest.approx(min(0, values.min()), abs=1e-6)
        assert histogram.high == pytest.approx(max(0, values.max()), abs=1e-6)
        assert histogram.counts.sum() + histogram.zeros == values.size
        assert histogram.zeros == pytest.approx((values == 0).sum(), abs=2)
    assert observed.pictures == tuple(Picture(crop.path.name, file_sha256(crop.path)) for crop in chosen)
    assert (observed.dataset, observed.source, observed.seed) == ("made up", "train", 4)
    assert observed.graph == file_sha256(bundle.model)
    assert told == [(8, 9), (9, 9)]


def test_all_pictures_are_taken_where_there_are_fewer(bundle, pictures):
    assert len(observe(bundle, pictures, images=512, threads=1).pictures) == 12


@pytest.mark.parametrize("batch", [1, 5])
def test_a_graph_of_one_batch_is_filled_up_and_what_fills_it_is_not_counted(tmp_path, pictures, batch):
    fixed = write(tmp_path / "fixed.reid", batch=batch)
    observed = observe(fixed, pictures, images=7, threads=1)
    free = observe(write(tmp_path / "free.reid"), pictures, images=7, threads=1)
    assert len(observed.pictures) == 7
    for name in VALUES:
        assert observed.values[name].high == pytest.approx(free.values[name].high, rel=1e-5)
        one, two = observed.values[name], free.values[name]
        assert one.counts.sum() + one.zeros == two.counts.sum() + two.zeros


def test_a_table_says_where_it_is_from(bundle, pictures):
    observed = observe(bundle, pictures, images=6, seed=1, threads=1)
    table = calibration_of(bundle, observed, "percentile", percentile=99.0, floats=["two", "one", "two"])
    assert (table.graph, table.placement, table.method, table.percentile) == (
        file_sha256(bundle.model), PLACEMENT, "percentile", 99.0
    )  # fmt: skip
    assert (table.dataset, table.source, table.seed, table.pictures) == ("made up", "train", 1, observed.pictures)
    assert table.floats == ("one", "two")
    assert table.ranges.keys() == {*VALUES}
    assert table.created is not None
    assert table.created.endswith("+00:00")
    for name, weight in weights().items():
        if name.endswith(".weight"):
            peaks = np.abs(weight).reshape(len(weight), -1).max(1)
            np.testing.assert_allclose(table.scales[name.removesuffix(".weight")], peaks / 127, rtol=1e-6)
    assert calibration_of(bundle, observed, "minmax").percentile is None


@pytest.mark.parametrize("method", ["minmax", "entropy", "percentile", "mse"])
def test_every_method_gives_a_graph_that_runs(bundle, pictures, method):
    observed = observe(bundle, pictures, images=8, threads=1)
    table = calibration_of(bundle, observed, method)
    model = quantizable_graph(bundle)
    crops = np.stack([load_crop(crop.path, bundle.manifest.input) for crop in pictures.crops])
    (truth,) = run(model, {"crops": crops})
    for kind in ("cpu", "tensorrt"):
        (got,) = run(quantized_graph(model, place(model, kind), table), {"crops": crops})
        assert np.abs(got - truth).max() < 0.1 * np.abs(truth).max()


def test_the_same_pictures_give_the_same_bytes(bundle, pictures):
    def made():
        table = calibration_of(bundle, observe(bundle, pictures, images=9, threads=1), "entropy")
        return calibration_bytes(replace(table, created=None))

    assert made() == made()


def test_ranges_of_training_come_before_what_was_seen(bundle, pictures):
    observed = observe(bundle, pictures, images=4, threads=1)
    table = calibration_of(bundle, observed, "qat", learned={"a": Range(0.0, 9.0)})
    assert table.ranges["a"] == Range(0.0, 9.0)
    assert table.ranges["d"] == calibration_of(bundle, observed, "minmax").ranges["d"]
    with pytest.raises(ConfigError, match="Learned ranges are of quantisation-aware training, and of nothing else"):
        calibration_of(bundle, observed, "minmax", learned={})
    with pytest.raises(ConfigError, match="Learned ranges are of quantisation-aware training, and of nothing else"):
        calibration_of(bundle, observed, "qat")


def test_a_table_of_layers_that_are_not_there(bundle, pictures):
    observed = observe(bundle, pictures, images=4, threads=1)
    with pytest.raises(ConfigError, match="Unknown layer to keep in float: 'three'"):
        calibration_of(bundle, observed, "minmax", floats=["three"])


def test_what_was_seen_of_another_graph(bundle, pictures, tmp_path):
    observed = observe(bundle, pictures, images=4, threads=1)
    other = write(tmp_path / "other.reid", changed={"two.bias": np.ones(5, np.float32)})
    with pytest.raises(BundleError) as caught:
        calibration_of(other, observed, "minmax")
    assert str(caught.value) == (
        "The table of ranges was made from another graph than that of other.reid\n"
        f"  got: sha256 {file_sha256(bundle.model)[:16]}…\n  expected: sha256 {file_sha256(other.model)[:16]}…\n"
        "  to do: quantise the bundle with pictures: reid quantize BUNDLE --calibration DIR"
    )


# Pictures


@pytest.mark.parametrize(("count", "got"), [(0, "0"), (1, "1")])
def test_too_few_pictures(bundle, tmp_path, count, got):
    few = write_pictures(tmp_path / "few", count)
    with pytest.raises(DataError) as caught:
        observe(bundle, few, threads=1)
    assert str(caught.value) == (
        f"{tmp_path / 'few'} has too few pictures to calibrate with\n  got: {got}\n"
        "  expected: 2 or more; 512 are usual\n"
        "  to do: name a data set, or a folder with crops of many people"
    )


@pytest.mark.parametrize("images", [1, 0, -5])
def test_too_few_are_asked_for(bundle, pictures, images):
    with pytest.raises(ConfigError, match=f"Too few images to calibrate with\n  got: {images}\n  expected: 2 or more"):
        observe(bundle, pictures, images=images)


def break_some(pictures, *places):
    chosen = in_order_of_choice(pictures.crops, 0)
    for place_ in places:
        chosen[place_].path.write_bytes(b"\x89PNG\r\n\x1a\nno more")
    return chosen


def test_an_unreadable_picture_is_named(bundle, pictures):
    broken = break_some(pictures, 3)[3]
    with pytest.raises(ImageError, match=broken.path.name):
        observe(bundle, pictures, images=6, threads=1)


def test_a_picture_that_is_not_chosen_may_be_broken(bundle, pictures):
    break_some(pictures, 11)
    assert len(observe(bundle, pictures, images=6, threads=1).pictures) == 6


def test_unreadable_pictures_are_replaced_by_others(bundle, pictures):
    chosen = break_some(pictures, 0, 3, 4)
    observed = observe(bundle, pictures, images=6, threads=1, skip_unreadable=True)
    assert [picture.name for picture in observed.pictures] == [chosen[i].path.name for i in (1, 2, 5, 6, 7, 8)]
    assert [chosen[i].path.name in str(error) for i, error in zip((0, 3, 4), observed.unreadable, strict=True)] == [
        True
    ] * 3


def test_too_few_are_readable(bundle, pictures):
    break_some(pictures, *range(11))
    with pytest.raises(DataError, match="has too few pictures to calibrate with\n  got: 1, 11 unreadable\n"):
        observe(bundle, pictures, threads=1, skip_unreadable=True)


def test_names_are_told_below_the_folder_and_of_others_alone(bundle, pictures, tmp_path):
    (tmp_path / "people" / "deep").mkdir()
    first = pictures.crops[0].path.rename(tmp_path / "people" / "deep" / "q.png")
    second = pictures.crops[1].path.rename(tmp_path / "elsewhere.png")
    crops = (replace(pictures.crops[0], path=first), replace(pictures.crops[1], path=second))
    observed = observe(bundle, replace(pictures, crops=crops), threads=1)
    assert {picture.name for picture in observed.pictures} == {"deep/q.png", "elsewhere.png"}


# Values


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_named(tmp_path, pictures, bad):
    bundle = write(tmp_path / "bad.reid", changed={"one.bias": np.array([0, 0, bad, 0, 0, 0], np.float32)})
    with pytest.raises(ModelError) as caught:
        observe(bundle, pictures, images=6, threads=1)
    names = [crop.path.name for crop in in_order_of_choice(pictures.crops, 0)[:3]]
    assert str(caught.value) == (
        f"Value 'b' of the graph is not finite on calibration pictures\n"
        f"  got: in a batch that begins with {', '.join(names)}\n  expected: finite numbers\n"
        "  to do: check the pre-processing that the bundle was imported with, and its weights"
    )


def test_a_value_that_is_0_on_every_picture(tmp_path, pictures):
    bundle = write(tmp_path / "dead.reid", changed={"stem.bias": np.full(6, -1e9, np.float32)})
    observed = observe(bundle, pictures, images=4, threads=1)  # behind the ReLU all is 0
    assert (observed.values["a"].low, observed.values["a"].high) == (0.0, 0.0)
    table = calibration_of(bundle, observed, "mse")
    assert table.ranges["a"] == Range(0.0, 0.0)
    model = quantizable_graph(bundle)
    crops = np.stack([load_crop(crop.path, bundle.manifest.input) for crop in pictures.crops])
    (truth,) = run(model, {"crops": crops})
    for kind in ("cpu", "tensorrt"):
        for optimized in (False, True):
            (got,) = run(quantized_graph(model, place(model, kind), table), {"crops": crops}, optimized=optimized)
            np.testing.assert_allclose(got, truth, atol=0.05 * np.abs(truth).max())


def test_weights_that_are_not_finite_are_named(tmp_path, bundle, pictures):
    observed = observe(bundle, pictures, images=4, threads=1)
    spoilt = write(tmp_path / "nan.reid", changed={"two.weight": np.full((5, 6, 1, 1), np.nan, np.float32)})
    with pytest.raises(ModelError, match="cannot be quantised: layer two has weights that are not finite"):
        calibration_of(spoilt, replace(observed, graph=file_sha256(spoilt.model)), "minmax")


# Graphs


def test_a_graph_of_an_older_opset_is_raised(tmp_path, pictures):
    old, new = write(tmp_path / "old.reid", opset=11), write(tmp_path / "new.reid", opset=17)
    model = quantizable_graph(old)
    assert model.opset_import[0].version == 13
    onnx.checker.check_model(model, full_check=True)
    one, two = (calibration_of(b, observe(b, pictures, images=5, threads=1), "minmax") for b in (old, new))
    assert one.ranges == two.ranges
    assert one.scales == two.scales


def test_a_graph_that_is_quantised_already(tmp_path, bundle, pictures):
    table = calibration_of(bundle, observe(bundle, pictures, images=4, threads=1), "minmax")
    model = quantizable_graph(bundle)
    done = quantized_graph(model, place(model, "cpu"), table)
    for opset in (17, 11):
        done.opset_import[0].version = opset
        if opset < 13:  # the first with an axis
            for found in done.graph.node:
                if found.op_type in {"QuantizeLinear", "DequantizeLinear"}:
                    del found.attribute[:]
        again = write(tmp_path / f"again{opset}.reid", model=done.SerializeToString())
        with pytest.raises(ModelError, match="The graph is quantised already\n  got: DequantizeLinear, QuantizeLinear"):
            quantizable_graph(again)


def test_a_model_without_convolutions(tmp_path, pictures):
    flat = [
        helper.make_node("Cast", ["crops"], ["pixels"], to=1),
        helper.make_node("Flatten", ["pixels"], ["x"]),
        helper.make_node("MatMul", ["x", "dense"], ["embeddings"]),
    ]
    bundle = write(tmp_path / "flat.reid", instead=flat, changed={"dense": np.ones((96, 5), np.float32)})
    with pytest.raises(ModelError, match="The graph has nothing to quantise"):
        observe(bundle, pictures)


def with_operator(name, domain):
    made = nodes()
    made[6] = helper.make_node(name, ["b"], ["c"], domain=domain)
    return made


def test_an_operator_that_nobody_knows_is_named(tmp_path, pictures):
    bundle = write(tmp_path / "magic.reid", instead=with_operator("Magic", "acme"), domains=["acme"])
    with pytest.raises(ModelError) as caught:
        observe(bundle, pictures, threads=1)
    text = str(caught.value)
    assert text.startswith("onnxruntime ")
    assert "which ranges are learned with, cannot open the graph\n  got: " in text
    assert "acme:Magic" in text
    assert text.endswith("to do: update onnxruntime, or export the network with standard operators")


def test_behind_an_operator_of_onnx_runtimes_own_all_stays_float(tmp_path, pictures):
    instead = with_operator("BiasGelu", "com.microsoft")
    instead[6] = helper.make_node("QuickGelu", ["b"], ["c"], domain="com.microsoft", alpha=1.0)
    bundle = write(tmp_path / "gelu.reid", instead=instead, domains=["com.microsoft"])
    observed = observe(bundle, pictures, images=4, threads=1)
    assert sorted(observed.values) == ["a", "b", "x"]
    assert calibration_of(bundle, observed, "minmax").scales.keys() == {"stem", "one"}


def test_a_graph_that_fails_while_it_runs(tmp_path, pictures):
    instead = nodes()
    instead.insert(7, helper.make_node("Reshape", ["c", "five"], ["c2"]))
    instead[8] = helper.make_node("Relu", ["c2"], ["d"])
    bundle = write(tmp_path / "bad.reid", instead=instead, changed={"five": np.array([-1, 6, 8, 5])})
    with pytest.raises(ModelError, match=r"which ranges are learned with, (fails on calibration|cannot open)"):
        observe(bundle, pictures, images=3, threads=1)


def test_a_graph_that_is_none(tmp_path):
    with pytest.raises(ModelError, match=r"model\.onnx is not an ONNX file"):
        quantizable_graph(write(tmp_path / "none.reid", model=b"the graph"))


def test_a_graph_of_openvino(tmp_path, bundle):
    ir = write_bundle(
        tmp_path / "ir.reid",
        replace(bundle.manifest, files={}),
        model=IrGraph(b"<net/>", b"weights"),
        golden=bundle.golden(),
    )
    with pytest.raises(BundleError) as caught:
        quantizable_graph(ir)
    assert str(caught.value) == (
        "ir.reid has no ONNX graph to quantise\n  got: a graph of openvino\n"
        "  to do: quantise it with the tool that made it, and import what comes of it"
    )
