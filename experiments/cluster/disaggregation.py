"""Prefill and decode apart, or together, on the same GPUs: where each wins, and why.

    python experiments/cluster/disaggregation.py

writes results/disaggregation.md and results/disaggregation.svg beside this file (under a minute of one core).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from simkit.cluster.disaggregated import serve_disaggregated
from simkit.cluster.fleet import serve_fleet
from simkit.cluster.handover import Disaggregation
from simkit.cluster.result import FleetResult
from simkit.cluster.roster import Member
from simkit.cluster.topology import LinkSpec
from simkit.engine.deployment import Deployment, ReplicaSpec, resolve
from simkit.engine.settings import EngineSettings
from simkit.metrics.result import WATERFALL, Status
from simkit.report.palette import PARTS
from simkit.workloads.presets import preset

HERE = Path(__file__).parent
GPUS = 4
REQUESTS = 1_500
SEEDS = (0, 1, 2)
LINK = "infiniband-ndr"
TOGETHER = "together"


class Case(NamedTuple):
    """A preset, its targets, the rates at which it is tried, and the one that is taken apart."""

    preset: str
    ttft_s: float
    tpot_s: float
    rates_per_s: tuple[float, ...]
    shown_per_s: float


CASES = (
    Case("azure-conv-2023", 0.5, 0.015, (30, 40, 45, 50, 55, 60, 70), 55),
    Case("mooncake-conversation", 5.0, 0.050, (2, 3, 4, 5, 6), 5),
)


class Outcome(NamedTuple):
    """One way at one rate, over the seeds."""

    good: tuple[float, ...]  # share of the requests that met both targets, a seed
    ttft_p50_s: float  # of the first seed, as all that follows
    ttft_p90_s: float
    tpot_p50_s: float
    tpot_p90_s: float
    parts_s: dict[str, float]  # mean waterfall
    moved_gb_per_s: float


def ways() -> list[str]:
    """All four replicas together, and every split of them."""
    return [TOGETHER, *(f"{prefill}P{GPUS - prefill}D" for prefill in range(1, GPUS))]


def serve(way: str, case: Case, rate_per_s: float, seed: int, spec: ReplicaSpec) -> FleetResult:
    """One fleet serves one draw of the preset."""
    workload = preset(case.preset, requests=REQUESTS, rate_per_s=rate_per_s, seed=seed, arrivals="poisson")
    if way == TOGETHER:
        return serve_fleet(workload, [spec] * GPUS, "least_outstanding", seed)
    prefills = int(way[0])
    members = [Member(spec, "prefill")] * prefills + [Member(spec, "decode")] * (GPUS - prefills)
    return serve_disaggregated(workload, members, Disaggregation(link=LinkSpec(kind=LINK)))


def outcome(way: str, case: Case, rate_per_s: float, spec: ReplicaSpec) -> Outcome:
    """Serve with every seed; the same seeds, and so the same requests, for every way."""
    fleets = [serve(way, case, rate_per_s, seed, spec) for seed in SEEDS]
    good = []
    for fleet in fleets:
        ttft_s, tpot_s = latencies(fleet)
        good.append(float(((ttft_s <= case.ttft_s) & (tpot_s <= case.tpot_s)).sum()) / REQUESTS)
    ttft_s, tpot_s = latencies(fleets[0])
    done = fleets[0].requests.status == Status.FINISHED
    moved = fleets[0].handover.bytes_moved if fleets[0].handover is not None else 0
    return Outcome(
        tuple(good),
        *np.quantile(ttft_s, (0.5, 0.9)).tolist(),
        *np.quantile(tpot_s, (0.5, 0.9)).tolist(),
        {part: float(getattr(fleets[0].requests, part)[done].mean()) / 1e9 for part in WATERFALL},
        moved / fleets[0].end_ns,
    )


def latencies(fleet: FleetResult) -> tuple[np.ndarray, np.ndarray]:
    """(TTFT, TPOT) in s of the finished requests; a request of one token has TPOT 0."""
    columns = fleet.requests
    done = columns.status == Status.FINISHED
    ttft_ns = (columns.first_token_ns - columns.arrival_ns)[done]
    rest_ns = (columns.finish_ns - columns.first_token_ns)[done]
    return ttft_ns / 1e9, rest_ns / 1e9 / np.maximum(1, columns.output_tokens[done] - 1)


def draw(path: Path, found: dict[tuple[str, str, float], Outcome]) -> None:
    """For each case the share of good requests over the rate, and the waterfalls at the rate that is shown."""
    colours = ("#1b1c1d", "#0072b2", "#d55e00", "#009e73")
    with matplotlib.rc_context({"svg.hashsalt": "disaggregation", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(9.2, 6.4), layout="constrained")
        grid = figure.subplots(len(CASES), 2)
        for (left, right), case in zip(grid, CASES, strict=True):
            for way, colour in zip(ways(), colours, strict=True):
                means = [100 * np.mean(found[case.preset, way, rate].good) for rate in case.rates_per_s]
                left.plot(case.rates_per_s, means, "-" if way == TOGETHER else "--", marker="o", markersize=3.5,
                          color=colour, label=way)  # fmt: skip
            left.axvline(case.shown_per_s, color="#dcdddf", zorder=0)
            left.set(title=f"{case.preset}: TTFT {case.ttft_s:g} s, TPOT {1000 * case.tpot_s:g} ms",
                     xlabel=f"requests/s on {GPUS} GPUs", ylabel="% of requests in both", ylim=(0, 105))  # fmt: skip
            left.grid(color="#dcdddf", linewidth=0.6)
            left.legend(fontsize=8, frameon=False)
            bars = [way for way in ways() if way in (TOGETHER, best_split(case, found))]
            start = np.zeros(len(bars))
            for part in WATERFALL:
                values = np.array([found[case.preset, way, case.shown_per_s].parts_s[part] for way in bars])
                name = part.removesuffix("_ns")
                right.barh(bars, values, left=start, color=PARTS[name], label=name, height=0.5)
                start += values
            right.set(title=f"mean waterfall at {case.shown_per_s:g} requests/s", xlabel="s")
            right.legend(fontsize=7, frameon=False, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.22))
        figure.savefig(path, metadata={"Date": None, "Creator": None})


def best_split(case: Case, found: dict[tuple[str, str, float], Outcome]) -> str:
    """The split with most good requests at the rate that is shown."""
    return max(ways()[1:], key=lambda way: sum(found[case.preset, way, case.shown_per_s].good))


def page(found: dict[tuple[str, str, float], Outcome], spec: ReplicaSpec) -> str:
    """The tables, in Markdown."""
    lines = [
        "# Prefill and decode apart or together",
        "",
        f"{GPUS} x {spec.architecture.name} on {spec.device.name}, {REQUESTS:,} requests, Poisson arrivals, seeds "
        f"{', '.join(map(str, SEEDS))}, the same for every way; KV over {LINK}, one link a prefill replica. "
        "`together` is four replicas with chunked prefill behind `least_outstanding`; `1P3D` is one replica for "
        "prefill, three for decode. Written by `experiments/cluster/disaggregation.py`.",
        "",
        "![Shares of good requests and waterfalls](disaggregation.svg)",
    ]
    for case in CASES:
        lines += ["", f"## {case.preset}: TTFT {case.ttft_s:g} s and TPOT {1000 * case.tpot_s:g} ms", ""]
        lines += ["Requests in both targets, %, mean of the seeds (least to most):", ""]
        lines += ["| requests/s | " + " | ".join(ways()) + " |", "|---" * (1 + len(ways())) + "|"]
        for rate in case.rates_per_s:
            cells = [spread(found[case.preset, way, rate].good) for way in ways()]
            lines.append(f"| {rate:g} | " + " | ".join(cells) + " |")
        lines += ["", f"At {case.shown_per_s:g} requests/s (seed {SEEDS[0]}), ms:", ""]
        names = [part.removesuffix("_ns") for part in WATERFALL]
        head = ["way", "TTFT p50", "p90", "TPOT p50", "p90", *names, "KV moved, GB/s"]
        lines += ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
        for way in ways():
            row = found[case.preset, way, case.shown_per_s]
            times = [row.ttft_p50_s, row.ttft_p90_s, row.tpot_p50_s, row.tpot_p90_s, *row.parts_s.values()]
            cells = [f"{1000 * value:,.1f}" for value in times]
            lines.append(f"| {way} | " + " | ".join(cells) + f" | {row.moved_gb_per_s:.1f} |")
    return "\n".join(lines) + "\n"


def spread(values: Sequence[float]) -> str:
    """Mean and range, in %."""
    return f"{100 * np.mean(values):.1f} ({100 * min(values):.1f} to {100 * max(values):.1f})"


def main() -> None:
    """Run all and write the page."""
    spec = resolve(Deployment(model="llama-3.1-8b", device="h100", engine=EngineSettings(max_model_len=131_072)))
    found = {
        (case.preset, way, rate): outcome(way, case, rate, spec)
        for case in CASES
        for way in ways()
        for rate in case.rates_per_s
    }
    out = HERE / "results"
    out.mkdir(exist_ok=True)
    draw(out / "disaggregation.svg", found)
    (out / "disaggregation.md").write_text(page(found, spec))
    print(f"wrote {out / 'disaggregation.md'}")


if __name__ == "__main__":
    main()
