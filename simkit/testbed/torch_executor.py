"""The executor of plain torch: the decoder of `decoder.py`, step by step, on the CPU or any device torch knows."""

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from simkit import __version__
from simkit.engine.state import I64
from simkit.errors import InputError
from simkit.testbed.decoder import Decoder, run_step
from simkit.testbed.device_thread import DeviceThread
from simkit.testbed.executor import Identity, Launched
from simkit.testbed.inputs import StepInputs
from simkit.testbed.paged_attention import KVCache, new_cache
from simkit.testbed.torch_import import torch


@dataclass
class TorchExecutor:
    """An `Executor`: a decoder and its KV cache."""

    decoder: Decoder
    cache: KVCache
    thread: DeviceThread = field(default_factory=DeviceThread)
    sampled: torch.Tensor | None = None  # i64, what the latest step gave

    @property
    def num_blocks(self) -> int:
        """KV blocks of the pool."""
        return int(self.cache.keys.shape[1])

    @property
    def block_size(self) -> int:
        """Tokens a block."""
        return int(self.cache.keys.shape[2])

    @property
    def vocab(self) -> int:
        """Token ids are below it."""
        return self.decoder.shape.vocab

    @property
    def identity(self) -> Identity:
        """Torch, eagerly, on its device."""
        versions = {"torch": str(torch.__version__), "simkit": __version__, "python": platform.python_version()}
        dtype = str(self.decoder.embedding.dtype).removeprefix("torch.")
        model = self.decoder.shape.facts() | {"dtype": dtype}
        return Identity(
            f"simkit testbed, torch {torch.__version__}, eager", _device_name(self.decoder), model, versions
        )

    def run(self, step: StepInputs) -> I64:
        """Compute a batch; the greedy tokens of the rows that sample."""
        self.sampled = run_step(self.decoder, self.cache, step, self.sampled)
        tokens: I64 = self.sampled.cpu().numpy()
        return tokens

    def launch(self, step: StepInputs, now_ns: Callable[[], int]) -> tuple[int, Launched]:
        """Compute a batch in the device's thread, after those before."""
        return now_ns(), self.thread.submit(partial(self.run, step), now_ns)


def torch_executor(
    decoder: Decoder, num_blocks: int, block_size: int, enter_thread: Callable[[], None] | None = None
) -> TorchExecutor:
    """A decoder with an empty KV pool; InputError where the pool does not fit the device's memory.

    `enter_thread` is called in the thread that runs what is launched, before anything else.
    """
    dtype = str(decoder.embedding.dtype).removeprefix("torch.")
    try:
        cache = new_cache(decoder.shape, num_blocks, block_size, dtype, str(decoder.embedding.device))
    except (RuntimeError, MemoryError) as error:
        raise InputError(
            f"deployment.engine.num_gpu_blocks_override={num_blocks}: a KV cache of so many blocks of {block_size} "
            f"tokens does not fit ({first_line(error)}); choose fewer"
        ) from None
    return TorchExecutor(decoder, cache, DeviceThread(enter_thread))


def first_line(error: BaseException) -> str:
    """What an exception says, on one line of at most 300 characters."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _device_name(decoder: Decoder) -> str:
    device = decoder.embedding.device
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"{_cpu_name()}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads"


def _cpu_name() -> str:
    """The processor's name where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0][:100] if named else platform.processor() or platform.machine()
