"""A measured run beside its prediction: latencies, throughput, memory, batches, and single steps by kind."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from simkit.metrics.result import F64, I8, I64, RunResult
from simkit.metrics.summary import Tree, summarize

PREFILL, DECODE, MIXED = range(3)
KINDS = ("prefill", "decode", "mixed")
QUANTILES = ("p50", "p90", "p99")
LATENCIES = ("ttft", "tpot", "itl", "e2e")


@dataclass(frozen=True)
class StepTimes:
    """The steps of a measured run, each beside what the step-time model says of that very batch."""

    kind: I8  # [steps] PREFILL: prompts only; DECODE: none; MIXED: both
    start_ns: I64  # [steps] when it was scheduled, from the start of the run
    tokens: I64  # [steps] computed
    device_ns: I64  # [steps] measured
    host_ns: I64  # [steps] measured, since the tokens of the step before were known; -1 where the engine idled
    expected_device_ns: I64  # [steps]
    expected_host_ns: I64  # [steps]


@dataclass(frozen=True)
class Pair:
    """One quantity; None where there is nothing to measure."""

    name: str  # ends in its unit: ttft_p50_s
    measured: float | None
    predicted: float | None

    @property
    def error(self) -> float | None:
        """predicted / measured - 1."""
        if self.measured is None or self.predicted is None or self.measured == 0:
            return None
        return self.predicted / self.measured - 1.0


@dataclass(frozen=True)
class KindError:
    """How far the step times of one kind of step are off, as shares of the measured time."""

    kind: str
    steps: int
    measured_p50_s: float
    expected_p50_s: float
    median_abs: float
    p90_abs: float
    bias: float  # all expected time / all measured time - 1


@dataclass(frozen=True)
class Comparison:
    """A workload served for real, and the same on the virtual clock."""

    measured: RunResult
    predicted: RunResult
    pairs: tuple[Pair, ...]
    kinds: tuple[KindError, ...]
    steps: StepTimes

    def pair(self, name: str) -> Pair:
        """The quantity of that name; KeyError if there is none."""
        return {pair.name: pair for pair in self.pairs}[name]


def compare_runs(measured: RunResult, predicted: RunResult, steps: StepTimes) -> Comparison:
    """Everything that is printed side by side, from both runs' books and the steps' times."""
    trees = (summarize(measured), summarize(predicted))
    names: list[tuple[str, tuple[str, ...]]] = [
        (f"{m}_{q}_s", ("latency_of_this_run_s", m, q)) for m in LATENCIES for q in QUANTILES
    ]
    names += [
        ("requests_per_s", ("throughput", "requests_per_s")),
        ("output_tokens_per_s", ("throughput", "output_tokens_per_s")),
        ("kv_mean_share", ("kv", "mean_used")),
        ("kv_peak_share", ("kv", "peak_used")),
        ("batch_requests_mean", ("batch", "requests_mean")),
        ("batch_requests_max", ("batch", "requests_max")),
        ("batch_tokens_mean", ("batch", "tokens_mean")),
        ("steps", ("batch", "steps")),
        ("preemptions", ("preemptions",)),
        ("duration_s", ("duration_s",)),
    ]
    pairs = [Pair(name, *(_number(tree, path) for tree in trees)) for name, path in names]
    timed = steps.host_ns >= 0
    if timed.any():
        pairs.append(
            Pair(
                "host_a_step_mean_s",
                float(steps.host_ns[timed].mean()) / 1e9,
                float(steps.expected_host_ns[timed].mean()) / 1e9,
            )
        )
    return Comparison(measured, predicted, tuple(pairs), step_errors(steps), steps)


def step_errors(steps: StepTimes) -> tuple[KindError, ...]:
    """The errors of each kind of step that there was, and of all."""
    parts = [(name, steps.kind == kind) for kind, name in enumerate(KINDS)]
    parts.append(("all", np.ones(len(steps.kind), dtype=np.bool_)))
    return tuple(
        _kind_error(name, steps.device_ns[part] / 1e9, steps.expected_device_ns[part] / 1e9)
        for name, part in parts
        if part.any()
    )


def _kind_error(name: str, measured_s: F64, expected_s: F64) -> KindError:
    off = np.abs(expected_s / measured_s - 1.0)
    return KindError(
        kind=name,
        steps=len(off),
        measured_p50_s=float(np.median(measured_s)),
        expected_p50_s=float(np.median(expected_s)),
        median_abs=float(np.median(off)),
        p90_abs=float(np.quantile(off, 0.9)),
        bias=float(expected_s.sum() / measured_s.sum() - 1.0),
    )


def comparison_tree(comparison: Comparison) -> Tree:
    """The comparison as `--json` prints it; errors are shares, predicted / measured - 1."""
    return {
        "complete": comparison.measured.complete,
        "quantities": {
            pair.name: {"measured": pair.measured, "predicted": pair.predicted, "error": pair.error}
            for pair in comparison.pairs
        },
        "steps": {error.kind: {k: v for k, v in vars(error).items() if k != "kind"} for error in comparison.kinds},
    }


def _number(tree: Tree, path: Sequence[str]) -> float | None:
    value: object = tree
    for key in path:
        assert isinstance(value, Mapping)
        value = value[key]
    return float(value) if isinstance(value, int | float) else None
