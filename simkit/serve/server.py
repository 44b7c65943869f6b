"""Serving until somebody stops it."""

from simkit.engine.deployment import ReplicaSpec
from simkit.serve.app import build_app
from simkit.serve.settings import ServeSettings
from simkit.serve.web_import import uvicorn


def serve(spec: ReplicaSpec, settings: ServeSettings | None = None) -> None:
    """Answer at http://host:port until interrupted; one process, because one engine cannot be split."""
    settings = settings or ServeSettings()
    uvicorn.run(build_app(spec, settings), host=settings.host, port=settings.port, log_level="warning", workers=1)
