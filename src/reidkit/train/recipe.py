"""A training recipe: everything that decides what a run learns, as frozen dataclasses that a TOML file fills."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Literal

from reidkit.architecture import ModelSpec, named_model
from reidkit.config import load_toml, to_dict
from reidkit.errors import ConfigError, unknown_name
from reidkit.types import InputSpec


@dataclass(frozen=True, slots=True)
class Batches:
    """P x K batches: `identities` people with `crops` pictures each."""

    identities: int = 16
    crops: int = 4

    def __post_init__(self) -> None:
        _at_least("batches.identities", self.identities, 2)
        _at_least("batches.crops", self.crops, 2)


@dataclass(frozen=True, slots=True)
class Augment:
    """Random changes to a training crop.

    Attributes:
        flip: probability of mirroring.
        pad: pixels of the data's mean colour added on each side before a crop of the input size is cut out again.
        color: strength of brightness, contrast and saturation jitter, as a fraction.
        erase: probability of overwriting a random rectangle (Zhong et al., "Random Erasing", AAAI 2020).
    """

    flip: float = 0.5
    pad: int = 10
    color: float = 0.0
    erase: float = 0.5

    def __post_init__(self) -> None:
        for name in ("flip", "color", "erase"):
            _fraction(f"augment.{name}", getattr(self, name))
        _at_least("augment.pad", self.pad, 0)


@dataclass(frozen=True, slots=True)
class Loss:
    """What is minimised: identity cross-entropy plus batch-hard triplet.

    Attributes:
        label_smoothing: share of the target spread over the other identities.
        margin: of the triplet loss, in units of Euclidean distance; "soft" takes the soft margin.
        triplet_weight: of the triplet loss against the identity loss.
    """

    label_smoothing: float = 0.1
    margin: float | Literal["soft"] = 0.3
    triplet_weight: float = 1.0

    def __post_init__(self) -> None:
        _fraction("loss.label_smoothing", self.label_smoothing)
        if self.margin != "soft":
            _not_negative("loss.margin", self.margin)
        _not_negative("loss.triplet_weight", self.triplet_weight)


@dataclass(frozen=True, slots=True)
class Optim:
    """Adam with linear warm-up and a cosine to zero.

    Attributes:
        epochs: passes over all training crops.
        lr: the highest learning rate.
        weight_decay: of Adam's L2 penalty.
        warmup_epochs: the learning rate grows from a hundredth of `lr` over so many.
    """

    epochs: float = 120.0
    lr: float = 3.5e-4
    weight_decay: float = 5e-4
    warmup_epochs: float = 10.0

    def __post_init__(self) -> None:
        _not_negative("optim.weight_decay", self.weight_decay)
        _not_negative("optim.warmup_epochs", self.warmup_epochs)
        for name in ("epochs", "lr"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"optim.{name} is out of range", got=getattr(self, name), expected="above 0, finite")


Amp = Literal["auto", "off", "bfloat16"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """A whole recipe.

    Attributes:
        input: size and normalisation of crops.
        model: the network.
        seed: of weights, batches and augmentation; the same seed gives the same model on a CPU.
        amp: arithmetic of convolutions; "auto" takes bfloat16 where the processor has instructions for it.
    """

    input: InputSpec = field(default_factory=lambda: InputSpec(256, 128))
    model: ModelSpec = field(default_factory=ModelSpec)
    batches: Batches = field(default_factory=Batches)
    augment: Augment = field(default_factory=Augment)
    loss: Loss = field(default_factory=Loss)
    optim: Optim = field(default_factory=Optim)
    seed: int = 0
    amp: Amp = "auto"

    def __post_init__(self) -> None:
        _at_least("seed", self.seed, 0)
        if self.model.branches != "one":
            raise ConfigError("MGN cannot be trained here yet, only loaded", got=self.model.branches, expected="one")
        shorter, longer = sorted((self.input.height, self.input.width))
        # Below this the stem's pooling, or instance normalisation in stage 3, has too few positions to work on.
        if shorter < 3 or longer < 19:
            raise ConfigError("The input is too small to train on", got=f"{shorter}x{longer}", expected="at least 3x19")
        if self.augment.pad >= shorter:
            raise ConfigError(
                "augment.pad is out of range",
                got=self.augment.pad,
                expected=f"below the input's shorter side, {shorter}",
            )


def load_recipe(name: str | Path, *, model: str | None = None, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe: a name of one that comes with reidkit, or a TOML file.

    Args:
        name: "baseline", "demo", or a path that ends in `.toml`.
        model: a network of `reid models` in place of the recipe's.
        overrides: assignments such as `optim.epochs=10`.

    Raises:
        ConfigError: no such recipe or network, or a key or value in it that cannot be.
    """
    instead = {} if model is None else {"model": to_dict(named_model(model))}
    defaults = {"model": to_dict(ModelSpec())}  # so that an override can name one option of the backbone alone
    if Path(name).suffix == ".toml":
        return load_toml(Recipe, name, defaults=defaults, instead=instead, overrides=overrides)
    folder = resources.files("reidkit.train") / "recipes"
    known = sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".toml"))
    if str(name) not in known:
        raise unknown_name("recipe", str(name), known)
    with resources.as_file(folder / f"{name}.toml") as path:
        return load_toml(Recipe, path, defaults=defaults, instead=instead, overrides=overrides)


def _fraction(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ConfigError(f"{name} is out of range", got=value, expected="0 to 1")


def _not_negative(name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise ConfigError(f"{name} is out of range", got=value, expected="0 or above, finite")


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"{name} is out of range", got=value, expected=f"at least {least}")
