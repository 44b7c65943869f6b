"""Our own traces, NAME.trace.jsonl[.gz|.zst]: a header line, then one request a line.

docs/workload.md has the schema.
"""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simkit.workloads.cells import HashIds, Integer, Ragged, Text, Time, tokens
from simkit.workloads.format import Format, Parts, integers, lengths_positive, prefixes_of, ragged, texts
from simkit.workloads.header import TraceHeader
from simkit.workloads.prefix_groups import group_prefixes
from simkit.workloads.table import Columns, Field, Rule, Table
from simkit.workloads.workload import I64

KINDS = ("text", "search", "image", "file", "tool", "reason", "batch", "subagent")
COUNT = Integer(0, 2**31 - 1)
DURATION = Time(1)


def optional(name: str, cell: Integer | Text | Time) -> Field:
    """A column that keeps its name."""
    return Field(name, name, cell, required=False)


FIELDS = (
    Field("request_id", "request_id", Text()),
    Field("arrival_us", "arrival_us", Time(1), required=False),
    Field("prompt_tokens", "prompt_tokens", tokens()),
    Field("output_tokens", "output_tokens", tokens()),
    Field("hash_ids", "hash_ids", HashIds(), required=False),
    optional("prefix_group", Text()),
    optional("prefix_tokens", COUNT),
    optional("session_id", Text()),
    optional("turn", COUNT),
    optional("parent_id", Text()),
    optional("think_us", DURATION),
    optional("client_id", Text()),
    optional("tenant_id", Text()),
    optional("model", Text()),
    optional("slo_class", Text()),
    optional("priority", Integer(-(2**31), 2**31 - 1)),
    optional("kind", Text(KINDS)),
    optional("image_count", COUNT),
    optional("image_tokens", COUNT),
    optional("reason_tokens", COUNT),
    optional("ttft_slo_us", DURATION),
    optional("tpot_slo_us", DURATION),
    optional("deadline_us", DURATION),
    optional("obs_ttft_us", DURATION),
    optional("obs_e2e_us", DURATION),
    optional("obs_status", Text()),
)


def unknown(columns: Columns, role: str) -> NDArray[np.bool_]:
    """[rows] where the column has no value."""
    column = columns.get(role)
    if column is None or isinstance(column, Ragged):
        return np.ones(len(integers(columns, "prompt_tokens")), dtype=np.bool_)
    return np.asarray(pd.isna(column), dtype=np.bool_)


def failed(columns: Columns) -> NDArray[np.bool_]:
    """Rows that were observed to fail before their first token."""
    if "obs_status" not in columns:
        return np.zeros(len(integers(columns, "output_tokens")), dtype=np.bool_)
    status = columns["obs_status"]
    assert not isinstance(status, Ragged)
    return np.asarray((integers(columns, "output_tokens") == 0) & (status == "failed"), dtype=np.bool_)


def without_arrival(columns: Columns, row: int) -> str:
    """What is said of a request that has no time of its own."""
    if unknown(columns, "parent_id")[row] and unknown(columns, "think_us")[row]:
        return "arrival_us is missing: a request has a time of arrival; add it"
    return "arrival_us is missing: parent_id and think_us say when it comes in closed replay only; add arrival_us too"


def prefix_longer(columns: Columns) -> NDArray[np.bool_]:
    """Rows whose shared prefix is longer than their prompt."""
    prompt = integers(columns, "prompt_tokens")
    if "prefix_tokens" not in columns:
        return np.zeros(len(prompt), dtype=np.bool_)
    return np.asarray(prefix_lengths(columns) > prompt, dtype=np.bool_)


def prefix_lengths(columns: Columns) -> I64:
    """[rows] tokens of the shared prefix, 0 where there is none."""
    column = columns["prefix_tokens"]
    assert not isinstance(column, Ragged)
    return np.where(unknown(columns, "prefix_tokens"), 0, column).astype(np.int64)


def header_rules(header: TraceHeader) -> tuple[Rule, ...]:
    """Block ids need the header's block size, and are no more than the blocks of prompt and answer."""

    def broken(columns: Columns) -> NDArray[np.bool_]:
        ids = ragged(columns, "hash_ids")
        if ids is None:
            return np.zeros(len(integers(columns, "prompt_tokens")), dtype=np.bool_)
        if header.block_tokens is None:
            return ids.length > 0
        both = integers(columns, "prompt_tokens") + integers(columns, "output_tokens")
        return np.asarray(ids.length > -(-both // header.block_tokens), dtype=np.bool_)

    def say(columns: Columns, row: int) -> str:
        if header.block_tokens is None:
            return "hash_ids are given, but the header has no block_tokens: state there how many tokens an id covers"
        ids = ragged(columns, "hash_ids")
        have = 0 if ids is None else int(ids.length[row])
        return f"hash_ids has {have} ids: more than prompt and answer fill ({header.block_tokens} tokens each); mend it"

    rules = [Rule("bad_hash_ids", broken, say)]
    if header.hash_scope == "session":
        rules.append(
            Rule(
                "bad_hash_ids",
                lambda columns: unknown(columns, "session_id") & (_id_count(columns) > 0),
                lambda columns, row: "session_id is missing: the header says that hash_ids count per session; add it",
            )
        )
    return tuple(rules)


def _id_count(columns: Columns) -> I64:
    ids = ragged(columns, "hash_ids")
    return np.zeros(len(integers(columns, "prompt_tokens")), np.int64) if ids is None else ids.length


def finish(table: Table, header: TraceHeader) -> Parts:
    """Prefixes from ids, or from groups where no row has ids; ids of one session made global."""
    session = texts(table, "session_id")
    ids = ragged(table.columns, "hash_ids")
    if ids is not None and len(ids.flat):
        if header.hash_scope == "session" and session is not None:
            table.columns["hash_ids"] = _made_global(ids, session)
        assert header.block_tokens is not None, "`header_rules` asked for it"
        return Parts(prefixes_of(table, header.block_tokens, header.partial_block), session)
    group = table.columns.get("prefix_group")
    if group is None or isinstance(group, Ragged) or "prefix_tokens" not in table.columns:
        return Parts(session_id=session)
    return Parts(group_prefixes(group.tolist(), prefix_lengths(table.columns)), session)


def _made_global(ids: Ragged, session: tuple[str, ...]) -> Ragged:
    owner = np.repeat(pd.factorize(np.array(session, dtype=object))[0], ids.length)
    pairs = pd.MultiIndex.from_arrays([owner, ids.flat])
    return Ragged(ids.length, np.asarray(pairs.factorize()[0], dtype=np.int64))


FORMAT = Format(
    name="simkit",
    syntax="jsonl",
    what="simkit traces, JSON lines below a header: every column that simkit knows",
    fields=FIELDS,
    rules=(
        Rule("failed", failed, leave_out=True),
        lengths_positive("prompt_tokens", "output_tokens"),
        Rule("no_arrival", lambda columns: unknown(columns, "arrival_us"), without_arrival),
        Rule(
            "bad_length",
            prefix_longer,
            lambda columns, row: "prefix_tokens is more than prompt_tokens; mend or drop the row",
        ),
    ),
    finish=finish,
    sniff=frozenset({"schema"}),
    own_header=True,
    header_rules=header_rules,
)
