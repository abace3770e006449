"""fast-reid's heads by their keys: what stands between feature map and embedding, under the names of all times."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reidkit.architecture import MGN_PARTS
from reidkit.checkpoints.fastreid_eras import Classifier, Neck
from reidkit.checkpoints.reading import Sizes, ratio, some, without_prefix
from reidkit.errors import ModelError

PLAIN = "heads."
MGN_PREFIXES = tuple(f"{part}_head." for part in MGN_PARTS)


@dataclass(frozen=True, slots=True)
class HeadKeys:
    """What the keys of one head, or of all eight alike, say.

    Attributes:
        learned: whether GeM's exponent is there.
        embedding_dim: width of the layer before the neck; 0 for none.
        neck: name of the normalisation; None for none.
        classifier: name of the classifier; None for none.
        identities: its rows; None for none.
    """

    learned: bool
    embedding_dim: int
    neck: Neck | None
    classifier: Classifier | None
    identities: int | None


def read_heads(sizes: Sizes, prefixes: Sequence[str], inputs: int) -> HeadKeys:
    """Reads heads that are all alike.

    Args:
        sizes: of the whole file.
        prefixes: of the heads' keys.
        inputs: channels of the feature map.

    Raises:
        ModelError: heads that differ, or that no fast-reid built like this; names the keys.
    """
    heads = {prefix: _read_head(sizes, prefix, inputs) for prefix in prefixes}
    first = heads[prefixes[0]]
    for prefix, head in heads.items():
        if head != first:
            raise ModelError(
                f"The heads {prefixes[0]}* and {prefix}* are built differently",
                got=f"{first} and {head}",
                expected="all alike",
            )
    return first


def check_mgn_heads(sizes: Sizes) -> None:
    """Refuses an MGN that does not have MGN's eight heads, or that reduces outside of them.

    Raises:
        ModelError: names what is missing and what is too many.
    """
    reduced = [name for name in sizes if name.startswith(tuple(f"{part}_pool." for part in MGN_PARTS))]
    if reduced:
        raise ModelError(
            "The file holds an MGN of 2020, whose reduction layers end in a ReLU: reidkit does not have it",
            got=some(reduced),
            expected="reduction inside the heads: b1_head.bottleneck.0.weight",
        )
    there = {name.split(".")[0] for name in sizes if name.split(".")[0].endswith("_head")}
    wanted = {prefix.rstrip(".") for prefix in MGN_PREFIXES}
    if there != wanted:
        faults = [
            f"{', '.join(sorted(names))} {what}"
            for names, what in ((wanted - there, "missing"), (there - wanted, "too many"))
            if names
        ]
        raise ModelError(
            "The file does not have the heads of an MGN",
            got=f"{len(there)} heads: {'; '.join(faults)}",
            expected=f"{len(wanted)}: {', '.join(prefix.rstrip('.') for prefix in MGN_PREFIXES)}",
        )


def head_names(head: HeadKeys, prefixes: Sequence[str]) -> Mapping[str, str]:
    """Beginnings of the file's names to those of the canonical ones, where they differ."""
    names: dict[str, str] = {}
    for prefix in prefixes:
        if head.neck == "bnneck":
            names[f"{prefix}bnneck."] = f"{prefix}bottleneck.{1 if head.embedding_dim else 0}."
        if head.classifier == "classifier.weight":
            names[f"{prefix}classifier.weight"] = f"{prefix}weight"
    return names


def _read_head(sizes: Sizes, prefix: str, inputs: int) -> HeadKeys:
    keys = without_prefix(sizes, prefix)
    dim, neck = _bottleneck(keys, prefix, inputs)
    p = keys.get("pool_layer.p")
    if p not in (None, 1):
        raise ModelError(f"{prefix}pool_layer.p is no exponent of GeM", got=f"{p} values", expected="one")
    if "classifier.weight" in keys and "weight" in keys:
        raise ModelError(
            "The file has two classifiers, one by its old and one by its new name",
            got=f"{prefix}classifier.weight and {prefix}weight",
            expected="one of them",
        )
    classifier: Classifier | None = None
    if "weight" in keys:
        classifier = "weight"
    elif "classifier.weight" in keys:
        classifier = "classifier.weight"
    identities = None
    if classifier is not None:
        identities = ratio(sizes, prefix + classifier, dim or inputs, "a classifier of these embeddings")
    return HeadKeys(p is not None, dim, neck, classifier, identities)


def _bottleneck(keys: Sizes, prefix: str, inputs: int) -> tuple[int, Neck | None]:
    """Width of the embedding layer, and the name of the neck.

    A layer and a normalisation are told apart by their weights: inputs times its width, or one for each input.
    """
    old = "bnneck.weight" in keys
    first = keys.get("bottleneck.0.weight")
    if first is None:
        return 0, "bnneck" if old else None
    if first == inputs:
        if old:
            raise ModelError(
                "The file has two necks, one by its old and one by its new name",
                got=f"{prefix}bnneck.* and {prefix}bottleneck.0.*",
                expected="one of them",
            )
        return 0, "bottleneck"
    dim, rest = divmod(first, inputs)
    if rest or not dim:
        raise ModelError(
            f"{prefix}bottleneck.0.weight is neither a layer nor a normalisation of {inputs} channels",
            got=f"{first} values",
            expected=f"{inputs}, or a multiple of it",
        )
    if "bottleneck.0.bias" in keys:
        raise ModelError(
            "The layer before the neck has a bias, which no fast-reid gave it: reidkit wrote the file, of another head",
            got=f"{prefix}bottleneck.0.bias",
            expected=f"{prefix}bottleneck.0.weight alone",
            fix="import the bundle, or the safetensors or .wts file with its JSON beside it",
        )
    second = "bottleneck.1.weight" in keys
    if old and second:
        raise ModelError(
            "The file has fast-reid's old ReductionHead, a LeakyReLU between two necks, which reidkit does not have",
            got=f"{prefix}bottleneck.1.* and {prefix}bnneck.*",
            expected="one normalisation",
        )
    neck: Neck | None = "bnneck" if old else "bottleneck" if second else None
    return dim, neck
