"""The one place that imports torch, so that its absence is an error one can act on."""

from simkit.errors import InputError

try:
    import torch
except ImportError as error:
    raise InputError(
        "testbed: torch is not installed; pip install 'simkit-serving[gpu]' (a CPU build will do)"
    ) from error

__all__ = ["torch"]
