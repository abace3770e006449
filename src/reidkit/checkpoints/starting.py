"""The backbone's weights of any checkpoint, for a network that is to be trained from there."""

from pathlib import Path

from torch import Tensor

from reidkit.architecture import BackboneSpec, HeadSpec, ModelSpec, ResNetSpec, TimmSpec, in_words
from reidkit.bundle import MANIFEST, WEIGHTS
from reidkit.checkpoints.container import Container, read_container
from reidkit.checkpoints.fit import fit
from reidkit.checkpoints.loading import read_any
from reidkit.checkpoints.named import without_classifier
from reidkit.errors import ModelError
from reidkit.manifest import checkpoint_file
from reidkit.models.model import build_model

_BACKBONE = "backbone."


def starting_weights(path: Path | str, backbone: BackboneSpec) -> dict[str, Tensor]:
    """The backbone's weights of any checkpoint that can be read, for a backbone that is to be trained.

    Names, shapes and types must all fit. Last stride, max-pooling and pre-activation may differ: they have no weights.
    Non-local blocks may be missing: fresh ones change nothing, and so training can start from a plain ResNet.

    Args:
        path: of a checkpoint of fast-reid, torchreid, torchvision, timm or reidkit; or of a run or a bundle.
        backbone: that is to begin with its weights.

    Returns:
        Weights by canonical name, `backbone.` included.

    Raises:
        ModelError: the file cannot be read, or its backbone does not fit; lists what does not.
    """
    path = weights_file(Path(path))
    container = read_container(path)
    wanted = ModelSpec(backbone, HeadSpec(pooling="own" if isinstance(backbone, TimmSpec) else "average", neck=False))
    names, reason = _names(container, path, backbone)
    wants = isinstance(backbone, ResNetSpec) and backbone.non_local != "none"
    has = any(name.startswith(f"{_BACKBONE}NL_") for name in names)
    fresh = [f"{_BACKBONE}NL_*"] if wants and not has else []
    model = build_model(wanted)
    weights = {canonical: tensor for canonical, tensor in names.items() if canonical.startswith(_BACKBONE)}
    try:
        fit(model, weights, source=str(path), shaped=container.shaped, allow_missing=fresh)
    except ModelError as error:
        raise ModelError(
            f"The weights of {path} do not fit the backbone that is to be trained{reason}",
            got=error.got,
            expected=in_words(wanted),
            fix="take other weights, or another backbone",
        ) from None
    return dict(model.state_dict())


def weights_file(path: Path) -> Path:
    """The file of weights in a bundle or a run of `reid train`; any other path as it is."""
    if (path / MANIFEST).is_file():
        return path / WEIGHTS
    return checkpoint_file(path)


def _names(container: Container, path: Path, backbone: BackboneSpec) -> tuple[dict[str, Tensor], str]:
    """The file's tensors by canonical name, and why they may not fit."""
    if isinstance(backbone, TimmSpec) and not any(name.startswith(_BACKBONE) for name in container.tensors):
        kept, _ = without_classifier({name: name for name in container.tensors}, backbone)
        return {canonical: container.tensors[name] for canonical, name in kept.items()}, ""
    reading = read_any(container, path)
    if reading.spec.branches == "mgn":
        raise ModelError(f"{path} holds an MGN, whose branches fit no single backbone", got=in_words(reading.spec))
    return dict(reading.tensors), _reason(reading.spec.backbone, backbone)


def _reason(held: BackboneSpec, wanted: BackboneSpec) -> str:
    if isinstance(held, ResNetSpec) and isinstance(wanted, ResNetSpec):
        if held.depth != wanted.depth:
            return f": they are a ResNet-{held.depth}'s, and it is a ResNet-{wanted.depth}"
        if held.ibn != wanted.ibn:
            names = {"none": "plain batch normalisation", "a": "IBN-a", "b": "IBN-b"}
            return f": bn1 holds {names[held.ibn]} there, and {names[wanted.ibn]} here"
    return ""
