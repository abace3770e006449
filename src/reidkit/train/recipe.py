"""A training recipe: everything that decides what a run learns, as frozen dataclasses that a TOML file fills."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Literal

from reidkit.architecture import ModelSpec, named_model
from reidkit.config import load_toml, to_dict
from reidkit.errors import ConfigError, unknown_name
from reidkit.train.quantization import Quantization
from reidkit.train.settings import Augment, Batches, Loss, Mining, Optim, Validation, at_least
from reidkit.types import InputSpec


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of a run with its own batches, losses and learning rate."""

    batches: Batches = field(default_factory=Batches)
    mining: Mining = field(default_factory=Mining)
    augment: Augment = field(default_factory=Augment)
    loss: Loss = field(default_factory=Loss)
    optim: Optim = field(default_factory=Optim)


Amp = Literal["auto", "off", "bfloat16", "float16"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """A whole recipe: the stage that decides what the model becomes, and perhaps one before it.

    Attributes:
        input: size and normalisation of crops.
        model: the network.
        before: a stage before the main one, whose network the main one goes on with; None begins with the main one.
        batches: of the main stage, as are `mining`, `augment`, `loss` and `optim`.
        mining: offline mining.
        augment: random changes to crops.
        loss: what is minimised.
        optim: how.
        validation: measuring on the way.
        seed: of weights, batches and augmentation; the same seed gives the same model on a CPU.
        amp: arithmetic of convolutions; "auto" takes bfloat16 where the hardware has instructions for it
            that are right for crops of this width.
        compile: let `torch.compile` fuse what the network does; "auto" does so on a GPU.
        sync_batchnorm: with several GPUs, batch normalisation over the batches of all of them.
        quantization: the network of a bundle goes on learning, in eight bits; None trains in floats. Products are
            float32 then, whatever "auto" is elsewhere: bfloat16 has no room for 255 steps.
    """

    input: InputSpec = field(default_factory=lambda: InputSpec(256, 128))
    model: ModelSpec = field(default_factory=ModelSpec)
    before: Stage | None = None
    batches: Batches = field(default_factory=Batches)
    mining: Mining = field(default_factory=Mining)
    augment: Augment = field(default_factory=Augment)
    loss: Loss = field(default_factory=Loss)
    optim: Optim = field(default_factory=Optim)
    validation: Validation = field(default_factory=Validation)
    seed: int = 0
    amp: Amp = "auto"
    compile: bool | Literal["auto"] = "auto"
    sync_batchnorm: bool = False
    quantization: Quantization | None = None

    def __post_init__(self) -> None:
        at_least("seed", self.seed, 0)
        shorter, longer = sorted((self.input.height, self.input.width))
        # Below this the stem's pooling, or instance normalisation in stage 3, has too few positions to work on.
        if shorter < 3 or longer < 19:
            raise ConfigError("The input is too small to train on", got=f"{shorter}x{longer}", expected="at least 3x19")
        if self.quantization is not None:
            if self.before is not None:
                raise ConfigError("Training in eight bits has one stage", got="a table [before]", fix="leave it out")
            if self.amp not in ("auto", "off"):
                raise ConfigError("Training in eight bits needs float32", got=f"amp {self.amp}", fix="--set amp=off")
        for stage in self.stages:
            if stage.augment.pad >= shorter:
                raise ConfigError(
                    "augment.pad is out of range",
                    got=stage.augment.pad,
                    expected=f"below the input's shorter side, {shorter}",
                )

    @property
    def stages(self) -> tuple[Stage, ...]:
        """In the order in which they are run."""
        main = Stage(self.batches, self.mining, self.augment, self.loss, self.optim)
        return (main,) if self.before is None else (self.before, main)


def load_recipe(
    name: str | Path,
    *,
    model: str | None = None,
    overrides: Sequence[str] = (),
    begins_with: tuple[ModelSpec, InputSpec] | None = None,
) -> Recipe:
    """Reads a recipe: a name of one that comes with reidkit, or a TOML file.

    Args:
        name: "from-scratch", another one that comes with reidkit, or a path that ends in `.toml`.
        model: a network of `reid models` in place of the recipe's.
        overrides: assignments such as `optim.epochs=10`.
        begins_with: network and input where the recipe does not say: those of the bundle that a run begins with.

    Raises:
        ConfigError: no such recipe or network, or a key or value in it that cannot be.
    """
    instead = {} if model is None else {"model": to_dict(named_model(model))}
    network, crops = begins_with or (ModelSpec(), InputSpec(256, 128))
    defaults = {"model": to_dict(network), "input": to_dict(crops)}  # so that an override can name one option alone
    if Path(name).suffix == ".toml":
        return load_toml(Recipe, name, defaults=defaults, instead=instead, overrides=overrides)
    known = recipe_names()
    if str(name) not in known:
        raise unknown_name("recipe", str(name), known)
    with resources.as_file(resources.files("reidkit.train") / "recipes" / f"{name}.toml") as path:
        return load_toml(Recipe, path, defaults=defaults, instead=instead, overrides=overrides)


def recipe_names() -> list[str]:
    """The recipes that come with reidkit, in alphabetical order."""
    folder = resources.files("reidkit.train") / "recipes"
    return sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".toml"))
