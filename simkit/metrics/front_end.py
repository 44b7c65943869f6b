"""From the engine's times to those that a client sees."""

from dataclasses import replace

import numpy as np

from simkit.metrics.result import I64, RequestColumns, Status


def with_front_end(requests: RequestColumns, front_end_ns: I64) -> RequestColumns:
    """The requests as clients see them: tokens arrive `front_end_ns` ([n]) later, a part of the waterfall of its own.

    It delays a request before the engine has it and its tokens on their way back; which of the two does not change
    TTFT or E2E, so the engine's own times (`scheduled_ns`, events, series) stay as they are. Requests that gave up,
    failed or were turned away are left alone.
    """
    finished = requests.status == Status.FINISHED
    begun = finished | ((requests.status == Status.UNFINISHED) & (requests.generated_tokens > 0))
    return replace(
        requests,
        first_token_ns=requests.first_token_ns + np.where(begun, front_end_ns, 0),
        finish_ns=requests.finish_ns + np.where(finished, front_end_ns, 0),
        front_end_ns=np.where(finished, front_end_ns, 0),
    )
