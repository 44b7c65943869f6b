"""The measured loop's books and its log."""

import gzip
import json
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("torch", reason="the testbed runs torch; install the extra gpu, or its CPU build")

from simkit.calibrate.step_log import read_step_log
from simkit.engine.replica import new_replica
from simkit.engine.simulate import load
from simkit.engine.state import ABORT, Limits, Replica, records
from simkit.engine.stepping import complete, plan
from simkit.errors import InputError
from simkit.metrics.result import WATERFALL, Status
from simkit.testbed import serving
from simkit.testbed.decoder import Decoder, random_decoder
from simkit.testbed.executor import Executor, Launched
from simkit.testbed.inputs import StepInputs
from simkit.testbed.measured import MeasuredRun
from simkit.testbed.measured_run import write_measured_run
from simkit.testbed.replay import replay
from simkit.testbed.serving import serve_measured
from simkit.testbed.torch_executor import TorchExecutor
from simkit.testbed.wall_clock import Clock
from simkit.workloads.workload import Workload

MakeLimits = Callable[..., Limits]
MakeExecutor = Callable[..., Executor]
PATIENCE_S = 30.0  # for a plan that is made in under a millisecond on an idle machine


@pytest.fixture(scope="module")
def spread() -> Workload:
    """Twelve requests over a third of a second."""
    rng = np.random.default_rng(1)
    return Workload(
        name="spread",
        arrival_us=np.cumsum(rng.exponential(30_000, 12)).astype(np.int64),
        prompt_tokens=rng.integers(1, 40, 12).astype(np.int32),
        output_tokens=rng.integers(1, 20, 12).astype(np.int32),
        request_id=tuple(f"r{i}" for i in range(12)),
    )


@pytest.fixture(scope="module", params=[False, True], ids=["one step at a time", "asynchronous"])
def run(spread: Workload, executor: MakeExecutor, limits: MakeLimits, request: pytest.FixtureRequest) -> MeasuredRun:
    """The twelve by this machine's clock."""
    return serve_measured(spread, executor(40), limits(40, tokens=32, requests=4, async_scheduling=request.param))


def logged(run: MeasuredRun, path: Path) -> list[dict[str, object]]:
    write_measured_run(run, path)
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


def test_wall_time_is_booked_to_the_nanosecond(run: MeasuredRun) -> None:
    requests = run.result.requests
    assert run.result.complete
    assert (requests.status == Status.FINISHED).all()
    assert np.array_equal(requests.generated_tokens, run.workload.output_tokens)
    parts = sum(getattr(requests, part) for part in WATERFALL)
    assert np.array_equal(parts, requests.finish_ns - requests.arrival_ns)
    # nobody is scheduled before having come; steps end in order; a step is planned after the end of the one before, or
    # with asynchronous scheduling of the one before that
    for step, after in zip(run.steps, run.steps[1:], strict=False):
        assert step.schedule_start_ns <= step.schedule_end_ns < step.update_start_ns <= step.update_end_ns
        assert step.schedule_end_ns <= after.schedule_start_ns
        assert step.update_start_ns < after.update_start_ns
        assert all(run.workload.arrival_us[row] * 1000 <= step.schedule_start_ns for row, _, _ in step.batch)
    behind = 2 if run.asynchronous else 1
    for step, after in zip(run.steps, run.steps[behind:], strict=False):
        assert step.update_end_ns <= after.schedule_start_ns
    # the device is busy from when a step is ready, and the one before done, to when its tokens are known
    busy, done = 0, 0
    for step in run.steps:
        busy += step.update_start_ns - max(step.schedule_end_ns, done)
        done = step.update_start_ns
    assert run.result.busy_ns == busy


def test_one_step_at_a_time_ends_before_the_next_is_planned(
    spread: Workload, executor: MakeExecutor, limits: MakeLimits
) -> None:
    run = serve_measured(spread, executor(40), limits(40, tokens=32, requests=4, async_scheduling=False))
    assert all(
        step.update_end_ns <= after.schedule_start_ns for step, after in zip(run.steps, run.steps[1:], strict=False)
    )


