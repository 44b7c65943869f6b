"""Which scheduler, which router? At least six disciplines and five routers on three workloads, one command.

    python experiments/scheduling/study.py FOLDER [--seeds 5] [--requests 3000] [--out experiments/scheduling/results]

FOLDER holds azure2023/AzureLLMInferenceTrace_{code,conv}.csv.gz and mooncake/conversation_trace.jsonl.gz (sources and
licences: experiments/presets/README.md). A seed is a stretch of the trace, the same for all that are compared, so
differences are paired; intervals are Student's, 95 %, over the seeds. Disciplines run on one replica just below its
knee, routers on eight.
"""

import argparse
import csv
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from simkit.cluster.fleet import serve_fleet
from simkit.engine.deployment import Deployment, ReplicaSpec, resolve
from simkit.engine.settings import EngineSettings
from simkit.metrics.result import RequestColumns, Status
from simkit.workloads.readers import read_workload
from simkit.workloads.transform import fit_context, rate_to, selected, spread_ticks
from simkit.workloads.workload import Workload

REPLICAS = 8
MOST_TOKENS = 16_384  # requests above are left out: Orca and static cannot cut a prompt over their step's budget
ROUTERS: dict[str, str | dict[str, object]] = {
    "round_robin": "round_robin",
    "random": "random",
    "least_outstanding": "least_outstanding",
    "least_tokens": "least_tokens",
    "power_of_two": "power_of_two",
    "least_reported 1 s": {"kind": "least_reported", "age_s": 1.0},
    "prefix_aware": "prefix_aware",
    "kv_overlap": "kv_overlap",
}
DISCIPLINES: dict[str, dict[str, object]] = {
    "vllm-v1": {},
    "vllm-v1 srpt, oracle": {"policy": "srpt", "predictor": {"kind": "oracle"}},
    "vllm-v1 mlfq": {"policy": "mlfq"},
    "sglang": {"discipline": "sglang"},
    "sarathi": {"discipline": "sarathi"},
    "vllm-v0": {"discipline": "vllm-v0"},
    "orca": {"discipline": "orca"},
    "static": {"discipline": "static"},
}
METRICS = ("ttft_mean_s", "ttft_p99_s", "tpot_p99_s", "e2e_mean_s", "hit_rate")


@dataclass(frozen=True)
class Load:
    """A trace and the rate, requests/s, that one replica is given of it: some 80 % of its knee."""

    name: str
    trace: Workload
    rate_per_s: float


def loads(folder: Path) -> list[Load]:
    """The three workloads."""
    azure = folder / "azure2023"
    conversation = read_workload(folder / "mooncake/conversation_trace.jsonl.gz")
    return [
        Load("azure-conv", read_workload(azure / "AzureLLMInferenceTrace_conv.csv.gz", sort=True), 16.0),
        Load("azure-code", read_workload(azure / "AzureLLMInferenceTrace_code.csv.gz", sort=True), 5.0),
        Load("mooncake-conv", spread_ticks(conversation), 2.4),
    ]


def stretch(load: Load, requests: int, seed: int, replicas: int) -> Workload:
    """The requests of one seed: a stretch of the trace, from a start that the seed draws, at the load's rate."""
    fitting = fit_context(load.trace, MOST_TOKENS)
    start = int(np.random.default_rng(seed).integers(0, max(1, len(fitting) - requests)))
    rows = np.arange(start, min(start + requests, len(fitting)))
    return rate_to(selected(fitting, rows), load.rate_per_s * replicas)


def figures(requests: RequestColumns) -> dict[str, float]:
    """The metrics of one run; all its requests must have been answered."""
    assert (requests.status == Status.FINISHED).all(), "every request fits and is answered"
    ttft_s = (requests.first_token_ns - requests.arrival_ns) / 1e9
    e2e_s = (requests.finish_ns - requests.arrival_ns) / 1e9
    more = requests.generated_tokens > 1
    tpot_s = (e2e_s - ttft_s)[more] / (requests.generated_tokens[more] - 1)
    return {
        "ttft_mean_s": float(ttft_s.mean()),
        "ttft_p99_s": float(np.quantile(ttft_s, 0.99)),
        "tpot_p99_s": float(np.quantile(tpot_s, 0.99)),
        "e2e_mean_s": float(e2e_s.mean()),
        "hit_rate": float(requests.hit_tokens.sum() / requests.prompt_tokens.sum()),
    }


def spec_of(settings: dict[str, object]) -> ReplicaSpec:
    """Llama-3.1-8B on one H100 with some engine settings, a context of what the study sends."""
    engine = EngineSettings.model_validate({"max_model_len": MOST_TOKENS, "max_num_batched_tokens": 16_384, **settings})
    return resolve(Deployment(model="llama-3.1-8b", device="h100", engine=engine))


Runner = Callable[[str, Workload, int], dict[str, float]]


def discipline_run(name: str, workload: Workload, seed: int) -> dict[str, float]:
    """One replica under a discipline."""
    return figures(serve_fleet(workload, [spec_of(DISCIPLINES[name])], "round_robin", seed).requests)


def router_run(name: str, workload: Workload, seed: int) -> dict[str, float]:
    """Replicas of vLLM V1 behind a router."""
    return figures(serve_fleet(workload, [spec_of({})] * REPLICAS, ROUTERS[name], seed).requests)


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half of Student's 95 % interval."""
    array = np.array(values)
    half = float(stats.t.ppf(0.975, len(array) - 1)) * array.std(ddof=1) / math.sqrt(len(array))
    return float(array.mean()), float(half)


def compared(
    load: Load, names: list[str], run: Runner, seeds: int, requests: int, replicas: int
) -> list[dict[str, object]]:
    """A row for each name: means, and the paired difference to the first name with its interval."""
    workloads = [stretch(load, requests, seed, replicas) for seed in range(seeds)]
    found = {name: [run(name, workload, seed) for seed, workload in enumerate(workloads)] for name in names}
    rows = []
    for name in names:
        row: dict[str, object] = {"workload": load.name, "what": name}
        for metric in METRICS:
            row[metric] = f"{interval([one[metric] for one in found[name]])[0]:.4g}"
            pairs = zip(found[name], found[names[0]], strict=True)
            mean, half = interval([one[metric] - base[metric] for one, base in pairs])
            row[f"{metric} difference"] = f"{mean:+.3g} ± {half:.2g}"
        rows.append(row)
        print(json.dumps(row, ensure_ascii=False), flush=True)
    return rows


def main() -> None:
    """Both halves of the study, and their tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--out", type=Path, default=Path("experiments/scheduling/results"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    halves = {
        "disciplines": (list(DISCIPLINES), discipline_run, 1),
        "routers": (list(ROUTERS), router_run, REPLICAS),
    }
    for half, (names, run, replicas) in halves.items():
        rows = []
        for load in loads(given.folder):
            # a fleet needs more requests for as long a run; the traces have no eight times as many
            requests = given.requests * (2 if replicas > 1 else 1)
            rows += compared(load, names, run, given.seeds, requests, replicas)
        with (given.out / f"{half}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
