"""Replay a measured run: its deployment, its requests, and the engine; what its client would have seen."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from simkit.engine.deployment import Deployment, ReplicaSpec, StepTime, resolve
from simkit.engine.simulate import simulate
from simkit.errors import InputError
from simkit.fidelity.deployments import deployment_of
from simkit.fidelity.figures import Figures, client_latencies, figures
from simkit.fidelity.measured_runs import MeasuredRun
from simkit.fidelity.shared_prefix import StagedWorkload, shared_prefix_workload
from simkit.metrics.front_end import with_front_end
from simkit.metrics.latency import finished_latencies
from simkit.metrics.result import RunResult, Status
from simkit.models.front_end import NO_FRONT_END, FrontEndLaw
from simkit.models.steptables import StepTables, scaled
from simkit.workloads.workload import Workload


@dataclass(frozen=True)
class Timing:
    """Where step times and the front end's time come from."""

    step_time: StepTime = "calibrated"
    # puts a profile's step times, and its front end, into a deployment
    profile: Callable[[ReplicaSpec], ReplicaSpec] | None = None
    # the tables of a whole-step profile: batched tokens, sequences, model length, KV tokens at most
    whole_step: Callable[[int, int, int, int], StepTables] | None = None
    # the same of its median step, for medians over requests; None: the profile has none, and they are of `whole_step`
    typical_step: Callable[[int, int, int, int], StepTables] | None = None
    front_end: FrontEndLaw = NO_FRONT_END  # of step logs, which have no deployment
    factor: float = 1.0  # on every step time: what if they were wrong by so much


@dataclass(frozen=True)
class Prediction:
    """What a run's client would have seen."""

    provenance: str
    note: str
    stages: dict[str, Figures]  # whole, stage0, stage1, ..
    in_flight: dict[str, float]  # mean requests in the server, by stage: rate x mean E2E
    rejected: int


def timed(deployment: Deployment, timing: Timing) -> ReplicaSpec:
    """A deployment with its step times."""
    spec = resolve(deployment.model_copy(update={"step_time": timing.step_time}))
    if timing.profile is not None:
        spec = timing.profile(spec)
    if timing.factor != 1.0:
        spec = replace(spec, tables=scaled(spec.tables, timing.factor))
    return spec


def predict_run(run: MeasuredRun, timing: Timing | None = None, seed: int = 0) -> Prediction:
    """Rebuild a run and replay it.

    Raises:
        InputError: the model or device is not known, or the deployment is impossible; its message says why.
    """
    load = run.workload_spec
    spec = timed(deployment_of(run), timing or Timing())
    staged = shared_prefix_workload(load, run.output_tokens, run.id, seed)
    return predict_staged(spec, staged, [rate for rate, _ in load.stages])


def predict_staged(spec: ReplicaSpec, staged: StagedWorkload, rates: list[float]) -> Prediction:
    """Replay a staged workload on a deployment.

    Raises:
        InputError: no request fits the context limit.
    """
    result = replay(spec, staged.workload)
    latencies = finished_latencies(result.requests)
    seen = client_latencies(latencies)
    if len(latencies.row) == 0:
        raise InputError(f"{staged.workload.name}: no request fits max_model_len={spec.limits.max_model_len}; raise it")
    stage = staged.stage[latencies.row]
    names = {f"stage{index}": figures(seen, stage == index) for index in range(len(rates))}
    return Prediction(
        provenance=spec.provenance,
        note=spec.provenance_note,
        stages={"whole": figures(seen), **names},
        in_flight={
            f"stage{index}": rate * names[f"stage{index}"].get("e2e_mean", float("nan")) / 1e3
            for index, rate in enumerate(rates)
        },
        rejected=int(np.count_nonzero(result.requests.status == Status.REJECTED)),
    )


def replay(spec: ReplicaSpec, workload: Workload) -> RunResult:
    """The workload on one replica, seen by its clients; a KeyboardInterrupt in the middle is raised on."""
    engine = spec.deployment.engine
    result = simulate(
        workload,
        spec.limits,
        spec.tables,
        spec.num_blocks,
        None,
        engine.discipline,
        engine.predictor,
        engine.max_tokens,
    )
    if not result.complete:
        raise KeyboardInterrupt
    return replace(result, requests=with_front_end(result.requests, spec.front_end.ns(workload.prompt_tokens)))
