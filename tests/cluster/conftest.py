"""Deployments and workloads of the fleet's tests."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from simkit.engine.deployment import Deployment, ReplicaSpec, resolve
from simkit.engine.settings import EngineSettings
from simkit.models.front_end import NO_FRONT_END
from simkit.models.steptables import constant_tables
from simkit.workloads.workload import Prefixes, Workload

sys.path.insert(0, str(Path(__file__).parent))  # for same

TOKEN_NS = 1_000


@pytest.fixture(scope="session")
def spec() -> ReplicaSpec:
    """A real deployment with a small KV cache, so that requests queue, share prefixes and preempt one another."""
    engine = EngineSettings(max_num_seqs=16, max_model_len=2048, num_gpu_blocks_override=256)
    resolved = resolve(Deployment(model="llama-3.1-8b", device="h100", engine=engine))
    return replace(resolved, front_end=NO_FRONT_END)  # times are the engine's; test_front_end.py has the clients'


@pytest.fixture(scope="session")
def single_server(spec: ReplicaSpec) -> ReplicaSpec:
    """One request at a time, one step each, TOKEN_NS a prompt token: a server whose service times we choose."""
    engine = EngineSettings(
        max_num_seqs=1,
        max_model_len=500_000,
        max_num_batched_tokens=500_000,
        block_size=1024,
        num_gpu_blocks_override=512,
        enable_prefix_caching=False,
        async_scheduling=False,
    )
    limits = engine.limits(512, 500_000, 500_000, 1)
    return replace(spec, limits=limits, num_blocks=512, tables=constant_tables(500_000, 1, token_ns=TOKEN_NS))


@pytest.fixture(scope="session")
def chats() -> Callable[[int, float, int], Workload]:
    """`chats(requests, rate_per_s, seed)`: Poisson arrivals, mixed lengths, half of them over shared prefixes."""

    def make(requests: int, rate_per_s: float, seed: int) -> Workload:
        rng = np.random.default_rng(seed)
        prompt = rng.integers(1, 1500, requests).astype(np.int32)
        output = rng.integers(1, 200, requests).astype(np.int32)
        group = rng.integers(0, 8, requests)
        named = np.where(rng.random(requests) < 0.5, prompt // 256, 0)
        ids = [group[i] * 100 + k for i in range(requests) for k in range(named[i])]
        return Workload(
            name="chats",
            arrival_us=np.cumsum(rng.exponential(1e6 / rate_per_s, requests)).astype(np.int64),
            prompt_tokens=prompt,
            output_tokens=output,
            prefixes=Prefixes(256, np.concatenate(([0], np.cumsum(named))).astype(np.int64), np.array(ids, np.int64)),
        )

    return make


@pytest.fixture(scope="session")
def markovian() -> Callable[[int, float, float, int], Workload]:
    """`markovian(requests, rate_per_s, service_s, seed)`: Poisson arrivals, exponential service of one step each."""

    def make(requests: int, rate_per_s: float, service_s: float, seed: int) -> Workload:
        rng = np.random.default_rng(seed)
        tokens = np.ceil(rng.exponential(service_s * 1e9 / TOKEN_NS, requests))
        return Workload(
            name="markovian",
            arrival_us=np.cumsum(rng.exponential(1e6 / rate_per_s, requests)).astype(np.int64),
            prompt_tokens=np.clip(tokens, 1, 499_000).astype(np.int32),
            output_tokens=np.ones(requests, dtype=np.int32),
        )

    return make
