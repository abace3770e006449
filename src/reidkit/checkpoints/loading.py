"""Anybody's checkpoint to a network that runs: one entry, strict, and open about everything it found and assumed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from reidkit.architecture import CLASSIFIERS, ModelSpec, TimmSpec, in_words, with_size
from reidkit.checkpoints.container import Container, read_container
from reidkit.checkpoints.detection import OWN, source_of
from reidkit.checkpoints.fit import fit
from reidkit.checkpoints.named import load_onnx, read_as
from reidkit.checkpoints.reading import Reading
from reidkit.config import from_dict, to_dict, with_overrides
from reidkit.errors import ConfigError, ModelError
from reidkit.manifest import Provenance
from reidkit.models.checkpoint import count_identities, read_facts
from reidkit.models.model import Network, build_model
from reidkit.types import InputSpec, Task

_INPUT = "input"
_TASK_ASSUMED = ("it tells persons apart (otherwise: --task vehicle)",)


@dataclass(frozen=True, slots=True)
class Foreign:
    """A checkpoint, taken in.

    Attributes:
        model: with its weights, in evaluation mode.
        spec: of the network.
        input: what it wants to see.
        task: what it tells apart.
        dialect: whose checkpoint it is, and of which time.
        findings: what was detected and done, and from what.
        assumptions: what the file does not say and was assumed, each with the override that says otherwise; and what
            stayed random.
        provenance: what a checkpoint of reidkit says of its own origin; None of anybody else's.
        extras: plain values that were in the file beside the weights (`epoch`, `metric`).
    """

    model: Network
    spec: ModelSpec
    input: InputSpec
    task: Task
    dialect: str
    findings: tuple[str, ...]
    assumptions: tuple[str, ...]
    provenance: Provenance | None
    extras: Mapping[str, Any]


def load_foreign(
    path: Path | str,
    *,
    config: Path | None = None,
    dialect: str | None = None,
    architecture: str | None = None,
    key: str | None = None,
    task: Task | None = None,
    overrides: Sequence[str] = (),
    allow_missing: Sequence[str] = (),
    allow_unexpected: Sequence[str] = (),
) -> Foreign:
    """Loads anybody's checkpoint: detects whose it is, infers the network, and fits every weight or none.

    Args:
        path: of the checkpoint.
        config: fast-reid's `config.yaml` of it.
        dialect: one of `detection.DIALECTS` to hold the file to; None lets its keys decide.
        architecture: name of the network (`architecture.named_model`) that the file holds, where its keys cannot say
            it: of timm, or of an ONNX file. There is nothing to detect then.
        key: where in the file the weights are, when there is more than one set of them.
        task: what it tells apart; None takes what the file says, else people.
        overrides: assignments such as `backbone.last_stride=2` or `input.height=384`.
        allow_missing: patterns of weights that may be missing, such as `heads.weight`.
        allow_unexpected: patterns of weights that are left out.

    Returns:
        The network, with everything that was found out and assumed.

    Raises:
        ModelError: the file cannot be read safely, is nobody's that is known, is damaged, or contradicts the config,
            the dialect or the overrides; the message names the cause.
        ConfigError: an override, a dialect or the config cannot be, or options exclude each other.
    """
    path, overrides = Path(path), tuple(overrides)
    if architecture is not None and (config is not None or dialect is not None):
        raise ConfigError("Of a network that is named nothing is detected", fix="leave --config and --dialect out")
    if architecture is not None and path.suffix.lower() == ".onnx":
        if allow_missing or allow_unexpected or key is not None:
            fix = "leave --allow-missing, --allow-unexpected and --key out"
            raise ConfigError("An ONNX file has every weight of its network, or is refused", fix=fix)
        return _from_onnx(path, architecture, task or "person", overrides)
    container = read_container(path, key=key)
    if architecture is None:
        reading = _read(container, path, config, dialect, task)
    else:
        reading = read_as(container.tensors, architecture)
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
    own = reading.own
    if own is not None and task not in (None, own.task):
        raise ConfigError(f"{path} tells apart another thing", got=task, expected=own.task, fix="leave --task out")
    return Foreign(
        model=model.eval(),
        spec=spec,
        input=input_,
        task=own.task if own is not None else task or "person",
        dialect=reading.dialect,
        findings=(
            *container.notes,
            *reading.findings,
            in_words(spec),
            *_exponents(model),
            *fitted.findings,
            _input_in_words(input_),
        ),
        assumptions=(
            *_still_assumed(reading, overrides),
            *(_TASK_ASSUMED if task is None and own is None else ()),
            *fitted.random,
        ),
        provenance=None if own is None else own.provenance,
        extras=container.extras,
    )


def _from_onnx(path: Path, architecture: str, task: Task, overrides: Sequence[str]) -> Foreign:
    """A network that the caller names, with the weights of an ONNX file of it: proven, or refused."""
    reading = read_as({}, architecture, dialect=f"ONNX of {architecture}")
    spec, input_ = _overridden(reading, overrides)
    model = load_onnx(path, spec, (input_.height, input_.width))
    proof = "with these weights it gives what ONNX Runtime gives for the file"
    return Foreign(
        model=model.eval(),
        spec=spec,
        input=input_,
        task=task,
        dialect=reading.dialect,
        findings=(in_words(spec), proof, _input_in_words(input_)),
        assumptions=_still_assumed(reading, overrides),
        provenance=None,
        extras={},
    )


def read_any(container: Container, path: Path) -> Reading:
    """Understands a file that nothing is said about.

    Raises:
        ModelError: it is nobody's that is known, or damaged.
    """
    return _read(container, path, None, None, None)


def _read(container: Container, path: Path, config: Path | None, dialect: str | None, task: Task | None) -> Reading:
    if container.facts is not None and dialect in (None, OWN):
        return _own(container, path, config)
    if dialect == OWN:
        raise ModelError(
            f"{path} is no checkpoint of reidkit", expected="a file of `reid train`, which says what it is"
        )
    source, reason = source_of(container.tensors, file=str(path), dialect=dialect)
    reading = source.read(container.tensors, config=config, dialect=dialect, task=task or "person")
    return replace(reading, findings=(f"a checkpoint of {source.name}, by {reason}", *reading.findings))


def _own(container: Container, path: Path, config: Path | None) -> Reading:
    if config is not None:
        raise ModelError(
            f"{path} is a checkpoint of reidkit and says itself what it is", got=config, fix="leave --config out"
        )
    try:
        facts = read_facts(container.facts or {})
    except ConfigError as error:
        fix = "say --dialect fastreid, torchreid or torchvision, if it is somebody else's"
        raise ModelError(f"{path} describes a model this reidkit cannot build", got=error, fix=fix) from error
    return Reading(
        dialect=OWN,
        spec=facts.architecture,
        input=facts.input,
        identities=_identities(container, facts.architecture),
        tensors=container.tensors,
        own=facts,
        findings=("a checkpoint of reidkit, which says itself what it is",),
    )


def _identities(container: Container, spec: ModelSpec) -> int | None:
    """Rows of the classifier, also of one that has lost its shape; 1 of one that cannot be: the fit then lists it."""
    rows = count_identities(container.tensors)
    if container.shaped or rows is None:
        return rows
    classifier = next(container.tensors[name] for name in sorted(CLASSIFIERS & container.tensors.keys()))
    width = spec.head.embedding_dim or (0 if isinstance(spec.backbone, TimmSpec) else spec.backbone.dim)
    return max(1, classifier.numel() // width) if width else 1


def _still_assumed(reading: Reading, overrides: Iterable[str]) -> tuple[str, ...]:
    set_by_hand = _keys(overrides)
    return tuple(str(assumption) for assumption in reading.assumptions if assumption.key not in set_by_hand)


def _keys(overrides: Iterable[str]) -> set[str]:
    return {override.partition("=")[0].strip() for override in overrides}


def _exponents(model: Network) -> tuple[str, ...]:
    learned = [tensor.item() for name, tensor in model.state_dict().items() if name.endswith("pool_layer.p")]
    return (f"GeM's exponent as learned: {', '.join(f'{p:.3f}' for p in learned)}",) if learned else ()


def _input_in_words(spec: InputSpec) -> str:
    numbers = f"mean {list(spec.mean)}, std {list(spec.std)}, of pixels over {spec.scale:g}"
    return f"crops of {spec.height}x{spec.width} (height x width), {spec.resize}, {spec.color}; {numbers}"


def _overridden(reading: Reading, overrides: Iterable[str]) -> tuple[ModelSpec, InputSpec]:
    values = with_overrides({**to_dict(reading.spec), _INPUT: to_dict(reading.input)}, overrides)
    input_ = values.pop(_INPUT)
    if not isinstance(input_, Mapping):
        raise ConfigError("input is a table", got=repr(input_), fix="say input.height=384 or the like")
    spec = from_dict(InputSpec, input_, where=_INPUT)
    _check_normalisation(spec, _keys(overrides))
    return with_size(from_dict(ModelSpec, values), (spec.height, spec.width)), spec


def _check_normalisation(spec: InputSpec, set_by_hand: set[str]) -> None:
    """Fractions for a network whose pixels are 0 to 255 would leave them there, almost as they are."""
    given = {name: getattr(spec, name) for name in ("mean", "std") if f"{_INPUT}.{name}" in set_by_hand}
    fractions = [name for name, values in given.items() if max(values) <= 1]
    if fractions and spec.scale == 1 and f"{_INPUT}.scale" not in set_by_hand:
        raise ConfigError(
            f"The {' and '.join(fractions)} are fractions, and this network takes pixels of 0 to 255",
            got="; ".join(f"{name} {list(values)}" for name, values in given.items()),
            fix="say --scale 255 and both mean and std, or numbers such as 127.5",
        )


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