@dataclass
class Waiting:
    """An executor of whose steps none ends before the scheduler has been asked for the one after it.

    A scheduler that waits for a step before it plans the next one would wait for ever: that is noted after
    `PATIENCE_S`, once, and the rest of the run is let through.
    """

    inner: TorchExecutor
    plans: int = 0
    alone: list[int] = field(default_factory=list)  # steps that ended without another plan
    asked: threading.Condition = field(default_factory=threading.Condition)

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)

    def plan(self, replica: Replica, now_ns: int) -> int:
        """The engine's own, counted."""
        row = plan(replica, now_ns)
        with self.asked:
            self.plans += 1
            self.asked.notify_all()
        return row

    def launch(self, step: StepInputs, now_ns: Callable[[], int]) -> tuple[int, Launched]:
        made = self.plans

        def work() -> np.ndarray:
            with self.asked:
                if not self.asked.wait_for(lambda: self.plans > made, 0.0 if self.alone else PATIENCE_S):
                    self.alone.append(made)
            return self.inner.run(step)

        return now_ns(), self.inner.thread.submit(work, now_ns)


def test_every_step_of_asynchronous_scheduling_runs_while_another_is_planned(
    spread: Workload, executor: MakeExecutor, limits: MakeLimits, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = Waiting(executor(40))
    monkeypatch.setattr(serving, "engine", lambda _: SimpleNamespace(plan=waiting.plan))
    run = serve_measured(spread, waiting, limits(40, tokens=32, requests=4, async_scheduling=True))
    assert not run.failure
    assert waiting.alone == []
    # and so says the log: while a step ran, the next one was planned, or the scheduler found nobody for it
    asked = np.sort([*(step.schedule_start_ns for step in run.steps), *run.idle_plans_ns])
    for step in run.steps:
        after = asked[np.searchsorted(asked, step.schedule_start_ns, "right")]
        assert step.schedule_end_ns <= after < step.update_start_ns


def test_waiting_for_a_step_before_the_next_plan_would_be_noticed(
    spread: Workload, executor: MakeExecutor, limits: MakeLimits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same with a scheduler that asks for the result at once."""
    waiting = Waiting(executor(40))
    launch = waiting.launch

    def launch_and_wait(step: StepInputs, now_ns: Callable[[], int]) -> tuple[int, Launched]:
        ready, launched = launch(step, now_ns)
        launched.result()
        return ready, launched

    monkeypatch.setattr(sys.modules[__name__], "PATIENCE_S", 0.1)
    monkeypatch.setattr(waiting, "launch", launch_and_wait)
    monkeypatch.setattr(serving, "engine", lambda _: SimpleNamespace(plan=waiting.plan))
    serve_measured(spread, waiting, limits(40, tokens=32, requests=4, async_scheduling=True))
    assert len(waiting.alone) > 10


def test_every_token_is_delivered_when_its_step_ended(run: MeasuredRun) -> None:
    for row, times in enumerate(run.token_ns):
        ends = [step.update_end_ns for step in run.steps if any(entry[0] == row for entry in step.batch)]
        # steps of a prompt's first chunks deliver nothing
        assert times.tolist() == ends[len(ends) - int(run.workload.output_tokens[row]) :]
        assert len(run.outputs[row]) == len(times)


def test_log_replayed_through_the_engine_is_the_same_steps(run: MeasuredRun) -> None:
    """The decisions hang on times alone: given the log's, the compiled engine plans the same batches."""
    requests, content = load(run.workload, np.arange(len(run.workload)), run.limits)
    again = new_replica(run.limits, requests, content, records(0, ABORT), run.num_blocks)
    if run.asynchronous:
        # the order of plans and ends is `replay`'s own there; what it says is held against the log's times
        assert replay(run).identical == len(run.steps)
        ends = {row: step.update_start_ns for step in run.steps for row, _, _ in step.batch}
        assert run.result.requests.finish_ns.tolist() == [ends[row] for row in range(len(run.workload))]
        return
    for step in run.steps:
        row = plan(again, step.schedule_start_ns)
        batch = again.entries[row, : int(again.batches["length"][row])].tolist()
        assert tuple((request, new, before) for request, new, before, _ in batch) == step.batch
        complete(
            again,
            row,
            step.schedule_end_ns - step.schedule_start_ns,
            step.update_start_ns - step.schedule_end_ns,
        )
        assert (again.batches["waiting"][row], again.batches["free"][row]) == (step.waiting, step.free_blocks)
    assert np.array_equal(again.ledger["finish"], run.result.requests.finish_ns)


def test_log_is_of_the_published_format(run: MeasuredRun, shared: Path, tmp_path: Path) -> None:
    """Line by line the fields of the recordings of vLLM, which other readers are written for."""
    with gzip.open(shared / "fidelity/vllm_cpu/run0.jsonl.gz", "rt") as file:
        theirs = [json.loads(line) for line in file]
    ours = logged(run, tmp_path / "run.jsonl.gz")
    for kind in ("request", "step"):
        fields = {frozenset(line) for line in ours if line["kind"] == kind}
        assert fields == {frozenset(line) for line in theirs if line["kind"] == kind}
    assert theirs[0].keys() - ours[0].keys() == {"load_average"}
    log = read_step_log(tmp_path / "run.jsonl.gz")
    assert (log.steps, log.header.async_scheduling) == (len(run.steps), run.asynchronous)
    assert np.allclose(1e9 * log.device_s, run.device_ns(), atol=2.0)
    assert ours[0]["format"] == theirs[0]["format"]
    assert [line["kind"] for line in ours] == ["header"] + ["request"] * 12 + ["step"] * len(run.steps)


def test_log_keeps_what_happened(run: MeasuredRun, tmp_path: Path) -> None:
    _, *rest = logged(run, tmp_path / "run.jsonl.gz")
    for line in rest[:12]:
        row = int(str(line["id"]).removeprefix("r"))
        assert line["arrival"] * 1e6 == pytest.approx(run.workload.arrival_us[row])
        assert np.allclose(np.array(line["token_times"]) * 1e9, run.token_ns[row], atol=0.5)
        assert line["end"] == line["token_times"][-1]
    tokens = sum(new for line in rest[12:] for _, new, _ in line["batch"])
    # the last token of an answer is never computed
    assert tokens == (run.workload.prompt_tokens + run.workload.output_tokens - 1).sum()


def test_too_long_a_request_is_rejected(
    spread: Workload, executor: MakeExecutor, limits: MakeLimits, tick_clock: type[Clock]
) -> None:
    long = replace(spread, output_tokens=np.where(np.arange(12) == 3, 64, spread.output_tokens).astype(np.int32))
    run = serve_measured(long, executor(), limits(), clock=tick_clock)
    assert np.flatnonzero(run.result.requests.status == Status.REJECTED).tolist() == [3]
    assert [len(output) for output in run.outputs] == [0 if i == 3 else n for i, n in enumerate(long.output_tokens)]


def test_bad_input_is_one_clear_line(
    spread: Workload, decoder: Decoder, executor: MakeExecutor, limits: MakeLimits, run: MeasuredRun, tmp_path: Path
) -> None:
    drafts = limits(speculative_tokens=2, acceptance=0.5)
    with pytest.raises(InputError, match="speculative_tokens=2: not with asynchronous scheduling"):
        serve_measured(spread, executor(), drafts._replace(pipeline_depth=2))
    with pytest.raises(InputError, match="pipeline=2: the testbed runs on one device"):
        serve_measured(spread, executor(), limits()._replace(stages=2, pipeline_depth=2))
    with pytest.raises(InputError, match="block_size=8"):
        serve_measured(spread, executor(), limits(block_size=8))
    with pytest.raises(InputError, match="a draft is missing"):
        serve_measured(spread, executor(), limits(speculative_tokens=2, acceptance=0.5))
    with pytest.raises(InputError, match="prompts: 1 given"):
        serve_measured(spread, executor(), limits(), prompts=[np.zeros(3, dtype=np.int64)])
    with pytest.raises(InputError, match="outside 0 to 498"):
        serve_measured(
            spread, executor(), limits(), prompts=[np.full(n, 499, dtype=np.int64) for n in spread.prompt_tokens]
        )
    with pytest.raises(InputError, match="did you mean 'float32'"):
        random_decoder(decoder.shape, dtype="float23")
    with pytest.raises(InputError, match=r"nowhere/run\.jsonl: no such file"):
        write_measured_run(run, tmp_path / "nowhere/run.jsonl")
