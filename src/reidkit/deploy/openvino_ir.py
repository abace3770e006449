"""A bundle's graph as OpenVINO IR, for those who run OpenVINO without reidkit; held to the golden embeddings first."""

import hashlib
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import openvino

from reidkit.atomic import output_file
from reidkit.bundle import IR_MODEL, IR_WEIGHTS, Bundle, Golden
from reidkit.deploy.two_files import places_of
from reidkit.deploy.verify import Parity, check_parity
from reidkit.errors import ModelError
from reidkit.runtime import load
from reidkit.runtime.contract import Opening, engine_words, runnable_graph
from reidkit.runtime.openvino_core import CORE
from reidkit.types import Precision

SUFFIX, WEIGHTS_SUFFIX = ".xml", ".bin"


def write_ir(bundle: Bundle, out: Path | str, *, precision: Precision | None = None, overwrite: bool = False) -> Parity:
    """Writes a graph as OpenVINO IR: `crops`, uint8 RGB, to `embeddings`, with the pre-processing inside.

    Args:
        bundle: an open bundle.
        out: `NAME.xml`; the weights go to `NAME.bin` beside it. Neither gets its name before both are written
            in full; the weights get theirs first, so should the system refuse the other one, they are there alone.
        precision: "float16" keeps the weights in 16 bits (OpenVINO computes with them in whatever its device does);
            "int8" takes the graph that `reid quantize` has made; None takes the graph's own.
        overwrite: replace files that are already there.

    Returns:
        How near what was written comes to the golden embeddings.

    Raises:
        ConfigError: another suffix.
        RuntimeMissing: no graph of this precision.
        ModelError: OpenVINO cannot read the graph, or what it writes does not give the golden embeddings.
        OutputError: a place is taken or cannot be written to, or the disk is full.
    """
    out, weights = places_of(out, "OpenVINO IR", SUFFIX, WEIGHTS_SUFFIX, overwrite=overwrite)
    graph = runnable_graph(bundle, Opening("openvino", "cpu", precision=precision), "float16")
    half = graph.precision == "float16" and bundle.manifest.precision == "float32"
    with TemporaryDirectory() as folder:
        _save(graph.file, Path(folder), name=bundle.manifest.name, half=half)
        xml, data = (Path(folder, name).read_bytes() for name in (IR_MODEL, IR_WEIGHTS))
        parity = _held(bundle, Path(folder), xml, data, graph.precision)
    if not parity.passed:
        raise ModelError(
            f"OpenVINO IR of {bundle.path.name} does not give its golden embeddings; nothing was written",
            got=parity.in_words,
            expected=parity.tolerance.in_words,
            fix="hold the engine to the bundle with `reid verify --runtime openvino`",
        )
    with output_file(out) as network, output_file(weights) as beside:
        network.write_bytes(xml)
        beside.write_bytes(data)
    return parity


def _save(graph: Path, folder: Path, *, name: str, half: bool) -> None:
    try:
        model = CORE.read_model(str(graph))
        model.set_friendly_name(name)
        openvino.save_model(model, str(folder / IR_MODEL), compress_to_fp16=half)
    except Exception as error:  # a RuntimeError, whatever it is
        raise ModelError(
            f"openvino {openvino.__version__} cannot write {graph} as IR",
            got=engine_words(error),
            fix="update openvino",
        ) from error


def _held(bundle: Bundle, folder: Path, xml: bytes, data: bytes, precision: Precision) -> Parity:
    """Opens what was written as the graph of a bundle, and compares it with the golden embeddings."""
    files = {name: hashlib.sha256(content).hexdigest() for name, content in ((IR_MODEL, xml), (IR_WEIGHTS, data))}
    written = Bundle(folder, replace(bundle.manifest, architecture=None, precision=precision, files=files))
    golden: Golden = bundle.golden()
    return check_parity(load(written, "openvino", threads=1), golden)
