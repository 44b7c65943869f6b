"""Fit the engine's constants on measured runs, leave each model and each device out, and write what ships.

    python experiments/fidelity/fit_engine.py FILE.json [OUT FOLDER]

The kernels' laws are taken as they are (distil_kernels.py made them from public tables that know nothing of these
runs); what is fitted is the handful of constants in simkit/models/engine_law.py, from their priors by Gauss-Newton
with a line search on the logarithm of mean ITL, mean TTFT and TTFT p90 of every stage, with a robust loss and a wide
prior on each constant. Residuals of ITL count in units of 3 %, of TTFT in units of 12 %: what a good prediction of
each is. Writes simkit/models/laws/engine.yaml, simkit/fidelity/residuals.yaml and OUT/fit.json.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml
from joblib import Parallel, delayed
from numpy.typing import NDArray
from scipy.optimize import least_squares

from simkit.engine.deployment import ReplicaSpec, resolve
from simkit.fidelity.deployments import deployment_of
from simkit.fidelity.figures import COMPARED, Figures
from simkit.fidelity.intervals import RESIDUALS_FILE
from simkit.fidelity.measured_runs import MeasuredRun, read_measured_runs
from simkit.fidelity.predict import predict_staged
from simkit.fidelity.shared_prefix import StagedWorkload, shared_prefix_workload
from simkit.models.calibrated import calibrated_tables
from simkit.models.device import load_device
from simkit.models.engine_law import ENGINE_FILE, FITTED, EngineLaw, engine_law
from simkit.models.step_law import TableSizes
from simkit.models.steptables import scaled

F64 = NDArray[np.float64]
HERE = Path(__file__).parent

# prior mean and standard deviation of each constant: what would be believed of it without these runs
PRIOR = {
    "all_reduce_factor": (1.0, 0.3),
    "elementwise_us": (2.0, 0.7),
    "sort_bytes_per_logit": (300.0, 300.0),
    "step_us": (200.0, 200.0),
    "chunk_layer_us": (60.0, 40.0),
    "front_end_ms": (3.0, 3.0),
    "front_end_token_us": (0.0, 3.0),
    "old_host_factor": (1.5, 1.0),
}
UNITS = {"itl_mean": 0.03, "ttft_mean": 0.12, "ttft_p90": 0.12}
MOST_STEPS = 12
SHARES = (1.0, 0.5, 0.25, 0.1)  # of a step that are tried
ENOUGH = 0.02  # a step that lowers the cost by less is the last
SIDE = 0.2  # of a prior's width: how far to each side slopes are taken


class Rebuilt(NamedTuple):
    """A measured run, ready to be replayed."""

    run: MeasuredRun
    spec: ReplicaSpec
    staged: StagedWorkload


def rebuilt(run: MeasuredRun) -> Rebuilt:
    """The run's deployment and requests, built once."""
    staged = shared_prefix_workload(run.workload_spec, run.output_tokens, run.id)
    return Rebuilt(run, resolve(deployment_of(run)), staged)


def predicted(one: Rebuilt, engine: EngineLaw, factor: float = 1.0) -> dict[str, Figures]:
    """Figures of a run by stage, with these constants, and every step so much longer."""
    run, spec, staged = one
    limits = spec.limits
    sizes = TableSizes(limits.max_num_batched_tokens, limits.max_running, limits.max_model_len, spec.context_tokens)
    weights = "fp8" if spec.deployment.weights == "fp8" else None
    tables = calibrated_tables(
        spec.architecture, spec.device, spec.deployment.layout, weights, "bf16", sizes, engine=engine
    )
    rates = [rate for rate, _ in run.workload_spec.stages]
    tables = tables if factor == 1.0 else scaled(tables, factor)
    own = replace(spec, tables=tables, front_end=engine.front_end(spec.device.name))
    return predict_staged(own, staged, rates).stages


def residuals(one: Rebuilt, engine: EngineLaw) -> F64:
    """Weighted log errors of a run's stages; a run counts as much with one stage as with two."""
    stages = predicted(one, engine)
    own = [name for name in one.run.measured if name != "whole"] or ["whole"]
    found = []
    for name in own:
        measured = one.run.measured[name].model_dump()
        for metric, unit in UNITS.items():
            truth = measured[f"{metric}_ms"]
            if truth is not None:
                found.append(np.log(stages[name][metric] / truth) / unit / np.sqrt(len(own)))
    return np.clip(np.array(found), -12.0, 12.0)


def moved(engine: EngineLaw, names: Sequence[str], by: F64) -> EngineLaw:
    """Constants moved, and kept within their ranges."""
    values = engine.model_dump()
    for name, change in zip(names, by, strict=True):
        low, high = limits(name)
        values[name] = float(np.clip(values[name] + change, low, high))
    return EngineLaw.model_validate(values)


def limits(name: str) -> tuple[float, float]:
    """The range that a constant must lie in."""
    rules = {type(rule).__name__: rule for rule in EngineLaw.model_fields[name].metadata}
    return float(rules["Ge"].ge), float(rules["Le"].le)


