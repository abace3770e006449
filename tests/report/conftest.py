import numpy as np
import pytest
from PIL import Image

from reidkit.index import Neighbors
from reidkit.report.results import Picture, SearchResults


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
