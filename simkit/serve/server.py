"""Serving until somebody stops it."""

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

from simkit.engine.deployment import ReplicaSpec
from simkit.errors import InputError
from simkit.serve.app import Endpoint, build_app
from simkit.serve.settings import ServeSettings
from simkit.serve.web_import import uvicorn

CLOSING_S = 5  # for a client that does not read what it is sent


def serve(
    spec: ReplicaSpec, settings: ServeSettings | None = None, on_ready: Callable[[str], None] | None = None
) -> None:
    """Answer at http://host:port until interrupted; one process, because one engine cannot be split.

    `on_ready` is told the address, port 0 being one that is free, once requests are answered. Raises InputError where
    the address cannot be had.
    """
    settings = settings or ServeSettings()
    listening = _bound(settings.host, settings.port)
    app = build_app(spec, settings)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=CLOSING_S)
    with suppress(KeyboardInterrupt):  # which uvicorn raises again once all is closed
        _Server(config, app.state.endpoint, on_ready).run(sockets=[listening])


class _Server(uvicorn.Server):  # type: ignore[misc]  # whose types are not looked at
    """A server that says when it is ready, and does not wait for answers under way, which may be long, when stopped."""

    def __init__(
        self, config: "uvicorn.Config", endpoint: Endpoint, on_ready: Callable[[str], None] | None = None
    ) -> None:
        super().__init__(config)
        self._endpoint, self._on_ready = endpoint, on_ready
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self.started and self._on_ready is not None:
            self._on_ready(_address(self.servers[0].sockets[0].getsockname()))

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """At Ctrl-C, in the main thread: end what is under way, then stop."""
        super().handle_exit(sig, frame)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._endpoint.stop)


def _bound(host: str, port: int) -> socket.socket:
    """A socket that listens there; InputError where the name or the port cannot be had."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family)
    except (OSError, OverflowError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).partition(" (")[0].lower()
        raise InputError(f"--host {host} --port {port}: {reason}; choose another, or --port 0 for a free one") from None


def _address(name: tuple[str, int]) -> str:
    host, port = name[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
