"""Vidur's processed traces: CSV with seconds and lengths; some, like its arXiv set, have no arrival times.

Schema: microsoft/vidur, data/processed_traces.
"""

from simkit.workloads.cells import Time, tokens
from simkit.workloads.format import Format, lengths_positive
from simkit.workloads.table import Field

FORMAT = Format(
    name="vidur",
    syntax="csv",
    what="Vidur, CSV: [arrived_at (s),] num_prefill_tokens, num_decode_tokens",
    fields=(
        Field("arrived_at", "arrival_us", Time(1_000_000), required=False, whole=True),
        Field("num_prefill_tokens", "prompt_tokens", tokens()),
        Field("num_decode_tokens", "output_tokens", tokens()),
    ),
    rules=(lengths_positive("num_prefill_tokens", "num_decode_tokens"),),
)
