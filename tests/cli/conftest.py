import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

from reidkit.bundle import Golden, open_bundle, write_bundle
from reidkit.cli import main
from reidkit.runtime.onnxruntime import OnnxRuntimeEmbedder


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path_factory, monkeypatch):
    """What one test embedded is not there for another."""
    monkeypatch.setenv("REIDKIT_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def run(capsys):
    """Runs a command; gives its exit status, output and complaints."""

    def call(*arguments: object) -> tuple[int, str, str]:
        status = main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return call


@pytest.fixture(scope="session")
def market(tmp_path_factory):
    """Six people of plain colours, seen by two cameras, in Market-1501 layout; one query has no other camera."""
    root = tmp_path_factory.mktemp("data") / "market"
    rng = np.random.default_rng(0)
    for pid in range(1, 7):
        color = rng.integers(0, 256, 3)
        subset = "bounding_box_train" if pid <= 3 else "bounding_box_test"
        for camera in (1, 2):
            for frame in range(2):
                noise = rng.integers(-10, 10, (64, 32, 3))
                picture = Image.fromarray(np.clip(color + noise, 0, 255).astype(np.uint8))
                folder = "query" if pid > 3 and frame == 0 else subset
                path = root / folder / f"{pid:04d}_c{camera}s1_{frame:06d}_00.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                picture.save(path)
    for frame in range(2):
        lonely = Image.fromarray(rng.integers(0, 256, (64, 32, 3), dtype=np.uint8))
        lonely.save(root / ("query" if frame == 0 else "bounding_box_test") / f"0009_c1s1_{frame:06d}_00.jpg")
    return root


@pytest.fixture(scope="session")
def vehicles(market, tmp_path_factory):
    """The pictures of six people as VehicleID lays vehicles out: all are query and gallery at once."""
    root = tmp_path_factory.mktemp("vehicles") / "VehicleID"
    lists: dict[str, list[str]] = {"train_list.txt": [], "test_list_800.txt": []}
    (root / "image").mkdir(parents=True)
    for number, path in enumerate(sorted(market.rglob("*.jpg"))):
        shutil.copy(path, root / "image" / f"{number:07d}.jpg")
        name = "train_list.txt" if path.parent.name.endswith("train") else "test_list_800.txt"
        lists[name].append(f"{number:07d} {int(path.name[:4])}\n")
    (root / "train_test_split").mkdir()
    for name, lines in lists.items():
        (root / "train_test_split" / name).write_text("".join(lines))
    return root


@pytest.fixture(scope="session")
def other_bundle(tiny_bundle, tmp_path_factory):
    """The tiny model with its first convolution drawn anew."""
    opened = open_bundle(tiny_bundle)
    model = onnx.load_from_string((tiny_bundle / "model.onnx").read_bytes())
    weight = next(item for item in model.graph.initializer if len(item.dims) == 4 and item.dims[1] == 3)
    drawn = np.random.default_rng(0).normal(size=tuple(weight.dims)).astype(np.float32)
    weight.CopyFrom(numpy_helper.from_array(drawn, weight.name))
    golden = opened.golden()
    path = tmp_path_factory.mktemp("bundles") / "other.reid"
    manifest = replace(opened.manifest, name="other", architecture=None)
    write_bundle(
        path, manifest, model=model.SerializeToString(), golden=Golden(golden.crops, golden.embeddings), weights=None
    )
    return path


@pytest.fixture
def embedded(monkeypatch):
    """Numbers of crops that the engine was given, call by call."""
    counts = []
    embed = OnnxRuntimeEmbedder.embed
    monkeypatch.setattr(
        OnnxRuntimeEmbedder, "embed", lambda self, crops: counts.append(len(crops)) or embed(self, crops)
    )
    return counts
