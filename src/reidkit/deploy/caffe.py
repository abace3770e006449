"""A bundle as Caffe files: `.prototxt` and `.caffemodel`, complete, from its weights and without torch."""

import hashlib
from pathlib import Path

from reidkit.architecture import in_words
from reidkit.atomic import output_file
from reidkit.bundle import Bundle
from reidkit.deploy.network.caffe_layers import DATA, EMBEDDING, CaffeLayers
from reidkit.deploy.network.description import describable, write_network
from reidkit.deploy.network.weights import read_tensors
from reidkit.deploy.two_files import places_of
from reidkit.errors import ModelError
from reidkit.manifest import Manifest

SUFFIX, WEIGHTS_SUFFIX = ".prototxt", ".caffemodel"


def write_caffe(bundle: Bundle, out: Path | str, *, overwrite: bool = False) -> None:
    """Writes a network as Caffe files that need no editing: pre-processing, IBN, pooling and neck are inside.

    The input blob `data` is float, 1 x 3 x height x width, RGB, 0 to 255; reshape it for more crops at once. The output
    blob `embedding` is 1 x dim. BVLC Caffe 1.0 and OpenCV's DNN module read the files; all is float32.

    Args:
        bundle: of a known architecture.
        out: `NAME.prototxt`; the weights go to `NAME.caffemodel` beside it. Both are written, or neither.
        overwrite: replace files that are already there.

    Raises:
        ConfigError: another suffix.
        ModelError: a foreign graph or a network of timm; non-local blocks of more than one inner channel; or weights
            that do not fit the architecture.
        OutputError: a place is taken or cannot be written to, or the disk is full.
    """
    out, weights = places_of(out, "Caffe files", SUFFIX, WEIGHTS_SUFFIX, overwrite=overwrite)
    manifest = bundle.manifest
    layers = _network(bundle)
    data = layers.caffemodel(manifest.name)
    text = _heading(manifest, weights.name, data) + layers.prototxt(manifest.name)
    with output_file(out) as network, output_file(weights) as beside:
        network.write_text(text, encoding="utf-8")
        beside.write_bytes(data)


def _network(bundle: Bundle) -> CaffeLayers:
    spec, weights = bundle.manifest.architecture, bundle.weights
    if spec is None or weights is None:
        raise ModelError(
            f"{bundle.path} is a foreign graph, of which only the ONNX file is known",
            expected="a bundle with an architecture and weights",
            fix=f"use its {bundle.model.name}",
        )
    if not describable(spec):
        raise ModelError(
            f"{bundle.path} cannot be written as Caffe files",
            got=in_words(spec),
            expected="a ResNet, MGN or OSNet",
            fix=f"use its {bundle.model.name}",
        )
    layers = CaffeLayers()
    write_network(layers, spec, bundle.manifest.input, read_tensors(weights), source=str(weights))
    return layers


def _heading(manifest: Manifest, weights: str, data: bytes) -> str:
    """What whoever runs the files has to know, as comments."""
    size = manifest.input
    rows = [
        f"{' '.join(manifest.name.split())}, written by reidkit",
        f"in:      {DATA}, float n x 3 x {size.height} x {size.width}, RGB, 0 to 255; resized with {size.resize}",
        f"out:     {EMBEDDING}, n x {manifest.embedding.dim}, not normalised",
        f"weights: {weights}, sha256 {hashlib.sha256(data).hexdigest()}",
    ]
    return "".join(f"# {row}\n" for row in rows)
