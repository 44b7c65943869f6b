"""A bench set up: a decoder of random weights with its KV pool on this machine's device, and the engine's limits."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count

from simkit.engine.settings import EngineSettings
from simkit.engine.state import Limits
from simkit.errors import InputError
from simkit.models.architecture import Architecture, GroupedAttention, named_kind
from simkit.models.catalog import load_model
from simkit.testbed.decoder import DTYPES, random_decoder
from simkit.testbed.drafting import Drafting
from simkit.testbed.executor import Executor
from simkit.testbed.measured import MeasuredRun
from simkit.testbed.serving import serve_measured
from simkit.testbed.settings import TestbedSettings
from simkit.testbed.shape import shape_of
from simkit.testbed.torch_executor import first_line, torch_executor
from simkit.testbed.torch_import import torch
from simkit.testbed.wall_clock import CLOCKS
from simkit.workloads.workload import Workload

CPU_BATCH = (512, 32)  # max_num_batched_tokens, max_num_seqs where the deployment names none: a step of about a second
CUDA_BATCH = (8192, 256)
CPU_KV_BYTES = 1 << 30
# what this process was given, before any binding of its own
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


@dataclass(frozen=True)
class Bench:
    """Everything that stays the same between runs."""

    executor: Executor
    draft: Executor | None
    limits: Limits
    discipline: str
    seed: int
    clock: str  # a name of CLOCKS
    runs: Iterator[int] = field(default_factory=count, compare=False)  # numbers of those to come

    def serve(
        self, workload: Workload, seed: int | None = None, on_progress: Callable[[int], None] | None = None
    ) -> MeasuredRun:
        """Serve a workload in real time; see `serve_measured`. All is warmed up before the first of its runs alone."""
        drafting = None if self.draft is None else Drafting(self.draft)
        return serve_measured(
            workload,
            self.executor,
            self.limits,
            discipline=self.discipline,
            drafting=drafting,
            seed=self.seed if seed is None else seed,
            clock=CLOCKS[self.clock],
            on_progress=on_progress,
            warm_up=next(self.runs) == 0,
        )


def set_up(model: str, engine: EngineSettings, settings: TestbedSettings) -> Bench:
    """Build the decoder of a model (a catalog's name, or the path of a config.json) and its KV pool.

    Where `async_scheduling` is not set it is as vLLM has it: on with CUDA, off on a CPU and with drafts.

    Raises:
        InputError: a model that the testbed's decoder is not, a device that is not there, memory that does not suffice.
    """
    device = _device(settings)
    if "async_scheduling" not in engine.model_fields_set:
        overlap = device == "cuda" and engine.speculative_tokens == 0
        engine = engine.model_copy(update={"async_scheduling": overlap})
    engine.dialect()
    _check_clock(settings, device, engine.async_scheduling)
    arch = cut(load_model(model), settings.layers)
    dtype = settings.dtype or ("bfloat16" if device == "cuda" else "float32")
    if dtype not in DTYPES:
        raise InputError(f"testbed.dtype={dtype!r}: is not known; known: {', '.join(DTYPES)}")
    if device == "cpu":
        shape_of(arch)  # says what the CPU's decoder is not, before anything is sized
    enter_thread = None if settings.threads is None else bind_threads(settings.threads, engine.async_scheduling)
    limits, num_blocks = limits_of(engine, arch, device, dtype)
    executor = _executor(arch, settings, device, dtype, num_blocks, limits, enter_thread)
    draft = None
    if limits.speculative_tokens > 0:
        small = cut(arch, min(settings.draft_layers, len(arch.layers)))
        other = settings.model_copy(update={"seed": settings.seed + 1})
        draft = _executor(small, other, device, dtype, num_blocks, limits, enter_thread)
    return Bench(executor, draft, limits, engine.discipline, settings.seed, settings.clock)


def cut(arch: Architecture, layers: int | None) -> Architecture:
    """An architecture's first layers, for small machines; InputError if it has fewer."""
    if layers is not None and layers > len(arch.layers):
        raise InputError(f"testbed.layers={layers}: {arch.name} has 1 to {len(arch.layers)}")
    return arch if layers is None else replace(arch, layers=arch.layers[:layers])


def limits_of(engine: EngineSettings, arch: Architecture, device: str, dtype: str) -> tuple[Limits, int]:
    """The engine's limits on this device, and its KV blocks; what the settings leave out is chosen for the device."""
    batched, seqs = CUDA_BATCH if device == "cuda" else CPU_BATCH
    num_blocks = engine.num_gpu_blocks_override
    if num_blocks is None:
        room = _cuda_kv_bytes(arch, dtype, engine) if device == "cuda" else CPU_KV_BYTES
        num_blocks = max(2, room // (kv_bytes_a_token(arch, dtype) * engine.block_size))
    longest = engine.max_model_len or min(arch.max_context_tokens, (num_blocks - 1) * engine.block_size)
    batched = engine.max_num_batched_tokens or batched
    return engine.limits(num_blocks, longest, batched, engine.max_num_seqs or seqs), num_blocks


def kv_bytes_a_token(arch: Architecture, dtype: str) -> int:
    """Bytes of keys and values of one token in all layers."""
    attentions = [layer.attention for layer in arch.layers]
    grouped = [each for each in attentions if isinstance(each, GroupedAttention)]
    if len(grouped) < len(attentions):
        other = next(named_kind(each) for each in attentions if not isinstance(each, GroupedAttention))
        raise InputError(f"testbed: model {arch.name} has {other} attention; choose one with keys and values a head")
    return sum(2 * each.kv_heads * each.head_dim for each in grouped) * element_bytes(dtype)


def element_bytes(dtype: str) -> int:
    """Bytes of one number of a dtype of DTYPES."""
    return {"float64": 8, "float32": 4}.get(dtype, 2)


def bind_threads(threads: int, apart: bool = False) -> Callable[[], None]:
    """Compute with so many threads, on as many cores and no others, so that nobody moves them in the middle of a step.

    Returns what another thread that is to compute calls first. `apart` leaves such a thread alone on these cores: the
    one that calls, which then plans, gets the others, if there are any. InputError where this machine has fewer cores.
    """
    cores = CORES
    if threads > len(cores):
        raise InputError(
            f"testbed.threads={threads}: this process may use {len(cores)} cores; choose at most that many"
        )
    computing = cores[-threads:]  # the first core is where a machine does its own business

    def enter() -> None:
        torch.set_num_threads(threads)
        _stay_on(computing)

    enter()
    if apart:
        _stay_on(cores[:-threads] or computing)
    return enter


def _stay_on(cores: Sequence[int]) -> None:
    """Let this thread, and those it starts, run on these cores alone, where the system can be told so."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)


def _device(settings: TestbedSettings) -> str:
    there = torch.cuda.is_available()
    device = settings.device or ("cuda" if there else "cpu")
    if device == "cuda" and not there:
        raise InputError("testbed.device=cuda: torch sees no CUDA device here; use --device cpu")
    if device == "cpu" and settings.capture_sizes is not None:
        raise InputError("testbed.capture_sizes: CUDA graphs need device cuda; leave it out on the CPU")
    return device


def _check_clock(settings: TestbedSettings, device: str, overlap: bool) -> None:
    if settings.clock == "processor" and (device != "cpu" or settings.threads != 1):
        raise InputError(
            "testbed.clock=processor: counts CPU time of one thread; set device cpu and threads 1, or wall"
        )
    if settings.clock == "processor" and overlap:
        raise InputError(
            "testbed.clock=processor: counts the time of planning and of computing one after the other; set "
            "deployment.engine.async_scheduling: false, or clock wall"
        )


def _executor(
    arch: Architecture,
    settings: TestbedSettings,
    device: str,
    dtype: str,
    num_blocks: int,
    limits: Limits,
    enter_thread: Callable[[], None] | None,
) -> Executor:
    if device == "cuda":
        from simkit.testbed.kernel_executor import kernel_executor

        return kernel_executor(arch, settings.seed, dtype, num_blocks, limits, settings.capture_sizes)
    _check_memory(arch, dtype, num_blocks, limits.block_size)
    try:
        decoder = random_decoder(shape_of(arch), settings.seed, dtype, device)
    except (RuntimeError, MemoryError) as error:
        raise InputError(f"testbed: the decoder does not fit ({first_line(error)}); cut it with --layers") from None
    return torch_executor(decoder, num_blocks, limits.block_size, enter_thread)


def _check_memory(arch: Architecture, dtype: str, num_blocks: int, block_size: int) -> None:
    """InputError before an allocation that this machine would answer by killing the process."""
    shape = shape_of(arch)
    wanted = shape.parameters * element_bytes(dtype) + num_blocks * block_size * kv_bytes_a_token(arch, dtype)
    # a matrix is drawn in float32 before it is converted
    wanted += 4 * shape.hidden * max(shape.vocab, 2 * shape.ffn)
    there = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else wanted
    if wanted > there:
        raise InputError(
            f"testbed: weights and KV cache need {wanted / 2**30:.1f} GiB, {there / 2**30:.1f} GiB are free here; "
            "cut the model with --layers, or the cache with deployment.engine.num_gpu_blocks_override"
        )


def _cuda_kv_bytes(arch: Architecture, dtype: str, engine: EngineSettings) -> int:
    """What the device has left for keys and values after weights and a tenth of itself for activations and graphs."""
    torch.cuda.empty_cache()  # what an earlier bench of this process has given back counts as free
    free, total = torch.cuda.mem_get_info()
    weights = arch.parameters * element_bytes(dtype)
    return int(min(free, engine.gpu_memory_utilization * total) - weights - 0.1 * total)
