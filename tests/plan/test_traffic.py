"""Shares of a fleet's traffic, and other samples of it, against what they are samples of."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from simkit.cluster.settings import Cluster
from simkit.engine.deployment import Deployment, resolve
from simkit.metrics.slo import promise
from simkit.plan import traffic
from simkit.plan.fleet import replay_routed, replay_share
from simkit.plan.scenario import drifted, with_burst
from simkit.plan.sweep import mean_rate
from simkit.plan.traffic import I64, replica_share, resampled
from simkit.workloads.presets import preset
from simkit.workloads.sharing import ideal_sharing
from simkit.workloads.workload import Prefixes, Workload


@pytest.mark.parametrize("replicas", [1, 2, 3, 7])
def test_a_share_has_its_part_of_the_rate(chat: Workload, replicas: int) -> None:
    share = replica_share(chat, replicas, 21.0, requests=3000)
    assert mean_rate(share) == pytest.approx(21.0 / replicas, rel=0.02)
    assert len(share) >= 3000
    assert np.all(np.diff(share.arrival_us) >= 0)


def test_the_shares_of_all_replicas_are_the_workload(chat: Workload) -> None:
    """A share that goes on with the workload takes the next replica's requests: n times round is every request once."""
    share = replica_share(chat, 4, 10.0, requests=len(chat))
    pairs = sorted(zip(share.prompt_tokens.tolist(), share.output_tokens.tolist(), strict=True))
    assert pairs == sorted(zip(chat.prompt_tokens.tolist(), chat.output_tokens.tolist(), strict=True))


def test_sessions_stay_together(chat: Workload) -> None:
    names = tuple(f"s{i // 5}" for i in range(len(chat)))
    marked = replace(chat, session_id=names, prompt_tokens=np.repeat(np.arange(1, 201, dtype=np.int32), 5))
    share = replica_share(marked, 4, 10.0, requests=200)
    assert all(count == 5 for count in np.bincount(share.prompt_tokens)[np.unique(share.prompt_tokens)])


def test_repeated_requests_share_no_prefix() -> None:
    shared = preset("mooncake-conversation", requests=300, rate_per_s=1.0, seed=0)
    once = replica_share(shared, 1, 1.0, requests=300)
    twice = replica_share(shared, 1, 1.0, requests=600)
    assert once.prefixes is not None
    assert twice.prefixes is not None
    assert len(np.unique(twice.prefixes.ids)) == 2 * len(np.unique(once.prefixes.ids))


def test_one_share_tells_the_whole_fleets_percentiles(chat: Workload) -> None:
    """Dealt in turn, all replicas are alike: the fleet that `simkit.cluster` replays whole shows the same figures."""
    spec = resolve(Deployment(model="llama-3.1-8b", device="h100"))
    slo = promise({"ttft_p99_s": 1.0})
    long = preset("azure-conv-2023", requests=16_000, seed=1, arrivals="poisson")
    one = replay_share(spec, long, 4, 40.0, slo)
    whole = replay_routed(spec, long, 4, 40.0, slo, Cluster())
    for key in ("ttft_mean_s", "ttft_p99_s", "tpot_mean_s", "tpot_p99_s", "e2e_mean_s"):
        assert one.figures[key] == pytest.approx(whole.figures[key], rel=0.12), key
    assert one.figures["goodput_per_s"] == pytest.approx(whole.figures["goodput_per_s"], rel=0.03)


def test_a_bootstrap_keeps_rate_and_means_and_is_another_sample(chat: Workload) -> None:
    samples = [resampled(chat, seed) for seed in range(40)]
    assert all(mean_rate(s) == pytest.approx(mean_rate(chat), rel=1e-3) for s in samples)
    means = [float(s.prompt_tokens.mean()) for s in samples]
    error = float(chat.prompt_tokens.std()) / np.sqrt(len(chat))
    assert np.mean(means) == pytest.approx(float(chat.prompt_tokens.mean()), abs=error)
    # requests are independent here, so the bootstrap's spread is the standard error of their mean
    assert np.std(means) == pytest.approx(error, rel=0.4)
    assert np.array_equal(resampled(chat, 3).arrival_us, samples[3].arrival_us)


def test_sessions_are_drawn_whole_and_begin_where_sessions_began(chat: Workload) -> None:
    """80 sessions of five turns, which overlap: a sample's begin when the trace's do and end when it ends, to scale."""
    few = _overlapping(chat)
    first, gaps = _sessions_of(few)
    begins, span = np.sort(np.array(list(first.values()))), int(few.arrival_us[-1] - few.arrival_us[0])
    again = 0
    for seed in range(20):
        sample = resampled(few, seed)
        assert np.all(np.diff(sample.arrival_us) >= 0)
        assert mean_rate(sample) == pytest.approx(mean_rate(few), rel=1e-3)
        its_first, its_gaps = _sessions_of(sample)
        scale = _scale(few, sample)
        assert (sample.arrival_us[-1] - sample.arrival_us[0]) / scale <= span * (1 + 1e-6)
        at = np.array(list(its_first.values())) / scale
        assert np.abs(at[:, None] - begins).min(axis=1).max() < 100  # a rounded us of a gap is some of all the time
        for name, mine in its_gaps.items():
            whole = gaps[name.split("#")[0] + "#0"]
            assert mine == pytest.approx(whole[: len(mine)] * scale, abs=10)
            if len(mine) < len(whole):  # cut: its next request would have come after the end of the trace
                behind = its_first[name] + scale * whole[: len(mine) + 1].sum()
                assert behind > scale * few.arrival_us[-1] - 100
        again += sum(not name.endswith("#0") for name in its_first)
    assert again == pytest.approx(20 * 80 / np.e, rel=0.1)  # the share that a bootstrap leaves out


