"""A bundle of a small OSNet whose weights and golden embeddings are real and whose graph is not: quickly made."""

from pathlib import Path

import torch
from safetensors.torch import save

from reidkit.architecture import HeadSpec, ModelSpec, OSNetSpec
from reidkit.bundle import Bundle, Golden, write_bundle
from reidkit.golden import golden_crops
from reidkit.manifest import Embedding, Manifest
from reidkit.models.model import DeployedModel, build_model
from reidkit.types import InputSpec

INPUT = InputSpec(32, 16)


def write_osnet(path: Path) -> Bundle:
    """OSNet-AIN x0.25 with a bottleneck of 16."""
    torch.manual_seed(0)
    spec = ModelSpec(OSNetSpec(width=0.25, variant="ain"), HeadSpec("average", embedding_dim=16))
    model = build_model(spec).eval()
    crops = golden_crops(INPUT)
    with torch.inference_mode():
        embeddings = DeployedModel(model, INPUT)(torch.from_numpy(crops)).numpy()
    manifest = Manifest(name="small", task="person", input=INPUT, embedding=Embedding(16), architecture=spec)
    return write_bundle(
        path, manifest, model=b"the graph", golden=Golden(crops, embeddings), weights=save(model.state_dict())
    )
