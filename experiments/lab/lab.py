"""The prefill-and-decode lab: four questions, each a command that measures, predicts and draws.

    python experiments/lab/lab.py latency      time against prompt and generated length, prefill and decode apart
    python experiments/lab/lab.py cache        KV cache by length, MHA, GQA and MLA, 16 and 8 bits
    python experiments/lab/lab.py quadratic    attention's quadratic term past its crossover
    python experiments/lab/lab.py batching     throughput against latency by batch
    python experiments/lab/lab.py all          about five minutes on one core

Runs on the CPU with a decoder of 99 M parameters, or with --device cuda on llama-3.1-8b whole. --clock processor does
not count the time that others take of a shared CPU.
"""

import argparse
import json
import sys
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

EXPERIMENTS = ("latency", "cache", "quadratic", "batching")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=(*EXPERIMENTS, "all"))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--clock", choices=("wall", "processor"), default="wall")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "figures")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    for name in EXPERIMENTS if asked.experiment == "all" else (asked.experiment,):
        found = import_module(name).run(asked.device, asked.clock, str(asked.out))
        (asked.out / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(f"{name}:")
        for key, value in found.items():
            print(f"  {key}: {shown(value)}")


def shown(value: object) -> str:
    """Numbers to four digits."""
    if isinstance(value, list | tuple):
        return ", ".join(shown(each) for each in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
