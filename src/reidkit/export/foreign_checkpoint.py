"""From anyone's checkpoint to a bundle."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

import torch

import reidkit
from reidkit.bundle import Bundle, check_place, file_sha256
from reidkit.checkpoints.loading import load_foreign
from reidkit.export.torch_export import export_model
from reidkit.manifest import LicenceClass, Provenance
from reidkit.models.checkpoint import CheckpointFacts
from reidkit.types import Task


@dataclass(frozen=True, slots=True)
class ImportedCheckpoint:
    """Somebody's checkpoint, taken in.

    Attributes:
        bundle: written and opened.
        findings: what was found in the file, and by what.
        assumptions: what the file does not say and was assumed, each with what changes it.
    """

    bundle: Bundle
    findings: tuple[str, ...]
    assumptions: tuple[str, ...]


def import_checkpoint(
    path: Path | str,
    out: Path | str,
    *,
    config: Path | None = None,
    dialect: str | None = None,
    architecture: str | None = None,
    key: str | None = None,
    overrides: Sequence[str] = (),
    allow_missing: Sequence[str] = (),
    allow_unexpected: Sequence[str] = (),
    task: Task | None = None,
    licence: LicenceClass = "unknown",
    overwrite: bool = False,
) -> ImportedCheckpoint:
    """Makes a bundle of a checkpoint of fast-reid, torchreid, torchvision, timm or reidkit, every tensor accounted for.

    Args:
        path: a PyTorch checkpoint, a safetensors or `.wts` file, or an ONNX file of a known network.
        out: the bundle, `NAME.reid`.
        config: fast-reid's config.yaml.
        dialect: who wrote the file and when, where that should not be found out; see `load_foreign`.
        architecture: name of the network, for files that cannot say it (ONNX, timm).
        key: where in the file the weights are, when there is more than one set of them.
        overrides: assignments to the network's spec and its input, such as `backbone.max_pool=pad`.
        allow_missing: patterns of names that may be missing; such weights stay random.
        allow_unexpected: patterns of names that may be there and are dropped.
        task: what it tells apart; None takes what the file says, else people.
        licence: class of licence of the weights.
        overwrite: replace a bundle that is already there.

    Raises:
        ModelError: the file cannot be read, holds code, or does not fit a network to the last tensor.
        ConfigError: an override or the config says something impossible.
        BundleError: the name of the bundle does not end in `.reid`.
        OutputError: the place is taken or cannot be written to.
    """
    path, out = Path(path), Path(out)
    check_place(out, overwrite=overwrite)
    foreign = load_foreign(
        path,
        config=config,
        dialect=dialect,
        architecture=architecture,
        key=key,
        task=task,
        overrides=overrides,
        allow_missing=allow_missing,
        allow_unexpected=allow_unexpected,
    )
    by_hand = (f"set by hand: {', '.join(overrides)}",) if overrides else ()
    provenance = foreign.provenance or Provenance(
        dialect=foreign.dialect,
        framework=f"torch {torch.__version__}",
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        reidkit=reidkit.__version__,
    )
    provenance = replace(
        provenance,
        source=path.name,
        source_sha256=file_sha256(path),
        assumptions=(*provenance.assumptions, *foreign.assumptions, *by_hand),
    )
    facts = CheckpointFacts(foreign.spec, foreign.input, foreign.task, provenance)
    bundle = export_model(foreign.model, facts, out, name=out.stem, licence=licence, overwrite=overwrite)
    beside = ", ".join(f"{name} {value}" for name, value in foreign.extras.items())
    said = (f"beside the weights the file says: {beside}",) if beside else ()
    return ImportedCheckpoint(bundle, (*foreign.findings, *by_hand, *said), foreign.assumptions)
