"""The layer rules of pyproject.toml are kept, and breaking one is caught."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def lint(root: Path) -> subprocess.CompletedProcess[str]:
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    environment = {**os.environ, "PYTHONPATH": str(root / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture
def copy(tmp_path):
    """The rules and the source in a place of their own, to be broken there."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_the_rules_are_kept(copy):
    result = lint(copy)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("file", "line", "broken"),
    [
        ("imaging.py", "import reidkit.evaluate", "A room imports only from rooms below it BROKEN"),
        ("deploy/verify.py", "import reidkit.report.latency_plot", "A room imports only from rooms below it BROKEN"),
        ("metrics/distance.py", "import torch", "The light side never imports torch, not even indirectly BROKEN"),
        (
            "index/exact.py",
            "import reidkit.runtime.pytorch",
            "The light side never imports torch, not even indirectly BROKEN",
        ),
        ("runtime/openvino.py", "import reidkit.runtime.onnxruntime", "Each engine's file stands alone BROKEN"),
    ],
)
def test_a_broken_rule_is_caught(copy, file, line, broken):
    path = copy / "src" / "reidkit" / file
    path.write_text(f"{path.read_text()}\n{line}\n")
    result = lint(copy)
    assert result.returncode != 0
    assert broken in result.stdout


def test_a_new_room_must_be_placed(copy):
    (copy / "src" / "reidkit" / "attic.py").write_text('"""A room nobody placed."""\n')
    result = lint(copy)
    assert result.returncode != 0
    assert "attic" in result.stdout + result.stderr
