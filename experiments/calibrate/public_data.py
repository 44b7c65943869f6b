"""How wrong fitted step times are on public measurements, held out by region: the tables of docs/calibrate_errors.md.

    python experiments/calibrate/public_data.py            # prints the tables, about a minute on one core
    python experiments/calibrate/public_data.py --write    # and puts them into docs/calibrate_errors.md

AIConfigurator's tables come with `pip install 'simkit-serving[aic]'`. Vidur's are read from --vidur, a folder with
`a100` and `h100` of its profiling CSVs; without it they are left out.
"""

import argparse
import math
import re
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy.ndimage import median_filter

from simkit.calibrate.aic_import import import_aic
from simkit.calibrate.ceilings import ceilings
from simkit.calibrate.gemm_model import gemm_work
from simkit.calibrate.operator_errors import OperatorError, Predicted, errors, held_out_predictions
from simkit.calibrate.operator_model import fit_operators
from simkit.calibrate.operator_profile import OperatorProfile
from simkit.calibrate.vidur_import import import_vidur

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "calibrate_errors.md"
BEGIN, END = "<!-- public data -->", "<!-- end of public data -->"
ATTENTION = ("attention_decode", "attention_prefill", "mla_decode", "mla_prefill")
TABLES = ("gemm", *ATTENTION, "moe", "collective", "elementwise")
DENSE_TOKENS = 32  # nine gaps of ten this small or smaller show the jumps between neighbours
LEVEL_SIZES = 15
DTYPES = ("bf16", "fp8", "fp8_block", "int4", "mxfp4")
HEAD = "| source | operator | held out | part | points | MAPE (90 % interval) | p50 | p90 | p95 | worst | bias |"


def profiles(vidur: Path) -> Iterator[tuple[str, OperatorProfile]]:
    """The public profiles, with the name of each in the table."""
    for system in ("h100_sxm", "h200_sxm"):
        yield f"AIC {system[:4].upper()}", import_aic(system, "vllm")
    for device in ("a100", "h100"):
        if (vidur / device).is_dir():
            yield f"Vidur {device.upper()}", import_vidur(vidur / device, device)
        else:
            print(f"no Vidur tables at {vidur / device}; left out")


def line(source: str, error: OperatorError) -> str:
    """One line of the table."""
    around = "one point" if math.isnan(error.low) else f"{100 * error.low:.2f} to {100 * error.high:.2f}"
    interval = f"{100 * error.mape:.2f} % ({around})"
    sizes = " | ".join(f"{100 * value:.1f} %" for value in (error.p50, error.p90, error.p95, error.worst))
    operator = error.table.replace("attention_", "attention, ").replace("mla_", "MLA, ").replace("_", " ")
    return (
        f"| {source} | {operator} | {error.region} | {error.part} | {error.rows:,} | {interval} | {sizes} "
        f"| {100 * error.bias:+.1f} % |"
    )


def targets(source: str, found: list[Predicted]) -> list[str]:
    """What was asked of GEMMs and attention, all regions of interpolation together, all dtypes."""
    lines = []
    for table in ("gemm", *ATTENTION):
        sizes = []
        for one in found:
            if one.table == table and one.region not in ("token blocks", "any past"):
                off = np.abs(one.times.ns / one.rows["median_ns"].to_numpy(np.float64) - 1.0)
                sizes.append(off)
        if sizes:
            lines.append(f"| {source} | {table} | {100 * float(np.concatenate(sizes).mean()):.2f} % |")
    return lines


def noise_floor(profile: OperatorProfile) -> str | None:
    """Scatter of the sizes 1 to 17 of each GEMM, which read the same weights, around their own median."""
    gemm = profile.tables["gemm"]
    small = gemm[(gemm["tokens"] <= 17) & (gemm["dtype"] != "fp8_block")]
    if small["tokens"].nunique() < 10:
        return None
    middle = small.groupby(["dtype", "n", "k"])["median_ns"].transform("median")
    return f"{100 * float((small['median_ns'] / middle - 1.0).abs().mean()):.1f} %"


def jumps(profile: OperatorProfile) -> str | None:
    """What is left of densely timed bf16 GEMMs when each shape's own level, a running median over 15 sizes of time over
    FLOPs and bytes, is known perfectly: jumps from one size to the next that belong to that shape alone.
    """
    gemm = profile.tables["gemm"]
    grid = gemm[gemm["dtype"] == "bf16"].groupby(["n", "k", "tokens"])["median_ns"].min().unstack("tokens")
    grid = grid.loc[:, grid.notna().all()]
    tokens = grid.columns.to_numpy(np.float64)
    if np.percentile(np.diff(tokens), 90) > DENSE_TOKENS:
        return None
    n, k = (grid.index.get_level_values(level).to_numpy(np.float64)[:, None] for level in ("n", "k"))
    log_ns = np.log(grid.to_numpy(np.float64))
    flops, moved = gemm_work(tokens[None, :], n, k, "bf16")
    ratio = log_ns - np.log(ceilings(*np.broadcast_arrays(flops, moved), np.exp(log_ns)).line_ns(flops, moved))
    level = median_filter(ratio, size=(1, LEVEL_SIZES), mode="nearest")
    return f"{100 * float(np.abs(np.exp(level - ratio) - 1.0).mean()):.1f} %"


def main() -> None:
    """Print the tables; with --write put them into the docs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vidur", type=Path, default=ROOT.parent / "shared" / "profiles" / "vidur")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    rows, promised, rules, floors = [], [], {}, []
    for source, profile in profiles(arguments.vidur):
        began = time.perf_counter()
        fit_operators(profile)
        took = time.perf_counter() - began
        points = sum(len(frame) for frame in profile.tables.values())
        floor = noise_floor(profile)
        scatter = f"; GEMMs of 1 to 17 tokens scatter by {floor} around their own median" if floor else ""
        left = jumps(profile)
        alone = f"; bf16 GEMMs jump by {left} from size to size around their own level" if left else ""
        floors.append(f"- {source}: {points:,} points, fitted in {took:.2f} s{scatter}{alone}")
        found = [one for one in held_out_predictions(profile) if one.table in TABLES]
        promised += targets(source, found)
        for one in found:
            rules[f"{one.table}, {one.region}"] = one.rule
            rows += [line(source, error) for error in errors(one) if error.part in ("all", *DTYPES)]
    text = "\n".join(
        [
            "| source | operator | MAPE, all regions but those that no shape has |",
            "|---|---|---|",
            *promised,
            "",
            HEAD,
            "|---|---|---|---|---|---|---|---|---|---|---|",
            *rows,
            "",
            "What was held out, each region by itself and the fit made anew without it:",
            "",
            *(f"- {name}: {rule}" for name, rule in rules.items()),
            "",
            *floors,
        ]
    )
    print(text)
    if arguments.write:
        page = PAGE.read_text(encoding="utf-8")
        found_place = re.search(f"{BEGIN}.*?{END}", page, re.DOTALL)
        if found_place is None:
            raise SystemExit(f"{PAGE}: {BEGIN} .. {END} is missing")
        new = f"{BEGIN}\n{text}\n{END}"
        PAGE.write_text(page[: found_place.start()] + new + page[found_place.end() :], encoding="utf-8")


if __name__ == "__main__":
    main()
