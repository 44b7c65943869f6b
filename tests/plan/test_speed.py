"""The bench on a trace of one's own: all of its requests are replayed, and nothing else."""

from pathlib import Path

import pytest

from simkit.errors import InputError
from simkit.plan.speed import measure, trace_cases


def test_a_trace_is_a_case_of_all_its_requests(tmp_path: Path) -> None:
    trace = tmp_path / "own.csv"
    trace.write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n0.0,100,5\n0.5,200,1\n1.0,50,10\n")
    (case,) = trace_cases(trace)
    assert (case.requests, case.caching) == (3, False)
    assert case.name.startswith("own.csv")
    speed = measure(case, repeats=3)
    # at the knee the three do not overlap for long: 16 tokens come out in at least 10 steps, the longest output
    assert speed.requests == 3
    assert 10 <= speed.steps_per_cpu_second / speed.requests_per_cpu_second * 3 <= 17
    assert speed.slowest_requests_per_cpu_second <= speed.requests_per_cpu_second


def test_a_file_that_is_no_trace_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.csv"):
        trace_cases(tmp_path / "none.csv")
