"""What do pipeline stages, shared experts and their skew do? Two tables for docs/cluster.md.

python experiments/cluster/layouts.py
"""

from dataclasses import replace

import numpy as np

from simkit.cluster.fleet import serve_fleet
from simkit.cluster.serve import serve_cluster
from simkit.cluster.settings import Cluster, Pool
from simkit.engine.deployment import Deployment, ReplicaSpec, resolve
from simkit.engine.settings import EngineSettings
from simkit.engine.simulate import simulate
from simkit.metrics.result import RequestColumns
from simkit.models.layout import Layout
from simkit.workloads.presets import preset

RATES = (1.0, 4.0, 8.0)
REQUESTS = 2000


def latencies(requests: RequestColumns) -> str:
    """Mean TTFT and median TPOT, ms."""
    ttft = (requests.first_token_ns - requests.arrival_ns) / 1e6
    tpot = (requests.finish_ns - requests.first_token_ns) / np.maximum(1, requests.output_tokens - 1) / 1e6
    return f"{ttft.mean():.0f} / {np.median(tpot):.1f}"


def stages() -> None:
    """Llama-3.1-70B on H100: four GPUs, eight in two stages, eight in one."""
    print("| layout | GPUs | KV tokens | " + " | ".join(f"{rate:g}/s" for rate in RATES) + " |")
    for layout in (Layout(tensor=4), Layout(tensor=4, pipeline=2), Layout(tensor=8)):
        spec = resolve(Deployment(model="llama-3.1-70b", device="h100", layout=layout))
        cells = []
        for rate in RATES:
            workload = preset("azure-conv-2023", requests=REQUESTS, rate_per_s=rate, seed=0)
            cells.append(latencies(simulate(workload, spec.limits, spec.tables, spec.num_blocks).requests))
        held = spec.num_blocks * spec.limits.block_size
        name = f"tensor {layout.tensor}, pipeline {layout.pipeline}"
        print(f"| {name} | {layout.gpus} | {held:,} | {' | '.join(cells)} |", flush=True)


def experts() -> None:
    """DeepSeek-V3 on eight H200: one engine of all GPUs, or one engine a GPU that share the experts."""
    engine = EngineSettings(max_model_len=16_384)
    workload = preset("azure-conv-2023", requests=REQUESTS, rate_per_s=8.0, seed=0)
    rows: list[tuple[str, Layout]] = [
        ("tensor 8", Layout(tensor=8)),
        ("tensor 8, expert 8", Layout(tensor=8, expert=8)),
        ("data 8, expert 8", Layout(data=8, expert=8)),
        ("the same, expert_skew 1.5", Layout(data=8, expert=8, expert_skew=1.5)),
        ("the same, expert_zipf 0.8", Layout(data=8, expert=8, expert_zipf=0.8)),
    ]
    print("| layout | KV tokens, all engines | decode of 256, ms | 8/s, in lockstep | each for itself |")
    for name, layout in rows:
        spec = resolve(Deployment(model="deepseek-v3", device="h200", layout=layout, engine=engine))
        held = spec.num_blocks * spec.limits.block_size * layout.data
        print(f"| {name} | {held:,} | {_decode_ms(spec, 256 // layout.data):.1f} |", end="")
        cluster = Cluster(pools=(Pool(data_parallel=layout.data),), router="data_parallel")
        print(f" {latencies(serve_cluster(workload, cluster, lambda _, spec=spec: spec).requests)} |", end="")
        apart = spec.deployment.model_copy(update={"layout": Layout(tensor=layout.tensor)})  # with the same step times
        alone = serve_fleet(workload, [replace(spec, deployment=apart)] * layout.data, "data_parallel").requests
        print(f" {latencies(alone)} |", flush=True)


def _decode_ms(spec: ReplicaSpec, requests: int) -> float:
    """All of a step of so many decodes an engine that depends on their number."""
    return float(spec.tables.linear_ns[requests] + spec.tables.sample_ns[requests]) / 1e6


if __name__ == "__main__":
    stages()
    experts()
