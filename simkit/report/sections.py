"""The report's sections, each HTML from the data it shows."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import yaml

from simkit.metrics.latency import finished_latencies, slowest
from simkit.metrics.load import LoadPoint
from simkit.metrics.slo import STATISTICS, targets
from simkit.report import definitions, waterfall
from simkit.report.data import ReportData, at
from simkit.report.facts import JointCheck, latency_rows, missing_reason, resource_rows, traffic_rows
from simkit.report.figures.cdf import gap_cdf, latency_cdf
from simkit.report.figures.load import load_figures
from simkit.report.figures.series import series_figures
from simkit.report.markup import Cell, figures, plain, table, text
from simkit.report.units import count, multiple, rate, seconds, share
from simkit.report.verdict import TargetCheck, Verdict


@dataclass(frozen=True)
class Section:
    """One heading of the page and how its content is made."""

    anchor: str
    heading: str
    content: Callable[[ReportData], str]


def banners(data: ReportData, judged: Verdict) -> str:
    """The verdict, then whatever limits its meaning: an interrupted run, assumed step times, notes."""
    said = "".join(f"<p>{text(sentence)}</p>" for sentence in judged.sentences)
    boxes = [
        f'<div class="banner {judged.tone}" role="status"><p class="headline">{text(judged.headline)}</p>{said}</div>'
    ]
    if not data.result.complete:
        warning = "<b>Partial:</b> the run was interrupted; what follows covers only what was served until then."
        boxes.append(f'<div class="banner unsure">{warning}</div>')
    provenance = at(data.summary, "step_time", "provenance")
    if provenance == "uncalibrated":
        note = at(data.summary, "step_time", "note") or (
            "step times come from a roofline with datasheet figures, not from measurements of this device and engine"
        )
        boxes.append(
            f'<div class="banner unsure"><b>Uncalibrated:</b> {text(note)}.</div>'.replace("..</div>", ".</div>")
        )
    elif provenance is not None:
        boxes.append(f'<p class="note">Step times: {text(provenance)}.</p>')
    dropped = {str(k): v for k, v in _mapping(at(data.summary, "workload", "dropped_rows")).items() if v}
    if dropped:
        said = ", ".join(f"{reason} {number}" for reason, number in dropped.items())
        boxes.append(f'<p class="note">Rows of the trace left out while reading: {text(said)}.</p>')
    boxes += [f'<p class="note">{text(note)}</p>' for note in data.result.notes]
    return "\n".join(boxes)


def verdict_tables(data: ReportData, judged: Verdict) -> str:
    """Targets, latency percentiles, and everything else the summary counts."""
    parts = []
    if judged.checks or judged.joint:
        rows = [*map(_target_row, judged.checks), *map(_joint_row, judged.joint)]
        parts.append(table("Targets", ("target", "met", "measured", "limit", "of limit"), rows, "numbers"))
    latency = [[name, *values] for name, values in latency_rows(data.summary)]
    if latency:
        parts.append(table("Latency of finished requests", ("metric", *STATISTICS), latency, "numbers"))
        reason = missing_reason(data.summary)
        parts.append(f'<p class="note">{text(reason)}.</p>' if reason else "")
    device = [
        *resource_rows(data.summary),
        ("Tokens computed", count(data.result.computed_tokens)),
        ("of these again after a preemption", count(data.result.recomputed_tokens)),
        ("End of the last step", seconds(data.result.end_ns / 1e9)),
    ]
    traffic = traffic_rows(data.summary)
    columns = table("Requests and throughput", (), traffic, "facts") if traffic else ""
    columns += table("Memory, batches, device", (), device, "facts")
    return "\n".join([*parts, f'<div class="columns">{columns}</div>'])


def latency(data: ReportData) -> str:
    """Distributions of TTFT, TPOT, ITL and E2E."""
    known = finished_latencies(data.result.requests)
    steady = at(data.summary, "saturation", "saturated") is not True
    limits = targets(data.slo)
    drawn = [
        latency_cdf("ttft", known.ttft_s, [t for t in limits if t.metric == "ttft"], steady),
        latency_cdf("tpot", known.tpot_s, [t for t in limits if t.metric == "tpot"], steady),
        gap_cdf(data.result.itl, [t for t in limits if t.metric == "itl"], steady),
        latency_cdf("e2e", known.e2e_s, [t for t in limits if t.metric == "e2e"], steady),
    ]
    svgs = [svg for svg in drawn if svg is not None]
    if not svgs:
        return "<p>No request finished, so there is no latency to draw.</p>"
    caption = "Share of finished requests (of gaps, for ITL) at or below a latency; logarithmic time. "
    caption += (
        "Dots mark p50 and p99, dashed lines the targets."
        if steady
        else ("The queue grows: these curves move right the longer the run is, so no percentile is marked.")
    )
    return figures(svgs, caption)


def over_time(data: ReportData) -> str:
    """The replica's state over time."""
    svgs = series_figures(data.result.series)
    if not svgs:
        return "<p>Nothing ran, so there is nothing to draw over time.</p>"
    bucket = seconds(data.result.series.bucket_ns / 1e9)
    return figures(
        svgs,
        f"Means over buckets of {bucket}; where several share a pixel, a band spans their smallest and largest. "
        "Waiting counts preempted requests too. A waiting line that only rises is an overload.",
    )


