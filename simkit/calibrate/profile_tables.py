"""The tables of an operator profile: which there are, what their columns mean, and what values pass.

One row is one measured point: its sizes, then the same six columns in every table:

- `median_ns`, `p10_ns`, `p90_ns`: the spread of its repeats, ns; the latter two may be empty where a source gives none;
- `repeats`: how many, 0 where a source does not say;
- `known`: `measured`, `interpolated`, `extrapolated` or `assumed`. All but the first are rows that a tool filled in;
- `use`: `fit`, or `held_out` for a point that no fit may see, kept to tell how wrong fits are.

`kernel` names the code that ran, empty where it is not known. An empty cell is allowed nowhere else.
"""

from typing import Literal, NamedTuple

from simkit.calibrate.provenance import TAGS

MOST_ROWS = 2_000_000  # of one table
LONGEST_NS = 1e12
MOST = 1 << 40  # of any size


class Column(NamedTuple):
    """One column; text matches `words` where those are given."""

    name: str
    kind: Literal["text", "count", "time"]
    least: int = 0  # of a count
    words: tuple[str, ...] | None = None
    optional: bool = False  # may be empty
    absent: int | None = None  # what it is in every row of a file that lacks it; never asked for by a plan


def _text(name: str, words: tuple[str, ...] | None = None, optional: bool = False) -> Column:
    return Column(name, "text", 0, words, optional)


def _count(name: str, least: int = 1) -> Column:
    return Column(name, "count", least)


KV_DTYPES = ("bf16", "fp8", "fp32")
DTYPES = ("bf16", "fp32", "fp8", "fp8_block", "int8", "int4", "mxfp4", "nvfp4")
COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send")
HOST_PARTS = ("step", "launch", "graph_launch", "schedule", "prepare", "sample", "detokenize")
COPIES = ("host_to_device", "device_to_host", "device_to_device")
KERNEL = _text("kernel", optional=True)

# query heads and KV heads are those of one GPU; window 0 is none
ATTENTION = (
    _text("kv_dtype", KV_DTYPES),
    _count("heads"),
    _count("kv_heads"),
    _count("head_dim"),
    _count("window", 0),
)

TABLES: dict[str, tuple[Column, ...]] = {
    # [tokens, k] x [k, n]; dtype is what the product is computed in, or how the weights are stored if they are packed
    "gemm": (_text("dtype", DTYPES), _count("tokens"), _count("n"), _count("k"), KERNEL),
    # one launch for `batch` requests of one new token; `contexts` tells a ragged batch's lengths as "63x512 1x65536",
    # empty where all are equal; context_tokens is their sum, the new tokens included, longest_tokens the largest
    "attention_decode": (
        *ATTENTION,
        _count("batch"),
        _count("context_tokens"),
        _count("longest_tokens"),
        _text("contexts", optional=True),
        KERNEL,
    ),
    # one launch for `batch` requests that each add `chunk` tokens to `past`
    "attention_prefill": (*ATTENTION, _count("batch"), _count("chunk"), _count("past", 0), KERNEL),
    # latent attention (MLA) of `batch` queries, absorbed: every head against the latents of context_tokens in sum
    "mla_decode": (
        _text("kv_dtype", KV_DTYPES),
        _count("heads"),
        _count("kv_rank"),
        _count("rope_dim", 0),
        _count("batch"),
        _count("context_tokens"),
        _count("longest_tokens"),
        KERNEL,
    ),
    # latent attention of chunks, keys and values of every head spelt out; that product is not in the time
    "mla_prefill": (
        _text("kv_dtype", KV_DTYPES),
        _count("heads"),
        _count("query_dim"),
        _count("value_dim"),
        _count("batch"),
        _count("chunk"),
        _count("past", 0),
        KERNEL,
    ),
    # one launch for a chunk and a batch of decodes together
    "attention_mixed": (
        *ATTENTION,
        _count("chunk"),
        _count("past", 0),
        _count("batch"),
        _count("context_tokens"),
        KERNEL,
    ),
    # the routed experts of one layer on one GPU, router excluded: all `tokens` of the step before they are spread;
    # width is the published one, cut by `tensor`; the GPU holds experts / expert of them
    "moe": (
        _text("dtype", DTYPES),
        _count("tokens"),
        _count("hidden"),
        _count("width"),
        _count("experts"),
        _count("top_k"),
        _count("tensor"),
        _count("expert"),
        _text("routing"),
        # of an expert: gate, up and down; 2 where there is no gate
        Column("matrices", "count", 2, absent=3),
        KERNEL,
    ),
    # `bytes` is the whole message: the sum's operand, the gathered result
    "collective": (_text("kind", COLLECTIVES), _count("gpus", 2), _count("bytes"), KERNEL),
    # `bytes` read and written by one launch over [tokens, width]
    "elementwise": (_text("name"), _count("tokens"), _count("width"), _count("bytes"), KERNEL),
    "sampling": (_text("name"), _count("rows"), _count("vocab"), KERNEL),
    # CPU time; `step` is what the device waits for between two steps, `launch` one kernel
    "host": (_text("part", HOST_PARTS), _count("requests", 0), _count("tokens", 0)),
    "copy": (_text("direction", COPIES), _count("bytes")),
}

TIMING = (
    Column("median_ns", "time"),
    Column("p10_ns", "time", optional=True),
    Column("p90_ns", "time", optional=True),
    Column("repeats", "count"),
    Column("known", "text", words=TAGS),
    Column("use", "text", words=("fit", "held_out")),
)


def columns(table: str) -> tuple[Column, ...]:
    """All columns of a table in their order."""
    return (*TABLES[table], *TIMING)


def absent(table: str) -> dict[str, int]:
    """The columns that a file may lack, and what they are then."""
    return {column.name: column.absent for column in TABLES[table] if column.absent is not None}


def size_columns(table: str) -> list[str]:
    """The names of the columns that say what was timed."""
    return [column.name for column in TABLES[table]]
