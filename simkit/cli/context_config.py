"""The configuration of `simkit context`, and the question it makes."""

from functools import partial

from pydantic import Field

from simkit.cli.config import Config, resolve_replica
from simkit.cli.step_time_error import step_time_error
from simkit.engine.deployment import ReplicaSpec
from simkit.metrics.slo import promise
from simkit.models.device import load_device
from simkit.plan.confidence import StepTimeError
from simkit.plan.context import ContextSettings
from simkit.plan.context_cells import ContextQuestion
from simkit.plan.space import Kind
from simkit.plan.sweep import own_rate
from simkit.workloads.workload import Workload


class ContextConfig(Config):
    """A configuration with a `context` section."""

    context: ContextSettings = Field(default_factory=ContextSettings, description="lengths, rates, KV precisions")


def context_question(config: ContextConfig, workload: Workload) -> ContextQuestion:
    """The question that a configuration asks of a workload."""
    device = load_device(config.deployment.device)
    return ContextQuestion(
        deployment=config.deployment,
        workload=workload,
        own_rate_per_s=own_rate(workload),
        promise=promise(config.slo),
        settings=config.context,
        spec_of=partial(_spec_of, config=config),
        usd_per_hour=device.usd_per_hour.value,
        power_w=device.power_w.value,
        seed=config.seed,
        error_of=partial(_error_of, config=config),
    )


def _error_of(spec: ReplicaSpec, config: Config) -> StepTimeError:
    return step_time_error(spec, config, None)


def _spec_of(kind: Kind, config: Config) -> ReplicaSpec:
    return resolve_replica(config.model_copy(update={"deployment": kind.deployment}))
