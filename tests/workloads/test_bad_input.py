"""Whatever is wrong with a file, the user gets one line that says where and what to do."""

import gzip
import json
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simkit.errors import InputError
from simkit.workloads import csv_lines, json_lines, source
from simkit.workloads.readers import read_workload

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
WHEN = "2023-11-16 18:17:03.9799600"
OWN = '{"schema":"simkit.trace/1","block_tokens":16}\n'


def mooncake(**changes: object) -> str:
    row = {"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [0, 1]} | changes
    return json.dumps({name: value for name, value in row.items() if value != "absent"}) + "\n"


def own(**changes: object) -> str:
    row = {"request_id": "r", "arrival_us": 0, "prompt_tokens": 40, "output_tokens": 2} | changes
    return json.dumps({name: value for name, value in row.items() if value != "absent"}) + "\n"


# text, line named, what the message says
BAD: dict[str, tuple[str, int, str]] = {
    "length is NaN": (AZURE + f"{WHEN},NaN,5\n", 2, "ContextTokens='NaN': is not a finite number"),
    "length is negative": (AZURE + f"{WHEN},7,5\n{WHEN},7,-5\n", 3, "GeneratedTokens='-5': is negative"),
    "length is zero": (AZURE + f"{WHEN},0,5\n", 2, "ContextTokens=0"),
    "length is no whole number": (AZURE + f"{WHEN},1.5,5\n", 2, "not a whole number"),
    "length is empty": (AZURE + f"{WHEN},,5\n", 2, "is empty"),
    "length is a word": (AZURE + f"{WHEN},many,5\n", 2, "ContextTokens='many': is not a number"),
    "length is over int32": (AZURE + f"{WHEN},2147483648,5\n", 2, "is above 2147483647"),
    "length is infinite": (AZURE + f"{WHEN},inf,5\n", 2, "not a finite number"),
    "length has 400 digits": (AZURE + f"{WHEN},{'9' * 400},5\n", 2, "ContextTokens='999"),
    "time is a word": (AZURE + "yesterday,5,5\n", 2, "TIMESTAMP='yesterday': is not a time"),
    "time is no date": (AZURE + "2023-13-16 18:17:03.9799600,5,5\n", 2, "is not a time"),
    "too few columns": (AZURE + f"{WHEN},5,5\n{WHEN},5\n", 3, "has 2 columns, the header 3"),
    "too many columns": (AZURE + f"{WHEN},5,5,5\n", 2, "has 4 columns, the header 3"),
    "many and few columns": (AZURE + f"{WHEN},5,5\n{WHEN},5\n{WHEN},5,5,5\n", 3, "has 2 columns"),
    "quote left open": (AZURE + f'"{WHEN},5,5\n', 2, "is not a CSV row"),
    "out of order": (VIDUR := "arrived_at,num_prefill_tokens,num_decode_tokens\n2.5,1,1\n1.0,1,1\n", 3, "--sort"),
    "time is negative": (VIDUR.replace("2.5", "-1"), 2, "arrived_at='-1': is negative"),
    "time is NaN": (VIDUR.replace("2.5", "nan"), 2, "arrived_at='nan': is not a finite number"),
    "time is too far": (VIDUR.replace("2.5", "1e300"), 2, "more than a century"),
    "time is empty where others are": (VIDUR.replace("2.5", ""), 2, "arrived_at='': is empty"),
    "JSON is cut": (mooncake() + mooncake()[:-9] + "\n", 2, "is not JSON"),
    "JSON is no object": (mooncake() + "[1, 2]\n", 2, "is not a JSON object"),
    "two objects on a line": (mooncake() + mooncake().strip() + mooncake(), 2, "is not JSON"),
    "JSON is nested without end": (mooncake() + "[" * 100_000 + "\n", 2, "is not JSON"),
    "key is missing": (mooncake() + mooncake(output_length="absent"), 2, "key 'output_length' is missing"),
    "key is misspelt": (
        mooncake() + mooncake(output_length="absent", output_lenght=5),
        2,
        "'output_length' is missing; did you mean 'output_lenght'",
    ),
    "JSON length is text": (mooncake(input_length="600"), 1, "input_length='600': is not a number"),
    "JSON length is true": (mooncake(input_length=True), 1, "is not a number"),
    "JSON length is null": (mooncake(input_length=None), 1, "input_length=None"),
    "JSON length is NaN": (mooncake(output_length=float("nan")), 1, "is not a finite number"),
    "JSON time is negative": (mooncake(timestamp=-1), 1, "timestamp=-1: is negative"),
    "too few ids": (mooncake() + mooncake(hash_ids=[0]), 2, "hash_ids has 1 ids: 600 prompt tokens make 2 blocks"),
    "ids are text": (mooncake(hash_ids=["0", "1"]), 1, "is not a list of whole numbers"),
    "id is beyond int64": (mooncake(hash_ids=[0, 2**64]), 1, "beyond 64 bits"),
    "own column is unknown": (OWN + own(promt_tokens=5), 2, "did you mean 'prompt_tokens'"),
    "own kind is unknown": (OWN + own(kind="txt"), 2, "kind='txt': is not known; did you mean 'text'"),
    "own request is closed loop": (
        OWN + own(arrival_us="absent", parent_id="q", think_us=5),
        2,
        "say when it comes in closed replay only; add arrival_us",
    ),
    "own request has no time": (OWN + own(arrival_us="absent"), 2, "arrival_us is missing"),
    "own id stands twice": (OWN + own() + own(), 3, "stands on line 2 too"),
    "own ids are too many": (OWN + own(hash_ids=[1, 2, 3, 4]), 2, "more than prompt and answer"),
    "own ids without a block size": ('{"schema":"simkit.trace/1"}\n' + own(hash_ids=[1]), 2, "no block_tokens"),
    "own prefix is longer than the prompt": (OWN + own(prefix_group="g", prefix_tokens=41), 2, "prefix_tokens"),
    "own answer is empty": (OWN + own(output_tokens=0), 2, "output_tokens=0"),
    "own header key is unknown": ('{"schema":"simkit.trace/1","block_token":16}\n', 1, "did you mean 'block_tokens'"),
    "own header value is wrong": ('{"schema":"simkit.trace/1","block_tokens":0}\n', 1, "block_tokens=0"),
    "own version is unknown": ('{"schema":"simkit.trace/2"}\n', 1, "known: simkit.trace/1"),
    "column is misspelt": (
        AZURE.replace("ContextTokens", "ContextToken") + f"{WHEN},5,5\n",
        1,
        "'ContextTokens' of format azure is missing; did you mean 'ContextToken'",
    ),
    "column stands twice": (AZURE.strip() + ",TIMESTAMP\n", 1, "stands twice"),
    "first line is of no format": ("a,b,c\n1,2,3\n", 1, "name it with --format"),
    "first line is no text": ("\0\1\2\n", 1, "name it with --format"),
}


@pytest.mark.parametrize("case", BAD)
def test_message_names_line_value_and_fix(case: str, tmp_path: Path) -> None:
    text, line, message = BAD[case]
    path = tmp_path / "bad.trace"
    path.write_text(text)
    with pytest.raises(InputError, match=message.replace("(", r"\(")) as error:
        read_workload(path)
    assert str(error.value).startswith(f"{path}:{line}: ")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("text", ["", "\n", AZURE, OWN, AZURE + "\n\n"])
def test_trace_without_requests_is_an_error(text: str, tmp_path: Path) -> None:
    path = tmp_path / "empty.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=r"empty|no request"):
        read_workload(path)


def test_paths_that_are_no_trace(tmp_path: Path) -> None:
    (tmp_path / "conv.csv").write_text(AZURE)
    with pytest.raises(InputError, match=r"no such file; did you mean 'conv.csv'"):
        read_workload(tmp_path / "cnov.csv")
    with pytest.raises(InputError, match="is a directory"):
        read_workload(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        read_workload(tmp_path / "no" / "such")
    with pytest.raises(InputError, match="did you mean 'mooncake'"):
        read_workload(tmp_path / "conv.csv", "moncake")
    (tmp_path / "xz").write_bytes(b"\xfd7zXZ\0\0\0")
    with pytest.raises(InputError, match="is an xz file"):
        read_workload(tmp_path / "xz")


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.99])
def test_truncated_archives_are_errors(pack: object, kept: float, tmp_path: Path) -> None:
    assert callable(pack)
    data = pack("".join(mooncake(timestamp=i, hash_ids=[0, i * 7919 % 1000]) for i in range(3000)).encode())
    path = tmp_path / "cut"
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(InputError, match="truncated or damaged"):
        read_workload(path)


