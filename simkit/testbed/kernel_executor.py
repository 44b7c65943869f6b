"""The executor of our own kernels: the decoder of `simkit.kernels.random_decoder`, decodes replayed as CUDA graphs.

A step of decodes alone is padded to the next capture size and replayed; any other runs kernel by kernel. All goes to
one stream, so a step that is launched follows the one before it and finds there the tokens that it is fed. Without a
CUDA device the same code runs in Triton's interpreter, padding included and graphs left out, for tests of tiny sizes.
"""

import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from simkit import __version__
from simkit.engine.state import I64, Limits
from simkit.errors import InputError
from simkit.kernels.decoder_layer import LayerCache
from simkit.kernels.jit import KernelError
from simkit.kernels.paged_cache import PAGE_TOKENS
from simkit.kernels.random_decoder import RandomDecoder, new_cache, random_decoder, run_step
from simkit.kernels.step_batch import StepBatch
from simkit.models.architecture import Architecture, GroupedAttention
from simkit.models.captures import default_capture_sizes
from simkit.testbed.device_thread import DeviceThread
from simkit.testbed.executor import Identity, Launched
from simkit.testbed.inputs import Decodes, StepInputs
from simkit.testbed.kernel_batch import PAGES_STEP, HostBatch, capture_for, host_batch, packed, padded_decodes, unpacked
from simkit.testbed.torch_executor import first_line
from simkit.testbed.torch_import import torch


class Sampled(NamedTuple):
    """The tokens that a step gives, on the device."""

    tokens: torch.Tensor  # i64[rows or more]
    rows: I64  # [rows that sample] where each one's token is


class _Ready(NamedTuple):
    """A batch as the device is sent it."""

    size: int | None  # of the capture; None: kernel by kernel
    batch: HostBatch
    data: torch.Tensor  # u8, packed, where the device can read it
    rows: I64  # as of `Sampled`


class Capture(NamedTuple):
    """Decodes of one size: inputs at fixed places, the launches that read them, the tokens they leave."""

    inputs: torch.Tensor  # u8[bytes] as `packed`
    replay: Callable[[], None]
    tokens: torch.Tensor  # i64[size]


