"""The moving average of a network's weights, which generalises better than the weights of any one step."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Average:
    """An exponential moving average of a network, made step by step beside it; it costs the memory of one copy.

    Weights and the statistics of batch normalisation are averaged; whole numbers, such as counts, are copied. The decay
    grows with the updates already made: `min(decay, (1 + updates) / (10 + updates))`, so the weights that a network
    started from are soon forgotten.

    An update runs within a captured CUDA graph: the count lies on the device. `torch.optim.swa_utils.AveragedModel`
    reads its count back from the device in each update, which a graph cannot.
    Source: Tarvainen and Valpola, "Mean teachers are better role models", NeurIPS 2017; the growing decay is that of
    TensorFlow's `ExponentialMovingAverage`.

    Args:
        model: the network that learns, on its device.
        decay: share of the average that an update keeps, in the long run; below 1.

    Attributes:
        module: the averaged network, in evaluation mode. Its weights do not learn.
        updates: how many were made; a whole number on the network's device.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.module = copy.deepcopy(model).requires_grad_(False).eval()
        self.updates = torch.zeros((), dtype=torch.int64, device=next(model.parameters()).device)
        self._model = model

    @torch.no_grad()
    def update(self) -> None:
        """Moves the average towards the network as it is."""
        averaged, counts = _floats_and_others(self.module)
        current, current_counts = _floats_and_others(self._model)
        # 1 - decay: 1 - (1 + n) / (10 + n) = 9 / (10 + n).
        weight = (9.0 / (10 + self.updates)).clamp(min=1.0 - self.decay)
        # Not `_foreach_lerp_`: it takes no single weight from the device.
        change = torch._foreach_sub(current, averaged)  # pyright: ignore[reportPrivateImportUsage]
        torch._foreach_mul_(change, weight)  # pyright: ignore[reportPrivateImportUsage]
        torch._foreach_add_(averaged, change)  # pyright: ignore[reportPrivateImportUsage]
        if counts:
            torch._foreach_copy_(counts, current_counts)  # pyright: ignore[reportPrivateImportUsage]
        self.updates.add_(1)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged network and the count, as they are and not copied."""
        weights = {f"module.{name}": tensor for name, tensor in self.module.state_dict().items()}
        return {"updates": self.updates, **weights}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from a saved average, in place."""
        prefix = "module."
        self.updates.copy_(state["updates"])
        weights = {name.removeprefix(prefix): state[name] for name in state if name.startswith(prefix)}
        self.module.load_state_dict(weights)


def _floats_and_others(module: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    # Looked up in each update: moving a network to a device replaces its buffers.
    tensors = [*module.parameters(), *module.buffers()]
    return [t for t in tensors if t.is_floating_point()], [t for t in tensors if not t.is_floating_point()]
