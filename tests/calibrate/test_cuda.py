"""Calibration on CUDA, up to the first device call: what is launched, what the driver says, what is reported."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("torch", reason="measuring needs torch; install the extra gpu, or its CPU build")
pytest.importorskip("triton", reason="the kernels need triton; install the extra gpu")

import torch

from simkit.calibrate.cuda_seen import QUERY, ClockWatch, device_seen, read_lines, throttled
from simkit.calibrate.emitted_launches import as_launched
from simkit.calibrate.emitted_step_time import StepComposer, composed_error, prepare_line
from simkit.calibrate.measure import Measurement, Progress, UnmeasurableError
from simkit.calibrate.measure_run import Outcome, replace_profile
from simkit.calibrate.measure_summary import table_summaries
from simkit.calibrate.mixed_model import MixedModel
from simkit.calibrate.operator_model import fit_operators
from simkit.calibrate.operator_profile import DeviceSeen, Header, KernelSource, OperatorProfile, Origin
from simkit.calibrate.operator_sizes import AttentionShape
from simkit.calibrate.points import PlannedPoint, Point, has_kernel, point_columns
from simkit.calibrate.points_plan import decode_point, plan_points, prefill_point
from simkit.calibrate.points_scope import Scope
from simkit.engine.emitted_steps import Share
from simkit.errors import InputError
from simkit.models.catalog import load_model
from simkit.models.layout import Layout
from simkit.models.operators import linear_operators

ROOT = Path(__file__).resolve().parents[2]
SHAPE = AttentionShape(32, 8, 128)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_calibrate", ROOT / "experiments/gpu/calibrate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(ROOT / "experiments/gpu"))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(ROOT / "experiments/gpu"))
    return module


def law_ns(point: Point) -> float:
    """Times of a made-up device: 700 TFLOP/s, 4 TB/s, 3 us a launch; attention by its KV bytes or its pairs."""
    if point.table == "gemm":
        tokens, n, k = (point.count(name) for name in ("tokens", "n", "k"))
        return 3e3 + max(2.0 * tokens * n * k / 700e3, 2.0 * n * k / 4e3)
    if point.table == "attention_decode":
        return 6e3 + 4096.0 * point.count("context_tokens") / 4e3
    if point.table == "attention_prefill":
        chunk, past = point.count("chunk"), point.count("past")
        return 6e3 + 4.0 * 32 * 128 * (chunk * past + chunk * (chunk + 1) / 2 + 300 * chunk) / 400e3
    if point.table == "elementwise":
        return 2e3 + point.count("bytes") / 3e3
    if point.table == "sampling":
        return 4e3 + point.count("rows") * point.count("vocab") * 2 / 3e3
    return 5e3


def made_up_profile(points: list[PlannedPoint]) -> OperatorProfile:
    rows: dict[str, list[dict[str, object]]] = {}
    for planned in points:
        point = planned.point
        row: dict[str, object] = dict(zip(point_columns(point.table), point.sizes, strict=True))
        if has_kernel(point.table):
            row["kernel"] = "a law"
        ns = law_ns(point)
        times = {"median_ns": ns, "p10_ns": 0.99 * ns, "p90_ns": 1.01 * ns, "repeats": 10, "known": "measured"}
        rows.setdefault(point.table, []).append(row | times | {"use": "held_out" if planned.held_out else "fit"})
    header = Header(
        name="made up",
        created="2026-01-31",
        simkit_version="0",
        device="h200",
        seen=DeviceSeen(name="made up", multiprocessors=132),
        versions={"torch": "2", "cuda": "12"},
        kernels=KernelSource(name="a law"),
        origin=Origin(kind="measured", name="a test"),
    )
    return OperatorProfile(header, {table: pd.DataFrame(lines) for table, lines in rows.items()})


@pytest.fixture(scope="module")
def profile() -> OperatorProfile:
    scope = Scope((load_model("llama-3.1-8b"),), 2048, 64, 8192, 131_072, capture_sizes=(1, 2, 4, 8, 16, 32, 64))
    rng = np.random.default_rng(0)
    held = [decode_point(SHAPE, rng.integers(200, 4000, size)) for size in (3, 9, 17, 33, 50)]
    held += [decode_point(SHAPE, np.full(21, 777))]
    held += [prefill_point(SHAPE, chunk, past) for chunk, past in ((333, 0), (77, 900), (1501, 64))]
    held += [Point("gemm", ("bf16", tokens, 6144, 4096)) for tokens in (71, 333, 1501)]
    plan = plan_points(scope._replace(fused_rope=True))
    return made_up_profile([*plan, *(PlannedPoint(point, 0, held_out=True) for point in held)])


def test_every_kernel_is_launched_with_arguments_it_takes() -> None:
    """In Triton's interpreter, which refuses what the launchers refuse; in a process of its own."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("cuda_operators_interpreted.py"))],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    tables = [line.split()[0] for line in done.stdout.splitlines()]
    assert set(tables) >= {"gemm", "attention_decode", "attention_prefill", "attention_mixed", "elementwise", "moe"}
    # 2 KB of weights against 4 caches of 4 KB: eight sets in turn
    assert done.stdout.splitlines()[0].split()[1] == "8"


