"""Tokens come when the engine says, and the engine says what the virtual clock says."""

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace

import numpy as np
import pytest

from simkit.engine.deployment import Deployment, ReplicaSpec, resolve
from simkit.engine.loop import IDLE, advance
from simkit.engine.replica import new_replica
from simkit.engine.settings import EngineSettings
from simkit.engine.state import ABORTED, FINISHED, FREE_BLOCKS, NEVER, ROWS, Replica
from simkit.models.steptables import constant_tables

Running = Callable[..., AbstractAsyncContextManager[tuple[object, object]]]


async def stream_times_s(client: object, body: dict[str, object]) -> list[float]:
    """When each token's chunk came in, s from when it was asked for."""
    start = time.perf_counter()
    times: list[float] = []
    async with client.stream("POST", "/v1/completions", json=body | {"stream": True}) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                times.append(time.perf_counter() - start)
    return times


def virtual(replica: Replica, spec: ReplicaSpec) -> Replica:
    """A replica that serves on the virtual clock what `replica` was sent."""
    rows = int(replica.at[ROWS])
    again = new_replica(
        replica.limits,
        replica.requests[:rows].copy().view(np.recarray),
        replica.content_ids,
        replica.aborts,
        len(replica.pool.blocks),
    )
    while advance(again, spec.tables, NEVER, 1000) != IDLE:
        pass
    return again


def assert_same_times(replica: Replica, spec: ReplicaSpec) -> None:
    rows = int(replica.at[ROWS])
    again = virtual(replica, spec)
    for name in replica.ledger.dtype.names:
        assert np.array_equal(replica.ledger[name][:rows], again.ledger[name]), name
    for name in replica.progress.dtype.names:
        assert np.array_equal(replica.progress[name][:rows], again.progress[name]), name


def test_client_sees_the_engine_s_times(running: Running, spec: ReplicaSpec) -> None:
    async def scenario() -> tuple[list[list[float]], Replica]:
        async with running() as (client, endpoint):
            times = []
            for prompt in (10, 150):
                # other ids, so that nothing is cached
                body = {"prompt": [prompt * 1000 + i for i in range(prompt)], "max_tokens": 16}
                times.append(await stream_times_s(client, body))
            return times, endpoint.engine.replica

    times, replica = asyncio.run(scenario())
    for row, (seen, prompt_steps) in enumerate(zip(times, (1, 3), strict=True)):
        assert len(seen) == 16
        first = (replica.ledger["first_token"][row] - replica.requests["arrival_ns"][row]) / 1e9
        # 150 tokens are three steps of 64
        assert first == pytest.approx(prompt_steps * 0.02, abs=1e-5)
        assert seen[0] == pytest.approx(first, abs=0.03)
        # lateness does not add up: over 15 gaps the mean is right though single ones are not
        assert (seen[-1] - seen[0]) / 15 == pytest.approx(0.02, abs=0.002)
    assert_same_times(replica, spec)


def test_time_scale(running: Running) -> None:
    async def scenario() -> list[float]:
        async with running(time_scale=4) as (client, _):
            return await stream_times_s(client, {"prompt": [1], "max_tokens": 41})

    times = asyncio.run(scenario())
    assert times[-1] - times[0] == pytest.approx(40 * 0.02 / 4, abs=0.05)


@pytest.mark.parametrize("asynchronous", [True, False])
def test_what_was_served_live_is_what_the_virtual_clock_computes(running: Running, asynchronous: bool) -> None:
    """Thirty clients at odd times, sharing prefixes, short of blocks, some leaving: the ledger is equal to the ns."""
    engine = EngineSettings(
        max_model_len=512,
        max_num_seqs=8,
        max_num_batched_tokens=128,
        num_gpu_blocks_override=40,
        async_scheduling=asynchronous,
    )
    real = resolve(Deployment(model="llama-3.1-8b", device="h100", engine=engine))
    rng = np.random.default_rng(4)

    async def one(client: object, i: int) -> None:
        await asyncio.sleep(float(rng.random()))
        ids = [int(rng.integers(3))] * int(rng.integers(1, 200)) + [i]
        body = {"prompt": ids, "max_tokens": int(rng.integers(1, 80)), "stream": True}
        async with client.stream("POST", "/v1/completions", json=body) as response:
            async for _ in response.aiter_lines():
                if i % 5 == 0 and rng.random() < 0.1:
                    return

    async def scenario() -> Replica:
        async with running(spec=real) as (client, endpoint):
            await asyncio.gather(*(one(client, i) for i in range(30)))
            while endpoint.engine.running or endpoint.engine.waiting:
                await asyncio.sleep(0.01)
            return endpoint.engine.replica

    replica = asyncio.run(scenario())
    rows = int(replica.at[ROWS])
    assert rows == 30
    assert np.isin(replica.progress["status"][:rows], (FINISHED, ABORTED)).all()
    assert (replica.progress["status"][:rows] == ABORTED).any()
    assert replica.progress["hit"][:rows].any()
    assert replica.progress["preemptions"][:rows].any()
    assert replica.pool.counts[FREE_BLOCKS] == 39
    assert_same_times(replica, real)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_blocks(running: Running, stream: bool) -> None:
    async def scenario() -> tuple[float, float, str]:
        async with running() as (client, endpoint):
            body = {"prompt": list(range(100)), "max_tokens": 400, "stream": stream}
            asking = asyncio.ensure_future(client.post("/v1/completions", json=body))
            await asyncio.sleep(0.2)
            used = endpoint.engine.kv_used
            assert endpoint.engine.running == 1
            asking.cancel()
            await asyncio.sleep(0.2)
            return used, endpoint.engine.kv_used, (await client.get("/metrics")).text

    used, after, metrics = asyncio.run(scenario())
    assert used > 6 / 63
    assert after == 0
    assert 'vllm:request_success_total{engine="0",finished_reason="abort",model_name="llama-3.1-8b"} 1.0' in metrics


def test_more_clients_than_first_room(running: Running, spec: ReplicaSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's arrays grow under load, and nothing is lost."""
    pytest.importorskip("fastapi")
    from simkit.serve import engine

    monkeypatch.setattr(engine, "FIRST_ROOM", 4)

    async def scenario() -> tuple[list[int], Replica]:
        quick = replace(spec, tables=constant_tables(64, 8, step_ns=1_000_000))
        async with running(spec=quick) as (client, endpoint):
            bodies = [{"prompt": [i] * 33, "max_tokens": 1 + i % 7} for i in range(40)]
            answers = await asyncio.gather(*(client.post("/v1/completions", json=body) for body in bodies))
            return [a.json()["usage"]["completion_tokens"] for a in answers], endpoint.engine.replica

    tokens, replica = asyncio.run(scenario())
    assert tokens == [1 + i % 7 for i in range(40)]
    assert replica.pool.counts[FREE_BLOCKS] == 63


def test_an_engine_that_fails_is_not_silent(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> tuple[int, int]:
        async with running() as (client, endpoint):
            asking = asyncio.ensure_future(client.post("/v1/completions", json={"prompt": "a", "max_tokens": 100}))
            await asyncio.sleep(0.1)
            endpoint.task.cancel()
            return (await asking).status_code, (await client.get("/health")).status_code

    assert asyncio.run(scenario()) == (500, 503)
