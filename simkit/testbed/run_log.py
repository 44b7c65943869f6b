"""What happens in a run, noted step by step."""

import numpy as np

from simkit.engine.state import I64, Replica
from simkit.testbed.inputs import planned_spans
from simkit.testbed.measured import MeasuredStep
from simkit.workloads.workload import Workload


class RunLog:
    """Steps, and when each request's tokens were delivered."""

    def __init__(self, rows: I64) -> None:
        """`rows` are the workload's rows, by request."""
        self.steps: list[MeasuredStep] = []
        self.idle_plans_ns: list[int] = []
        self._rows = rows.tolist()
        self._token_ns: list[list[int]] = [[] for _ in rows]

    def add(self, replica: Replica, row: int, times_ns: tuple[int, int, int, int]) -> None:
        """Note the batch in `row`, whose tokens are delivered by now."""
        batches = replica.batches
        spans = planned_spans(replica, row)
        batch = tuple((self._rows[span.request], span.tokens, span.before) for span in spans)
        self.steps.append(MeasuredStep(*times_ns, batch, int(batches["waiting"][row]), int(batches["free"][row])))
        for span in spans:
            if span.samples:
                times = self._token_ns[span.request]
                outputs = int(replica.progress["known"][span.request] - replica.requests["prompt"][span.request])
                times.extend([times_ns[3]] * (outputs - len(times)))

    def by_request(self, workload: Workload, known: list[I64]) -> tuple[tuple[I64, ...], tuple[I64, ...]]:
        """[n] generated ids and [n] their times, in the workload's order; nothing for requests not served."""
        nothing = np.zeros(0, dtype=np.int64)
        outputs, times = [nothing] * len(workload), [nothing] * len(workload)
        for request, row in enumerate(self._rows):
            prompt = int(workload.prompt_tokens[row])
            times[row] = np.array(self._token_ns[request], dtype=np.int64)
            outputs[row] = known[request][prompt : prompt + len(times[row])]
        return tuple(outputs), tuple(times)
