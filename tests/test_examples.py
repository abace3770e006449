"""The pages in `examples/`: every `reid` command is one that exists, and what needs no card is run."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image

from osnet_bundle import write_osnet
from reidkit.cli import main
from reidkit.cli.app import app

EXAMPLES = Path(__file__).parents[1] / "examples"
PAGES = sorted(EXAMPLES.glob("*.md"))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    lines = [line for page in PAGES for block in blocks(page, "bash") for line in block.splitlines()]
    return sorted({line for line in lines if line.startswith("reid ")})


@pytest.mark.parametrize("line", commands())
def test_the_command_and_its_options_exist(line):
    _, name, *arguments = shlex.split(line)
    command = typer.main.get_command(app).commands[name]
    command.make_context(name, arguments)


def test_the_commands_are_found():
    assert len(commands()) > 15


@pytest.mark.parametrize("page", [EXAMPLES / "README.md"])
def test_every_page_is_listed(page):
    linked = set(re.findall(r"\]\(([\w./-]+)\)", page.read_text(encoding="utf-8")))
    assert linked == {other.name for other in PAGES if other != page} | {"docker/"}


def test_caffe_files_run_as_the_page_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    bundle = write_osnet(tmp_path / "people.reid")
    golden = bundle.golden()
    Image.fromarray(golden.crops[0]).save("crop.png")
    page = EXAMPLES / "caffe_opencv.md"
    (export,) = (line for block in blocks(page, "bash") for line in block.splitlines() if line.startswith("reid "))
    assert main(shlex.split(export)[1:]) == 0
    capsys.readouterr()
    (program,) = blocks(page, "python")
    names = {}
    exec(program.replace("crop.jpg", "crop.png"), names)
    scale = np.abs(golden.embeddings).max()
    np.testing.assert_allclose(names["embedding"], golden.embeddings[:1], rtol=0, atol=1e-5 * scale)
