"""The virtual clock: how long a batch takes, from the deployment's tables."""

from simkit.compiled import inlined
from simkit.engine.state import Replica
from simkit.models.steptables import StepTables, interpolate


@inlined
def device_ns(r: Replica, tables: StepTables, row: int) -> tuple[int, int]:
    """Device time of a batch, and what it would be with its decodes alone, both in ns.

    Parts run one after the other on the device, so they add. One new token is a decode: its attention is a row of a
    batched kernel; more are a prefill chunk, a kernel of its own.
    """
    window = tables.window_tokens
    tokens = 0
    rows = 0
    decodes = 0
    decode_rows = 0
    context = 0
    window_context = 0
    prefill = 0.0
    for k in range(r.batches[row].length):
        new = int(r.entries[row, k].tokens)
        past = int(r.entries[row, k].before)
        tokens += new
        rows += int(r.entries[row, k].samples)
        if new == 1:
            decodes += 1
            decode_rows += int(r.entries[row, k].samples)
            context += past + 1
            window_context += min(past + 1, window)
        else:
            prefill += interpolate(tables.prefill_ns, new, past)
    attention = 0.0
    if decodes > 0:
        attention = interpolate(tables.decode_ns, decodes, context)
        if window > 0:
            attention += interpolate(tables.decode_window_ns, decodes, window_context)
    whole = round_ns(tables.linear_ns[tokens] + tables.sample_ns[rows] + attention + prefill)
    if decodes == r.batches[row].length:
        return whole, whole
    alone = round_ns(tables.linear_ns[decodes] + tables.sample_ns[decode_rows] + attention)
    return whole, min(alone, whole)


@inlined
def round_ns(duration: float) -> int:
    """A duration >= 0 as whole nanoseconds."""
    return int(duration + 0.5)