def test_the_drivers_lines_become_medians() -> None:
    lines = read_lines(
        [
            "1980, 3201, 650.2, 700.00, 61, 0x0000000000000004, 570.86.15",
            "1755, 3201, 690.0, 700.00, 64, 0x0000000000000001, 570.86.15",
            "1755, 3201, 695.5, 700.00, 65, 0x0000000000000004, 570.86.15",
            "1755, 32",
        ]
    )
    assert len(lines) == 3
    seen = device_seen("NVIDIA H200", 132, 150 << 30, lines)
    assert (seen.clock_mhz, seen.memory_clock_mhz, seen.power_w, seen.temperature_c) == (1755, 3201, 690.0, 64)
    assert (seen.driver, seen.power_limit_w) == ("570.86.15", 700.0)
    assert seen.throttled == "power cap 67%"


def test_what_a_driver_does_not_say_is_left_open() -> None:
    lines = read_lines([", ".join(["[N/A]"] * (len(QUERY) - 1) + ["1.2"])])
    seen = device_seen("a GPU", 10, 1 << 30, lines)
    assert (seen.clock_mhz, seen.power_w, seen.driver) == (None, None, "1.2")
    nothing = device_seen("a GPU", 10, 1 << 30, [])
    assert (nothing.driver, nothing.throttled) == (None, None)


@pytest.mark.parametrize(("visible", "asked"), [(None, "--id=1"), ("3,2", "--id=GPU-8a7f")])
def test_the_driver_is_asked_for_torchs_device(
    visible: str | None, asked: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A stand-in for `nvidia-smi` notes what it is asked for; torch's device is its second, of those it sees."""
    driver = tmp_path / "nvidia-smi"
    driver.write_text(f'#!/bin/sh\necho "$@" > {tmp_path / "asked.part"}\nmv {tmp_path}/asked.part {tmp_path}/asked\n')
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid={1: "8a7f"}[index]))
    watch = ClockWatch()
    assert watch._process is not None
    watch._process.wait(timeout=60)
    watch.stop()
    assert asked in (tmp_path / "asked").read_text().split()


def test_idle_throttles_nothing() -> None:
    assert throttled(["0x0000000000000001", "0x0000000000000000"]) == ""
    assert throttled(["0x0000000000000060", "0x0"]) == "software thermal 50%, hardware thermal 50%"


def test_a_step_is_the_sum_of_its_operators(profile: OperatorProfile) -> None:
    """By hand, from the law: one decode step of 16 requests at sizes that were timed."""
    arch = load_model("llama-3.1-8b")
    composer = StepComposer(fit_operators(profile), arch, "bf16")
    step = [Share(1, 511, True)] * 16
    gemms = [(6144, 4096), (4096, 4096), (28_672, 4096), (4096, 14_336)]
    layer = sum(law_ns(Point("gemm", ("bf16", 16, n, k))) for n, k in gemms)
    layer += law_ns(decode_point(SHAPE, np.full(16, 512)))
    for name, token_bytes, launches in (("norm", 32_768, 2), ("rope_kv_write", 24_576, 1), ("activation", 86_016, 1)):
        layer += launches * law_ns(Point("elementwise", (name, 16, 1, 16 * token_bytes)))
    once = law_ns(Point("gemm", ("bf16", 16, 128_256, 4096))) + law_ns(Point("sampling", ("greedy", 16, 128_256)))
    once += law_ns(Point("elementwise", ("norm", 16, 1, 16 * 32_768)))
    once += law_ns(Point("elementwise", ("embedding", 16, 1, 16 * 16_384)))
    assert composer.ns(step) == pytest.approx(32 * layer + once, rel=0.02)
    names = {part.name for part in composer.parts([*step, Share(100, 0, False)])}
    assert {"attention_decode", "attention_prefill", "lm_head", "rope_kv_write"} <= names


