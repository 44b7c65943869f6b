"""What may go otherwise than planned, each a change of the fleet or of its traffic; `--robust` picks by name."""

from dataclasses import dataclass, replace

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from simkit.errors import InputError, suggestion
from simkit.plan.demand import Growth
from simkit.workloads.workload import Prefixes, Workload

KNOWN = ("n-1", "burst", "drift", "growth", "steps")


class Stresses(BaseModel):
    """How bad each scenario is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    burst: float = Field(default=2.0, gt=1, le=100, description="times the rate, for a tenth of the time")
    drift: float = Field(default=1.2, gt=1, le=100, description="times the length of every prompt")
    steps: float = Field(default=1.1, gt=1, le=10, description="times the duration of every step")


@dataclass(frozen=True)
class Scenario:
    """One way in which a deployment is tried. The plain one changes nothing."""

    name: str
    words: str
    replicas_down: int = 0
    rate_factor: float = 1.0
    step_time_factor: float = 1.0
    prompt_factor: float = 1.0
    burst_factor: float = 1.0


AS_PLANNED = Scenario("as planned", "as planned")


def scenarios(names: tuple[str, ...], stresses: Stresses, growth: Growth | None) -> tuple[Scenario, ...]:
    """The scenarios of these names, in the order known; InputError for a name that is not, or growth without any."""
    for name in names:
        if name not in KNOWN:
            raise InputError(f"robust: {name!r} is not known; {suggestion(name, KNOWN)}")
    if "growth" in names and growth is None:
        raise InputError("robust: growth: plan.demand.growth is missing; for instance {per_month: 0.08, months: 12}")
    found = {
        "n-1": Scenario("n-1", "one replica down", replicas_down=1),
        "burst": Scenario(
            "burst", f"{stresses.burst:g} times the rate for a tenth of the time", burst_factor=stresses.burst
        ),
        "drift": Scenario("drift", f"prompts {stresses.drift:g} times as long", prompt_factor=stresses.drift),
        "steps": Scenario("steps", f"steps {stresses.steps:g} times as long", step_time_factor=stresses.steps),
    }
    if growth is not None:
        words = f"{growth.peak():.3g} times the rate (the most within {growth.months} months)"
        found["growth"] = Scenario("growth", words, rate_factor=growth.peak())
    return tuple(found[name] for name in KNOWN if name in names)


def changed(workload: Workload, scenario: Scenario, max_model_len: int) -> Workload:
    """The workload as the scenario has it, its rate still the same on the average."""
    if scenario.prompt_factor != 1.0:
        workload = drifted(workload, scenario.prompt_factor, max_model_len)
    if scenario.burst_factor != 1.0:
        workload = with_burst(workload, scenario.burst_factor)
    return workload


def drifted(workload: Workload, factor: float, max_model_len: int) -> Workload:
    """Every prompt `factor` times as long, as far as the context allows; as large a part of it is shared as before."""
    prompt = np.rint(workload.prompt_tokens * factor)
    room = np.maximum(workload.prompt_tokens, max_model_len - workload.output_tokens.astype(np.int64))
    longer = np.maximum(1, np.minimum(prompt, room)).astype(np.int32)
    return replace(
        workload,
        prompt_tokens=longer,
        prefixes=None if workload.prefixes is None else _stretched(workload.prefixes, factor),
        transforms=(*workload.transforms, f"drift({factor:g})"),
    )


def _stretched(prefixes: Prefixes, factor: float) -> Prefixes:
    """`factor` times as many blocks: block k of a prompt becomes floor((k + 1) factor) - floor(k factor) of them.

    These depend on the block and its place alone, so prompts that begin alike still do.
    """
    named = np.diff(prefixes.start)
    place = np.arange(len(prefixes.ids)) - np.repeat(prefixes.start[:-1], named)
    before = np.floor(place * factor).astype(np.int64)
    copies = np.floor((place + 1) * factor).astype(np.int64) - before
    owner = np.repeat(np.arange(len(place)), copies)
    nth = np.arange(len(owner)) - np.repeat(np.cumsum(copies) - copies, copies)
    dense = np.unique(prefixes.ids, return_inverse=True)[1].astype(np.int64)
    ids = dense[owner] * (int(copies.max(initial=1)) + 1) + nth
    lengths = np.floor(named * factor).astype(np.int64)
    return replace(prefixes, start=np.concatenate(([0], np.cumsum(lengths))), ids=ids)


def with_burst(workload: Workload, factor: float) -> Workload:
    """A tenth of the time, in the middle, at `factor` times the rate of the rest: gaps there divided by it.

    The rest of the time keeps its rate, so there is more traffic than before, as in a real burst.
    """
    span = int(workload.arrival_us[-1] - workload.arrival_us[0])
    # in a window of 0.1 x factor of the old time the gaps shrink to a tenth of it
    width = min(0.8, 0.1 * factor)
    start = workload.arrival_us[0] + round((0.5 - width / 2) * span)
    end = start + round(width * span)
    times = workload.arrival_us
    inside = np.clip(times, start, end) - start
    moved = times - np.rint(inside * (1 - 1 / factor)).astype(np.int64)
    return replace(workload, arrival_us=moved, transforms=(*workload.transforms, f"burst({factor:g})"))