def test_a_session_that_may_go_on_is_never_moved_to_an_earlier_time(chat: Workload) -> None:
    """What it did after the trace's end is not known; what ended is moved both ways."""
    few = _overlapping(chat)
    first, gaps = _sessions_of(few)
    end = int(few.arrival_us[-1])
    goes_on = {n: end - first[n] - int(gaps[n].sum()) < int(gaps[n].max()) for n in first}
    assert 2 <= sum(goes_on.values()) <= 20
    earlier = later = 0
    for seed in range(20):
        sample = resampled(few, seed)
        scale = _scale(few, sample)
        for name, at in _sessions_of(sample)[0].items():
            moved = at / scale - first[name.split("#")[0] + "#0"]
            assert moved > -10 or not goes_on[name.split("#")[0] + "#0"]
            earlier, later = earlier + (moved < -10), later + (moved > 10)
    assert min(earlier, later) > 100


def test_each_session_drawn_once_is_the_trace_itself(chat: Workload) -> None:
    class Once:
        def integers(self, _low: int, high: int, count: int) -> I64:
            return np.arange(count) % high

        def permutation(self, values: I64) -> I64:
            return values[::-1]

    few = _overlapping(chat)
    same = traffic._sessions_drawn(few, Once())  # type: ignore[arg-type]
    for column in ("arrival_us", "prompt_tokens", "output_tokens"):
        assert np.array_equal(getattr(same, column), getattr(few, column))
    assert same.session_id is not None
    assert few.session_id is not None
    assert [name.split("#")[0] for name in same.session_id] == list(few.session_id)


def test_other_days_of_sessions_load_a_replica_as_their_trace_does(chat: Workload) -> None:
    """A recording that begins empty and ends while half of the sessions go on: the load rises to its end.

    A day drawn from each of 60 recordings against the recordings: the share of requests by tenth of the time.
    """

    def recorded(seed: int) -> Workload:
        rng = np.random.default_rng(seed)
        turns = 1 + rng.geometric(1 / 30, 100)
        begins = rng.uniform(0, 3.6e9, 100)
        times = np.concatenate([b + np.cumsum(rng.exponential(60e6, n)) for b, n in zip(begins, turns, strict=True)])
        order = np.argsort(times)[: int(np.count_nonzero(times < 3.6e9))]
        names = np.repeat(np.arange(100), turns)[order]
        n = len(order)
        ones = np.ones(n, dtype=np.int32)
        return Workload("day", times[order].astype(np.int64), ones, ones, session_id=tuple(f"s{i}" for i in names))

    def by_tenth(workload: Workload) -> NDArray[np.float64]:
        at = (workload.arrival_us - workload.arrival_us[0]) / (workload.arrival_us[-1] - workload.arrival_us[0])
        return np.histogram(at, 10, (0, 1))[0] / len(workload)

    days = [recorded(seed) for seed in range(60)]
    truth = np.mean([by_tenth(day) for day in days], axis=0)
    assert truth[9] > 3 * truth[0]
    drawn = np.mean([by_tenth(resampled(day, seed)) for seed, day in enumerate(days)], axis=0)
    assert drawn == pytest.approx(truth, abs=0.012)


def _overlapping(chat: Workload) -> Workload:
    rng = np.random.default_rng(0)
    begins = np.sort(rng.integers(0, 3_600_000_000, 80))
    times = (begins[:, None] + np.cumsum(rng.integers(1, 60_000_000, (80, 5)), axis=1)).ravel()
    order = np.argsort(times, kind="stable")
    return replace(
        replica_share(chat, 1, 1.0, requests=400, most=400),
        arrival_us=times[order] - times.min(),
        prompt_tokens=np.repeat(np.arange(1, 81, dtype=np.int32), 5)[order],
        session_id=tuple(f"s{i // 5}" for i in order.tolist()),
    )


def _sessions_of(workload: Workload) -> tuple[dict[str, int], dict[str, I64]]:
    """When each session begins, and its gaps; of a trace, all are the first of their name."""
    assert workload.session_id is not None
    times: dict[str, list[int]] = {}
    for name, time in zip(workload.session_id, workload.arrival_us.tolist(), strict=True):
        times.setdefault(name if "#" in name else f"{name}#0", []).append(time)
    return {name: each[0] for name, each in times.items()}, {name: np.diff(each) for name, each in times.items()}


