"""From a planned batch to tokens: inputs, drafts, the executor, and what each request's text becomes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from simkit.engine.drafts import accepted_drafts
from simkit.engine.state import ABORTED, FINISHED, I64, Replica
from simkit.testbed.drafting import Drafting
from simkit.testbed.executor import Executor, Launched
from simkit.testbed.inputs import spans_to_compute, step_inputs


@dataclass
class Generation:
    """What all requests' tokens are, and who computes more of them."""

    executor: Executor
    known: list[I64]  # [requests] ids of prompt and outputs, room for drafts at the end
    drafting: Drafting | None = None
    under_way: dict[int, int] = field(default_factory=dict)  # request -> which sample of the step launched last is its

    def compute(self, replica: Replica, row: int) -> I64:
        """Run the batch that was planned in `row`; returns the token of each row that samples."""
        spans = spans_to_compute(replica, row)
        if self.drafting is not None:
            self.drafting.propose(replica, spans, self.known)
        return self.executor.run(step_inputs(replica, spans, self.known))

    def launch(self, replica: Replica, row: int, now_ns: Callable[[], int]) -> tuple[int, Launched]:
        """Make the inputs of the batch in `row` and launch it; returns when they were ready, and the step on its way.

        Tokens that the step launched before samples are fed on the device.
        """
        spans = spans_to_compute(replica, row)
        inputs = step_inputs(replica, spans, self.known, self.under_way)
        sampling = [span.request for span in spans if span.samples]
        self.under_way = {request: place for place, request in enumerate(sampling)}
        return self.executor.launch(inputs, now_ns)

    def deliver(self, replica: Replica, row: int, sampled: I64) -> None:
        """Append a step's tokens to their requests, before `complete` counts them: accepted drafts, then one more."""
        rows = iter(sampled.tolist())
        for request, new, before, samples in spans_to_compute(replica, row):
            if samples == 0:
                continue
            answers = [next(rows) for _ in range(samples)]
            if replica.progress["status"][request] in (FINISHED, ABORTED):
                continue  # over since it was scheduled; the token is wasted, as the engine's `commit` has it
            known = before + new - (samples - 1)
            accepted = accepted_drafts(replica.limits, request, known, samples - 1)
            self.known[request][known + accepted] = answers[accepted]
            if self.drafting is not None:
                self.drafting.settle(request, known, accepted)
                self._check_oracle(request, known, accepted, answers)

    def _check_oracle(self, request: int, known: int, accepted: int, answers: list[int]) -> None:
        """With drafts known to be right, the target must say so itself."""
        if self.drafting is None or self.drafting.oracle is None:
            return
        truth = self.drafting.oracle[request][known : known + accepted + 1].tolist()
        if answers[: len(truth)] != truth:
            raise AssertionError(f"request {request}: the target answers {answers} where {truth} is right")


def token_buffers(prompts: Sequence[I64], outputs: Sequence[int], drafts: int) -> list[I64]:
    """[requests] each prompt with room for its outputs and for drafts beyond the last."""
    return [
        np.concatenate([prompt, np.zeros(count + drafts, dtype=np.int64)])
        for prompt, count in zip(prompts, outputs, strict=True)
    ]
