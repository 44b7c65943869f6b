"""A log of asynchronous scheduling: what the device and the host took of steps that overlap."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the testbed runs torch; install the extra gpu, or its CPU build")

from simkit.calibrate.step_features import step_features
from simkit.calibrate.step_fit import fit_steps
from simkit.calibrate.step_log import read_step_log
from simkit.errors import InputError
from simkit.testbed.knotted_step import factors_of, fit_knotted

HEADER = {
    "kind": "header", "format": "simkit-measured-run-1", "engine": "e", "device": "d", "async_scheduling": True,
    "block_size": 16, "num_gpu_blocks": 100, "max_num_batched_tokens": 64, "max_num_seqs": 8,
}  # fmt: skip
NAMES = ("schedule_start", "schedule_end", "update_start", "update_end")
Times = tuple[float, float, float, float]


def written(path: Path, steps: list[tuple[Times, list[tuple[str, int, int]]]], **header: object) -> Path:
    lines = [HEADER | header]
    lines += [{"kind": "step", **dict(zip(NAMES, times, strict=True)), "batch": batch} for times, batch in steps]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


# planned at 0 and at once again; the third when the first is done; then nobody is left to plan, until somebody comes
BY_HAND: list[tuple[Times, list[tuple[str, int, int]]]] = [
    ((0.000, 0.002, 0.022, 0.023), [("a", 5, 0)]),
    ((0.003, 0.004, 0.042, 0.044), [("a", 1, 5)]),
    ((0.024, 0.026, 0.062, 0.063), [("a", 1, 6)]),
    ((0.080, 0.081, 0.101, 0.102), [("b", 5, 0)]),
]


def test_the_device_begins_a_step_when_it_is_done_with_the_one_before(tmp_path: Path) -> None:
    log = read_step_log(written(tmp_path / "log", BY_HAND))
    assert np.allclose(log.device_s, [0.020, 0.020, 0.020, 0.020])
    # own work, and what lies before the next plan: after the first step 1 ms; after the others the engine waited
    expected = [0.002 + 0.001 + 0.001, np.nan, np.nan, np.nan]
    assert np.allclose(step_features(log).host_s, expected, equal_nan=True)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"async_scheduling": False}, ":3: schedule_start=0.003: is before the last step's update_end=0.023"),
        ({"third": 0.020}, ":4: schedule_start=0.02: more than two steps overlap, or they are out of order"),
        ({"second": 0.001}, ":3: schedule_start=0.001: more than two steps overlap, or they are out of order"),
    ],
)
def test_what_cannot_have_been_is_refused(tmp_path: Path, change: dict[str, float], says: str) -> None:
    steps = list(BY_HAND)
    for name, index in (("second", 1), ("third", 2)):
        if name in change:
            times, batch = steps[index]
            steps[index] = ((change[name], *times[1:]), batch)
    header = {key: value for key, value in change.items() if key == "async_scheduling"}
    with pytest.raises(InputError, match=f"log{says}".replace(".", r"\.")):
        read_step_log(written(tmp_path / "log", steps, **header))


def law_s(batch: list[tuple[str, int, int]]) -> float:
    """10 ms, 0.4 ms a token, 1 ms a request."""
    return 0.010 + 0.0004 * sum(new for _, new, _ in batch) + 0.001 * len(batch)


def busy_steps(host_s: float) -> Iterator[tuple[Times, list[tuple[str, int, int]]]]:
    """Two hundred steps without a pause: a plan takes `host_s` and is made when the step before the last is done."""
    rng = np.random.default_rng(3)
    done = [0.0, 0.0]  # of the two steps before
    ready = 0.0
    for _ in range(200):
        batch = [(f"r{i}", 1, int(rng.integers(20, 60))) for i in range(int(rng.integers(1, 8)))]
        if rng.random() < 0.3:
            batch.append(("p", int(rng.integers(8, 40)), 0))
        start = max(ready, done[0]) + 0.0001
        ready = start + host_s
        end = max(ready, done[1]) + law_s(batch)
        yield (start, ready, end, end), batch
        done = [done[1], end]


@pytest.mark.parametrize("host_s", [0.0005, 0.030])
def test_the_law_of_the_device_is_found_whether_host_or_device_is_the_slower(tmp_path: Path, host_s: float) -> None:
    path = written(tmp_path / "log", list(busy_steps(host_s)))
    step = fit_steps([path]).step
    assert (step.step_s, step.token_s, step.request_s) == (
        pytest.approx(0.010, rel=1e-3), pytest.approx(0.0004, rel=1e-3), pytest.approx(0.001, rel=1e-3)
    )  # fmt: skip
    assert np.allclose(np.concatenate(factors_of(fit_knotted([path]), [path])), 1.0, atol=0.03)
