"""How often do the intervals of one recorded day of sessions hold the truth? Prints the shares of 100 days.

A generator whose long-run values are found by brute force, from 300 other days of it: sessions begin as a Poisson
stream, have Pareto-many turns (shape 1.5, 3 to 60), log-normal pauses, and contexts that grow by the turn up to 32,000
tokens and repeat all that came before. An hour of it is recorded, with sessions under way at its beginning and its
end, and served by a replica whose KV cache holds six of the longest, so that what was computed is lost on some days.
Each day has one interval from 20 bootstrap samples, as `simkit plan` makes it of a trace.

    python experiments/plan/coverage_sessions.py
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from simkit.engine.deployment import Deployment, ReplicaSpec, resolve
from simkit.engine.settings import EngineSettings
from simkit.metrics.intervals import Interval
from simkit.metrics.latency import Latencies
from simkit.metrics.slo import promise
from simkit.plan.confidence import long_run, of_recording, spread_of
from simkit.plan.fleet import share_and_latencies
from simkit.plan.observation import Observation, parsed, statistic_of
from simkit.plan.traffic import resampled
from simkit.workloads.workload import Prefixes, Workload

DAYS, TRUE_DAYS, SAMPLES = 100, 300, 20
HOUR_S, SESSIONS_PER_S, RATE_PER_S = 3600.0, 0.1, 4.0
TURNS, SHAPE = (3, 60), 1.5
PAUSE_S, FIRST_TOKENS, NEW_TOKENS, ANSWER_TOKENS = (20.0, 1.0), (4000.0, 0.8), (500.0, 1.0), (30.0, 0.8)  # mean, sigma
CONTEXT, BLOCK, BLOCKS = 32_000, 16, 12_000
KEYS = ("ttft_mean_s", "ttft_p90_s", "ttft_p99_s", "tpot_mean_s", "tpot_p90_s")

Seen = tuple[Observation, Latencies]


def main() -> None:
    """Print how often each interval holds each truth."""
    spec = server()
    others = [served(spec, day(10_000 + number)) for number in range(TRUE_DAYS)]
    truths = {"long-run value": {key: pooled(others, key) for key in KEYS}}
    truths["median of days"] = {key: float(np.median([seen.figures[key] for seen, _ in others])) for key in KEYS}
    held: dict[tuple[str, str, str], int] = {}
    for number in range(DAYS):
        recorded = day(number)
        samples = [served(spec, resampled(recorded, seed)) for seed in range(1, SAMPLES + 1)]
        own, seen = served(spec, recorded)[0], [one for one, _ in samples]
        intervals = {
            "of a trace": of_recording(own, seen),
            "middle 95 % of its samples": spread_of(seen),
            "as if its samples were other days": long_run(samples),
        }
        for name, found in intervals.items():
            count(held, name, found, {"its own figure": own.figures, **truths})
    for truth in ("its own figure", *truths):
        for name in ("of a trace", "middle 95 % of its samples", "as if its samples were other days"):
            shares = ", ".join(f"{key} {held[name, truth, key] / DAYS:.2f}" for key in KEYS)
            print(f"{truth} in the interval {name}: {shares}")


def count(
    held: dict[tuple[str, str, str], int],
    name: str,
    found: dict[str, Interval],
    truths: dict[str, dict[str, float]],
) -> None:
    """Add which truths the intervals hold."""
    for truth, values in truths.items():
        for key in KEYS:
            held[name, truth, key] = held.get((name, truth, key), 0) + found[key].holds(values[key])


def server() -> ReplicaSpec:
    """Llama-3.1-8B on an H100, with room for so many blocks only."""
    engine = EngineSettings(max_num_batched_tokens=2048)
    return replace(resolve(Deployment(model="llama-3.1-8b", device="h100", engine=engine)), num_blocks=BLOCKS)


def served(spec: ReplicaSpec, workload: Workload) -> Seen:
    """One replica serves it."""
    return share_and_latencies(spec, workload, 1, RATE_PER_S, promise({"ttft_p90_s": 5.0}))


def pooled(days: Sequence[Seen], key: str) -> float:
    """A figure of all requests of all days."""
    metric, statistic = parsed(key)
    return statistic_of(np.concatenate([getattr(latencies, f"{metric}_s") for _, latencies in days]), statistic)


def day(seed: int) -> Workload:
    """An hour of the traffic, recorded after an hour of it."""
    rng = np.random.default_rng(seed)
    begins = rng.uniform(-HOUR_S, HOUR_S, rng.poisson(2 * HOUR_S * SESSIONS_PER_S))
    parts = [session(rng, begin) for begin in begins]
    inside = [(arrivals >= 0) & (arrivals < HOUR_S) for arrivals, _, _ in parts]
    arrivals, prompts, answers = (
        np.concatenate([p[i][k] for p, k in zip(parts, inside, strict=True)]) for i in range(3)
    )
    of = np.repeat(np.arange(len(parts)), [int(k.sum()) for k in inside])
    order = np.argsort(arrivals, kind="stable")
    blocks = prompts[order] // BLOCK
    start = np.concatenate(([0], np.cumsum(blocks)))
    place = np.arange(start[-1]) - np.repeat(start[:-1], blocks)
    ids = np.repeat(of[order], blocks) * CONTEXT + place
    return Workload(
        "sessions",
        np.rint(1e6 * arrivals[order]).astype(np.int64),
        prompts[order].astype(np.int32),
        answers[order].astype(np.int32),
        session_id=tuple(f"s{i}" for i in of[order].tolist()),
        prefixes=Prefixes(BLOCK, start, ids),
    )


Column = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Counts = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


def session(rng: np.random.Generator, begin_s: float) -> tuple[Column, Counts, Counts]:
    """(arrivals in s, prompt tokens, answer tokens) of its turns."""
    least, most = TURNS
    turns = int(min(most, least * (1 - rng.random()) ** (-1 / SHAPE)))
    pauses = log_normal(rng, PAUSE_S, turns)
    answers = np.maximum(1, log_normal(rng, ANSWER_TOKENS, turns)).astype(np.int64)
    new = np.maximum(1, log_normal(rng, NEW_TOKENS, turns)).astype(np.int64)
    new[0] = max(1, int(log_normal(rng, FIRST_TOKENS, 1)[0]))
    prompts = np.cumsum(new) + np.cumsum(answers) - answers
    return begin_s + np.cumsum(pauses) - pauses[0], np.minimum(prompts, CONTEXT), answers


def log_normal(rng: np.random.Generator, mean_sigma: tuple[float, float], count: int) -> Column:
    """Of this mean, and this standard deviation of the logarithm."""
    mean, sigma = mean_sigma
    return rng.lognormal(np.log(mean) - sigma**2 / 2, sigma, count)


if __name__ == "__main__":
    main()
