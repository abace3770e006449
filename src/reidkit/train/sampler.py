"""Batches of crop indices: P identities with K crops each, or plain ones; drawn so that every epoch ends.

A *group* is the K crops of one identity in one batch. Every batch has the same size, whatever the data.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int

from reidkit.errors import TrainingError
from reidkit.train.settings import Batches

_ENOUGH = 0.95  # of all crops; that an epoch sees fewer is said


def identity_batches(
    labels: Int[np.ndarray, " n"], cameras: Int[np.ndarray, " n"], settings: Batches, *, seed: int, epoch: int
) -> Iterator[Int[np.ndarray, " batch"]]:
    """P x K batches of one epoch: each holds `settings.identities` different people, `settings.crops` crops of each.

    How often somebody comes, and with which crops, is `settings.balance`:

    - "crops": an identity's crops are shuffled and dealt out in groups; a last short group is filled up from the first.
    - "cameras": as many groups, and each comes from K different cameras, or from all that the identity has. Crops of
      a camera that has few of them then come more than once, and of one that has many an epoch leaves some out.
    - "identities": everybody has the same number of groups, give or take one. Few crops come several times, and of
      many an epoch sees a part. There are about as many batches as with "crops".

    A group holds a crop twice only where its identity has fewer than K. A batch draws its identities by the groups they
    have left, and the epoch ends when too few identities have one: no loop can hang, whatever the counts. Nobody is in
    a batch twice, so of people with far more crops than the others an epoch sees only a part. What is left out changes
    from epoch to epoch. The same seed and epoch give the same batches.

    Source of P x K batches: Hermans et al., "In Defense of the Triplet Loss for Person Re-Identification", 2017.

    Args:
        labels: identity of each crop.
        cameras: of each crop; the same number everywhere where none is known.
        settings: P, K and what is balanced.
        seed: of the run.
        epoch: counted from 0.

    Raises:
        TrainingError: fewer identities than a batch wants.
    """
    rng = np.random.default_rng([seed, epoch])
    members = crops_of_identities(labels)
    _check_enough(len(members), len(labels), settings.identities)
    left = _shares(np.array([len(own) for own in members]), settings, rng)
    first = np.cumsum(left) - left
    if settings.balance == "cameras":
        groups = _deal_by_camera(labels, cameras, settings.crops, rng)
    else:
        # Repeated from the start: any K in a row are different, where there are K.
        pairs = zip(members, left, strict=True)
        groups = np.concatenate([np.resize(rng.permutation(own), (share, settings.crops)) for own, share in pairs])
    while np.count_nonzero(left) >= settings.identities:
        if settings.balance == "identities":
            # Those with the most left, by chance among equals: then the epoch uses up all of them.
            chosen = np.argsort(-left - rng.random(len(left)))[: settings.identities]
        else:
            # Drawn by what is left, so that people with many crops do not pile up at the end of the epoch.
            chosen = rng.choice(len(left), settings.identities, replace=False, p=left / left.sum())
        left[chosen] -= 1
        yield groups[first[chosen] + left[chosen]].ravel()


def plain_batches(count: int, *, size: int, seed: int, epoch: int) -> Iterator[Int[np.ndarray, " size"]]:
    """Shuffled crops of one epoch, whoever they show: for classification alone, since nothing pairs up in them.

    Every crop comes once; a last short batch is filled up from the first. The same seed and epoch give the same
    batches.

    Args:
        count: of all crops, at least 1.
        size: of a batch.
        seed: of the run.
        epoch: counted from 0.
    """
    order = np.random.default_rng([seed, epoch]).permutation(count)
    yield from np.resize(order, (-(-count // size), size))


def describe_batches(
    labels: Int[np.ndarray, " n"], cameras: Int[np.ndarray, " n"], settings: Batches, *, metric: bool
) -> list[str]:
    """What these batches do that a user may not expect, in sentences to be read before the run; often none.

    Args:
        labels: identity of each crop.
        cameras: of each crop.
        settings: of the batches.
        metric: whether a loss compares crops with each other (triplet, circle, contrastive).

    Raises:
        TrainingError: one identity, fewer than a batch wants, or nothing that a metric loss could learn from.
    """
    members = crops_of_identities(labels)
    _check_enough(len(members), len(labels), settings.identities)
    sizes = np.array([len(own) for own in members])
    if metric and sizes.max() == 1:
        raise TrainingError(
            "No identity has two crops, so no loss can pull crops of one identity together",
            got=f"{len(labels)} crops of {len(members)} identities",
            expected="identities with several crops each, better from several cameras",
            fix="check what tells identities apart in this data; or learn by classification alone, with weight=0 for"
            " the triplet, circle and contrastive losses",
        )
    return [
        *_said_of_few_crops(sizes, settings.crops),
        *(_said_of_cameras([cameras[own] for own in members]) if settings.balance == "cameras" else []),
        *_said_of_coverage(labels, cameras, settings),
    ]


def crops_of_identities(labels: Int[np.ndarray, " n"]) -> list[Int[np.ndarray, " _"]]:
    """The crops of each identity, in ascending order; identities in the order of their labels."""
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1) if len(order) else []


def _said_of_few_crops(sizes: Int[np.ndarray, " identities"], crops: int) -> Iterator[str]:
    single, few = np.count_nonzero(sizes == 1), np.count_nonzero((sizes > 1) & (sizes < crops))
    if single:
        yield (
            f"{single} of {len(sizes)} identities have one crop: it is repeated {crops} times in a batch, and only"
            " augmentation makes a difference between its copies"
        )
    if few:
        yield f"{few} of {len(sizes)} identities have fewer than {crops} crops: some of them come twice in a batch"


def _said_of_cameras(cameras: list[Int[np.ndarray, " _"]]) -> Iterator[str]:
    lone = sum(len(np.unique(own)) == 1 for own in cameras)
    if lone == len(cameras):
        yield 'no identity was seen by two cameras: balance "cameras" does what "crops" does'
    elif lone:
        yield f"{lone} of {len(cameras)} identities were seen by one camera only: there is nothing to balance for them"


def _said_of_coverage(
    labels: Int[np.ndarray, " n"], cameras: Int[np.ndarray, " n"], settings: Batches
) -> Iterator[str]:
    drawn = list(identity_batches(labels, cameras, settings, seed=0, epoch=0))
    seen = len(np.unique(np.concatenate(drawn)))
    # Less than a batch is what an epoch can always lose at its end.
    if seen < _ENOUGH * len(labels) and len(labels) - seen > len(drawn[0]):
        yield (
            f"an epoch of {len(drawn)} batches sees about {seen / len(labels):.0%} of the crops, in each epoch others:"
            f" balance {settings.balance!r}, and {settings.identities} different people with {settings.crops} crops in"
            " each batch, have no room for all"
        )


def _check_enough(found: int, crops: int, wanted: int) -> None:
    if found == 1:
        raise TrainingError(
            "There is only one identity to train on",
            got=f"{crops} crops of one identity",
            expected="at least two identities",
            fix="train on more people; or check what tells identities apart in this data",
        )
    if found < wanted:
        raise TrainingError(
            "Too few identities for a batch",
            got=f"{found} identities",
            expected=f"at least {wanted}",
            fix=f"train on more people, or say --set batches.identities={max(2, found)}",
        )


def _shares(
    sizes: Int[np.ndarray, " identities"], settings: Batches, rng: np.random.Generator
) -> Int[np.ndarray, " identities"]:
    """How many groups an epoch takes of each identity."""
    groups = -(-sizes // settings.crops)
    if settings.balance != "identities":
        return groups
    places = settings.identities * _most_batches(groups, settings.identities)
    each, over = divmod(places, len(sizes))
    return each + (rng.permutation(len(sizes)) < over)


def _most_batches(groups: Int[np.ndarray, " identities"], identities: int) -> int:
    """How many batches of different people these groups can make: nobody gives a batch more than one."""
    low, high = 0, int(groups.sum()) // identities
    while low < high:
        middle = (low + high + 1) // 2
        if np.minimum(groups, middle).sum() >= identities * middle:
            low = middle
        else:
            high = middle - 1
    return low


def _deal_by_camera(
    labels: Int[np.ndarray, " n"], cameras: Int[np.ndarray, " n"], crops: int, rng: np.random.Generator
) -> Int[np.ndarray, "groups crops"]:
    """All groups, one identity after the other, each from as many cameras as it has room for and the identity has."""
    names, camera = np.unique(cameras, return_inverse=True)
    camera = rng.permutation(len(names))[camera]
    order = np.lexsort((rng.random(len(labels)), camera, labels))
    label, camera = labels[order], camera[order]
    # A stack is what one camera saw of one identity, shuffled.
    other = label[1:] != label[:-1]
    first = np.concatenate([[0], np.flatnonzero(other | (camera[1:] != camera[:-1])) + 1])
    sizes = np.append(first[1:], len(order)) - first
    person = np.concatenate([[0], np.cumsum(other)])[first]
    groups = -(-np.bincount(person, weights=sizes).astype(np.int64) // crops)
    places = _places(sizes, person, groups, crops, rng)
    # The places of a stack stand in a row and go to one group after the other. So they are all in different groups
    # where it has at most one for each group, and in all groups where it has at least one for each.
    place = np.arange(crops * groups.sum())
    whose = np.repeat(np.arange(len(groups)), crops * groups)
    before = (np.cumsum(groups) - groups)[whose]
    group = before + (place - crops * before) % groups[whose]
    stack = np.repeat(np.arange(len(sizes)), places)[np.argsort(group, kind="stable")]
    turn = place - np.repeat(np.cumsum(places) - places, places)
    filled = np.empty_like(place)
    filled[np.argsort(stack, kind="stable")] = order[np.repeat(first, places) + turn % np.repeat(sizes, places)]
    return filled.reshape(-1, crops)


def _places(
    sizes: Int[np.ndarray, " stacks"],
    person: Int[np.ndarray, " stacks"],
    groups: Int[np.ndarray, " identities"],
    crops: int,
    rng: np.random.Generator,
) -> Int[np.ndarray, " stacks"]:
    """How many places each stack fills in its identity's groups: in proportion to its crops, as variety allows.

    Of more cameras than K none has two places in a group; of fewer, every camera has one in each group.
    """
    cameras, bound = np.bincount(person), groups[person]
    more, settled = (cameras > crops)[person], (cameras == crops)[person]
    while True:
        left = groups * (crops - np.bincount(person, weights=settled))
        among = np.bincount(person, weights=sizes * ~settled)
        share = np.where(settled, bound, sizes * left[person] / np.maximum(among, 1)[person])
        beyond = ~settled & np.where(more, share > bound, share < bound)
        if not beyond.any():  # each turn settles another stack, so this ends
            break
        settled |= beyond
    # Whole numbers with the same sums, each the one below its share or the one above, by chance.
    ends = np.floor(np.cumsum(share) + rng.random(len(groups))[person])
    ends[np.cumsum(cameras) - 1] = crops * np.cumsum(groups)
    return np.diff(ends, prepend=0).astype(np.int64)
