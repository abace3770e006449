"""`reid doctor`, with findings that are made up."""

import json
from dataclasses import replace

import pytest
import typer
from typer.testing import CliRunner

from reidkit.cli import doctor
from reidkit.cli.extras import explained
from reidkit.deploy.doctor import Card, Diagnosis, Library, Stored
from small_bundle import write

FOUND = Diagnosis(
    reidkit="0.1.0",
    python="3.10.12",
    system="Linux 6.8, x86_64",
    processor="Some Processor, 8 of 16 cores",
    cores=8,
    driver="580.95.05",
    cuda="13.0",
    cards=(Card("NVIDIA H200 [bold]", "9.0", 150_754_820_096, ("tensorrt",)),),
    no_cards=None,
    engines={
        "onnxruntime": Library("onnxruntime", "1.31.1", None, None),
        "tensorrt": Library("tensorrt", None, None, "pip install 'reidkit[tensorrt]'"),
        "tensorrt-rtx": Library("tensorrt_rtx", None, "libx.so: \x1b[31mno such file", "pip install 'reidkit[rtx]'"),
    },
    beside=(Library("filelock", "3.20", None, None),),
)


@pytest.fixture
def run(monkeypatch):
    asked = []

    def call(found, *arguments):
        monkeypatch.setattr(doctor, "diagnose", lambda bundle: asked.append(bundle) or found)
        app = typer.Typer()
        app.command()(doctor.doctor)
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
        return result.exit_code, result.stdout, asked[-1]

    return call


def line(out: str, word: str) -> str:
    return next(line for line in out.splitlines() if word in line)


def test_what_is_here_and_what_is_missing(run):
    status, out, bundle = run(FOUND)
    assert status == 0
    assert bundle is None
    assert "580.95.05, CUDA up to 13.0" in line(out, "NVIDIA driver")
    assert "NVIDIA H200 [bold]: compute capability 9.0, 140.4 GiB, fits tensorrt" in out
    assert "ready" in line(out, "1.31.1")
    assert "not installed" in line(out, "│ tensorrt ")
    assert "broken: libx.so: \N{REPLACEMENT CHARACTER}[31mno such file" in line(out, "tensorrt_rtx")
    assert out.endswith("  pip install 'reidkit[tensorrt]'\n  pip install 'reidkit[rtx]'\n")
    assert "engine of the bundle" not in out


def test_a_machine_without_a_card(run):
    found = replace(FOUND, driver=None, cuda=None, cards=(), no_cards="cuda-bindings is not installed")
    status, out, _ = run(found)
    assert status == 0
    assert "none, and no NVIDIA card seen" in line(out, "NVIDIA driver")
    assert "cuda-bindings is not installed" in line(out, "CUDA")


def test_engines_of_a_bundle(run, tmp_path):
    small = write(tmp_path / "small.reid")
    _, out, bundle = run(replace(FOUND, stored=()), small.path)
    assert bundle == small
    assert "no engine was built for this bundle" in out
    stored = (Stored("tensorrt-a", ()), Stored("tensorrt-b", ("it is too old", "it is for another card")))
    _, out, _ = run(replace(FOUND, stored=stored), small.path)
    assert "fits" in line(out, "tensorrt-a")
    assert "it is too old; it is for another card" in line(out, "tensorrt-b")


def test_json_holds_the_same(run, tmp_path):
    status, _, _ = run(FOUND, "--json", tmp_path / "found.json")
    assert status == 0
    values = json.loads((tmp_path / "found.json").read_text())
    assert values["cards"] == [
        {
            "name": "NVIDIA H200 [bold]",
            "compute_capability": "9.0",
            "memory": 150_754_820_096,
            "flavours": ["tensorrt"],
        }
    ]
    assert values["engines"]["tensorrt"]["fix"] == "pip install 'reidkit[tensorrt]'"
    assert values["stored"] is None


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("tensorrt", "pip install 'reidkit[tensorrt]' --extra-index-url https://pypi.nvidia.com"),
        ("tensorrt_rtx", "pip install 'reidkit[tensorrt-rtx]'"),
        ("cuda", "pip install cuda-bindings"),
        ("cuda.bindings", "pip install cuda-bindings"),
        ("filelock", "pip install filelock"),
        ("torch", "pip install 'reidkit[train]'"),
    ],
)
def test_missing_libraries_name_what_installs_them(module, command):
    error = explained(ModuleNotFoundError(f"No module named {module!r}", name=module))
    assert str(error) == f"{module} is not installed\n  to do: {command}"
