"""Choose each kernel's tiles by timing them on this GPU, and write the table of configurations anew.

    python experiments/gpu/tune.py --out DIR [--budget 540]     DIR/configurations.json and DIR/tune.json
    python experiments/gpu/tune.py --plan                       what would be tried; needs no GPU

The regimes of `tune_points.py` are gone through in order, the most used first, each candidate timed cold at the
regime's points; what the budget leaves no time for keeps its entry. Both files are written anew after each regime, so
that a run that is cut short leaves what it has; tune.json then says `"checked": false`. Then all kernels are checked
against float64 with the new table: exit code 1 if one fails. A candidate or a check that takes more than a minute is
ended with its process, and another process goes on behind it (`watched.py`). To adopt the result, copy
DIR/configurations.json over simkit/kernels/configurations.json and run the kernels' tests: what was timed must still
compile without a spill.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

from device_lost import leave_if_lost  # noqa: E402
from kernel_report import Check  # noqa: E402
from machine import describe, require_device  # noqa: E402
from point_timing import say, time_call  # noqa: E402
from stages import Row, Stages  # noqa: E402
from tune_points import REGIMES, Candidate, Regime, Tried, best, entry, merged, score  # noqa: E402
from watched import watch  # noqa: E402

from simkit.kernels.configurations import Configuration  # noqa: E402

BUDGET_S = 540.0
CHECKS_S = 150.0  # of it, for the checks of the new table
POINT_S = 60.0  # of a candidate at one point, at most

TimePoint = Callable[[Regime, Candidate, int], float]  # microseconds at the point of this number; raises RuntimeError


def times_of(regime: Regime, candidate: Candidate, time_point: TimePoint) -> Iterator[Row]:
    """At each point, or up to one with the reason why there is no time."""
    for number in range(len(regime.points)):
        try:
            yield time_point(regime, candidate, number)
        except RuntimeError as error:
            yield str(error)
            return


def tried_of(candidate: Candidate, rows: Sequence[Row], cut: str) -> Tried:
    """Its score over all points, or why there is none."""
    failed = cut or next((row for row in rows if isinstance(row, str)), "")
    return Tried(candidate, float("inf"), failed) if failed else Tried(candidate, score(rows))


def tune(
    regimes: Sequence[Regime],
    time_point: TimePoint,
    end_s: float,
    clock: Callable[[], float],
    on_regime: Callable[[dict[str, list[Tried]]], object] | None = None,
    stages: Stages | None = None,
) -> dict[str, list[Tried]]:
    """What was tried of each regime, by label, until the time is over; a regime gets its share of what is left.

    `on_regime` is given what there is after each. A candidate may take POINT_S a point where `stages` are watched.
    """
    stages = stages or Stages()
    found: dict[str, list[Tried]] = {}
    for number, regime in enumerate(regimes):
        share_end_s = clock() + (end_s - clock()) / (len(regimes) - number)
        tried: list[Tried] = []
        over = f"{regime.label}: over"
        done = stages.known(over) is not None
        for i, candidate in enumerate(regime.candidates):
            name = f"{regime.label}: candidate {i + 1}"
            if stages.known(name) is None and (done or clock() >= (share_end_s if best(tried) else end_s)):
                break
            times = stages.run(name, POINT_S, partial(times_of, regime, candidate, time_point))
            tried.append(tried_of(candidate, *times))
            leave_if_lost()
        stages.run(over, POINT_S, lambda: iter(()))  # its share of the time is not given to it again
        if tried:
            found[regime.label] = tried
            say(f"{regime.label}: {len(tried)} tried, {best(tried) or 'none ran'}")
            if on_regime is not None:
                on_regime(found)
    return found


def device_time_point(architecture: int) -> TimePoint:
    """Time a candidate on the device."""
    from kernel_calls import calls_of

    from simkit.kernels.configurations import read, using

    committed = read()

    def time_point(regime: Regime, candidate: Candidate, number: int) -> float:
        with using(merged(committed, [entry(regime, candidate, architecture, "tried")])):
            timing = time_call(calls_of(regime.points[number]).ours)
        if isinstance(timing, str):
            raise RuntimeError(timing)
        return timing.median_us

    return time_point


def plan() -> str:
    """What would be tried."""
    return "\n".join(
        f"{regime.label}: {len(regime.candidates)} candidates at {len(regime.points)} points" for regime in REGIMES
    )


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=os.environ.get("OUT"), help="folder for results; else OUT")
    parser.add_argument("--budget", type=float, default=BUDGET_S, metavar="SECONDS")
    parser.add_argument("--plan", action="store_true", help="print what would be tried and stop")
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
    return run(folder, chosen.budget, chosen.watched_since, Stages(log))


def run(folder: Path, budget_s: float, started: float, stages: Stages) -> int:
    """Tune on the device, check, and write what came out; the exit code. It `started` by time.monotonic."""
    import torch
    from kernel_checks import all_checks

    from simkit.kernels.configurations import architecture_of, read, using, write

    machine = describe()
    architecture = architecture_of(torch.device("cuda"))
    end_s = started + max(0.0, budget_s - CHECKS_S)
    folder.mkdir(parents=True, exist_ok=True)

    def table_of(found: dict[str, list[Tried]]) -> tuple[Configuration, ...]:
        basis = f"timed, {machine['device']}, {str(machine['date'])[:10]}"
        winners = [(regime, best(found.get(regime.label, []))) for regime in REGIMES]
        return merged(read(), [entry(regime, won.candidate, architecture, basis) for regime, won in winners if won])

    def keep(found: dict[str, list[Tried]], failed: list[Check] | None = None) -> None:
        write(table_of(found), folder / "configurations.json")
        record = {
            "format": "simkit.tune/1",
            "machine": machine,
            "tried": {label: [one._asdict() for one in tried] for label, tried in found.items()},
            "checked": failed is not None,
            "failed_checks": [check._asdict() for check in failed or []],
        }
        (folder / "tune.json").write_text(json.dumps(record, indent=1, default=str) + "\n", encoding="utf-8")

    found = tune(REGIMES, device_time_point(architecture), end_s, time.monotonic, keep, stages)
    with using(table_of(found)):
        failed = [check for check in all_checks(stages=stages) if not check.passed]
    keep(found, failed)
    for regime in REGIMES:
        won = best(found.get(regime.label, []))
        print(f"{regime.label}: {won.candidate if won else 'keeps its entry'}")
    for check in failed:
        print(f"FAILED: {check}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
