"""What is written is what is read, in every format, up to what the writer said it would lose."""

import gzip
import os
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simkit.errors import InputError
from simkit.workloads.readers import read_workload
from simkit.workloads.workload import Prefixes, Workload
from simkit.workloads.write import WRITERS, lost_columns, write_workload

NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=6)
LENGTHS = st.integers(1, 2**31 - 1)


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    n = draw(st.integers(1, 12))
    arrivals = sorted(draw(st.lists(st.integers(0, 10**12), min_size=n, max_size=n)))
    prompts = draw(st.lists(st.integers(1, 4000) | LENGTHS, min_size=n, max_size=n))
    session = draw(st.none() | st.lists(st.just("") | NAMES, min_size=n, max_size=n).filter(any))
    ids = draw(st.none() | st.lists(NAMES, min_size=n, max_size=n, unique=True).filter(lambda x: x != digits(n)))
    turns = draw(st.none() | st.lists(st.none() | st.integers(0, 9), min_size=n, max_size=n).filter(known))
    models = draw(st.none() | st.lists(st.none() | NAMES, min_size=n, max_size=n).filter(known))
    extra = {name: tuple(column) for name, column in (("turn", turns), ("model", models)) if column is not None}
    return Workload(
        name=draw(NAMES),
        arrival_us=np.array(arrivals, dtype=np.int64),
        prompt_tokens=np.array(prompts, dtype=np.int32),
        output_tokens=np.array(draw(st.lists(LENGTHS, min_size=n, max_size=n)), dtype=np.int32),
        request_id=None if ids is None else tuple(ids),
        priority=draw(st.none() | st.lists(st.integers(-9, 9), min_size=n, max_size=n).map(i32)),
        session_id=None if session is None else tuple(session),
        prefixes=draw(st.none() | prefixes(prompts)),
        tick_us=draw(st.sampled_from([1, 3_000_000])),
        source=draw(NAMES),
        transforms=tuple(draw(st.lists(NAMES, max_size=2))),
        dropped_rows=draw(st.dictionaries(NAMES, st.integers(1, 99), max_size=2)),
        extra=extra,
        provenance=draw(st.dictionaries(st.sampled_from(["license", "tokenizer"]), NAMES)),
    )


