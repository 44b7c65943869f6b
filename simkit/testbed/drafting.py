"""Speculative decoding for real: a small draft proposes tokens, which the target checks in its next step.

The draft keeps a KV cache of its own under the target's block tables. It runs first in each step: over the tokens of
the step that it has not seen, then once for each further proposal. Weights being random, its proposals are noise;
which of them count as accepted is drawn as the engine draws it (`simkit.engine.drafts`), so the work is real and the
acceptance is given. An `Oracle`, who knows the answers, turns noise into proposals that are right or wrong as drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from simkit.engine.drafts import accepted_drafts
from simkit.engine.state import I64, Replica
from simkit.testbed.executor import Executor
from simkit.testbed.inputs import Span, step_inputs

Oracle = Sequence[I64]  # [requests] prompt and answer of each, known beforehand


@dataclass
class Drafting:
    """A draft and how far it has read each request."""

    executor: Executor
    oracle: Oracle | None = None
    seen: dict[int, int] = field(default_factory=dict)  # request -> tokens whose keys and values it has

    def propose(self, replica: Replica, spans: Sequence[Span], known: Sequence[I64]) -> None:
        """Read along with the step, and write a proposal after what is known of each request that is to check some."""
        drafted = {span.request: span.samples - 1 for span in spans if span.samples > 1}
        ends = {span.request: span.before + span.tokens - drafted.get(span.request, 0) for span in spans}
        reading = [self._unseen(span, ends[span.request], span.request in drafted) for span in spans]
        reading = [span for span in reading if span.tokens > 0]
        while reading:
            proposals = self.executor.run(step_inputs(replica, reading, known))
            drafting = [span for span in reading if span.samples]
            for span, token in zip(drafting, proposals.tolist(), strict=True):
                known[span.request][span.before + span.tokens] = token
            self.seen.update({span.request: span.before + span.tokens for span in reading})
            # the next proposal follows the one just made, until the last of them is made
            reading = [
                Span(span.request, 1, span.before + span.tokens, 1)
                for span in drafting
                if span.before + span.tokens < ends[span.request] + drafted[span.request] - 1
            ]
        if self.oracle is not None:
            for request, count in drafted.items():
                self._foresee(replica, request, ends[request], count, known)

    def settle(self, request: int, known: int, accepted: int) -> None:
        """What the draft read beyond what is `known` holds as far as it was accepted."""
        if request in self.seen:
            self.seen[request] = min(self.seen[request], known + accepted)

    def _unseen(self, span: Span, end: int, drafts: bool) -> Span:
        """The tokens up to `end` that the draft has not read; a request that was preempted is read again."""
        begin = min(self.seen.get(span.request, span.before), span.before)
        return Span(span.request, end - begin, begin, int(drafts))

    def _foresee(self, replica: Replica, request: int, known: int, drafted: int, tokens: Sequence[I64]) -> None:
        """Replace proposals by right ones as far as they are accepted, then a wrong one."""
        assert self.oracle is not None
        accepted = accepted_drafts(replica.limits, request, known, drafted)
        answer = self.oracle[request][known : known + drafted]
        tokens[request][known : known + len(answer)] = answer
        if accepted < len(answer):
            tokens[request][known + accepted] = (answer[accepted] + 1) % self.executor.vocab
