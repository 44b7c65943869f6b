"""What the tests of planning share: small deployments and traffic."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from simkit.engine.deployment import Deployment, ReplicaSpec, resolve
from simkit.engine.state import Limits
from simkit.models.front_end import NO_FRONT_END
from simkit.models.steptables import constant_tables
from simkit.plan.space import Kind
from simkit.workloads.presets import preset
from simkit.workloads.workload import Workload

SECOND_TOKENS = 1000  # a prompt of so many tokens is one second of work


@pytest.fixture(scope="session")
def chat() -> Workload:
    """1,000 requests of Azure's conversation lengths, Poisson arrivals."""
    return preset("azure-conv-2023", requests=1000, seed=0, arrivals="poisson")


@pytest.fixture(scope="session")
def single_server() -> ReplicaSpec:
    """A server of one request at a time, a millisecond a token of prompt, that answers with one token."""
    spec = resolve(Deployment(model="llama-3.1-8b", device="h100"))
    limits = Limits(100_000, 1, 100_002, 16, 0, False, True, True, False, 0, False, 0, True, True, 1, 1)
    tables = constant_tables(100_000, 1, token_ns=1e6)
    return replace(spec, limits=limits, tables=tables, num_blocks=10_000, front_end=NO_FRONT_END)


@pytest.fixture
def queue() -> Callable[[int, float, int, bool], Workload]:
    """(requests, load, seed, whether service is exponential) -> the traffic of M/M/1 or M/D/1, service of 1 s."""

    def made(requests: int, load: float, seed: int, exponential: bool) -> Workload:
        rng = np.random.default_rng(seed)
        arrivals = np.cumsum(rng.exponential(1e6 / load, requests)).astype(np.int64)
        work = rng.exponential(SECOND_TOKENS, requests) if exponential else np.full(requests, SECOND_TOKENS)
        prompt = np.maximum(1, np.rint(work)).astype(np.int32)
        return Workload("queue", arrivals, prompt, np.ones(requests, dtype=np.int32))

    return made


def kind_of(deployment: Deployment, number: int = 0, usd_per_hour: float = 1.0, most_replicas: int = 8) -> Kind:
    """A kind with a price of its own."""
    return Kind(number, deployment, usd_per_hour, 500.0, None, most_replicas, (str(number),))
