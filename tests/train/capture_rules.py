"""What a CUDA graph cannot capture, to be found out without a GPU."""

from torch.utils._python_dispatch import TorchDispatchMode


class Captured(TorchDispatchMode):
    """Refuses what a CUDA graph cannot capture: values read back, and tensors made from Python's numbers."""

    REFUSED = ("aten._local_scalar_dense", "aten.lift_fresh", "aten._to_copy")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert not str(func).startswith(self.REFUSED), func
        return func(*args, **(kwargs or {}))
