"""Everything that is said about a chosen deployment."""

import json
import re
from dataclasses import replace
from datetime import date

import numpy as np
import pytest
import yaml

from simkit.cluster.settings import Cluster
from simkit.engine.deployment import Deployment, resolve
from simkit.metrics.result import Status
from simkit.metrics.slo import promise
from simkit.plan.answer import Question
from simkit.plan.changes import infeasible
from simkit.plan.confidence import StepTimeError, confidence, factors, kept_probability
from simkit.plan.decision import Decision, decide
from simkit.plan.fleet import replay_routed, replay_share
from simkit.plan.knee import Knee, find_knee, highest_rate
from simkit.plan.paired import Comparison, Contender, compare
from simkit.plan.replica_resources import in_use, with_more
from simkit.plan.search import search
from simkit.plan.settings import PlanSettings
from simkit.plan.space import SearchSpace, kinds
from simkit.plan.sure import surely
from simkit.plan.sweep import replay
from simkit.plan.traffic import resampled
from simkit.plan.tree import decision_tree
from simkit.plan.waterfalls import waterfalls
from simkit.plan.words import no_way, verdict
from simkit.report.comparison_page import paired_page, paired_tables, paired_words
from simkit.workloads.presets import preset
from simkit.workloads.transform import take
from simkit.workloads.workload import Workload

SLO = {"ttft_p99_s": 1.0, "tpot_p99_s": 0.05}
BASE = Deployment(model="llama-3.1-8b", device="h100")
GROWING = PlanSettings.model_validate(
    {"demand": {"rate_per_s": 30, "growth": {"per_month": 0.05, "start": "2026-11-01"}}, "replications": 6}
)


def draw(number: int) -> Workload:
    return preset("azure-conv-2023", requests=1000, seed=number, arrivals="poisson")


@pytest.fixture(scope="module")
def chosen(chat: Workload) -> tuple[Question, Decision]:
    question = Question(chat, 30.0, promise(SLO))
    found = search(kinds(SearchSpace(replicas=8), BASE), question).chosen
    assert found is not None
    kind, one = found
    assert one.replicas is not None
    return question, decide(question, kind, one.replicas, GROWING, StepTimeError(0.1, "test"), draw)


def test_the_knee_holds_and_just_above_it_does_not(chosen: tuple[Question, Decision]) -> None:
    _, d = chosen
    assert d.knee.rate_per_s is not None
    assert d.rate_per_s <= d.knee.rate_per_s * 1.01
    above = [one for rate, one in d.knee.seen if rate > d.knee.rate_per_s]
    assert above
    assert not any(one.holds for one in above)
    slower, faster = d.knee_by_factor[1.1], d.knee_by_factor[0.9]
    assert slower is not None
    assert faster is not None
    assert slower < d.knee.rate_per_s < faster


def test_verdict_is_at_most_fifteen_lines_and_tells_the_price(chosen: tuple[Question, Decision]) -> None:
    question, d = chosen
    lines = verdict(d, None, question.promise, GROWING)
    assert 8 <= len(lines) <= 15
    assert f"{d.bill.total_usd_per_hour:.2f} USD/h" in " ".join(lines)
    assert "probability" in " ".join(lines)


def test_the_month_it_runs_out_is_where_the_growth_passes_the_knee(chosen: tuple[Question, Decision]) -> None:
    _, d = chosen
    assert d.runs_out is not None
    assert d.knee.rate_per_s is not None
    months, when = d.runs_out
    assert 30 * 1.05 ** (months - 1) <= d.knee.rate_per_s < 30 * 1.05**months
    years, month = divmod(10 + months, 12)
    assert when == date(2026 + years, month + 1, 1)


def test_shares_in_use_agree_with_the_bill_and_with_closed_forms(chosen: tuple[Question, Decision]) -> None:
    """Model FLOPs of Llama-3.1-8B are twice its parameters a token, and attention's on top."""
    question, d = chosen
    spec = question.spec_of(d.kind)
    result = replay(spec, question.workload)
    used = in_use(spec, result)
    tokens = result.computed_tokens
    seconds = (result.end_ns - result.requests.arrival_ns[0]) / 1e9
    least = 2 * 7.0e9 * tokens / seconds / spec.device.flops_per_s("bf16")
    assert used["compute"] is not None
    assert least < used["compute"] < 1.5 * least
    assert used["bandwidth"] is not None
    # the weights are read once a step
    assert used["bandwidth"] > 14.9e9 * result.steps / seconds / spec.device.bandwidth_bytes_per_s
    assert used["link"] is None
    assert {r.name for r in d.resources} == {"compute", "bandwidth", "KV", "host", "link", "network"}
    assert d.use.prefill_share + d.use.decode_share + d.use.idle_share == pytest.approx(1.0)


