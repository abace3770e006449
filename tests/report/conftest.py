import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reidkit.evaluate import EmbeddedBy, EmbeddedCrops, rank_embedded
from reidkit.index import Neighbors
from reidkit.report.results import Picture, SearchResults
from reidkit.types import Crop, Split


class Page(HTMLParser):
    """What a browser would make of the page: its elements and its text."""

    VOID = frozenset({"meta", "input"})

    def __init__(self, text):
        super().__init__()
        self.elements, self.text, self.open = [], "", []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += "" if self.open and self.open[-1] == "style" else f" {data.strip()}"

    def with_class(self, name):
        return [attrs for _, attrs in self.elements if name in (attrs.get("class") or "").split()]


@pytest.fixture
def read_page():
    """Reads a page as a browser would, and sees that every element is closed and that nothing runs or is fetched."""

    def read(text):
        page = Page(text)
        assert page.open == []
        plain = re.sub(r"base64,[\w+/=]+", "", text)
        assert not re.search(r"https?:|//|@import|<script|<link|<iframe|<object|<image", plain)
        assert not [name for _, attrs in page.elements for name in attrs if name.startswith("on") or name == "src"]
        assert all(attrs["href"].startswith("#") for _, attrs in page.elements if "href" in attrs)
        assert {url[:5] for url in re.findall(r"url\((.*?)\)", text)} <= {"data:"}
        ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
        assert len(ids) == len(set(ids))
        return page

    return read


@pytest.fixture
def report():
    """Makes a report: six identities seen by two cameras, found at places on a line.

    Each query has one match, at the place of its own number; one that stands elsewhere finds somebody else first.
    """

    def make(places=(0.1, 1.1, 2.1, 3.1, 4.1, 5.1), *, data="Market", names=None, root=Path("data"), by=None, **how):
        file = (lambda side, i: f"{side}{i}.png") if names is None else names
        query = [Crop(root / file("q", i), i, 0) for i in range(len(places))]
        gallery = [Crop(root / file("g", i), i, 1) for i in range(len(places))]
        split = Split("market1501", Path(data), query=tuple(query), gallery=tuple(gallery), camera_names={0: "c1"})
        return rank_embedded(
            EmbeddedCrops(split.query, np.array(places, dtype=np.float32)[:, None]),
            EmbeddedCrops(split.gallery, np.arange(len(places), dtype=np.float32)[:, None]),
            split=split,
            embedded=EmbeddedBy("osnet", "onnxruntime", "float32", "CPU") if by is None else by,
            metric="euclidean",
            **how,
        )

    return make


@pytest.fixture
def picture(tmp_path):
    """Makes a picture file of one colour: 64 x 128 pixels unless told otherwise."""

    def make(name, color=(120, 80, 40), size=(64, 128)):
        path = tmp_path / name
        Image.new("RGB", size, color).save(path, format="PNG")
        return path

    return make


@pytest.fixture
def results(picture):
    """Two queries and three gallery pictures: right and wrong for the first, wrong and right for the second."""
    return SearchResults(
        queries=[Picture(picture("query-a.jpg"), 1, 1), Picture(picture("query-b.jpg"), 2, 1)],
        gallery=[Picture(picture("one.jpg"), 1, 2), Picture(picture("two.jpg"), 2, 3), Picture(picture("who.jpg"))],
        neighbors=Neighbors(
            np.array([[0, 1, 2], [0, 1, 2]], dtype=np.int64),
            np.array([[0.1, 0.2, 0.4], [0.3, 0.35, 0.4]], dtype=np.float32),
        ),
    )
