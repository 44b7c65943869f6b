"""The virtual clock: how long a batch takes, from the deployment's tables."""

from simkit.compiled import called, inlined
from simkit.engine.state import Replica
from simkit.models.steptables import StepTables, drafting_ns, interpolate, uneven_ns


@inlined
def device_ns(r: Replica, tables: StepTables, row: int) -> tuple[int, int]:
    """Device time of a batch, and what it would be with its decodes alone, both in ns.

    Parts run one after the other on the device, so they add. One new token is a decode: its attention is a row of a
    batched kernel; more are a prefill chunk, a kernel of its own. A decode that checks drafts reads its context once
    for all of them. A draft proposes for the next step: its time is told, for the steps that check, or the tables have
    it, for those and for steps with prompts; asking for it in each step took replays without drafts 4 % longer.
    """
    window = tables.window_tokens
    tokens = 0
    rows = 0
    decodes = 0
    decode_tokens = 0
    decode_rows = 0
    drafted = 0
    context = 0
    longest = 0
    window_context = 0
    prefill = 0.0
    for k in range(r.batches[row].length):
        new = int(r.entries[row, k].tokens)
        past = int(r.entries[row, k].before)
        tokens += new
        samples = int(r.entries[row, k].samples)
        rows += samples
        if new == 1 or new == samples:
            decodes += 1
            decode_tokens += new
            decode_rows += samples
            drafted += 1 if samples > 1 else 0
            context += past + new
            longest = max(longest, past + new)
            window_context += min(past + new, window)
        else:
            prefill += interpolate(tables.prefill_ns, new, past)
    attention = 0.0
    proposing = 0.0
    if decodes > 0:
        attention = interpolate(tables.decode_ns, decodes, context)
        attention += uneven_ns(tables, decodes, context, longest, attention)
        if window > 0:
            attention += interpolate(tables.decode_window_ns, decodes, window_context)
    if drafted > 0:
        proposing = drafting_ns(tables, decodes)
        attention += r.limits.draft_ns + r.limits.draft_request_ns * drafted + proposing
    whole = tables.linear_ns[tokens] + sampling_ns(tables, rows) + attention + prefill
    if decodes == r.batches[row].length:
        return round_ns(whole), round_ns(whole)
    if len(tables.state_ns) > 0:
        whole += _states_ns(r, tables, row)
    whole_ns = round_ns(whole - proposing + drafting_ns(tables, r.batches[row].length))
    alone_ns = round_ns(tables.linear_ns[decode_tokens] + sampling_ns(tables, decode_rows) + attention)
    return whole_ns, min(alone_ns, whole_ns)


@called
def _states_ns(r: Replica, tables: StepTables, row: int) -> float:
    """What a step's prefill chunks take, side by side, in layers that keep a state."""
    longest, tokens = 0, 0
    for k in range(r.batches[row].length):
        new = int(r.entries[row, k].tokens)
        if new > 1 and new != r.entries[row, k].samples:
            longest = max(longest, new)
            tokens += new
    return float(interpolate(tables.state_ns, longest, tokens))


@inlined
def sampling_ns(tables: StepTables, rows: int) -> float:
    """Time for the logits and samples of so many rows; drafts make them more than requests, where the slope goes on."""
    last = len(tables.sample_ns) - 1
    if rows <= last:
        return float(tables.sample_ns[rows])
    slope = tables.sample_ns[last] - tables.sample_ns[last - 1]
    return float(tables.sample_ns[last] + slope * (rows - last))


@inlined
def round_ns(duration: float) -> int:
    """A duration >= 0 as whole nanoseconds."""
    return int(duration + 0.5)