def test_more_of_a_resource_shortens_its_steps_only() -> None:
    spec = resolve(BASE)
    faster = with_more(spec, "bandwidth")
    assert faster is not None
    assert np.all(faster.tables.linear_ns <= spec.tables.linear_ns * (1 + 1e-9))
    # few tokens wait for the weights, many for the multipliers
    assert faster.tables.linear_ns[1] / spec.tables.linear_ns[1] < 0.95
    stronger = with_more(spec, "compute")
    assert stronger is not None
    assert stronger.tables.linear_ns[8192] / spec.tables.linear_ns[8192] < 0.96
    wider = with_more(spec, "KV")
    assert wider is not None
    assert wider.num_blocks == pytest.approx(1.1 * spec.num_blocks, rel=1e-3)
    assert with_more(spec, "link") is None
    assert with_more(spec, "network") is None


def test_waterfalls_by_percentile_sum_to_the_latency(chosen: tuple[Question, Decision]) -> None:
    question, d = chosen
    result = replay(question.spec_of(d.kind), question.workload)
    done = result.requests.status == Status.FINISHED
    e2e = (result.requests.finish_ns - result.requests.arrival_ns)[done] / 1e9
    for one in waterfalls(result.requests):
        assert sum(one.parts_s.values()) == pytest.approx(one.e2e_s)
        low, high = np.quantile(e2e, [one.percentile / 100 - 0.02, min(1.0, one.percentile / 100 + 0.01)])
        assert low <= one.e2e_s <= high


def test_the_decision_is_json_and_its_commands_are_whole(chosen: tuple[Question, Decision]) -> None:
    _, d = chosen
    tree = decision_tree(d)
    assert json.loads(json.dumps(tree, default=str))["replicas"] == d.replicas
    documents = list(yaml.safe_load_all(d.launch.kubernetes))
    assert documents[0]["spec"]["replicas"] == d.replicas
    command = documents[0]["spec"]["template"]["spec"]["containers"][0]["command"]
    assert command[:3] == ["vllm", "serve", "meta-llama/Llama-3.1-8B-Instruct"]
    assert "--max-model-len 131072" in d.launch.vllm
    assert "--context-length 131072" in d.launch.sglang
    assert "--goodput ttft:1000 tpot:50" in d.launch.load_test


def test_doubt_about_step_times_widens_intervals(chosen: tuple[Question, Decision], chat: Workload) -> None:
    question, d = chosen
    spec = question.spec_of(d.kind)
    exact = confidence(spec, chat, d.replicas, 30.0, question.promise, StepTimeError(0.0, ""), draw, 6)
    wide = confidence(spec, chat, d.replicas, 30.0, question.promise, StepTimeError(0.2, ""), draw, 6)
    key = "tpot_p99_s"
    assert exact.together[key].high - exact.together[key].low < wide.together[key].high - wide.together[key].low
    assert exact.kept == exact.kept_as_assumed
    assert exact.sampling == wide.sampling
    assert np.mean(np.log(factors(0.2, 20))) == pytest.approx(0.0, abs=1e-9)
    assert np.std(np.log(factors(0.2, 200))) == pytest.approx(0.2, rel=0.02)


def test_no_steady_state_is_told_under_a_growing_queue(chosen: tuple[Question, Decision], chat: Workload) -> None:
    question, d = chosen
    spec = question.spec_of(d.kind)
    sure = confidence(spec, chat, 1, 100.0, question.promise, StepTimeError(0.1, ""), None, 4)
    assert sure.grows == 1.0
    assert sure.kept.value == 0.0
    assert np.isnan(sure.sampling["ttft_p99_s"].value)
    assert sure.together["ttft_p99_s"].low == float("inf")


def test_infeasible_names_the_gap_and_three_ways_out(chat: Workload) -> None:
    slow = Deployment(model="llama-3.1-8b", device="l4")
    question = Question(chat, 3.0, promise({"ttft_p99_s": 10.0, "tpot_p99_s": 0.045}))
    space = SearchSpace(replicas=4)
    slow = slow.model_copy(update={"engine": slow.engine.model_copy(update={"max_model_len": 16384})})
    found = search(kinds(space, slow), question)
    assert found.chosen is None
    why = infeasible(question, found, slow, space)
    assert why.binding == "tpot_p99_s"
    assert why.measured is not None
    assert why.measured > 0.045
    assert 1 <= len(why.nearest) <= 3
    assert "tpot p99" in why.nearest[0]
    # the looser promise that is offered holds
    offered = {f"{m}_p99_s": float(limit) for m, limit in re.findall(r"(t[a-z]+) p99 ([0-9.]+) s", why.nearest[0])}
    looser = replace(question, promise=promise({"ttft_p99_s": 10.0, **offered}))
    assert search(kinds(space, slow), looser).chosen is not None
    assert any("USD/h" in way for way in why.nearest)
    assert no_way(why)[0].startswith("Nothing that was allowed holds")