@dataclass
class KernelExecutor:
    """An `Executor`: decoder, cache, and a capture for each size that decodes are padded to."""

    decoder: RandomDecoder
    caches: tuple[LayerCache, ...]
    limits: Limits
    capture_sizes: tuple[int, ...]
    captures: dict[int, Capture] = field(default_factory=dict)
    thread: DeviceThread = field(default_factory=DeviceThread)
    latest: Sampled | None = None  # of the step computed, or launched, last

    @property
    def num_blocks(self) -> int:
        """KV blocks of the pool."""
        return int(self.caches[0].k.shape[0])

    @property
    def block_size(self) -> int:
        """Tokens a block."""
        return int(self.caches[0].k.shape[1])

    @property
    def vocab(self) -> int:
        """Token ids are below it."""
        return self.decoder.architecture.vocab

    @property
    def identity(self) -> Identity:
        """Our kernels, on their device."""
        import triton

        device = self.decoder.embedding.device
        name = str(torch.cuda.get_device_name(device)) if device.type == "cuda" else "Triton's interpreter"
        graphs = f"graphs of {len(self.capture_sizes)} decode sizes" if self.capture_sizes else "eager"
        versions = {
            "torch": str(torch.__version__),
            "triton": str(triton.__version__),
            "simkit": __version__,
            "python": platform.python_version(),
        }
        return Identity(f"simkit testbed, simkit.kernels, {graphs}", name, _facts(self.decoder), versions)

    def run(self, step: StepInputs) -> I64:
        """Compute a batch; the greedy tokens of the rows that sample."""
        sampled = self._enqueue(self._packed(step))
        tokens: I64 = sampled.tokens.cpu().numpy()[sampled.rows]
        return tokens

    def launch(self, step: StepInputs, now_ns: Callable[[], int]) -> tuple[int, Launched]:
        """Put a batch behind those launched before; another thread waits for it, so that its end is seen at once."""
        ready = self._packed(step)
        ready_ns = now_ns()
        sampled = self._enqueue(ready)
        if not self._on_cuda:
            tokens: I64 = sampled.tokens.numpy()[sampled.rows]
            return ready_ns, self.thread.submit(lambda: tokens, now_ns)
        # behind the step in its stream: the next one may overwrite a capture's tokens, but not before this copy
        there = torch.empty(sampled.tokens.shape, dtype=torch.int64, pin_memory=True)
        there.copy_(sampled.tokens, non_blocking=True)
        done = torch.cuda.Event()
        done.record()

        def wait() -> I64:
            done.synchronize()
            arrived: I64 = there.numpy()[sampled.rows]
            return arrived

        return ready_ns, self.thread.submit(wait, now_ns)

    @property
    def _on_cuda(self) -> bool:
        return bool(self.decoder.embedding.device.type == "cuda")

    def _packed(self, step: StepInputs) -> _Ready:
        """What the device is to be sent for a batch."""
        size = None if step.chunks else capture_for(self.capture_sizes, len(step.decodes.rows))
        batch = host_batch(step) if size is None else self._padded(step, size)
        rows = np.arange(len(step.sampled), dtype=np.int64) if size is None else step.sampled
        return _Ready(size, batch, self._pinned(packed(batch)), rows)

    def _enqueue(self, ready: _Ready) -> Sampled:
        """Have the device compute a batch, without waiting for it."""
        if ready.size is None:
            data = ready.data.to(self.decoder.embedding.device, non_blocking=True)
            inputs = unpacked(ready.batch, data)
            self._feed(ready.batch, inputs.tokens)
            tokens = self._greedy(inputs)
        else:
            capture = self.captures[ready.size]
            capture.inputs.copy_(ready.data, non_blocking=True)
            self._feed(ready.batch, unpacked(ready.batch, capture.inputs).tokens)
            capture.replay()
            tokens = capture.tokens
        self.latest = Sampled(tokens, ready.rows)
        return self.latest

    def _feed(self, batch: HostBatch, tokens: torch.Tensor) -> None:
        """Put the tokens of the step before where this one has placeholders."""
        if not len(batch.fed.rows):
            return
        assert self.latest is not None
        places = torch.from_numpy(np.stack([batch.fed.rows, self.latest.rows[batch.fed.samples]]))
        here, there = self._pinned(places).to(tokens.device, non_blocking=True)
        tokens[here] = self.latest.tokens[there]

    def _pinned(self, data: torch.Tensor) -> torch.Tensor:
        """In memory that the device reads by itself: a copy from any other would wait for all that is under way."""
        return data.pin_memory() if self._on_cuda else data

    def capture_all(self) -> None:
        """Capture every size, the largest first, whose memory the smaller ones then share."""
        pool = torch.cuda.graph_pool_handle() if self._on_cuda else None
        for size in reversed(self.capture_sizes):
            self.captures[size] = self._capture(size, pool)

    def _capture(self, size: int, pool: object) -> Capture:
        empty = self._padded(NO_DECODES, size)
        inputs = packed(empty).to(self.decoder.embedding.device)
        batch = unpacked(empty, inputs)
        if pool is None:
            return self._interpreted(inputs, batch)
        self._greedy(batch)  # compiles, and lets the libraries allocate, neither of which a graph may hold
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(), torch.cuda.graph(graph, pool=pool):
            tokens = self._greedy(batch)
        return Capture(inputs, graph.replay, tokens)

    def _interpreted(self, inputs: torch.Tensor, batch: StepBatch) -> Capture:
        """The same without a graph: launches that are made again at each replay."""
        tokens = torch.zeros(len(batch.sampled), dtype=torch.int64)

        def replay() -> None:
            tokens.copy_(self._greedy(batch))

        return Capture(inputs, replay, tokens)

    def _padded(self, step: StepInputs, size: int) -> HostBatch:
        pages = -(-self.limits.max_model_len // self.block_size)
        pages = -(-pages // PAGES_STEP) * PAGES_STEP
        return padded_decodes(step, size, pages, self.limits.max_model_len)

    def _greedy(self, batch: StepBatch) -> torch.Tensor:
        return run_step(self.decoder, self.caches, batch).argmax(dim=-1)


_NONE = np.zeros(0, dtype=np.int64)
NO_DECODES = StepInputs(
    tokens=_NONE,
    positions=_NONE,
    slots=_NONE,
    decodes=Decodes(_NONE, np.zeros((0, 0), dtype=np.int64), _NONE),
    chunks=(),
    sampled=_NONE,
)


def kernel_executor(
    architecture: Architecture,
    seed: int,
    dtype: str,
    num_blocks: int,
    limits: Limits,
    capture_sizes: tuple[int, ...] | None = None,
    device: str = "cuda",
) -> KernelExecutor:
    """A decoder of random weights of an architecture, with its pool and captures; None: vLLM's capture sizes.

    Raises:
        InputError: an architecture or a block size that the kernels do not know, or memory that does not suffice.
    """
    if limits.block_size not in PAGE_TOKENS:
        raise InputError(
            f"deployment.engine.block_size={limits.block_size}: the kernels know blocks of {PAGE_TOKENS} tokens; "
            "choose one of these"
        )
    if capture_sizes is None:
        capture_sizes = default_capture_sizes(limits.max_running, limits.max_num_batched_tokens)
    sizes = tuple(sorted({size for size in capture_sizes if size <= limits.max_running} | _top(capture_sizes, limits)))
    try:
        room = min(limits.max_model_len, architecture.max_context_tokens)
        kind = getattr(torch, dtype)
        decoder = random_decoder(architecture, None, seed, kind, device, max_context_tokens=room)
        executor = KernelExecutor(decoder, new_cache(decoder, num_blocks, limits.block_size), limits, sizes)
        executor.capture_all()
    except ValueError as error:
        raise InputError(f"testbed: {architecture.name}: {first_line(error)}; choose another model or dtype") from None
    except KernelError as error:
        raise InputError(
            f"testbed: {architecture.name}: a kernel does not run here ({first_line(error)}); choose another model or "
            "dtype, or look at simkit/kernels/configurations.json"
        ) from None
    except (RuntimeError, MemoryError) as error:
        raise InputError(
            f"testbed: decoder, cache and captures do not fit the device ({first_line(error)}); cut the model with "
            f"--layers, or the cache with deployment.engine.num_gpu_blocks_override (now {num_blocks})"
        ) from None
    return executor


def _top(capture_sizes: tuple[int, ...], limits: Limits) -> set[int]:
    """The first size that holds a full batch, which otherwise would run kernel by kernel."""
    return set(sorted(size for size in capture_sizes if size > limits.max_running)[:1])


def _facts(decoder: RandomDecoder) -> dict[str, str | int | float]:
    architecture, attention = decoder.architecture, decoder.architecture.layers[0].attention
    facts: dict[str, str | int | float] = {
        "name": architecture.name,
        "hidden_size": architecture.hidden,
        "num_hidden_layers": len(architecture.layers),
        "vocab_size": architecture.vocab,
        "dtype": str(decoder.embedding.dtype).removeprefix("torch."),
    }
    if isinstance(attention, GroupedAttention):
        facts |= {"num_attention_heads": attention.heads, "num_key_value_heads": attention.kv_heads}
        facts |= {"head_dim": attention.head_dim}
    return facts
