"""What a terminal shows is what the summary holds."""

import io

from rich.console import Console
from rich.table import Table

from simkit.report.data import ReportData
from simkit.report.table import load_table, memory_table, summary_table
from simkit.report.units import seconds


def shown(table: Table, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_every_percentile_of_the_summary_is_shown(data: ReportData) -> None:
    text = shown(summary_table(data.summary))
    latency = data.summary["latency_s"]
    assert isinstance(latency, dict)
    for metric, row in latency.items():
        line = next(line for line in text.splitlines() if line.lower().startswith(metric))
        assert all(seconds(value) in line for value in row.values())
    assert "uncalibrated" in text
    assert "stable at this load" in text


def test_what_was_promised_is_said_to_be_met_or_missed(data: ReportData) -> None:
    slo = {"ttft_p99_s": 1e6, "tpot_p50_s": 1e-6, "attainment": 0.98, "goodput_per_s": 3.0}
    lines = [" ".join(line.split()) for line in shown(summary_table(data.summary, slo)).splitlines()]
    latency = data.summary["latency_s"]
    assert isinstance(latency, dict)
    assert any(line.startswith("TTFT p99,") and line.endswith("s, met") for line in lines)
    missed = f"TPOT p50, 1.00 µs promised {seconds(latency['tpot']['p50'])}, missed"
    assert missed in lines
    assert "Requests within all limits, 98.0 % promised 97.0 %, missed" in lines
    assert "Such requests a second, 3.00 req/s promised 3.80 req/s, met" in lines
    overloaded = {**data.summary, "latency_s": {}, "saturation": {"saturated": True}}
    assert "missed, as the queue grows" in shown(summary_table(overloaded, {"ttft_p99_s": 1e6}))


def test_percentiles_left_out_have_a_reason() -> None:
    summary = {
        "latency_s": {"ttft": {"mean": None, "p99": None}},
        "saturation": {"saturated": True, "reason": "waiting grew by 2 a second"},
    }
    text = shown(summary_table(summary))
    assert "— not given: waiting grew by 2 a second" in text
    assert "overloaded" in text


def test_an_empty_summary_and_markup_are_harmless() -> None:
    assert "no saturation check" in shown(summary_table({}))
    text = shown(
        summary_table({"goodput": {"[red]x[/nope]": "[bold"}, "saturation": {"saturated": True, "reason": "[/]"}})
    )
    assert "[red]x[/nope]" in text
    assert "[bold" in text


def test_memory_rows_are_shares_of_the_capacity() -> None:
    text = shown(memory_table([("weights", 16 * 2**30), ("KV blocks", 48 * 2**30)], 80 * 2**30))
    assert "16.0 GiB" in text
    assert "20.0 %" in text
    assert "60.0 %" in text
    assert "25.0 %" in shown(memory_table([("weights", 1), ("KV blocks", 3)]))


def test_growing_queues_have_no_percentiles_in_the_load_table(data: ReportData) -> None:
    lines = shown(load_table(data.sweep)).splitlines()[1:]
    assert [("grows" in line) for line in lines] == [point.saturated for point in data.sweep]
    assert all(line.count("—") == (5 if "grows" in line else 0) for line in lines)
