"""What each router chooses, on fleets made up for it."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simkit.cluster.fleet import serve_fleet
from simkit.cluster.routers import ROUTERS, Router, new_router
from simkit.cluster.routers.prefix_index import PrefixIndex
from simkit.engine.deployment import ReplicaSpec
from simkit.engine.state import I64
from simkit.errors import InputError
from simkit.workloads.workload import Workload

Chats = Callable[[int, float, int], Workload]


@dataclass
class MadeUp:
    """A fleet as somebody says it is."""

    requests: list[int]
    tokens: list[int] | None = None
    numbers: list[int] | None = None
    cached: list[int] | None = None
    kv: list[float] | None = None
    queue: list[tuple[int, int]] | None = None
    pools: list[str] | None = None
    ids: list[int] = field(default_factory=list)
    prompt: int = 160
    name: str = ""
    now_ns: int = 0

    def __len__(self) -> int:
        return len(self.requests)

    def number(self, replica: int) -> int:
        return self.numbers[replica] if self.numbers else replica

    def outstanding(self, replica: int) -> int:
        return self.requests[replica]

    def outstanding_tokens(self, replica: int) -> int:
        return (self.tokens or self.requests)[replica]

    def running_and_waiting(self, replica: int) -> tuple[int, int]:
        return self.queue[replica] if self.queue else (self.requests[replica], 0)

    def kv_used(self, replica: int) -> float:
        return self.kv[replica] if self.kv else 0.0

    def kv_tokens(self, replica: int) -> int:
        return 1 << 20

    def pool(self, replica: int) -> str:
        return self.pools[replica] if self.pools else "default"

    def cached_tokens(self, replica: int, request: int) -> int:
        return self.cached[replica] if self.cached else 0

    def prompt_tokens(self, request: int) -> int:
        return self.prompt

    def expected_tokens(self, request: int) -> int:
        return self.prompt + 40

    def session(self, request: int) -> str:
        return self.name

    def content(self, request: int) -> I64:
        return np.array(self.ids, dtype=np.int64)

    def content_tokens(self) -> int:
        return 16


def made(router: str | dict[str, object], seed: int = 0) -> Router:
    chosen = new_router(router, np.random.default_rng(seed))
    assert isinstance(chosen, Router)
    return chosen


def test_the_least_loaded_by_requests_or_by_tokens() -> None:
    fleet = MadeUp([3, 1, 2], tokens=[10, 500, 600])
    assert made("least_outstanding").choose(0, fleet) == 1
    assert made("least_tokens").choose(0, fleet) == 0
    even = made("least_outstanding")
    assert set(Counter(even.choose(0, MadeUp([2, 2, 7])) for _ in range(200))) == {0, 1}


def test_two_choices_never_take_the_worst() -> None:
    router = made("power_of_two")
    assert 2 not in {router.choose(0, MadeUp([1, 2, 9])) for _ in range(200)}


def test_sessions_stick_and_few_move_when_a_replica_leaves() -> None:
    router = made("sticky")
    whole = [0] * 10
    before = {name: router.choose(0, MadeUp(whole, name=name)) for name in map(str, range(2000))}
    assert before == {name: router.choose(0, MadeUp(whole, name=name)) for name in before}
    left = [number for number in range(10) if number != 4]
    after = {name: left[router.choose(0, MadeUp(whole[1:], numbers=left, name=name))] for name in before}
    moved = [name for name in before if before[name] != after[name]]
    assert {before[name] for name in moved} == {4}
    # 160 points a replica: shares are a tenth, give or take some 8 % (Karger et al.)
    assert max(Counter(before.values()).values()) < 1.5 * 200


def test_the_index_counts_leading_ids_and_forgets_the_oldest() -> None:
    index = PrefixIndex()
    index.sent(np.array([1, 2, 3]), 0, 100)
    index.sent(np.array([1, 2, 9]), 5, 100)
    assert index.matches(np.array([1, 2, 3, 4]), [0, 5, 7]) == [3, 2, 0]
    assert index.matches(np.array([2, 3]), [0]) == [2]
    index.sent(np.array([6, 7]), 0, 3)
    # room for three: of 1, 2, 3 the head is the last to be forgotten
    assert index.matches(np.array([1, 2, 3]), [0, 5]) == [1, 2]
    assert index.size(0) == 3


def test_prefix_aware_follows_the_cache_until_the_load_is_out_of_balance() -> None:
    router = made({"kind": "prefix_aware", "balance_abs": 10, "balance_rel": 1.5})
    fleet = MadeUp([0, 0, 0], ids=[1, 2, 3, 4, 5, 6, 7, 8, 9, 10])
    first = router.choose(0, fleet)
    assert [router.choose(1, fleet) for _ in range(5)] == [first] * 5
    busy = replace(fleet, requests=[11 if i == first else 0 for i in range(3)])
    assert router.choose(2, busy) != first
    # a match of 2 of 10 blocks is under the threshold of 0.3: the next in turn, or the smallest tree
    other = replace(fleet, ids=[1, 2, 30, 31, 32, 33, 34, 35, 36, 37])
    assert router.choose(3, other) == first + 1
    as_sglang = made({"kind": "prefix_aware", "unmatched": "smallest_tree"})
    first = as_sglang.choose(0, fleet)
    assert as_sglang.choose(3, other) != first


def test_prefix_aware_is_round_robin_where_nothing_is_shared(spec: ReplicaSpec, chats: Chats) -> None:
    """Request by request, named content or none: so hit rate and TTFT are equal too."""
    workload = replace(chats(300, 20.0, 5), prefixes=None)
    served = [serve_fleet(workload, [spec] * 3, name) for name in ("prefix_aware", "round_robin")]
    assert served[0].replica_of.tolist() == served[1].replica_of.tolist()
    assert served[0].requests.finish_ns.tolist() == served[1].requests.finish_ns.tolist()


def test_kv_overlap_weighs_cached_against_busy() -> None:
    # 160 tokens: 10 blocks to prefill less what is cached, plus blocks in use and its own
    fleet = MadeUp([1, 1], tokens=[96, 0], cached=[80, 0], ids=list(range(10)))
    # 5 + 6 + 10 = 21 against 10 + 0 + 10 = 20
    assert made("kv_overlap").choose(0, fleet) == 1
    assert made({"kind": "kv_overlap", "overlap_weight": 2.0}).choose(0, fleet) == 0
    hot = made({"kind": "kv_overlap", "temperature": 1000.0})
    assert set(Counter(hot.choose(0, fleet) for _ in range(100))) == {0, 1}


@dataclass
class Asked(MadeUp):
    """Counts how often a cache is looked into."""

    looks: int = 0

    def cached_tokens(self, replica: int, request: int) -> int:
        self.looks += 1
        return super().cached_tokens(replica, request)


@given(
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 10)), min_size=1, max_size=12),
    st.sampled_from([0.0, 0.5, 1.0, 3.0]),
    st.integers(1, 400),
    st.integers(0, 99),
)
def test_kv_overlap_asks_only_whom_it_might_choose(
    replicas: list[tuple[int, int]], weight: float, prompt: int, seed: int
) -> None:
    held = [tokens for tokens, _ in replicas]
    cached = [min(16 * blocks, prompt) for _, blocks in replicas]
    fleet = Asked(held, tokens=held, cached=cached, ids=list(range(10)), prompt=prompt)
    choice = made({"kind": "kv_overlap", "overlap_weight": weight}, seed).choose(0, fleet)
    costs = [weight * (prompt - cached[i]) / 16 + (held[i] + prompt) / 16 for i in range(len(fleet))]
    equal = [i for i, cost in enumerate(costs) if cost == min(costs)]
    assert choice == equal[int(np.random.default_rng(seed).random() * len(equal))]
    assert fleet.looks <= len(fleet)
    # nothing cached could make up for so much to do
    busy = Asked([0, 10_000], tokens=[0, 10_000], cached=[0, 160], ids=list(range(10)))
    assert (made("kv_overlap", seed).choose(0, busy), busy.looks) == (0, 1)


def test_weighted_scores_add_up() -> None:
    fleet = MadeUp([0, 0], queue=[(4, 4), (4, 0)], cached=[160, 0])
    exact = {"kind": "weighted", "exact": True}
    # 2 x 0 + 3 x 1 against 2 x 1 + 3 x 0
    assert made(exact).choose(0, fleet) == 0
    assert made({**exact, "queue": 4.0}).choose(0, fleet) == 1
    assert made({**exact, "queue": 0.0, "prefix": 0.0, "kv": 1.0}).choose(0, replace(fleet, kv=[0.9, 0.2])) == 1
    stays = made({**exact, "queue": 0.0, "prefix": 0.0, "session": 1.0})
    first = stays.choose(0, replace(fleet, name="a"))
    assert {stays.choose(0, replace(fleet, name="a")) for _ in range(20)} == {first}


def test_data_parallel_weighs_waiting_four_times_and_counts_what_it_sends() -> None:
    router = made("data_parallel")
    fleet = MadeUp([0, 0], queue=[(6, 0), (1, 1)])
    # 6 against 5; then each one sent counts 4 until the next report
    assert [router.choose(0, fleet) for _ in range(4)] == [1, 0, 1, 0]
    assert router.choose(0, replace(fleet, now_ns=10**8)) == 1


def test_by_length_sends_each_to_its_pool() -> None:
    router = made({"kind": "by_length", "most_tokens": {"short": 100, "long": 10_000}})
    fleet = MadeUp([0, 5, 0, 1], pools=["short", "short", "long", "long"])
    assert router.choose(0, replace(fleet, prompt=50)) == 0
    assert router.choose(0, replace(fleet, prompt=500)) == 2
    assert router.choose(0, replace(fleet, prompt=50_000)) == 2
    with pytest.raises(InputError, match="ascending"):
        made({"kind": "by_length", "most_tokens": {"long": 1000, "short": 10}})
    with pytest.raises(InputError, match="names no pool"):
        router.choose(0, MadeUp([0, 0]))


OWN = """
class Router:
    def __init__(self, rng):
        self.rng = rng

    def choose(self, request, fleet):
        return request % len(fleet)


