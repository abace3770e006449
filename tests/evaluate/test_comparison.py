"""Two reports over the same queries, made by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from reidkit.errors import InputError
from reidkit.evaluate import EmbeddedBy, EmbeddedCrops, compare_reports, rank_embedded
from reidkit.evaluate.report import Unreadable
from reidkit.index.refinement import Refinement
from reidkit.metrics.protocol import PROTOCOLS
from reidkit.types import Crop, Split


def crops(name, count, camid):
    return tuple(Crop(Path(f"{name}{i}.png"), i, camid) for i in range(count))


def report(places, *, gallery=None, **how):
    """Every query has one match, at the gallery place of its own number; a query at another place finds another."""
    places = np.array(places, dtype=np.float32)[:, None]
    query = EmbeddedCrops(crops("q", len(places), 0), places)
    gallery = crops("g", len(places), 1) if gallery is None else gallery
    pool = EmbeddedCrops(gallery, np.arange(len(gallery), dtype=np.float32)[:, None])
    split = Split("table", Path("data"), query=query.crops, gallery=pool.crops)
    return rank_embedded(query, pool, split=split, embedded=EmbeddedBy("m"), metric="euclidean", **how)


GALLERY = crops("g", 40, 1)
RIGHT = [i + 0.1 for i in range(40)]


def wrong_for(*queries):
    return [i + 1.1 if i in queries else place for i, place in enumerate(RIGHT)]


def test_a_model_and_itself_do_not_differ():
    comparison = compare_reports(report(RIGHT), report(RIGHT))
    assert not comparison.differ
    assert [change.measure for change in comparison.measures] == ["mAP", "rank-1", "mINP"]
    assert all(change.paired.p_value == 1 and change.paired.difference == 0 for change in comparison.measures)
    words = comparison.in_words("A", "B")
    assert words.startswith("A and B do not differ beyond chance on these 40 queries: mAP +0.00")


def test_a_real_difference_by_hand():
    lost = tuple(range(0, 30, 2))
    comparison = compare_reports(report(RIGHT), report(wrong_for(*lost)))
    ap, first, _ = comparison.measures
    assert (first.a, first.b) == (1.0, (40 - 15) / 40)
    assert ap.paired.difference == pytest.approx(ap.b - ap.a)
    assert ap.paired.interval.low < ap.paired.difference < ap.paired.interval.high < 0
    assert comparison.differ
    words = comparison.in_words("A", "B")
    assert words.startswith("A is better beyond chance on these 40 queries: mAP -")
    assert words.endswith("for B against A.")
    # The queries that B lost stand first, by their loss.
    assert {change.row for change in comparison.queries[:15]} == set(lost)
    assert all(change.a == 1 and change.b < 1 for change in comparison.queries[:15])
    assert all(change.a == change.b for change in comparison.queries[15:])


def test_one_lucky_query_is_chance():
    comparison = compare_reports(report(wrong_for(3)), report(RIGHT))
    assert comparison.measures[1].paired.difference == pytest.approx(1 / 40)
    assert comparison.measures[1].paired.p_value == 1.0  # one changed query: either sign is as likely
    assert not comparison.differ


def test_the_order_of_the_two_only_turns_the_sign():
    one, other = report(RIGHT), report(wrong_for(1, 5, 9))
    there, back = compare_reports(one, other), compare_reports(other, one)
    assert there.measures[0].paired.difference == -back.measures[0].paired.difference
    assert there.measures[0].paired.p_value == pytest.approx(back.measures[0].paired.p_value)


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_the_measures_are_those_of_the_reports(protocol):
    rng = np.random.default_rng(1)
    pids = np.repeat(np.arange(30), np.where(np.arange(30) < 25, 2, 9))
    shown = tuple(Crop(Path(f"{i}.png"), pid, i % 4) for i, pid in enumerate(pids.tolist()))
    split = Split("table", Path("data"), query=shown, gallery=shown)

    def of(noise):
        crops = EmbeddedCrops(shown, (pids[:, None] + rng.normal(scale=noise, size=(95, 3))).astype(np.float32))
        return rank_embedded(crops, crops, split=split, embedded=EmbeddedBy("m"), metric="euclidean", protocol=protocol)

    a, b = of(0.5), of(2.0)
    comparison = compare_reports(a, b)
    ap, first, penalty = comparison.measures
    assert (ap.a, ap.b, first.a, first.b) == (a.mean_ap, b.mean_ap, a.cmc(1), b.cmc(1))
    assert (penalty.a, penalty.b) == (a.mean_inp, b.mean_inp)
    for change in comparison.measures:
        assert change.paired.difference == pytest.approx(change.b - change.a, abs=1e-12)
        assert change.paired.interval.low < change.paired.difference < change.paired.interval.high
    assert len(comparison.queries) == a.valid


def test_plain_values():
    comparison = compare_reports(report(RIGHT), report(wrong_for(3)))
    values = comparison.as_dict("old", "new")
    assert values["a"] == comparison.a.as_dict()
    assert values["verdict"] == comparison.in_words("old", "new")
    assert values["differ"] is False
    assert values["queries"][0] == {"query": "q3.png", "a": 1.0, "b": pytest.approx(1 / 3)}
    assert len(values["queries"]) == 40
    assert [change["measure"] for change in values["measures"]] == ["mAP", "rank-1", "mINP"]
    assert values["measures"][1] | {"interval": None} == {
        "measure": "rank-1",
        "a": 1.0,
        "b": 39 / 40,
        "difference": pytest.approx(-1 / 40),
        "interval": None,
        "p": 1.0,
    }


def test_settings_are_said_only_where_they_differ():
    plain, other = report(RIGHT), report(RIGHT, refinement=Refinement(query_expansion=2))
    assert compare_reports(plain, other).in_words("A", "B").endswith(" The refinement of A is none, that of B AQE 2.")
    both = replace(other, metric="cosine")
    assert (
        compare_reports(plain, both)
        .in_words("A", "B")
        .endswith(". The metric of A is euclidean, that of B cosine. The refinement of A is none, that of B AQE 2.")
    )
    assert "metric" not in compare_reports(other, other).in_words("A", "B")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: report(RIGHT[:39], gallery=GALLERY), "reports are of different queries\n  got: 40 of them and 39 of"),
        (lambda: report(RIGHT, gallery=GALLERY[:39]), "different galleries\n  got: 40 crops and 39 crops"),
        (
            lambda: replace(report(RIGHT), unreadable=Unreadable(0, 2)),
            "readable pictures\n  got: 0 query and 0 gallery",
        ),
        (
            lambda: report(RIGHT, gallery=(*GALLERY[:39], replace(GALLERY[39], pid=99))),
            "valid queries\n  got: 40 of them and 39 of them",
        ),
        (lambda: replace(report(RIGHT), dataset="msmt17 x"), "of different data sets\n  got: table data and msmt17 x"),
        (lambda: report(RIGHT, protocol=PROTOCOLS["camera-less"]), "protocols\n  got: market1501 and camera-less"),
    ],
)
def test_different_things_are_not_compared(other, message):
    with pytest.raises(InputError, match=message):
        compare_reports(report(RIGHT), other())
