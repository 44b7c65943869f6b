"""The scripts for a GPU, up to the first thing they would ask of one: plans, arithmetic, tables, on made-up timings."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).resolve().parents[2] / "experiments/gpu"
sys.path.insert(0, str(FOLDER))

from kernel_points import POINTS, Point, decode, prefill, work  # noqa: E402
from kernel_report import (  # noqa: E402
    Ceilings,
    Check,
    Result,
    Timing,
    as_json,
    as_markdown,
    best_of_torch,
    fraction,
    verdict,
)
from point_timing import time_points, timing_of  # noqa: E402
from stages import Stages  # noqa: E402
from tune import tune  # noqa: E402
from tune_points import REGIMES, Candidate, Regime, Tried, best, entry, merged, score  # noqa: E402

from simkit.kernels.configurations import Configuration, choose, read  # noqa: E402

CEILINGS = Ceilings(4e12, 4.3e12, 788e12, {"read, torch sum": 4e12})
MACHINE = {"device": "made up", "date": "2026-01-01"}


def timed(us: float) -> Timing:
    return Timing(us, us * 0.99, us * 1.01)


@pytest.mark.parametrize("script", ["kernels.py", "tune.py"])
def test_without_a_device_one_line_says_so(script: str, tmp_path: Path) -> None:
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(FOLDER / script), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, env=hidden, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().startswith("no CUDA device:")
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_kernels_import_where_only_torch_triton_and_numpy_are() -> None:
    script = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {'pydantic', 'simpy', 'typer', 'rich', 'numba', 'yaml', 'matplotlib', 'zstandard'}:
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import importlib, pkgutil
sys.path[:0] = [sys.argv[1], sys.argv[2]]
import simkit.kernels
names = [module.name for module in pkgutil.iter_modules(simkit.kernels.__path__)]
for name in names:
    importlib.import_module('simkit.kernels.' + name)
for name in ('kernels', 'tune', 'kernel_calls', 'kernel_checks', 'ceilings'):
    importlib.import_module(name)
print(len(names))
"""
    command = [sys.executable, "-c", script, str(FOLDER), str(FOLDER.parents[1])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 25


def test_every_point_has_calls_and_work() -> None:
    from kernel_calls import _BUILDERS

    assert {point.kernel for point in POINTS} == set(_BUILDERS)
    assert len({(point.label, point.against) for point in POINTS}) == len(POINTS)
    for point in POINTS:
        amount = work(point)
        assert amount.moved_bytes > 0
        assert amount.operations > 0 or point.ceiling != "gemm"


SMALL = {"batch": 2, "context": 48, "chunk": 20, "decodes": 2, "tokens": 8, "rows": 3, "requests": 3, "q_heads": 4}
SMALL |= {
    "kv_heads": 2,
    "blocks": 5,
    "vocab": 70,
    "experts": 8,
    "k": 2,
    "n_in": 32,
    "n_out": 48,
    "width": 33,
    "heads": 4,
}


@pytest.mark.parametrize("number", range(len(POINTS)), ids=lambda number: POINTS[number].label.replace(" ", "_"))
def test_every_call_runs_at_a_small_size(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import kernel_calls

    monkeypatch.setattr(kernel_calls, "DEVICE", torch.device("cpu"))
    monkeypatch.setattr(kernel_calls, "sets_for", lambda size, device: 2)
    point = POINTS[number]
    sizes = {name: SMALL.get(name, value) for name, value in point.sizes.items()}
    sizes |= {name: 16 for name in ("past",) if sizes.get(name)}
    calls = kernel_calls.calls_of(point._replace(sizes=sizes))
    for call in calls.ours():
        call()
    on_cuda_alone = ("SDPA cuDNN", "SDPA flash", "FlexAttention", "torch grouped_mm")
    for name, make in calls.torch.items():
        if name not in on_cuda_alone:
            make()[0]()


def test_every_check_passes_at_a_small_size(monkeypatch: pytest.MonkeyPatch) -> None:
    import kernel_checks

    monkeypatch.setattr(kernel_checks, "DEVICE", torch.device("cpu"))
    small = kernel_checks.Sizes(
        heads=(2, 1),
        contexts=[0, 1, 17, 40],
        chunks=[0, 1, 3, 20],
        mixed_contexts=[9, 1, 30, 0, 17],
        mixed_chunks=[1, 1, 1, 0, 17],
        latent_contexts=[1, 65],
        widths=(100,),
        tokens=(1, 9),
        experts=8,
        hidden=128,
        vocab=900,
        text=20,
    )
    checks = kernel_checks.all_checks(small)
    assert [check for check in checks if not check.passed] == []
    assert len({check.kernel for check in checks}) == 23


def test_work_of_a_decode_is_its_keys_and_values() -> None:
    # 64 requests x 4096 tokens x 8 heads x 128 x 2 (K and V) x 2 bytes = 1 GiB, and queries and outputs of 0.5 MiB each
    assert work(decode(64, 4096)).moved_bytes == 2**30 + 2 * 2**19
    # two products, of 2 operations each, for 32 query heads
    assert work(decode(64, 4096)).operations == 64 * 4096 * 32 * 128 * 4
    assert work(decode(64, 4096, kv="fp8")).moved_bytes == 2**29 + 2 * 2**19
    assert work(decode(64, 8192, window=128)).moved_bytes == work(decode(64, 128)).moved_bytes


def test_work_of_a_prefill_is_half_a_square_or_a_strip() -> None:
    # a causal square of 8192 is 8192 x 8193 / 2 pairs; a chunk of 512 after 8192 is 512 x 8192 and its own triangle
    assert work(prefill(1, 8192, 0)).operations == 8192 * 8193 / 2 * 32 * 128 * 4
    assert work(prefill(1, 512, 8192)).operations == (512 * 8192 + 512 * 513 / 2) * 32 * 128 * 4


def test_fractions_are_of_the_points_own_ceiling() -> None:
    # 1.0748e9 bytes in 300 us are 3.58 TB/s, 0.896 of 4; 549.8e9 operations in 1 ms are 550 TFLOP/s, 0.698 of 788
    assert fraction(decode(64, 4096), timed(300.0), CEILINGS) == pytest.approx(0.8957, abs=1e-3)
    assert fraction(prefill(1, 8192, 0), timed(1000.0), CEILINGS) == pytest.approx(0.6978, abs=1e-3)


def test_verdicts_say_met_missed_and_beside_torch() -> None:
    point = decode(64, 4096, 0.85, 0.92)
    ways = {"gather + SDPA": timed(900.0), "SDPA contiguous": "RuntimeError: no kernel"}
    assert verdict(Result(point, timed(300.0), ways), CEILINGS) == "met, torch met"
    assert verdict(Result(point, timed(290.0), ways), CEILINGS) == "met, stretch too, torch met"
    assert verdict(Result(point, timed(1000.0), ways), CEILINGS) == "MISSED, torch MISSED"
    assert verdict(Result(point, None, {}, "out of memory"), CEILINGS) == "failed"
    chunk = prefill(1, 8192, 0, 0.55, 0.65)
    within = {"SDPA cuDNN": timed(1000.0), "SDPA flash": timed(1500.0)}
    assert best_of_torch(Result(chunk, timed(1240.0), within)) == ("SDPA cuDNN", timed(1000.0))
    assert verdict(Result(chunk, timed(1240.0), within), CEILINGS) == "met, torch met"
    assert verdict(Result(chunk, timed(1260.0), within), CEILINGS) == "met, torch MISSED"


def test_the_report_has_a_line_a_point_and_a_check() -> None:
    results = [
        Result(decode(64, 4096, 0.85, 0.92), timed(300.0), {"gather + SDPA": timed(900.0)}),
        Result(prefill(1, 8192, 0), None, {}, "RuntimeError: no"),
    ]
    checks = [Check("decode", "bf16", 1e-3, 1e-2), Check("prefill", "bf16", float("nan"), 1e-2)]
    text = as_markdown(MACHINE, CEILINGS, checks, results, ["mixed"])
    assert (
        "| 300.0 (297.0 to 303.0) | 90% of read | 85% (92%) | gather + SDPA 900.0 us | 0.33 | met, torch met |" in text
    )
    assert "failed: RuntimeError: no" in text
    assert "1 passed, 1 failed" in text
    assert "Left out, for the time was over: mixed" in text
    record = json.loads(json.dumps(as_json(MACHINE, CEILINGS, checks, results, ["mixed"])))
    assert [point["kernel"] for point in record["points"]] == ["decode", "prefill"]
    assert record["points"][0]["verdict"] == "met, torch met"
    assert [check["passed"] for check in record["checks"]] == [True, False]
    assert record["checks"][1]["error"] is None, "JSON has no NaN"


def test_a_ceiling_that_cannot_be_measured_leaves_its_fractions_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    import ceilings

    def rates() -> Iterator[tuple[str, Callable[[], float]]]:
        def broken() -> float:
            raise RuntimeError("no kernel image")

        yield "read, one way", broken
        yield "copy, one way", lambda: 4e12
        yield "read, another", lambda: 3e12
        raise MemoryError

    monkeypatch.setattr(ceilings, "stream_rates", rates)
    monkeypatch.setattr(ceilings, "product_rates", lambda: iter(()))
    found = ceilings.measure()
    assert (found.read_bytes_per_s, found.copy_bytes_per_s) == (3e12, 4e12)
    assert set(found.ways) == {"copy, one way", "read, another"}
    chunk = Result(prefill(1, 8192, 0, 0.55, 0.65), timed(1000.0), {"SDPA cuDNN": timed(1000.0)})
    assert verdict(chunk, found) == "unknown, torch met"
    record = json.dumps(as_json(MACHINE, found, [], [chunk], []), allow_nan=False)
    assert json.loads(record)["points"][0]["fraction"] is None
    assert "| unknown, torch met |" in as_markdown(MACHINE, found, [], [chunk], [])


def test_a_driver_tool_that_hangs_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    import machine

    def hangs(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired("nvidia-smi", 30)

    monkeypatch.setattr(machine.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(machine.subprocess, "run", hangs)
    assert machine.telemetry() == {}


def test_percentiles_are_samples() -> None:
    assert timing_of([5.0, 1.0, 4.0, 2.0, 3.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0]) == Timing(6.0, 2.0, 10.0)


def test_points_without_time_are_named() -> None:
    assert time_points(POINTS[:2], end_s=0.0, clock=lambda: 1.0) == ([], [point.label for point in POINTS[:2]])


def test_a_run_that_is_cut_short_leaves_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ceilings
    import kernel_checks
    import point_timing

    import kernels

    def checks(sizes: object) -> Iterator[tuple[str, str, float, float]]:
        yield "decode", "bf16", 1e-3, 1e-2
        raise RuntimeError("no kernel image")

    def calls(point: Point) -> object:
        if point == POINTS[0]:
            raise MemoryError
        raise KeyboardInterrupt

    monkeypatch.setattr(kernels, "require_device", lambda: None)
    monkeypatch.setattr(kernels, "describe", lambda: dict(MACHINE))
    monkeypatch.setattr(ceilings, "measure", lambda stages: CEILINGS)
    monkeypatch.setattr(kernel_checks, "GROUPS", (checks,))
    monkeypatch.setattr(point_timing, "calls_of", calls)
    with pytest.raises(KeyboardInterrupt):
        kernels.measure(tmp_path / "out", 1e9, 0.0, Stages())
    record = json.loads((tmp_path / "out/kernels.json").read_text())
    assert [check["failed"] for check in record["checks"]] == ["", "RuntimeError: no kernel image"]
    assert [(point["kernel"], point["failed"]) for point in record["points"]] == [("decode", "MemoryError: ")]
    assert record["left_out"] == [point.label for point in POINTS[1:]]
    assert "1 passed, 1 failed" in (tmp_path / "out/kernels.md").read_text()


def test_tuning_that_is_cut_short_leaves_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import kernel_checks
    import tune as script

    def time_point(regime: Regime, candidate: Candidate, number: int) -> float:
        if regime != REGIMES[0]:
            raise KeyboardInterrupt
        return 5.0 if candidate == regime.candidates[1] else 9.0

    monkeypatch.setattr(script, "describe", lambda: dict(MACHINE))
    monkeypatch.setattr(script, "device_time_point", lambda architecture: time_point)
    monkeypatch.setattr("simkit.kernels.configurations.architecture_of", lambda device: 90)
    with pytest.raises(KeyboardInterrupt):
        script.run(tmp_path / "out", 1e9, 0.0, Stages())
    record = json.loads((tmp_path / "out/tune.json").read_text())
    assert list(record["tried"]) == [REGIMES[0].label]
    assert record["checked"] is False
    table = read(tmp_path / "out/configurations.json")
    timed_one = [one for one in table if one.basis == "timed, made up, 2026-01-01"]
    assert [(one.constants, one.num_warps) for one in timed_one] == [
        (REGIMES[0].candidates[1].constants, REGIMES[0].candidates[1].num_warps)
    ]
    # to the end: checks in between, and their verdict
    monkeypatch.setattr(script, "REGIMES", REGIMES[:1])
    monkeypatch.setattr(kernel_checks, "all_checks", lambda stages: [Check("decode", "bf16", 1.0, 1e-2)])
    assert script.run(tmp_path / "out", 1e9, 0.0, Stages()) == 1
    record = json.loads((tmp_path / "out/tune.json").read_text())
    assert record["checked"] is True
    assert [check["kernel"] for check in record["failed_checks"]] == ["decode"]


BASE = (
    Configuration("k", 90, {"dtype": "bf16", "size": 64}, {"B": 1}, 4, 2, "compiled"),
    Configuration("k", 90, {"dtype": "bf16"}, {"B": 2}, 4, 2, "compiled"),
    Configuration("other", 90, {"dtype": "bf16"}, {"B": 3}, 4, 2, "compiled"),
)


def tuned(where: dict[str, int | str], b: int) -> Configuration:
    return Configuration("k", 90, where, {"B": b}, 8, 3, "timed")


def constant(table: tuple[Configuration, ...], **where: int | str) -> int:
    return choose(table, "k", 90, {"dtype": "bf16", **where}).constants["B"]


def test_a_tuned_entry_takes_the_place_of_its_like() -> None:
    table = merged(BASE, [tuned({"dtype": "bf16", "size": 64}, 9)])
    assert [one.constants["B"] for one in table] == [9, 2, 3]


def test_a_tuned_entry_answers_its_launches_and_no_others() -> None:
    table = merged(
        BASE, [tuned({"dtype": "bf16", "size": 128}, 8), tuned({"dtype": "bf16", "size": 64, "rows": 16}, 7)]
    )
    assert constant(table, size=64, rows=16) == 7
    assert constant(table, size=64, rows=17) == 1, "what was there for size 64 stays"
    assert constant(table, size=100, rows=1) == 8
    assert constant(table, size=200, rows=1) == 2
    assert len(table) == len(BASE) + 2


def test_every_regime_is_met_by_its_own_entry() -> None:
    table = merged(read(), [entry(regime, regime.candidates[0], 90, f"trial {i}") for i, regime in enumerate(REGIMES)])
    for i, regime in enumerate(REGIMES):
        asked = {"rows": 1 << 20, "group": 1, "heads": 1 << 20, **regime.where}
        assert choose(table, regime.kernel, 90, asked).basis == f"trial {i}", regime.label


def test_candidates_are_of_the_constants_that_the_table_has() -> None:
    for regime in REGIMES:
        names = {name for one in read() if one.kernel == regime.kernel for name in one.constants}
        assert all(set(candidate.constants) == names for candidate in regime.candidates), regime.label


def test_the_fastest_over_all_points_wins() -> None:
    points = (decode(1, 8192), decode(64, 4096))
    ways = tuple(Candidate({"B": b}, 4, 2) for b in (1, 2, 3))
    times = {1: (10.0, 100.0), 2: (20.0, 40.0), 3: (5.0, 0.0)}

    def time_point(regime: Regime, candidate: Candidate, number: int) -> float:
        if candidate.constants["B"] == 3 and number == 1:
            raise RuntimeError("OutOfResources: shared memory")
        return times[candidate.constants["B"]][number]

    found = tune([Regime("k", {}, ways, points)], time_point, end_s=10.0, clock=lambda: 0.0)
    assert [one.failed for one in found["k"]] == ["", "", "OutOfResources: shared memory"]
    fastest = best(found["k"])
    assert fastest is not None
    assert fastest.candidate == ways[1]
    assert fastest.score_us == pytest.approx(score([20.0, 40.0])) == pytest.approx(800**0.5)


def test_regimes_share_the_time_that_is_left() -> None:
    now = [0.0]

    def time_point(regime: Regime, candidate: Candidate, number: int) -> float:
        now[0] += 1.0
        return 1.0

    ways = tuple(Candidate({"B": b}, 4, 2) for b in range(10))
    regimes = [Regime(name, {}, ways, (Point("k", {}, "read"),)) for name in "abc"]
    found = tune(regimes, time_point, end_s=9.0, clock=lambda: now[0])
    assert [len(tried) for tried in found.values()] == [3, 3, 3]
    assert best([Tried(ways[0], 1.0, "no")]) is None
