"""The predictor against real servers."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from simkit.calibrate.step_fit import fit_steps
from simkit.calibrate.step_log import read_step_log
from simkit.cli.main import app
from simkit.fidelity.comparison import overall
from simkit.fidelity.measured_runs import read_measured_runs
from simkit.fidelity.predict import Timing
from simkit.fidelity.recorded import compare_recorded, profile_timing
from simkit.fidelity.validate import validate
from simkit.models.engine_law import FITTED, EngineLaw, engine_law

FEW = ("16-llama-3-1-8b", "58-llama-2-70b", "27-mixtral-8x7b", "55-llama-3-1-8b", "38-llama-3-1-8b", "21-llama-4-scout")


def test_a_few_runs_are_predicted(gpu_runs: Path) -> None:
    """Models of 8, 70, 47 and 109 billion parameters on three GPUs: within what leave-one-model-out promises."""
    runs = [run for run in read_measured_runs(gpu_runs) if run.id.startswith(FEW)]
    assert len(runs) == len(FEW)
    found = validate(runs, seeds=1)
    assert not found.not_run
    errors = overall(found.runs)
    assert errors["itl_mean"].median_abs_pct <= 5.0
    assert errors["e2e_mean"].median_abs_pct <= 5.0
    assert errors["ttft_mean"].median_abs_pct <= 12.0
    assert abs(errors["itl_mean"].worst_pct) <= 15.0


@pytest.mark.slow
def test_all_runs_are_predicted_and_calibration_pays(gpu_runs: Path) -> None:
    runs = read_measured_runs(gpu_runs)
    ours = overall(validate(runs, seeds=1).runs)
    assert ours["itl_mean"].median_abs_pct <= 5.0
    assert ours["e2e_mean"].median_abs_pct <= 5.0
    assert ours["ttft_mean"].median_abs_pct <= 12.0
    assert ours["ttft_p99"].median_abs_pct <= 25.0
    assert abs(ours["itl_mean"].worst_pct) <= 15.0
    roofline = overall(validate(runs, Timing("uncalibrated"), seeds=1).runs)
    assert roofline["ttft_mean"].median_abs_pct > 2 * ours["ttft_mean"].median_abs_pct


def test_a_run_that_cannot_be_rebuilt_is_named_with_the_reason(gpu_runs: Path) -> None:
    runs = [run.model_copy(update={"model": "somebody/Nothing-7B"}) for run in read_measured_runs(gpu_runs)[:1]]
    (refused,) = validate(runs).not_run
    assert refused.id == runs[0].id
    assert "is not known" in refused.reason


@pytest.mark.parametrize(("fitted", "other"), [("run0", "run1"), ("run1", "run0")])
def test_steps_fitted_on_one_recorded_run_predict_another(shared: Path, fitted: str, other: str) -> None:
    """Two runs of one workload on a busy CPU differ by 6 % themselves; medians are held to 7 %, either way round."""
    folder = shared / "fidelity" / "vllm_cpu"
    profile = fit_steps([folder / f"{fitted}.jsonl.gz"])
    found = compare_recorded(read_step_log(folder / f"{other}.jsonl.gz"), profile_timing(profile))
    for metric in ("itl_p50", "e2e_p50"):
        error = found.whole.error_pct(metric)
        assert error is not None
        assert abs(error) <= 7.0, metric
    paired = found.notes[0]
    e2e = float(paired.split("E2E ")[1].split("%")[0])
    assert abs(e2e) <= 7.0


def test_requests_that_a_log_cut_short_are_on_neither_side(shared: Path, tmp_path: Path) -> None:
    """The clients of a run that was broken off saw the beginnings of long answers, which are no latencies."""
    whole = read_step_log(shared / "fidelity" / "vllm_cpu" / "run0.jsonl.gz")
    profile = profile_timing(fit_steps([whole.path]))
    middle = float(np.median([line.token_times[-1] for line in whole.requests]))
    cut = tuple(
        line.model_copy(update={"token_times": tuple(time for time in line.token_times if time <= middle)})
        for line in whole.requests
    )
    kept = [line for line in whole.requests if line.token_times[-1] <= middle]
    assert 0 < len(kept) < sum(bool(line.token_times) for line in cut)
    found = compare_recorded(replace(whole, requests=cut), profile)
    e2e_ms = [1e3 * (line.token_times[-1] - line.arrival) for line in kept]
    assert found.whole.measured["e2e_mean"] == pytest.approx(np.mean(e2e_ms))
    everybody = compare_recorded(whole, profile)
    assert found.whole.predicted["e2e_mean"] != everybody.whole.predicted["e2e_mean"]
    assert f"{len(cut) - len(kept)} requests without the times" in found.notes[1]
    assert len(everybody.notes) == 1


def test_means_follow_the_mean_step_and_medians_the_median_step(shared: Path) -> None:
    log = read_step_log(shared / "fidelity" / "vllm_cpu" / "run0.jsonl.gz")
    profile = fit_steps([log.path])
    typical = profile.typical_step
    assert typical is not None
    slow = typical.model_copy(update={"step_s": 3 * typical.step_s})
    ours = compare_recorded(log, profile_timing(profile)).whole.predicted
    slowed = compare_recorded(log, profile_timing(profile.model_copy(update={"typical_step": slow}))).whole.predicted
    without = compare_recorded(log, profile_timing(profile.model_copy(update={"typical_step": None}))).whole.predicted
    assert slowed["itl_p50"] > 2 * ours["itl_p50"]
    assert without["itl_p50"] > ours["itl_p50"]  # this run's steps have a long tail
    for metric in ("itl_mean", "ttft_p99", "e2e_mean"):
        assert slowed[metric] == without[metric] == ours[metric]


def test_at_most_ten_constants_and_all_in_their_ranges() -> None:
    assert len(FITTED) <= 10
    assert set(FITTED) | {"old_host_devices"} == set(EngineLaw.model_fields)
    EngineLaw.model_validate(engine_law().model_dump())


def test_the_verb_prints_one_json_object(gpu_runs: Path, tmp_path: Path) -> None:
    few = tmp_path / "few.json"
    few.write_text(json.dumps(json.loads(gpu_runs.read_text())[:1]))
    page = tmp_path / "page.html"
    done = CliRunner().invoke(app, ["validate", str(few), "--json", "--html", str(page)])
    assert done.exit_code == 0
    tree = json.loads(done.stdout)
    assert tree["overall"]["itl_mean"]["n"] == 1
    assert tree["not_run"] == []
    assert "<svg" in page.read_text()