def contender(name: str, deployment: Deployment, price: float = 3.0) -> Contender:
    return Contender(name, resolve(deployment), 1, 1, price, draw, 8.0, StepTimeError(0.1, ""))


def test_equal_deployments_differ_by_exactly_nothing() -> None:
    found = compare([contender("a", BASE), contender("b", BASE)], promise(SLO), 3)
    (difference,) = found.differences
    assert difference.same
    assert all(interval == (0.0, 0.0, 0.0) for interval in difference.figures.values())
    assert difference.usd_per_million_requests == (0.0, 0.0, 0.0)
    assert difference.cheaper.value == difference.dearer.value == 0.0


def test_equal_deployments_are_equal_where_answers_of_one_token_have_no_tpot() -> None:
    def short(number: int) -> Workload:
        drawn = draw(number)
        return replace(drawn, output_tokens=np.ones_like(drawn.output_tokens))

    both = [replace(contender(name, BASE), draw=short) for name in ("a", "b")]
    (difference,) = compare(both, promise({"ttft_p99_s": 1.0}), 2).differences
    assert difference.same


def test_a_side_that_turns_requests_away_is_told_of() -> None:
    """Every fourth prompt is longer than the short context, and without these the short side looks faster."""

    def every_fourth_long(number: int) -> Workload:
        drawn = draw(number)
        long = np.arange(len(drawn)) % 4 == 0
        prompts = np.where(long, 5000, np.minimum(drawn.prompt_tokens, 500)).astype(np.int32)
        return replace(drawn, prompt_tokens=prompts, output_tokens=np.full_like(drawn.output_tokens, 50))

    small = BASE.model_copy(update={"engine": BASE.engine.model_copy(update={"max_model_len": 4096})})
    both = [replace(contender(n, d), draw=every_fourth_long) for n, d in (("whole", BASE), ("short", small))]
    found = compare(both, promise({}), 2)
    assert found.turned_away == (0.0, 0.25)
    assert found.not_finished == (0.0, 0.0)
    assert found.differences[0].figures["ttft_mean_s"].value < 0
    lines = paired_words(found)
    assert lines[0].startswith("Warning: short turns 25.0 % of its requests away; its latencies are of the others")
    (table,) = paired_tables(found)
    rows = list(zip(*(column.cells for column in table.columns), strict=True))
    assert [str(cell) for row in rows if str(row[0]) == "requests turned away" for cell in row[1:]] == [
        *("0 %", "25.0 %", "+25.00 %")
    ]
    assert not any("not finished" in str(row[0]) for row in rows)
    assert "turns 25.0 % of its requests away" in paired_page(found, lines, {})
    served = compare([contender("a", BASE), contender("b", BASE)], promise({}), 2)
    assert not any("Warning" in line for line in paired_words(served))


def test_a_difference_is_known_better_than_the_figures() -> None:
    found: Comparison = compare(
        [
            contender("bf16", BASE),
            contender("fp8", BASE.model_copy(update={"kv": "fp8"})),
            contender("dear", BASE, 4.0),
        ],
        promise(SLO),
        5,
    )
    faster, dear = found.differences
    own, gap = found.figures[0]["tpot_mean_s"], faster.figures["tpot_mean_s"]
    assert gap.high < 0
    assert gap.high - gap.low < own.high - own.low
    assert not faster.same
    assert faster.cheaper.value == 1.0
    assert dear.dearer.value == 1.0
    assert dear.usd_per_hour == 1.0
    # the same traffic and step times: prices differ as 4 to 3, to the precision of the knee
    ratio = found.usd_per_million_requests[2] / found.usd_per_million_requests[0]
    assert ratio == pytest.approx(4 / 3, rel=1e-9)


def test_a_difference_on_a_recording_is_around_the_recordings_own(chat: Workload) -> None:
    def drawn(number: int) -> Workload:
        return resampled(chat, number) if number else chat

    def of_trace(name: str, deployment: Deployment) -> Contender:
        return replace(contender(name, deployment), draw=drawn, recorded=True)

    fp8 = BASE.model_copy(update={"kv": "fp8"})
    found = compare([of_trace("bf16", BASE), of_trace("fp8", fp8)], promise(SLO), 6)
    own = [replay_share(resolve(one), chat, 1, 8.0, promise(SLO)) for one in (BASE, fp8)]
    (gap,) = found.differences
    assert gap.figures["tpot_mean_s"].value == own[1].figures["tpot_mean_s"] - own[0].figures["tpot_mean_s"]
    assert gap.figures["tpot_mean_s"].high < 0
    more = compare([of_trace("bf16", BASE), of_trace("fp8", fp8)], promise(SLO), 18).differences[0]
    widths = [one.high - one.low for one in (gap.figures["tpot_mean_s"], more.figures["tpot_mean_s"])]
    assert widths[1] > 0.5 * widths[0]  # t of 16 degrees is 0.76 of that of 4; by root n it would be 0.44


