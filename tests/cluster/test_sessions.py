"""Closed loops: who waits for an answer before asking again."""

from dataclasses import replace

import numpy as np
import pytest

from simkit.cluster.merged import merged_run
from simkit.cluster.result import FleetResult
from simkit.cluster.serve import serve_cluster
from simkit.cluster.settings import Cluster
from simkit.engine.deployment import ReplicaSpec
from simkit.errors import InputError
from simkit.metrics.summary import summarize
from simkit.workloads.chats import ChatSpec, chats
from simkit.workloads.lengths import ConstantLength, LogNormalLength
from simkit.workloads.workload import Workload

MS = 1_000_000


def serve(workload: Workload, spec: ReplicaSpec, **cluster: object) -> FleetResult:
    return serve_cluster(workload, Cluster.model_validate(cluster), lambda _: spec, 0)


def steps(names: list[str], service_ms: list[int], think_ms: list[int], arrival_ms: list[int]) -> Workload:
    """Requests of one step each, in sessions."""
    return Workload(
        name="steps",
        arrival_us=np.array(arrival_ms, dtype=np.int64) * 1000,
        prompt_tokens=np.array(service_ms, dtype=np.int32) * 1000,
        output_tokens=np.ones(len(names), dtype=np.int32),
        session_id=tuple(names),
        extra={"think_us": tuple(ms * 1000 for ms in think_ms)},
    )


