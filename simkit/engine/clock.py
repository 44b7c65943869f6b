"""The virtual clock: how long a batch takes, from the deployment's tables."""

from simkit.compiled import compiled
from simkit.engine.state import Batches
from simkit.models.steptables import StepTables, interpolate


@compiled
def device_ns(tables: StepTables, batches: Batches, row: int) -> tuple[int, int]:
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
    for k in range(batches.size[row]):
        new = int(batches.tokens[row, k])
        past = int(batches.before[row, k])
        tokens += new
        rows += int(batches.samples[row, k])
        if new == 1:
            decodes += 1
            decode_rows += int(batches.samples[row, k])
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
    if decodes == batches.size[row]:
        return whole, whole
    alone = round_ns(tables.linear_ns[decodes] + tables.sample_ns[decode_rows] + attention)
    return whole, min(alone, whole)


@compiled
def round_ns(duration: float) -> int:
    """A duration >= 0 as whole nanoseconds."""
    return int(duration + 0.5)
