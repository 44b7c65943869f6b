"""The endpoint: which path does what."""

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from simkit.engine.deployment import ReplicaSpec
from simkit.errors import InputError
from simkit.serve.bodies import ChatBody, CompletionBody, read_body
from simkit.serve.engine import PacedEngine
from simkit.serve.exchange import EngineStoppedError, Exchange, begin
from simkit.serve.exposition import Exposition
from simkit.serve.messages import Dialect, error
from simkit.serve.pacing import PacedClock
from simkit.serve.settings import ServeSettings
from simkit.serve.web_import import FastAPI, JSONResponse, Request, Response, StreamingResponse


class Endpoint:
    """The state behind the paths: one engine, its metrics, the settings."""

    def __init__(self, spec: ReplicaSpec, settings: ServeSettings) -> None:
        self.settings = settings
        self.model = settings.model_name or spec.deployment.model
        self.max_model_len = spec.limits.max_model_len
        self.exposition = Exposition(spec, self.model)
        self.engine = PacedEngine(spec, PacedClock(settings.time_scale), self.exposition)
        self.task: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def running(self, app: "FastAPI") -> AsyncIterator[None]:
        """The engine's task lives as long as the server."""
        self.task = asyncio.create_task(self.engine.run())
        self.task.add_done_callback(_log_failure)
        try:
            yield
        finally:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)

    def stop(self) -> None:
        """Let the engine end: answers under way end with an error, and nothing new is begun."""
        if self.task is not None:
            self.task.cancel()

    async def health(self) -> "Response":
        """GET /health: 200 while the engine runs."""
        return Response(status_code=200 if self.task is not None and not self.task.done() else 503)

    async def models(self) -> "JSONResponse":
        """GET /v1/models."""
        card = {
            "id": self.model,
            "object": "model",
            "created": 0,
            "owned_by": "simkit",
            "root": self.model,
            "parent": None,
            "max_model_len": self.max_model_len,
        }
        return JSONResponse({"object": "list", "data": [card]})

    async def metrics(self) -> "Response":
        """GET and HEAD /metrics."""
        return Response(self.exposition.text(self.engine), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def completions(self, request: "Request") -> "Response":
        """POST /v1/completions."""
        return await self._answer(request, CompletionBody)

    async def chat_completions(self, request: "Request") -> "Response":
        """POST /v1/chat/completions."""
        return await self._answer(request, ChatBody)

    async def _answer(self, request: "Request", kind: type[CompletionBody] | type[ChatBody]) -> "Response":
        try:
            body = read_body(kind, await self._read(request))
            if body.model not in (None, self.model):
                message = f"The model `{body.model}` does not exist; this server has `{self.model}`."
                return JSONResponse(error(message, "NotFoundError", 404, "model"), status_code=404)
            request_id = request.headers.get("x-request-id") or uuid.uuid4().hex
            dialect = Dialect(kind is ChatBody, request_id, self.model)
            exchange = begin(self.engine, body, dialect, self.settings.answer_tokens)
        except InputError as wrong:
            return JSONResponse(error(str(wrong), "BadRequestError", 400), status_code=400)
        if body.stream:
            return StreamingResponse(exchange.stream(), media_type="text/event-stream")
        return await _whole(exchange, request)

    async def _read(self, request: "Request") -> bytes:
        """The body, as far as it is allowed to go."""
        data = bytearray()
        async for piece in request.stream():
            data += piece
            if len(data) > self.settings.max_body_bytes:
                raise InputError(f"body: more than {self.settings.max_body_bytes} bytes; send a shorter prompt")
        return bytes(data)


async def _whole(exchange: Exchange, request: "Request") -> "Response":
    """The answer in one piece, unless the client leaves before it is there."""
    answer = asyncio.ensure_future(exchange.whole())
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((answer, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            return Response(status_code=499)  # nobody reads it
        return JSONResponse(answer.result())
    except EngineStoppedError as stopped:
        return JSONResponse(error(str(stopped), "InternalServerError", 500), status_code=500)
    finally:
        leaving.cancel()
        answer.cancel()
        exchange.close()


def _log_failure(task: "asyncio.Task[None]") -> None:
    """Tell the server's log why the engine ended, unless somebody ended it."""
    if not task.cancelled() and task.exception() is not None:
        logging.getLogger("uvicorn.error").error("the engine has failed", exc_info=task.exception())


async def _left(request: "Request") -> None:
    """Return when the client has closed its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def build_app(spec: ReplicaSpec, settings: ServeSettings | None = None) -> "FastAPI":
    """The ASGI application; its state is `app.state.endpoint`."""
    endpoint = Endpoint(spec, settings or ServeSettings())
    app = FastAPI(title="simkit serve", lifespan=endpoint.running)
    app.state.endpoint = endpoint
    app.add_api_route("/health", endpoint.health, methods=["GET"], response_model=None)
    app.add_api_route("/v1/models", endpoint.models, methods=["GET"], response_model=None)
    app.add_api_route("/metrics", endpoint.metrics, methods=["GET", "HEAD"], response_model=None)
    app.add_api_route("/v1/completions", endpoint.completions, methods=["POST"], response_model=None)
    app.add_api_route("/v1/chat/completions", endpoint.chat_completions, methods=["POST"], response_model=None)
    return app
