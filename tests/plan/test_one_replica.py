"""What stands beside the highest rate of one replica, and how far its step times may be off."""

import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

import simkit.fidelity
from simkit.calibrate.operator_profile import OperatorProfile, write_operator_profile
from simkit.cli.config import Config, read_config
from simkit.cli.fleet_plan import spec_of
from simkit.cli.step_time_error import step_time_error
from simkit.engine.deployment import Deployment, resolve
from simkit.metrics.slo import promise
from simkit.plan.answer import Question
from simkit.plan.capacity import find_capacity
from simkit.plan.confidence import StepTimeError
from simkit.plan.one_replica import OneReplica, look_at
from simkit.plan.space import SearchSpace, kinds
from simkit.plan.tree import one_replica_tree
from simkit.plan.words import one_replica
from simkit.report.plan_page import one_replica_page
from simkit.workloads.presets import preset
from simkit.workloads.workload import Workload
from tests.calibrate.made_up_profile import gemm_table, header

SLO = {"ttft_p99_s": 1.0, "tpot_p99_s": 0.05}


def read(device: str = "h100", **more: object) -> Config:
    tree: list[tuple[str, object]] = [
        ("deployment", {"model": "llama-3.1-8b", "device": device, "engine": {"max_model_len": 16384}}),
        ("workload", {"preset": "azure-conv-2023"}),
    ]
    return read_config(None, [*tree, *more.items()])


def draw(number: int) -> Workload:
    return preset("azure-conv-2023", requests=1000, seed=number, arrivals="poisson")


@pytest.fixture(scope="module")
def there() -> OneReplica:
    config = read(slo=SLO)
    workload = draw(0)
    rate = find_capacity(resolve(config.deployment), workload, SLO).rate_per_s
    assert rate is not None
    question = Question(workload, rate, promise(SLO), spec_of=partial(spec_of, config=config))
    kind = kinds(SearchSpace(), config.deployment)[0]
    return look_at(question, kind, StepTimeError(0.08, "test"), 6, draw)


def test_leaving_room_makes_the_promise_surer(there: OneReplica) -> None:
    chances = [there.sure.kept.value, there.kept_below[0.9].value, there.kept_below[0.8].value]
    assert chances == sorted(chances)
    assert chances[-1] > chances[0]


def test_the_bill_is_one_replicas_at_that_rate(there: OneReplica) -> None:
    bill, use = there.bill, there.use
    assert sum(bill.usd_per_hour.values()) == pytest.approx(bill.total_usd_per_hour)
    assert bill.total_usd_per_hour == pytest.approx(there.kind.usd_per_hour)
    assert bill.usd_per_request == pytest.approx(there.kind.usd_per_hour / 3600 / there.rate_per_s)
    tokens = use.input_tokens_per_s * bill.usd_per_million_input + use.output_tokens_per_s * bill.usd_per_million_output
    assert tokens * 3600 / 1e6 == pytest.approx(bill.total_usd_per_hour)


def test_what_binds_comes_first_and_all_is_said(there: OneReplica) -> None:
    exponents = [one.exponent or 0.0 for one in there.resources]
    assert exponents == sorted(exponents, reverse=True)
    assert exponents[0] > 0.1
    lines = one_replica(there)
    assert f"{there.resources[0].name} binds" in " ".join(lines)
    assert "probability" in lines[0]
    assert f"{there.bill.total_usd_per_hour:.2f} USD/h" in lines[1]
    tree = json.loads(json.dumps(one_replica_tree(there)))
    assert tree["confidence"]["promise_kept_at_share_of_rate"]["0.9"]["value"] == there.kept_below[0.9].value
    page = one_replica_page("t", ["headline", *lines], tree, promise(SLO), there)
    assert "Cost and energy" in page


def error_of(device: str) -> StepTimeError:
    config = read(device)
    return step_time_error(resolve(config.deployment), config, None)


def test_the_doubt_of_laws_is_what_measured_runs_showed() -> None:
    rows = yaml.safe_load((Path(simkit.fidelity.__file__).parent / "residuals.yaml").read_text())["runs"]
    off = np.array([row["itl_mean"] for row in rows if "itl_mean" in row])
    own = error_of("h100")
    assert own.spread == pytest.approx(float(np.sqrt((off**2).mean())))
    assert f"{len(off)} measured runs" in own.source
    lent = error_of("rtx-4090")
    assert lent.spread == pytest.approx(math.hypot(own.spread, 0.06))
    assert "rtx-4090" in lent.source


def test_a_stated_doubt_goes_first_and_a_rooflines_is_assumed() -> None:
    config = read()
    spec = resolve(Deployment(model="llama-3.1-8b", device="h100", step_time="uncalibrated"))
    assert step_time_error(spec, config, 0.2) == StepTimeError(0.2, "as stated")
    assert step_time_error(spec, config, None).spread == 0.15
    assert "assumed" in step_time_error(spec, config, None).source


def test_a_profile_of_operators_brings_its_held_out_error(tmp_path: Path) -> None:
    """The points kept apart took 1.25 times as long as the fit's at the same sizes: predictions are 0.2 too short."""
    fitted = gemm_table()
    kept = fitted.assign(median_ns=1.25 * fitted["median_ns"], use="held_out", kernel="kept apart")
    write_operator_profile(OperatorProfile(header(), {"gemm": pd.concat([fitted, kept])}), tmp_path / "p")
    found = step_time_error(resolve(read().deployment), read(profile=str(tmp_path / "p")), None)
    assert found.spread == pytest.approx(0.2, rel=1e-6)
    assert "not fitted on" in found.source


def test_a_profile_of_whole_steps_brings_its_worst_fold(tmp_path: Path) -> None:
    held = {"part": "all", "steps": 9, "median_abs": 0.01, "p90_abs": 0.1, "max_abs": 0.3, "bias": 0.0, "drift": -0.2}
    tree = {
        "schema": "simkit.profile/1",
        "created": "2026-01-31",
        "simkit_version": "0",
        "device": "h100-sxm",
        "engine": "vllm",
        "engine_sizes": {},
        "sources": [{"file": "a", "sha256": "0" * 64, "steps": 9, "requests": 9}],
        "seen": {"tokens": 1, "requests": 1, "context_tokens": 1, "pairs": 1.0},
        "step": {
            "step_s": 0.01,
            "token_s": 0.0,
            "request_s": 0.0,
            "pair_s": 0.0,
            "host": {"step_s": 0.0, "request_s": 0.0},
        },
        "held_out": [held],
    }
    path = tmp_path / "steps.json"
    path.write_text(json.dumps(tree))
    found = step_time_error(resolve(read().deployment), read(profile=str(path)), None)
    assert found.spread == pytest.approx(-math.log(0.8))
