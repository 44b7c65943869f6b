"""Transfers that share a link."""

import itertools

import pytest
import simpy
from hypothesis import given
from hypothesis import strategies as st

from simkit.cluster.link import Link
from simkit.errors import InputError


def ends(starts_and_sizes: list[tuple[int, int]], bytes_per_s: float, latency_ns: int = 0) -> list[int]:
    """When each transfer is there, ns."""
    clock = simpy.Environment()
    link = Link(clock, bytes_per_s, latency_ns)
    found = [0] * len(starts_and_sizes)

    def move(i: int, start: int, size: int) -> "simpy.events.ProcessGenerator":
        yield clock.timeout(start)
        yield link.transfer(size)
        found[i] = clock.now

    for i, (start, size) in enumerate(starts_and_sizes):
        clock.process(move(i, start, size))
    clock.run()
    return found


def test_one_transfer_takes_its_bytes_over_the_bandwidth() -> None:
    assert ends([(0, 2_000)], 1e9, latency_ns=500) == [2_500]


def test_two_at_once_take_twice_as_long_each() -> None:
    assert ends([(0, 1_000), (0, 1_000)], 1e9) == [2_000, 2_000]


def test_the_later_one_shares_only_what_is_left() -> None:
    # alone for 500 ns: 500 bytes; then 500 left against 1000, half the bandwidth each; then the rest alone
    assert ends([(0, 1_000), (500, 1_000)], 1e9) == [1_500, 2_000]


@given(
    st.lists(st.tuples(st.integers(0, 5_000), st.integers(1, 5_000)), min_size=1, max_size=12),
    st.sampled_from([1e8, 1e9, 2.7e9]),
)
def test_work_is_conserved(moves: list[tuple[int, int]], bytes_per_s: float) -> None:
    """The last byte is there when one transfer after the other would have been done, but for rounding to ns."""
    busy_until = 0.0
    for start, size in sorted(moves):
        busy_until = max(busy_until, start) + size / bytes_per_s * 1e9
    assert max(ends(moves, bytes_per_s)) == pytest.approx(busy_until, abs=len(moves) + 1)


@given(st.lists(st.integers(1, 100_000), min_size=2, max_size=8))
def test_smaller_ones_are_there_first(sizes: list[int]) -> None:
    there = ends([(0, size) for size in sizes], 1e9)
    for (a, end_a), (b, end_b) in itertools.combinations(zip(sizes, there, strict=True), 2):
        assert (a < b) <= (end_a <= end_b)


def test_what_is_given_up_leaves_the_link_to_the_others() -> None:
    """Two of 1,000 bytes; at 600 ns each has 300, the first is given up, the other's 700 take 700 ns."""
    clock = simpy.Environment()
    link = Link(clock, 1e9, latency_ns=50)
    there: list[tuple[str, int]] = []
    first, second = link.transfer(1_000), link.transfer(1_000)
    first.callbacks.append(lambda _: there.append(("first", clock.now)))
    second.callbacks.append(lambda _: there.append(("second", clock.now)))
    moved: list[int] = []
    clock.timeout(600).callbacks.append(lambda _: moved.append(first.give_up()))
    # on its last stretch a transfer has left the link: all of it was moved, and still it does not come
    last = link.transfer(0)
    last.callbacks.append(lambda _: there.append(("last", clock.now)))
    clock.timeout(20).callbacks.append(lambda _: moved.append(last.give_up()))
    clock.run()
    assert moved == [0, 300]
    assert there == [("second", 1_350)]
    assert (link.bytes, link.busy_ns, link.active) == (1_300, 1_300, 0)
    assert first.give_up() == 300  # once more does nothing


@given(
    st.lists(st.tuples(st.integers(0, 3_000), st.integers(1, 5_000), st.integers(1, 4_000)), min_size=1, max_size=10),
    st.sampled_from([1e8, 1e9, 2.7e9]),
)
def test_bytes_are_moved_or_given_up(moves: list[tuple[int, int, int]], bytes_per_s: float) -> None:
    """Each transfer has a start, a size and a patience: what was moved is what the link was busy for."""
    clock = simpy.Environment()
    link = Link(clock, bytes_per_s)
    moved = []

    def move(start: int, size: int, patience: int) -> "simpy.events.ProcessGenerator":
        yield clock.timeout(start)
        transfer = link.transfer(size)
        yield transfer | clock.timeout(patience)
        moved.append(transfer.give_up())
        assert moved[-1] == size if transfer.processed else 0 <= moved[-1] <= size

    for start, size, patience in moves:
        clock.process(move(start, size, patience))
    clock.run()
    assert sum(moved) == link.bytes
    assert link.bytes == pytest.approx(link.busy_ns * bytes_per_s / 1e9, abs=2 * len(moves) * (1 + bytes_per_s / 1e9))


def test_no_bandwidth_is_bad_input() -> None:
    with pytest.raises(InputError, match="bandwidth must be above 0"):
        Link(simpy.Environment(), 0.0)
