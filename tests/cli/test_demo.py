"""What the demo and the drawing of people do to folders that are there; their pictures are tested elsewhere."""

from pathlib import Path

import pytest

from reidkit.cli import demo
from reidkit.errors import ConfigError


@pytest.mark.parametrize(("command", "marker"), [("demo --out", ".reidkit-demo"), ("data synth", ".reidkit-synth")])
def test_a_folder_that_holds_something_else_is_never_removed(run, tmp_path, command, marker):
    mine = tmp_path / "photos"
    mine.mkdir()
    (mine / "dear.jpg").write_bytes(b"dear")
    status, _, err = run(*command.split(), mine)
    assert status == 2
    assert f"error: {mine} already exists\n  to do: choose another name, or say --overwrite" in err
    status, _, err = run(*command.split(), mine, "--overwrite")
    assert status == 2
    assert f"error: {mine} is not replaced, for it may hold something else; nothing was removed" in err
    assert f"got: a folder with dear.jpg, and no {marker}\n" in err
    assert [file.read_bytes() for file in mine.iterdir()] == [b"dear"]


def test_a_demo_that_fails_leaves_a_folder_that_the_next_one_may_replace(run, tmp_path, monkeypatch):
    out, found = tmp_path / "demo", []

    def fail(people: Path, **_: object) -> None:
        found.append(sorted(file.name for file in out.iterdir()))
        (out / "half.txt").touch()
        raise ConfigError("no people today")

    monkeypatch.setattr(demo.data, "synth", fail)
    for arguments in ((), ("--overwrite",)):
        status, _, err = run("demo", "--out", out, *arguments)
        assert status == 2
        assert "error: no people today" in err
    assert found == [[".reidkit-demo"], [".reidkit-demo"]]
    assert [file.name for file in tmp_path.iterdir()] == ["demo"]


def test_the_options_of_drawing(run, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(demo.data, "synthesize", lambda out, **options: asked.append((out, options)) or out)
    numbers = ("--identities", 4, "--cameras", 2, "--crops-per-camera", 3, "--seed", 5)
    status, out, _ = run("data", "synth", tmp_path / "people", *numbers)
    assert (status, out.strip()) == (0, f"wrote {tmp_path / 'people'}")
    run("data", "synth", tmp_path / "people", "--overwrite")
    for _, options in asked:
        del options["progress"]
    assert asked == [
        (tmp_path / "people", {"identities": 4, "cameras": 2, "crops_per_camera": 3, "seed": 5, "overwrite": False}),
        (tmp_path / "people", {"identities": 60, "cameras": 4, "crops_per_camera": 8, "seed": 0, "overwrite": True}),
    ]


def test_a_number_out_of_its_range(run, tmp_path):
    status, _, err = run("data", "synth", tmp_path / "people", "--crops-per-camera", 1)
    assert status == 2
    assert "crops_per_camera is out of range\n  got: 1" in err
    assert "to do: choose a number in that range" in err
    assert list(tmp_path.iterdir()) == []
