"""However a run ends, what was measured is kept, and the log says that it is partial."""

import gzip
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the testbed runs torch; install the extra gpu, or its CPU build")

import torch

from simkit.calibrate.step_log import read_step_log
from simkit.engine.settings import EngineSettings
from simkit.engine.state import Limits
from simkit.errors import InputError
from simkit.metrics.result import Status
from simkit.testbed.bench import Bench, set_up
from simkit.testbed.calibration import calibrate
from simkit.testbed.device_thread import DeviceThread
from simkit.testbed.executor import Executor, Launched
from simkit.testbed.inputs import StepInputs
from simkit.testbed.measured_run import write_measured_run
from simkit.testbed.replay import replay
from simkit.testbed.serving import serve_measured
from simkit.testbed.settings import TestbedSettings
from simkit.testbed.wall_clock import Clock
from simkit.workloads.workload import Workload

WARM_UP_STEPS = 3

# what libraries raise, by what went wrong
INJECTED = {
    "out of memory": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has 139 GiB"),
    "device gone": RuntimeError("CUDA error: the device was lost\nCUDA kernel errors might be reported later"),
    "allocator": MemoryError(),
    "launch refused": ValueError("cache.page_table: is of 3 requests; 4 are expected"),
    "Triton's resources": type("OutOfResources", (Exception,), {})("out of resource: shared memory"),
}


class Failing:
    """An executor that raises in one of its steps."""

    def __init__(self, executor: Executor, error: BaseException) -> None:
        self.inner, self.error = executor, error
        self.at_step, self.asked, self.steps = 20, 0, 0
        self.num_blocks, self.block_size = executor.num_blocks, executor.block_size
        self.vocab, self.identity = executor.vocab, executor.identity
        self.thread = DeviceThread()

    def run(self, step: StepInputs) -> np.ndarray:
        """Compute, or fail."""
        self.asked += 1
        return self._compute(step, self.asked)

    def launch(self, step: StepInputs, now_ns: Callable[[], int]) -> tuple[int, Launched]:
        """The same in a thread of its own; an interruption is the caller's, who waits."""
        # the thread may not have begun the step before
        self.asked += 1
        if isinstance(self.error, KeyboardInterrupt) and self.asked == self.at_step:
            raise self.error
        return now_ns(), self.thread.submit(partial(self._compute, step, self.asked), now_ns)

    def _compute(self, step: StepInputs, number: int) -> np.ndarray:
        self.steps = number
        if number == self.at_step:
            raise self.error
        return self.inner.run(step)


@pytest.fixture(scope="module")
def crowd() -> Workload:
    """Twelve requests, one after the other."""
    rng = np.random.default_rng(1)
    return Workload(
        name="crowd",
        arrival_us=np.arange(12) * 5_000,
        prompt_tokens=rng.integers(1, 40, 12).astype(np.int32),
        output_tokens=rng.integers(3, 20, 12).astype(np.int32),
    )


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("what", INJECTED)
def test_a_step_that_fails_ends_the_run_and_keeps_the_log(
    what: str,
    asynchronous: bool,
    crowd: Workload,
    executor: Callable[..., Executor],
    limits: Callable[..., Limits],
    tick_clock: type[Clock],
    tmp_path: Path,
) -> None:
    rules = limits(async_scheduling=asynchronous)
    run = serve_measured(crowd, Failing(executor(), INJECTED[what]), rules, clock=tick_clock)
    said = str(INJECTED[what]).split("\n")[0] or "MemoryError"
    assert run.failure.startswith(f"step {20 - WARM_UP_STEPS}: {type(INJECTED[what]).__name__}: {said}")
    assert "\n" not in run.failure
    assert len(run.steps) == 19 - WARM_UP_STEPS
    assert not run.result.complete
    assert Status.UNFINISHED in run.result.requests.status
    write_measured_run(run, tmp_path / "run.jsonl.gz")
    header = json.loads(gzip.decompress((tmp_path / "run.jsonl.gz").read_bytes()).splitlines()[0])
    assert header["partial"] == run.failure
    log = read_step_log(tmp_path / "run.jsonl.gz")
    assert (log.steps, log.header.partial) == (len(run.steps), run.failure)
    assert replay(run).identical == len(run.steps)