def test_bytes_that_are_not_utf8_are_named_by_line(tmp_path: Path) -> None:
    path = tmp_path / "latin.csv"
    path.write_bytes(f"{AZURE}{WHEN},5,5\n".encode() + b"\xe9\n")
    with pytest.raises(InputError, match=r"latin.csv:3: byte 0xe9 is not UTF-8"):
        read_workload(path)


def test_sizes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = tmp_path / "bomb.zst"
    bomb.write_bytes(zstandard.compress(AZURE.encode() + b"\n" * (9 << 20)))
    monkeypatch.setattr(source, "MAX_DECOMPRESSED_BYTES", 8 << 20)
    with pytest.raises(InputError, match="larger than 0 GiB decompressed"):
        read_workload(bomb)
    long = tmp_path / "long.gz"
    long.write_bytes(gzip.compress(b"x" * (6 << 20)))
    monkeypatch.setattr(source, "MAX_LINE_BYTES", 4 << 20)
    with pytest.raises(InputError, match=r"long.gz:1: a line is longer than 4 MiB"):
        read_workload(long)


def test_skipped_rows_are_counted_by_reason(tmp_path: Path) -> None:
    rows = [f"{WHEN},5,5", f"{WHEN},-1,5", "never,5,5", f"{WHEN},5", f"{WHEN},0,5", f"{WHEN},5,0", f"{WHEN},6,6"]
    path = tmp_path / "some.csv"
    path.write_text(AZURE + "\n".join(rows))
    workload = read_workload(path, skip_bad_rows=True)
    assert workload.prompt_tokens.tolist() == [5, 6]
    assert workload.dropped_rows == {"bad_length": 2, "bad_time": 1, "malformed": 1, "no_output": 1}
    path.write_text(AZURE + f"{WHEN},x,5\n")
    with pytest.raises(InputError, match=r"left out: bad_length 1; the first: line 2: ContextTokens='x'"):
        read_workload(path, skip_bad_rows=True)


