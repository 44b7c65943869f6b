"""What it means that two runs are the same: every column, count and log is equal."""

from dataclasses import fields

import numpy as np

from simkit.cluster.result import FleetResult
from simkit.metrics.result import RequestColumns, RunResult


def assert_same_run(a: RunResult, b: RunResult) -> None:
    """Every column, count and log of two runs is equal."""
    assert_same_columns(a.requests, b.requests)
    for part in ("series", "events", "itl", "batch_requests", "batch_tokens"):
        for field in fields(getattr(a, part)):
            one, other = (getattr(getattr(run, part), field.name) for run in (a, b))
            assert np.array_equal(one, other), (part, field.name)
    for field in fields(RunResult):
        if isinstance(getattr(a, field.name), int):
            assert getattr(a, field.name) == getattr(b, field.name), field.name


def assert_same_columns(a: RequestColumns, b: RequestColumns) -> None:
    for field in fields(RequestColumns):
        assert np.array_equal(getattr(a, field.name), getattr(b, field.name)), field.name


def assert_same_fleet(a: FleetResult, b: FleetResult) -> None:
    """Everything about two fleets is equal, but how long they took."""
    assert np.array_equal(a.replica_of, b.replica_of)
    assert_same_columns(a.requests, b.requests)
    assert np.array_equal(a.row_of, b.row_of)
    for one, other in zip(a.replicas, b.replicas, strict=True):
        assert_same_run(one, other)
    assert a.accounts == b.accounts
    assert a.lives == b.lives
    assert a.end_ns == b.end_ns
    assert a.gpu_ns() == b.gpu_ns()