def prefixes(prompts: list[int]) -> st.SearchStrategy[Prefixes]:
    most = [min(5, -(-p // 512)) for p in prompts]
    ids = st.tuples(*(st.lists(st.integers(0, 2**40 - 1), max_size=m) for m in most)).filter(lambda rows: any(rows))
    return st.builds(
        lambda rows, partial: Prefixes(
            512,
            np.cumsum([0, *map(len, rows)], dtype=np.int64),
            np.array([i for row in rows for i in row], dtype=np.int64),
            partial,
        ),
        ids,
        st.sampled_from(["floor", "ceil"]),
    )


def digits(n: int) -> list[str]:
    return [str(i) for i in range(n)]


def known(column: list[object]) -> bool:
    return any(value is not None for value in column)


def i32(values: list[int]) -> np.ndarray:
    return np.array(values, dtype=np.int32)


def plain(workload: Workload) -> dict[str, object]:
    """Every field but the notes, as values that `==` compares."""
    found: dict[str, object] = {}
    for f in fields(workload):
        value = getattr(workload, f.name)
        if isinstance(value, Prefixes):
            value = (value.block_tokens, value.partial_block, value.start.tolist(), value.ids.tolist())
        found[f.name] = value.tolist() if isinstance(value, np.ndarray) else value
    del found["notes"]
    return found


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(workloads(), st.sampled_from(["x.trace.jsonl", "x.trace.jsonl.gz", "x.trace.jsonl.zst"]))
def test_simkit_trace_round_trip_is_identity(tmp_path: Path, workload: Workload, name: str) -> None:
    assert write_workload(workload, tmp_path / name) == ()
    assert plain(read_workload(tmp_path / name)) == plain(workload)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(workloads(), st.sampled_from(["mooncake", "azure", "vidur"]))
def test_foreign_round_trips_keep_times_and_lengths(tmp_path: Path, workload: Workload, to: str) -> None:
    path = tmp_path / "x"
    lost = write_workload(workload, path, to)
    back = read_workload(path, to)
    origin = workload.arrival_us[0] if to == "azure" else 0  # wall clocks have no zero
    assert back.arrival_us.tolist() == (workload.arrival_us - origin).tolist()
    assert back.prompt_tokens.tolist() == workload.prompt_tokens.tolist()
    assert back.output_tokens.tolist() == workload.output_tokens.tolist()
    assert set(workload.extra) <= set(lost)
    if workload.prefixes is not None:
        kept = back.prefixes is not None and back.prefixes.ids.tolist() == workload.prefixes.ids.tolist()
        assert kept != ("hash_ids" in lost)


@pytest.fixture
def small() -> Workload:
    two = np.array([3, 5], dtype=np.int32)
    return Workload("small", np.array([0, 1_500_000]), two, two, session_id=("a", "b"))


def test_azure_rows_look_like_the_published_ones(small: Workload, tmp_path: Path) -> None:
    write_workload(small, tmp_path / "x.csv", "azure")
    lines = (tmp_path / "x.csv").read_text().splitlines()
    assert lines == [
        "TIMESTAMP,ContextTokens,GeneratedTokens",
        "2023-11-16 00:00:00.0000000,3,3",
        "2023-11-16 00:00:01.5000000,5,5",
    ]


def test_mooncake_rows_look_like_the_published_ones(small: Workload, tmp_path: Path) -> None:
    whole = replace(small, prefixes=Prefixes(512, np.array([0, 1, 2]), np.array([4, 4]), "ceil"))
    assert write_workload(whole, tmp_path / "x.jsonl", "mooncake") == ("session_id",)
    first = (tmp_path / "x.jsonl").read_text().splitlines()[0]
    assert first == '{"timestamp":0,"input_length":3,"output_length":3,"hash_ids":[4]}'


def test_columns_without_a_place_are_named(small: Workload) -> None:
    assert lost_columns(small, "vidur") == ("session_id",)
    assert lost_columns(small, "simkit") == ()


def test_equal_workloads_give_equal_bytes(small: Workload, tmp_path: Path) -> None:
    for name in ("a.gz", "b.gz"):
        write_workload(small, tmp_path / name)
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()
    assert gzip.decompress((tmp_path / "a.gz").read_bytes()).startswith(b'{"schema":"simkit.trace/1"')


def test_failed_write_leaves_the_old_file_and_no_other(
    small: Workload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.csv"
    write_workload(small, path, "vidur")
    before = path.read_bytes()

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(InputError, match="cannot be written: No space left"):
        write_workload(small, path, "vidur")
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["x.csv"]


def test_places_that_cannot_be_written_are_errors(small: Workload, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a directory"):
        write_workload(small, tmp_path)
    with pytest.raises(InputError, match=r"cannot be written: No such file"):
        write_workload(small, tmp_path / "no" / "x.jsonl")
    with pytest.raises(InputError, match=r"format 'azur' cannot be written; did you mean 'azure'"):
        write_workload(small, tmp_path / "x", "azur")


@pytest.mark.parametrize("to", WRITERS)
def test_published_trace_survives_every_format(to: str, shared: Path, tmp_path: Path) -> None:
    trace = read_workload(shared / "traces/mooncake/synthetic_trace.jsonl.gz")
    lost = write_workload(trace, tmp_path / "x.zst", to)
    back = read_workload(tmp_path / "x.zst", to)
    assert back.arrival_us.tolist() == (trace.arrival_us - trace.arrival_us[0]).tolist()
    assert back.prompt_tokens.tolist() == trace.prompt_tokens.tolist()
    assert (back.prefixes is None) == ("hash_ids" in lost) == (to in ("azure", "vidur"))
