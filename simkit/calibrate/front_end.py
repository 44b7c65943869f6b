"""What a client waits outside of the engine's steps: from its request to the scheduler, from a token to the client."""

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from simkit.calibrate.step_features import step_of_share, went_on
from simkit.calibrate.step_log import RequestLine, StepLog
from simkit.models.front_end import NO_FRONT_END, FrontEndLaw

I64 = NDArray[np.int64]


class FrontEnd(BaseModel):
    """Medians, s. Add both to a simulated TTFT or E2E to compare it with what a client measured."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    arrival_s: float = Field(ge=0.0, le=1e6, allow_inf_nan=False, description="to the scheduler of an idle engine")
    delivery_s: float = Field(ge=0.0, le=1e6, allow_inf_nan=False, description="from a step's update to the client")


def front_end_law(measured: FrontEnd | None) -> FrontEndLaw:
    """What a client waits for outside of the engine, where it was recorded: the same for every request."""
    return NO_FRONT_END if measured is None else FrontEndLaw(1e9 * (measured.arrival_s + measured.delivery_s))


def front_end(logs: list[StepLog]) -> FrontEnd | None:
    """The front end's share of recorded runs; None if no request carries token times or none met an idle engine."""
    arrivals = [wait for log in logs for wait in _arrival_s(log)]
    deliveries = [wait for log in logs for wait in _delivery_s(log)]
    if not arrivals or not deliveries:
        return None
    return FrontEnd(arrival_s=max(0.0, float(np.median(arrivals))), delivery_s=max(0.0, float(np.median(deliveries))))


def _arrival_s(log: StepLog) -> list[float]:
    """Seconds from arrival to scheduling, of the requests whose arrival woke an idle engine."""
    step = step_of_share(log)
    begins = np.full(len(log.names), log.steps)
    np.minimum.at(begins, log.share_request, step)
    idle_until = np.concatenate([[0.0], np.where(went_on(log)[:-1], np.inf, log.update_end_s[:-1])])
    return [
        float(log.schedule_start_s[begins[number]] - line.arrival)
        for number, line in _known(log)
        if line.arrival >= idle_until[begins[number]]
    ]


def _delivery_s(log: StepLog) -> list[float]:
    """Seconds from the end of the step that completed a prompt to its first token at the client."""
    step = step_of_share(log)
    waits = []
    after = log.share_before + log.share_tokens
    for number, line in _known(log):
        shares = np.flatnonzero((log.share_request == number) & (after >= line.prompt_tokens))
        if len(shares) and line.token_times:
            waits.append(float(line.token_times[0] - log.update_end_s[step[shares[0]]]))
    return waits


def _known(log: StepLog) -> list[tuple[int, RequestLine]]:
    """The requests in steps that have a request line, with their numbers."""
    lines = {line.id: line for line in log.requests}
    return [(number, lines[name]) for number, name in enumerate(log.names) if name in lines]
