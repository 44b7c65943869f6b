"""Batching: what a larger decode batch gains in throughput and costs in latency."""

from figure import Line, draw
from probe import decode_step, expected_s, fitted_model, lab_bench, measured_s

BATCHES = (1, 2, 4, 8, 16, 24, 32)
CONTEXTS = (64, 512)


def run(device: str, clock: str, out: str) -> dict[str, object]:
    """Time decode steps of every batch at a short and a longer context."""
    bench = lab_bench(device, clock)
    model = fitted_model(bench, 1024)
    found: dict[str, object] = {"device": bench.executor.identity.device, "batch": BATCHES}
    latency, throughput = [], []
    for context in CONTEXTS:
        steps = [decode_step(bench, n, context) for n in BATCHES]
        step_s = [measured_s(bench, step) for step in steps]
        told_s = [expected_s(model, step) for step in steps]
        rate = [n / s for n, s in zip(BATCHES, step_s, strict=True)]
        told_rate = [n / s for n, s in zip(BATCHES, told_s, strict=True)]
        latency += [
            Line(f"context {context}", BATCHES, step_s),
            Line("predicted", BATCHES, told_s, predicted=True),
        ]
        throughput += [
            Line(f"context {context}", step_s, rate),
            Line("predicted", told_s, told_rate, predicted=True),
        ]
        found[f"step_s at context {context}"] = step_s
        found[f"predicted_s at context {context}"] = told_s
        found[f"tokens_per_s at context {context}"] = rate
    draw(f"{out}/batching_latency.svg", "Decode: time of a step against batch", "requests in the batch", "s", latency)
    draw(
        f"{out}/batching_tradeoff.svg",
        "Decode: throughput against time between tokens, batch 1 to 32",
        "s between tokens",
        "tokens/s",
        throughput,
    )
    return found
