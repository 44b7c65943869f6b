"""A workload in memory: one column an attribute, one row a request, in order of arrival."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]
I32 = NDArray[np.int32]

ExtraColumn = tuple[str | int | None, ...]
"""One entry a request; None where the trace does not say."""


@dataclass(frozen=True)
class Prefixes:
    """Which blocks of the prompts (and, for chats, of the answers) have the same content.

    Ids are prefix-chained: an id stands for all tokens from the first to the end of its block, so two requests share
    the block exactly if they share the id. Source of the convention: Mooncake's and Bailian's traces. A request may
    have fewer ids than blocks: what has no id is shared with nobody. Under `partial_block` "ceil" the id at index
    prompt_tokens // block_tokens stands for the prompt's last, unfilled block: no engine caches that one.
    """

    block_tokens: int  # tokens an id covers: 512 in Mooncake's traces, 16 in Bailian's
    start: I64  # [n + 1] request i has ids[start[i]:start[i + 1]]
    ids: I64  # [total]
    partial_block: str = "floor"  # "ceil": an unfilled last block has an id too (Mooncake); "floor": it has none


@dataclass(frozen=True)
class Workload:
    """What arrives. Arrays have one entry a request, sorted by arrival; times are microseconds from the start."""

    name: str
    arrival_us: I64  # [n]
    prompt_tokens: I32  # [n] full context as the server sees it, >= 1
    output_tokens: I32  # [n] true length of the answer, >= 1; the scheduler does not see it
    request_id: tuple[str, ...] | None = None  # [n]; None: the row numbers
    priority: I32 | None = None  # [n] smaller is more urgent; None: all 0
    session_id: tuple[str, ...] | None = None  # [n] "" where the trace names none
    prefixes: Prefixes | None = None
    tick_us: int = 1  # quantum of the arrival times, 3,000,000 in Mooncake's conversation trace
    source: str = ""  # where it came from: a path, a preset's name, a generator's spec
    transforms: tuple[str, ...] = ()  # what was done to it since, in order
    dropped_rows: dict[str, int] = field(default_factory=dict)  # rows left out while reading, by reason
    extra: dict[str, ExtraColumn] = field(default_factory=dict)  # columns of the schema that the engine does not use
    provenance: dict[str, str] = field(default_factory=dict)  # license, tokenizer, source_repo .. as the header says
    notes: tuple[str, ...] = ()  # what a user should know about how it was read, a sentence each

    def __len__(self) -> int:
        return len(self.arrival_us)

    @property
    def left_out(self) -> str:
        """What reading left out, in words; "" where it took every row."""
        rows = sum(self.dropped_rows.values())
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in self.dropped_rows.items() if count)
        return f"rows left out while reading: {rows:,} ({reasons})" if rows else ""
