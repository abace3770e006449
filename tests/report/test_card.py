"""The model card: what it says of full, empty and hostile bundles, in Markdown and in HTML."""

import re
from dataclasses import fields, replace
from html.parser import HTMLParser

import pytest

from reidkit.architecture import ModelSpec, OSNetSpec
from reidkit.errors import OutputError
from reidkit.manifest import Accuracy, Cost, Latency, Provenance
from reidkit.report.card import card_files, model_card, write_card
from reidkit.report.document import Code, Document, Points, Section, Table, Words, as_markdown, as_page
from small_bundle import MANIFEST, write

ACCURACY = Accuracy(
    "market1501 x", "market1501", "cosine", "onnxruntime", "float32", "cpu", 0.9, 0.8125, 0.5, 1234, 9999
)
LATENCY = Latency("openvino", "int8", "cpu", "Some Xeon, 2 of 4 cores", 4, True, 2.5, 3.25, 1600.0, 311)
FULL = replace(
    MANIFEST,
    name="people",
    task="person",
    architecture=ModelSpec(OSNetSpec(width=0.25)),
    cost=Cost(203_568, 82_316_000),
    licence="permissive",
    provenance=Provenance(
        source="x.pth",
        source_sha256="ab" * 32,
        dialect="fast-reid from 2021-03",
        assumptions=("padding of the max-pooling: 1",),
        framework="torch 2.13",
        dataset="market1501 train: 751 identities",
        recipe={"optim": {"lr": 0.1, "steps": [1, 2]}, "amp": "auto"},
        created="2024-01-01T00:00:00Z",
        reidkit="0.1.0",
    ),
    accuracy=(replace(ACCURACY, tta="flip", mAP=0.83), ACCURACY),
    latency=(LATENCY, replace(LATENCY, decode=False, median_ms=1.25)),
)
EMPTY = replace(
    MANIFEST, name="", task="person", architecture=None, licence="unknown", provenance=Provenance(), batch=None
)