def test_interrupting_keeps_the_log(
    crowd: Workload, executor: Callable[..., Executor], limits: Callable[..., Limits], tick_clock: type[Clock]
) -> None:
    run = serve_measured(crowd, Failing(executor(), KeyboardInterrupt()), limits(), clock=tick_clock)
    assert run.failure == f"interrupted after step {19 - WARM_UP_STEPS}"
    assert len(run.steps) == 19 - WARM_UP_STEPS
    broken = Failing(executor(), KeyboardInterrupt())
    run = serve_measured(crowd, broken, limits(async_scheduling=True), clock=tick_clock)
    assert run.failure == f"interrupted after step {len(run.steps)}"
    assert 10 <= len(run.steps) <= 19 - WARM_UP_STEPS
    assert replay(run).identical == len(run.steps)
    assert broken.steps < broken.at_step


def test_failing_before_the_first_step_is_told_too(
    crowd: Workload, executor: Callable[..., Executor], limits: Callable[..., Limits], tick_clock: type[Clock]
) -> None:
    broken = Failing(executor(), RuntimeError("no kernel image is available"))
    broken.at_step = 1
    run = serve_measured(crowd, broken, limits(), clock=tick_clock)
    assert run.failure == "step 1: RuntimeError: no kernel image is available"
    assert run.steps == ()
    assert (run.result.requests.status == Status.UNFINISHED).all()


def test_a_failing_calibration_names_its_log(
    crowd: Workload, executor: Callable[..., Executor], limits: Callable[..., Limits], tmp_path: Path
) -> None:
    bench = Bench(Failing(executor(), RuntimeError("device lost")), None, limits(), "vllm-v1", 0, "wall")
    with pytest.raises(InputError, match=r"calibration failed: step .*device lost.*calibration-0\.jsonl\.gz"):
        calibrate(bench, crowd, tmp_path)


def test_a_bench_warms_up_before_its_first_run_alone(
    executor: Callable[..., Executor], limits: Callable[..., Limits], crowd: Workload
) -> None:
    counting = Failing(executor(), RuntimeError())
    counting.at_step = -1
    bench = Bench(counting, None, limits(), "vllm-v1", 0, "wall")
    first = bench.serve(crowd)
    assert counting.asked == WARM_UP_STEPS + len(first.steps)
    second = bench.serve(crowd)
    assert counting.asked == WARM_UP_STEPS + len(first.steps) + len(second.steps)


def test_what_does_not_fit_is_said_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = EngineSettings(num_gpu_blocks_override=16_000_000, max_model_len=512)
    with pytest.raises(InputError, match=r"need \d+\.\d GiB, .* cut the model with --layers, or the cache"):
        set_up("llama-3.1-8b", engine, TestbedSettings(device="cpu", layers=1))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="torch sees no CUDA device"):
        set_up("llama-3.1-8b", EngineSettings(), TestbedSettings(device="cuda"))
    with pytest.raises(InputError, match="CUDA graphs need device cuda"):
        set_up("llama-3.1-8b", EngineSettings(), TestbedSettings(device="cpu", capture_sizes=(1, 2)))
    with pytest.raises(InputError, match=r"layers=33: llama-3\.1-8b has 1 to 32"):
        set_up("llama-3.1-8b", EngineSettings(), TestbedSettings(device="cpu", layers=33))
    with pytest.raises(InputError, match="threads=4096"):
        set_up("llama-3.1-8b", EngineSettings(), TestbedSettings(device="cpu", layers=1, threads=4096))
    both = EngineSettings(async_scheduling=True)
    with pytest.raises(InputError, match="planning and of computing one after the other"):
        set_up("llama-3.1-8b", both, TestbedSettings(device="cpu", layers=1, threads=1, clock="processor"))
    with pytest.raises(InputError, match="counts CPU time of one thread"):
        set_up("llama-3.1-8b", EngineSettings(), TestbedSettings(device="cpu", layers=1, clock="processor"))
