"""Anybody's checkpoint to a network that runs: one entry, strict, and open about everything it found and assumed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from reidkit.architecture import (
    CLASSIFIERS,
    BackboneSpec,
    HeadSpec,
    ModelSpec,
    ResNetSpec,
    TimmSpec,
    in_words,
    named_model,
)
from reidkit.checkpoints.container import Container, read_container
from reidkit.checkpoints.detection import DIALECTS, OWN, source_of
from reidkit.checkpoints.fit import fit
from reidkit.checkpoints.onnx_weights import weights_from_onnx
from reidkit.checkpoints.reading import Assumption, Reading
from reidkit.config import from_dict, to_dict, with_overrides
from reidkit.errors import ConfigError, ModelError, unknown_name
from reidkit.models.checkpoint import read_facts
from reidkit.models.model import Network, build_model
from reidkit.types import InputSpec

_INPUT = "input"
_BACKBONE = "backbone."


@dataclass(frozen=True, slots=True)
class Foreign:
    """A checkpoint, taken in.

    Attributes:
        model: with its weights, in evaluation mode.
        spec: of the network.
        input: what it wants to see.
        dialect: whose checkpoint it is, and of which time.
        findings: what was detected and done, and from what.
        assumptions: what the file does not say and was assumed, each with the override that says otherwise.
        extras: plain values that were in the file beside the weights (`epoch`, `metric`).
    """

    model: Network
    spec: ModelSpec
    input: InputSpec
    dialect: str
    findings: tuple[str, ...]
    assumptions: tuple[str, ...]
    extras: Mapping[str, Any]


def load_foreign(
    path: Path | str,
    *,
    config: Path | None = None,
    dialect: str | None = None,
    architecture: str | None = None,
    overrides: Sequence[str] = (),
    allow_missing: Sequence[str] = (),
    allow_unexpected: Sequence[str] = (),
) -> Foreign:
    """Loads anybody's checkpoint: detects whose it is, infers the network, and fits every weight or none.

    Args:
        path: of the checkpoint.
        config: fast-reid's `config.yaml` of it.
        dialect: one of `detection.DIALECTS` to hold the file to; None lets its keys decide.
        architecture: name of the network (`architecture.named_model`) whose weights an ONNX file holds; only for these.
        overrides: assignments such as `backbone.last_stride=2` or `input.height=384`.
        allow_missing: patterns of weights that may be missing, such as `heads.weight`.
        allow_unexpected: patterns of weights that are left out.

    Returns:
        The network, with everything that was found out and assumed.

    Raises:
        ModelError: the file cannot be read safely, is nobody's that is known, is damaged, or contradicts the config,
            the dialect or the overrides; the message names the cause.
        ConfigError: an override, a dialect or the config cannot be.
    """
    path, overrides = Path(path), tuple(overrides)
    if architecture is not None:
        return _from_onnx(path, architecture, overrides)
    container = read_container(path)
    reading = _read(container, path, config, dialect)
    spec, input_ = _overridden(reading, overrides)
    _check_decided(reading, spec, _keys(overrides), path)
    model = build_model(spec, identities=reading.identities)
    fitted = fit(
        model,
        reading.tensors,
        source=str(path),
        names=reading.names,
        shaped=container.shaped,
        expected=() if reading.identities is not None else reading.expected,
        allow_missing=allow_missing,
        allow_unexpected=allow_unexpected,
    )
    made = (f"set by hand: {', '.join(overrides)}",) if overrides else ()
    return Foreign(
        model=model.eval(),
        spec=spec,
        input=input_,
        dialect=reading.dialect,
        findings=(*container.notes, *reading.findings, in_words(spec), *fitted, *made),
        assumptions=_still_assumed(reading, overrides),
        extras=container.extras,
    )


def _from_onnx(path: Path, architecture: str, overrides: Sequence[str]) -> Foreign:
    """A network that the caller names, with the weights of an ONNX file of it: proven, or refused."""
    if path.suffix.lower() != ".onnx":
        raise ConfigError(
            "Only an ONNX file needs to be told its architecture", got=path.name, fix="leave --architecture out"
        )
    reading = Reading(
        dialect=f"ONNX of {architecture}",
        spec=named_model(architecture),
        input=InputSpec(256, 128, resize="bilinear"),
        identities=None,
        tensors={},
        assumptions=(
            Assumption("crops of 256x128 (height x width)", "input.height=384"),
            Assumption("crops resized by the bilinear filter", "input.resize=bicubic"),
            Assumption("ImageNet's mean, and its std to match", "input.mean=[0.5, 0.5, 0.5]"),
        ),
    )
    spec, input_ = _overridden(reading, overrides)
    model = build_model(spec)
    model.load_state_dict(weights_from_onnx(path, model, (input_.height, input_.width)))
    return Foreign(
        model=model.eval(),
        spec=spec,
        input=input_,
        dialect=reading.dialect,
        findings=(in_words(spec), "with these weights it gives what ONNX Runtime gives for the file"),
        assumptions=_still_assumed(reading, overrides),
        extras={},
    )


def starting_weights(path: Path | str, backbone: BackboneSpec) -> dict[str, Tensor]:
    """The backbone's weights of any checkpoint that can be read, for a backbone that is to be trained.

    Names, shapes and types must all fit. Last stride, max-pooling and pre-activation may differ: they have no weights.

    Args:
        path: of a checkpoint of fast-reid, torchreid, torchvision, timm or reidkit.
        backbone: that is to begin with its weights.

    Returns:
        Weights by canonical name, `backbone.` included.

    Raises:
        ModelError: the file cannot be read, or its backbone does not fit; lists what does not.
    """
    path = Path(path)
    container = read_container(path)
    reading = _read(container, path, None, None)
    if reading.spec.branches == "mgn":
        raise ModelError(f"{path} holds an MGN, whose branches fit no single backbone", got=in_words(reading.spec))
    wanted = ModelSpec(backbone, HeadSpec(pooling="average", neck=False))
    model = build_model(wanted)
    weights = {name: tensor for name, tensor in reading.tensors.items() if name.startswith(_BACKBONE)}
    try:
        fit(model, weights, source=str(path), names=reading.names, shaped=container.shaped)
    except ModelError as error:
        reason = _reason(reading.spec.backbone, backbone)
        raise ModelError(
            f"The weights of {path} do not fit the backbone that is to be trained{reason}",
            got=error.got,
            expected=in_words(wanted),
            fix="take other weights, or another backbone",
        ) from None
    return dict(model.state_dict())


def _read(container: Container, path: Path, config: Path | None, dialect: str | None) -> Reading:
    if dialect is not None and dialect not in DIALECTS:
        raise unknown_name("dialect", dialect, DIALECTS)
    if container.facts is not None and dialect in (None, OWN):
        return _own(container, path, config)
    if dialect == OWN:
        raise ModelError(
            f"{path} is no checkpoint of reidkit", expected="a file of `reid train`, which says what it is"
        )
    source, reason = source_of(container.tensors, file=str(path), dialect=dialect)
    reading = source.read(container.tensors, config=config, dialect=dialect)
    return replace(reading, findings=(f"a checkpoint of {source.name}, by {reason}", *reading.findings))


def _own(container: Container, path: Path, config: Path | None) -> Reading:
    if config is not None:
        raise ModelError(
            f"{path} is a checkpoint of reidkit and says itself what it is", got=config, fix="leave --config out"
        )
    try:
        facts = read_facts(dict(container.facts or {}))
    except ConfigError as error:
        raise ModelError(f"{path} describes a model this reidkit cannot build", got=error) from error
    return Reading(
        dialect=OWN,
        spec=facts.architecture,
        input=facts.input,
        identities=_identities(container, facts.architecture),
        tensors=container.tensors,
        findings=("a checkpoint of reidkit, which says itself what it is",),
    )


def _identities(container: Container, spec: ModelSpec) -> int | None:
    """Rows of the classifier; of one without values or shape that cannot be, 1: the fit then lists it."""
    classifier = next((container.tensors[name] for name in sorted(CLASSIFIERS & container.tensors.keys())), None)
    if classifier is None:
        return None
    if container.shaped:
        return max(1, len(classifier)) if classifier.ndim else 1
    width = spec.head.embedding_dim or (0 if isinstance(spec.backbone, TimmSpec) else spec.backbone.dim)
    return max(1, classifier.numel() // width) if width else 1


def _still_assumed(reading: Reading, overrides: Iterable[str]) -> tuple[str, ...]:
    set_by_hand = _keys(overrides)
    return tuple(str(assumption) for assumption in reading.assumptions if assumption.key not in set_by_hand)


def _keys(overrides: Iterable[str]) -> set[str]:
    return {override.partition("=")[0].strip() for override in overrides}


def _overridden(reading: Reading, overrides: Iterable[str]) -> tuple[ModelSpec, InputSpec]:
    values = with_overrides({**to_dict(reading.spec), _INPUT: to_dict(reading.input)}, overrides)
    input_ = values.pop(_INPUT)
    if not isinstance(input_, Mapping):
        raise ConfigError("input is a table", got=repr(input_), fix="say input.height=384 or the like")
    return from_dict(ModelSpec, values), from_dict(InputSpec, input_, where=_INPUT)


def _check_decided(reading: Reading, spec: ModelSpec, set_by_hand: set[str], path: Path) -> None:
    open_ = [why for key, why in reading.undecided.items() if key not in set_by_hand]
    if open_:
        raise ModelError(f"{path} does not say what network it holds", got="; ".join(open_))
    for key, (value, why) in reading.settled.items():
        got: Any = to_dict(spec)
        for part in key.split("."):
            got = got.get(part) if isinstance(got, dict) else None
        if got != value:
            raise ModelError(
                f"{path} is not what --set {key} says", got=f"{got}", expected=f"{value}, by {why}", fix="leave it out"
            )


def _reason(held: BackboneSpec, wanted: BackboneSpec) -> str:
    if isinstance(held, ResNetSpec) and isinstance(wanted, ResNetSpec):
        if held.depth != wanted.depth:
            return f": they are a ResNet-{held.depth}'s, and it is a ResNet-{wanted.depth}"
        if held.ibn != wanted.ibn:
            names = {"none": "plain batch normalisation", "a": "IBN-a", "b": "IBN-b"}
            return f": bn1 holds {names[held.ibn]} there, and {names[wanted.ibn]} here"
    return ""