class Page(HTMLParser):
    """What a browser would make of the page: its elements and its text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text, self.open = [], "", []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += "" if self.open and self.open[-1] == "style" else f" {' '.join(data.split())}"


@pytest.fixture
def card(tmp_path):
    """Writes the card of a manifest; gives the Markdown and the page."""

    def made(manifest, name="people.reid"):
        files = write_card(write(tmp_path / name, manifest), tmp_path / "card")
        assert files == (tmp_path / "card.md", tmp_path / "card.html")
        markdown, html = (file.read_text(encoding="utf-8") for file in files)
        return markdown, html, Page(html)

    return made


def rows(markdown, heading):
    """The tables below a heading, cell by cell, as a reader that knows no escaped bars splits them."""
    section = markdown.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|") and "---" not in line]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def facts(markdown, heading):
    return {row[0]: row[1] for row in rows(markdown, heading) if len(row) == 2}


def test_everything_that_is_known_is_said(card):
    markdown, _, page = card(FULL)
    model = facts(markdown, "Model")
    assert model["architecture"] == "OSNet x0.25; GeM 3, BNneck"
    assert model["parameters"] == "203,568"
    assert model["GFLOPs"] == "0.0823 for one crop of 4 x 3 (a multiply-add counted once)"
    assert model["embedding"] == "5-d float32, of unit length"
    assert model["batch"] == "always 2"
    given = facts(markdown, "Input")
    assert given["crop"] == "4 x 3 pixels (height x width), RGB, 8 bits a channel"
    assert given["colour order"] == "the network sees BGR, which the graph makes of it"
    assert (given["mean"], given["std"]) == ("1, 2, 3", "0.5, 0.25, 1")
    origin = facts(markdown, "Origin and training")
    assert origin["trained on"] == "market1501 train: 751 identities"
    assert origin["written as"] == "fast-reid from 2021-03"
    assert "- padding of the max-pooling: 1" in markdown
    assert '```\noptim.lr = 0.1\noptim.steps = [1, 2]\namp = "auto"\n```' in markdown
    assert 'backbone.family = "osnet"\nbackbone.width = 0.25\n' in markdown
    for said in ("203,568", "OSNet x0.25", "751 identities", "optim.lr = 0.1", "padding of the max-pooling: 1"):
        assert said in page.text
    assert "not known" not in markdown + page.text
    assert "not measured" not in markdown + page.text


def test_accuracy_with_and_without_flipping(card):
    header, plain, flipped = rows(card(FULL)[0], "Accuracy")
    assert header[5:9] == ["TTA", "rank-1 %", "mAP %", "mINP %"]
    same = ["market1501 x", "market1501", "cosine", "onnxruntime on cpu", "float32"]
    assert plain == [*same, "none", "90.00", "81.25", "50.00", "1,234", "9,999"]
    assert flipped == [*same, "flip", "90.00", "83.00", "50.00", "1,234", "9,999"]


def test_latency_by_machine(card):
    other = replace(LATENCY, machine="Another, 1 of 1 cores", batch=64, images_per_second=12345.6)
    markdown, _, page = card(replace(FULL, latency=(*FULL.latency, other)))
    for machine in ("Some Xeon, 2 of 4 cores", "Another, 1 of 1 cores"):
        assert f"\nOn {machine}:\n" in markdown
        assert f"On {machine}" in page.text
    assert "GPU ms" not in markdown
    table = [row for row in rows(markdown, "Speed") if row[0] != "engine"]
    assert table == [
        ["openvino on cpu", "int8", "with", "64", "2.50", "3.25", "12,345.6", "311"],
        ["openvino on cpu", "int8", "without", "4", "1.25", "3.25", "1,600.0", "311"],
        ["openvino on cpu", "int8", "with", "4", "2.50", "3.25", "1,600.0", "311"],
    ]


def test_engines_that_were_built_say_how_and_what_the_card_took(card):
    by_network = replace(LATENCY, runtime="tensorrt", device="cuda", precision="float16", via="network", decode=False)
    by_network = replace(by_network, gpu_ms=0.4125, engine_bytes=50_340_000)
    by_parser = replace(by_network, via="parser", gpu_ms=0.25, engine_bytes=49_960_000)
    decoding = replace(by_network, decode=True, gpu_ms=None)
    markdown, _, page = card(replace(FULL, latency=(by_parser, decoding, LATENCY, by_network)))
    assert rows(markdown, "Speed") == [
        ["engine", "precision", "decoding", "batch", "median ms", "p90 ms", "GPU ms", "images/s", "runs", "engine MB"],
        ["openvino on cpu", "int8", "with", "4", "2.50", "3.25", "", "1,600.0", "311", ""],
        ["tensorrt by network on cuda", "float16", "without", "4", "2.50", "3.25", "0.412", "1,600.0", "311", "50.3"],
        ["tensorrt by network on cuda", "float16", "with", "4", "2.50", "3.25", "", "1,600.0", "311", "50.3"],
        ["tensorrt by parser on cuda", "float16", "without", "4", "2.50", "3.25", "0.250", "1,600.0", "311", "50.0"],
    ]
    assert "GPU ms: the card's own median, crops and embeddings staying there." in markdown
    assert "GPU ms: the card's own median" in page.text


def test_what_is_not_known_says_so(card):
    markdown, _, page = card(EMPTY)
    model = facts(markdown, "Model")
    assert model["architecture"] == "not known: a foreign graph"
    assert (model["parameters"], model["GFLOPs"]) == ("not known", "not known")
    origin = facts(markdown, "Origin and training")
    assert set(origin.values()) == {"", "not known"}  # the first is the empty heading of the table
    assert "The training recipe is not known." in markdown
    assert "Of the weights: not known." in markdown
    for command in (
        "reid evaluate people.reid --data DATA --record",
        "reid evaluate people.reid --data DATA --tta flip --record",
        "reid bench people.reid --record",
    ):
        assert f"\n{command}\n" in markdown
        assert command in page.text
    assert "With and without flipping: not measured." in page.text
    assert "Latency: not measured." in page.text
    assert [text for tag, text in page.elements if text.get("class") == "unknown"]
    assert "# people.reid\n" in markdown  # nobody gave it a name


def test_parameters_without_multiply_adds(card):
    model = facts(card(replace(FULL, cost=Cost(7)))[0], "Model")
    assert (model["parameters"], model["GFLOPs"]) == ("7", "not known")


@pytest.mark.parametrize(
    ("kept", "missing"), [("none", "With flipping: not measured"), ("flip", "Without flipping: not measured")]
)
def test_only_one_of_the_two_was_measured(card, kept, missing):
    markdown = card(replace(FULL, accuracy=(replace(ACCURACY, tta=kept),)))[0]
    assert missing in markdown
    assert ("--tta flip --record" in markdown) == (kept == "none")


def test_limits_follow_from_facts(card):
    limits = card(FULL)[0].partition("## Limits of use")[2].partition("## ")[0]
    assert "show the same person" in limits
    assert "may count as biometric data" in limits
    assert "was measured on market1501 x. Other cameras" in limits
    assert "imported under assumptions" in limits
    assert "trained on is not known" not in limits
    assert "licen" not in limits
    assert "foreign" not in limits


def test_limits_of_what_nobody_knows(card):
    limits = card(EMPTY)[0].partition("## Limits of use")[2].partition("## ")[0]
    assert "What it was trained on is not known" in limits
    assert "Its accuracy was not measured" in limits
    assert "The licence of the weights is not known" in limits
    assert "It is a foreign graph" in limits
    assert "assumptions" not in limits


def test_limits_of_a_vehicle_model_for_research(card):
    markdown = card(replace(FULL, task="vehicle", licence="research-only"))[0]
    assert "licensed for research only: any other use needs another licence" in markdown
    assert "Of the weights: for research only." in markdown
    assert "may be personal data" in markdown
    assert "biometric" not in markdown


def test_every_file_with_its_hash(card, tmp_path):
    markdown, _, page = card(FULL)
    listed = rows(markdown, "Files")[1:]
    assert [row[0] for row in listed] == ["golden.npz", "model.onnx", "weights.safetensors"]
    for name, digest, size in listed:
        assert size.replace(",", "") == str((tmp_path / "people.reid" / name).stat().st_size)
        assert re.fullmatch("[0-9a-f]{64}", digest)
        assert digest in page.text


def test_the_header_that_hubs_read_holds_only_what_is_true(card):
    header = card(FULL)[0].split("---\n")[1]
    assert header == "library_name: reidkit\ntags:\n- person-re-identification\n- re-identification\n- onnx\n"


HOSTILE = "a|b `c` *d* _e_ [f](g) <img src=x onerror=1> &amp; ~~h~~ $i$ {{ 1 }}\n# j\u202e"


def test_hostile_names_are_text(card):
    provenance = replace(FULL.provenance, dataset=HOSTILE, assumptions=(f"- {HOSTILE}",), recipe={HOSTILE: HOSTILE})
    accuracy = (replace(ACCURACY, dataset=HOSTILE),)
    latency = (replace(LATENCY, machine=HOSTILE),)
    manifest = replace(FULL, name=HOSTILE, provenance=provenance, accuracy=accuracy, latency=latency)
    markdown, html, page = card(manifest, "a`b $(c) |.reid")
    assert not {tag for tag, _ in page.elements} & {"img", "script"}
    plain = HOSTILE.replace("\n", "\ufffd").replace("\u202e", "\ufffd")
    assert page.text.count(plain) >= 6
    assert "\u202e" not in markdown + html
    escaped = (
        r"a&#124;b \`c\` \*d\* \_e\_ \[f\](g) \<img src=x onerror=1\> \&amp; \~\~h\~\~ \$i\$ {{ 1 }}"
        + "\ufffd\\# j\ufffd"
    )
    assert f"\n# {escaped}\n" in markdown
    assert f"\n- \\- {escaped}\n" in markdown
    assert [row[0] for row in rows(markdown, "Accuracy")[1:]] == [escaped.replace("|", "")]
    assert {len(row) for row in rows(markdown, "Speed")} == {8}
    # The name of the bundle is quoted as a shell wants it, inside a fence that it cannot close.
    assert "````" not in markdown
    assert "\nreid evaluate 'a`b $(c) |.reid' --data DATA --tta flip --record\n" in markdown


def test_a_text_cannot_close_its_fence_nor_open_a_list():
    document = Document(
        "Kind", "t", "1. l", [], [Section("s", [Code("```\n# x"), Points(["+ a", "2) b", "3 c"])])], "=f"
    )
    text = as_markdown(document)
    assert "\n````\n```\n# x\n````\n" in text
    assert "\n- \\+ a\n- 2\\) b\n- 3 c\n" in text
    assert "\n1\\. l\n" in text
    assert text.endswith("\n\\=f\n")


def test_underscores_inside_a_word_stay():
    table = Table("", ("_a", "n"), [("osnet_x0_25_msmt17.onnx", "__b")], 1)
    text = as_markdown(Document("k", "t", "l", [], [Section("s", [table])], "f"))
    assert "| \\_a | n |\n| --- | ---: |\n| osnet_x0_25_msmt17.onnx | \\_\\_b |" in text


def test_nothing_is_fetched_and_nothing_runs(card):
    _, html, page = card(FULL)
    assert not re.search(r"https?:|//|@import|<script|<link|<iframe|url\(", html)
    assert not [
        name for _, attrs in page.elements for name in attrs if name.startswith("on") or name in ("src", "href")
    ]
    assert "prefers-color-scheme: dark" in html
    assert '<meta name="viewport"' in html


def test_code_keeps_its_lines_on_the_page():
    html = as_page(Document("k", "t", "l", [], [Section("s", [Code("a = 1\nb <i>\n"), Words("w")])], "f"))
    assert "<code>a = 1\nb &lt;i&gt;\n" in html


def test_the_same_bundle_gives_the_same_bytes(tmp_path):
    bundle = write(tmp_path / "people.reid", FULL)
    first = [file.read_bytes() for file in write_card(bundle, tmp_path / "a")]
    assert [file.read_bytes() for file in write_card(bundle, tmp_path / "b")] == first


def test_where_the_files_go(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bundle = write(tmp_path / "people.v2.reid", FULL)

    def names(out):
        return [str(file) for file in card_files(out, bundle)]

    assert names(None) == ["people.v2-card.md", "people.v2-card.html"]
    assert names("x") == names("x.md") == names("x.HTML") == names("x.htm") == ["x.md", "x.html"]
    assert names("v1.0") == ["v1.0.md", "v1.0.html"]
    assert names(tmp_path) == [str(tmp_path / "people.v2-card.md"), str(tmp_path / "people.v2-card.html")]


@pytest.mark.parametrize("out", ["people.reid", "people.reid/card", "people.reid/deep/card.md", "other.reid"])
def test_a_bundle_holds_no_card(tmp_path, out):
    bundle = write(tmp_path / "people.reid", FULL)
    before = sorted(bundle.path.iterdir())
    with pytest.raises(OutputError, match=r"The card cannot be written to .*\n  got: .*bundle(.*\n)*.*people-card"):
        write_card(bundle, tmp_path / out, overwrite=True)
    assert sorted(bundle.path.iterdir()) == before


def test_both_files_or_neither(tmp_path):
    bundle = write(tmp_path / "people.reid", FULL)
    (tmp_path / "card.html").mkdir()
    with pytest.raises(OutputError, match=r"Cannot write .*card\.html"):
        write_card(bundle, tmp_path / "card", overwrite=True)
    assert not (tmp_path / "card.md").exists()


def test_the_title_is_short_and_the_headline_what_is_asked_first(tmp_path):
    card = model_card(write(tmp_path / "people.reid", FULL))
    assert card.title == "people"
    assert dict(card.headline) == {"input": "4 x 3", "embedding": "5-d", "parameters": "0.204 M", "GFLOPs": "0.0823"}


@pytest.mark.parametrize(
    "field", [field.name for field in fields(Provenance) if field.name not in ("assumptions", "recipe")]
)
def test_nothing_that_is_known_of_the_origin_is_kept_back(card, field):
    said = replace(FULL, provenance=replace(FULL.provenance, **{field: "an otherwise unknown word"}))
    assert "an otherwise unknown word" in card(said)[0]
