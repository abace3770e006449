"""The checkpoints that a run writes into its folder."""

import os
import shutil
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn

import reidkit
from reidkit.architecture import ModelSpec
from reidkit.bundle import file_sha256
from reidkit.checkpoints.starting import weights_file
from reidkit.config import to_dict
from reidkit.errors import OutputError, TrainingError
from reidkit.manifest import CHECKPOINT, Provenance
from reidkit.models.checkpoint import CheckpointFacts, save_checkpoint
from reidkit.models.model import Network
from reidkit.train.recipe import Recipe
from reidkit.train.rounded_network import RoundedNetwork, float_network, trained_ranges
from reidkit.train.state import STATE
from reidkit.types import Task

LAST = "last.safetensors"
"""The network at the end, where it was measured on the way."""

BEFORE = "before.safetensors"
"""The network at the end of the stage before the main one."""

_COPIES = 6  # of the weights: model, last, before; in the state weights, and two moments of the optimiser


@dataclass(frozen=True, slots=True)
class Outcome:
    """Writes checkpoints that say what they are.

    Attributes:
        folder: of the run.
        spec: of the network.
        recipe: of the run.
        task: what the identities are.
        dataset: in words.
        identities: digest of the training identities.
        init: file whose backbone the network started from, in words (`describe_file`).
        teacher: file of the network that it copied from, likewise.
    """

    folder: Path
    spec: ModelSpec
    recipe: Recipe
    task: Task
    dataset: str
    identities: str
    init: str | None = None
    teacher: str | None = None

    @property
    def origin(self) -> dict[str, str | None]:
        """What decides the outcome beside the recipe and the data."""
        return {"task": self.task, "init": self.init, "teacher": self.teacher}

    def write(self, model: Network | RoundedNetwork, name: str) -> None:
        """Writes a network, whole or not at all; of one that computes in eight bits that of floats, with ranges.

        Raises:
            TrainingError: weights that are not finite; an earlier checkpoint stays.
            OutputError: it cannot be written.
        """
        check_finite(model)
        provenance = Provenance(
            source=self.folder.name,
            framework=f"torch {torch.__version__}",
            init=self.init,
            teacher=self.teacher,
            dataset=self.dataset,
            recipe=to_dict(self.recipe),
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            reidkit=reidkit.__version__,
        )
        facts = CheckpointFacts(self.spec, self.recipe.input, self.task, provenance, self.identities)
        try:
            ranges, floats = None, ()
            if isinstance(model, RoundedNetwork):
                ranges, floats = trained_ranges(model), model.floats
            save_checkpoint(self.folder / name, float_network(model), facts, ranges=ranges, floats=floats)
        except SafetensorError as error:  # which is how it tells of a full disk
            raise OutputError(
                f"Cannot write {self.folder / name}",
                got=error,
                fix="free some space; what was written before stays, and a state can be resumed",
            ) from error

    def clear(self) -> None:
        """Removes the state of an earlier run, which nobody is to go on with."""
        (self.folder / STATE).unlink(missing_ok=True)

    def finish(self, model: Network | RoundedNetwork, *, measured: bool) -> None:
        """Writes the network at the end, and removes what does not belong to this run or is of no more use.

        Args:
            model: at the end.
            measured: the best one was kept on the way.

        Raises:
            TrainingError: as `write`; the state stays.
            OutputError: as `write`.
        """
        self.write(model, LAST if measured else CHECKPOINT)
        (self.folder / STATE).unlink(missing_ok=True)
        if not measured:
            (self.folder / LAST).unlink(missing_ok=True)
        if self.recipe.before is None:
            (self.folder / BEFORE).unlink(missing_ok=True)

    def check_room(self, model: nn.Module) -> None:
        """Refuses a folder that cannot be written to, and a disk that has no room for what the run will write.

        Raises:
            OutputError: says why, or how much is missing.
        """
        existing = next(place for place in (self.folder, *self.folder.absolute().parents) if place.exists())
        effective = os.access in os.supports_effective_ids
        if not existing.is_dir() or not os.access(existing, os.W_OK, effective_ids=effective):
            raise OutputError(
                f"Cannot write into {self.folder}",
                got=f"{existing} is {'a folder that you may not write to' if existing.is_dir() else 'no folder'}",
                fix="choose another --out",
            )
        weights = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
        free = shutil.disk_usage(existing).free
        if free < _COPIES * weights:
            raise OutputError(
                f"There is no room for the run in {self.folder}",
                got=f"{free / 1e6:.0f} MB free",
                expected=f"{_COPIES * weights / 1e6:.0f} MB, for checkpoints and the state of the optimiser",
                fix="free some space or choose another --out",
            )


def check_finite(model: nn.Module) -> None:
    """Refuses weights that are no numbers.

    Raises:
        TrainingError: names the first of them.
    """
    bad = [name for name, tensor in model.state_dict().items() if not torch.isfinite(tensor).all()]
    if bad:
        raise TrainingError(
            f"{len(bad)} weights are not finite",
            got=", ".join(bad[:4]),
            expected="finite weights",
            fix="lower the learning rate: --set optim.lr=1e-4",
        )


def describe_file(path: Path | None) -> str | None:
    """Name and digest of a checkpoint, a run or a bundle that a run begins with: it may be gone when the run ends."""
    return None if path is None else f"{path.name}, sha256 {file_sha256(weights_file(path))}"
