"""Alibaba Bailian's traces: JSON lines with seconds, chats as trees of requests, and ids of 16-token blocks.

Schema: alibaba-edu/qwen-bailian-usagetraces-anon, README.md.
"""

from simkit.workloads.cells import HashIds, Integer, Ragged, Text, Time, tokens
from simkit.workloads.format import Format, Parts, hash_count, integers, lengths_positive, prefixes_of, ragged
from simkit.workloads.header import TraceHeader
from simkit.workloads.table import Field, Table

BLOCK_TOKENS = 16
ROOT = "-1"  # the parent of a chat's first request


def finish(table: Table, header: TraceHeader) -> Parts:
    """Prefixes from the block ids, sessions from the tree of chats."""
    ids = ragged(table.columns, "hash_ids")
    prompt = integers(table.columns, "prompt_tokens")
    # an id for an unfilled block can only be told from the number of ids
    unfilled = ids is not None and bool((ids.length > prompt // BLOCK_TOKENS).any())
    prefixes = prefixes_of(table, BLOCK_TOKENS, "ceil" if unfilled else "floor")
    return Parts(prefixes=prefixes, session_id=sessions(table))


def sessions(table: Table) -> tuple[str, ...] | None:
    """Each request's chat, named by its root; a parent from before the trace stands for its root."""
    chats, parents = table.columns["request_id"], table.columns.get("parent_id")
    if parents is None or isinstance(parents, Ragged) or isinstance(chats, Ragged):
        return None
    root: dict[object, str] = {}
    for chat, parent in zip(chats, parents, strict=True):
        root[chat] = str(chat) if parent in (None, ROOT) else root.get(parent, str(parent))
    return tuple(root[chat] for chat in chats)


FORMAT = Format(
    name="bailian",
    syntax="jsonl",
    what="Qwen-Bailian, JSON lines: chat_id, parent_chat_id, timestamp (s), input_length, output_length, hash_ids (16)",
    fields=(
        Field("chat_id", "request_id", Text()),
        Field("parent_chat_id", "parent_id", Text(), required=False),
        Field("timestamp", "arrival_us", Time(1_000_000)),
        Field("input_length", "prompt_tokens", tokens()),
        Field("output_length", "output_tokens", tokens()),
        Field("type", "kind", Text(), required=False),
        Field("turn", "turn", Integer(0, 2**31 - 1), required=False),
        Field("hash_ids", "hash_ids", HashIds(), required=False),
    ),
    rules=(lengths_positive("input_length", "output_length"), hash_count(BLOCK_TOKENS, floor_too=True)),
    finish=finish,
)
