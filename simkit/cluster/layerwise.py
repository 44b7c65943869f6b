"""Prefill whose KV leaves layer by layer: a prefill replica that tells of every step as it begins."""

from collections.abc import Callable
from typing import NamedTuple

from simkit.cluster.job import Job
from simkit.cluster.kv_station import KvStation
from simkit.engine.state import NOW


class Chunk(NamedTuple):
    """What one step computes of one prompt."""

    job: Job
    computed_tokens: int  # of the prompt, once the step is over
    start_ns: int
    end_ns: int
    layers: int


class ChunkedStation(KvStation):
    """Wakes at every step, so that transfers begin when they can: after a step's first layer."""

    on_chunk: Callable[[Chunk], None]
    _told_step = 0

    def give(self, job: Job) -> None:
        """As KvStation."""
        super().give(job)
        self._pace.wake_by(int(self._clock.now) + 1)

    def turns(self) -> int:
        """As KvStation."""
        return 1

    def ran(self) -> None:
        """As KvStation."""
        super().ran()
        replica = self._replica
        for row in range(len(replica.batches)):
            batch = replica.batches[row]
            if batch.length == 0 or batch.step <= self._told_step:
                continue
            self._told_step = int(batch.step)
            for entry in replica.entries[row, : int(batch.length)]:
                self.on_chunk(
                    Chunk(
                        self._by_row[entry.request],
                        int(entry.before + entry.tokens),
                        int(batch.start),
                        int(batch.end),
                        len(self.spec.architecture.layers),
                    )
                )

    def rests(self) -> None:
        """As KvStation."""
        super().rests()
        if self.outstanding > 0:
            self._pace.wake_by(max(int(self._replica.at[NOW]), int(self._clock.now)) + 1)
