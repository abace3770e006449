"""The network of a bundle as PyTorch's engines run it: on a device, in an arithmetic.

In float16 and bfloat16 the convolutions and matrix products are low, and so are the maps between them. Statistics of
instance normalisation, pooling, GeM's power and everything in a head are float32, as in training (`Head`).
"""

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor, nn

from reidkit.errors import RuntimeMissing
from reidkit.models.head import Head
from reidkit.models.model import DeployedModel
from reidkit.types import Precision

_LOW: dict[Precision, torch.dtype] = {"float16": torch.float16, "bfloat16": torch.bfloat16}
_flags = threading.RLock()


def open_device(name: str) -> torch.device:
    """The device of a name: "cpu", "cuda" or "cuda:N".

    Raises:
        RuntimeMissing: no such device, or PyTorch does not see it.
    """
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or not (index or "0").isdecimal():
        raise RuntimeMissing(f"Unknown device {name!r}", expected="cpu, cuda or cuda:N")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise RuntimeMissing("PyTorch sees no such CUDA device", got=name, fix="say --device cpu")
    return torch.device(name)


def precisions(device: torch.device) -> tuple[Precision, ...]:
    """What PyTorch computes in there, float32 first; TF32 is of NVIDIA's tensor cores."""
    return ("float32", "tf32", "float16", "bfloat16") if device.type == "cuda" else ("float32", "float16", "bfloat16")


class PlacedModel(nn.Module):
    """Pre-processing and network on a device, in evaluation mode: crops there in, float32 embeddings there out.

    On a graphics card the maps are channels last, as the crops are: they are turned nowhere.

    Args:
        model: to place; it is moved and changed, and belongs to this one from here on.
        device: of all of it.
        precision: of the arithmetic.
    """

    def __init__(self, model: DeployedModel, device: torch.device, precision: Precision) -> None:
        super().__init__()
        self.device = device
        self._reserved = _reserved(device)
        self._low = _LOW.get(precision)
        self._tf32 = precision == "tf32"
        self._last = device.type == "cuda"
        self.preprocess = model.preprocess.to(device)
        self.model = model.model.eval().to(device)
        if self._last:
            self.model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] (missing in its stub)
        if self._low is not None:
            _lower(self.model, self._low)

    def forward(self, crops: UInt8[Tensor, "n height width 3"]) -> Float32[Tensor, "n dim"]:
        """Embeddings of crops; to be called within `arithmetic`, and without gradients."""
        pixels = crops.permute(0, 3, 1, 2).float()
        x = self.preprocess.normalize(pixels if self._last else pixels.contiguous())
        with self._autocast():
            return self.model(x).float()

    def arithmetic(self) -> AbstractContextManager[object]:
        """While it is open, float32 products are what the precision says, whatever the process has set."""
        return _float32_products(tf32=self._tf32) if self.device.type == "cuda" else nullcontext()

    @property
    def device_memory(self) -> int:
        """Bytes of the card that PyTorch has taken since this was placed, be it for this or for other work."""
        return max(0, torch.cuda.memory_reserved(self.device) - self._reserved)

    def _autocast(self) -> AbstractContextManager[object]:
        if self._low is None:
            return nullcontext()
        # The weights are low already: there is nothing to cache.
        return torch.autocast(self.device.type, dtype=self._low, cache_enabled=False)


def event_seconds(run: Callable[[], object], runs: int) -> list[float]:
    """Seconds of the current CUDA device for each of so many runs, one behind the other, by its events."""
    events = [torch.cuda.Event(enable_timing=True) for _ in range(runs + 1)]
    run()  # the device is busy while the first is queued
    events[0].record()
    for event in events[1:]:
        run()
        event.record()
    events[-1].synchronize()
    return [before.elapsed_time(after) / 1e3 for before, after in itertools.pairwise(events)]


def _reserved(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    torch.cuda.empty_cache()  # what is taken again from what nobody uses would not be counted
    return torch.cuda.memory_reserved(device)


class _Float32InstanceNorm(nn.Module):
    """Instance normalisation of low maps: statistics and affine in float32, the result low again."""

    def __init__(self, norm: nn.InstanceNorm2d) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return self.norm(x.float()).to(x.dtype)


def _lower(module: nn.Module, low: torch.dtype) -> None:
    """Rounds the weights of convolutions and matrix products once, which autocast would do in every call."""
    for name, child in module.named_children():
        if isinstance(child, Head):
            continue
        if isinstance(child, nn.InstanceNorm2d):
            setattr(module, name, _Float32InstanceNorm(child))
        elif isinstance(child, (nn.Conv2d, nn.Linear)):
            child.to(low)
        else:
            _lower(child, low)


@contextmanager
def _float32_products(*, tf32: bool) -> Iterator[None]:
    """Switches TF32 on or off for cuDNN and cuBLAS, and puts back what was set; one thread at a time.

    The settings are the process's own, under an older and a newer name: both are put back.
    """
    # Setting the older name sets the processor's, too.
    cudnn = torch.backends.cudnn
    products = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # pyright: ignore[reportAttributeAccessIssue]
    with _flags:
        older, newer = _matmul_precision(), [product.fp32_precision for product in products]
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        try:
            with cudnn.flags(
                enabled=cudnn.enabled,
                benchmark=cudnn.benchmark,
                benchmark_limit=cudnn.benchmark_limit,
                deterministic=cudnn.deterministic,
                allow_tf32=tf32,
            ):
                yield
        finally:
            torch.set_float32_matmul_precision(older)
            for product, precision in zip(products, newer, strict=True):
                product.fp32_precision = precision


def _matmul_precision() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # refused where only the newer name was used: the older still has its first value
        return "highest"
