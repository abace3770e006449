"""The teacher of a distillation: a trained network that says of each batch what its student should copy."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from reidkit.architecture import CLASSIFIERS
from reidkit.bundle import MANIFEST, open_bundle
from reidkit.checkpoints.container import read_container
from reidkit.checkpoints.detection import OWN
from reidkit.checkpoints.loading import load_foreign
from reidkit.checkpoints.starting import weights_file
from reidkit.config import from_dict
from reidkit.errors import ConfigError, ModelError
from reidkit.models.checkpoint import CheckpointFacts, load_deployed, read_facts
from reidkit.models.model import Network, Preprocess
from reidkit.train.losses.criterion import TeacherOutputs, identity_scores
from reidkit.train.settings import IdentityLoss
from reidkit.types import InputSpec

_ONLY_RELATIONS = "so only relations can be copied, and no identity scores"


class Teacher:
    """A trained network, as it is: evaluation mode, no gradients, its own input size and normalisation.

    It sees the student's augmented crops, not the originals: what it says then is about the same picture (Beyer et al.,
    "Knowledge distillation: A good teacher is patient and consistent", CVPR 2022).

    Args:
        network: with its weights, on the device that it is to run on.
        input: what the network wants to see.
        scores: the identity loss that trained its classifier, which is of the student's identities; None without one.
        note: see below.
        assumptions: see below.

    Attributes:
        network: frozen.
        input: as given.
        has_logits: whether it scores the student's training identities.
        note: in words for the user, whether it does and why.
        assumptions: what its file does not say and was assumed.
    """

    def __init__(
        self,
        network: Network,
        input: InputSpec,  # noqa: A002 (as everywhere)
        *,
        scores: IdentityLoss | None,
        note: str,
        assumptions: tuple[str, ...] = (),
    ) -> None:
        self.network = network.eval().requires_grad_(requires_grad=False)
        self.input = input
        self.has_logits = scores is not None
        self.note = note
        self.assumptions = assumptions
        self._scores = scores
        self._preprocess = Preprocess(input).to(next(network.parameters()).device)

    @torch.no_grad()
    def __call__(self, pixels: Float[Tensor, "n 3 height width"]) -> TeacherOutputs:
        """What the teacher says of augmented crops: RGB, 0 to 255.

        Crops of another size than its own are resized bilinearly, on the device and in batches, so not to the bit as
        `imaging` does it. Of several heads the embeddings stand side by side and the scores are averaged, all float32.
        """
        x = self._preprocess.normalize(_resized(pixels, self.input)).contiguous(memory_format=torch.channels_last)
        if self._scores is None:
            return TeacherOutputs(self.network(x).float(), None)
        heads = self.network.training_outputs(x)
        embedding = torch.cat([head.embedding for head in heads], dim=1).float()
        return TeacherOutputs(
            embedding, torch.stack([identity_scores(head, self._scores) for head in heads]).mean(dim=0)
        )


def load_teacher(path: Path | str, *, identities: str, device: torch.device | str) -> Teacher:
    """Loads a network to learn from.

    Args:
        path: a run of `reid train`, its `model.safetensors`, a bundle, or anyone's checkpoint that `reid import` reads
            without further options.
        identities: `identities_digest` of those that the student is trained on.
        device: to run on.

    Returns:
        The teacher. It scores identities only if its checkpoint says that it was trained on these, in this order, by
        a loss that says how; else `note` says what is missing.

    Raises:
        ModelError: no such file, or a run that never finished; a foreign graph; or weights that cannot be read.
        BundleError: a bundle that is damaged.
    """
    path = Path(path)
    if (path / MANIFEST).is_file():
        network, input_ = _from_bundle(path)
        scores, note = None, f"a bundle has no classifier, {_ONLY_RELATIONS}; its run's checkpoint has one"
        assumptions: tuple[str, ...] = ()
    else:
        file = weights_file(path)
        if not file.is_file():
            raise ModelError(
                f"No teacher at {path}" if file == path else f"{path} holds no teacher: {file.name} is missing",
                expected="a run that `reid train` finished, a checkpoint or a bundle",
                fix="check the path; a run writes its checkpoint at the end",
            )
        if file.suffix.lower() == ".onnx":
            raise _cannot_teach(file)
        foreign = load_foreign(file)
        network, input_, assumptions = foreign.model, foreign.input, foreign.assumptions
        facts = read_facts(read_container(file).facts or {}) if foreign.dialect == OWN else None
        has_classifier = not CLASSIFIERS.isdisjoint(network.state_dict())
        scores, note = _scored(facts, identities, has_classifier=has_classifier)
    network = network.to(device=device)
    network = network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return Teacher(network, input_, scores=scores, note=note, assumptions=assumptions)


def identities_digest(names: Sequence[str]) -> str:
    """A sha256 over the names of training identities, in the order of the classifier's rows.

    Equal names are taken for equal people: put the data set into the names where two may share them.
    """
    return hashlib.sha256(json.dumps(list(names), separators=(",", ":")).encode()).hexdigest()


def _from_bundle(path: Path) -> tuple[Network, InputSpec]:
    bundle = open_bundle(path)
    if bundle.manifest.architecture is None:
        raise _cannot_teach(path)
    return load_deployed(bundle).model, bundle.manifest.input


def _cannot_teach(path: Path) -> ModelError:
    return ModelError(
        f"{path} is a graph, which cannot teach",
        got="a graph without an architecture",
        expected="a checkpoint, or a bundle with an architecture and weights",
        fix="take the checkpoint that the graph was exported from; of a known network, `reid import FILE.onnx"
        " --architecture NAME` makes a bundle with weights",
    )


def _scored(facts: CheckpointFacts | None, identities: str, *, has_classifier: bool) -> tuple[IdentityLoss | None, str]:
    """The loss that trained the classifier, where that is of the student's identities; and why, or why not."""
    if facts is None:
        return None, f"a checkpoint of somebody else does not say which identities it was trained on, {_ONLY_RELATIONS}"
    if not has_classifier:
        return None, f"its checkpoint has no classifier, {_ONLY_RELATIONS}"
    if not facts.identities:
        return None, f"its checkpoint does not say which identities it was trained on, {_ONLY_RELATIONS}"
    if facts.identities != identities:
        return None, f"it was trained on other identities, or in another order, {_ONLY_RELATIONS}"
    loss = _identity_loss(facts.provenance.recipe)
    if loss is None:
        return None, f"its checkpoint does not say by which loss its classifier was trained, {_ONLY_RELATIONS}"
    if loss.weight == 0:
        return None, f"its classifier was not trained (its loss.identity.weight is 0), {_ONLY_RELATIONS}"
    return loss, "it was trained on the same identities, so its identity scores can be copied, too"


def _identity_loss(recipe: Mapping[str, Any] | None) -> IdentityLoss | None:
    loss = (recipe or {}).get("loss")
    described = loss.get("identity") if isinstance(loss, Mapping) else None
    try:
        return from_dict(IdentityLoss, described) if isinstance(described, Mapping) else None
    except ConfigError:  # a recipe of another version of reidkit
        return None


def _resized(pixels: Float[Tensor, "n 3 height width"], input_: InputSpec) -> Float[Tensor, "n 3 h w"]:
    size = (input_.height, input_.width)
    if pixels.shape[2:] == size:
        return pixels
    shrinks = pixels.shape[2] > size[0] or pixels.shape[3] > size[1]
    return F.interpolate(pixels.float(), size, mode="bilinear", antialias=shrinks)
