import csv
from dataclasses import replace

import pytest

from reidkit.errors import InputError, OutputError
from reidkit.evaluate import EmbeddedBy
from reidkit.metrics.protocol import PROTOCOLS
from reidkit.report.evaluation_csv import write_evaluation_csv


@pytest.fixture
def table(tmp_path):
    def written(reports):
        write_evaluation_csv(tmp_path / "x.csv", reports)
        with (tmp_path / "x.csv").open(encoding="utf-8", newline="") as stream:
            return list(csv.DictReader(stream))

    return written


def test_a_row_for_each_report_in_fractions_of_one(table, report):
    # Of six queries the first stands exactly between its match and somebody else, whom a tie puts first.
    first, second = table([report((0.5, 1.1, 2.1, 3.1, 4.1, 5.1)), report(data="Duke")])
    assert list(first) == [
        *("model", "dataset", "protocol", "draws", "metric", "runtime", "precision", "device", "tta", "refinement"),
        *("rank1", "rank5", "rank10", "mAP", "mAP_low", "mAP_high", "mINP", "tpr@1e-4", "tpr@1e-3", "tpr@1e-2"),
        *("queries", "valid", "valid_per_draw", "unmatched", "lost", "never_asked"),
        *("gallery", "gallery_per_draw", "distractors", "junk"),
        *("unreadable_query", "unreadable_gallery"),
    ]
    assert (float(first["rank1"]), float(first["mAP"])) == (pytest.approx(5 / 6), pytest.approx(5.5 / 6))
    assert float(first["mAP_low"]) < 5.5 / 6 < float(first["mAP_high"])
    assert (first["dataset"], second["dataset"]) == ("market1501 Market", "market1501 Duke")
    assert [float(second[name]) for name in ("rank1", "mAP", "mAP_low", "mINP")] == [1.0] * 4
    assert (first["runtime"], first["tta"], first["queries"], first["junk"]) == ("onnxruntime", "none", "6", "0")


def test_ranks_and_rates_that_were_asked_for(table, report):
    plain = report()
    rows = table([replace(plain, ranks=(1, 20), rates=(2.5e-3,)), replace(plain, ranks=(3,), rates=(0.5,))])
    assert [name for name in rows[0] if name.startswith(("rank", "tpr"))] == [
        *("rank1", "rank20", "rank3", "tpr@2.5e-3", "tpr@0.5")
    ]
    assert (rows[0]["rank3"], rows[1]["rank3"], rows[0]["tpr@0.5"], rows[1]["tpr@0.5"]) == ("", "1.0", "", "1.0")


def test_what_is_not_known_is_empty(table, report):
    (row,) = table([report(by=EmbeddedBy("m"), protocol=PROTOCOLS["vehicleid"])])
    assert [row[name] for name in ("runtime", "precision", "device", "tpr@1e-4")] == [""] * 4
    assert (row["draws"], row["tta"]) == ("10", "none")


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(1)", "\t=1"])
def test_no_name_becomes_a_formula(table, report, name):
    (row,) = table([report(by=EmbeddedBy(name))])
    assert row["model"] == f"'{name}".replace("\t", "\ufffd")


def test_hostile_names_stay_in_their_cell(table, report):
    rows = table([report(by=EmbeddedBy('a,b";\n\udcff'), data="x\ny")])
    assert [(row["model"], row["dataset"]) for row in rows] == [('a,b";\ufffd\ufffd', "market1501 x\ufffdy")]


def test_nothing_to_write(tmp_path, report):
    with pytest.raises(InputError, match="There are no reports to write"):
        write_evaluation_csv(tmp_path / "x.csv", [])
    (tmp_path / "x.csv").mkdir()
    with pytest.raises(OutputError, match=r"Cannot write .*x\.csv"):
        write_evaluation_csv(tmp_path / "x.csv", [report()])