def test_more_replications_do_not_narrow_what_doubtful_step_times_do_to_a_price(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Knees in inverse proportion to the step times: at 3 and 4 USD/h, 1 / 3600 USD a request apart, times the factor.

    That factor is one for all seeds, log-normal by 0.1: in 95 % of worlds it is between exp(-0.196) and exp(0.196).
    """

    def knee(
        _spec: object, _traffic: object, _replicas: int, _promise: object, _guess: float | None, factor: float
    ) -> Knee:
        return Knee(1.0 / factor, "saturated", ())

    monkeypatch.setattr("simkit.plan.paired.find_knee", knee)
    few_requests = [
        replace(contender(str(price), BASE, price), draw=lambda number: take(draw(number), 50)) for price in (3.0, 4.0)
    ]
    apart = 1e6 / 3600
    for replications in (5, 20, 80):
        (gap,) = compare(few_requests, promise(SLO), replications).differences
        low, value, high = gap.usd_per_million_requests
        assert value == pytest.approx(apart, rel=0.01)
        for end in (low, high):
            assert abs(end - value) >= apart * (1 - np.exp(-0.196))
        if replications >= 20:
            assert high - low <= 1.2 * apart * (np.exp(0.196) - np.exp(-0.196))


def test_highest_rate_is_found_wherever_it_is() -> None:
    for truth in (0.5, 3.0, 17.0, 96.0):
        for guess in (None, 1.0, 20.0):
            found = highest_rate(lambda rate, truth=truth: rate <= truth, 100.0, guess, 0.01)  # type: ignore[misc]
            assert found == pytest.approx(truth, rel=0.011)
    assert highest_rate(lambda rate: False, 100.0, None, 0.01) is None
    # a bound that counts only the answers of prompts that share content is far above what is held
    for guess in (None, 0.7):
        found = highest_rate(lambda rate: rate <= 0.6, 1000.0, guess, 0.01)
        assert found is not None
        assert found <= 0.6 < 1.01 * found


def test_the_knee_of_many_replicas_is_as_many_times_that_of_one(chat: Workload) -> None:
    """Poisson arrivals dealt in turn are calmer for each of n replicas: n times one's rate, or a bit more."""
    spec = resolve(BASE)
    one = find_knee(spec, chat, 1, promise(SLO)).rate_per_s
    four = find_knee(spec, chat, 4, promise(SLO)).rate_per_s
    assert one is not None
    assert four is not None
    assert 0.97 * 4 * one < four < 1.3 * 4 * one


def test_to_be_sure_takes_the_cheapest_that_is(chat: Workload) -> None:
    """Against trying every kind and every number of replicas."""
    question = Question(chat, 30.0, promise(SLO))
    settings = PlanSettings(sure=0.8, replications=5)
    error = StepTimeError(0.15, "test")
    options = kinds(SearchSpace(devices=("h100", "h200", "l40s"), replicas=7), BASE)  # type: ignore[arg-type]
    found = search(options, question, every=True)
    everything = []
    for kind in options:
        spec = question.spec_of(kind)
        for replicas in range(1, 8):
            kept = kept_probability(spec, chat, replicas, 30.0, question.promise, error, draw, 5)
            held = replay_share(spec, chat, replicas, 30.0, question.promise).holds
            routed = replicas == 1 or replay_routed(spec, chat, replicas, 30.0, question.promise, Cluster()).holds
            if kept.value >= 0.8 and held and routed:
                everything.append((replicas * kind.replica_usd_per_hour, kind.number, replicas))
    chosen = surely(question, found, settings, lambda _: error, draw)
    assert chosen is not None
    kind, replicas = chosen
    assert (replicas * kind.replica_usd_per_hour, kind.number, replicas) == min(everything)


def test_the_door_of_a_cluster_is_what_the_whole_fleet_is_tried_behind(chat: Workload) -> None:
    """A gateway that lets one request into each replica and has none wait turns the rest away."""
    spec = resolve(BASE)
    open_door = replay_routed(spec, chat, 2, 8.0, promise(SLO), Cluster(router="least_outstanding"))
    assert open_door.holds
    shut = Cluster.model_validate({"admission": {"replica_limit": 1, "queue_limit": 0}})
    turned_away = replay_routed(spec, chat, 2, 8.0, promise(SLO), shut)
    assert "rejected" in turned_away.missed
    assert turned_away.rejected > 0
    hasty = Cluster.model_validate({"clients": {"timeout_s": 0.5}})
    assert "given up" in replay_routed(spec, chat, 2, 8.0, promise(SLO), hasty).missed
