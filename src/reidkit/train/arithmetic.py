"""In which numbers a network is computed while it learns; weights are float32 always."""

import torch

from reidkit.train.recipe import Amp


def autocast_type(device: torch.device, amp: Amp) -> torch.dtype | None:
    """The type of convolutions and matrix products; None leaves them in float32."""
    match amp:
        case "off":
            return None
        case "bfloat16":
            return torch.bfloat16
        case "float16":
            return torch.float16
        case "auto":
            return torch.bfloat16 if _bfloat16_helps(device) else None


def _bfloat16_helps(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16; where it does not, PyTorch's emulation takes twice float32's time."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
