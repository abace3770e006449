"""The optimiser: what decays, what stands still, and a learning rate that a captured CUDA graph can follow.

All of it runs within a captured graph: nothing here reads a value back from the device while a run goes on.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from reidkit.errors import TrainingError
from reidkit.models.head import Head
from reidkit.train.settings import Optim


def make_optimizer(model: nn.Module, criterion: nn.Module, optim: Optim, *, capturable: bool) -> torch.optim.Optimizer:
    """An optimiser for the weights of a network and of its losses, in torch's fused form.

    Tables of weights decay; biases, the scales of normalisation and what the losses learn (centres) do not. Weights
    that never learn, such as the bias of the neck, have no part in it. So it is made before `freeze`, and knows the
    backbone's weights from the start.

    Its state begins at zero and is there from the start, which torch leaves to the first step: a graph that captures
    the first step would begin anew with every replay, and fused SGD cannot take in weights that join it later, as those
    of an unfrozen backbone do. Loading a state dict leaves the options as they are, for they are the recipe's and the
    device's; the learning rate has to be set again, and a graph captured again. A state that does not fit is refused
    with a TrainingError: the fused kernels trust sizes, and would read and write beyond the end of what is too short.

    Args:
        model: on its device.
        criterion: the losses, on the same device.
        optim: kind, highest learning rate, momentum and decay.
        capturable: keep the learning rate on the device, where a captured graph reads it. Only for CUDA.
    """
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    kept = [p for p in learned if p.ndim <= 1] + [p for p in criterion.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in learned if p.ndim > 1], "weight_decay": optim.weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
    # As float32, which is what the fused kernels read.
    rate = torch.tensor(optim.lr, dtype=torch.float32, device=learned[0].device) if capturable else optim.lr
    match optim.kind:
        case "adam":
            optimizer = torch.optim.Adam(groups, lr=rate, fused=True, capturable=capturable)
        case "adamw":
            optimizer = torch.optim.AdamW(groups, lr=rate, fused=True, capturable=capturable)
        case "sgd":
            # Fused for more than speed: the other forms read a learning rate on the device back.
            optimizer = torch.optim.SGD(
                groups, lr=rate, momentum=optim.momentum, nesterov=optim.momentum > 0, fused=True
            )
    _make_state(optimizer, optim)
    optimizer.register_load_state_dict_pre_hook(_adopted)
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the rate of all weights, in place where it lies on the device, so that a captured graph sees it."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> None:
    """Shortens the gradient of all weights together to at most `limit`; 0 leaves it as it is.

    A gradient that is not finite stays so, or becomes so in all weights: the next loss shows it.
    """
    if limit > 0:
        nn.utils.clip_grad_norm_(list(parameters), limit)


def freeze(model: nn.Module, *, frozen: bool) -> None:
    """Lets everything but the heads stand still, weights and statistics of normalisation alike, or learn (again).

    It can be called as often as one likes, and must be after each `model.train()`, which wakes the statistics up.
    Where it changes something, what was built on the old state has to be built anew: a captured graph, and what
    distributes the gradients over several GPUs.

    Args:
        model: a network or a backbone.
        frozen: whether to stand still.
    """
    for part in _headless(model):
        part.train(not frozen)
        for parameter in part.parameters():
            parameter.requires_grad_(not frozen)
            if frozen:
                parameter.grad = None  # or the optimiser would go on with it


def _headless(module: nn.Module) -> Iterator[nn.Module]:
    """The largest parts of a network that hold no head; in MGN these are the trunk and its three branches."""
    if isinstance(module, Head):
        return
    if any(isinstance(part, Head) for part in module.modules()):
        for child in module.children():
            yield from _headless(child)
    else:
        yield module


def _make_state(optimizer: torch.optim.Optimizer, optim: Optim) -> None:
    for parameter in (p for group in optimizer.param_groups for p in group["params"]):
        if optim.kind == "sgd":
            moments = ("momentum_buffer",) if optim.momentum > 0 else ()
        else:
            moments = ("exp_avg", "exp_avg_sq")
            optimizer.state[parameter]["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        for name in moments:
            optimizer.state[parameter][name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)


def _adopted(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
    """The saved moments in tensors like this optimiser's own, with its options: a saved rate lies on another device."""
    own = optimizer.state_dict()
    if _shapes(saved["state"]) != _shapes(own["state"]):
        raise TrainingError(
            "The saved state of the optimiser does not fit",
            got="moments of other weights, or of another kind of optimiser",
            expected=f"those of {len(own['state'])} weights of this network",
            fix="resume with the file that the run itself wrote, or train anew",
        )
    # Copied: a tensor of the right shape may still have strides, or a memory, that no kernel expects.
    state = {
        number: {name: torch.empty_like(tensor).copy_(saved["state"][number][name]) for name, tensor in moments.items()}
        for number, moments in own["state"].items()
    }
    return {"state": state, "param_groups": own["param_groups"]}


def _shapes(state: dict[Any, Any]) -> dict[Any, Any]:
    """Shape of every moment; None for what is no tensor."""
    return {
        number: {name: tuple(value.shape) if isinstance(value, Tensor) else None for name, value in moments.items()}
        for number, moments in state.items()
        if isinstance(moments, dict)
    }
