"""In which numbers a network is computed while it learns; weights are float32 always."""

import torch

from reidkit.train.recipe import Amp

_NARROW = 32  # pixels: networks that halve maps five times end with one column


def autocast_type(device: torch.device, amp: Amp, *, width: int) -> torch.dtype | None:
    """The type of convolutions and matrix products; None leaves them in float32.

    Args:
        device: that computes.
        amp: of the recipe.
        width: of the crops, in pixels.
    """
    match amp:
        case "off":
            return None
        case "bfloat16":
            return torch.bfloat16
        case "float16":
            return torch.float16
        case "auto":
            return torch.bfloat16 if _bfloat16_helps(device, width) else None


def _bfloat16_helps(device: torch.device, width: int) -> bool:
    """Whether the hardware multiplies bfloat16; where it does not, PyTorch's emulation takes twice float32's time.

    With AMX, PyTorch 2.13's 3 x 3 convolutions of stride 2 give garbage where the map comes out one column wide.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    if capabilities.get("amx_bf16"):
        return width > _NARROW
    return bool(capabilities.get("avx512_bf16"))
