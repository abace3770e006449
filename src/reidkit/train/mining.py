"""Offline batch-hard mining: the hardest triplets among many crops, as the network sees them now, in batches.

A round embeds a random part of the crops. Of each crop it finds the farthest ones of the same identity and the nearest
of others, exactly. It chooses as queries those whose triplet is worst, and puts each into a batch with what it was
confused by. Within such batches the usual batch-hard loss meets triplets that P x K batches seldom hold.

Source: searching triplets offline among many more crops than a batch holds, Schroff et al., "FaceNet", CVPR 2015; what
is hardest, Hermans et al., "In Defense of the Triplet Loss for Person Re-Identification", 2017. FaceNet avoids the very
hardest negatives; here they are wanted, so train by P x K batches until the embeddings mean something.

Axes: `m` crops of a round. "Positions" are places among them.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from reidkit.errors import ConfigError, TrainingError
from reidkit.train.sampler import crops_of_identities
from reidkit.train.settings import Batches, Mining

MEMORY = 256 << 20
"""Bytes for a block of distances, beside the embeddings and one copy of them."""

_NONE = -1
_BYTES_A_PAIR = 4 + 4 + 1 + 1  # distance, masked distance, same identity and its opposite
_SUBSET, _BATCHES = 1, 2  # streams of random numbers


class Hardest(NamedTuple):
    """The hardest triplets of every crop of a round.

    Attributes:
        positives: positions, farthest first; -1 where the identity has no further crop.
        negatives: positions, nearest first; -1 where there is nobody else.
        gap: distance to the farthest positive minus distance to the nearest negative: above 0 the triplet is wrong
            way round. Minus infinity where one of them is missing.
    """

    positives: Int[np.ndarray, "m positives"]
    negatives: Int[np.ndarray, "m negatives"]
    gap: Float32[np.ndarray, " m"]


def check_mining(settings: Mining, batches: Batches) -> None:
    """Refuses settings whose groups fit in no batch.

    Raises:
        ConfigError: names the sizes.
    """
    largest, size = 1 + settings.positives + 2 * settings.negatives, batches.identities * batches.crops
    if largest > size:
        raise ConfigError(
            "A mined query and what belongs to it do not fit in a batch",
            got=f"1 query, {settings.positives} positives and {settings.negatives} negatives with a positive each:"
            f" {largest} crops",
            expected=f"at most batches.identities x batches.crops = {size}",
            fix="lower mining.positives or mining.negatives, or take larger batches",
        )


def round_subset(count: int, settings: Mining, *, seed: int, number: int) -> Int[np.ndarray, " m"]:
    """The crops that a round embeds, in ascending order: a random part, or all of them.

    Args:
        count: of all crops.
        settings: of the mining.
        seed: of the run.
        number: of the round, counted from 0.
    """
    if settings.images == 0 or settings.images >= count:
        return np.arange(count)
    rng = np.random.default_rng([seed, number, _SUBSET])
    return np.sort(rng.choice(count, settings.images, replace=False))


def mined_batches(
    embeddings: Float[Tensor, "m dim"],
    labels: Int[np.ndarray, " m"],
    crops: Int[np.ndarray, " m"],
    settings: Mining,
    batches: Batches,
    *,
    seed: int,
    number: int,
) -> list[Int[np.ndarray, " batch"]]:
    """The batches of a round, each of the size of a P x K batch, with every query in one of them.

    A query comes as a group: itself, its hardest positives, its hardest negatives, and of each negative the hardest
    positive. So everybody in a batch has somebody to be near to and somebody to be far from. A negative who has no
    other crop in the round comes twice.

    Groups are packed whole, in random order, a crop that two of them share only once. Places that are left are filled
    with further crops of the same people; in the last batch with further groups first. Crops are repeated only where
    all that is not enough.

    Args:
        embeddings: as the triplet loss sees them (before the neck; of length 1 if it normalises), on any device.
        labels: identity of each crop of the round.
        crops: their indices, which the batches are made of.
        settings: of the mining.
        batches: whose size they have.
        seed: of the run.
        number: of the round, counted from 0.

    Raises:
        ConfigError: as `check_mining`.
        TrainingError: embeddings that are not finite, or no crop with both a positive and a negative.
    """
    check_mining(settings, batches)
    size = batches.identities * batches.crops
    found = hardest(embeddings, labels, positives=settings.positives, negatives=settings.negatives)
    queries = worst_queries(found.gap, labels, settings.queries or max(1, len(labels) // 2))
    if len(queries) == 0:
        raise TrainingError(
            "There is nothing to mine: no crop of this round has both another of its identity and one of somebody else",
            got=f"{len(labels)} crops of {len(np.unique(labels))} identities",
            expected="identities with several crops each",
            fix="mine among more crops: --set mining.images=0 takes all of them",
        )
    rng = np.random.default_rng([seed, number, _BATCHES])
    groups = [_group(query, found) for query in rng.permutation(queries).tolist()]
    by_person = dict(zip(np.unique(labels).tolist(), crops_of_identities(labels), strict=True))
    return [crops[_filled(batch, size, labels, by_person, rng)] for batch in _pack(groups, size)]


def hardest(
    embeddings: Float[Tensor, "m dim"],
    labels: Int[np.ndarray, " m"],
    *,
    positives: int,
    negatives: int,
    memory: int = MEMORY,
) -> Hardest:
    """The farthest positives and nearest negatives of every crop, among all, in Euclidean distance.

    Compared is every pair, a block of rows at a time on the device of the embeddings, in float32; never is the whole
    m x m matrix there. Squared distances come from lengths and products around the mean, and are off by about a
    millionth of the squared lengths: of two crops closer than that to a tie either may come first. Of equal ones the
    first in the round comes first. `gap` is measured again from the differences, without that rounding.

    Torch, and not `reidkit.metrics`, since the embeddings are on the GPU already: 30,000 crops of 2,048 numbers are
    3.7 TFLOP, there a fraction of a second.

    Args:
        embeddings: finite.
        labels: identity of each.
        positives: how many to find.
        negatives: how many to find.
        memory: bytes for a block; one row is always compared.

    Raises:
        TrainingError: embeddings that are not finite.
    """
    if not torch.isfinite(embeddings).all():
        raise TrainingError(
            "The network's embeddings are no numbers, so nothing can be mined",
            got=f"{int((~torch.isfinite(embeddings)).any(dim=1).sum())} of {len(embeddings)} not finite",
            expected="finite embeddings",
            fix="lower the learning rate: --set optim.lr=1e-4",
        )
    with torch.no_grad(), torch.autocast(embeddings.device.type, enabled=False):
        x = embeddings.float() - embeddings.float().mean(dim=0)
        pids = torch.from_numpy(labels).to(x.device)
        blocks = torch.arange(len(x), device=x.device).split(max(1, memory // (_BYTES_A_PAIR * len(x))))
        parts = [_hardest_of(rows, x, pids, positives, negatives) for rows in blocks]
        return Hardest(*(torch.cat(part).cpu().numpy() for part in zip(*parts, strict=True)))


def worst_queries(
    gap: Float32[np.ndarray, " m"], labels: Int[np.ndarray, " m"], count: int
) -> Int[np.ndarray, " queries"]:
    """The crops to ask with: those with the largest gap, worst first, but spread over the identities.

    Nobody gives more than twice an even share of the queries, unless others have too few to give; so one mislabelled
    identity cannot fill a round. Of equal gaps the first in the round comes first.

    Args:
        gap: see `Hardest`; crops of minus infinity are never taken.
        labels: identity of each crop.
        count: of queries; all that are possible where there are fewer.
    """
    order = np.argsort(-gap, kind="stable")
    order = order[np.isfinite(gap[order])]
    if len(order) == 0:
        return order
    by_person = np.argsort(labels[order], kind="stable")
    _, first, own = np.unique(labels[order][by_person], return_index=True, return_counts=True)
    rank = np.empty(len(order), dtype=np.int64)
    rank[by_person] = np.arange(len(order)) - np.repeat(first, own)
    beyond = rank >= -(-2 * count // len(own))
    return order[np.argsort(beyond, kind="stable")][:count]


def _hardest_of(
    rows: Int[Tensor, " rows"], x: Float32[Tensor, "m dim"], pids: Int[Tensor, " m"], positives: int, negatives: int
) -> tuple[Int[Tensor, "rows positives"], Int[Tensor, "rows negatives"], Float32[Tensor, " rows"]]:
    # Squared, and without the row's own square, which changes no order within it.
    distances = torch.addmm(x.square().sum(dim=1), x[rows], x.T, alpha=-2)
    same = pids[rows, None] == pids
    far = distances.masked_fill(~same, -torch.inf).scatter_(1, rows[:, None], -torch.inf)
    farthest = _largest(far, positives)
    nearest = _largest(distances.neg_().masked_fill_(same, -torch.inf), negatives)
    return farthest, nearest, _gap(x, rows, farthest[:, 0], nearest[:, 0])


def _largest(values: Float32[Tensor, "rows m"], count: int) -> Int[Tensor, "rows count"]:
    """Columns of the largest values of each row, the first of equals first; overwrites the values.

    One after the other: `topk` is free in the order of ties, and `argmax` takes the first.
    """
    found = []
    for _ in range(count):
        column = values.argmax(dim=1, keepdim=True)
        found.append(torch.where(values.gather(1, column) == -torch.inf, _NONE, column))
        values.scatter_(1, column, -torch.inf)
    return torch.cat(found, dim=1)


def _gap(
    x: Float32[Tensor, "m dim"],
    rows: Int[Tensor, " rows"],
    farthest: Int[Tensor, " rows"],
    nearest: Int[Tensor, " rows"],
) -> Float32[Tensor, " rows"]:
    to_positive = torch.linalg.vector_norm(x[rows] - x[farthest], dim=1)
    to_negative = torch.linalg.vector_norm(x[rows] - x[nearest], dim=1)
    return torch.where((farthest == _NONE) | (nearest == _NONE), -torch.inf, to_positive - to_negative)


def _group(query: int, found: Hardest) -> list[int]:
    """Positions of a query and of those who belong to it; `m` is added for a crop that comes a second time."""
    members = [query, *found.positives[query].tolist()]
    for negative in found.negatives[query].tolist():
        if negative != _NONE:
            partner = int(found.positives[negative, 0])
            members += [negative, negative + len(found.gap) if partner == _NONE else partner]
    return [member for member in dict.fromkeys(members) if member != _NONE]


def _pack(groups: list[list[int]], size: int) -> list[list[int]]:
    """Whole groups in batches of at most so many, none with the same member twice; groups begin again in the last."""
    packed: list[dict[int, None]] = [{}]
    for group in groups:
        if len(packed[-1].keys() | group) > size:
            packed.append({})
        packed[-1].update(dict.fromkeys(group))
    for group in groups:
        if len(packed[-1].keys() | group) > size:
            break
        packed[-1].update(dict.fromkeys(group))
    return [list(batch) for batch in packed]


def _filled(
    batch: list[int],
    size: int,
    labels: Int[np.ndarray, " m"],
    by_person: dict[int, Int[np.ndarray, " _"]],
    rng: np.random.Generator,
) -> Int[np.ndarray, " size"]:
    """Positions of a whole batch: its members, then further crops of the same people, then the members again."""
    members = np.array(batch) % len(labels)
    own = np.concatenate([by_person[person] for person in np.unique(labels[members]).tolist()])
    further = rng.permutation(np.setdiff1d(own, members))
    return np.resize(np.concatenate([members, further]), size) if len(members) < size else members