def test_a_chunk_and_decodes_take_what_both_in_one_launch_were_measured_to(profile: OperatorProfile) -> None:
    """32 layers of the longer part and a share of the shorter one."""
    model = fit_operators(profile)
    step = [Share(1, 511, True)] * 16 + [Share(256, 0, True)]
    decode = model.ragged_decode_ns(np.full(16, 512), SHAPE)
    prefill = model.prefill_attention_ns(np.array([256.0]), np.zeros(1), SHAPE)
    assert decode is not None
    assert prefill is not None
    longer, shorter = sorted((float(decode.ns), float(prefill.ns[0])), reverse=True)
    for share in (0.0, 0.5, 1.0):
        composer = StepComposer(replace(model, mixed=MixedModel(share, 5)), load_model("llama-3.1-8b"), "bf16")
        parts = [part.ns for part in composer.parts(step) if part.name.startswith("attention")]
        assert sum(parts) == pytest.approx(32 * (longer + share * shorter))


def test_one_launch_for_rotation_and_write_is_counted_once(profile: OperatorProfile) -> None:
    """Its bytes are those timed under its name: q read and written, k and v read and written to the cache."""
    operators = linear_operators(load_model("llama-3.1-8b"), Layout(), np.array([16.0]))
    merged = as_launched(operators, fit_operators(profile))
    assert len(merged) == len(operators) - 1
    (fused,) = [operator for operator in merged if operator.name == "rope_kv_write"]
    assert fused.launches == 32
    assert fused.memory_bytes[0] == 32 * 16 * 2 * (2 * 4096 + 2 * 1024 + 2 * 1024)
    apart = profile.tables["elementwise"]
    without = profile.tables | {"elementwise": apart[apart["name"] != "rope_kv_write"]}
    assert as_launched(operators, fit_operators(OperatorProfile(profile.header, without))) == operators


def test_what_the_profile_lacks_is_named(profile: OperatorProfile) -> None:
    less = OperatorProfile(profile.header, {"gemm": profile.tables["gemm"]})
    composer = StepComposer(fit_operators(less), load_model("llama-3.1-8b"), "bf16")
    with pytest.raises(KeyError, match="the profile has nothing for"):
        composer.ns([Share(1, 10, True)])


def test_preparing_is_a_line_over_requests_and_tokens() -> None:
    sizes = [(1, 1), (4, 4), (16, 16), (1, 512), (16, 512)]
    ns = [1000.0 + 50.0 * requests + 3.0 * tokens for requests, tokens in sizes]
    frame = pd.DataFrame(
        {
            "part": "prepare",
            "requests": [requests for requests, _ in sizes],
            "tokens": [tokens for _, tokens in sizes],
            "median_ns": ns,
            "use": "fit",
        }
    )
    line = prepare_line(frame)
    assert line is not None
    assert line(8, 200) == pytest.approx(1000.0 + 400.0 + 600.0)
    assert prepare_line(frame[:2]) is None


def test_composed_errors_are_shares_of_what_was_measured() -> None:
    error = composed_error([110.0, 95.0, 100.0], [100.0, 100.0, 100.0])
    assert error.median_abs == pytest.approx(0.05)
    assert error.bias == pytest.approx(305 / 300 - 1)
    assert error.worst_abs == pytest.approx(0.10)


def test_the_report_says_which_aims_are_met(script: ModuleType, profile: OperatorProfile) -> None:
    aims = [*script.operator_aims(profile), *script.composed_aims(composed_error([104.0] * 4, [100.0] * 4))]
    verdicts = {aim.name: aim.verdict for aim in aims}
    # the law is smooth and free of noise, so that all operators are predicted
    assert {verdict for name, verdict in verdicts.items() if "composed" not in name} == {"met"}
    assert verdicts["composed layers, median error"] == "met"
    assert verdicts["composed layers, bias"] == "missed"
    text = script.report(profile, table_summaries(profile), aims, 480.0)
    assert "| composed layers, bias | 2% | +4.0% | missed |" in text
    assert "| gemm |" in text
    assert script.composed_aims(None)[0].verdict == "not measured"


