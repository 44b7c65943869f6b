"""Named tuples handed over by address are read as the tuples themselves."""

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba.core.errors import TypingError

from simkit.by_address import by_address
from simkit.compiled import called, compiled, inlined
from simkit.engine.state import F64, I64

WORDS = st.integers(-(2**62), 2**62)


class Inner(NamedTuple):
    on: bool
    table: F64  # [rows, 2]
    off: bool


class Outer(NamedTuple):
    first: int
    log: I64
    share: float
    inner: Inner
    last: int


class Worded(NamedTuple):
    word: str


@called
def _from_afar(outer: Outer, inner: Inner, row: int) -> tuple[float, float]:
    outer.log[1] += outer.last
    return inner.table[row, 1] + (1.0 if inner.on else 0.0), 2.0 if inner.off else 0.0


@called
def _two_words(outer: Outer, inner: Inner, row: int) -> tuple[int, int]:
    return row + len(inner.table), outer.first


@inlined
def _read(outer: Outer, row: int) -> float:
    before = outer.last
    outer.log[0] = row
    total = outer.share
    for i in range(len(outer.inner.table)):
        outer.log[2] += outer.first  # could be `first` or `last` itself, for what the code shows
        more, less = _from_afar(outer, outer.inner, i)
        far, first = _two_words(outer, outer.inner, i)
        total += outer.inner.table[i, 0] * (more - less) + (far - i) + (first - outer.first)
    outer.log[3] = outer.last - before
    return total


@compiled
def _by_value(outer: Outer, row: int) -> float:
    return _read(outer, row)


@compiled
def _addressed(outer: Outer, row: int, times: int) -> float:
    here = by_address(outer)
    total = 0.0
    for _ in range(times):
        total = _read(here, row)
    return total


@compiled
def _anew(outer: Outer, times: int) -> int:
    """Another tuple each time round, at the same address."""
    total = 0
    for i in range(times):
        total += by_address(Outer(i, outer.log, outer.share, outer.inner, outer.last)).first
    return total


@compiled
def _of_words(worded: Worded) -> str:
    return by_address(worded).word


@settings(deadline=None)
@given(first=WORDS, last=WORDS, share=st.floats(-1e6, 1e6), on=st.booleans(), off=st.booleans(), rows=st.integers(0, 5))
def test_fields_are_those_of_the_tuple(first: int, last: int, share: float, on: bool, off: bool, rows: int) -> None:
    table = np.arange(2.0 * rows).reshape(rows, 2)
    logs = [np.zeros(4, dtype=np.int64) for _ in range(2)]
    outers = [Outer(first, log, share, Inner(on, table, off), last) for log in logs]
    assert _addressed(outers[0], 3, 1) == _by_value(outers[1], 3)
    np.testing.assert_array_equal(logs[0], logs[1])
    told = sum(table[i, 0] * (table[i, 1] + on - 2 * off) for i in range(rows)) + rows * rows
    assert _addressed(outers[0], 3, 2) == pytest.approx(share + told)
    assert logs[0][3] == 0


def test_a_tuple_made_anew_is_read_anew() -> None:
    outer = Outer(7, np.zeros(4, dtype=np.int64), 0.5, Inner(True, np.zeros((1, 2)), False), 9)
    assert _anew(outer, 100) == sum(range(100))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(TypingError, match="by_address: a tuple with unicode_type"):
        _of_words(Worded("no"))


def test_plain_python_hands_over_the_tuple_itself() -> None:
    outer = Worded("any")
    assert by_address(outer) is outer
