"""A network that the caller names, because its file cannot: timm's, and whatever is in an ONNX file."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from reidkit.architecture import ModelSpec, TimmSpec, named_model
from reidkit.checkpoints.onnx_weights import weights_from_onnx
from reidkit.checkpoints.reading import Assumption, Reading
from reidkit.models.model import Network, build_model
from reidkit.models.timm_backbone import classifier_of
from reidkit.types import InputSpec

_BACKBONE = "backbone."


def read_as(tensors: Mapping[str, Tensor], architecture: str, *, dialect: str | None = None) -> Reading:
    """Takes weights for those of a named network; whether they are is found out when they are fitted into it.

    Weights under timm's own names are a backbone with timm's classifier, which is left out, and no neck. Those under
    reidkit's names, which are fast-reid's, are taken to have seen what fast-reid shows its networks.

    Args:
        tensors: by the names of the file; none of a graph, which nobody says who trained.
        architecture: a name of `architecture.named_model`.
        dialect: how to call the file; None calls it by the network.

    Raises:
        ConfigError: no such name.
    """
    spec = named_model(architecture)
    findings: tuple[str, ...] = ()
    names = {name: name for name in tensors}
    backbone = spec.backbone
    if isinstance(backbone, TimmSpec) and not any(name.startswith(_BACKBONE) for name in names):
        spec = replace(spec, head=replace(spec.head, neck=False))
        names, dropped = without_classifier(names, backbone)
        if dropped:
            findings = (f"the classifier is left out: {', '.join(dropped)}",)
    bicubic = tensors and not isinstance(backbone, TimmSpec)
    return Reading(
        dialect=dialect or f"weights of {architecture}",
        spec=spec,
        input=InputSpec(256, 128, resize="bicubic" if bicubic else "bilinear"),
        identities=None,
        tensors={canonical: tensors[name] for canonical, name in names.items()},
        names={canonical: name for canonical, name in names.items() if canonical != name},
        findings=findings,
        assumptions=(
            Assumption("crops of 256x128 (height x width)", "input.height=384"),
            Assumption("crops resized by the bicubic filter, as in fast-reid", "input.resize=bilinear")
            if bicubic
            else Assumption("crops resized by the bilinear filter", "input.resize=bicubic"),
            Assumption("ImageNet's mean", "input.mean=[0.5, 0.5, 0.5]"),
            Assumption("ImageNet's standard deviation", "input.std=[0.5, 0.5, 0.5]"),
        ),
    )


def without_classifier(names: Mapping[str, str], spec: TimmSpec) -> tuple[dict[str, str], list[str]]:
    """Timm's names by canonical ones, and those that belong to its classifier."""
    layers = tuple(f"{layer}." for layer in classifier_of(spec))
    kept = {f"{_BACKBONE}{name}": name for name in names if not name.startswith(layers)}
    return kept, [name for name in names if name.startswith(layers)]


def load_onnx(path: Path, spec: ModelSpec, size: tuple[int, int]) -> Network:
    """Builds a network with the weights of an ONNX file of it; proven, or refused.

    Raises:
        ModelError: the file cannot be read, or is another network's.
    """
    model = build_model(spec)
    model.load_state_dict(weights_from_onnx(path, model, size))
    return model