def _scale(trace: Workload, sample: Workload) -> float:
    """By how much a sample's time was stretched, from the gaps of a session that was not moved."""
    gaps, its = _sessions_of(trace)[1], _sessions_of(sample)[1]
    name = next(n for n in its if len(its[n]) == 4)
    return float(its[name].sum() / gaps[name.split("#")[0] + "#0"].sum())


def test_sessions_drawn_again_share_what_all_sessions_share(chat: Workload) -> None:
    """Each of 40 sessions of five turns begins with two blocks that all have, and has a block of its own a turn."""
    own = 2 + np.arange(200)
    ids = np.concatenate([[0, 1, *own[i // 5 * 5 : i + 1]] for i in range(200)])
    start = np.concatenate(([0], np.cumsum([3 + i % 5 for i in range(200)])))
    few = replace(
        replica_share(chat, 1, 1.0, requests=200, most=200),
        session_id=tuple(f"s{i // 5}" for i in range(200)),
        prefixes=Prefixes(16, start.astype(np.int64), ids.astype(np.int64)),
    )
    for seed in range(5):
        sample = resampled(few, seed)
        assert sample.prefixes is not None
        assert sample.session_id is not None
        common = {tuple(sample.prefixes.ids[begin : begin + 2].tolist()) for begin in sample.prefixes.start[:-1]}
        assert len(common) == 1
        owners: dict[int, set[str]] = {}
        for i, name in enumerate(sample.session_id):
            for block in sample.prefixes.ids[sample.prefixes.start[i] + 2 : sample.prefixes.start[i + 1]].tolist():
                owners.setdefault(block, set()).add(name)
        assert all(len(names) == 1 for names in owners.values())
        assert len(owners) == len(sample)  # a block of its own a request, copies among them


def test_a_burst_has_its_rate_and_a_tenth_of_the_time(chat: Workload) -> None:
    burst = with_burst(chat, 3.0)
    gap = float(np.diff(chat.arrival_us).mean())
    middle = np.diff(burst.arrival_us)[400:600]
    assert float(middle.mean()) == pytest.approx(gap / 3, rel=0.2)
    span = burst.arrival_us[-1] - burst.arrival_us[0]
    assert span / (chat.arrival_us[-1] - chat.arrival_us[0]) == pytest.approx(1 - 0.3 + 0.1, rel=0.01)


def test_drifted_prompts_stay_within_the_context(chat: Workload) -> None:
    longer = drifted(chat, 2.0, 4096)
    total = longer.prompt_tokens.astype(np.int64) + longer.output_tokens
    before = chat.prompt_tokens.astype(np.int64) + chat.output_tokens
    assert np.all((total <= 4096) | (total == before))
    free = 2 * chat.prompt_tokens.astype(np.int64) + chat.output_tokens <= 4096
    assert np.array_equal(longer.prompt_tokens[free], 2 * chat.prompt_tokens[free])


def test_longer_prompts_share_as_large_a_part_as_before() -> None:
    shared = preset("mooncake-conversation", requests=400, rate_per_s=1.0, seed=0)

    def found(workload: Workload) -> float:
        """The share of prompt tokens that an endless cache would find."""
        prefixes = workload.prefixes
        assert prefixes is not None
        seen: set[int] = set()
        hits = 0
        for i in range(len(workload)):
            mine = prefixes.ids[prefixes.start[i] : prefixes.start[i + 1]].tolist()
            hits += sum(block in seen for block in mine)
            seen.update(mine)
        return hits * prefixes.block_tokens / float(workload.prompt_tokens.sum())

    longer = drifted(shared, 1.5, 10**6)
    assert longer.prefixes is not None
    assert len(longer.prefixes.ids) == pytest.approx(1.5 * len(shared.prefixes.ids), rel=0.05)  # type: ignore[union-attr]
    # a prompt's blocks are whole numbers: less than one of each prompt is lost in rounding
    rounding = len(longer) * longer.prefixes.block_tokens / float(longer.prompt_tokens.sum())
    assert found(shared) - rounding < found(longer) <= found(shared)


def test_a_bootstrap_of_a_trace_that_shares_nothing_shares_nothing(chat: Workload) -> None:
    """Blocks that overlap have requests in common, which are different users' when they are drawn again."""
    n = len(chat)
    prompt = np.full(n, 160, dtype=np.int32)
    alone = replace(chat, prompt_tokens=prompt, prefixes=Prefixes(16, 10 * np.arange(n + 1), np.arange(10 * n)))
    for seed in range(5):
        sharing = ideal_sharing(resampled(alone, seed))
        assert sharing is not None
        assert sharing.token_hit_rate == 0.0


def test_bootstraps_of_a_trace_share_as_much_as_the_trace_does() -> None:
    """What an endless cache would find in samples scatters around what it finds in the trace itself."""
    trace = preset("mooncake-conversation", requests=4000, rate_per_s=1.0, seed=0)
    own = ideal_sharing(trace)
    found = [ideal_sharing(resampled(trace, seed)) for seed in range(8)]
    rates = [sharing.token_hit_rate for sharing in found if sharing is not None]
    assert own is not None
    assert len(rates) == 8
    assert min(rates) < own.token_hit_rate + 0.01
    assert np.mean(rates) == pytest.approx(own.token_hit_rate, abs=0.04)
