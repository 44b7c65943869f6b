"""The one place that imports the web server's packages, so that their absence is an error one can act on."""

from simkit.errors import InputError

try:
    import prometheus_client
    import uvicorn
    from fastapi import FastAPI, Request
    from fastapi.responses import JSONResponse, Response, StreamingResponse
except ImportError as error:
    raise InputError(f"serve: {error.name} is not installed; pip install 'simkit-serving[serve]'") from error

__all__ = ["FastAPI", "JSONResponse", "Request", "Response", "StreamingResponse", "prometheus_client", "uvicorn"]
