"""Transforms do what their names say, and say so."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simkit.errors import InputError
from simkit.workloads.describe import describe
from simkit.workloads.generate import GeneratorSpec, generate
from simkit.workloads.sharing import ideal_sharing
from simkit.workloads.transform import (
    fit_context,
    rate_to,
    selected,
    spread_ticks,
    superpose,
    take,
    thin,
    time_scale,
    window,
)
from simkit.workloads.workload import Prefixes, Workload


@pytest.fixture
def five() -> Workload:
    return Workload(
        name="five",
        arrival_us=np.array([0, 1, 2, 4, 8]) * 1_000_000,
        prompt_tokens=np.array([10, 20, 30, 40, 50], dtype=np.int32),
        output_tokens=np.array([5, 4, 3, 2, 1], dtype=np.int32),
        request_id=("a", "b", "c", "d", "e"),
        priority=np.array([0, 1, 0, 1, 0], dtype=np.int32),
        session_id=("s", "", "s", "", "s"),
        prefixes=Prefixes(16, np.array([0, 0, 1, 2, 4, 6]), np.array([7, 7, 7, 8, 7, 8])),
        extra={"turn": (1, None, 2, None, 3), "parent_id": (None, None, "a", None, "c")},
    )


@pytest.fixture(scope="module")
def poisson() -> Workload:
    seven = {"kind": "constant", "tokens": 7}
    lengths = {"kind": "independent", "input": seven, "output": seven}
    arrivals = {"kind": "poisson", "rate_per_s": 10}
    return generate(GeneratorSpec.model_validate({"requests": 40_000, "arrivals": arrivals, "lengths": lengths}))


def test_time_scale_stretches_and_is_recorded(five: Workload) -> None:
    slower = time_scale(five, 1.5)
    assert slower.arrival_us.tolist() == [0, 1_500_000, 3_000_000, 6_000_000, 12_000_000]
    assert slower.transforms == ("time_scale(1.5)",)
    assert five.transforms == ()


@pytest.mark.parametrize("rate", [0.125, 3.0, 1000.0])
def test_rate_to_gives_the_rate_and_keeps_the_bursts(poisson: Workload, rate: float) -> None:
    scaled = rate_to(poisson, rate)
    gaps = np.diff(scaled.arrival_us)
    assert 1e6 / gaps.mean() == pytest.approx(rate, rel=1e-4)
    assert describe(scaled).gap_cv == pytest.approx(describe(poisson).gap_cv, rel=1e-3)


def test_thinned_poisson_is_poisson_of_the_lower_rate(poisson: Workload) -> None:
    found = describe(thin(poisson, 0.25, seed=1))
    assert found.rate_per_s == pytest.approx(2.5, rel=0.03)
    assert found.gap_cv == pytest.approx(1, abs=0.03)


def test_superposed_streams_add_up(poisson: Workload) -> None:
    both = superpose([poisson, time_scale(poisson, 2.0)])
    assert len(both) == 80_000
    assert (np.diff(both.arrival_us) >= 0).all()
    assert describe(take(both, 40_000)).rate_per_s == pytest.approx(15, rel=0.03)
    assert both.transforms == ("superpose(2; 1: time_scale(2))",)


def test_superposed_copies_share_nothing_across(five: Workload) -> None:
    both = superpose([five, five])
    one, two = ideal_sharing(five), ideal_sharing(both)
    assert one is not None
    assert two is not None
    assert two.unique_blocks == 2 * one.unique_blocks
    assert two.block_hit_rate == one.block_hit_rate
    assert both.request_id is not None
    assert sorted(both.request_id)[:2] == ["0:a", "0:b"]
    assert both.session_id is not None
    assert set(both.session_id) == {"0:s", "1:s", ""}
    assert set(both.extra["parent_id"]) == {None, "0:a", "0:c", "1:a", "1:c"}


def test_window_counts_from_its_start(five: Workload) -> None:
    part = window(five, 1, 8)
    assert part.arrival_us.tolist() == [0, 1_000_000, 3_000_000]
    assert part.request_id == ("b", "c", "d")
    assert part.transforms == ("window(1, 8)",)


@given(st.lists(st.integers(0, 4), min_size=1, unique=True).map(sorted))
def test_selection_takes_all_columns_along(rows: list[int]) -> None:
    n = 5
    lengths = [2, 0, 1, 3, 1]
    prefixes = Prefixes(16, np.cumsum([0, *lengths]), np.arange(7) * 10)
    index = np.arange(n, dtype=np.int32)
    names = tuple("abcde")
    workload = Workload("x", index.astype(np.int64), index + 1, index + 2, names, index, names, prefixes)
    workload = replace(workload, extra={"turn": tuple(range(n))})
    part = selected(workload, np.array(rows))
    assert part.prompt_tokens.tolist() == [r + 1 for r in rows]
    assert part.request_id == part.session_id == tuple(names[r] for r in rows)
    assert part.extra == {"turn": tuple(rows)}
    assert part.priority is not None
    assert part.priority.tolist() == rows
    assert part.prefixes is not None
    split = np.split(part.prefixes.ids, part.prefixes.start[1:-1])
    whole = np.split(prefixes.ids, prefixes.start[1:-1])
    assert [s.tolist() for s in split] == [whole[r].tolist() for r in rows]


def test_long_requests_are_left_out_and_counted(five: Workload) -> None:
    fitting = fit_context(five, 33)
    assert fitting.prompt_tokens.tolist() == [10, 20, 30]
    assert fitting.dropped_rows == {"over_max_model_len": 2}
    assert fitting.transforms == ("fit_context(33, drop: 2 left out, 0 answers cut)",)


def test_long_answers_can_be_cut_instead(five: Workload) -> None:
    cut = fit_context(five, 41, "clip")
    assert cut.prompt_tokens.tolist() == [10, 20, 30, 40]
    assert cut.output_tokens.tolist() == [5, 4, 3, 1]
    assert cut.dropped_rows == {"over_max_model_len": 1}
    assert (cut.prompt_tokens + cut.output_tokens).max() <= 41


def test_spreading_without_ticks_says_so(five: Workload) -> None:
    same = spread_ticks(five)
    assert same.arrival_us.tolist() == five.arrival_us.tolist()
    assert "nothing to spread" in same.notes[-1]


def test_spreading_keeps_order_and_tick(five: Workload) -> None:
    ticked = replace(five, tick_us=1_000_000)
    spread = spread_ticks(ticked, seed=5)
    assert (np.diff(spread.arrival_us) >= 0).all()
    assert ((spread.arrival_us - five.arrival_us) < 1_000_000).all()
    assert spread.request_id == five.request_id
    assert spread.transforms == ("spread_ticks(1000000us, seed=5)",)


def test_figures_that_cannot_be_are_errors(five: Workload) -> None:
    for call, message in (
        (lambda: time_scale(five, 0), "time scale 0"),
        (lambda: time_scale(five, float("nan")), "time scale nan"),
        (lambda: time_scale(five, 1e12), "more than a century"),
        (lambda: rate_to(five, -1), "rate -1"),
        (lambda: rate_to(take(five, 1), 1), "arrive at once"),
        (lambda: thin(five, 1.5), "share 1.5"),
        (lambda: thin(five, 1e-9), "leaves no request"),
        (lambda: take(five, 0), "take 0"),
        (lambda: window(five, 5, 5), "0 <= start < end"),
        (lambda: window(five, 100, 200), "leaves no request"),
        (lambda: fit_context(five, 3), "leaves no request"),
        (lambda: fit_context(five, 1), "at least 2 tokens"),
        (lambda: superpose([]), "at least one workload"),
    ):
        with pytest.raises(InputError, match=message):
            call()
    other = replace(five, prefixes=Prefixes(512, np.array([0, 1, 1, 1, 1, 1]), np.array([0])))
    with pytest.raises(InputError, match="16, 512 tokens"):
        superpose([five, other])
