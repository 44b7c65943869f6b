"""`simkit models`, `simkit devices`: what is known, and one in detail."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from simkit.cli import options
from simkit.cli.console import answers, emit_json

if TYPE_CHECKING:
    from simkit.models.architecture import Architecture

Name = Annotated[str | None, typer.Argument(help="One of them, or a file of yours; all are listed without.")]


def models(name: Name = None, json: options.Json = False) -> None:
    """The models that have a name here; any other is given by its Hugging Face config.json."""
    from simkit.models.catalog import known_models, load_model

    rows = [_model(load_model(one)) for one in ([name] if name else known_models())]
    _print(rows, json, "models")


def devices(name: Name = None, json: options.Json = False) -> None:
    """The devices that have a name here; any other is given by a YAML of the same form."""
    from simkit.calibrate.profile_sources import sources_of
    from simkit.models.device import known_devices, load_device

    if name and json:
        device = load_device(name)
        emit_json({**device.model_dump(mode="json"), "step_times": sources_of(device.name)})
        return
    rows = []
    for one in [name] if name else known_devices():
        device = load_device(one)
        rows.append(
            {
                "name": device.name,
                "memory_gib": device.memory_gib.value,
                "bandwidth_gb_per_s": device.bandwidth_gb_per_s.value,
                "bf16_tflops": device.tflops.bf16,
                "power_w": device.power_w.value,
                "link": device.link.kind,
                "usd_per_hour": device.usd_per_hour.value,
                "step_times": _sources(sources_of(device.name)),
                "source": device.memory_gib.source if name else "",
            }
        )
    _print(rows, json, "devices")


def _sources(found: "dict[str, list[str]]") -> str:
    """Profiles that ship, tables to import by `simkit calibrate import`, or nothing but a datasheet."""
    shipped = [f"shipped: {name}" for name in found["shipped"]]
    systems = sorted({text.split()[2] for text in found["importable"]})
    return ", ".join([*shipped, *(f"importable: aic {system}" for system in systems)]) or "datasheet"


def _model(arch: "Architecture") -> dict[str, object]:
    kinds = ", ".join(sorted(arch.kv_bytes_by_kind()))
    return {
        "name": arch.name,
        "parameters": arch.parameters,
        "active_parameters": arch.active_parameters,
        "weight_gb": round(arch.weight_bytes() / 1e9, 2),
        "kv_bytes_per_token": arch.kv_bytes_per_token(),
        "max_context_tokens": arch.max_context_tokens,
        "attention": kinds,
    }


def _print(rows: list[dict[str, object]], json: bool, key: str) -> None:
    """Rows as a table on the terminal or as one JSON object."""
    if json:
        emit_json({key: rows})
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    shown = [column for column in rows[0] if any(row[column] != "" for row in rows)]
    for column in shown:
        side: Literal["left", "right"] = "left" if isinstance(rows[0][column], str) else "right"
        table.add_column(column.replace("_", " "), justify=side, no_wrap=column == "name")
    for row in rows:
        table.add_row(*(Text(_shown(row[column])) for column in shown))
    answers.print(table)


def _shown(value: object) -> str:
    """A figure for people: large counts in thousands, millions and billions."""
    if not isinstance(value, int):
        return str(value)
    for unit, suffix in ((10**9, " B"), (10**6, " M")):
        if value >= unit:
            return f"{value / unit:.3g}{suffix}"
    return f"{value:,}"
