"""P x K batches: P identities with K crops each, drawn so that every epoch ends."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int

from reidkit.errors import TrainingError


def identity_batches(
    labels: Int[np.ndarray, " n"], *, identities: int, crops: int, seed: int, epoch: int
) -> Iterator[Int[np.ndarray, " batch"]]:
    """Batches of crop indices of one epoch: each holds `identities` different people, `crops` pictures of each.

    Every identity's crops are shuffled and dealt out in groups of `crops`; a last short group is filled up from the
    first. A batch draws its identities in proportion to the groups they have left, and the epoch ends when too few
    identities have one: no loop can hang, whatever the counts. Nobody is in a batch twice, so of people with far more
    crops than the others an epoch sees only a part; which part changes from epoch to epoch.
    The same seed and epoch give the same batches.

    Args:
        labels: identity of each crop.
        identities: P.
        crops: K.
        seed: of the run.
        epoch: counted from 0.

    Raises:
        TrainingError: fewer identities than a batch wants.
    """
    rng = np.random.default_rng([seed, epoch])
    groups = {int(pid): _deal(np.flatnonzero(labels == pid), crops, rng) for pid in np.unique(labels)}
    if len(groups) < identities:
        raise TrainingError(
            "Too few identities for a batch",
            got=f"{len(groups)} identities",
            expected=f"at least {identities}",
            fix=f"train on more people, or say --set batches.identities={max(2, len(groups))}",
        )
    pids = np.array(list(groups))
    left = np.array([len(groups[int(pid)]) for pid in pids])
    while (left > 0).sum() >= identities:
        # Drawn by what is left, so that people with many crops do not pile up at the end of the epoch.
        chosen = rng.choice(len(pids), identities, replace=False, p=left / left.sum())
        left[chosen] -= 1
        yield np.concatenate([groups[int(pids[i])][left[i]] for i in chosen])


def _deal(indices: Int[np.ndarray, " k"], crops: int, rng: np.random.Generator) -> list[Int[np.ndarray, " crops"]]:
    groups = -(-len(indices) // crops)
    # Repeated from the start: a group holds a crop twice only where the identity has fewer than a group wants.
    return list(np.resize(rng.permutation(indices), (groups, crops)))
