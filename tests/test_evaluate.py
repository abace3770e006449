"""Evaluation against a stand-in engine whose embeddings are known."""

import numpy as np
import pytest
from PIL import Image

from reidkit.data import inspect_split
from reidkit.errors import DataError, InputError
from reidkit.evaluate import evaluate
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
    assert report.as_dict() == {
        "mAP": 0.5,
        "mINP": 0.5,
        "rank": {"1": 0.0, "5": 1.0, "10": 1.0},
        "queries": {"total": 2, "valid": 1},
        "gallery": {"total": 4, "distractors": 1},
        "junk": 1,
        "unreadable": {"query": 0, "gallery": 0},
        "dataset": f"market1501 {tmp_path.name}",
        "protocol": "market1501",
        "metric": "cosine",
        "runtime": "by hand",
        "tta": "none",
    }
    assert done == [(i, 6) for i in range(1, 7)]


def test_queries_lost_to_unreadable_pictures_are_told_from_unmatched_ones(crop, tmp_path):
    query = tuple(crop(color, pid, 0) for pid, color in enumerate((RED, GREEN, BLUE, DARK_RED)))
    gallery = tuple(crop(color, pid, 1) for pid, color in enumerate((RED, GREEN, BLUE)))
    query[1].path.write_bytes(b"")
    gallery[2].path.write_bytes(b"")
    split = Split("folder", tmp_path, query=query, gallery=gallery)
    report = evaluate(MeanColor(), split, unreadable="skip")
    # 0 is fine, 1 cannot be read, the only match of 2 cannot, 3 has none.
    assert (report.valid, report.lost, report.unmatched) == (1, 2, 1)
    values = report.as_dict()
    assert values["unreadable"] == {"query": 1, "gallery": 1}
    assert values["queries"] == {"total": 4, "valid": 1}
    assert values["gallery"]["total"] == 3
    assert values["mAP"] == 1.0


def test_a_query_does_not_find_its_own_file(crop, tmp_path):
    asked = crop(RED, 0, UNKNOWN_CAMERA)
    match, wrong = crop(GREEN, 0, UNKNOWN_CAMERA), crop(BLUE, 1, UNKNOWN_CAMERA)
    split = Split("table", tmp_path, query=(asked,), gallery=(asked, match, wrong))
    ranking = evaluate(MeanColor(), split).ranking
    assert ranking.inverse_negative_penalty.tolist() == [0.5]  # green and blue are equally far from red: wrong first
    alone = Split("table", tmp_path, query=(asked,), gallery=(asked, wrong))
    with pytest.raises(InputError, match="No query has a match"):
        evaluate(MeanColor(), alone)


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
    with pytest.raises(InputError, match="No query has a match"):
        evaluate(MeanColor(), split)


def test_flip_gives_the_engine_both_sides(crop, tmp_path):
    seen = []

    class Watching(MeanColor):
        def embed(self, crops):
            seen.append(len(crops))
            return super().embed(crops)

    split = Split("market1501", tmp_path, query=(crop(RED, 0, 0),), gallery=(crop(RED, 0, 1), crop(GREEN, 1, 1)))
    report = evaluate(Watching(), split, tta="flip")
    assert (report.tta, report.as_dict()["tta"], seen) == ("flip", "flip", [1, 1, 2, 2])