NASTY = st.one_of(
    st.sampled_from(["", " ", "NaN", "-1", "1e3", "1e400", "0x10", "1_000", "١٢", "True", "2147483648", '"5"', "+5"]),
    st.integers(-5, 2**33).map(str),
    st.floats().map(str),
    st.text(st.characters(codec="utf-8", exclude_characters="\r\n,"), max_size=8),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(NASTY, NASTY, NASTY), min_size=1, max_size=4), st.booleans())
def test_quick_and_exact_csv_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[tuple[str, str, str]], skip: bool
) -> None:
    path = tmp_path / "x.csv"
    header = "arrived_at,num_prefill_tokens,num_decode_tokens\n"
    path.write_text(header + "".join(",".join(row) + "\n" for row in rows), newline="")
    quick = outcome(path, skip)
    with monkeypatch.context() as patched:
        patched.setattr(csv_lines.CsvLines, "columns", lambda self, text: None)
        assert outcome(path, skip) == quick


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**65) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "request_id": st.integers(0, 9) | st.text(max_size=2) | JSON,
                "arrival_us": st.integers(0, 9) | JSON,
                "prompt_tokens": st.integers(1, 99) | JSON,
                "output_tokens": st.integers(0, 99) | JSON,
                "hash_ids": st.lists(st.integers(0, 9), max_size=2) | JSON,
                "turn": st.integers(0, 3) | JSON,
                "kind": st.sampled_from(["text", "file", "x"]) | JSON,
                "obs_status": st.just("failed") | JSON,
                "x": JSON,
            },
        ),
        min_size=1,
        max_size=4,
    ),
    st.booleans(),
)
def test_quick_and_exact_json_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, object]], skip: bool
) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(OWN + "".join(json.dumps(row) + "\n" for row in rows))
    quick = outcome(path, skip)
    with monkeypatch.context() as patched:
        patched.setattr(json_lines.JsonLines, "columns", lambda self, text: None)
        assert outcome(path, skip) == quick


def outcome(path: Path, skip: bool) -> object:
    """All that reading gives, comparable; nothing but InputError may be raised."""
    try:
        w = read_workload(path, sort=True, skip_bad_rows=skip)
    except InputError as error:
        return str(error).splitlines()
    ids = None if w.prefixes is None else (w.prefixes.start.tolist(), w.prefixes.ids.tolist())
    lengths = (w.arrival_us.tolist(), w.prompt_tokens.tolist(), w.output_tokens.tolist())
    return lengths, ids, w.request_id, w.extra, w.dropped_rows, w.transforms


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(0, 40),
    st.sampled_from(["{", "[]", "null", '{"timestamp":1}', mooncake(timestamp=None).strip(), mooncake(input_length=0)]),
)
def test_the_first_malformed_row_is_the_one_named(tmp_path: Path, before: int, bad: str) -> None:
    path = tmp_path / "x.jsonl"
    good = "".join(mooncake(timestamp=i) for i in range(before))
    path.write_text(good + bad.strip() + "\n" + mooncake(timestamp=99) + "{\n")
    with pytest.raises(InputError) as error:
        read_workload(path, "mooncake")
    assert str(error.value).startswith(f"{path}:{before + 1}: ")
