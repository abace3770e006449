"""What a source makes of a file: which network it is, how it is called there, and how that was found out.

Sources look at names and numbers of values only, because a `.wts` file says no more.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from reidkit.architecture import ModelSpec
from reidkit.errors import ModelError
from reidkit.models.checkpoint import CheckpointFacts
from reidkit.types import InputSpec

Sizes = Mapping[str, int]
"""Numbers of values by name."""


@dataclass(frozen=True, slots=True)
class Assumption:
    """What a file does not say and was assumed.

    Attributes:
        text: the assumption, in words.
        setting: an override that says otherwise, such as `backbone.max_pool=pad`; None where reidkit has no otherwise.
    """

    text: str
    setting: str | None = None

    @property
    def key(self) -> str | None:
        """The name that the override sets; None where there is none."""
        return None if self.setting is None else self.setting.partition("=")[0]

    def __str__(self) -> str:
        return self.text if self.setting is None else f"{self.text} (otherwise: --set {self.setting})"


@dataclass(frozen=True, slots=True)
class Notes:
    """What there is to say about one part of a file.

    Attributes:
        findings: what was detected, and from what.
        assumptions: what was not.
        undecided: settings that the caller must make, and why.
    """

    findings: tuple[str, ...] = ()
    assumptions: tuple[Assumption, ...] = ()
    undecided: Mapping[str, str] = field(default_factory=dict)

    def __add__(self, other: "Notes") -> "Notes":
        return Notes(
            (*self.findings, *other.findings),
            (*self.assumptions, *other.assumptions),
            {**self.undecided, **other.undecided},
        )


@dataclass(frozen=True, slots=True)
class Reading:
    """A file, understood.

    Attributes:
        dialect: whose file it is, and of which time.
        spec: of the network, before overrides.
        input: of the network, before overrides.
        identities: classes of the classifier in `tensors`; None where there is none.
        tensors: by canonical name.
        names: how the file calls a canonical name, where it differs.
        own: what a checkpoint of reidkit says of itself; None of anybody else's.
        findings: what was detected, and from what.
        assumptions: what was not.
        expected: canonical names that a whole file has though the network can do without: classifiers.
        settled: settings that are beyond doubt although no shape shows them, and why.
        undecided: settings that the caller must make, and why.
    """

    dialect: str
    spec: ModelSpec
    input: InputSpec
    identities: int | None
    tensors: Mapping[str, Tensor]
    names: Mapping[str, str] = field(default_factory=dict)
    own: CheckpointFacts | None = None
    findings: tuple[str, ...] = ()
    assumptions: tuple[Assumption, ...] = ()
    expected: tuple[str, ...] = ()
    settled: Mapping[str, tuple[object, str]] = field(default_factory=dict)
    undecided: Mapping[str, str] = field(default_factory=dict)


def sizes_of(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Numbers of values by name."""
    return {name: tensor.numel() for name, tensor in tensors.items()}


def without_prefix(sizes: Sizes, prefix: str) -> dict[str, int]:
    """The entries below a prefix, by the rest of their names."""
    return {name.removeprefix(prefix): size for name, size in sizes.items() if name.startswith(prefix)}


def ratio(sizes: Sizes, name: str, divisor: int, what: str) -> int:
    """How many rows of `divisor` values a tensor holds.

    Raises:
        ModelError: it has no values, or is no whole number of rows.
    """
    size = sizes[name]
    if size == 0 or size % divisor:
        raise ModelError(
            f"{name} cannot be {what}", got=f"{size} values", expected=f"a multiple of {divisor}, which come in"
        )
    return size // divisor


def renamed(names: Iterable[str], canonical: Callable[[str], str]) -> dict[str, str]:
    """The file's names by canonical name.

    Args:
        names: of the file.
        canonical: gives the canonical name of one of them.

    Raises:
        ModelError: two of them are one weight of the network, of which the file cannot mean both.
    """
    result: dict[str, str] = {}
    for name in names:
        first = result.setdefault(canonical(name), name)
        if first != name:
            raise ModelError(
                "Two tensors of the file are one weight of the network",
                got=f"{first} and {name}",
                expected="one of them",
            )
    return result


def some(names: Iterable[str], most: int = 3) -> str:
    """The first few of some names, in words."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
