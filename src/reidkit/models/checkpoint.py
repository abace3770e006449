"""reidkit's own checkpoint: one safetensors file that says itself what it is. Loading it never runs code."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save, save_file

from reidkit.architecture import CLASSIFIERS
from reidkit.atomic import output_file
from reidkit.bundle import MANIFEST, Bundle
from reidkit.calibration import Range
from reidkit.config import from_dict, to_dict
from reidkit.errors import ConfigError, ModelError
from reidkit.fitting import misfit
from reidkit.manifest import CheckpointFacts, read_facts
from reidkit.models.model import DeployedModel, Network, build_model

_METADATA, _RANGES, _FLOATS = "reidkit", "reidkit.ranges", "reidkit.floats"


def save_checkpoint(
    path: Path | str,
    model: Network,
    facts: CheckpointFacts,
    *,
    ranges: Mapping[str, Range] | None = None,
    floats: Sequence[str] = (),
) -> None:
    """Writes weights and facts, whole or not at all.

    Args:
        path: of the file.
        model: whose weights they are.
        facts: that make it a checkpoint.
        ranges: of a network that was trained in eight bits, by name of the grid.
        floats: names of the layers that stayed float in that.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    learned = {}
    if ranges is not None:
        learned = {_RANGES: json.dumps(to_dict(dict(ranges))), _FLOATS: json.dumps(list(floats))}
    with output_file(path) as temporary:
        save_file(tensors, temporary, {**_metadata(facts), **learned})


def _metadata(facts: CheckpointFacts) -> dict[str, str]:
    return {_METADATA: json.dumps(to_dict(facts), sort_keys=True)}


def load_checkpoint(path: Path | str) -> tuple[Network, CheckpointFacts]:
    """Builds the model that a checkpoint describes and loads its weights, all of them or none.

    Raises:
        ModelError: no such file, no checkpoint of reidkit, truncated, or its tensors do not fit its architecture.
    """
    path = Path(path)
    with _opened(path) as file:
        described: Any = json.loads((file.metadata() or {}).get(_METADATA, "null"))
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    if not isinstance(described, dict):
        raise ModelError(f"{path} does not say what it is", expected="a checkpoint written by `reid train`")
    try:
        facts = read_facts(described)
        model = build_model(facts.architecture, identities=count_identities(tensors))
    except ConfigError as error:
        raise ModelError(f"{path} describes a model this reidkit cannot build", got=error) from error
    load_weights(model, tensors, source=str(path))
    return model.eval(), facts


def load_ranges(path: Path | str) -> dict[str, Range] | None:
    """The ranges that a network was trained in, by name of the grid; None where it was not trained in eight bits.

    Raises:
        ModelError: no such file, or it cannot be read.
    """
    described = _described(Path(path), _RANGES)
    if described is None:
        return None
    try:
        return {name: from_dict(Range, values, where=f"ranges.{name}") for name, values in described.items()}
    except (ConfigError, AttributeError) as error:
        raise ModelError(f"{path} holds ranges that this reidkit did not write", got=error) from error


def load_floats(path: Path | str) -> tuple[str, ...]:
    """Names of the layers that stayed float when a network was trained in eight bits.

    Raises:
        ModelError: no such file, or it cannot be read.
    """
    described = _described(Path(path), _FLOATS)
    if described is None:
        return ()
    if not isinstance(described, list) or not all(isinstance(name, str) for name in described):
        raise ModelError(
            f"{path} holds no layers in float that this reidkit wrote", got=described, expected="a list of names"
        )
    return tuple(described)


def _described(path: Path, key: str) -> Any:
    """What a checkpoint's metadata say under a key; None where they say nothing."""
    with _opened(path) as file:
        return json.loads((file.metadata() or {}).get(key, "null"))


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file; whatever is wrong with it or its metadata is an error that names it."""
    if not path.is_file():
        raise ModelError(f"No such checkpoint: {path}", fix="check the path; `reid train` writes model.safetensors")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as a checkpoint", got=error, expected="a safetensors file") from error


def count_identities(tensors: Mapping[str, torch.Tensor]) -> int | None:
    """Rows of the classifier; of one that is no table, or has no values, 1: `load_weights` then lists its shape."""
    names = sorted(CLASSIFIERS & tensors.keys())
    if not names:
        return None
    classifier = tensors[names[0]]
    return len(classifier) if classifier.ndim == 2 and classifier.numel() > 0 else 1


def load_weights(model: Network, tensors: dict[str, torch.Tensor], *, source: str) -> None:
    """Loads named weights into a model: every one, of the right shape and type, or none.

    Raises:
        ModelError: lists what is missing, unexpected and of another shape or type.
    """
    faults = misfit(model.state_dict(), tensors)
    if faults:
        raise ModelError(
            f"The weights of {source} do not fit the architecture", got=faults.describe(), expected="every tensor, once"
        )
    model.load_state_dict(tensors)


def load_deployed(bundle: Bundle) -> DeployedModel:
    """Builds the network of a bundle with its weights, pre-processing included.

    Raises:
        ModelError: a foreign graph without weights, or weights that do not fit the architecture.
    """
    manifest, file = bundle.manifest, bundle.weights
    if manifest.architecture is None or file is None:
        raise ModelError(f"{bundle.path} is a foreign graph", expected="a bundle with an architecture and weights")
    try:
        model = build_model(manifest.architecture)
    except ConfigError as error:
        described = bundle.path / MANIFEST
        raise ModelError(f"{described} describes a network this reidkit cannot build", got=error) from error
    try:
        tensors = load_file(file)
    except SafetensorError as error:
        raise ModelError(f"{file} cannot be loaded", got=error) from error
    load_weights(model, tensors, source=str(file))
    return DeployedModel(model, manifest.input).eval()


def deployed_weights(model: Network, facts: CheckpointFacts) -> bytes:
    """The weights that a bundle carries, as a safetensors file: all but the classifier of the training identities."""
    tensors = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in model.state_dict().items()
        if name not in CLASSIFIERS
    }
    return save(tensors, _metadata(facts))
