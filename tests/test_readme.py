"""The commands of the README work as written, in order, but on fewer people, and trained and timed for a moment only.

Those that need a graphics card or minutes stand in blocks of another language, `console`, and are only read.
"""

import importlib.util
import re
import shlex
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import typer
from onnx import TensorProto, helper, numpy_helper

import reidkit
from foreign_checkpoints import (
    make_fastreid_resnet,
    make_torchreid_osnet,
    make_torchvision_resnet,
    save_fastreid,
    save_torchreid,
)
from quick_networks import graphs_by_layers
from reidkit.cli import main
from reidkit.cli.app import app

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")

SHORTER = {
    "synth": ["--identities", "16", "--crops-per-camera", "2"],
    "train": ["--set", "optim.epochs=0.2"],
    "bench": ["--seconds", "0", "--batch", "1", "--batch", "4"],
    # Runs whose export would take longer than they do: there is one that is exported.
    "staged": ["--set", "before.optim.epochs=0.2", "--no-bundle"],
    "student": ["--no-bundle"],
    "qat-cpu": ["--set", "batches.identities=8"],
    "--max-map-drop": ["--max-map-drop", "100"],  # of so few people one says little
    "pretrained": ["--no-bundle"],
}
"""What is added to a command that has such a word."""

EXPORTED = {"run", "qat-cpu"}
"""Commands with such a word use PyTorch's exporter, whose names training in eight bits goes by; others need none."""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def commands(language: str = "bash") -> list[list[str]]:
    return [shlex.split(line) for block in blocks(language) for line in block.splitlines()]


def write_network(path: Path) -> None:
    """An embedding network as a stranger might bring it: one convolution and a global average."""
    weight = np.random.default_rng(0).normal(size=(8, 3, 5, 5)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["input", "weight"], ["map"], pads=[2, 2, 2, 2], strides=[8, 8]),
            helper.make_node("GlobalAveragePool", ["map"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["output"]),
        ],
        "network",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 3, 256, 128])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["n", 8])],
        [numpy_helper.from_array(weight, "weight")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def write_checkpoints(folder: Path) -> None:
    """What others have trained, as they keep it: fast-reid, torchreid and torchvision."""
    rng = np.random.default_rng(0)
    save_fastreid(folder / "model_best.pth", make_fastreid_resnet(rng, era="2021-04", depth=18, ibn=True, classes=5))
    (folder / "config.yaml").write_text(
        "MODEL: {META_ARCHITECTURE: Baseline, BACKBONE: {NAME: build_resnet_backbone, DEPTH: 18x, WITH_IBN: true}, "
        "HEADS: {POOL_LAYER: GlobalAvgPool, WITH_BNNECK: true}}\nINPUT: {SIZE_TEST: [64, 32]}\n"
    )
    save_torchreid(folder / "osnet_x0_25.pth", make_torchreid_osnet(rng, width=0.25))
    drawn = make_torchvision_resnet(rng, depth=18)
    torch.save(
        {name: torch.from_numpy(np.asarray(array)) for name, array in drawn.items()}, folder / "resnet18-imagenet.pth"
    )


def test_every_command_of_the_tool_is_in_the_readme():
    every = {command.name for command in app.registered_commands} | {group.name for group in app.registered_groups}
    assert {command[1] for command in commands()} == every - {"demo"}
    assert "`reid demo`" in README


def test_every_recipe_is_in_the_readme():
    names = {path.stem for path in (Path(reidkit.__file__).parent / "train" / "recipes").glob("*.toml")}
    assert set(re.findall(r"^\| `([a-z-]+)` \| .* \|$", README, flags=re.MULTILINE)) >= names


def test_commands_for_a_card_and_their_options_exist():
    for program, name, *arguments in commands("console"):
        assert program == "reid"
        typer.main.get_command(app).commands[name].make_context(name, arguments)


@pytest.mark.slow
def test_commands_and_python(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_network(tmp_path / "network.onnx")
    write_checkpoints(tmp_path)
    for program, *arguments in commands():
        assert program == "reid"
        if "tensorrt-rtx" in arguments and importlib.util.find_spec("tensorrt_rtx") is None:
            continue  # there is none for macOS
        with nullcontext() if EXPORTED.intersection(arguments) else graphs_by_layers():
            status = main([*arguments, *(option for word in arguments for option in SHORTER.get(word, []))])
        assert status == 0, (arguments, capsys.readouterr().err)
    (code,) = blocks("python")
    exec(compile(code, "README.md", "exec"), {})
    assert re.search(r"\[ *0 ", capsys.readouterr().out)  # the nearest to a picture is the picture itself
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {
        "people", "run", "people.reid", "accuracy.json", "accuracy.html", "accuracy.csv", "compare.html", "query.npz",
        "gallery.npz", "latency.csv", "latency.png", "search.html", "search.png",
        "embeddings.npz", "embeddings.parquet", "network.onnx", "theirs.reid", "people-card.md", "people-card.html",
        "model_best.pth", "config.yaml", "fastreid.reid", "osnet_x0_25.pth", "osnet.reid", "people.wts",
        "people.wts.json", "again.reid", "resnet18-imagenet.pth", "pretrained", "staged", "student",
        "people.prototxt", "people.caffemodel", "box.reid", "people.xml", "people.bin", "eight-bits",
    }  # fmt: skip
