"""`simkit models`, `simkit devices`: what is known, and one in detail."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from simkit.cli import options
from simkit.cli.console import answers, emit_json

if TYPE_CHECKING:
    from simkit.models.architecture import Architecture
    from simkit.models.device import Device

HEADS = {
    "memory_gib": "GiB",
    "gb_per_s": "GB/s",
    "bf16_tflops": "bf16 TFLOP/s",
    "power_w": "W",
    "usd_per_hour": "USD/h",
}

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

    if name is None:
        _print([_device(load_device(one)) for one in known_devices()], json, "devices")
        return
    device = load_device(name)
    sources = sources_of(device.name)
    if json:
        emit_json({**device.model_dump(mode="json"), "step_times": {"default": _default(device), **sources}})
        return
    _print_figures(device, [_default(device), *sources["shipped"], *sources["importable"]])


def _device(device: "Device") -> dict[str, object]:
    from simkit.calibrate.profile_sources import sources_of

    found = sources_of(device.name)
    systems = sorted({text.split()[2] for text in found["importable"]})
    return {
        "name": device.name,
        "memory_gib": device.memory_gib.value,
        "gb_per_s": device.bandwidth_gb_per_s.value,
        "bf16_tflops": device.tflops.bf16,
        "power_w": device.power_w.value,
        "link": device.link.kind,
        "usd_per_hour": device.usd_per_hour.value,
        "step_times": _default(device),
        "profiles": ", ".join([*found["shipped"], *(f"aic {system}" for system in systems)]),
    }


def _default(device: "Device") -> str:
    """Where step times come from without a profile."""
    from simkit.models.kernel_laws import laws_of

    found = laws_of(device)
    if found is None:
        return "datasheet"
    return "calibrated" if found[1] == device.name else f"calibrated as {found[1]}"


def _print_figures(device: "Device", sources: list[str]) -> None:
    """A device's figures, each with where it was read, and where its step times can come from."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for figure, held in device.model_dump(mode="json", exclude_none=True).items():
        if isinstance(held, dict):
            value = ", ".join(f"{key} {part}" if key != "value" else str(part)
                              for key, part in held.items() if key != "source")  # fmt: skip
            table.add_row(Text(figure.replace("_", " ")), Text(value), Text(str(held["source"]), style="dim"))
        elif held:
            table.add_row(figure, Text(", ".join(held) if isinstance(held, list | tuple) else str(held)), "")
    default, *profiles = sources
    table.add_row("step times", Text(default), Text("without a profile", style="dim"))
    for profile in profiles:
        said = "simkit calibrate import" if profile.startswith("aic ") else "--profile, ships"
        table.add_row("", Text(profile), Text(said, style="dim"))
    answers.print(table)


def _model(arch: "Architecture") -> dict[str, object]:
    kinds = ", ".join(sorted(arch.kv_bytes_by_kind()))
    return {
        "name": arch.name,
        "parameters": arch.parameters,
        "active_parameters": arch.active_parameters,
        "weight_gb": round(arch.weight_bytes() / 1e9, 2),
        "kv_bytes_per_token": arch.kv_bytes_per_token(),
        "state_bytes_per_request": arch.state_bytes(),
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
    shown = [column for column in rows[0] if any(row[column] not in ("", 0) for row in rows)]
    for column in shown:
        side: Literal["left", "right"] = "left" if isinstance(rows[0][column], str) else "right"
        named = HEADS.get(column, column.replace("_", " "))
        table.add_column(named, justify=side, no_wrap=column in ("name", "link", "step_times"), overflow="fold")
    for row in rows:
        table.add_row(*(Text(_shown(row[column])) for column in shown))
    answers.print(table)


def _shown(value: object) -> str:
    """A figure for people: large counts in thousands, millions and billions."""
    if not isinstance(value, int):
        return f"{value:g}" if isinstance(value, float) else str(value)
    for unit, suffix in ((10**9, " B"), (10**6, " M")):
        if value >= unit:
            return f"{value / unit:.3g}{suffix}"
    return f"{value:,}"
