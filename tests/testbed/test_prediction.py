"""Where a step takes exactly what the tables say, prediction and measurement are the same run."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest

pytest.importorskip("torch", reason="the testbed runs torch; install the extra gpu, or its CPU build")

from simkit.engine.settings import EngineSettings
from simkit.engine.state import I64, Limits, Replica
from simkit.metrics.comparison import DECODE, MIXED, PREFILL, StepTimes, compare_runs, step_errors
from simkit.models.steptables import constant_tables, scaled
from simkit.report.side_by_side import comparison_page, comparison_tables
from simkit.testbed.drafting import Drafting
from simkit.testbed.executor import Finished, Identity
from simkit.testbed.inputs import Span, StepInputs
from simkit.testbed.knotted_step import KnottedStep, with_drafts
from simkit.testbed.measured import MeasuredRun, MeasuredStep
from simkit.testbed.replay import predicted, replay, step_times
from simkit.testbed.serving import serve_measured
from simkit.testbed.spread import drawn_factors, predicted_with_spread
from simkit.workloads.workload import Workload

STEP_NS, TOKEN_NS, ROW_NS = 1_000_000, 7_000, 900


class Machine:
    """An executor whose steps take what constant tables say, by a clock that only it moves."""

    num_blocks, block_size, vocab = 60, 4, 100
    identity = Identity("none", "none", {}, {})

    def __init__(self) -> None:
        self.time_ns = 0
        self.free_ns = 0  # when it is done with what was launched

    def now_ns(self) -> int:
        return self.time_ns

    def sleep_until(self, time_ns: int) -> None:
        self.time_ns = max(self.time_ns, time_ns)

    def start(self) -> "Machine":
        self.time_ns = self.free_ns = 0
        return self

    def run(self, step: StepInputs) -> I64:
        self.time_ns += step_ns(step)
        return np.zeros(len(step.sampled), dtype=np.int64)

    def launch(self, step: StepInputs, now_ns: Callable[[], int]) -> tuple[int, "Coming"]:
        ready = now_ns()
        self.free_ns = max(self.free_ns, ready) + step_ns(step)
        return ready, Coming(self, Finished(np.zeros(len(step.sampled), dtype=np.int64), self.free_ns))


class Coming(NamedTuple):
    """A step that the machine is done with at a time known beforehand."""

    machine: Machine
    finished: Finished

    def result(self) -> Finished:
        self.machine.sleep_until(self.finished.at_ns)
        return self.finished

    def cancel(self) -> bool:
        return False


def step_ns(step: StepInputs) -> int:
    return STEP_NS + TOKEN_NS * len(step.tokens) + ROW_NS * len(step.sampled)


class Instant(Machine):
    """A draft that takes no time."""

    def run(self, step: StepInputs) -> I64:
        return np.zeros(len(step.sampled), dtype=np.int64)


TABLES = constant_tables(64, 8, token_ns=TOKEN_NS, request_ns=ROW_NS, step_ns=STEP_NS)


@pytest.fixture(scope="module")
def busy() -> Workload:
    """Forty requests, faster than they can be served at times."""
    rng = np.random.default_rng(2)
    return Workload(
        name="busy",
        arrival_us=np.cumsum(rng.exponential(4_000, 40)).astype(np.int64),
        prompt_tokens=rng.integers(10, 40, 40).astype(np.int32),
        output_tokens=rng.integers(8, 24, 40).astype(np.int32),
    )


def limits(**settings: object) -> Limits:
    fixed = {"block_size": 4, "async_scheduling": False, "enable_prefix_caching": False}
    return EngineSettings.model_validate(fixed | settings).limits(60, 64, 64, 8)


def served(workload: Workload, rules: Limits, **more: object) -> MeasuredRun:
    machine = Machine()
    return serve_measured(workload, machine, rules, clock=machine.start, **more)


@pytest.mark.parametrize(
    ("discipline", "drafts", "asynchronous"),
    [
        ("vllm-v1", 0, False),
        ("vllm-v1", 3, False),
        ("vllm-v1", 0, True),
        ("sarathi", 0, False),
        ("sarathi", 0, True),
        ("vllm-v0", 0, True),
        ("sglang", 0, True),
    ],
)
def test_both_clocks_give_the_same_run(busy: Workload, drafts: int, discipline: str, asynchronous: bool) -> None:
    rules = limits(
        async_scheduling=asynchronous, discipline=discipline,
        **({"speculative_tokens": drafts, "acceptance": 0.6} if drafts else {}),
    )  # fmt: skip
    drafting = Drafting(Instant()) if drafts else None
    run = served(busy, rules, drafting=drafting, discipline=discipline)
    told = predicted(run, TABLES)
    ours, theirs = run.result.requests, told.requests
    assert drafts or discipline != "vllm-v1" or ours.preemptions.sum() > 0
    assert run.asynchronous == asynchronous == bool(run.idle_plans_ns)
    for name in ("first_token_ns", "finish_ns", "queue_ns", "prefill_ns", "preempted_ns", "generated_tokens"):
        assert np.array_equal(getattr(ours, name), getattr(theirs, name)), name
    # what of a mixed step its prompts took is not measured, so it is all booked as decode
    assert np.array_equal(ours.decode_ns + ours.stalled_ns, theirs.decode_ns + theirs.stalled_ns)
    assert (run.result.steps, run.result.busy_ns, run.result.end_ns) == (told.steps, told.busy_ns, told.end_ns)
    again = replay(run, TABLES)
    assert (again.identical, again.difference) == (len(run.steps), "")
    assert again.steps is not None
    assert np.array_equal(again.steps.device_ns, again.steps.expected_device_ns)


def test_a_drafts_constant_is_the_models_not_the_settings(busy: Workload) -> None:
    """Where proposing takes 2 ms a step, and the settings say 7, the model's 2 give the same run on both clocks."""
    machine = Machine()

    class Slow(Drafting):
        def propose(self, replica: Replica, spans: Sequence[Span], known: Sequence[I64]) -> None:
            machine.time_ns += 2_000_000 if any(span.samples > 1 for span in spans) else 0
            super().propose(replica, spans, known)

    rules = limits(speculative_tokens=3, acceptance=0.6, draft_step_ms=7.0, draft_request_ms=1.0)
    run = serve_measured(busy, machine, rules, clock=machine.start, drafting=Slow(Instant()))
    nothing = np.zeros(1)
    model = KnottedStep(np.ones(1, dtype=np.int64), nothing, 0.0, 0.0, 0.0, 0.0, 0.002, 0.0, 0.0)
    told = predicted(with_drafts(model, run), TABLES)
    assert np.array_equal(run.result.requests.finish_ns, told.requests.finish_ns)
    assert np.array_equal(run.result.requests.first_token_ns, told.requests.first_token_ns)
    assert predicted(run, TABLES).end_ns > told.end_ns


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("discipline", ["vllm-v1", "sarathi"])
def test_with_all_factors_one_the_spread_changes_nothing(busy: Workload, asynchronous: bool, discipline: str) -> None:
    """Against the compiled loop, with host time too, hidden or not."""
    run = served(busy, limits(async_scheduling=asynchronous, discipline=discipline), discipline=discipline)
    tables = TABLES._replace(host_ns=np.where(np.arange(9) > 0, 300_000.0 + 40_000.0 * np.arange(9), 0.0))
    spread, told = predicted_with_spread(run, tables, [np.ones(7)]), predicted(run, tables)
    for name in ("first_token_ns", "finish_ns", "queue_ns", "preempted_ns", "generated_tokens", "host_ns"):
        assert np.array_equal(getattr(spread.requests, name), getattr(told.requests, name)), name
    assert (spread.steps, spread.busy_ns, spread.end_ns) == (told.steps, told.busy_ns, told.end_ns)
    assert np.array_equal(spread.itl.count, told.itl.count)