def test_the_next_turn_comes_after_answer_and_thought(single_server: ReplicaSpec) -> None:
    workload = steps(["a", "a", "a"], [10, 20, 5], [0, 7, 3], [4, 5, 6])
    closed = serve(workload, single_server, sessions={"replay": "closed"})
    assert (closed.requests.arrival_ns // MS).tolist() == [4, 14 + 7, 41 + 3]
    assert (closed.requests.finish_ns // MS).tolist() == [14, 41, 49]
    opened = serve(workload, single_server, sessions={"replay": "open"})
    assert (opened.requests.arrival_ns // MS).tolist() == [4, 5, 6]
    assert (opened.requests.finish_ns // MS).tolist() == [14, 34, 39]


def test_users_take_sessions_one_after_another(single_server: ReplicaSpec) -> None:
    workload = steps(["a", "b", "c", "a"], [10, 10, 10, 10], [0, 0, 0, 5], [0, 1, 2, 3])
    one = serve(workload, single_server, sessions={"replay": "closed", "users": 1})
    assert (one.requests.finish_ns // MS).tolist() == [10, 35, 45, 25]
    two = serve(workload, single_server, replicas=2, sessions={"replay": "closed", "users": 2})
    assert (two.requests.arrival_ns // MS).tolist() == [0, 0, 10, 15]


def test_a_caller_waits_for_its_sub_agents(single_server: ReplicaSpec) -> None:
    """1 calls 2 and 3 (then 4), which run side by side; 5 follows from all of them."""
    workload = replace(
        steps(["s"] * 5, [10, 10, 30, 10, 10], [0, 1, 2, 1, 4], [0, 1, 2, 3, 4]),
        request_id=("1", "2", "3", "4", "5"),
        extra={
            "think_us": (0, 1_000, 2_000, 1_000, 4_000),
            "parent_id": (None, "1", "1", "2", "1 3 4"),
        },
    )
    fleet = serve(workload, single_server, replicas=4, sessions={"replay": "closed"})
    assert (fleet.requests.arrival_ns // MS).tolist() == [0, 11, 12, 22, 46]
    assert (fleet.requests.finish_ns // MS).tolist() == [10, 21, 42, 32, 56]


def test_a_session_stops_or_goes_on_after_a_failure(single_server: ReplicaSpec) -> None:
    workload = steps(["a", "a", "a", "b"], [10, 50, 10, 10], [0, 1, 1, 0], [0, 1, 2, 3])
    clients = {"timeout_s": 0.03}
    stops = serve(workload, single_server, replicas=2, clients=clients, sessions={"replay": "closed"})
    assert (stops.accounts.finished, stops.accounts.timed_out, stops.accounts.never_asked) == (2, 1, 1)
    on = serve(
        workload, single_server, replicas=2, clients=clients, sessions={"replay": "closed", "after_failure": "go_on"}
    )
    assert (on.accounts.finished, on.accounts.timed_out, on.accounts.never_asked) == (3, 1, 0)


def test_a_run_of_closed_loops_has_what_was_asked_in_order_of_asking(single_server: ReplicaSpec) -> None:
    """The second of a times out, its third is never asked; the second of b comes before the first of c."""
    workload = steps(["a", "a", "a", "b", "b", "c"], [10, 50, 9, 5, 5, 5], [0, 1, 1, 0, 20, 0], [0, 1, 2, 1, 2, 30])
    fleet = serve(workload, single_server, replicas=3, clients={"timeout_s": 0.03}, sessions={"replay": "closed"})
    merged = merged_run(fleet)
    assert fleet.accounts.never_asked == 1
    assert merged.requests.request_id == ("0", "3", "1", "4", "5")
    assert (np.diff(merged.requests.arrival_ns) > 0).all()
    assert summarize(merged)["requests"] == {
        "arrived": 5,
        "unfinished": 0,
        "finished": 4,
        "rejected": 0,
        "timed_out": 1,
    }
    assert (merged.requests.arrival_ns[merged.events.request] <= merged.events.time_ns).all()


def test_pauses_can_be_cut_and_filled_in(single_server: ReplicaSpec) -> None:
    workload = replace(steps(["a", "a"], [10, 10], [0, 0], [0, 1]), extra={"think_us": (None, 90_000_000)})
    fleet = serve(workload, single_server, sessions={"replay": "closed", "think_s": 1, "longest_think_s": 0.06})
    assert fleet.requests.arrival_ns[1] == 70 * MS
    nothing = replace(workload, extra={})
    with pytest.raises(InputError, match=r"has no think_us; give cluster\.sessions\.think_s"):
        serve(nothing, single_server, sessions={"replay": "closed"})


def test_a_parent_must_be_there_before(single_server: ReplicaSpec) -> None:
    workload = steps(["a", "a"], [10, 10], [0, 0], [0, 1])
    for parent, said in (("9", "is no request of it"), ("1", "does not come before it")):
        wrong = replace(workload, extra={**workload.extra, "parent_id": (None, parent)})
        with pytest.raises(InputError, match=said):
            serve(wrong, single_server, sessions={"replay": "closed"})


@pytest.fixture(scope="module")
def talk() -> Workload:
    spec = ChatSpec(
        sessions=60,
        sessions_per_s=2.0,
        turns_mean=4.0,
        think_s_mean=0.5,
        system_tokens=64,
        question=LogNormalLength(median_tokens=40, sigma=0.8, max_tokens=200),
        answer=ConstantLength(tokens=48),
        context_limit=2048,
    )
    return chats(spec, seed=3)


def test_chats_grow_and_share_what_was_said(talk: Workload) -> None:
    assert talk.session_id is not None
    assert talk.prefixes is not None
    before: dict[str, int] = {}
    for row, session in enumerate(talk.session_id):
        start, end = talk.prefixes.start[row], talk.prefixes.start[row + 1]
        ids = talk.prefixes.ids[start:end].tolist()
        assert len(ids) == (talk.prompt_tokens[row] + talk.output_tokens[row]) // 16
        assert ids[:4] == [0, 1, 2, 3]
        if session in before:
            last = before[session]
            earlier = talk.prefixes.ids[talk.prefixes.start[last] : talk.prefixes.start[last + 1]].tolist()
            assert ids[: len(earlier)] == earlier
            assert talk.prompt_tokens[row] > talk.prompt_tokens[last] + talk.output_tokens[last]
        before[session] = row


def test_a_sticky_chat_finds_all_that_was_said(talk: Workload, spec: ReplicaSpec) -> None:
    """With room for all, every turn after the first hits every whole block of the context before it."""
    roomy = replace(spec, num_blocks=40_000)
    closed = {"sessions": {"replay": "closed"}, "replicas": 3}
    sticky = serve(talk, roomy, router="sticky", **closed)
    assert talk.session_id is not None
    before: dict[str, int] = {}
    for row, session in enumerate(talk.session_id):
        if session in before:
            last = before[session]
            context = int(talk.prompt_tokens[last] + talk.output_tokens[last])
            # the last token's KV is not computed: nobody asks for what follows it
            assert sticky.requests.hit_tokens[row] in (context // 16 * 16, (context - 1) // 16 * 16)
        before[session] = row
    spread = serve(talk, roomy, router="round_robin", **closed)
    assert sticky.requests.hit_tokens.sum() > 1.3 * spread.requests.hit_tokens.sum()