def against_load(data: ReportData) -> str:
    """Replays at other rates, drawn and in numbers."""
    if not data.sweep:
        return "<p>No other loads were replayed.</p>"
    svgs = load_figures(data.sweep, data.slo)
    caption = (
        "The same workload with its arrivals stretched or squeezed. Solid p99, dotted p50; crosses and shading: "
        "the queue grows there, and a latency would only say how long the run was. Vertical line: this run."
    )
    points = sorted(data.sweep, key=lambda point: point.load)
    rows = [[Cell(multiple(p.load), p.load), *_point_cells(p)] for p in points]
    numbers = table("Replays by load", ("load", "rate", *_POINT_HEAD), rows, "numbers wide", sortable=True)
    return (figures(svgs, caption) if svgs else "") + numbers


def slowest_requests(data: ReportData) -> str:
    """The slowest by E2E and by TTFT, as bars and as a table."""
    requests = data.result.requests
    known = finished_latencies(requests)
    if not len(known.row):
        return "<p>No request finished.</p>"
    by_e2e = slowest(known, known.e2e_s, waterfall.SLOWEST)
    by_ttft = slowest(known, known.ttft_s, waterfall.SLOWEST)
    charts = [
        waterfall.chart("Longest E2E", requests, by_e2e, waterfall.values_of(known, known.e2e_s), "E2E"),
        waterfall.chart("Longest TTFT", requests, by_ttft, waterfall.values_of(known, known.ttft_s), "TTFT"),
    ]
    both = np.array(list(dict.fromkeys([*by_e2e.tolist(), *by_ttft.tolist()])), dtype=np.int64)
    grid = f'<div class="grid">{"".join(charts)}</div>'
    note = f"<figcaption>{text(definitions.WATERFALL_NOTE)}</figcaption>"
    bars = f'<figure class="waterfalls">{waterfall.legend()}{grid}{note}</figure>'
    return bars + waterfall.request_table(requests, known, both)


def sensitivity(data: ReportData) -> str:
    """The answer again with longer and shorter steps."""
    if not data.sensitivity:
        return "<p>The run was not repeated with other step times.</p>"
    rows = []
    for row in sorted(data.sensitivity, key=lambda row: row.step_time_factor):
        change = f"{100 * (row.step_time_factor - 1):+.3g} %" if row.step_time_factor != 1 else "as simulated"
        rows.append([Cell(change, row.step_time_factor), *_point_cells(row.point)])
    note = (
        "Below the knee, an error of the step time shifts latencies by about as much. At the knee it decides between a "
        "stable queue and a growing one: an answer that changes here is not safe."
    )
    head = ("step time", "rate", *_POINT_HEAD)
    return table("The same workload with all steps longer or shorter", head, rows, "numbers wide") + f"<p>{note}</p>"


def metric_definitions(data: ReportData) -> str:
    """Every metric's formula and its names elsewhere."""
    return table("Metrics, and the parts of a bar", definitions.HEAD, definitions.rows(), "prose")


def configuration(data: ReportData) -> str:
    """What was run: resolved configuration, versions, seed."""
    versions = data.versions or {str(k): str(v) for k, v in _mapping(at(data.summary, "versions")).items()}
    rows = [("seed", str(at(data.summary, "seed")))] if at(data.summary, "seed") is not None else []
    rows += [(str(name), str(version)) for name, version in versions.items()]
    shown = table("Versions and seed", (), rows, "facts") if rows else ""
    if not data.config:
        return shown + "<p>No configuration was given.</p>"
    written = yaml.safe_dump(plain(data.config), sort_keys=False, allow_unicode=True, width=100)
    return f"{shown}<h3>Resolved configuration</h3><pre>{text(written, 200_000)}</pre>"


SECTIONS = (
    Section("latency", "Latency", latency),
    Section("time", "Over time", over_time),
    Section("load", "Latency against load", against_load),
    Section("slowest", "Slowest requests", slowest_requests),
    Section("sensitivity", "If steps were longer or shorter", sensitivity),
    Section("definitions", "Definitions", metric_definitions),
    Section("configuration", "Configuration", configuration),
)

_POINT_HEAD = ("TTFT p50", "TTFT p99", "TPOT p50", "TPOT p99", "E2E p50", "E2E p99", "goodput", "queue")


def _point_cells(point: LoadPoint) -> list[Cell | str]:
    times = (point.ttft_p50_s, point.ttft_p99_s, point.tpot_p50_s, point.tpot_p99_s, point.e2e_p50_s, point.e2e_p99_s)
    cells: list[Cell | str] = [Cell(rate(point.rate_per_s, "req"), point.rate_per_s)]
    # under a growing queue no percentile is given, whatever the replay measured
    cells += [Cell(seconds(None if point.saturated else value), value) for value in times]
    cells.append(Cell(share(point.goodput_fraction), point.goodput_fraction))
    return [*cells, "grows" if point.saturated else "stable"]


def _target_row(check: TargetCheck) -> list[Cell | str]:
    of_limit = share(check.measured_s / check.target.limit_s) if check.measured_s is not None else "—"
    met = {True: "✓ met", False: "✗ missed", None: "not known"}[check.met]
    return [check.target.label, met, seconds(check.measured_s), seconds(check.target.limit_s), of_limit]


def _joint_row(check: JointCheck) -> list[Cell | str]:
    met = "✓ met" if check.met else "✗ missed"
    return [
        check.label,
        met,
        check.shown(check.measured),
        check.shown(check.limit),
        share(check.measured / check.limit),
    ]


def _mapping(value: object) -> dict[str, object]:
    return dict(value) if isinstance(value, dict) else {}