def test_factors_stretch_steps_in_the_order_of_their_log(busy: Workload) -> None:
    run = served(busy, limits())
    one_in_four = [np.array([1.0, 1.0, 1.0, 2.0])] * 3
    told, spread = predicted(run, TABLES), predicted_with_spread(run, TABLES, one_in_four)
    assert spread.busy_ns / spread.steps == pytest.approx(1.25 * told.busy_ns / told.steps, rel=0.02)
    drawn = drawn_factors([np.array([1.0, 2.0]), np.array([3.0, 4.0, 5.0])], seed=1)
    first = [next(drawn) for _ in range(10)]
    for part in (first[:5], first[5:]):
        assert part in ([1.0, 2.0, 3.0, 4.0, 5.0], [3.0, 4.0, 5.0, 1.0, 2.0])


def test_a_log_that_the_engine_would_not_have_written_is_found_out(busy: Workload) -> None:
    run = served(busy, limits())
    fewer = replace(run.steps[30], batch=run.steps[30].batch[:-1])
    again = replay(replace(run, steps=(*run.steps[:30], fewer, *run.steps[31:])))
    assert again.identical == 30
    assert again.difference.startswith("step 31: the engine plans")
    wrong = replace(run.steps[5], free_blocks=run.steps[5].free_blocks + 1)
    assert replay(replace(run, steps=(*run.steps[:5], wrong, *run.steps[6:]))).difference.startswith("step 6: (waiting")


