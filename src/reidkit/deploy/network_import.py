"""From named weights and an architecture to a bundle, without torch: NumPy gives the truth, ONNX Runtime the proof.

Names must be the canonical ones, fast-reid's of today: whose checkpoint a file is, is found out where torch is
(`reidkit.checkpoints`).
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from jaxtyping import Float32, UInt8
from safetensors import safe_open
from safetensors.numpy import save

import reidkit
from reidkit.architecture import ModelSpec, in_words
from reidkit.bundle import Bundle, Golden, check_place, file_sha256, write_bundle
from reidkit.config import from_dict, to_dict, with_overrides
from reidkit.deploy.network.description import fit_weights
from reidkit.deploy.network.numpy_layers import run_network
from reidkit.deploy.network.onnx_layers import onnx_network
from reidkit.deploy.network.weights import read_tensors
from reidkit.errors import ConfigError, ModelError
from reidkit.golden import golden_crops
from reidkit.manifest import CheckpointFacts, Cost, Embedding, LicenceClass, Manifest, Provenance, read_facts
from reidkit.runtime.contract import CROPS, EMBEDDINGS
from reidkit.types import InputSpec, Progress, Task, no_progress
from reidkit.wts import read_wts

SUFFIXES = (".wts", ".safetensors")

_METADATA = "reidkit"  # key of a safetensors file under which its weights are described
_TOLERANCE = 1e-4
"""Largest distance between two embeddings of one crop, as a fraction of their length: float32 stays below 1e-5."""

_ERRORS_ONLY = 3  # of ONNX Runtime's log
_STEPS = 4  # weights accounted for, golden embeddings, graph, proof
_PIXEL_MEAN, _PIXEL_STD = "pixel_mean", "pixel_std"  # fast-reid's buffers until 2021: of 0 to 255


def import_network(
    file: Path | str,
    out: Path | str,
    *,
    spec: ModelSpec | None = None,
    input_: InputSpec | None = None,
    overrides: Sequence[str] = (),
    task: Task | None = None,
    licence: LicenceClass = "unknown",
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> Bundle:
    """Makes a bundle of weights under canonical names: its graph is written here, every weight accounted for.

    What a file of `reid export` says of itself stands in for what is not given.

    Args:
        file: `.wts` or `.safetensors`.
        out: the bundle, `NAME.reid`.
        spec: of the network; None takes what the file says.
        input_: size of its crops and pre-processing; None takes what the file says, and else what `overrides` say and
            ImageNet's normalisation.
        overrides: assignments to both, such as `backbone.max_pool=pad` or `input.height=256`.
        task: what it tells apart; None takes what the file says, else people.
        licence: class of licence of the weights.
        overwrite: replace a bundle that is already there.
        progress: called as weights, golden embeddings, graph and proof are done.

    Raises:
        ModelError: the file cannot be read, does not say which network it holds, or its weights do not fit it to the
            last one; or the network gives NaN, or in ONNX Runtime other embeddings than in NumPy.
        ConfigError: an override says something impossible, or something needed is not said.
        InputError: the crops are too small for the network.
        BundleError: the name of the bundle does not end in `.reid`.
        OutputError: the place is taken or cannot be written to.
    """
    file, out = Path(file), Path(out)
    check_place(out, overwrite=overwrite)
    tensors, described = _read(file)
    spec, input_, assumptions = _settled(file, tensors, described, spec, input_, overrides)
    if described is not None and task not in (None, described.task):
        raise ConfigError(f"{file} tells apart another thing", got=task, expected=described.task, fix="leave it out")
    weights, cost = _fitted(file, spec, input_, tensors)
    progress(1, _STEPS)
    crops = golden_crops(input_)
    golden = Golden(crops, _embedded(file, spec, input_, tensors, crops))
    progress(2, _STEPS)
    graph = onnx_network(spec, input_, tensors, source=str(file))
    progress(3, _STEPS)
    _prove(graph, golden, file)
    progress(4, _STEPS)
    if task is None and described is None:
        assumptions = (*assumptions, "it tells persons apart (otherwise: --task vehicle)")
    facts = CheckpointFacts(
        architecture=spec,
        input=input_,
        task=task or (described.task if described else "person"),
        provenance=_provenance(file, described, assumptions),
    )
    manifest = Manifest(
        name=out.stem,
        task=facts.task,
        input=input_,
        embedding=Embedding(golden.embeddings.shape[1]),
        architecture=spec,
        cost=cost,
        licence=licence,
        provenance=facts.provenance,
    )
    packed = save(weights, {_METADATA: json.dumps(to_dict(facts), sort_keys=True)})
    return write_bundle(out, manifest, model=graph, golden=golden, weights=packed, overwrite=overwrite)


def _read(file: Path) -> tuple[dict[str, np.ndarray], CheckpointFacts | None]:
    """The tensors of a file, and what it says of them."""
    if file.suffix == ".wts":
        contents = read_wts(file)
        return contents.tensors, _description(file, contents.facts)
    if file.suffix != ".safetensors":
        raise ModelError(
            f"{file} cannot be read without torch",
            got=file.suffix or "no suffix",
            expected=f"a file of weights: {' or '.join(SUFFIXES)}",
            fix="pip install 'reidkit[train]' reads other checkpoints",
        )
    tensors = read_tensors(file)
    with safe_open(file, framework="numpy") as opened:
        metadata = opened.metadata() or {}
    try:
        facts = json.loads(metadata.get(_METADATA, "null"))
    except ValueError as error:
        raise ModelError(f"{file} describes itself in no JSON", got=error, fix="export it again") from error
    return tensors, _description(file, facts)


def _description(file: Path, facts: Mapping[str, Any] | None) -> CheckpointFacts | None:
    if facts is None:
        return None
    try:
        return read_facts(facts)
    except (ConfigError, TypeError, ValueError) as error:
        raise ModelError(f"{file} describes a model this reidkit does not know", got=error) from error


def _settled(
    file: Path,
    tensors: Mapping[str, np.ndarray],
    described: CheckpointFacts | None,
    spec: ModelSpec | None,
    input_: InputSpec | None,
    overrides: Sequence[str],
) -> tuple[ModelSpec, InputSpec, tuple[str, ...]]:
    """Which network it is and what it wants to see, and what of that the file does not say."""
    said = {override.partition("=")[0].strip() for override in overrides}
    assumptions = [f"set by hand: {', '.join(overrides)}"] if overrides else []
    named = spec is not None
    if spec is None and described is not None:
        spec = described.architecture
    if spec is None:
        raise ModelError(
            f"{file} does not say which network it holds",
            expected="its architecture",
            fix="say which: --architecture resnet50-ibn-a, or another of `reid models`",
        )
    if input_ is None and described is not None:
        input_ = described.input
    if input_ is None:
        base, assumed = _usual_input(tensors, said)
        assumptions += assumed
        missing = [f"input.{side}" for side in ("height", "width") if f"input.{side}" not in said]
        if missing:
            raise ConfigError(
                f"{file} does not say how large its crops are", got=f"no {', '.join(missing)}", fix="say --size 256x128"
            )
    else:
        base = to_dict(input_)
    values = with_overrides({**to_dict(spec), "input": base}, overrides)
    if not isinstance(values["input"], Mapping):
        raise ConfigError("input is a table", got=repr(values["input"]), fix="say input.height=384 or the like")
    input_ = from_dict(InputSpec, values.pop("input"), where="input")
    _check_units(input_, said)
    spec = from_dict(ModelSpec, values)
    return spec, input_, (*((f"named by hand: {in_words(spec)}",) if named else ()), *assumptions)


def _usual_input(tensors: Mapping[str, np.ndarray], said: Iterable[str]) -> tuple[dict[str, Any], list[str]]:
    """What fast-reid's networks see, but for the size, and which of that is assumed."""
    said = set(said)
    assumed = {
        "resize": "crops resized by the bicubic filter, as in fast-reid (otherwise: --resize bilinear)",
        "color": "channels in the order RGB (otherwise: --color bgr)",
    }
    if _PIXEL_MEAN in tensors and _PIXEL_STD in tensors:
        # The shortest decimals that are these float32 values: 123.675, not 123.67500305.
        mean, std = ([float(str(v)) for v in tensors[name].reshape(-1)] for name in (_PIXEL_MEAN, _PIXEL_STD))
        base = {"scale": 1.0, "mean": mean, "std": std}
    else:
        base = {}
        assumed["mean"] = "ImageNet's mean (otherwise: --mean)"
        assumed["std"] = "ImageNet's standard deviation (otherwise: --std)"
    return base, [text for name, text in assumed.items() if f"input.{name}" not in said]


