"""Measuring a network while it learns: which crops, and how."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from reidkit.errors import DataError
from reidkit.metrics.distance import compare
from reidkit.metrics.junk import labels_of, same_file
from reidkit.metrics.protocol import PROTOCOLS, named_protocol
from reidkit.metrics.ranking import Ranking, rank_gallery
from reidkit.models.model import Network, Preprocess
from reidkit.train.rounded_network import RoundedNetwork
from reidkit.train.settings import Validation
from reidkit.types import UNKNOWN_CAMERA, Crop, Split

_SHUFFLE = 4  # stream of random numbers
_BATCH = 256
_FEWEST = 2  # identities that are held out: a single one is found by anybody


@dataclass(frozen=True, slots=True)
class Examination:
    """Crops that a network is measured on while it learns from others.

    Attributes:
        query: to ask with.
        gallery: to be found.
        junk: whether crops of the query's identity by its own camera are left out.
    """

    query: tuple[Crop, ...]
    gallery: tuple[Crop, ...]
    junk: bool

    @property
    def crops(self) -> tuple[Crop, ...]:
        """Query and gallery, one after the other."""
        return self.query + self.gallery

    def rank(self, embeddings: Float[np.ndarray, "n dim"]) -> Ranking:
        """Ranks the gallery for every query.

        Args:
            embeddings: of `crops`.

        Raises:
            InputError: embeddings that are not finite.
        """
        split = len(self.query)
        return rank_gallery(
            compare(embeddings[:split], embeddings[split:]),
            labels_of(self.query),
            labels_of(self.gallery),
            junk=self.junk,
            exclude=[same_file([c.path for c in self.query], [c.path for c in self.gallery])],
        )


def divide(split: Split, settings: Validation, *, seed: int) -> tuple[tuple[Crop, ...], Examination | None]:
    """The crops to learn from, and those to be measured on.

    Of every identity that is held out, one crop of each camera asks, and all but itself are to be found. Where no
    held-out identity was seen by two cameras, the camera makes no difference.

    Args:
        split: the data set.
        settings: what is measured.
        seed: that chooses who is held out.

    Raises:
        DataError: too few identities to hold any back, or a data set without query and gallery, or without a match.
    """
    if settings.every == 0:
        return split.train, None
    if settings.on == "test":
        return split.train, _test_part(split)
    pids = np.unique([crop.pid for crop in split.train])
    wanted = max(_FEWEST, round(settings.identities * len(pids)))
    if wanted >= len(pids):
        raise DataError(
            "There are too few identities to hold any back",
            got=f"{len(pids)}, of which {wanted} would be held out",
            expected="some to learn from, and two or more to be told apart",
            fix="train on more people, hold out fewer with --set validation.identities=0.1, or say"
            " --set validation.every=0",
        )
    held = set(np.random.default_rng([seed, _SHUFFLE]).permutation(pids)[:wanted].tolist())
    gallery = tuple(crop for crop in split.train if crop.pid in held)
    asking = {(crop.pid, crop.camid): crop for crop in reversed(gallery)}  # the first of each stays
    query = tuple(crop for crop in gallery if asking[crop.pid, crop.camid] is crop)
    junk = len({pid for pid, _ in asking}) < len(asking)
    if not junk and len(gallery) == len(held):
        raise DataError(
            "The identities that are held out cannot be measured on",
            got=f"{len(held)} of {len(pids)} identities with one crop each",
            expected="identities with several crops, better from several cameras",
            fix="hold out more with --set validation.identities=0.2, or say --set validation.every=0",
        )
    return tuple(crop for crop in split.train if crop.pid not in held), Examination(query, gallery, junk)


def _test_part(split: Split) -> Examination:
    instead = "say --set validation.on=held-out, or --set validation.every=0"
    if not split.query or not split.gallery:
        raise DataError(
            f"{split.root} has no query and gallery to measure on",
            got=f"{len(split.query)} query and {len(split.gallery)} gallery crops",
            expected="both",
            fix=instead,
        )
    protocol = named_protocol(None, data_format=split.format)
    if protocol.draw != "nothing":  # random galleries are for a final figure
        protocol = PROTOCOLS["camera-less"]
    seen: dict[int, set[int]] = {}
    for crop in split.gallery:
        seen.setdefault(crop.pid, set()).add(crop.camid)
    if not any(_is_found(crop, seen.get(crop.pid, set()), junk=protocol.junk) for crop in split.query):
        raise DataError(
            f"No query of {split.root} has a match in the gallery",
            got=f"protocol {protocol.name}",
            expected="crops of the same identity" + (" by another camera" if protocol.junk else ""),
            fix=instead,
        )
    return Examination(split.query, split.gallery, protocol.junk)


def _is_found(crop: Crop, cameras: set[int], *, junk: bool) -> bool:
    """Whether one of the cameras that saw somebody in the gallery counts as a match."""
    return bool(cameras - {crop.camid} if junk and crop.camid != UNKNOWN_CAMERA else cameras)


@torch.no_grad()
def embed(
    model: Network | RoundedNetwork,
    preprocess: Preprocess,
    fetch: Callable[[np.ndarray], UInt8[Tensor, "n height width 3"]],
    indices: np.ndarray,
    *,
    pooled: bool = False,
) -> Float[Tensor, "n dim"]:
    """Embeddings of crops by a network in the middle of its training, in float32, on its device.

    Args:
        model: is in evaluation mode meanwhile.
        preprocess: from pixels to what the network sees.
        fetch: gives crops by their indices.
        indices: of the crops.
        pooled: what stands before the neck, of the heads that see the whole crop, as metric losses take it.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    parts = []
    for start in range(0, len(indices), _BATCH):
        pixels = fetch(indices[start : start + _BATCH]).permute(0, 3, 1, 2).float()
        x = preprocess.normalize(pixels).contiguous(memory_format=torch.channels_last)
        if pooled:
            heads = [head.pooled for head in model.training_outputs(x) if head.whole]
            parts.append(torch.cat(heads, dim=1).float())
        else:
            parts.append(model(x).float())
    for module, mode in modes:  # a frozen part of the network was in evaluation mode before
        module.training = mode
    return torch.cat(parts)