def test_errors_are_those_put_in(busy: Workload) -> None:
    run = served(busy, limits())
    slow = scaled(TABLES, 1.1)
    again = replay(run, slow)
    assert again.steps is not None
    for error in step_errors(again.steps):
        assert (error.median_abs, error.bias) == (pytest.approx(0.1, abs=1e-5), pytest.approx(0.1, abs=1e-5))
    comparison = compare_runs(run.result, predicted(run, slow), again.steps)
    assert comparison.pair("itl_p50_s").error == pytest.approx(0.1, abs=0.01)
    assert comparison.pair("steps").measured == len(run.steps)


def test_steps_are_told_apart_by_what_they_compute(busy: Workload) -> None:
    run = served(busy, limits())
    again = replay(run, TABLES)
    assert again.steps is not None
    for kind, step in zip(again.steps.kind.tolist(), run.steps, strict=True):
        beyond = {before >= int(busy.prompt_tokens[row]) for row, _, before in step.batch}
        assert beyond == {PREFILL: {False}, DECODE: {True}, MIXED: {False, True}}[kind]


def test_host_time_is_counted_only_where_the_engine_went_on() -> None:
    apart = Workload(
        name="apart",
        arrival_us=np.array([0, 5_000_000]),
        prompt_tokens=np.array([4, 4], dtype=np.int32),
        output_tokens=np.array([3, 3], dtype=np.int32),
    )
    again = replay(served(apart, limits()), TABLES)
    assert again.steps is not None
    assert again.steps.host_ns.tolist() == [-1, 0, 0, -1, 0, 0]


def test_host_time_of_overlapping_steps_is_from_tokens_to_the_next_plan(busy: Workload) -> None:
    run = served(busy, limits(async_scheduling=True))
    times = [(0, 2, 22, 23), (3, 4, 42, 44), (24, 26, 62, 63), (45, 47, 82, 83), (90, 91, 111, 112)]
    steps = tuple(MeasuredStep(*times_ns, ((0, 1, 50 + i),), 0, 9) for i, times_ns in enumerate(times))
    found = step_times(replace(run, steps=steps), 5, [(0, 0)] * 5)
    # the first two are planned at once, the last after a pause
    assert found.host_ns.tolist() == [-1, -1, 26 - 22, 47 - 42, -1]
    assert found.device_ns.tolist() == [20, 20, 20, 20, 20]


def test_the_page_holds_everything_and_escapes_what_it_is_told(busy: Workload) -> None:
    run = served(busy, limits())
    again = replay(run, TABLES)
    assert again.steps is not None
    comparison = compare_runs(run.result, predicted(run, scaled(TABLES, 1.2)), again.steps)
    page = comparison_page(comparison, "<b>title</b>", [("Device", "<script>")], "step 3: <i>gone</i>")
    assert "&lt;b&gt;title" in page
    assert "step 3: &lt;i&gt;gone" in page
    assert page.count("<svg") == 4 + 3 + 1
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
    assert len(comparison_tables(comparison)) == 2


def test_step_errors_by_hand() -> None:
    ones = np.ones(4, dtype=np.int64)
    times = StepTimes(
        kind=np.array([PREFILL, DECODE, DECODE, DECODE], dtype=np.int8),
        start_ns=ones,
        tokens=ones,
        device_ns=np.array([100, 10, 20, 40]),
        host_ns=ones,
        expected_device_ns=np.array([150, 11, 20, 30]),
        expected_host_ns=ones,
    )
    prefill, decode, every = step_errors(times)
    assert (prefill.kind, prefill.steps, prefill.bias) == ("prefill", 1, pytest.approx(0.5))
    assert (decode.steps, decode.median_abs, decode.bias) == (3, pytest.approx(0.1), pytest.approx(61 / 70 - 1))
    assert every.bias == pytest.approx(211 / 170 - 1)
