"""What training in eight bits begins with: the network of a bundle, whole."""

from pathlib import Path

from torch import Tensor

from reidkit.architecture import CLASSIFIERS, ModelSpec, in_words, with_size
from reidkit.bundle import MANIFEST, open_bundle
from reidkit.config import to_dict
from reidkit.errors import ConfigError, ModelError
from reidkit.models.checkpoint import load_deployed
from reidkit.train.quantization import Rounding
from reidkit.train.recipe import Recipe
from reidkit.types import InputSpec


def check_quantized(recipe: Recipe, init: Path | None, rounding: Rounding | None) -> None:
    """Refuses a recipe for eight bits without a bundle to begin with, or with the places of another engine.

    A recipe for floats has no use for such places, and is refused with them.

    Raises:
        ConfigError: says what is missing, or too much.
    """
    if recipe.quantization is None:
        if rounding is not None:
            raise ConfigError(
                "The recipe trains in floats, where nothing is rounded",
                got=f"rounding as of {rounding.engine}",
                expected="a recipe with a table [quantization]",
                fix="take such a recipe, as qat-cpu is, or leave `rounding` out",
            )
        return
    check_bundle(init)
    if rounding is None or rounding.engine != recipe.quantization.engine:
        raise ConfigError(
            "A recipe for eight bits needs the places where the engine rounds",
            got="none" if rounding is None else f"those of {rounding.engine}",
            expected=f"those of {recipe.quantization.engine}",
            fix="say `rounding`; `reid train` finds them in the graph of --init",
        )


def check_bundle(init: Path | None) -> None:
    """Refuses to train in eight bits from anything but a bundle, whose graph says where an engine rounds.

    Raises:
        ConfigError: says what to do.
    """
    if init is None or not (init / MANIFEST).is_file():
        raise ConfigError(
            "Training in eight bits goes on from a bundle",
            got="no --init" if init is None else f"{init}, which is none",
            expected="--init NAME.reid, a trained network with its graph",
            fix="train in floats first: `reid train` makes a bundle; `reid export` and `reid import` do of a file",
        )


def weights_of_bundle(path: Path, spec: ModelSpec, input_: InputSpec) -> dict[str, Tensor]:
    """All weights of a bundle: those of its backbone, pooling and neck. It has no classifier.

    Args:
        path: of the bundle.
        spec: of the network that they are for.
        input_: of the network that they are for.

    Raises:
        BundleError: it is damaged.
        ModelError: a foreign graph without weights.
        ConfigError: it holds another network, or one that sees something else.
    """
    bundle = open_bundle(path)
    held = bundle.manifest.architecture
    if held is None:
        raise ModelError(
            f"{path} is a graph, which cannot be trained",
            got="a graph without an architecture",
            expected="a bundle with an architecture and weights",
            fix="of a known network, `reid import FILE.onnx --architecture NAME` makes one",
        )
    size = (bundle.manifest.input.height, bundle.manifest.input.width)
    if with_size(held, size) != spec:
        raise ConfigError(
            f"The recipe's network is not that of {path}",
            got=in_words(spec),
            expected=in_words(held),
            fix="leave --model and [model] out: training in eight bits takes the bundle's",
        )
    theirs, ours = to_dict(bundle.manifest.input), to_dict(input_)
    if different := [key for key, value in ours.items() if value != theirs[key]]:
        raise ConfigError(
            f"The recipe's network sees something else than that of {path}",
            got=", ".join(f"input.{key} = {ours[key]}" for key in different),
            expected=", ".join(f"input.{key} = {theirs[key]}" for key in different),
            fix="leave [input] out: training in eight bits takes the bundle's",
        )
    weights = load_deployed(bundle).model.state_dict()
    return {name: tensor for name, tensor in weights.items() if name not in CLASSIFIERS}
