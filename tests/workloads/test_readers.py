"""Every format's rows become the numbers that its publisher meant."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zstandard

from simkit.errors import InputError
from simkit.workloads.arrivals import Constant
from simkit.workloads.own_columns import TimeUnit, own_format
from simkit.workloads.readers import FORMATS, read_workload
from simkit.workloads.write import write_workload

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n" + "".join(
    f"2023-11-16 18:{row}\r\n" for row in ("17:03.9799600,4808,10", "17:04.0319600,3180,8", "18:00.0000010,110,27")
)
AZURE_2024 = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 23:59:59.999999+00:00,10,1\n2024-05-11 00:00:00+00:00,20,2\n"
)
BURSTGPT_1 = (
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,ChatGPT,472,18,490,Conversation log\n45,GPT-4,1087,0,1087,API log\n118.5,GPT-4,417,276,693,API log\n"
)
BURSTGPT_3 = (
    "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "1,7,12.5,GPT-4,10,20,30,Conversation log\n2,,0.25,ChatGPT,11,21,32,API log\n"
)
MOONCAKE = "".join(
    json.dumps({"timestamp": t, "input_length": i, "output_length": o, "hash_ids": h}) + "\n"
    for t, i, o, h in ((0, 513, 5, [0, 1]), (27, 1024, 6, [0, 2]), (27, 512, 7, [0]))
)
BAILIAN = "".join(
    json.dumps(
        {
            "chat_id": chat,
            "parent_chat_id": parent,
            "timestamp": t,
            "input_length": n,
            "output_length": 3,
            "type": "text",
            "turn": turn,
            "hash_ids": ids,
        }
    )
    + "\n"
    for chat, parent, t, n, turn, ids in (
        (159, -1, 0.5, 33, 1, [1, 2, 3]),
        (160, -1, 0.625, 16, 1, [4]),
        (161, 159, 61.001, 64, 2, [1, 2, 5, 6]),
        (162, 161, 90.0, 80, 3, [1, 2, 5, 6, 7]),
        (163, 12, 91.0, 16, 4, [8]),
    )
)
VIDUR = "arrived_at,num_prefill_tokens,num_decode_tokens\n0.0,374,44\n4.314579,396,109\n"
VIDUR_LENGTHS = (
    "num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio\n3772,54,3826,69.85\n2015,156,2171,12.9\n"
)
OWN = (
    '{"schema":"simkit.trace/1","name":"two","block_tokens":16,"license":"CC0","tick_us":1}\n'
    '{"request_id":"a","arrival_us":0,"prompt_tokens":40,"output_tokens":2,"hash_ids":[9,8],"tenant_id":"t"}\n'
    '{"request_id":"b","arrival_us":1500000,"prompt_tokens":7,"output_tokens":3,"priority":-1,"session_id":"s"}\n'
)
EXAMPLES = {
    "azure": AZURE,
    "burstgpt": BURSTGPT_3,
    "mooncake": MOONCAKE,
    "bailian": BAILIAN,
    "vidur": VIDUR,
    "simkit": OWN,
}

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def file(text: str) -> Path:
        path = tmp_path / "some.trace"
        path.write_bytes(text.encode())
        return path

    return file


def test_every_format_has_an_example_here() -> None:
    assert set(EXAMPLES) == set(FORMATS)


@pytest.mark.parametrize("name", EXAMPLES)
def test_format_is_recognised_by_its_first_line(name: str, write: Write) -> None:
    path = write(EXAMPLES[name])
    detected, named = read_workload(path), read_workload(path, name)
    assert detected.arrival_us.tolist() == named.arrival_us.tolist()
    assert detected.prompt_tokens.tolist() == named.prompt_tokens.tolist()


def test_azure_times_are_exact_microseconds_from_the_first_row(write: Write) -> None:
    workload = read_workload(write(AZURE))
    assert workload.arrival_us.tolist() == [0, 52_000, 56_020_041]
    assert workload.arrival_us.dtype == np.int64
    assert workload.prompt_tokens.tolist() == [4808, 3180, 110]
    assert workload.prompt_tokens.dtype == np.int32
    assert workload.output_tokens.tolist() == [10, 8, 27]


def test_azure_2024_rows_have_a_zone_and_sometimes_no_fraction(write: Write) -> None:
    assert read_workload(write(AZURE_2024)).arrival_us.tolist() == [0, 1]


def test_azure_rows_without_an_answer_are_counted(write: Write) -> None:
    workload = read_workload(write(AZURE + "2023-11-16 18:19:00.0000000,5,0\n"))
    assert len(workload) == 3
    assert workload.dropped_rows == {"no_output": 1}


def test_burstgpt_failures_are_counted_and_left_out(write: Write) -> None:
    workload = read_workload(write(BURSTGPT_1))
    assert workload.arrival_us.tolist() == [5_000_000, 118_500_000]
    assert workload.output_tokens.tolist() == [18, 276]
    assert workload.dropped_rows == {"failed": 1}
    assert workload.extra["model"] == ("ChatGPT", "GPT-4")
    assert any("model" in note for note in workload.notes)
    assert any("Total tokens" in note for note in workload.notes)


def test_burstgpt_v12_has_sessions_and_elapsed_times(write: Write) -> None:
    workload = read_workload(write(BURSTGPT_3))
    assert workload.session_id == ("7", "")
    assert workload.extra["obs_e2e_us"] == (12_500_000, 250_000)


def test_mooncake_ids_are_of_512_tokens(write: Write) -> None:
    workload = read_workload(write(MOONCAKE))
    assert workload.arrival_us.tolist() == [0, 27_000, 27_000]
    assert workload.prefixes is not None
    assert workload.prefixes.block_tokens == 512
    assert workload.prefixes.partial_block == "ceil"
    assert workload.prefixes.start.tolist() == [0, 2, 4, 5]
    assert workload.prefixes.ids.tolist() == [0, 1, 0, 2, 0]


def test_bailian_chats_become_sessions_named_by_their_root(write: Write) -> None:
    workload = read_workload(write(BAILIAN))
    assert workload.session_id == ("159", "160", "159", "159", "12")
    assert workload.request_id == ("159", "160", "161", "162", "163")
    assert workload.extra["parent_id"] == ("-1", "-1", "159", "161", "12")
    assert workload.extra["turn"] == (1, 1, 2, 3, 4)
    assert any("does not use" in note and "turn" in note for note in workload.notes)
    assert workload.prefixes is not None
    assert (workload.prefixes.block_tokens, workload.prefixes.partial_block) == (16, "ceil")


def test_vidur_with_and_without_arrivals(write: Write) -> None:
    assert read_workload(write(VIDUR)).arrival_us.tolist() == [0, 4_314_579]
    with pytest.raises(InputError, match=r"no arrival times.*--arrivals poisson --rate"):
        read_workload(write(VIDUR_LENGTHS))
    given = read_workload(write(VIDUR_LENGTHS), arrivals=Constant(rate_per_s=4))
    assert given.arrival_us.tolist() == [250_000, 500_000]
    assert given.transforms == ("arrivals(constant, 4/s, seed=0)",)


def test_own_format_keeps_what_the_engine_does_not_use(write: Write) -> None:
    workload = read_workload(write(OWN))
    assert workload.name == "two"
    assert workload.request_id == ("a", "b")
    assert workload.priority is not None
    assert workload.priority.tolist() == [0, -1]
    assert workload.session_id == ("", "s")
    assert workload.prefixes is not None
    assert workload.prefixes.start.tolist() == [0, 2, 2]
    assert workload.extra == {"tenant_id": ("t", None)}
    assert workload.provenance == {"license": "CC0"}
    # orderings of the queue look at it
    assert not any("tenant_id" in note for note in workload.notes)


def test_truncation_stays_said(write: Write, tmp_path: Path) -> None:
    cut = read_workload(write(OWN.replace('"tick_us":1', '"truncated":true')))
    assert any("truncated" in note for note in cut.notes)
    write_workload(cut, tmp_path / "again.jsonl")
    assert read_workload(tmp_path / "again.jsonl").provenance == {"license": "CC0", "truncated": "true"}


def test_own_format_session_ids_are_made_global(write: Write) -> None:
    rows = [("s1", [0, 1]), ("s2", [0, 1]), ("s1", [0, 2])]
    text = '{"schema":"simkit.trace/1","block_tokens":16,"hash_scope":"session"}\n' + "".join(
        json.dumps(
            {
                "request_id": str(i),
                "arrival_us": i,
                "prompt_tokens": 32,
                "output_tokens": 1,
                "session_id": s,
                "hash_ids": ids,
            }
        )
        + "\n"
        for i, (s, ids) in enumerate(rows)
    )
    prefixes = read_workload(write(text)).prefixes
    assert prefixes is not None
    a, b, c, d, e, f = prefixes.ids.tolist()
    assert (a, len({a, b, c, d, f})) == (e, 5)


def test_own_format_prefix_groups_become_shared_blocks(write: Write) -> None:
    text = '{"schema":"simkit.trace/1"}\n' + "".join(
        json.dumps({"request_id": str(i), "arrival_us": i, "prompt_tokens": 50, "output_tokens": 1, **group}) + "\n"
        for i, group in enumerate(
            (
                {"prefix_group": "x", "prefix_tokens": 40},
                {},
                {"prefix_group": "y", "prefix_tokens": 16},
                {"prefix_group": "x", "prefix_tokens": 20},
            )
        )
    )
    prefixes = read_workload(write(text)).prefixes
    assert prefixes is not None
    assert prefixes.start.tolist() == [0, 2, 2, 3, 4]
    assert prefixes.ids[0] == prefixes.ids[3] != prefixes.ids[2]


def test_own_format_failed_rows_are_counted(write: Write) -> None:
    row = '{"request_id":"c","arrival_us":1600000,"prompt_tokens":7,"output_tokens":0,"obs_status":"failed"}\n'
    assert read_workload(write(OWN + row)).dropped_rows == {"failed": 1}


def test_hashes_of_64_bits_become_small_numbers(write: Write) -> None:
    big = 2**62 + 5
    text = MOONCAKE.replace("[0, 1]", f"[{big}, -7]").replace("[0, 2]", f"[{big}, 2]").replace("[0]", f"[{big}]")
    prefixes = read_workload(write(text)).prefixes
    assert prefixes is not None
    assert prefixes.ids.tolist() == [0, 1, 0, 2, 0]


@pytest.mark.parametrize("name", EXAMPLES)
def test_packed_files_are_told_by_their_bytes_not_their_names(name: str, tmp_path: Path) -> None:
    plain = EXAMPLES[name].encode()
    long_window = zstandard.ZstdCompressionParameters.from_level(3, window_log=27)
    packed = {
        "gzip": gzip.compress(plain),
        "two gzip members": gzip.compress(plain[:50]) + gzip.compress(plain[50:]),
        "zstd": zstandard.compress(plain),
        "zstd --long=27": zstandard.ZstdCompressor(compression_params=long_window).compress(plain),
        "two zstd frames": zstandard.compress(plain[:50]) + zstandard.compress(plain[50:]),
    }
    (tmp_path / "plain").write_bytes(plain)
    expected = read_workload(tmp_path / "plain")
    for how, data in packed.items():
        path = tmp_path / "x.csv"
        path.write_bytes(data)
        assert read_workload(path).arrival_us.tolist() == expected.arrival_us.tolist(), how


def test_byte_order_mark_and_missing_last_line_end_are_taken(write: Write) -> None:
    assert len(read_workload(write("\ufeff" + AZURE.rstrip()))) == 3


def test_sort_is_stable_and_recorded(write: Write) -> None:
    text = VIDUR + "1.0,1,11\n1.0,2,12\n0.0,3,13\n"
    workload = read_workload(write(text), sort=True)
    assert workload.output_tokens.tolist() == [44, 13, 11, 12, 109]
    assert workload.transforms == ("sort",)


def test_sorted_prefixes_follow_their_requests(write: Write) -> None:
    first, second, third = MOONCAKE.splitlines()
    workload = read_workload(write("\n".join((second, third, first))), sort=True)
    assert workload.prefixes is not None
    assert workload.prefixes.start.tolist() == [0, 2, 4, 5]
    assert workload.prefixes.ids.tolist() == [0, 1, 0, 2, 0]


def test_coarse_ticks_are_found_and_spread(write: Write) -> None:
    rng = np.random.default_rng(1)
    ticks = np.sort(rng.integers(0, 200, 3000)) * 3000
    text = "".join(f'{{"timestamp": {t}, "input_length": 5, "output_length": {i + 1}}}\n' for i, t in enumerate(ticks))
    raw = read_workload(write(text))
    assert raw.tick_us == 3_000_000
    spread = read_workload(write(text), spread_ticks=True, seed=3)
    assert spread.tick_us == 1
    assert spread.output_tokens.tolist() == raw.output_tokens.tolist()
    moved = spread.arrival_us - raw.arrival_us
    assert moved.min() >= -3_000_000
    assert moved.max() < 3_000_000
    assert spread.arrival_us[-1] < raw.arrival_us[-1] + 3_000_000
    again = read_workload(write(text), spread_ticks=True, seed=3)
    assert (again.arrival_us == spread.arrival_us).all()
    assert (read_workload(write(text), spread_ticks=True, seed=4).arrival_us != spread.arrival_us).any()


def test_published_traces_have_their_published_sizes(shared: Path) -> None:
    traces = shared / "traces"
    expected = {
        "azure2023/AzureLLMInferenceTrace_code.csv.gz": 8_819,
        "azure2023/AzureLLMInferenceTrace_conv.csv.gz": 19_366,
        "mooncake/conversation_trace.jsonl.gz": 12_031,
        "mooncake/synthetic_trace.jsonl.gz": 3_993,
    }
    assert {path: len(read_workload(traces / path)) for path in expected} == expected


@pytest.mark.parametrize(("unit", "first"), [("s", "1763800000.5"), ("ms", "1763800000500"), ("s", "0.5")])
def test_own_columns_count_from_the_first_request(write: Write, unit: TimeUnit, first: str) -> None:
    """Logs are in seconds since 1970 as often as in seconds since they began."""
    later = str(float(first) + (2000 if unit == "ms" else 2))
    path = write(f"when,in,out\n{first},5,6\n{later},7,8\n")
    read = read_workload(path, own_format({"arrival": "when", "prompt": "in", "output": "out"}, unit))
    assert read.arrival_us.tolist() == [0, 2_000_000]