def _check_units(input_: InputSpec, said: Iterable[str]) -> None:
    """Refuses a mean and std of fractions with pixels of 0 to 255, and the reverse, where nobody stated the scale."""
    given = [name for name in ("mean", "std") if f"input.{name}" in set(said)]
    if not given or "input.scale" in set(said):
        return
    fractions = all(max(getattr(input_, name)) <= 1 for name in given)
    if fractions != (input_.scale > 1):
        what = "fractions" if fractions else "of pixels from 0 to 255"
        raise ConfigError(
            f"The {' and '.join(given)} are {what}, and the scale is {input_.scale:g}",
            got="; ".join(f"{name} {list(getattr(input_, name))}" for name in given),
            fix=f"say --scale {255 if fractions else 1} too, and both --mean and --std",
        )


def _fitted(
    file: Path, spec: ModelSpec, input_: InputSpec, tensors: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], Cost]:
    """What goes into the bundle's file of weights, and what the network costs."""
    try:
        weights, cost = fit_weights(spec, input_, tensors, source=str(file))
    except ModelError as error:
        if error.fix is not None:
            raise
        fix = (
            "check --architecture and --set; weights under the names of another project or time are understood where "
            "torch is installed: pip install 'reidkit[train]'"
        )
        raise ModelError(error.problem, got=error.got, expected=error.expected, fix=fix) from None
    return weights.deployed(), cost


