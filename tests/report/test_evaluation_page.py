import re
from dataclasses import replace

import numpy as np
import pytest

from reidkit.errors import InputError, OutputError
from reidkit.evaluate import EmbeddedBy
from reidkit.evaluate.report import Unreadable
from reidkit.index.refinement import Refinement
from reidkit.metrics.camera_pairs import CameraPairs
from reidkit.metrics.protocol import PROTOCOLS
from reidkit.report import evaluation_page
from reidkit.report.document import Code, Figure, Folded, Grid, Points, Table, as_markdown
from reidkit.report.evaluation_page import evaluation, write_evaluation_page

DASH = "\N{EN DASH}"
LATE = (0.5, 1.1, 2.1, 3.1, 4.1, 5.1)  # the first of six queries finds its match second: AP 1/2


@pytest.fixture(autouse=True)
def figures(monkeypatch, request):
    """Drawing takes most of the time, so only the tests that want to see a figure do it."""
    if "drawn" not in request.fixturenames:
        for name in ("cmc_svg", "roc_svg"):
            monkeypatch.setattr(evaluation_page, name, lambda curves: "<svg></svg>")


@pytest.fixture
def drawn():
    """Asked for by tests that want to see a figure."""


@pytest.fixture
def write(tmp_path, read_page):
    def written(reports, title=None):
        out = tmp_path / "page.html"
        write_evaluation_page(out, reports, title=title)
        text = out.read_text(encoding="utf-8")
        return text, read_page(text)

    return written


@pytest.fixture
def four(report):
    """Two models on two data sets, by hand: osnet is better on Market, resnet on Duke."""
    resnet = EmbeddedBy("resnet", "onnxruntime", "float32", "CPU")
    return [report(), report(LATE, by=resnet), report(LATE, data="Duke"), report(data="Duke", by=resnet)]


def blocks(reports, kind, section=None):
    document = evaluation(reports)
    found = [block for part in document.sections if section in (None, part.title) for block in part.blocks]
    return [block for block in found if isinstance(block, kind)]


def headings(reports):
    return [section.title for section in evaluation(reports).sections]


def test_one_report(report, write, drawn):
    text, page = write([report(LATE)])
    (table,) = blocks([report(LATE)], Table, "Results")
    assert table.columns[:4] == ("model", "data", "engine", "TTA")
    assert table.columns[4:] == (
        *("rank-1", "rank-5", "rank-10", "mAP", "95 % interval", "mINP", "TPR@1e-4", "TPR@1e-3", "TPR@1e-2"),
    )
    assert table.rows[0][:8] == (
        "osnet",
        "market1501 Market",
        "onnxruntime",
        "none",
        "83.33",
        "100.00",
        "100.00",
        "91.67",
    )
    assert re.fullmatch(r"\d+\.\d\d to \d+\.\d\d", table.rows[0][8])
    for said in ("mAP 91.67 %", "rank-1 83.33 %", "Zheng et al., ICCV 2015", "bootstrap over the valid queries"):
        assert said in page.text
    assert "Every model on every data set" not in headings([report(LATE)])
    assert [tag for tag, _ in page.elements].count("svg") == 2
    assert "prefers-color-scheme: dark" in text


def test_the_matrix_marks_the_best_of_each_data_set(four):
    (matrix,) = blocks(four, Grid, "Every model on every data set")
    assert list(matrix.columns) == ["market1501 Market", "market1501 Duke"]
    assert [(name, [cell.shown for cell in cells]) for name, cells in matrix.rows] == [
        ("osnet", ["100.00 ★", "91.67"]),
        ("resnet", ["91.67", "100.00 ★"]),
    ]
    assert "Measured with" not in matrix.caption


def test_each_way_of_measuring_has_its_matrix(four):
    other = [replace(r, embedded=replace(r.embedded, runtime="openvino", tta="flip")) for r in four]
    first, second = blocks([*four, *other], Grid, "Every model on every data set")
    assert first.caption.startswith("Measured with engine onnxruntime, TTA none:")
    assert second.caption.startswith("Measured with engine openvino, TTA flip:")
    # A model that was measured otherwise than the others has nobody to be compared with.
    lone = replace(four[0], refinement=Refinement(query_expansion=2))
    assert len(blocks([*four, lone], Grid, "Every model on every data set")) == 1
    assert "Every model on every data set" not in headings([four[0], other[1], four[2], other[3]][:2])


