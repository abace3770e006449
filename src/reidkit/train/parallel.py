"""One process a device, and what they tell each other. lightning-fabric starts them: it runs the command once more."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from reidkit.errors import RuntimeMissing, TrainingError

T = TypeVar("T")


class Team:
    """The processes of a run; often one.

    Attributes:
        rank: of this process, from 0.
        size: how many there are.
        device: of this process.
    """

    def __init__(self, device: torch.device, fabric: Any = None) -> None:
        self._fabric = fabric
        self.device = device
        self.rank: int = 0 if fabric is None else fabric.global_rank
        self.size: int = 1 if fabric is None else fabric.world_size

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes files and reports."""
        return self.rank == 0

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replaces tensors of one type by their means over all processes; runs within a captured CUDA graph."""
        if self.size == 1:
            return
        own = list(tensors)
        if not own:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in own])  # one message costs less than one for each
        dist.all_reduce(flat)
        flat.div_(self.size)
        pieces = flat.split([tensor.numel() for tensor in own])
        for tensor, piece in zip(own, pieces, strict=True):
            tensor.copy_(piece.view(tensor.shape))

    def any(self, value: bool) -> bool:
        """Whether it is true in one process or more."""
        if self.size == 1:
            return value
        votes = torch.tensor([float(value)], device=self.device)
        dist.all_reduce(votes)
        return bool(votes.item() > 0)

    def gather(self, value: T) -> list[T]:
        """The value of every process, in the order of ranks."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def share(self, make: Callable[[], T]) -> T:
        """What the first process makes, in all of them."""
        if self.size == 1:
            return make()
        made: list[Any] = [None]
        with self.together():
            if self.leads:
                made[0] = make()
        dist.broadcast_object_list(made, src=0)
        return made[0]

    def equalize(self, module: nn.Module) -> None:
        """Gives all processes the first one's weights and statistics; the latter are those of its own batches."""
        if self.size > 1:
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, src=0)

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block that all processes leave at the same time, well or not: nobody waits for one that has failed.

        Within it they send each other nothing. A second Ctrl-C asks nobody, for it reaches all of them.

        Raises:
            TrainingError: in those that did not fail; the one that did says why.
        """
        try:
            yield
        except Exception:
            self.any(True)
            raise
        if self.any(False):
            raise TrainingError("Another process of this run has failed", fix="see what that one says")

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """A block that the first process runs while the others wait, and those then, if it went well."""
        if self.leads:
            with self.together():
                yield
        else:
            with self.together():
                pass
            yield


def is_follower() -> bool:
    """Whether this process was started by another one of its run, which does the talking."""
    return os.environ.get("LOCAL_RANK", "0") != "0"


def assemble(device: str, count: int) -> Team:
    """The processes that train together. With several devices, this starts the others by running the command again.

    Args:
        device: "cpu", "cuda" or "cuda:N", of one process; with several, "cpu" or "cuda".
        count: of devices.

    Raises:
        RuntimeMissing: no such device, fewer devices than asked for, or lightning-fabric is not installed.
    """
    target = _device(device)
    if count == 1:
        return Team(target)
    if target.index is not None:
        raise RuntimeMissing("One device has a name, and several are asked for", got=device, fix=f"say {target.type}")
    if target.type == "cuda" and torch.cuda.device_count() < count:
        raise RuntimeMissing(
            "There are fewer GPUs than asked for",
            got=torch.cuda.device_count(),
            expected=count,
            fix=f"say --devices {max(1, torch.cuda.device_count())}",
        )
    try:
        from lightning_fabric import Fabric
    except ModuleNotFoundError as error:
        raise RuntimeMissing("lightning-fabric is not installed", fix="pip install 'reidkit[train]'") from error
    fabric = Fabric(accelerator=target.type, devices=count, strategy="ddp")
    fabric.launch()
    return Team(fabric.device, fabric)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise RuntimeMissing(f"Unknown device {name!r}", expected="cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise RuntimeMissing(f"Training does not run on {name!r}", expected="cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise RuntimeMissing(
            "PyTorch sees no such CUDA device", got=name, fix="say --device cpu, or install PyTorch for CUDA"
        )
    return device
