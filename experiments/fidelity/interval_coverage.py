"""How many measured figures lie in their 90 % intervals, when a run's model was in neither fit nor residuals.

    python experiments/fidelity/interval_coverage.py RUNS.json [fit.json]

Each run is predicted by the constants that were fitted without its model (fit.json, made by fit_engine.py), with the
interval that a user would be shown: residuals of other models, arrival seeds, and steps shorter and longer. A minute.
"""

import json
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from fit_engine import Rebuilt, errors, predicted, rebuilt

from simkit.fidelity.figures import COMPARED, Figures
from simkit.fidelity.intervals import Interval, intervals, shipped_residuals, step_factors
from simkit.fidelity.measured_runs import read_measured_runs
from simkit.fidelity.shared_prefix import shared_prefix_workload
from simkit.fidelity.validate import SEEDS
from simkit.models.engine_law import EngineLaw

HERE = Path(__file__).parent


class Held(NamedTuple):
    """A run that was left out: its intervals, ms, and ln(predicted / measured)."""

    id: str
    predicted: Figures
    bounds: dict[str, Interval]
    residual: dict[str, float]

    def inside(self, metric: str) -> bool:
        """Whether the measured figure lies in its interval."""
        measured = self.predicted[metric] * np.exp(-self.residual[metric])
        low, high = self.bounds[metric]
        return bool(low <= measured <= high)


def held(one: Rebuilt, engine: EngineLaw) -> Held:
    """One run by constants that have not seen its model."""
    run, residuals, model = one.run, shipped_residuals(), one.spec.architecture.name
    stages = predicted(one, engine)
    seeds = [
        predicted(
            one._replace(staged=shared_prefix_workload(run.workload_spec, run.output_tokens, run.id, seed)), engine
        )
        for seed in range(1, SEEDS)
    ]
    faster, slower = (predicted(one, engine, factor)["whole"] for factor in step_factors(residuals, model))
    whole = stages["whole"]
    every = [whole, *(other["whole"] for other in seeds)]
    return Held(run.id, whole, intervals(whole, residuals, every, (faster, slower), model), errors(run, stages))


def held_of(runs: Path, fit: Path) -> list[Held]:
    """Every run of a file, each by the constants of fit.json that were fitted without its model."""
    laws = json.loads(fit.read_text())["constants_without_model"]
    found = [rebuilt(run) for run in read_measured_runs(runs)]
    return [held(one, EngineLaw.model_validate(laws[one.spec.architecture.name])) for one in found]


def coverage(runs: list[Held]) -> dict[str, float]:
    """Share of runs inside, by metric."""
    return {
        metric: float(np.mean([run.inside(metric) for run in runs if metric in run.residual])) for metric in COMPARED
    }


def missed(runs: list[Held], metric: str) -> list[str]:
    """The runs outside."""
    return [run.id for run in runs if metric in run.residual and not run.inside(metric)]


def main() -> None:
    """Print shares, what is outside, and how wide the intervals are."""
    fit = Path(sys.argv[2]) if len(sys.argv) > 2 else HERE / "results" / "fit.json"
    runs = held_of(Path(sys.argv[1]), fit)
    for metric, share in coverage(runs).items():
        widths = [np.log(run.bounds[metric].high / run.bounds[metric].low) for run in runs]
        outside = ", ".join(missed(runs, metric))
        print(f"{metric}: {share:.0%}; high / low: median {np.exp(np.median(widths)):.2f}; outside: {outside}")


if __name__ == "__main__":
    main()
