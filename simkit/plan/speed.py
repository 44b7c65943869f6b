"""How fast this install simulates: requests and steps a CPU second, on fixed workloads."""

import resource
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from simkit.engine.deployment import Deployment, ReplicaSpec, resolve
from simkit.engine.settings import EngineSettings
from simkit.engine.warm_up import warm_up
from simkit.plan.capacity import throughput_bound
from simkit.plan.sweep import replay
from simkit.workloads.presets import preset
from simkit.workloads.readers import read_workload
from simkit.workloads.transform import rate_to, take
from simkit.workloads.workload import Prefixes, Workload

REPEATS = 5
SYSTEM_PROMPT_TOKENS = 512
SYSTEM_PROMPTS = 10


@dataclass(frozen=True)
class Case:
    """One workload on one replica."""

    name: str
    requests: int
    load: float  # of the throughput with all requests at hand
    caching: bool
    workload: Callable[[int], Workload]


@dataclass(frozen=True)
class Speed:
    """What one case took; CPU time of the replay alone, after compilation."""

    case: str
    requests: int
    requests_per_cpu_second: float  # median of the repeats
    steps_per_cpu_second: float
    slowest_requests_per_cpu_second: float
    fastest_requests_per_cpu_second: float
    peak_rss_mb: float  # of a process that does nothing else


def conversations(requests: int) -> Workload:
    """Lengths of Azure's conversations, Poisson arrivals, nothing shared."""
    return preset("azure-conv-2023", requests=requests, seed=0, arrivals="poisson")


def system_prompts(requests: int) -> Workload:
    """The same with one of ten system prompts of 512 tokens before each prompt."""
    plain = conversations(requests)
    blocks = SYSTEM_PROMPT_TOKENS // 16
    which = np.random.default_rng(1).integers(0, SYSTEM_PROMPTS, requests)
    ids = (which[:, None] * blocks + np.arange(blocks)[None, :]).astype(np.int64)
    start = np.arange(requests + 1, dtype=np.int64) * blocks
    prompts = plain.prompt_tokens + np.int32(SYSTEM_PROMPT_TOKENS)
    return replace(plain, prompt_tokens=prompts, prefixes=Prefixes(16, start, ids.ravel()))


def documents(requests: int) -> Workload:
    """Mooncake's conversations: prompts of 12,000 tokens, of which a third is found in a cache without limit."""
    return preset("mooncake-conversation", requests=requests, seed=0)


CASES = (
    Case("conversations, half load", 200_000, 0.5, False, conversations),
    Case("conversations, at the knee", 200_000, 1.0, False, conversations),
    Case("conversations, past the knee", 200_000, 1.3, False, conversations),
    Case("system prompts with prefix caching, half load", 100_000, 0.5, True, system_prompts),
    Case("system prompts with prefix caching, at the knee", 100_000, 1.0, True, system_prompts),
    Case("system prompts with prefix caching, past the knee", 100_000, 1.3, True, system_prompts),
    Case("documents with prefix caching, at the knee", 10_000, 1.0, True, documents),
)


def trace_cases(trace: Path, trace_format: str | None = None) -> list[Case]:
    """The requests of a trace as they are, arrivals brought to the knee; prefix caching on if it tells what is shared.

    Raises InputError for a file that cannot be read.
    """
    workload = read_workload(trace, trace_format)
    caching = workload.prefixes is not None
    name = f"{trace.name}, prefix caching {'on' if caching else 'off'}, at the knee"
    return [Case(name, len(workload), 1.0, caching, partial(_first_of, trace, trace_format))]


def _first_of(trace: Path, trace_format: str | None, requests: int) -> Workload:
    workload = read_workload(trace, trace_format)
    return take(workload, requests) if requests < len(workload) else workload


def deployment(caching: bool) -> ReplicaSpec:
    """Llama-3.1-8B on one H100."""
    settings = EngineSettings(enable_prefix_caching=caching)
    return resolve(Deployment(model="llama-3.1-8b", device="h100", engine=settings))


def measure(case: Case, repeats: int = REPEATS) -> Speed:
    """Run one case in this process."""
    spec = deployment(case.caching)
    warm_up()
    # the throughput with all at hand is that of the first thousands as well
    sample = case.workload(min(case.requests, 5_000))
    workload = rate_to(case.workload(case.requests), case.load * throughput_bound(spec, sample))
    seconds, steps = [], 0
    for _ in range(repeats):
        begin = time.process_time()
        steps = replay(spec, workload).steps
        seconds.append(time.process_time() - begin)
    middle = statistics.median(seconds)
    return Speed(
        case=case.name,
        requests=case.requests,
        requests_per_cpu_second=case.requests / middle,
        steps_per_cpu_second=steps / middle,
        slowest_requests_per_cpu_second=case.requests / max(seconds),
        fastest_requests_per_cpu_second=case.requests / min(seconds),
        peak_rss_mb=_peak_rss_mb(),
    )


def measure_apart(case: Case, repeats: int = REPEATS) -> Speed:
    """Run one case in a process of its own, so that its peak memory is its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, case, repeats).result()


def _peak_rss_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts KiB, macOS bytes
    return peak / (1 << 20) if sys.platform == "darwin" else peak / 1024
