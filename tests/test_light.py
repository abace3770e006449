"""The light side runs where torch is not installed; proven in a process that cannot import it."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "reidkit"

HIDE = """
import importlib.abc, sys

class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r} (hidden by the test)", name=name)

sys.meta_path.insert(0, Hidden())
"""


def run_without(hidden: set[str], code: str) -> subprocess.CompletedProcess[str]:
    program = f"HIDDEN = {sorted(hidden)!r}\n{HIDE}\n{code}"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


HEAVY_ROOMS = ("checkpoints", "models", "train", "export")
HEAVY_MODULES = ("runtime.pytorch", "runtime.inductor")
ON_THE_CARD = ("runtime.cuda", "runtime.device_arrays", "runtime.tensorrt")  # cuda-bindings is not for macOS


def light_modules() -> list[str]:
    left_out = HEAVY_MODULES if importlib.util.find_spec("cuda") else (*HEAVY_MODULES, *ON_THE_CARD)
    names = []
    for file in sorted(SOURCE.rglob("*.py")):
        parts = file.relative_to(SOURCE).with_suffix("").parts
        if parts[0] not in HEAVY_ROOMS and ".".join(parts) not in left_out:
            names.append(".".join(("reidkit", *(part for part in parts if part != "__init__"))))
    return names


def test_every_light_module_imports_without_torch():
    names = light_modules()
    assert {"reidkit", "reidkit.bundle", "reidkit.cli.app", "reidkit.runtime.onnxruntime", "reidkit.deploy.build"} <= {
        *names
    }
    code = f"import importlib\nfor name in {names!r}: importlib.import_module(name)\nprint('torch' in sys.modules)"
    result = run_without({"torch"}, code)
    assert result.stdout == "False\n", result.stderr


@pytest.mark.parametrize("module", ["models.model", *HEAVY_MODULES])
def test_the_test_can_fail(module):
    assert "No module named 'torch'" in run_without({"torch"}, f"import reidkit.{module}").stderr


def test_importing_reidkit_needs_only_the_base():
    extras = {
        *("torch", "onnx", "onnxruntime", "openvino", "matplotlib", "jinja2", "pyarrow", "onnxscript"),
        *("tensorrt", "tensorrt_rtx", "cuda", "filelock", "cv2"),
    }
    code = (
        "import reidkit, reidkit.cli, reidkit.decoding\n"
        "print('light', sorted(HIDDEN_LOADED := [n for n in HIDDEN if n in sys.modules]))"
    )
    assert run_without(extras, code).stdout == "light []\n"


@pytest.mark.parametrize(
    ("library", "arguments", "extra"),
    [
        ("torch", ["export", "run", "--out", "x.reid"], "train"),
        ("onnx", ["import", "x.onnx", "--out", "x.reid", "--size", "8x8"], "onnx"),
        ("onnxruntime", ["import", "x.wts", "--out", "x.reid", "--no-torch"], "onnx"),
        ("torch", ["embed", "BUNDLE", "--images", "BUNDLE/..", "--out", "x.npz", "--runtime", "inductor"], "train"),
        ("tensorrt_rtx", ["build", "BUNDLE", "--runtime", "tensorrt-rtx"], "tensorrt-rtx"),
        ("onnxruntime", ["embed", "BUNDLE", "--images", "BUNDLE/..", "--out", "x.npz"], "onnx"),
        ("jinja2", ["search", "BUNDLE", "--query", "a", "--gallery", "b", "--out", "x.html"], "report"),
    ],
)
def test_a_missing_library_names_the_extra(library, arguments, extra, tiny_bundle, tmp_path):
    (tiny_bundle.parent / "picture.jpg").touch()
    arguments = [argument.replace("BUNDLE", str(tiny_bundle)) for argument in arguments]
    code = f"import os; os.chdir({str(tmp_path)!r})\nfrom reidkit.cli import main\nprint(main({arguments!r}))"
    result = run_without({library}, code)
    assert result.stdout == "2\n", result.stderr
    assert f"error: {library} is not installed\n  to do: pip install 'reidkit[{extra}]'\n" in result.stderr