def improved(engine: EngineLaw, names: Sequence[str], now: F64, slopes: F64) -> EngineLaw:
    """One step: the constants that a straight line through `now` with these slopes, f64[n, k], says are best."""
    values = engine.model_dump()
    mean = np.array([PRIOR[name][0] for name in names])
    spread = np.array([PRIOR[name][1] for name in names])
    own = np.array([values[name] for name in names])
    bounds = np.array([limits(name) for name in names])

    def objective(x: F64) -> F64:
        line = now + slopes @ (x - own)
        robust = np.sign(line) * np.sqrt(2 * (np.sqrt(1 + line**2) - 1))
        return np.concatenate([robust, (x - mean) / spread])

    start = np.clip(own, bounds[:, 0] + 1e-6, bounds[:, 1] - 1e-6)
    found = least_squares(objective, start, bounds=(bounds[:, 0], bounds[:, 1]), x_scale=spread)
    return moved(engine, names, found.x - own)


def residuals_at(runs: Sequence[Rebuilt], engines: Sequence[EngineLaw]) -> list[list[F64]]:
    """Residuals [engine][run], on all cores."""
    jobs = (delayed(residuals)(one, engine) for engine in engines for one in runs)
    rows = Parallel(n_jobs=-1)(jobs)
    return [rows[start : start + len(runs)] for start in range(0, len(rows), len(runs))]


def slopes_at(runs: Sequence[Rebuilt], engine: EngineLaw, names: Sequence[str]) -> tuple[list[F64], list[F64]]:
    """Residuals of each run, and their slopes by constant, between both sides where the constant's range has both."""
    sides = []
    for name in names:
        step = SIDE * PRIOR[name][1]
        sides += [moved(engine, [name], np.array([by])) for by in (-step, step)]
    now, *rows = residuals_at(runs, [engine, *sides])
    slopes = []
    for index in range(len(runs)):
        columns = []
        for column, name in enumerate(names):
            low, high = sides[2 * column], sides[2 * column + 1]
            rise = rows[2 * column + 1][index] - rows[2 * column][index]
            columns.append(rise / (getattr(high, name) - getattr(low, name)))
        slopes.append(np.stack(columns, axis=1))
    return now, slopes


def cost(engine: EngineLaw, names: Sequence[str], now: Sequence[F64]) -> float:
    """What `improved` makes small: the robust loss of the residuals, and the priors'."""
    off = [(getattr(engine, name) - PRIOR[name][0]) / PRIOR[name][1] for name in names]
    return float(sum(2.0 * np.sum(np.sqrt(1.0 + rows**2) - 1.0) for rows in now) + np.sum(np.square(off)))


def fit(
    runs: Sequence[Rebuilt], start: EngineLaw, names: Sequence[str], at_start: tuple[list[F64], list[F64]] | None = None
) -> tuple[EngineLaw, tuple[list[F64], list[F64]]]:
    """The best constants, and each run's residuals and slopes there; `at_start` are these at the start, if known.

    Replays are not smooth in the constants (a request more or less fits a step), so a step is taken only as far as it
    truly lowers the cost, and the search ends where none of its parts does.
    """
    engine = start
    now, slopes = at_start or slopes_at(runs, engine, names)
    least = cost(engine, names, now)
    for number in range(MOST_STEPS):
        aim = improved(engine, names, np.concatenate(now), np.concatenate(slopes))
        way = np.array([getattr(aim, name) - getattr(engine, name) for name in names])
        tried = [moved(engine, names, share * way) for share in SHARES]
        costs = [cost(law, names, rows) for law, rows in zip(tried, residuals_at(runs, tried), strict=True)]
        best = int(np.argmin(costs))
        gained = least - costs[best]
        if gained <= 0.0:
            break
        engine, least = tried[best], costs[best]
        now, slopes = slopes_at(runs, engine, names)
        print(f"step {number + 1}: {SHARES[best]:g} of it, cost {least:.2f}", flush=True)
        if gained < ENOUGH:
            break
    return engine, (now, slopes)


def standard_errors(slopes: Sequence[F64], names: Sequence[str]) -> dict[str, float]:
    """How well the runs and the priors fix each constant: roots of the diagonal of the inverse normal matrix."""
    lines = np.concatenate(slopes)
    normal = lines.T @ lines + np.diag([PRIOR[name][1] ** -2 for name in names])
    return dict(zip(names, (float(value) for value in np.sqrt(np.diag(np.linalg.inv(normal)))), strict=True))


def errors(run: MeasuredRun, stages: dict[str, Figures], stage: str = "whole") -> dict[str, float]:
    """ln(predicted / measured) by metric."""
    measured = run.measured[stage].model_dump()
    return {
        metric: float(np.log(stages[stage][metric] / measured[f"{metric}_ms"]))
        for metric in COMPARED
        if measured[f"{metric}_ms"] is not None
    }


