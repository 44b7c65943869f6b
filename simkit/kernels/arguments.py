"""What launchers check before anything is launched: ValueError names the argument, its value, and what it should be."""

from collections.abc import Sequence

import torch

from simkit.kernels.jit import Kernel, interpreted

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def check_tensor(
    name: str, tensor: torch.Tensor, shape: Sequence[int | None], dtypes: Sequence[torch.dtype], device: torch.device
) -> None:
    """A tensor of this shape (None: any size), one of these dtypes, on this device, its last axis contiguous."""
    if not isinstance(tensor, torch.Tensor):
        raise ValueError(f"{name}: is a {type(tensor).__name__}; a tensor is expected")
    wanted = "[" + ", ".join("any" if size is None else str(size) for size in shape) + "]"
    found = list(tensor.shape)
    if len(found) != len(shape) or any(w is not None and w != f for w, f in zip(shape, found, strict=True)):
        raise ValueError(f"{name}: its shape is {found}; {wanted} is expected")
    if tensor.dtype not in dtypes:
        known = " or ".join(str(dtype) for dtype in dtypes)
        raise ValueError(f"{name}: its dtype is {tensor.dtype}; {known} is expected")
    if tensor.device != device:
        raise ValueError(f"{name}: is on {tensor.device}; the other tensors are on {device}")
    if found[-1] > 1 and tensor.stride(-1) != 1:
        raise ValueError(f"{name}: its last stride is {tensor.stride(-1)}; 1 is expected, call contiguous()")


def check_can_launch(name: str, tensor: torch.Tensor, kernel: Kernel) -> None:
    """A tensor on a device that the kernel can run on."""
    if tensor.device.type != "cuda" and not interpreted(kernel):
        raise ValueError(
            f"{name}: is on {tensor.device}; Triton kernels need a CUDA device, or TRITON_INTERPRET=1 set before import"
        )


def check_at_least(name: str, value: int, least: int) -> None:
    """A whole number from `least` on."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name}: is {value!r}; a whole number >= {least} is expected")
