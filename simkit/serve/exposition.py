"""/metrics under vLLM's names, so that dashboards and autoscalers made for vLLM read it.

Names, labels and buckets: vLLM 0.32, vllm/v1/metrics/loggers.py and buckets.py. Times are simulated seconds, whatever
the time scale; `sim:pacing_lateness_seconds` alone is real ones.
"""

from typing import Protocol

from simkit.engine.deployment import ReplicaSpec
from simkit.engine.state import Replica
from simkit.serve.answer import Answer
from simkit.serve.web_import import prometheus_client

TTFT_S: tuple[float, ...] = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
TTFT_S += (20.0, 40.0, 80.0, 160.0, 640.0, 2560.0)
TOKEN_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
LATENCY_S: tuple[float, ...] = (
    0.3,
    0.5,
    0.8,
    1.0,
    1.5,
    2.0,
    2.5,
    5.0,
    10.0,
    15.0,
    20.0,
    30.0,
    40.0,
    50.0,
    60.0,
    120.0,
    240.0,
    480.0,
)
LATENCY_S += (960.0, 1920.0, 7680.0)
STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
LATENESS_S = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 1.0)


class Gauges(Protocol):
    """What is read at the moment of a scrape."""

    @property
    def running(self) -> int: ...
    @property
    def waiting(self) -> int: ...
    @property
    def kv_used(self) -> float: ...


class Exposition:
    """Counts and histograms of one replica; the engine tells it what happens."""

    def __init__(self, spec: ReplicaSpec, model_name: str) -> None:
        # series named .._created are not vLLM's
        prometheus_client.disable_created_metrics()
        self._registry = prometheus_client.CollectorRegistry()
        self._model = model_name
        self._running = self._gauge("num_requests_running", "Requests admitted.")
        self._waiting = self._gauge("num_requests_waiting", "Requests queued.")
        self._kv_used = self._gauge("kv_cache_usage_perc", "Share of KV blocks in use, 0 to 1.")
        self._prompt = self._counter("prompt_tokens", "Prompt tokens of requests whose prompt is computed.")
        self._generated = self._counter("generation_tokens", "Tokens generated.")
        self._queries = self._counter("prefix_cache_queries", "Prompt tokens looked up in the prefix cache.")
        self._hits = self._counter("prefix_cache_hits", "Prompt tokens found in the prefix cache.")
        self._preemptions = self._counter("num_preemptions", "Preemptions of requests that are over.")
        self._ttft = self._histogram("time_to_first_token_seconds", TTFT_S)
        self._itl = self._histogram("inter_token_latency_seconds", TOKEN_S)
        self._tpot = self._histogram("request_time_per_output_token_seconds", TOKEN_S)
        self._e2e = self._histogram("e2e_request_latency_seconds", LATENCY_S)
        self._queue = self._histogram("request_queue_time_seconds", LATENCY_S)
        self._prefill = self._histogram("request_prefill_time_seconds", LATENCY_S)
        self._decode = self._histogram("request_decode_time_seconds", LATENCY_S)
        self._inference = self._histogram("request_inference_time_seconds", LATENCY_S)
        self._step_tokens = self._histogram("iteration_tokens_total", STEP_TOKENS)
        self._success = prometheus_client.Counter(
            "vllm:request_success",
            "Requests that are over, by reason.",
            ("model_name", "engine", "finished_reason"),
            registry=self._registry,
        )
        self._lateness = prometheus_client.Histogram(
            "sim:pacing_lateness_seconds",
            "Real seconds by which a step's tokens are handed out after their time.",
            registry=self._registry,
            buckets=LATENESS_S,
        )
        config = {
            "block_size": str(spec.limits.block_size),
            "num_gpu_blocks": str(spec.num_blocks),
            "enable_prefix_caching": str(spec.limits.prefix_caching),
            "engine": "0",
        }
        prometheus_client.Gauge(
            "vllm:cache_config_info", "The KV cache's settings.", tuple(config), registry=self._registry
        ).labels(**config).set(1)

    def text(self, gauges: Gauges) -> bytes:
        """The whole of /metrics, in Prometheus' text format 0.0.4."""
        self._running.set(gauges.running)
        self._waiting.set(gauges.waiting)
        self._kv_used.set(gauges.kv_used)
        exposed: bytes = prometheus_client.generate_latest(self._registry)
        return exposed

    def step(self, tokens: int, late_s: float) -> None:
        """A step's tokens are handed out."""
        self._step_tokens.observe(tokens)
        self._lateness.observe(max(0.0, late_s))

    def tokens(self, replica: Replica, answer: Answer, new: int, gap_ns: int) -> None:
        """A step's tokens are due; several, where drafts were accepted, are one gap (vLLM counts engine outputs)."""
        self._generated.inc(new)
        if answer.delivered > new:
            self._itl.observe(gap_ns / 1e9)
            return
        self._ttft.observe(gap_ns / 1e9)
        self._prompt.inc(answer.prompt_tokens)
        if replica.limits.prefix_caching:
            self._queries.inc(answer.prompt_tokens)
            self._hits.inc(answer.cached_tokens)

    def over(self, replica: Replica, answer: Answer, reason: str) -> None:
        """A request is over."""
        self._success.labels(model_name=self._model, engine="0", finished_reason=reason).inc()
        self._preemptions.inc(int(replica.progress["preemptions"][answer.row]))
        if reason == "abort":
            return
        arrival = int(replica.requests["arrival_ns"][answer.row])
        scheduled, first, finish = (
            int(replica.ledger[name][answer.row]) for name in ("scheduled", "first_token", "finish")
        )
        self._e2e.observe((finish - arrival) / 1e9)
        self._queue.observe((scheduled - arrival) / 1e9)
        self._prefill.observe((first - scheduled) / 1e9)
        self._decode.observe((finish - first) / 1e9)
        self._inference.observe((finish - scheduled) / 1e9)
        # 0 for an answer of one token, as vLLM has it
        self._tpot.observe((finish - first) / 1e9 / max(1, answer.output_tokens - 1))

    def _gauge(self, name: str, text: str) -> "prometheus_client.Gauge":
        return self._labelled(prometheus_client.Gauge(f"vllm:{name}", text, _LABELS, registry=self._registry))

    def _counter(self, name: str, text: str) -> "prometheus_client.Counter":
        return self._labelled(prometheus_client.Counter(f"vllm:{name}", text, _LABELS, registry=self._registry))

    def _histogram(self, name: str, buckets: tuple[float, ...]) -> "prometheus_client.Histogram":
        text = name.replace("_", " ").capitalize() + "."
        return self._labelled(
            prometheus_client.Histogram(f"vllm:{name}", text, _LABELS, registry=self._registry, buckets=buckets)
        )

    def _labelled(self, metric: "prometheus_client.Gauge") -> "prometheus_client.Gauge":
        return metric.labels(model_name=self._model, engine="0")


_LABELS = ("model_name", "engine")
