"""Generated workloads have the distributions that were asked for."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from simkit.errors import InputError
from simkit.workloads.arrivals import ARRIVALS, WITH_CV, arrival_spec, weibull_shape
from simkit.workloads.describe import describe, spearman
from simkit.workloads.generate import GeneratorSpec, generate, load_spec
from simkit.workloads.quantiles import QuantileTable, quantile_table
from simkit.workloads.sharing import ideal_sharing

CONSTANT = {"kind": "constant", "tokens": 7}
FIXED = {"kind": "independent", "input": CONSTANT, "output": CONSTANT}


def spec(**changes: object) -> GeneratorSpec:
    base: dict[str, object] = {
        "requests": 20_000,
        "arrivals": {"kind": "poisson", "rate_per_s": 5},
        "lengths": FIXED,
    }
    return GeneratorSpec.model_validate(base | changes)


def gaps_s(arrivals: dict[str, object], requests: int = 20_000) -> np.ndarray:
    workload = generate(spec(arrivals=arrivals, requests=requests))
    return np.diff(np.concatenate(([0], workload.arrival_us))) / 1e6


def test_constant_arrivals_are_equally_spaced() -> None:
    assert gaps_s({"kind": "constant", "rate_per_s": 4}, 9).tolist() == [0.25] * 9


# distribution functions are scipy's, at the parameters that theory gives for the mean 1/5 s and the CV
LAWS = {
    "poisson": ({}, stats.expon(scale=0.2)),
    "gamma": ({"cv": 2.0}, stats.gamma(0.25, scale=0.8)),
    "weibull": ({"cv": math.sqrt(5)}, stats.weibull_min(0.5, scale=0.1)),  # shape 1/2: CV^2 = 4!/2!^2 - 1
}


@pytest.mark.parametrize("kind", LAWS)
def test_gaps_follow_their_law(kind: str) -> None:
    parameters, law = LAWS[kind]
    gaps = gaps_s({"kind": kind, "rate_per_s": 5} | parameters)
    # rounding to a microsecond moves a gamma of shape 1/4 by 4 % of its mass at the lowest end
    assert stats.kstest(gaps[gaps > 0.001], law_above(law, 0.001)).pvalue > 0.001
    assert gaps.mean() == pytest.approx(0.2, rel=0.05)


def law_above(law: object, low: float) -> object:
    return lambda x: (law.cdf(x) - law.cdf(low)) / law.sf(low)  # type: ignore[attr-defined]


@pytest.mark.parametrize("cv", [0.3, 1.0, 2.24, 8.0])
def test_weibull_shape_gives_the_cv(cv: float) -> None:
    law = stats.weibull_min(weibull_shape(cv))
    assert law.std() / law.mean() == pytest.approx(cv, rel=1e-6)


def test_empirical_gaps_are_scaled_to_the_rate() -> None:
    table = {"levels": [0, 0.9, 1], "values": [0.0, 0.1, 10.0]}
    gaps = gaps_s({"kind": "quantiles", "rate_per_s": 5, "gap_s": table}, 100_000)
    assert gaps.mean() == pytest.approx(0.2, rel=0.03)
    # nine in ten gaps lie evenly below 0.1 / (mean of the table * 5); the mean is 0.9 * 0.05 + 0.1 * 5.05
    edge = 0.1 / (0.55 * 5)
    assert (gaps < edge).mean() == pytest.approx(0.9, abs=0.005)
    assert gaps[gaps < edge].mean() == pytest.approx(edge / 2, rel=0.02)


@pytest.mark.parametrize("kind", ["poisson", "gamma"])
def test_duration_holds_rate_times_duration(kind: str) -> None:
    arrivals = {"kind": kind, "rate_per_s": 5} | ({"cv": 2} if kind == "gamma" else {})
    workload = generate(spec(requests=None, duration_s=4000, arrivals=arrivals))
    assert workload.arrival_us[-1] < 4000 * 10**6
    assert len(workload) == pytest.approx(20_000, rel=0.05)


def test_lognormal_lengths_have_their_median_and_mean() -> None:
    law = {"kind": "lognormal", "sigma": 0.8}
    lengths = {"kind": "independent", "input": law | {"median_tokens": 900}, "output": law | {"mean_tokens": 300}}
    workload = generate(spec(lengths=lengths))
    assert np.median(workload.prompt_tokens) == pytest.approx(900, rel=0.03)
    assert np.log(workload.prompt_tokens).std() == pytest.approx(0.8, rel=0.03)
    assert workload.output_tokens.mean() == pytest.approx(300, rel=0.03)
    reference = stats.lognorm(0.8, scale=900)
    assert stats.kstest(workload.prompt_tokens, reference.cdf).statistic < 0.015


def test_lognormal_lengths_keep_their_bounds() -> None:
    law = {"kind": "lognormal", "sigma": 3, "median_tokens": 100, "min_tokens": 10, "max_tokens": 500}
    workload = generate(spec(lengths={"kind": "independent", "input": law, "output": law}))
    assert (workload.prompt_tokens.min(), workload.prompt_tokens.max()) == (10, 500)


@pytest.mark.parametrize("rank", [-0.5, 0.0, 0.3, 0.9])
def test_rank_correlation_is_what_was_asked(rank: float) -> None:
    law = {"kind": "lognormal", "sigma": 1, "median_tokens": 10_000}
    lengths = {"kind": "independent", "input": law, "output": law, "rank_correlation": rank}
    workload = generate(spec(lengths=lengths))
    assert spearman(workload.prompt_tokens, workload.output_tokens) == pytest.approx(rank, abs=0.02)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=200))
def test_quantile_table_is_numpys(values: list[int]) -> None:
    table = quantile_table(np.array(values))
    expected = np.quantile(values, table.levels, method="inverted_cdf")
    assert list(table.values) == expected.tolist()
    assert table.at(np.array([0.0, 1.0])).tolist() == [min(values), max(values)]


def test_quantile_table_mean_is_its_area() -> None:
    assert QuantileTable(levels=(0, 0.5, 1), values=(0, 10, 30)).mean() == pytest.approx(2.5 + 10)


def test_lengths_from_a_trace_come_in_its_pairs(tmp_path: Path) -> None:
    rows = [(10, 1), (20, 2), (30, 3)]
    text = "num_prefill_tokens,num_decode_tokens\n" + "".join(f"{p},{d}\n" for p, d in rows)
    (tmp_path / "t.csv").write_text(text)
    (tmp_path / "s.yaml").write_text(
        "requests: 3000\narrivals: {kind: poisson, rate_per_s: 1}\nlengths: {kind: trace, path: t.csv}\n"
    )
    workload = generate(load_spec(tmp_path / "s.yaml"))
    pairs = list(zip(workload.prompt_tokens.tolist(), workload.output_tokens.tolist(), strict=True))
    assert set(pairs) == set(rows)
    assert all(pairs.count(row) == pytest.approx(1000, rel=0.12) for row in rows)


def test_groups_share_their_whole_blocks() -> None:
    prefix = {"kind": "groups", "groups": 4, "prefix_tokens": 100, "share": 0.75}
    workload = generate(spec(prefix=prefix))
    assert set(workload.prompt_tokens.tolist()) == {7, 107}
    assert (workload.prompt_tokens == 107).mean() == pytest.approx(0.75, abs=0.01)
    shared = ideal_sharing(workload)
    assert shared is not None
    assert shared.unique_blocks == 4 * 6  # of 16 tokens: the last 4 tokens of the prefix fill no block
    members = int((workload.prompt_tokens == 107).sum())
    assert shared.token_hit_rate == pytest.approx((members - 4) * 96 / workload.prompt_tokens.sum())


def test_popular_groups_follow_zipf() -> None:
    workload = generate(spec(prefix={"kind": "groups", "groups": 3, "prefix_tokens": 16, "zipf": 1}))
    assert workload.prefixes is not None
    counts = sorted(np.bincount(workload.prefixes.ids).tolist(), reverse=True)
    assert np.array(counts) / 20_000 == pytest.approx(np.array([6, 3, 2]) / 11, abs=0.01)


def test_equal_seeds_give_equal_workloads_and_others_do_not() -> None:
    first, second, other = generate(spec(), 1), generate(spec(), 1), generate(spec(), 2)
    assert (first.arrival_us == second.arrival_us).all()
    assert (first.arrival_us != other.arrival_us).any()


def test_each_purpose_has_its_own_stream() -> None:
    law = {"kind": "lognormal", "sigma": 1, "median_tokens": 99}
    one = generate(spec(lengths={"kind": "independent", "input": law, "output": law}))
    two = generate(spec(lengths={"kind": "independent", "input": CONSTANT, "output": law}))
    assert (one.arrival_us == two.arrival_us).all()
    assert (one.output_tokens == two.output_tokens).all()


@pytest.mark.parametrize("kind", ARRIVALS)
def test_every_process_has_its_rate(kind: str) -> None:
    table = QuantileTable(levels=(0, 1), values=(0, 2))
    process = arrival_spec(kind, 3.0, 1.5 if kind in WITH_CV else None, table)
    workload = generate(spec().model_copy(update={"arrivals": process}))
    assert describe(workload).rate_per_s == pytest.approx(3, rel=0.05)


POISSON = "arrivals: {kind: poisson, rate_per_s: 1}\n"
TRACE = "lengths: {kind: trace, path: x}\n"
BAD = {
    "requests: 5\nduration_s: 3\n" + POISSON + TRACE: "give exactly one of requests and duration_s",
    "requests: 5\narrivals: {kind: poison, rate_per_s: 1}\n"
    + TRACE: "arrivals.kind='poison': .* did you mean 'poisson'",
    "requests: 5\narrivals: {kind: poisson, rate_pers: 1}\n"
    + TRACE: "rate_pers: unknown key; did you mean 'rate_per_s'",
    "requests: 5\narrivals: {kind: poisson, rate_per_s: .nan}\n" + TRACE: "rate_per_s=nan",
    "requests: 5\narrivals: {rate_per_s: 1}\n" + TRACE: "arrivals: is no mapping with a 'kind'",
    "requests: -5\n" + POISSON + TRACE: "requests=-5",
    "requets: 5\n" + POISSON + TRACE: "requets: unknown key; did you mean 'requests'",
    "requests: 5\n" + POISSON: "lengths: is missing",
    "requests: [5": "is not YAML",
    "- 1": "is not a mapping",
    "": "is not a mapping",
    "!!python/object/apply:os.system [ls]": "is not YAML",
}


@pytest.mark.parametrize("text", BAD)
def test_bad_spec_is_one_line_with_its_place(text: str, tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=BAD[text]) as error:
        load_spec(path)
    assert str(error.value).startswith(f"{path}:")
    assert "\n" not in str(error.value)


def test_figures_that_cannot_be_are_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'poisson'"):
        arrival_spec("poison", 1)
    with pytest.raises(InputError, match="need a coefficient of variation"):
        arrival_spec("gamma", 1)
    with pytest.raises(InputError, match="cv 2: is of gamma and weibull gaps"):
        arrival_spec("poisson", 1, cv=2)
    for rate in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="a rate above 0"):
            arrival_spec("poisson", rate)
    with pytest.raises(InputError, match="seed -1"):
        generate(spec(), -1)
    with pytest.raises(InputError, match="no request arrives"):
        generate(spec(requests=None, duration_s=1e-5))
    with pytest.raises(InputError, match="cannot be read"):
        load_spec(tmp_path / "none.yaml")
