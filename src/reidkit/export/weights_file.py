"""The weights of a run or a bundle as a file for others: `.wts` or safetensors."""

from pathlib import Path
from typing import Any

from reidkit.atomic import check_free
from reidkit.bundle import MANIFEST, open_bundle
from reidkit.config import to_dict
from reidkit.errors import ConfigError, ModelError
from reidkit.manifest import checkpoint_file
from reidkit.models.checkpoint import (
    CheckpointFacts,
    load_checkpoint,
    load_deployed,
    load_floats,
    load_ranges,
    save_checkpoint,
)
from reidkit.models.model import Network
from reidkit.wts import write_wts

SUFFIXES = (".wts", ".safetensors")


def export_weights(source: Path | str, out: Path | str, *, overwrite: bool = False) -> None:
    """Writes every weight under its canonical name, which is fast-reid's.

    Args:
        source: a run of `reid train`, its `model.safetensors`, or a bundle; a bundle has no classifier any more.
        out: `NAME.wts` (beside it `NAME.wts.json`: shapes, architecture, sha256) or `NAME.safetensors`,
            which alone has room for what training in eight bits has learned: ranges, and layers in float.
        overwrite: replace files that are already there.

    Raises:
        ConfigError: another suffix.
        ModelError, BundleError: the source cannot be loaded, or is a foreign graph without weights.
        OutputError: the place is taken or cannot be written to.
    """
    source, out = Path(source), Path(out)
    if out.suffix not in SUFFIXES:
        raise ConfigError("Cannot write weights in this format", got=out.name, expected=f"one of {', '.join(SUFFIXES)}")
    check_free(out, overwrite=overwrite)
    model, facts, learned = _load(source)
    if out.suffix == ".safetensors":
        save_checkpoint(out, model, facts, **learned)
        return
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    write_wts(out, tensors, facts=to_dict(facts), overwrite=overwrite)


def _load(source: Path) -> tuple[Network, CheckpointFacts, dict[str, Any]]:
    """Network, facts, and what training in eight bits has learned, as `save_checkpoint` takes it."""
    if not (source / MANIFEST).is_file():
        file = checkpoint_file(source)
        return *load_checkpoint(file), {"ranges": load_ranges(file), "floats": load_floats(file)}
    bundle = open_bundle(source)
    manifest = bundle.manifest
    if manifest.architecture is None:
        fix = "only a bundle of a known architecture has weights of its own; use its model.onnx"
        raise ModelError(f"{source} is a foreign graph", expected="a bundle with an architecture", fix=fix)
    facts = CheckpointFacts(manifest.architecture, manifest.input, manifest.task, manifest.provenance)
    return load_deployed(bundle).model, facts, {}