class Last:
    def choose(self, request, fleet):
        return len(fleet) - 1
"""


def test_a_router_of_ones_own(spec: ReplicaSpec, chats: Chats, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(OWN)
    workload = chats(30, 50.0, 1)
    assert serve_fleet(workload, [spec] * 3, str(path)).replica_of.tolist() == [i % 3 for i in range(30)]
    assert set(serve_fleet(workload, [spec] * 3, f"{path}:Last").replica_of) == {2}
    for name, said in (
        (f"{path}:Lost", "does not define Lost"),
        (f"{tmp_path}/none.py", "cannot be read"),
        ("round-robin", "did you mean 'round_robin'"),
    ):
        with pytest.raises(InputError, match=said):
            serve_fleet(workload, [spec], name)
    path.write_text("class Router:\n    pass\n")
    with pytest.raises(InputError, match="has neither choose"):
        serve_fleet(workload, [spec], str(path))
    path.write_text("def broken(:\n")
    with pytest.raises(InputError, match=r"mine\.py:1: SyntaxError"):
        serve_fleet(workload, [spec], str(path))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("def choose(self, request, fleet): return None", r"TypeError.*must return a number"),
        ("def choose(self, request, fleet): return 1.5", r"TypeError.*must return a number"),
        ("def choose(self, request, fleet): return fleet.heat(0)", r"AttributeError.*heat"),
        ("def choose(self, request, fleet): return 7", "to replica 7; there are 0 to 2"),
        ("def shares(self, workload, replicas): raise KeyError('x')", "KeyError"),
        ("def shares(self, workload, replicas): return [0.5] * len(workload)", "float64 .*whole number"),
        ("def shares(self, workload, replicas): return [3] * len(workload)", "to replica 3; there are 0 to 2"),
    ],
)
def test_what_goes_wrong_in_a_router_of_ones_own_is_said_in_a_line(
    spec: ReplicaSpec, chats: Chats, tmp_path: Path, body: str, said: str
) -> None:
    path = tmp_path / "mine.py"
    path.write_text(f"class Router:\n    {body}\n")
    with pytest.raises(InputError, match=rf"mine\.py: .*{said}") as found:
        serve_fleet(chats(30, 50.0, 1), [spec] * 3, str(path))
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("name", ROUTERS)
def test_unknown_settings_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=rf"cluster\.router \({name}\).*unknown key"):
        new_router({"kind": name, "agee_s": 1.0}, np.random.default_rng(0))


def test_equal_where_nothing_is_shared_and_better_where_much_is(spec: ReplicaSpec, chats: Chats) -> None:
    workload = chats(400, 30.0, 4)
    roomy = [replace(spec, num_blocks=4096)] * 4
    plain = replace(workload, prefixes=None)
    for router in ("prefix_aware", "kv_overlap", "weighted"):
        assert serve_fleet(plain, roomy, router).requests.hit_tokens.sum() == 0
        hits = [serve_fleet(workload, roomy, name).requests.hit_tokens.sum() for name in (router, "round_robin")]
        assert hits[0] > hits[1], router
