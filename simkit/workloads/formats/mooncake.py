"""Mooncake's traces: JSON lines with milliseconds and ids of 512-token blocks, the last one unfilled.

Schema: kvcache-ai/Mooncake, FAST25-release/traces. len(hash_ids) = ceil(input_length / 512) in every published row.
"""

from simkit.workloads.cells import HashIds, Time, tokens
from simkit.workloads.format import Format, Parts, hash_count, lengths_positive, prefixes_of
from simkit.workloads.header import TraceHeader
from simkit.workloads.table import Field, Table

BLOCK_TOKENS = 512


def finish(table: Table, header: TraceHeader) -> Parts:
    """Prefixes from the block ids."""
    return Parts(prefixes=prefixes_of(table, BLOCK_TOKENS, "ceil"))


FORMAT = Format(
    name="mooncake",
    syntax="jsonl",
    what="Mooncake, JSON lines: timestamp (ms), input_length, output_length, hash_ids (512 tokens)",
    fields=(
        Field("timestamp", "arrival_us", Time(1_000)),
        Field("input_length", "prompt_tokens", tokens()),
        Field("output_length", "output_tokens", tokens()),
        Field("hash_ids", "hash_ids", HashIds(), required=False),
    ),
    rules=(lengths_positive("input_length", "output_length"), hash_count(BLOCK_TOKENS, floor_too=False)),
    finish=finish,
)
