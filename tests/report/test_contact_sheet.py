from dataclasses import replace

import pytest
from PIL import Image

from reidkit.errors import InputError
from reidkit.report.contact_sheet import write_contact_sheet, write_sheet
from reidkit.report.results import QueryScore

GREEN, RED, GREY, INK, PLAIN = (22, 163, 74), (220, 38, 38), (148, 163, 184), (30, 41, 59), (226, 232, 240)


def test_size_and_frames(results, tmp_path):
    write_contact_sheet(tmp_path / "sheet.png", results, title="A search")
    with Image.open(tmp_path / "sheet.png") as sheet:
        # Four tiles of 96 + 2 x 4 with gaps of 10 in margins of 24; a title of 40 and two rows of 26 + 200 + 20.
        assert (sheet.format, sheet.size) == ("PNG", (4 * 104 + 3 * 10 + 48, 24 + 40 + 2 * 246 + 10 + 24))
        columns = [24 + 114 * column for column in range(4)]
        # The harder query first: its first hit is wrong, its second right, the third has no label.
        assert [sheet.getpixel((x + 1, 64 + 26 + 100)) for x in columns] == [INK, RED, GREEN, GREY]
        assert [sheet.getpixel((x + 1, 64 + 256 + 26 + 100)) for x in columns] == [INK, GREEN, RED, GREY]
        assert sheet.getpixel((24 + 4 + 48, 64 + 26 + 100)) == (120, 80, 40)


def test_rows_are_limited(results, tmp_path):
    write_contact_sheet(tmp_path / "sheet.png", results, title="", rows=1)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.height == 24 + 246 + 24


def test_broken_pictures_and_hostile_names_are_drawn(results, picture, tmp_path, caplog):
    results.gallery[0].path.write_bytes(b"no picture")
    hostile = results.queries[0]._replace(path=picture("line\nbreak \u202e.jpg"), pid="x" * 500)
    scores = [QueryScore(1.0, 1), None]
    write_contact_sheet(
        tmp_path / "sheet.png", replace(results, queries=[hostile, results.queries[1]], scores=scores), title="t\n" * 99
    )
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.getpixel((24 + 114 + 4 + 48, 64 + 26 + 20)) == (241, 245, 249)  # no picture: an empty well
    assert "one.jpg is not a picture" in caplog.text


def test_a_plain_sheet(picture, tmp_path):
    rows = [("first", [picture("a.png"), picture("b.png")]), ("second", [picture("c.png")])]
    write_sheet(tmp_path / "sheet.png", rows)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (2 * 104 + 10 + 48, 24 + 2 * 226 + 10 + 24)
        assert sheet.getpixel((24 + 1, 24 + 26 + 100)) == PLAIN
        assert sheet.getpixel((24 + 114 + 50, 24 + 236 + 26 + 100)) == (255, 255, 255)  # the second row has one picture


def test_broad_pictures_get_broad_boxes(picture, tmp_path):
    write_sheet(tmp_path / "sheet.png", [("", [picture("car.png", size=(200, 100))])])
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (192 + 8 + 48, 24 + 26 + 96 + 8 + 24)


def test_the_same_rows_give_the_same_bytes(picture, tmp_path):
    for name in ("x.png", "y.png"):
        write_sheet(tmp_path / name, [("a row", [picture("a.jpg")])], title="A sheet")
    assert (tmp_path / "x.png").read_bytes() == (tmp_path / "y.png").read_bytes()


def test_progress_counts_pictures(picture, tmp_path):
    seen = []
    pictures = [picture("a.png"), picture("b.png"), picture("a.png")]
    write_sheet(tmp_path / "sheet.png", [("", pictures)], progress=lambda *step: seen.append(step))
    assert seen == [(1, 2), (2, 2)]


@pytest.mark.parametrize("rows", [[], [("empty", [])]])
def test_a_sheet_without_pictures_is_refused(rows, tmp_path):
    with pytest.raises(InputError, match="There are no pictures to put on the sheet"):
        write_sheet(tmp_path / "sheet.png", rows)
    assert not list(tmp_path.iterdir())
