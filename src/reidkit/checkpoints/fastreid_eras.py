"""Which time a fast-reid checkpoint is from, told by each of its keys that changed, and what follows from that.

The max-pooling of the stem has no weights, and changed too: it follows from the time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from reidkit.architecture import MaxPool, NonLocal
from reidkit.errors import ModelError

Neck = Literal["bnneck", "bottleneck"]
Classifier = Literal["classifier.weight", "weight"]


@dataclass(frozen=True, slots=True)
class Era:
    """A time in fast-reid's history, and what its checkpoints look like.

    Attributes:
        name: as `--dialect` takes it: the month it begins with.
        begin: its first day, or what of it is known; empty for the first time.
        end: likewise its last day; empty for today's.
        neck: name of the head's normalisation.
        classifier: name of the head's classifier.
        buffers: whether `pixel_mean` and `pixel_std` are in the file; None where both occur.
        non_local: inner width of non-local blocks.
        max_pool: of a ResNet's stem.
    """

    name: str
    begin: str
    end: str
    neck: Neck
    classifier: Classifier
    buffers: bool | None
    non_local: NonLocal
    max_pool: MaxPool


ERAS: Mapping[str, Era] = {
    era.name: era
    for era in (
        # The oldest code normalised outside the network, so buffers may be absent there.
        Era("fastreid-2020", "", "2020-09-10", "bnneck", "classifier.weight", None, "one", "pad"),
        Era("fastreid-2020-09", "2020-09-10", "2020-11-06", "bottleneck", "classifier.weight", True, "half", "pad"),
        Era("fastreid-2020-11", "2020-11-06", "2020-12-07", "bottleneck", "classifier.weight", True, "half", "ceil"),
        Era("fastreid-2020-12", "2020-12-07", "2021-03", "bottleneck", "classifier.weight", True, "one", "ceil"),
        # The classifier changed a week before the buffers went.
        Era("fastreid-2021-03", "2021-03", "", "bottleneck", "weight", None, "one", "ceil"),
    )
}


@dataclass(frozen=True, slots=True)
class Facets:
    """What a file shows of its time, key by key; None where it does not show it.

    Attributes:
        neck: name of the head's normalisation.
        classifier: name of the head's classifier.
        buffers: whether the pixel buffers are there.
        non_local: inner width of its non-local blocks.
        head: prefix of the head's keys, for the messages.
    """

    neck: Neck | None
    classifier: Classifier | None
    buffers: bool
    non_local: NonLocal
    head: str = "heads."


@dataclass(frozen=True, slots=True)
class Dating:
    """The times that a file can be from.

    Attributes:
        eras: that fit every key; none for a crossed dialect.
        per_key: what each key says, in words.
    """

    eras: tuple[Era, ...]
    per_key: tuple[str, ...]

    @property
    def name(self) -> str:
        """The dialect, as reported."""
        return " or ".join(era.name for era in self.eras) or "fastreid-crossed"


def date(facets: Facets, *, wanted: str | None = None) -> Dating:
    """The times that a file can be from, given what it shows.

    Args:
        facets: what it shows.
        wanted: a name of `ERAS` that the caller holds it to.

    Raises:
        ModelError: it shows keys that `wanted` did not have; names them.
    """
    votes = _votes(facets)
    per_key = tuple(f"{key}: {_span(eras)}" for key, eras in votes.items())
    if wanted is not None:
        against = [line for line, eras in zip(per_key, votes.values(), strict=True) if ERAS[wanted] not in eras]
        if against:
            raise ModelError(
                f"The checkpoint is not of the dialect {wanted} ({_span([ERAS[wanted]])})",
                got="; ".join(against),
                fix="leave --dialect out, and the keys decide",
            )
        return Dating((ERAS[wanted],), per_key)
    fitting = [era for era in ERAS.values() if all(era in eras for eras in votes.values())]
    return Dating(tuple(fitting), per_key)


def _span(eras: Sequence[Era]) -> str:
    """Times in words, neighbours as one: `until 2020-09-10, since 2021-03`."""
    spans: list[tuple[str, str]] = []
    for era in eras:
        begin = spans.pop()[0] if spans and spans[-1][1] == era.begin else era.begin
        spans.append((begin, era.end))
    return ", ".join(
        f"{begin} to {end}" if begin and end else f"since {begin}" if begin else f"until {end}" if end else "always"
        for begin, end in spans
    )


def _votes(facets: Facets) -> dict[str, list[Era]]:
    """For each key that changed, the times that wrote it."""
    votes: dict[str, list[Era]] = {}
    eras = list(ERAS.values())
    if facets.neck is not None:
        name = "bnneck" if facets.neck == "bnneck" else "bottleneck"
        votes[f"{facets.head}{name}.*"] = [era for era in eras if era.neck == facets.neck]
    if facets.classifier is not None:
        votes[f"{facets.head}{facets.classifier}"] = [era for era in eras if era.classifier == facets.classifier]
    words = "pixel_mean and pixel_std" if facets.buffers else "no pixel_mean and pixel_std"
    votes[words] = [era for era in eras if era.buffers in (None, facets.buffers)]
    if facets.non_local != "none":
        width = "1 channel" if facets.non_local == "one" else "half of the channels"
        votes[f"backbone.NL_* with {width} inside"] = [era for era in eras if era.non_local == facets.non_local]
    return votes