def leave_out(
    runs: Sequence[Rebuilt], groups: Sequence[str], engine: EngineLaw, at_engine: tuple[list[F64], list[F64]]
) -> tuple[list[dict[str, float]], dict[str, EngineLaw]]:
    """Errors of each run by the constants that were fitted without its group, and those constants.

    Each search begins at the constants of all runs and goes on until it finds nothing better for those it knows.
    """
    found: list[dict[str, float]] = [{} for _ in runs]
    laws = {}
    for group in sorted(set(groups)):
        out = [other == group for other in groups]
        print(f"without {group}", flush=True)
        kept = [index for index, left in enumerate(out) if not left]
        known = ([at_engine[0][index] for index in kept], [at_engine[1][index] for index in kept])
        laws[group] = law = fit([runs[index] for index in kept], engine, FITTED, known)[0]
        for index, one in enumerate(runs):
            if out[index]:
                found[index] = errors(one.run, predicted(one, law))
    return found, laws


def summary(rows: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Median, mean and worst absolute error and signed median, %, by metric."""
    table = {}
    for metric in COMPARED:
        values = np.array([np.expm1(row[metric]) * 100 for row in rows if metric in row])
        table[metric] = {
            "median_abs_pct": round(float(np.median(np.abs(values))), 2),
            "mape_pct": round(float(np.mean(np.abs(values))), 2),
            "median_signed_pct": round(float(np.median(values)), 2),
            "worst_pct": round(float(values[np.argmax(np.abs(values))]), 1),
        }
    return table


def main() -> None:
    """Fit, leave out, write, print."""
    runs = [rebuilt(run) for run in read_measured_runs(Path(sys.argv[1]))]
    out = Path(sys.argv[2]) if len(sys.argv) > 2 else HERE / "results"
    out.mkdir(parents=True, exist_ok=True)
    shipped = engine_law()
    # the start is what is believed without these runs, so that the same runs give the same constants each time
    start = EngineLaw.model_validate(shipped.model_dump() | {name: mean for name, (mean, _) in PRIOR.items()})
    best, at_best = fit(runs, start, FITTED)
    known = standard_errors(at_best[1], FITTED)
    rounded = {name: float(f"{getattr(best, name):.3g}") for name in FITTED}
    engine = EngineLaw.model_validate(rounded | {"old_host_devices": shipped.old_host_devices})
    head = (
        f"# Made by experiments/fidelity/fit_engine.py on {len(runs)} measured runs of vLLM 0.15; "
        "what each means is in engine_law.py.\n"
    )
    ENGINE_FILE.write_text(
        head + yaml.safe_dump(engine.model_dump(mode="json"), sort_keys=False, default_flow_style=None, width=120)
    )
    models = [one.spec.architecture.name for one in runs]
    devices = [load_device(one.run.hardware).name for one in runs]
    fitted = [errors(one.run, predicted(one, engine)) for one in runs]
    by_model, model_laws = leave_out(runs, models, best, at_best)
    by_device, device_laws = leave_out(runs, devices, best, at_best)
    write_residuals(by_model, models)
    tree = {
        "constants": rounded,
        "standard_errors": {name: float(f"{value:.2g}") for name, value in known.items()},
        "fit": summary(fitted),
        "leave_one_model_out": summary(by_model),
        "leave_one_device_out": summary(by_device),
        "constants_without_model": {name: law.model_dump(mode="json") for name, law in model_laws.items()},
        "constants_without_device": {name: law.model_dump(mode="json") for name, law in device_laws.items()},
        "runs": [
            {
                "id": one.run.id,
                "model": models[index],
                "device": devices[index],
                "fit": percent(fitted[index]),
                "leave_one_model_out": percent(by_model[index]),
                "leave_one_device_out": percent(by_device[index]),
            }
            for index, one in enumerate(runs)
        ],
    }
    (out / "fit.json").write_text(json.dumps(tree, indent=1) + "\n")
    for name in ("constants", "standard_errors", "fit", "leave_one_model_out", "leave_one_device_out"):
        print(name)
        for key, value in tree[name].items():
            print(f"  {key}: {value}")


def percent(row: dict[str, float]) -> dict[str, float]:
    """Errors in %."""
    return {metric: round(float(np.expm1(value)) * 100, 2) for metric, value in row.items()}


def write_residuals(rows: Sequence[dict[str, float]], models: Sequence[str]) -> None:
    """The leave-one-model-out errors that intervals are made from, ln(predicted / measured)."""
    tree = {
        "runs": [
            {"model": model} | {metric: round(value, 4) for metric, value in row.items()}
            for model, row in zip(models, rows, strict=True)
        ]
    }
    head = "# ln(predicted / measured) of each run by constants fitted without its model; made by fit_engine.py.\n"
    RESIDUALS_FILE.write_text(head + yaml.safe_dump(tree, sort_keys=False, default_flow_style=None, width=160))


if __name__ == "__main__":
    main()
