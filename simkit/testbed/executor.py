"""What runs a planned batch: an executor has a decoder and a KV pool on a device, and knows nothing of scheduling."""

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from simkit.engine.state import I64
from simkit.testbed.inputs import StepInputs


class Identity(NamedTuple):
    """What is measured, in the words that a log's header has."""

    engine: str
    device: str
    model: Mapping[str, str | int | float]
    versions: Mapping[str, str]


class Finished(NamedTuple):
    """A step that was launched, done."""

    tokens: I64  # [rows that sample] greedy
    at_ns: int  # when they were known


class Launched(Protocol):
    """A step on its way."""

    def result(self) -> Finished:
        """Wait until it is done; raises what the device's library raised."""

    def cancel(self) -> bool:
        """Do not begin it; False where it has begun."""


class Executor(Protocol):
    """A decoder on a device, with a pool of KV blocks that the engine's block tables point into."""

    @property
    def num_blocks(self) -> int:
        """KV blocks, block 0 included, which belongs to nobody."""

    @property
    def block_size(self) -> int:
        """Tokens a block."""

    @property
    def vocab(self) -> int:
        """Token ids are below it."""

    @property
    def identity(self) -> Identity:
        """What this is, for the log."""

    def run(self, step: StepInputs) -> I64:
        """Compute a batch; returns the greedy token [len(step.sampled)] of each row that samples, once it is known.

        Tokens that are `step.fed` are those of the step before. Raises whatever the device's library raises when a
        kernel fails, memory ends or the device is gone.
        """

    def launch(self, step: StepInputs, now_ns: Callable[[], int]) -> tuple[int, Launched]:
        """Have the device compute a batch after those launched before, without waiting for it.

        Returns when the batch was ready for the device, and the step on its way, both by the clock `now_ns`.
        """
