"""Check, measure and report every kernel on this GPU, in one run of under 8 minutes.

    python experiments/gpu/kernels.py --out DIR            or with the environment's OUT
    python experiments/gpu/kernels.py --plan               what would be timed; needs no GPU

Checks every kernel against float64, measures what the machine reads, copies and multiplies at best, times every point
of `kernel_points.py` cold, beside torch's ways of doing the same, and writes DIR/kernels.json and DIR/kernels.md, anew
after each group of checks and each point, so that a run that is cut short leaves what it has. Points that the budget
leaves no time for are named. Exit code 1 when a check failed; a missed aim is a line, not a failure. A process of its
own does it: where a check takes more than a minute, or a way of timing more than 100 s, it is ended, and another goes
on behind that (`watched.py`).
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

from kernel_points import POINTS, work  # noqa: E402
from kernel_report import Ceilings, Check, Result, as_json, as_markdown, verdict  # noqa: E402
from machine import describe, require_device, telemetry  # noqa: E402
from point_timing import say, time_points  # noqa: E402
from stages import Stages  # noqa: E402
from watched import watch  # noqa: E402

BUDGET_S = 400.0  # of 480: what is begun is finished, and FlexAttention compiles for half a minute


def plan() -> str:
    """What would be timed."""
    lines = []
    for point in POINTS:
        amount = work(point)
        moved, computed = amount.moved_bytes / 1e6, amount.operations / 1e9
        lines.append(
            f"{point.label}: {moved:.0f} MB, {computed:.1f} GFLOP, against {', '.join(point.against) or 'none'}"
        )
    return "\n".join(lines)


def measure(folder: Path, budget_s: float, started: float, stages: Stages) -> list[Check]:
    """The whole run, which `started` by time.monotonic, its stages before now included; its checks."""
    require_device()
    from ceilings import measure as measure_ceilings
    from kernel_checks import all_checks

    machine = describe()
    say(f"on {machine['device']}")
    folder.mkdir(parents=True, exist_ok=True)
    ceilings = measure_ceilings(stages)
    every = [point.label for point in POINTS]
    checks = all_checks(on_group=lambda found: keep(folder, machine, ceilings, found, [], every), stages=stages)
    say(f"checks: {sum(check.passed for check in checks)} of {len(checks)} passed, {time.monotonic() - started:.0f} s")
    results, left_out = time_points(
        POINTS,
        started + budget_s,
        time.monotonic,
        lambda timed, later: keep(folder, machine, ceilings, checks, timed, later),
        stages,
    )
    machine |= {"seconds": round(time.monotonic() - started), **{f"{k} at the end": v for k, v in telemetry().items()}}
    print(keep(folder, machine, ceilings, checks, results, left_out))
    missed = [result.point.label for result in results if "MISSED" in verdict(result, ceilings)]
    say(f"aims missed: {len(missed)}" + "".join(f"\n  {label}" for label in missed))
    return checks


def keep(
    folder: Path,
    machine: dict[str, object],
    ceilings: Ceilings,
    checks: list[Check],
    results: list[Result],
    left_out: list[str],
) -> str:
    """Write what there is by now; returns the report."""
    text = as_markdown(machine, ceilings, checks, results, left_out)
    (folder / "kernels.md").write_text(text, encoding="utf-8")
    record = as_json(machine, ceilings, checks, results, left_out)
    (folder / "kernels.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return text


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=os.environ.get("OUT"), help="folder for results; else OUT")
    parser.add_argument("--budget", type=float, default=BUDGET_S, metavar="SECONDS", help="begin no point after these")
    parser.add_argument("--plan", action="store_true", help="print what would be timed and stop")
    parser.add_argument("--watched-since", type=float, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.plan:
        print(plan())
        return 0
    if chosen.out is None:
        parser.error("--out: a folder for the results is expected, or OUT in the environment")
    folder = Path(chosen.out)
    log = folder / "stages.jsonl"
    if chosen.watched_since is None:
        require_device()
        given = ["--out", str(folder), "--budget", str(chosen.budget), "--watched-since", str(time.monotonic())]
        return watch([sys.executable, __file__, *given], log)
    return int(any(not check.passed for check in measure(folder, chosen.budget, chosen.watched_since, Stages(log))))


if __name__ == "__main__":
    sys.exit(main())
