"""A small bundle of meaningless bytes, and hands that change it."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from reidkit.architecture import ModelSpec
from reidkit.bundle import Bundle, Golden, write_bundle
from reidkit.manifest import Embedding, Manifest, Provenance
from reidkit.types import InputSpec

MODEL, WEIGHTS = b"the graph", b"the weights"
CROPS = np.arange(2 * 4 * 3 * 3, dtype=np.uint8).reshape(2, 4, 3, 3)
EMBEDDINGS = np.arange(10, dtype=np.float32).reshape(2, 5)
GOLDEN = Golden(CROPS, EMBEDDINGS)
MANIFEST = Manifest(
    name="größe",
    task="vehicle",
    input=InputSpec(4, 3, "bilinear", "bgr", 1.0, (1.0, 2.0, 3.0), (0.5, 0.25, 1.0)),
    embedding=Embedding(5, normalized=True),
    batch=2,
    architecture=ModelSpec(),
    licence="research-only",
    provenance=Provenance(
        source="x.pth", recipe={"optim": {"lr": 0.1, "steps": [1, 2]}}, created="2024-01-01T00:00:00Z"
    ),
)
FILES = ["golden.npz", "manifest.json", "model.onnx", "weights.safetensors"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(path: Path, manifest: Manifest = MANIFEST, *, model: bytes = MODEL, overwrite: bool = False) -> Bundle:
    return write_bundle(path, manifest, model=model, golden=GOLDEN, weights=WEIGHTS, overwrite=overwrite)


def sign(folder: Path, change: Mapping[str, Any], **top: Any) -> None:
    """Changes the manifest as somebody would who knows how it is signed."""
    file = folder / "manifest.json"
    values = json.loads(file.read_text(encoding="utf-8"))
    schema = values.pop("schema")
    del values["sha256"]
    values.update(change)
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    digest = hashlib.sha256(text.encode()).hexdigest()
    file.write_text(json.dumps({"schema": schema, "sha256": digest, **values, **top}), encoding="utf-8")


def put(folder: Path, name: str, data: bytes) -> None:
    """Puts a file in and signs for it."""
    (folder / name).write_bytes(data)
    files = json.loads((folder / "manifest.json").read_bytes())["files"]
    sign(folder, {"files": {**files, name: hashlib.sha256(data).hexdigest()}})


def files_of(folder: Path) -> dict[str, str]:
    return json.loads((folder / "manifest.json").read_bytes())["files"]
