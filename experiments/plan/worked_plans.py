"""The worked plans of docs/plan.md: chat, code and agents, each from a real trace, each with its figure.

    python experiments/plan/worked_plans.py chat FOLDER     # FOLDER/azure2023/AzureLLMInferenceTrace_conv.csv.gz
    python experiments/plan/worked_plans.py code FOLDER     # FOLDER/azure2023/AzureLLMInferenceTrace_code.csv.gz
    python experiments/plan/worked_plans.py agents FOLDER   # FOLDER/weka_claude_code/traces_710of739.tar.zst

Sources of the traces are in README.md. Written: results/NAME.txt (the verdict) and docs/figures/plan-NAME.svg; the
whole report goes to --out.
"""

import argparse
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from textwrap import wrap

import matplotlib
import zstandard
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

HERE = Path(__file__).parent
FIGURES = HERE.parents[1] / "docs" / "figures"
TICKS_S = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10, 20)
TRACES = {
    "chat": "azure2023/AzureLLMInferenceTrace_conv.csv.gz",
    "code": "azure2023/AzureLLMInferenceTrace_code.csv.gz",
    "agents": "weka_claude_code/traces_710of739.tar.zst",
}


def main() -> None:
    """Plan, and keep the verdict and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", choices=sorted(TRACES))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, help="of the report; default a temporary folder")
    parser.add_argument("--workers", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        out = given.out or Path(scratch) / "out"
        trace = given.folder / TRACES[given.plan]
        if given.plan == "agents":
            trace = sessions(trace, Path(scratch))
        command = ["plan", str(HERE / f"{given.plan}.yaml"), "--trace", str(trace), "--out", str(out)]
        run([*command, "--workers", str(given.workers)])
        tree = json.loads((out / "plan.json").read_text())
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    (results / f"{given.plan}.txt").write_text("\n".join(tree["verdict"]) + "\n")
    FIGURES.mkdir(exist_ok=True)
    draw(tree, FIGURES / f"plan-{given.plan}.svg")


def run(arguments: list[str]) -> None:
    """simkit with these arguments, as a user would run it."""
    subprocess.run([sys.executable, "-c", "from simkit.cli.main import entry; entry()", *arguments], check=True)


def sessions(archive: Path, scratch: Path) -> Path:
    """The recorded sessions as one trace."""
    unpacked = zstandard.ZstdDecompressor(max_window_size=1 << 27)
    with (
        archive.open("rb") as packed,
        unpacked.stream_reader(packed) as raw,
        tarfile.open(fileobj=raw, mode="r|") as tar,
    ):
        tar.extractall(scratch / "sessions", filter="data")
    trace = scratch / "sessions.trace.jsonl.zst"
    subprocess.run([sys.executable, str(HERE / "sessions.py"), str(scratch / "sessions"), str(trace)], check=True)
    return trace


def draw(tree: dict[str, dict[str, object]], path: Path) -> None:
    """Price against latency of all that holds, and the rate that the chosen one holds under each scenario."""
    matplotlib.rcParams.update({"svg.hashsalt": "simkit", "svg.fonttype": "none", "font.size": 9})
    figure = Figure(figsize=(9.5, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    slo = tree["config"]["slo"]
    key = next((name for name in slo if "_p" in name), "e2e_p99_s")
    kinds, front, decision = tree["search"]["kinds"], tree["search"]["front"], tree["decision"]
    held = [kind for kind in kinds if kind["status"] == "holds"]
    left.plot([k["figures"][key] for k in held], [k["usd_per_hour"] for k in held], "o", color="#8a8f98", ms=3)
    line = sorted((k for k in held if k["number"] in front), key=lambda k: k["figures"][key])
    left.plot([k["figures"][key] for k in line], [k["usd_per_hour"] for k in line], "o-", color="#0072b2")
    chosen, usd = decision["kind"], decision["bill"]["total_usd_per_hour"]
    left.plot([decision["planned"]["figures"][key]], [usd], "o", color="#d55e00", ms=8)
    left.set(xscale="log", xlabel=f"{key.removesuffix('_s').replace('_', ' ')}, s", ylabel="USD/h")
    left.set_ylim(0, min(3 * usd + 30, 1.05 * max(k["usd_per_hour"] for k in held)))
    left.xaxis.set_major_formatter(ScalarFormatter())
    left.xaxis.set_minor_formatter(NullFormatter())
    values = [k["figures"][key] for k in held]
    left.set_xticks([t for t in TICKS_S if min(values) <= t <= max(values)] or [min(values)])
    left.set_title("Deployments that hold", loc="left", fontweight="bold")
    figure.suptitle(f"Chosen: {decision['replicas']} x {chosen['label']}, {usd:.2f} USD/h", fontsize=9)
    names = ["as planned", "steps 10 % shorter"]
    rates = [decision["knee"]["rate_per_s"], decision["knee"]["by_step_time_factor"]["0.9"]]
    names += ["\n".join(wrap(stress["scenario"]["words"], 26)) for stress in decision["stresses"]]
    rates += [stress["held_per_s"] or 0.0 for stress in decision["stresses"]]
    colours = ["#009e73" if rate >= tree["rate_per_s"] else "#d55e00" for rate in rates]
    right.barh(range(len(names)), rates, color=colours, height=0.65)
    right.set_yticks(range(len(names)), names)
    right.invert_yaxis()
    right.axvline(tree["rate_per_s"], color="#1b1c1d", linestyle=(0, (4, 3)), linewidth=1.1)
    right.set(xlabel="requests/s held; the line is what is asked")
    right.set_title("What the chosen one holds", loc="left", fontweight="bold")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    main()