def test_a_matrix_shows_gaps_and_repeats_and_protocols(four, report):
    (matrix,) = blocks([*four[:3], four[0]], Grid, "Every model on every data set")
    cells = {name: [cell.shown for cell in row] for name, row in matrix.rows}
    assert cells == {"osnet": ["100.00 / 100.00 ★", "91.67 ★"], "resnet": ["91.67", DASH]}
    (matrix,) = blocks([*four, report(LATE, protocol=PROTOCOLS["camera-less"])], Grid, "Every model on every data set")
    assert list(matrix.columns) == [
        *("market1501 Market, market1501", "market1501 Duke", "market1501 Market, camera-less"),
    ]


def test_settings_that_differ_have_their_column(four):
    table = blocks([four[0], replace(four[1], metric="cosine")], Table, "Results")[0]
    assert table.columns[:5] == ("model", "data", "engine", "TTA", "metric")
    assert [row[4] for row in table.rows] == ["euclidean", "cosine"]


def test_the_figures_show_every_report(four, report, drawn):
    cmc, roc = blocks(four, Figure)
    assert cmc.svg.count("market1501 Duke") == roc.svg.count("market1501 Duke") == 4  # the label names them, too
    without = report(protocol=PROTOCOLS["vehicleid"])
    assert len(blocks([without], Figure)) == 1
    assert len(blocks([without, report()], Figure)) == 2


def test_camera_pairs_are_a_grid_whose_numbers_can_be_read(report, write):
    pairs = CameraPairs(
        np.array([0, 2]), np.array([0, 1]), np.array([[np.nan, 0.25], [1.0, 0.0]]), np.array([[0, 3], [1200, 2]])
    )
    measured = replace(report(), camera_pairs=pairs, camera_names={0: "c<1>", 1: "c2"})
    (grid,) = blocks([measured], Grid)
    assert (list(grid.columns), [name for name, _ in grid.rows]) == (["c<1>", "c2"], ["c<1>", "2"])
    _, page = write([measured])
    cells = [
        (attrs["class"], attrs.get("style"), attrs["title"])
        for tag, attrs in page.elements
        if tag == "td" and attrs.get("title")
    ]
    assert cells == [
        ("empty", None, "camera c<1> to camera c<1>: no query"),
        ("heat", "--share:25%", "camera c<1> to camera c2: 3 queries"),
        ("heat", "--share:100%", "camera 2 to camera c<1>: 1,200 queries"),
        ("heat", "--share:0%", "camera 2 to camera c2: 2 queries"),
    ]
    assert f"c<1> {DASH} 25.0 2 100.0 0.0" in " ".join(page.text.split())


def test_many_camera_tables_are_folded_away(four, report):
    assert len(blocks(four[:2], Grid, "From camera to camera")) == 2
    folded = blocks(four, Folded, "From camera to camera")
    assert [fold.title for fold in folded] == [
        *("osnet, market1501 Market", "resnet, market1501 Market", "osnet, market1501 Duke", "resnet, market1501 Duke"),
    ]
    assert "From camera to camera" not in headings([report(protocol=PROTOCOLS["vehicleid"])])


def test_what_was_left_out_is_said(report, write):
    measured = replace(
        report(),
        queries=9,
        unmatched_names=("c1/a.png", "c2/a.png"),
        lost_names=("c1/b.png",),
        unreadable=Unreadable(2, 3),
        junk=1234,
        distractors=7,
    )
    (table,) = blocks([measured], Table, "What was measured")
    assert dict(zip(table.columns, table.rows[0], strict=True)) == {
        "report": "osnet",
        "protocol": "market1501",
        "queries": "9",
        "valid": "6",
        "no match": "2",
        "lost": "1",
        "gallery": "6",
        "distractors": "7",
        "junk": "1,234",
        "unreadable": "5",
    }
    (warning,) = blocks([measured], Points, "What was measured")
    assert "osnet: 2 query and 3 gallery pictures could not be decoded" in warning.lines[0]
    assert blocks([measured], Code) == [
        Code("c1/a.png\nc2/a.png", "market1501 Market, market1501: queries without a match (2)"),
        Code("c1/b.png", "market1501 Market, market1501: queries lost (1)"),
    ]
    assert not blocks([report()], Points, "What was measured")
    assert "figures of an easier data set" in write([measured])[1].text


def test_queries_without_a_match_are_named_once(report, write):
    measured = replace(report(), unmatched_names=("q<0>.png", "q<1>.png"))
    both = [measured, replace(measured, embedded=EmbeddedBy("other"))]
    (names,) = blocks(both, Code)
    assert names == Code("q<0>.png\nq<1>.png", "market1501 Market, market1501: queries without a match (2)")
    assert "q&lt;0&gt;.png\nq&lt;1&gt;.png" in write(both)[0]


