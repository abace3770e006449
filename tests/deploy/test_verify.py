"""Parity as a gate: what passes, what fails, and the numbers by hand."""

from dataclasses import replace

import numpy as np
import pytest

from reidkit.bundle import Golden, open_bundle
from reidkit.deploy.verify import TOLERANCES, Parity, Refusal, Tolerance, check_parity, verify
from reidkit.errors import InputError
from reidkit.types import EmbedderSpec, InputSpec

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
    assert parity == Parity("fake", "cpu", "float32", 0.0, 0.0, 1.0, Tolerance(1e-4, 0.99999))
    assert parity.passed


def test_the_measures_by_hand():
    got = [[3.0, 4.5], [0.0, 2.0], [1.0, 0.25]]
    parity = check_parity(Fake(got), GOLDEN)
    assert parity.max_abs == pytest.approx(0.5)
    assert parity.max_rel == pytest.approx(0.25)  # 0.5 / 5 and 0.25 / 1
    assert parity.min_cosine == pytest.approx(1 / np.hypot(1, 0.25))
    assert not parity.passed


def test_a_crop_on_its_own_counts_too():
    alone = GOLDEN.embeddings.copy()
    alone[1] = [2.0, 0.0]
    parity = check_parity(Fake(GOLDEN.embeddings, alone), GOLDEN)
    assert (parity.max_abs, parity.max_rel, parity.min_cosine) == pytest.approx((2.0, 2**0.5, 0.0))
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


@pytest.mark.parametrize("precision", list(TOLERANCES))
def test_each_precision_has_its_own_tolerance(precision):
    limit = TOLERANCES[precision]
    below = check_parity(Fake(GOLDEN.embeddings * np.float32(1 + 0.9 * limit.relative), precision=precision), GOLDEN)
    above = check_parity(Fake(GOLDEN.embeddings * np.float32(1 + 1.1 * limit.relative), precision=precision), GOLDEN)
    assert (below.passed, above.passed) == (True, False)
    assert below.tolerance == limit
    angle = np.arccos(limit.cosine)
    turned = GOLDEN.embeddings @ np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    parity = check_parity(Fake(turned, precision=precision), GOLDEN)
    assert parity.min_cosine == pytest.approx(limit.cosine, abs=1e-6)


def test_a_coarser_arithmetic_is_allowed_more():
    assert [t.relative for t in TOLERANCES.values()] == sorted(t.relative for t in TOLERANCES.values())
    assert [t.cosine for t in TOLERANCES.values()] == sorted((t.cosine for t in TOLERANCES.values()), reverse=True)


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
