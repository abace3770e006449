"""The choice of pictures: any first part of it is spread over identities and cameras."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reidkit.deploy.quantize.pictures import in_order_of_choice, pictures_of, pictures_tested_on
from reidkit.errors import ConfigError, DataError
from reidkit.types import UNKNOWN_CAMERA, UNKNOWN_IDENTITY, Crop, Split


def crops_of(labels):
    return [Crop(Path(f"{i}.jpg"), pid, camid) for i, (pid, camid) in enumerate(labels)]


GRID = crops_of([(pid, camid) for pid in range(7) for camid in range(4) for _ in range(3)])
LABELS = st.lists(st.tuples(st.integers(-2, 5), st.integers(-1, 3)), max_size=40)


def spread(counts):
    return max(counts) - min(counts)


def test_every_first_part_has_all_identities_and_cameras_alike():
    order = in_order_of_choice(GRID, seed=3)
    for end in range(1, len(GRID) + 1):
        part = order[:end]
        assert spread([Counter(crop.pid for crop in part)[pid] for pid in range(7)]) <= 1
        # Towards the end whoever's turn it is may have none left of the camera that is behind.
        limit = 1 if end <= 0.7 * len(GRID) else 2
        assert spread([Counter(crop.camid for crop in part)[camid] for camid in range(4)]) <= limit


def test_a_seed_gives_one_order_and_another_seed_another():
    assert in_order_of_choice(GRID, 5) == in_order_of_choice(list(GRID), 5)
    firsts = {in_order_of_choice(GRID, seed)[0] for seed in range(20)}
    assert len(firsts) > 10


@settings(max_examples=100, deadline=None)
@given(LABELS, st.integers(0, 5))
def test_each_is_taken_once_and_those_with_more_pictures_wait(labels, seed):
    crops = crops_of(labels)
    order = in_order_of_choice(crops, seed)
    assert sorted(order, key=lambda crop: crop.path) == sorted(crops, key=lambda crop: crop.path)
    had, all_of = Counter(), Counter(crop.pid for crop in crops)
    for crop in order:
        # Nobody is taken again while somebody else who has pictures left was taken less often.
        assert all(had[crop.pid] <= had[pid] for pid in all_of if had[pid] < all_of[pid])
        had[crop.pid] += 1


def test_a_camera_that_sees_few_is_not_drowned():
    crops = crops_of([*((pid, 0) for pid in range(20) for _ in range(20)), *((pid, 1) for pid in range(20))])
    part = in_order_of_choice(crops, 0)[:40]
    cameras = Counter(crop.camid for crop in part)
    assert spread([cameras[0], cameras[1]]) <= 4  # of 20 to 1 in the whole


def test_where_nothing_is_known_all_come_in_some_order():
    crops = crops_of([(UNKNOWN_IDENTITY, UNKNOWN_CAMERA)] * 50)
    order = in_order_of_choice(crops, 0)
    assert order != crops
    assert set(order) == set(crops)
    assert in_order_of_choice([], 0) == []


def test_a_seed_below_0():
    with pytest.raises(ConfigError, match="The seed of random numbers must be 0 or above\n  got: -1"):
        in_order_of_choice(GRID, -1)


def test_the_pictures_of_a_subset():
    one, two, three = crops_of([(0, 0), (1, 0), (2, 0)])
    split = Split("market1501", Path("/data/market"), (one,), (two,), (three,))
    assert pictures_of(split).crops == (one,)
    taken = pictures_of(split, "gallery")
    assert (taken.crops, taken.root, taken.dataset, taken.source) == (
        (three,), Path("/data/market"), "market1501 market", "gallery"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("counts", "got"), [((0, 1, 1), "only query and gallery"), ((0, 0, 1), "only gallery"), ((0, 0, 0), "no pictures")]
)
def test_test_pictures_are_never_taken_in_silence(counts, got):
    subsets = [tuple(crops_of([(0, 0)] * count)) for count in counts]
    with pytest.raises(DataError) as caught:
        pictures_of(Split("folder", Path("/data/x"), *subsets))
    assert str(caught.value).startswith(f"/data/x has no train pictures to calibrate with\n  got: {got}")
    assert "say --subset to take those all the same" in str(caught.value)


@pytest.fixture
def market(tmp_path):
    """In Market-1501's layout, as far as names tell it."""
    for place in ("bounding_box_train/0001", "query/0002", "bounding_box_test/0002", "bounding_box_test/0003"):
        for camera in (1, 2):
            file = tmp_path / f"market/{place}_c{camera}s1_000001_00.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
    return tmp_path / "market"


@pytest.mark.parametrize(
    ("folder", "source"), [("query", "query"), ("bounding_box_test", "gallery"), ("bounding_box_train", None)]
)
def test_a_folder_of_the_data_set_around_it(market, folder, source):
    found = pictures_tested_on(market / folder, list((market / folder).iterdir()))
    assert (found and (found.root, found.dataset, found.source)) == (source and (market, "market1501 market", source))


def test_a_folder_beside_data_sets_or_in_part_of_one_is_only_a_folder(market, tmp_path):
    query = market / "query"
    assert pictures_tested_on(query, [*query.iterdir(), query / "another.jpg"]) is None
    (tmp_path / "mine").mkdir()
    assert pictures_tested_on(tmp_path / "mine", [tmp_path / "mine" / "a.jpg"]) is None
    (market / "bounding_box_test").rename(market / "elsewhere")
    assert pictures_tested_on(query, list(query.iterdir())) is None
