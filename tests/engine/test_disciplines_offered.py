"""What schedulers are told of a workload: beliefs, deadlines, tenants, and which settings a discipline takes."""

import numpy as np
import pytest

from simkit.engine.discipline import DISCIPLINES
from simkit.engine.predictor import Noisy, Oracle
from simkit.engine.settings import ORDERINGS, EngineSettings
from simkit.engine.simulate import load, simulate
from simkit.engine.state import NEVER, Limits
from simkit.errors import InputError
from simkit.models.steptables import constant_tables
from simkit.workloads.workload import ExtraColumn, Workload

ALL = np.arange(4)


def workload(**extra: ExtraColumn) -> Workload:
    return Workload(
        name="four",
        arrival_us=np.array([0, 10, 20, 30]),
        prompt_tokens=np.array([5, 6, 7, 8], dtype=np.int32),
        output_tokens=np.array([10, 20, 30, 40], dtype=np.int32),
        extra=extra,
    )


def limits(**given: object) -> Limits:
    return EngineSettings.model_validate(given).limits(1000, 100, 128, 8, kv_block_bytes=2_000_000)


def test_deadlines_are_durations_after_the_arrival() -> None:
    requests, _ = load(workload(deadline_us=(100, None, 0, None), ttft_slo_us=(7, 8, 9, None)), ALL, limits())
    # a target for the first token stands in where there is no deadline
    assert requests["deadline_ns"].tolist() == [100_000, 18_000, 20_000, NEVER]


def test_a_deadline_past_the_end_of_time_is_the_end_of_time() -> None:
    requests, _ = load(workload(deadline_us=(2**62, None, None, 2**62)), ALL, limits())
    assert requests["deadline_ns"][0] > NEVER - 1000
    assert requests["deadline_ns"][3] > NEVER - 1000


@pytest.mark.parametrize(
    ("extra", "groups"),
    [
        ({}, [0, 0, 0, 0]),
        ({"tenant_id": ("b", "a", None, "b"), "client_id": ("x", "x", "x", "x")}, [2, 1, 0, 2]),
        ({"client_id": ("x", "y", "x", "z")}, [0, 1, 0, 2]),
    ],
)
def test_tenants_are_numbered(extra: dict[str, ExtraColumn], groups: list[int]) -> None:
    assert load(workload(**extra), ALL, limits())[0]["tenant"].tolist() == groups
    assert load(workload(**extra), ALL[1:], limits())[0]["tenant"].max() <= max(groups)


def test_schedulers_believe_the_predictor() -> None:
    assert load(workload(), ALL, limits())[0]["predicted"].tolist() == [25] * 4
    assert load(workload(), ALL, limits(), Oracle())[0]["predicted"].tolist() == [10, 20, 30, 40]
    noisy = Noisy(sigma=0.5, seed=1)
    expected = noisy.believed(np.array([10, 20, 30, 40])).tolist()
    assert load(workload(), ALL, limits(), noisy)[0]["predicted"].tolist() == expected


def test_clients_ask_for_more_than_they_get_as_far_as_the_context_goes() -> None:
    assert load(workload(), ALL, limits())[0]["max_tokens"].tolist() == [10, 20, 30, 40]
    assert load(workload(), ALL, limits(), max_tokens=25)[0]["max_tokens"].tolist() == [25, 25, 30, 40]
    assert load(workload(), ALL, limits(), max_tokens=1000)[0]["max_tokens"].tolist() == [95, 94, 93, 92]


def test_a_shortest_first_queue_is_no_better_than_its_predictor() -> None:
    """Mean time in a single-server queue: the oracle's order is SJF, which no other order beats (Schrage, 1968)."""
    rng = np.random.default_rng(0)
    n = 300
    crowd = Workload(
        name="crowd",
        arrival_us=np.zeros(n, dtype=np.int64),
        prompt_tokens=np.ones(n, dtype=np.int32),
        output_tokens=rng.integers(1, 90, n).astype(np.int32),
    )
    one = limits(policy="sjf")._replace(max_running=1, pipeline_depth=1)
    tables = constant_tables(128, 8, step_ns=1000.0)

    def mean_finish(predictor: Oracle | Noisy) -> float:
        result = simulate(crowd, one, tables, 1000, predictor=predictor)
        return float(result.requests.finish_ns.mean())

    # one after the other, 1 us a token, the shortest first
    best = np.cumsum(np.sort(crowd.output_tokens.astype(np.int64)) * 1000).mean()
    assert mean_finish(Oracle()) == best
    little, much = mean_finish(Noisy(sigma=0.3)), mean_finish(Noisy(sigma=2.0))
    assert best < little < much


def test_the_watermark_of_vllm_v0_is_one_percent_unless_given() -> None:
    assert limits().watermark_blocks == 0
    assert limits(discipline="vllm-v0").watermark_blocks == 10
    assert limits(discipline="vllm-v0", watermark=0.0).watermark_blocks == 0


def test_swapping_a_block_takes_its_bytes_over_the_link() -> None:
    assert limits(discipline="vllm-v0").swap_block_ns == 0
    # 2 MB at 25 GB/s: 80 us
    assert limits(discipline="vllm-v0", preemption_mode="swap").swap_block_ns == 80_000
    assert limits(discipline="vllm-v0", preemption_mode="swap", swap_gb_per_s=50.0).swap_block_ns == 40_000


@pytest.mark.parametrize(
    ("discipline", "setting", "value"),
    [
        ("orca", "long_prefill_token_threshold", 100),
        ("sglang", "watermark", 0.05),
        ("static", "scheduler_reserve_full_isl", True),
        ("vllm-v1", "preemption_mode", "swap"),
        ("sarathi", "preemption_mode", "swap"),
        ("sarathi", "long_prefill_token_threshold_adaptive", True),
    ],
)
def test_a_setting_that_a_discipline_lacks_is_an_error(discipline: str, setting: str, value: object) -> None:
    with pytest.raises(InputError, match=f"engine.{setting}=.*discipline {discipline} does not have it") as caught:
        limits(discipline=discipline, **{setting: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("setting", "value"), [("watermark", 0.05), ("long_prefill_token_threshold", 9)])
def test_a_discipline_of_ones_own_may_read_vllms_settings(setting: str, value: object) -> None:
    assert limits(discipline="mine.py", **{setting: value}) != limits(discipline="mine.py")


@pytest.mark.parametrize("discipline", DISCIPLINES)
def test_every_discipline_starts_with_default_settings(discipline: str) -> None:
    result = simulate(
        workload(), limits(discipline=discipline), constant_tables(128, 8, step_ns=9.0), 1000, discipline=discipline
    )
    assert result.complete
    assert result.requests.generated_tokens.tolist() == [10, 20, 30, 40]


@pytest.mark.parametrize("policy", ORDERINGS)
def test_every_ordering_is_a_setting(policy: str) -> None:
    assert limits(policy=policy).ordering == ORDERINGS[policy]  # type: ignore[index]
