"""Parity as a gate: what passes, what fails, and the numbers by hand."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from reidkit.bundle import Golden, open_bundle
from reidkit.calibration import Calibration, Picture
from reidkit.deploy.verify import (
    TOLERANCES,
    Parity,
    Refusal,
    Tolerance,
    check_accuracy,
    check_parity,
    measure_on,
    seen_in_calibration,
    verify,
)
from reidkit.errors import InputError
from reidkit.types import Crop, EmbedderSpec, InputSpec, Split

SPEC = EmbedderSpec(InputSpec(2, 2), 2, False, None, "fake", "float32", "cpu")


class Fake:
    """Looks embeddings up by the first pixel of a crop; may give others for a crop on its own."""

    def __init__(self, embeddings, alone=None, precision="float32"):
        self.spec = replace(SPEC, precision=precision, dim=len(embeddings[0]))
        self._together = np.asarray(embeddings, np.float32)
        self._alone = self._together if alone is None else np.asarray(alone, np.float32)

    def embed(self, crops):
        table = self._alone if len(crops) == 1 else self._together
        return table[crops[:, 0, 0, 0]]


def golden_of(embeddings):
    crops = np.zeros((len(embeddings), 2, 2, 3), np.uint8)
    crops[:, 0, 0, 0] = np.arange(len(embeddings))
    return Golden(crops, np.asarray(embeddings, np.float32))


GOLDEN = golden_of([[3.0, 4.0], [0.0, 2.0], [1.0, 0.0]])


def test_the_same_embeddings_pass():
    parity = check_parity(Fake(GOLDEN.embeddings), GOLDEN)
    assert parity == Parity("fake", "cpu", "float32", 0.0, 0.0, 1.0, 0.0, 1.0, Tolerance(1e-4, 0.99999))
    assert parity.passed


def test_the_measures_by_hand():
    got = [[3.0, 4.5], [0.0, 2.0], [1.0, 0.25]]
    parity = check_parity(Fake(got), GOLDEN)
    assert parity.max_abs == pytest.approx(0.5)
    assert parity.max_rel == pytest.approx(0.25)  # 0.5 / 5 and 0.25 / 1
    assert parity.min_cosine == pytest.approx(1 / np.hypot(1, 0.25))
    assert parity.mean_cosine == pytest.approx((27 / np.hypot(3.0, 4.5) / 5 + 1 + parity.min_cosine) / 3)
    assert not parity.passed


def test_a_crop_on_its_own_counts_too():
    alone = GOLDEN.embeddings.copy()
    alone[1] = [2.0, 0.0]
    parity = check_parity(Fake(GOLDEN.embeddings, alone), GOLDEN)
    assert (parity.max_abs, parity.max_rel, parity.min_cosine) == pytest.approx((2.0, 2**0.5, 0.0))
    assert (parity.mean_rel, parity.mean_cosine) == pytest.approx((2**0.5 / 3, 2 / 3))
    assert not parity.passed


def test_embeddings_in_another_order_fail():
    assert not check_parity(Fake(GOLDEN.embeddings[::-1]), GOLDEN).passed


def test_a_scaled_embedding_fails_though_its_cosine_is_one():
    parity = check_parity(Fake(GOLDEN.embeddings * 1.01), GOLDEN)
    assert parity.min_cosine == pytest.approx(1.0)
    assert not parity.passed


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["together", "alone", "golden"])
def test_what_is_no_number_never_passes(value, where):
    bad = GOLDEN.embeddings.copy()
    bad[2, 0] = value
    together = bad if where == "together" else GOLDEN.embeddings
    alone = bad if where == "alone" else GOLDEN.embeddings
    golden = golden_of(bad) if where == "golden" else GOLDEN
    assert not check_parity(Fake(together, alone), golden).passed


def test_an_embedding_of_zeros_fails():
    assert not check_parity(Fake(np.zeros((3, 2))), GOLDEN).passed


def turned(*degrees):
    """The golden embeddings, each turned by so much."""
    angles = np.deg2rad(degrees)
    cosine, sine = np.cos(angles), np.sin(angles)
    x, y = GOLDEN.embeddings.T
    return np.stack([cosine * x - sine * y, sine * x + cosine * y], axis=1)


@pytest.mark.parametrize("precision", list(TOLERANCES))
def test_each_precision_has_its_own_tolerance(precision):
    limit = TOLERANCES[precision].mean or TOLERANCES[precision]
    below = check_parity(Fake(GOLDEN.embeddings * np.float32(1 + 0.9 * limit.relative), precision=precision), GOLDEN)
    above = check_parity(Fake(GOLDEN.embeddings * np.float32(1 + 1.1 * limit.relative), precision=precision), GOLDEN)
    assert (below.passed, above.passed) == (True, False)
    assert below.tolerance == TOLERANCES[precision]
    angle = np.rad2deg(np.arccos(limit.cosine))
    parity = check_parity(Fake(turned(angle, angle, angle), precision=precision), GOLDEN)
    assert parity.min_cosine == pytest.approx(limit.cosine, abs=1e-6)


def test_a_coarser_arithmetic_is_allowed_more():
    assert [t.relative for t in TOLERANCES.values()] == sorted(t.relative for t in TOLERANCES.values())
    assert [t.cosine for t in TOLERANCES.values()] == sorted((t.cosine for t in TOLERANCES.values()), reverse=True)


@pytest.mark.parametrize(
    ("degrees", "passed"),
    [
        ((18, 3, 3), True),  # .951, and .983 on the average
        ((15, 15, 15), False),  # .966 each
    ],
)
def test_in_int8_a_drawn_crop_may_be_far_off_and_not_all_of_them(degrees, passed):
    parity = check_parity(Fake(turned(*degrees), precision="int8"), GOLDEN)
    assert parity.passed is passed
    assert parity.mean_cosine == pytest.approx(np.cos(np.deg2rad(degrees)).mean(), abs=1e-6)
    assert parity.min_cosine == pytest.approx(np.cos(np.deg2rad(max(degrees))), abs=1e-6)
    assert f", min cosine {parity.min_cosine:.6f}; on the average " in parity.in_words
    assert parity.in_words.endswith(f" and {parity.mean_cosine:.6f}")


@pytest.mark.parametrize(
    ("measures", "passed"),
    [
        ((0.44, 0.91, 0.24, 0.98), True),
        ((0.46, 0.91, 0.24, 0.98), False),
        ((0.44, 0.89, 0.24, 0.98), False),
        ((0.44, 0.91, 0.26, 0.98), False),
        ((0.44, 0.91, 0.24, 0.96), False),
        ((0.44, 0.91, np.nan, 0.98), False),
    ],
)
def test_every_limit_of_int8_counts(measures, passed):
    parity = Parity("fake", "cpu", "int8", 1.0, *measures, TOLERANCES["int8"])
    assert parity.passed is passed


def test_tolerances_in_words():
    assert TOLERANCES["float16"].in_words == "max rel at most 0.02, min cosine at least 0.9999"
    words = "max rel at most 0.45, min cosine at least 0.9; on the average 0.25 and 0.97"
    assert TOLERANCES["int8"].in_words == words
    parity = check_parity(Fake(GOLDEN.embeddings), GOLDEN)
    assert parity.in_words == "max rel 0.0e+00, min cosine 1.000000"


@pytest.mark.parametrize("batches", [(1,), (4,), (1, 3, 16)])
@pytest.mark.parametrize("far", range(8))
def test_in_every_batch_each_golden_crop_counts_as_much(batches, far):
    angles = np.arange(8.0)
    embeddings = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    crops = np.arange(8, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    angles[far] += np.arccos(0.92)

    engine = Fake(np.stack([np.cos(angles), np.sin(angles)], axis=1), precision="int8")
    engine.batches = batches
    parity = check_parity(engine, Golden(crops, embeddings))
    assert parity.mean_cosine == pytest.approx((7 + 0.92) / 8, abs=1e-6)
    assert parity.min_cosine == pytest.approx(0.92, abs=1e-6)
    assert parity.passed


def test_the_mean_is_that_of_the_worst_batch():
    parity = check_parity(Fake(turned(1, 1, 1), alone=turned(20, 20, 20), precision="int8"), GOLDEN)
    assert parity.mean_cosine == pytest.approx(np.cos(np.deg2rad(20)), abs=1e-6)
    assert not parity.passed


def test_no_golden_crop_is_no_proof():
    with pytest.raises(InputError, match=r"There is no golden crop to compare with\n  expected: at least one"):
        check_parity(Fake([[1.0, 2.0]]), golden_of(np.zeros((0, 2))))


def test_embeddings_of_another_width_are_no_match():
    text = r"fake gives embeddings of another shape than the golden ones\n  got: \(3, 1\)\n  expected: \(3, 2\)"
    with pytest.raises(InputError, match=text):
        check_parity(Fake([[3.0], [0.0], [1.0]]), GOLDEN)


def test_every_engine_passes_on_a_good_bundle(tiny_bundle):
    rows = verify(open_bundle(tiny_bundle), ["onnxruntime", "openvino", "pytorch"])
    assert [row.runtime for row in rows] == ["onnxruntime", "openvino", "pytorch"]
    assert all(row.passed and row.device == "cpu" and row.precision == "float32" for row in rows)


@pytest.mark.parametrize("change", ["noise", "one value", "order"])
def test_an_engine_fails_when_the_golden_embeddings_are_others(tiny_bundle, monkeypatch, change):
    bundle = open_bundle(tiny_bundle)
    golden = bundle.golden()
    embeddings = golden.embeddings.copy()
    match change:
        case "noise":
            embeddings *= 1 + 2e-3 * np.random.default_rng(0).standard_normal(embeddings.shape).astype(np.float32)
        case "one value":
            embeddings[5, 100] += 0.01 * np.linalg.norm(embeddings[5])
        case "order":
            embeddings = embeddings[::-1].copy()
    monkeypatch.setattr("reidkit.bundle.Bundle.golden", lambda self: Golden(golden.crops, embeddings))
    (row,) = verify(bundle, ["onnxruntime"])
    assert not row.passed


def test_an_engine_that_cannot_open_it_fails_and_the_others_are_checked(tiny_bundle, monkeypatch):
    monkeypatch.setattr("onnxruntime.get_available_providers", list)
    refused, checked = verify(open_bundle(tiny_bundle), ["onnxruntime", "openvino"])
    assert isinstance(refused, Refusal)
    assert (refused.runtime, refused.device, refused.passed) == ("onnxruntime", "cpu", False)
    assert "This build of ONNX Runtime has no cpu" in str(refused.error)
    assert checked.passed


def test_precisions_are_checked_each_and_refused_each(tiny_bundle, monkeypatch):
    # Instance normalisation over the two positions of so small a map makes rounding large.
    monkeypatch.setitem(TOLERANCES, "float16", Tolerance(0.1, 0.99))
    rows = verify(open_bundle(tiny_bundle), ["pytorch", "onnxruntime"], precisions=["float16", "float32"])
    assert [(row.runtime, row.precision, row.passed) for row in rows] == [
        ("pytorch", "float16", True),
        ("pytorch", "float32", True),
        ("onnxruntime", "float16", False),
        ("onnxruntime", "float32", True),
    ]
    half, single = rows[:2]
    assert half.max_rel > 10 * single.max_rel > 0
    assert "onnxruntime does not run this bundle in float16 here" in str(rows[2].error)


# -- on a data set -----------------------------------------------------------------------------------------------------

BASE = np.array([[3.0, 0.0], [0.0, 2.0], [6.0, 0.9], [0.5, 5.0]])  # two queries, and the right answer of each


@pytest.fixture
def split(tmp_path):
    """Two people whom two cameras see; the brightness of a crop is its number."""
    crops = []
    for number in range(4):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (2, 2), (number, 0, 0)).save(path)
        crops.append(Crop(path, number % 2, number // 2))
    return Split("folder", tmp_path, query=tuple(crops[:2]), gallery=tuple(crops[2:]))


def measured(split, embeddings, precision="float32"):
    return measure_on(Fake(embeddings, embeddings, precision), split)


def test_engines_that_agree(split):
    reference = measured(split, BASE)
    agreement = check_accuracy(reference, measured(split, 7 * BASE, "float16"))  # length is not looked at
    assert (agreement.crops, agreement.mean_ap, agreement.rank1.difference, agreement.top) == (4, (1.0, 1.0), 0.0, 1.0)
    assert agreement.max_abs < 1e-7
    assert agreement.max_rel == 0
    assert agreement.min_cosine == pytest.approx(1)
    assert (agreement.reference.precision, agreement.engine.precision) == ("float32", "float16")
    assert (agreement.change.difference, agreement.change.interval) == (0.0, (0.0, 0.0))
    assert agreement.passed


def test_the_differences_on_a_data_set_by_hand(split):
    other = BASE.copy()
    other[3] = [12.0, 9.0]  # 0.8 and 0.6 of its length: the first query still finds its own, the second still this
    reference, engine = measured(split, BASE), measured(split, other)
    agreement = check_accuracy(reference, engine)
    unit = BASE[3] / np.hypot(0.5, 5.0)
    assert agreement.max_abs == pytest.approx(0.8 - unit[0], rel=1e-5)
    assert agreement.max_rel == pytest.approx((0.8 - unit[0] - 1e-5) / unit[0], rel=1e-5)
    assert agreement.min_cosine == pytest.approx((unit * [0.8, 0.6]).sum())
    assert agreement.mean_cosine == pytest.approx((3 + agreement.min_cosine) / 4)
    assert agreement.mean_ap == (1.0, 1.0)


def test_a_crop_that_int8_rounds_badly_is_no_fault_where_nothing_is_lost(split):
    other = BASE.copy()
    other[3] = [2.0, 5.0]
    reference = measured(split, BASE)
    rounded, half = (check_accuracy(reference, measured(split, other, kind)) for kind in ("int8", "float16"))
    assert rounded.min_cosine < 0.97 < rounded.mean_cosine
    assert rounded.passed
    assert not half.passed
    assert not check_accuracy(reference, measured(split, -other, "int8"), max_drop=1.0).passed


def test_pictures_that_ranges_were_learned_of_are_counted(split):
    digest = hashlib.sha256(split.gallery[0].path.read_bytes()).hexdigest()
    other = Picture("elsewhere.jpg", "0" * 64)
    table = Calibration("graph", 1, "minmax", {}, {}, pictures=(Picture("a.jpg", digest), other))
    assert seen_in_calibration(table, split) == 1
    assert seen_in_calibration(replace(table, pictures=(other,)), split) == 0


def test_map_that_is_lost_and_how_much_is_allowed(split):
    other = BASE.copy()
    other[0] = [0.0, 3.0]  # this query finds the other person first: average precision 1/2
    reference, engine = measured(split, BASE), measured(split, other)
    agreement = check_accuracy(reference, engine)
    assert agreement.mean_ap == (1.0, 0.75)
    assert agreement.change.difference == -0.25
    assert (agreement.rank1.difference, agreement.rank1.interval) == (-0.5, (-1.0, 0.0))
    assert agreement.change.interval == (-0.5, 0.0)
    assert not agreement.passed
    # One crop is far from the reference's: that alone is a fault, whatever mAP may lose.
    assert not check_accuracy(reference, engine, max_drop=0.25).passed

    def near(agreement):
        return replace(agreement, min_cosine=1.0)

    assert near(check_accuracy(reference, engine, max_drop=0.25)).passed
    assert not near(check_accuracy(reference, engine, max_drop=0.2499)).passed
    assert near(check_accuracy(engine, reference, max_drop=0.0)).passed  # to gain is no fault


def test_the_same_nearest_crops(tmp_path, monkeypatch):
    """Of twelve crops ten are shown; an engine that swaps the last ones for the first has eight of them."""
    crops = []
    for number in range(13):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (2, 2), (number, 0, 0)).save(path)
        crops.append(Crop(path, 0 if number < 2 else number, min(number, 1)))
    split = Split("folder", tmp_path, query=tuple(crops[:1]), gallery=tuple(crops[1:]))
    angles = np.arange(13) / 20
    reference = measured(split, np.stack([np.cos(angles), np.sin(angles)], axis=1))
    angles[[2, 3, 11, 12]] = angles[[11, 12, 2, 3]]
    engine = measured(split, np.stack([np.cos(angles), np.sin(angles)], axis=1))
    assert check_accuracy(reference, engine).top == pytest.approx(0.8)


def test_embeddings_of_another_width_are_not_compared(split):
    wider = np.concatenate([BASE, BASE], axis=1)
    text = r"fake gives embeddings of another width than the reference\n  got: 4\n  expected: 2"
    with pytest.raises(InputError, match=text):
        check_accuracy(measured(split, BASE), measured(split, wider))


def test_another_data_set_is_not_compared(split):
    other = replace(split, root=split.root / "elsewhere")
    with pytest.raises(InputError, match="The two reports are of different data sets"):
        check_accuracy(measured(split, BASE), measured(other, BASE))


def test_batches_with_kernels_of_their_own_are_checked_as_well():
    """An engine that is right for 8 crops and for one, and mixes up its batch of 16."""
    crops = np.arange(8, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    embeddings = np.stack([np.cos(np.arange(8)), np.sin(np.arange(8))], axis=1).astype(np.float32)

    class Mixed:
        batches = (1, 16)
        spec = EmbedderSpec(InputSpec(2, 2), 2, False, None, "mixed", "float32", "cpu")

        def embed(self, crops):
            rows = embeddings[crops[:, 0, 0, 0]]
            return np.roll(rows, 1, axis=0) if len(crops) == 16 else rows

    class Right(Mixed):
        def embed(self, crops):
            return embeddings[crops[:, 0, 0, 0]]

    assert check_parity(Right(), Golden(crops, embeddings)).passed
    assert not check_parity(Mixed(), Golden(crops, embeddings)).passed
