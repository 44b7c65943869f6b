"""`simkit serve`: the deployment as an OpenAI-compatible endpoint, with no GPU behind it."""

from typing import Annotated

import typer

from simkit.cli import options
from simkit.cli.console import people
from simkit.errors import InputError


def serve(
    config: options.ConfigPath = None,
    model: options.Model = None,
    device: options.Device = None,
    tp: options.Tensor = None,
    profile: options.Profile = None,
    settings: options.Set = None,
    host: Annotated[str, typer.Option(help="Address to bind to.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8000,
    time_scale: Annotated[float, typer.Option(help="Simulated seconds a second: 10 is ten times as fast.")] = 1.0,
) -> None:
    """Answer OpenAI requests in the time that the deployment would take, in wall time or scaled."""
    from pydantic import ValidationError

    from simkit.cli.config import read_config, resolve_replica
    from simkit.invalid import first_error
    from simkit.serve.server import serve as run_server
    from simkit.serve.settings import ServeSettings

    try:
        endpoint = ServeSettings(host=host, port=port, time_scale=time_scale)
    except ValidationError as error:
        raise InputError(first_error(error, "serve", ServeSettings.model_fields)) from None
    wanted: list[tuple[str, object]] = [
        ("deployment.model", model),
        ("deployment.device", device),
        ("deployment.layout.tensor", tp),
        ("profile", None if profile is None else str(profile)),
    ]
    given = [(key, value) for key, value in wanted if value is not None]
    given += [options.setting(text) for text in settings or []]
    # an endpoint's workload is whoever calls it
    resolved = read_config(config, [*given, ("workload", {"preset": "azure-conv-2023"})])
    spec = resolve_replica(resolved)

    def say(address: str) -> None:
        deployment = resolved.deployment
        people.print(f"{deployment.model} on {deployment.device}: {address}/v1, Ctrl-C ends it", markup=False)
        people.print(f"step times: {spec.provenance}, {spec.provenance_note}", markup=False, style="yellow")

    run_server(spec, endpoint, say)
