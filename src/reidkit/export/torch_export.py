"""From a trained PyTorch model to a bundle: graph, weights, golden embeddings."""

import contextlib
import copy
import io
import logging
import warnings
from dataclasses import replace
from pathlib import Path

import onnx
import torch

from reidkit.bundle import Bundle, Golden, check_place, file_sha256, write_bundle
from reidkit.errors import ModelError
from reidkit.golden import golden_crops
from reidkit.manifest import Embedding, LicenceClass, Manifest, checkpoint_file
from reidkit.models.checkpoint import CheckpointFacts, deployed_weights, load_checkpoint
from reidkit.models.cost import model_cost
from reidkit.models.model import DeployedModel, Network
from reidkit.types import InputSpec

OPSET = 18
"""The newest that every engine in use parses, TensorRT 8.6's ONNX parser included."""


def export_checkpoint(
    checkpoint: Path | str,
    out: Path | str,
    *,
    name: str | None = None,
    licence: LicenceClass = "unknown",
    overwrite: bool = False,
) -> Bundle:
    """Exports a checkpoint of `reid train` to a bundle.

    Args:
        checkpoint: `model.safetensors`, or the folder of the run that holds it.
        out: of the bundle, `NAME.reid`.
        name: of the model; None takes the bundle's.
        licence: class of licence of the weights.
        overwrite: replace a bundle that is already there.

    Raises:
        BundleError: the name of the bundle does not end in `.reid`.
        ModelError: the checkpoint cannot be loaded.
        OutputError: the place is taken or cannot be written to.
    """
    check_place(out, overwrite=overwrite)
    path = Path(checkpoint)
    file = checkpoint_file(path)
    model, facts = load_checkpoint(file)
    provenance = replace(facts.provenance, source_sha256=file_sha256(file))
    return export_model(
        model,
        replace(facts, provenance=provenance),
        out,
        name=name or Path(out).stem,
        licence=licence,
        overwrite=overwrite,
    )


def export_model(
    model: Network,
    facts: CheckpointFacts,
    out: Path | str,
    *,
    name: str,
    licence: LicenceClass = "unknown",
    overwrite: bool = False,
) -> Bundle:
    """Exports a model: its graph with the pre-processing inside, its weights, and what PyTorch gives for golden crops.

    Raises:
        BundleError: the name of the bundle does not end in `.reid`.
        ModelError: the model gives values that are not finite, or cannot be translated to ONNX.
        OutputError: the place is taken or cannot be written to.
    """
    check_place(out, overwrite=overwrite)
    # A copy: the caller's model may be in the middle of its training, on another device and channels last, which
    # would number the graph's values differently.
    model = copy.deepcopy(model).cpu().to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
    deployed = DeployedModel(model, facts.input).eval()
    crops = golden_crops(facts.input)
    with torch.inference_mode():
        embeddings = deployed(torch.from_numpy(crops)).numpy()
    if not torch.isfinite(torch.from_numpy(embeddings)).all():
        raise ModelError(
            "The model gives values that are not finite", expected="finite embeddings", fix="train it again"
        )
    manifest = Manifest(
        name=name,
        task=facts.task,
        input=facts.input,
        embedding=Embedding(embeddings.shape[1]),
        architecture=facts.architecture,
        cost=model_cost(facts.architecture, (facts.input.height, facts.input.width)),
        licence=licence,
        provenance=facts.provenance,
    )
    return write_bundle(
        out,
        manifest,
        model=onnx_graph(deployed, facts.input),
        golden=Golden(crops, embeddings),
        weights=deployed_weights(model, facts),
        overwrite=overwrite,
    )


def onnx_graph(model: DeployedModel, spec: InputSpec) -> bytes:
    """The graph of a model: `crops` (uint8, n x height x width x 3) to `embeddings` (float32, n x dim), any n.

    Raises:
        ModelError: PyTorch's exporter cannot translate the model.
    """
    example = torch.zeros((2, spec.height, spec.width, 3), dtype=torch.uint8)
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        # The exporter prints, and warns about libraries that are not needed here.
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                model,
                (example,),
                input_names=["crops"],
                output_names=["embeddings"],
                dynamic_shapes={"crops": {0: torch.export.Dim("n")}},
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    except Exception as error:
        raise ModelError("PyTorch cannot translate this model to ONNX", got=error) from error
    finally:
        logger.setLevel(level)
    assert program is not None
    graph = _without_traces(program.model_proto)
    onnx.checker.check_model(graph, full_check=True)
    return graph.SerializeToString(deterministic=True)


def _without_traces(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Takes out what the exporter notes about the machine it ran on: source files and stack traces."""
    del graph.metadata_props[:]
    del graph.graph.metadata_props[:]
    for part in (*graph.graph.node, *graph.graph.value_info, *graph.graph.input, *graph.graph.output):
        del part.metadata_props[:]
        part.doc_string = ""
    for tensor in graph.graph.initializer:
        del tensor.metadata_props[:]
        tensor.doc_string = ""
    return graph
