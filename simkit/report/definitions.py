"""What each number means, with the names that other tools give it.

Sources: vLLM 0.32 `v1/metrics/stats.py` and `benchmarks/serve.py`, and the sources of aiperf 0.13, guidellm 0.8.1 and
inference-perf 0.7.
"""

from simkit.report.palette import PART_MEANING, PART_NAME

HEAD = ("Name", "Formula", "Meaning", "Elsewhere")

METRICS = (
    (
        "TTFT",
        "t(first token) − t(arrival)",
        "time to first token, queueing and the server's front end included; no network",
        "the same in vLLM, aiperf, guidellm and inference-perf, seen from the client in load generators",
    ),
    (
        "TPOT",
        "(t(last token) − t(first token)) / (n − 1)",
        "mean time per output token of one request of n ≥ 2 tokens",
        "vllm bench and inference-perf TPOT; aiperf and guidellm call it ITL",
    ),
    (
        "ITL",
        "t(token i+1) − t(token i)",
        "gaps between consecutive tokens, pooled over all requests",
        "vLLM inter_token_latency, vllm bench and inference-perf ITL, aiperf inter_chunk_latency",
    ),
    ("NTPOT", "E2E / n", "latency per output token of one request, queueing and prefill included", "guidellm TPOT"),
    (
        "E2E",
        "t(last token) − t(arrival)",
        "the whole life of a request",
        "vllm bench E2EL, aiperf and guidellm request_latency",
    ),
    ("Queue", "t(first scheduled) − t(arrival)", "time before the first step that computes some of the request", ""),
    (
        "p50 .. p99",
        "smallest latency that this share of requests does not exceed (interpolated)",
        "over finished requests; not given under a growing queue, where it would say how long the run was",
        "",
    ),
    (
        "Goodput",
        "requests that meet every target of theirs / requests",
        "also as requests a second; a rejected or unfinished request meets none",
        "aiperf, guidellm and vllm bench: goodput",
    ),
    ("KV blocks held", "blocks held by admitted requests / blocks of the replica", "1 means preemption is near", ""),
    (
        "Prefix cache hit rate",
        "prompt tokens found at first admission / prompt tokens of requests admitted",
        "computed before for another prompt that begins alike, and not computed again",
        "vLLM prefix_cache_hits / prefix_cache_queries",
    ),
    ("Batch", "requests, or new tokens, of a step", "means are over steps, not over time", "vLLM iteration_tokens"),
    (
        "Device busy",
        "time in which a step ran / time to the end of the last step",
        "near 1 where somebody is always being served: few moments are empty, not: the knee is near",
        "",
    ),
    (
        "Preemption",
        "count",
        "a request thrown out because no KV block was free, recomputed from its first token when admitted again",
        "vLLM num_preemptions",
    ),
    (
        "Saturated",
        "the queue grows to the end of the run",
        "more arrives than is served: latencies are those of a run this long, not of this load",
        "",
    ),
    (
        "Load",
        "rate / the workload's own rate",
        "the same requests in the same order with all gaps between arrivals divided by it",
        "",
    ),
)

WATERFALL_NOTE = (
    "The parts of a finished request's bar add up to its E2E to the nanosecond. They are drawn by kind, not in the "
    "order in which they happened; the timeline in trace.json.gz has the order."
)


def rows() -> list[tuple[str, str, str, str]]:
    """(name, formula, meaning, names elsewhere) of every metric and every part of a waterfall."""
    return [*METRICS, *((PART_NAME[part], "a part of E2E", meaning, "") for part, meaning in PART_MEANING.items())]
