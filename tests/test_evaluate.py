"""Evaluation against a stand-in engine whose embeddings are known."""

import numpy as np
import pytest
from PIL import Image

from reidkit.errors import DataError, InputError
from reidkit.evaluate import evaluate
from reidkit.types import DISTRACTOR, Crop, EmbedderSpec, InputSpec, Split


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
        "unreadable": 0,
        "dataset": f"market1501 {tmp_path.name}",
        "protocol": "market1501",
        "metric": "cosine",
        "runtime": "by hand",
    }
    assert done == [(i, 6) for i in range(1, 7)]


def test_unreadable_pictures_are_counted(crop, tmp_path):
    query, gallery = (crop(RED, 0, 0), crop(GREEN, 1, 0)), (crop(RED, 0, 1), crop(GREEN, 1, 1))
    query[1].path.write_bytes(b"")
    split = Split("folder", tmp_path, query=query, gallery=gallery)
    report = evaluate(MeanColor(), split, unreadable="skip").as_dict()
    assert (report["queries"], report["unreadable"], report["mAP"]) == ({"total": 1, "valid": 1}, 1, 1.0)


def test_empty_subset(crop, tmp_path):
    split = Split("market1501", tmp_path, query=(crop(RED, 0, 0),))
    with pytest.raises(
        DataError, match=r"has an empty gallery, so nothing can be measured\n  got: 1 query and 0 gallery"
    ):
        evaluate(MeanColor(), split)


def test_no_valid_query(crop, tmp_path):
    split = Split("market1501", tmp_path, query=(crop(RED, 0, 0),), gallery=(crop(RED, 0, 0),))
    with pytest.raises(InputError, match="No query has a match"):
        evaluate(MeanColor(), split).as_dict()