def test_what_was_measured_is_reported_before_the_layers_that_may_fail(
    script: ModuleType, profile: OperatorProfile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object) -> None:
        raise RuntimeError("CUDA error: the device was lost")

    device = SimpleNamespace(host_copies=True, close=lambda: None)
    measurement = Measurement()
    monkeypatch.setattr(script, "open_device", lambda *_: device)
    monkeypatch.setattr(script, "replayed_steps", lambda *_: ([], "nothing"))
    monkeypatch.setattr(script, "plan_of", lambda *_: [])
    monkeypatch.setattr(script, "measured_profile", lambda *_, **__: Outcome(measurement, profile))
    monkeypatch.setattr(script, "composed_steps", lost)
    with pytest.raises(InputError, match="composed steps: RuntimeError: CUDA error: the device was lost"):
        script.run(tmp_path, ["llama-3.1-8b"], 10.0, 0, 0.0, script.Stages())
    assert "| GEMM, replayed steps, mean error | 4% |" in (tmp_path / "report.md").read_text()
    assert "| composed layers, bias | 2% |  | not measured |" in (tmp_path / "report.md").read_text()
    measurement.interrupted = True  # nothing more is begun
    with pytest.raises(KeyboardInterrupt):
        script.run(tmp_path, ["llama-3.1-8b"], 10.0, 0, 0.0, script.Stages())


def test_a_device_lost_while_it_is_measured_is_left_to_another_process(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    closed: list[bool] = []
    device = SimpleNamespace(host_copies=True, close=lambda: closed.append(True))
    monkeypatch.setattr(script, "open_device", lambda *_: device)
    monkeypatch.setattr(script, "replayed_steps", lambda *_: ([], "nothing"))
    monkeypatch.setattr(script, "plan_of", lambda *_: [])
    monkeypatch.setattr(script, "measured_profile", lost)
    with pytest.raises(SystemExit) as left:
        script.run(tmp_path, ["llama-3.1-8b"], 10.0, 0, 0.0, script.Stages())
    assert left.value.code == script.LOST
    assert closed == [True]


def test_a_point_that_hangs_costs_neither_what_was_measured_nor_the_report(
    script: ModuleType, profile: OperatorProfile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call is a process of the run; a watcher cuts the first two in their measurement, the third in its steps."""

    class CutError(BaseException):
        pass

    asked: list[tuple[float, int, bool]] = []
    log = tmp_path / "stages.jsonl"

    def hangs(*given: object, seed: int, resume: bool, on_progress: object, **_: object) -> None:
        _, _, budget_s, folder = given
        asked.append((budget_s, seed, resume))  # type: ignore[arg-type]
        replace_profile(profile, folder)  # type: ignore[arg-type]
        on_progress(Progress("points", 0, 9))  # type: ignore[operator]
        raise CutError

    def two_steps(*_: object) -> Iterator[list[float]]:
        yield [104.0, 100.0]
        raise CutError

    def process() -> list[object]:
        return script.run(tmp_path, ["llama-3.1-8b"], 400.0, 0, time.monotonic() - 150.0, script.Stages(log))

    device = SimpleNamespace(host_copies=True, close=lambda: None)
    monkeypatch.setattr(script, "open_device", lambda *_: device)
    monkeypatch.setattr(script, "replayed_steps", lambda *_: ([], "nothing"))
    monkeypatch.setattr(script, "plan_of", lambda *_: [])
    monkeypatch.setattr(script, "measured_profile", hangs)
    monkeypatch.setattr(script, "composed_steps", two_steps)
    for stage in ("measurement 1", "measurement 2", "composed steps"):
        with pytest.raises(CutError):
            process()
        with log.open("a") as file:
            file.write(json.dumps({"stage": stage, "cut": f"no answer in {stage}"}) + "\n")
    # in another order, with what was kept, within the same budget
    assert [(seed, resume) for _, seed, resume in asked] == [(0, False), (1, True)]
    assert asked[0][0] == 400.0
    assert 200.0 < asked[1][0] <= 250.0
    with pytest.raises(InputError, match=r"steps: no answer in composed steps; .* report without the rest"):
        process()
    assert len(asked) == 2
    report = (tmp_path / "report.md").read_text()
    assert "| composed layers, bias | 2% | +4.0% | missed |" in report
    assert "- a measurement was cut short: no answer in measurement 2\n" in report


def test_a_point_whose_kernel_needs_more_than_the_chip_has_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime.errors import OutOfResources

    from simkit.calibrate import cuda_bench

    def refuse(*_: object) -> None:
        raise OutOfResources(300_000, 232_448, "shared memory")

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(cuda_bench, "cuda_calls", refuse)
    bench = cuda_bench.CudaBench("bf16", (SHAPE,))
    with pytest.raises(UnmeasurableError, match="shared memory"):
        bench.timer(Point("gemm", ("bf16", 1, 2, 3)))


def test_the_script_ends_before_the_first_device_call(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    command = [sys.executable, str(ROOT / "experiments/gpu/calibrate.py"), "--out", str(tmp_path / "results")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().startswith("calibrate: no CUDA device")
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "results").exists()
