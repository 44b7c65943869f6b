"""A server on this machine's loopback, in the test's own event loop."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from simkit.engine.deployment import Deployment, ReplicaSpec, resolve
from simkit.engine.settings import EngineSettings
from simkit.models.steptables import constant_tables

if TYPE_CHECKING:
    from httpx import AsyncClient

    from simkit.serve.app import Endpoint

STEP_NS = 20_000_000
MODEL = "llama-3.1-8b"
Running = Callable[..., AbstractAsyncContextManager[tuple["AsyncClient", "Endpoint"]]]


@pytest.fixture(scope="session")
def spec() -> ReplicaSpec:
    """Every step takes 20 ms, whatever is in it; 64 blocks of 16 tokens."""
    engine = EngineSettings(max_model_len=512, max_num_seqs=8, max_num_batched_tokens=64, num_gpu_blocks_override=64)
    real = resolve(Deployment(model=MODEL, device="h100", engine=engine))
    return replace(real, tables=constant_tables(64, 8, step_ns=STEP_NS))


@pytest.fixture(scope="session")
def running(spec: ReplicaSpec) -> Running:
    """`async with running(...) as (client, endpoint)`: settings by keyword, `spec` too."""
    reason = "serving needs the extra serve, and httpx to ask"
    httpx = pytest.importorskip("httpx", reason=reason)
    pytest.importorskip("fastapi", reason=reason)
    uvicorn = pytest.importorskip("uvicorn", reason=reason)
    from simkit.serve.app import build_app
    from simkit.serve.settings import ServeSettings

    @asynccontextmanager
    async def run(spec: ReplicaSpec = spec, **settings: object) -> AsyncIterator[tuple["AsyncClient", "Endpoint"]]:
        app = build_app(spec, ServeSettings.model_validate(settings))
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
        task = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as client:
                yield client, app.state.endpoint
        finally:
            server.should_exit = True
            await task

    return run
