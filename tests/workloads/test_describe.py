"""Statistics against the table published with the traces, closed forms, scipy and brute force."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from simkit.workloads.describe import describe, spearman, window_counts
from simkit.workloads.readers import read_workload
from simkit.workloads.sharing import ideal_sharing
from simkit.workloads.transform import rate_to
from simkit.workloads.workload import Prefixes, Workload

# facts/workloads.md, section 1: rows, span s, rate/s, CV, dispersion at 1/10/60 s, peak/mean at 1 and 60 s,
# input mean/p50/p90/p99/max, output mean/p50/p90/p99/max, rank correlation
TABLE = {
    "azure2023/AzureLLMInferenceTrace_code.csv.gz": (
        (8819, 3436, 2.566, 13.15, (13.2, 71.6, 164), (26.1, 4.18)),
        (2048, 1469, 5188, 7436, 7437),
        (27.9, 13, 55, 251, 1899),
        -0.02,
    ),
    "azure2023/AzureLLMInferenceTrace_conv.csv.gz": (
        (19366, 3502, 5.530, 1.094, (1.39, 3.86, 16.1), (2.89, 1.52)),
        (1155, 1020, 2735, 4142, 14050),
        (211, 129, 424, 601, 1000),
        0.07,
    ),
    "mooncake/conversation_trace.jsonl.gz": (
        (12031, 3537, 3.401, 3.03, (7.90,), (8.2, 1.21)),
        (12035, 6909, 27367, 85400, 126195),
        (343, 350, 597, 1119, 2000),
        0.07,
    ),
    "mooncake/synthetic_trace.jsonl.gz": (
        (3993, 1022, 3.906, 1.011, (1.09, 1.18, 1.19), (3.33, 1.17)),
        (15325, 11587, 38611, 66456, 191378),
        (149, 69, 389, 768, 893),
        -0.52,
    ),
}


@pytest.mark.parametrize("path", TABLE)
def test_traces_have_their_published_statistics(path: str, shared: Path) -> None:
    found = describe(read_workload(shared / "traces" / path))
    (rows, span, rate, cv, dispersion, peaks), prompt, output, correlation = TABLE[path]
    assert found.requests == rows
    assert found.span_s == pytest.approx(span, abs=0.51)
    assert found.rate_per_s == pytest.approx(rate, rel=5e-4)
    assert found.gap_cv == pytest.approx(cv, rel=2e-3)
    for counts, expected in zip(found.counts, dispersion, strict=False):
        assert counts.dispersion == pytest.approx(expected, rel=6e-3), counts.window_s
    assert [found.counts[0].peak_to_mean, found.counts[2].peak_to_mean] == pytest.approx(peaks, rel=5e-3)
    for lengths, expected in ((found.prompt_tokens, prompt), (found.output_tokens, output)):
        mine = [lengths.mean, *(lengths.quantiles[q] for q in (0.5, 0.9, 0.99, 1.0))]
        assert mine == pytest.approx(expected, rel=2e-3, abs=0.51)
    assert found.rank_correlation == pytest.approx(correlation, abs=0.005)


def test_arxiv_lengths_have_their_published_statistics(shared: Path) -> None:
    path = shared / "traces/vidur/arxiv_summarization_stats_llama2_tokenizer_filtered_v2.csv.gz"
    found = describe(read_workload(path, lengths_only=True))
    assert found.requests == 28_257
    assert found.prompt_tokens.mean == pytest.approx(2588, abs=0.5)
    assert [found.output_tokens.quantiles[q] for q in (0.5, 0.9, 1.0)] == [167, 372, 4056]
    assert found.rank_correlation == pytest.approx(-0.11, abs=0.005)
    assert (found.rate_per_s, found.gap_cv, found.counts) == (None, None, ())


def test_mooncake_spread_over_its_ticks_is_nearly_poisson(shared: Path) -> None:
    found = describe(read_workload(shared / "traces/mooncake/conversation_trace.jsonl.gz", spread_ticks=True))
    assert found.gap_cv == pytest.approx(1.01, abs=0.01)
    assert [c.dispersion for c in found.counts] == pytest.approx([1.05, 1.50, 2.86], rel=0.03)


# facts/workloads.md, "Prefix sharing": blocks, unique blocks, ideal block hits, token hits, requests hit
SHARING = {
    "conversation": (288.5e3, 182.8e3, 0.3664, 0.3736, 0.9999),
    "synthetic": (121.9e3, 43_924, 0.6396, 0.6512, 0.446),
}


@pytest.mark.parametrize("name", SHARING)
def test_mooncake_shares_what_is_published(name: str, shared: Path) -> None:
    found = ideal_sharing(read_workload(shared / f"traces/mooncake/{name}_trace.jsonl.gz"))
    assert found is not None
    blocks, unique, block_hits, token_hits, requests_hit = SHARING[name]
    assert (found.blocks, found.unique_blocks) == pytest.approx((blocks, unique), rel=5e-4)
    assert (found.block_hit_rate, found.token_hit_rate) == pytest.approx((block_hits, token_hits), abs=6e-5)
    assert found.requests_hit == pytest.approx(requests_hit, abs=5e-4)
    if name == "conversation":
        assert found.requests_hit_beyond_first == pytest.approx(0.387, abs=5e-4)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 20), st.lists(st.integers(0, 5), max_size=6)), min_size=1, max_size=8),
    st.booleans(),
)
def test_sharing_is_what_a_set_finds(rows: list[tuple[int, list[int]]], ceil: bool) -> None:
    prompt = np.array([p for p, _ in rows], dtype=np.int32)
    start = np.cumsum([0, *(len(ids) for _, ids in rows)], dtype=np.int64)
    flat = np.array([i for _, ids in rows for i in ids], dtype=np.int64)
    workload = Workload(
        "x",
        np.zeros(len(rows), np.int64),
        prompt,
        prompt,
        prefixes=Prefixes(4, start, flat, "ceil" if ceil else "floor"),
    )
    found = ideal_sharing(workload)
    cache: set[int] = set()
    blocks = hits = tokens = requests = 0
    for p, ids in rows:
        cover = -(-p // 4) if ceil else p // 4
        named = ids[:cover]
        head = 0
        while head < len(named) and named[head] in cache:
            head += 1
        # an infinite cache holds what answers left there, too
        cache |= set(ids)
        blocks, hits = blocks + cover, hits + head
        tokens, requests = tokens + min(head * 4, p), requests + (head > 0)
    if not len(flat):
        assert found is None
        return
    assert found is not None
    assert found.blocks == blocks
    assert found.block_hit_rate == pytest.approx(hits / blocks if blocks else 0.0)
    assert found.token_hit_rate == pytest.approx(tokens / prompt.sum())
    assert found.requests_hit == pytest.approx(requests / len(rows))


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=3, max_size=30))
def test_rank_correlation_is_scipys(pairs: list[tuple[int, int]]) -> None:
    x, y = np.array(pairs).T
    mine = spearman(x, y)
    if len(set(x.tolist())) == 1 or len(set(y.tolist())) == 1:
        assert mine is None
    else:
        assert mine == pytest.approx(float(spearmanr(x, y).statistic), abs=1e-12)


@settings(deadline=None)
@given(st.lists(st.integers(0, 40_000_000), min_size=2, max_size=60).map(sorted))
def test_window_counts_are_a_histograms(times: list[int]) -> None:
    arrival = np.array(times, dtype=np.int64)
    windows = times[-1] // 10_000_000
    found = window_counts(arrival, 10)
    counts = (
        np.histogram(arrival[arrival < windows * 10_000_000], windows, (0, windows * 10_000_000))[0] if windows else []
    )
    if windows < 2 or not np.sum(counts):
        assert found is None
        return
    assert found is not None
    assert found.dispersion == pytest.approx(np.var(counts) / np.mean(counts))
    assert found.peak_to_mean == pytest.approx(np.max(counts) / np.mean(counts))


def test_one_request_has_no_rate() -> None:
    one = np.array([5], dtype=np.int32)
    found = describe(Workload("x", np.array([0]), one, one))
    assert (found.rate_per_s, found.gap_cv, found.rank_correlation, found.sharing) == (None, None, None, None)
    assert found.longest_request_tokens == 10


@pytest.mark.parametrize("start_us", [0, 7_000_000])
def test_the_rate_is_the_one_that_scaling_goes_by(start_us: int) -> None:
    arrivals = start_us + np.array([0, 1, 3, 4]) * 1_000_000
    lengths = np.full(4, 10, dtype=np.int32)
    workload = Workload("by hand", arrivals, lengths, lengths)
    assert describe(workload).rate_per_s == pytest.approx(3 / 4)
    assert describe(rate_to(workload, 2.0)).rate_per_s == pytest.approx(2.0)
