"""Evaluation against a stand-in engine whose embeddings are known."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reidkit.data import inspect_split
from reidkit.errors import DataError, ImageError, InputError
from reidkit.evaluate import EmbeddedBy, EmbeddedCrops, evaluate, rank_embedded
from reidkit.index.refinement import Refinement
from reidkit.metrics.protocol import PROTOCOLS
from reidkit.types import DISTRACTOR, UNKNOWN_CAMERA, Crop, EmbedderSpec, InputSpec, Split


class MeanColor:
    """Embeds a crop as its mean colour."""

    spec = EmbedderSpec(InputSpec(8, 4), 3, False, None, "by hand", "float32", "cpu")

    def embed(self, crops):
        return crops.mean(axis=(1, 2)).astype(np.float32) + 1


@pytest.fixture
def crop(tmp_path):
    def make(color, pid, camid):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.png"
        Image.new("RGB", (4, 8), color).save(path)
        return Crop(path, pid, camid)

    return make


RED, DARK_RED, GREEN, BLUE = (250, 0, 0), (120, 10, 0), (0, 250, 0), (0, 0, 250)


def test_report_by_hand(crop, tmp_path):
    query = (crop(RED, 0, 0), crop(GREEN, 1, 0))
    gallery = (crop(RED, 0, 0), crop(DARK_RED, 0, 1), crop(RED, DISTRACTOR, 1), crop(GREEN, 1, 0))
    split = Split("market1501", tmp_path, query=query, gallery=gallery, junk=(crop(BLUE, DISTRACTOR, 0),))
    done = []
    report = evaluate(MeanColor(), split, batch_size=3, progress=lambda a, b: done.append((a, b)))
    # The red query: its own camera's crop is junk, the distractor is nearer than the match, the rest is farther.
    values = report.as_dict()
    assert values.pop("interval") == {name: [0.5, 0.5] for name in ("mAP", "mINP")} | {
        "rank-1": [0.0, 0.0],
        "rank-5": [1.0, 1.0],
        "rank-10": [1.0, 1.0],
    }  # of one query
    assert values == {
        "model": "model",
        "dataset": f"market1501 {tmp_path.name}",
        "mAP": 0.5,
        "mINP": 0.5,
        "rank": {"1": 0.0, "5": 1.0, "10": 1.0},
        "spread": None,
        # One match and two wrong pairs of the red query, three wrong of the green one: none may be accepted.
        "tpr": {"1e-4": 0.0, "1e-3": 0.0, "1e-2": 0.0},
        "camera_pairs": [{"query_camera": "0", "gallery_camera": "1", "mAP": 0.5, "queries": 1}],
        "queries": {
            "total": 2,
            "valid": 1,
            "valid_per_draw": 1,
            "unmatched": 1,
            "lost": 0,
            "never_asked": 0,
            "unmatched_names": [query[1].path.name],
            "lost_names": [],
        },
        "gallery": {"total": 4, "per_draw": 4, "distractors": 1},
        "junk": 1,
        "unreadable": {"query": 0, "gallery": 0},
        "protocol": "market1501",
        "draws": 1,
        "metric": "cosine",
        "refinement": "none",
        "runtime": "by hand",
        "precision": "float32",
        "device": "cpu",
        "tta": "none",
    }
    assert list(dict.fromkeys(done)) == [(i, 6) for i in range(1, 7)]


def test_queries_lost_to_unreadable_pictures_are_told_from_unmatched_ones(crop, tmp_path):
    query = tuple(crop(color, pid, 0) for pid, color in enumerate((RED, GREEN, BLUE, DARK_RED)))
    gallery = tuple(crop(color, pid, 1) for pid, color in enumerate((RED, GREEN, BLUE)))
    query[1].path.write_bytes(b"")
    gallery[2].path.write_bytes(b"")
    split = Split("folder", tmp_path, query=query, gallery=gallery)
    report = evaluate(MeanColor(), split, unreadable="skip")
    # 0 is fine, 1 cannot be read, the only match of 2 cannot, 3 has none.
    assert (report.valid, report.never_asked, report.gallery_per_draw) == (1, 0, 2)
    assert report.lost_names == (query[1].path.name, query[2].path.name)
    assert report.unmatched_names == (query[3].path.name,)
    assert report.names == tuple(query[i].path.name for i in (0, 2, 3))
    values = report.as_dict()
    assert values["unreadable"] == {"query": 1, "gallery": 1}
    assert (values["queries"]["total"], values["queries"]["valid"], values["queries"]["lost"]) == (4, 1, 2)
    assert values["gallery"]["total"] == 3
    assert values["mAP"] == 1.0


def test_a_query_does_not_find_its_own_file(crop, tmp_path):
    asked = crop(RED, 0, UNKNOWN_CAMERA)
    match, wrong = crop(GREEN, 0, UNKNOWN_CAMERA), crop(BLUE, 1, UNKNOWN_CAMERA)
    split = Split("table", tmp_path, query=(asked,), gallery=(asked, match, wrong))
    (ranking,) = evaluate(MeanColor(), split).rankings
    assert ranking.inverse_negative_penalty.tolist() == [0.5]  # green and blue are equally far from red: wrong first
    alone = Split("table", tmp_path, query=(asked,), gallery=(asked, wrong))
    with pytest.raises(InputError, match="No query has a match in the gallery, so"):
        evaluate(MeanColor(), alone, protocol=PROTOCOLS["camera-less"])


def test_inspection_finds_the_same_queries_valid(crop, tmp_path):
    rng = np.random.default_rng(0)
    query, gallery = (
        tuple(crop(RED, int(rng.integers(least, 6)), int(rng.integers(-1, 2))) for _ in range(12)) for least in (0, -1)
    )
    split = Split("table", tmp_path, query=query, gallery=(*gallery, *query[:4]))
    report = evaluate(MeanColor(), split)
    assert inspect_split(split).valid_queries == report.valid
    assert 0 < report.valid < 12


def test_ranking_has_a_progress_of_its_own(crop, tmp_path):
    split = Split("folder", tmp_path, query=(crop(RED, 0, 0), crop(RED, 0, 1)), gallery=(crop(RED, 0, 2),))
    done = []
    evaluate(MeanColor(), split, rank_progress=lambda *step: done.append(step))
    assert done == [(2, 2)]


def test_empty_subset(crop, tmp_path):
    split = Split("market1501", tmp_path, query=(crop(RED, 0, 0),))
    with pytest.raises(
        DataError, match=r"has an empty gallery, so nothing can be measured\n  got: 1 query and 0 gallery"
    ):
        evaluate(MeanColor(), split)


def test_no_valid_query(crop, tmp_path):
    split = Split("market1501", tmp_path, query=(crop(RED, 0, 0),), gallery=(crop(RED, 0, 0),))
    with pytest.raises(InputError, match="No query has a match in the gallery from another camera, so"):
        evaluate(MeanColor(), split)


def test_flip_gives_the_engine_both_sides(crop, tmp_path):
    seen = []

    class Watching(MeanColor):
        def embed(self, crops):
            seen.append(len(crops))
            return super().embed(crops)

    split = Split("market1501", tmp_path, query=(crop(RED, 0, 0),), gallery=(crop(RED, 0, 1), crop(GREEN, 1, 1)))
    report = evaluate(Watching(), split, tta="flip")
    assert (report.embedded.tta, report.as_dict()["tta"], seen) == ("flip", "flip", [1, 1, 2, 2])


def on_a_line(*people):
    """Crops that are embedded as numbers: (place, pid, camid)."""
    crops = tuple(Crop(Path(f"{place}-{pid}-{camid}.png"), pid, camid) for place, pid, camid in people)
    return EmbeddedCrops(crops, np.array([[place] for place, _, _ in people], dtype=np.float32))


def ranked(query, gallery, **how):
    split = Split("table", Path("data"), query=query.crops, gallery=gallery.crops)
    return rank_embedded(query, gallery, split=split, embedded=EmbeddedBy("by hand"), metric="euclidean", **how)


def test_protocols_leave_out_what_they_say():
    query, gallery = on_a_line((0, 1, 0)), on_a_line((1, 1, 0), (2, 2, 0), (3, 1, 1))
    assert ranked(query, gallery).mean_ap == 0.5  # the first is junk
    assert ranked(query, gallery, protocol=PROTOCOLS["camera-less"]).mean_ap == pytest.approx((1 + 2 / 3) / 2)


def test_a_drawn_gallery_is_a_mean_over_draws():
    query, gallery = on_a_line((0, 1, 0)), on_a_line((1, 1, 1), (3, 1, 1), (2, 2, 1))
    report = ranked(query, gallery, protocol=PROTOCOLS["vehicleid"])
    assert len(report.rankings) == 10
    firsts = [ranking.first_match[0] for ranking in report.rankings]
    assert set(firsts) == {1, 2}  # the near crop was drawn, or the far one
    assert report.cmc(1) == pytest.approx(firsts.count(1) / 10)
    assert report.mean_ap == pytest.approx(np.mean(1 / np.array(firsts)))
    assert (report.roc, report.camera_pairs) == (None, None)
    values = report.as_dict()
    assert (values["draws"], values["tpr"], values["camera_pairs"]) == (10, None, None)
    assert values["spread"]["rank-1"] == pytest.approx(np.std([rank == 1 for rank in firsts]))


def uneven():
    """Crops of a vehicle data set, by chance: most identities have two, near each other; some have nine, far apart."""
    rng = np.random.default_rng(3)
    return on_a_line(
        *(
            (float(place), pid, camid)
            for pid, center in enumerate(rng.normal(scale=9, size=30).tolist())
            for camid, place in enumerate(center + rng.normal(scale=0.3 if pid < 25 else 5, size=2 if pid < 25 else 9))
        )
    )


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_every_interval_holds_its_measure(protocol):
    crops = uneven()
    report = ranked(crops, crops, protocol=protocol, ranks=(1, 3))
    values = report.as_dict()
    measures = {"mAP": values["mAP"], "mINP": values["mINP"], "rank-1": report.cmc(1), "rank-3": report.cmc(3)}
    assert set(values["interval"]) == set(measures)
    for name, value in measures.items():
        low, high = report.interval(name)
        assert low < value < high < low + 0.4
        assert report.shares(name).mean() == pytest.approx(value, abs=1e-12)
        assert values["interval"][name] == [low, high]
    with pytest.raises(InputError, match="There is no such measure\n  got: map"):
        report.interval("map")
    if report.draws == 1:
        assert report.shares("mAP").tolist() == report.average_precision().tolist()


def test_a_query_weighs_what_it_has_in_the_mean():
    # Two draws by hand: both queries in the first, the second alone in the other.
    whole = ranked(on_a_line((0, 1, 0), (9, 2, 0)), on_a_line((1, 1, 1), (8, 2, 1)))
    first, second = (
        replace(whole.rankings[0], first_match=np.array(rank), average_precision=np.array(precision))
        for rank, precision in (([1, 2], [1.0, 0.5]), ([0, 4], [np.nan, 0.25]))
    )
    report = replace(whole, rankings=(first, second))
    assert report.mean_ap == (0.75 + 0.25) / 2
    assert report.shares("mAP").tolist() == [1.0 / 2, (0.5 + 0.25 * 2) / 2]
    assert report.shares("rank-1").tolist() == [0.5, 0.0]
    assert report.average_precision().tolist() == [1.0, 0.375]
    assert (report.draws, report.valid, report.valid_per_draw) == (2, 2, 2)  # 1.5 is rounded to the even number


def test_counts_of_a_draw():
    crops = on_a_line((0, 1, -1), (1, 1, -1), (2, 2, -1), (3, 2, -1), (4, 2, -1), (5, 3, -1))
    gallery = on_a_line(*((place, pid, -1) for place, pid in enumerate((1, 1, 2, 2, 2, 3))), (9, DISTRACTOR, -1))
    report = ranked(crops, gallery, protocol=PROTOCOLS["vehicleid"])
    # One crop of each of three identities and the distractor; the others of these identities ask, 1 + 2 + 0.
    assert (report.gallery, report.gallery_per_draw, report.valid_per_draw) == (7, 4, 3)
    assert (report.valid, report.unmatched_names, report.never_asked) == (5, ("5-3--1.png",), 0)
    # Without a draw the gallery is that of the readable crops, whatever is left out for a query.
    assert ranked(crops, gallery, protocol=PROTOCOLS["camera-less"]).gallery_per_draw == 7
    single = ranked(crops, on_a_line((7, 1, 0), (8, 2, 0), (9, 2, 1)), protocol=PROTOCOLS["cuhk03-single-shot"])
    assert (single.gallery_per_draw, single.valid_per_draw, single.valid) == (2, 5, 5)


def test_what_no_draw_asked_is_neither_unmatched_nor_lost():
    # Of each of twenty pairs one crop is drawn, and the other asks.
    once = replace(PROTOCOLS["vehicleid"], draws=1)
    crops = on_a_line(*((i, i // 2, -1) for i in range(40)))
    report = ranked(crops, crops, protocol=once)
    assert (report.valid, report.never_asked, report.unmatched, report.lost) == (20, 20, 0, 0)
    # The last picture cannot be read: its pair has lost its match, and itself.
    readable = EmbeddedCrops(crops.crops[:-1], crops.embeddings[:-1], (ImageError("unreadable"),))
    split = Split("table", Path("data"), query=crops.crops, gallery=crops.crops)
    how = {"split": split, "embedded": EmbeddedBy("m"), "metric": "euclidean"}
    report = rank_embedded(readable, readable, protocol=once, **how)
    assert (report.valid, report.never_asked, report.unmatched) == (19, 19, 0)
    assert report.lost_names == ("38-19--1.png", "39-19--1.png")


def test_unknown_cameras_have_no_pairs():
    report = ranked(on_a_line((0, 1, UNKNOWN_CAMERA)), on_a_line((1, 1, 1), (2, 2, 1)))
    assert report.camera_pairs is None
    assert report.roc is not None


def test_queries_without_a_match_are_named_by_their_place_in_the_data_set():
    query, gallery = on_a_line((0, 1, 0), (5, 7, 0), (6, 7, 0)), on_a_line((1, 1, 1), (2, 2, 1))
    places = (Path("data/c1/0001.png"), Path("data/c2/0001.png"), Path("elsewhere/0001.png"))
    crops = tuple(replace(crop, path=place) for crop, place in zip(query.crops, places, strict=True))
    report = ranked(replace(query, crops=crops), gallery)
    assert report.names == ("c1/0001.png", "c2/0001.png", "elsewhere/0001.png")
    assert (report.queries, report.valid, report.unmatched) == (3, 1, 2)
    assert report.unmatched_names == report.names[1:]


def test_a_table_names_pictures_beside_it(crop, tmp_path):
    table = tmp_path / "crops.csv"
    table.write_text("", encoding="utf-8")
    query, gallery = crop(RED, 0, 0), crop(RED, 0, 1)
    assert evaluate(MeanColor(), Split("table", table, query=(query,), gallery=(gallery,))).names == (query.path.name,)


def test_refinement_and_memory_reach_the_distances():
    # The match is beside two wrong crops; averaged with its own neighbour the query moves to it.
    query, gallery = on_a_line((0, 1, 0)), on_a_line((2, 1, 1), (-1, 2, 1), (3, 1, 1), (-4, 2, 1))
    assert ranked(query, gallery).cmc(1) == 0
    refined = ranked(query, gallery, refinement=Refinement(query_expansion=3), memory=1000)
    assert refined.cmc(1) == 1  # at (0 + 2 - 1 + 3) / 4 = 1
    assert refined.as_dict()["refinement"] == "AQE 3"
    with pytest.raises(InputError, match="limit of memory"):
        ranked(query, gallery, memory=1)


def test_ranks_and_rates_that_were_asked_for():
    report = ranked(on_a_line((0, 1, 0)), on_a_line((1, 2, 1), (2, 1, 1)), ranks=(1, 2), rates=(1.0,))
    values = report.as_dict()
    assert values["rank"] == {"1": 0.0, "2": 1.0}
    assert values["tpr"] == {"1": 1.0}
    assert set(values["interval"]) == {"mAP", "mINP", "rank-1", "rank-2"}


def test_another_measure_shares_the_walk():
    seen = []

    class Watching:
        bytes_needed = 0

        def add(self, query, distances, found):
            seen.append((query, distances.tolist(), found.matches.tolist()))

    ranked(on_a_line((0, 1, 0)), on_a_line((1, 2, 1), (2, 1, 1)), scorers=[Watching()])
    assert seen == [(0, [1, 2], [1])]