def test_counts_of_draws_are_shown_where_something_is_drawn(report):
    (plain,) = blocks([report()], Table, "What was measured")
    assert "draws" not in plain.columns
    drawn = replace(report(protocol=PROTOCOLS["vehicleid"]), queries=8, gallery_per_draw=3)
    (table,) = blocks([report(), drawn], Table, "What was measured")
    counts = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    names = ("never asked", "draws", "valid a draw", "gallery a draw")
    assert [[count[name] for name in names] for count in counts] == [["0", "1", "6", "6"], ["2", "10", "6", "3"]]
    assert ("valid queries a draw", "6") in evaluation([drawn]).headline


@pytest.mark.parametrize(
    ("chosen", "title"),
    [
        ([0], "osnet on market1501 Market"),
        ([0, 0], "osnet on market1501 Market"),
        ([0, 1], "2 models on market1501 Market"),
        ([0, 2], "osnet on 2 data sets"),
        ([0, 1, 2, 3], "2 models on 2 data sets"),
    ],
)
def test_a_page_without_a_title_is_named_by_models_and_data(four, chosen, title):
    reports = [four[i] for i in chosen]
    assert evaluation(reports).title == title
    assert evaluation(reports, title="mine").title == "mine"


def test_long_names_do_not_push_figures_off_the_page(report, write):
    name = 30 * "epoch"
    text, page = write([report(by=EmbeddedBy(name)), report(data=name)])
    # Whatever is no number stands in a box that is cut to a width.
    assert not re.search(rf"<t[dh][^>]*>[^<]*{name}", text)
    assert len(page.with_class("wrapped")) > text.count(f"{name}</div>") >= 2
    assert re.search(r"\.wrapped \{ width: max-content; max-width: [^;]*; overflow-wrap: anywhere;", text)


def test_on_paper_everything_is_shown(four, write):
    style, _, paper = write([*four, four[0]])[0].rpartition("@media print")
    assert "details::details-content { content-visibility: visible;" in paper
    assert "table-layout: fixed; width: 100%" in paper
    assert "size: landscape" in style


def test_the_name_of_the_page_says_what_it_is_of(report, write):
    assert "<title>osnet on market1501 Market: Evaluation</title>" in write([report()])[0]


@pytest.mark.parametrize(
    ("protocol", "said"),
    [
        ("market1501", "own camera are left out of its ranking."),
        ("camera-less", "is a match, whatever its camera."),
        ("cuhk03-single-shot", "one crop of each identity is drawn anew for each query, 10 times"),
        ("vehicleid", "one crop of each identity is drawn as the gallery, 10 times"),
    ],
)
def test_the_protocol_is_in_words(report, protocol, said):
    (points,) = blocks([report(protocol=PROTOCOLS[protocol])], Points, "How")
    assert said in points.lines[0]


def test_hostile_names_are_text(report, write, drawn):
    hostile = EmbeddedBy("</title><script>1</script>\u202e", "<b>", "float32", "{{ 1 }}")
    reports = [replace(report(data="<img src=x onerror=1>"), embedded=hostile), report(), report(data="</svg><i>")]
    text, page = write(reports, title="</style><script>2</script>")
    assert not {tag for tag, _ in page.elements} & {"script", "img", "b", "i"}
    assert "</title><script>1</script>\ufffd" in page.text
    assert "</style><script>2</script>" in page.text
    assert "\u202e" not in text


def test_reports_that_differ_in_nothing_are_numbered(report):
    (table,) = blocks([report(), report()], Table, "What was measured")
    assert [row[0] for row in table.rows] == ["osnet, no. 1", "osnet, no. 2"]


def test_the_same_reports_give_the_same_bytes(four, write, drawn):
    assert write(four)[0] == write(four)[0]


def test_nothing_to_show(tmp_path, report):
    with pytest.raises(InputError, match="There are no reports to show"):
        write_evaluation_page(tmp_path / "page.html", [])
    assert not list(tmp_path.iterdir())
    (tmp_path / "page.html").mkdir()
    with pytest.raises(OutputError, match=r"Cannot write .*page\.html"):
        write_evaluation_page(tmp_path / "page.html", [report()])


def test_the_document_is_markdown_too(four):
    markdown = as_markdown(evaluation([*four, replace(four[0], dataset="a|b")], title="t"))
    assert "| model | market1501 Market | market1501 Duke | a&#124;b |\n| --- | ---: | ---: | ---: |\n" in markdown
    assert f"| resnet | 91.67 | 100.00 ★ | {DASH} |" in markdown
    assert "osnet, market1501 Duke:\n\n| query camera | 1 |" in markdown
    assert "\nVerification: is a pair one identity or two?\n" in markdown
    assert "<svg" not in markdown
