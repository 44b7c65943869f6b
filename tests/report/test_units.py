"""Printed numbers say what the values say."""

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simkit.report.units import MISSING, by_name, count, multiple, rate, seconds, share, significant, size

SCALE = {"ns": 1e-9, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
BYTES = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def parsed(text: str, units: dict[str, float]) -> float:
    """The value of `3 min 20 s`, read by hand."""
    pieces = re.findall(r"([\d.,]+) (\S+)", text)
    return sum(float(number.replace(",", "")) * units[unit] for number, unit in pieces)


@given(st.floats(1e-9, 1e7))
def test_printed_duration_is_within_half_a_percent(value_s: float) -> None:
    assert parsed(seconds(value_s), SCALE) == pytest.approx(value_s, rel=5.1e-3)


@given(st.integers(1, 2**45))
def test_printed_size_is_within_half_a_percent(value: int) -> None:
    assert parsed(size(value), BYTES) == pytest.approx(value, rel=5.1e-3)


@given(st.floats(1e-9, 1e7), st.floats(1, 10))
def test_longer_durations_never_print_as_shorter(value_s: float, factor: float) -> None:
    assert parsed(seconds(value_s), SCALE) <= parsed(seconds(value_s * factor), SCALE) * (1 + 5e-3)


@pytest.mark.parametrize(
    ("value_s", "expected"),
    [
        (0.0, "0 s"),
        (1.5e-9, "1.50 ns"),
        (0.0009999, "1.00 ms"),
        (0.0123456, "12.3 ms"),
        (0.9996, "1.00 s"),
        (1.0, "1.00 s"),
        (119.0, "119 s"),
        (200.0, "3 min 20 s"),
        (7500.0, "2 h 5 min"),
        (-0.25, "-250 ms"),
        (math.nan, MISSING),
        (math.inf, MISSING),
        (None, MISSING),
    ],
)
def test_seconds(value_s: float | None, expected: str) -> None:
    assert seconds(value_s) == expected


def test_sizes_are_binary() -> None:
    # an H100's 80 GiB, and the KV cache of one token of Llama-3.1-8B at 16 bit, 2 * 32 * 8 * 128 * 2 bytes
    assert size(80 * 2**30) == "80.0 GiB"
    assert size(131_072) == "128 KiB"
    assert size(0) == "0 B"
    assert size(None) == MISSING


def test_a_share_that_is_not_all_is_not_printed_as_all() -> None:
    assert share(1.0) == "100 %"
    assert share(0.999999) == "> 99.99 %"
    assert share(0.0) == "0 %"
    assert share(1e-9) == "< 0.01 %"
    assert share(0.5) == "50.0 %"
    assert share(1.673) == "167 %"
    assert share(math.nan) == MISSING


def test_rates_counts_and_multiples() -> None:
    assert rate(5.4321, "req") == "5.43 req/s"
    assert rate(12345.6, "tok") == "12,346 tok/s"
    assert count(19366) == "19,366"
    assert count(17.25) == "17.2"
    assert multiple(1.25) == "1.25 ×"
    assert significant(9.999) == "10.0"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("wait_s", 0.5, "500 ms"),
        ("requests_per_s", 2.0, "2.00 req/s"),
        ("kv_bytes", 1024, "1.00 KiB"),
        ("hit_rate", 0.25, "25.0 %"),
        ("fraction", 0.25, "25.0 %"),
        ("hits", 12, "12"),
        ("hits", np.int64(1200), "1,200"),
        ("on", True, "yes"),
        ("policy", "fcfs", "fcfs"),
        ("gone", None, MISSING),
    ],
)
def test_a_name_ends_in_its_unit(name: str, value: object, expected: str) -> None:
    assert by_name(name, value) == expected
