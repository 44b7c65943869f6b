"""BurstGPT: CSV with seconds from the first day's midnight; v1.2 adds sessions and response times.

Schema: HPMLL/BurstGPT, README.md.
"""

from simkit.workloads.cells import Text, Time, tokens
from simkit.workloads.format import Format, Parts, lengths_positive, no_output, texts
from simkit.workloads.header import TraceHeader
from simkit.workloads.table import Field, Table


def finish(table: Table, header: TraceHeader) -> Parts:
    """Conversations as sessions."""
    return Parts(session_id=texts(table, "session_id"))


FORMAT = Format(
    name="burstgpt",
    syntax="csv",
    what="BurstGPT, CSV: Timestamp (s), Request tokens, Response tokens, Model, Log Type [, Session ID, Elapsed time]",
    fields=(
        Field("Timestamp", "arrival_us", Time(1_000_000)),
        Field("Request tokens", "prompt_tokens", tokens()),
        Field("Response tokens", "output_tokens", tokens()),
        Field("Session ID", "session_id", Text(), required=False),
        Field("Elapsed time", "obs_e2e_us", Time(1_000_000), required=False),
        Field("Model", "model", Text(), required=False),
        Field("Log Type", "slo_class", Text(), required=False),
    ),
    # "Response tokens = 0 means the request failed" (README), whatever its request length says
    rules=(no_output("failed"), lengths_positive("Request tokens", "Response tokens")),
    finish=finish,
)