def _embedded(
    file: Path,
    spec: ModelSpec,
    input_: InputSpec,
    tensors: Mapping[str, np.ndarray],
    crops: UInt8[np.ndarray, "n height width 3"],
) -> Float32[np.ndarray, "n dim"]:
    embeddings = run_network(spec, input_, tensors, crops, source=str(file))
    if np.isfinite(embeddings).all():
        return embeddings
    raise ModelError(
        f"{file} gives NaN or infinite embeddings",
        got="values that float32 cannot hold",
        expected="finite numbers",
        fix="check --architecture, and scale, mean and std",
    )


def _prove(graph: bytes, golden: Golden, file: Path) -> None:
    """Refuses a graph that ONNX Runtime does not compute as NumPy does, in one batch and crop by crop."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    truth = golden.embeddings.astype(np.float64)
    length = np.linalg.norm(truth, axis=1)
    scale = np.maximum(length, 1e-3 * length.max()) + np.finfo(np.float32).tiny
    for batch in (len(truth), 1):
        starts = range(0, len(truth), batch)
        parts = [session.run([EMBEDDINGS], {CROPS: golden.crops[start : start + batch]})[0] for start in starts]
        got = np.concatenate([np.asarray(part) for part in parts])
        distance = np.linalg.norm(got - truth, axis=1) / scale
        if not (distance <= _TOLERANCE).all():  # a NaN is no agreement
            raise ModelError(
                f"The graph of {file} does not give what its weights give in float64",
                got=f"in batches of {batch}, embeddings {distance.max():.2g} of their length away",
                expected=f"at most {_TOLERANCE:g}",
                fix="weights at the edge of what float32 can compute with do this; else please report it",
            )


def _provenance(file: Path, described: CheckpointFacts | None, assumptions: Sequence[str]) -> Provenance:
    known = described.provenance if described else Provenance(dialect="canonical names")
    return replace(
        known,
        source=file.name,
        source_sha256=file_sha256(file),
        framework=f"numpy {np.__version__}, float64",
        assumptions=(*known.assumptions, *assumptions),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        reidkit=reidkit.__version__,
    )
