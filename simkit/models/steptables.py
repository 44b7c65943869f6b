"""What a step costs, as the tables that the compiled loop reads.

A deployment (architecture, device, layout, precisions) is turned into these once; whoever builds them (a roofline, a
fitted profile) is unknown to the reader. Two axes are geometric: 8 points an octave, values between are interpolated
linearly, so a smooth function is reproduced to about 0.1 %.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simkit.compiled import compiled

F64 = NDArray[np.float64]

POINTS_PER_OCTAVE = 8
NO_STAGES: F64 = np.zeros((0, 0))
NO_SHARES: F64 = np.zeros(0)
NOT_ALONE: F64 = np.zeros((0, 0))


class StepTables(NamedTuple):
    """Durations of one engine step's parts on one replica, in ns.

    A step schedules `tokens` new tokens for `requests` requests; `rows` of these requests sample a token. A request
    with one new token is a decode (its attention is a row of a batched kernel), with more a prefill chunk.
    """

    linear_ns: F64  # [max_tokens + 1] by tokens: GEMMs, norms, experts, collectives, graph padding; [0] = 0
    sample_ns: F64  # [max_requests + 1] by rows: lm_head and sampling; [0] = 0
    host_ns: F64  # [max_requests + 1] by requests: CPU time of schedule, input preparation and output processing
    decode_ns: F64  # [grid(batch), grid(sum of contexts)] attention of the decodes, all full-attention layers
    decode_window_ns: F64  # the same for all sliding-window layers, by the sum of min(context, window); [0, 0] if none
    prefill_ns: F64  # [grid(chunk), grid(past)] attention of one prefill chunk, all layers
    window_tokens: int  # the sliding window of `decode_window_ns`; 0 if the model has none
    # of a pipeline: `linear_ns` of each stage [stages, max_tokens + 1], sends to the next included, and the share
    # [stages] of the attention that its layers have; sampling is the last stage's. Empty without one
    stage_linear_ns: F64 = NO_STAGES
    stage_attention: F64 = NO_SHARES
    # of engines that share experts: what of `linear_ns` [max_tokens + 1] is the experts' own, which does not go by the
    # engine's tokens but by the mean of all engines'. Empty without
    shared_linear_ns: F64 = NO_SHARES
    # [grid(batch), grid(longest context)] how long the longest request's part of `decode_ns` takes by itself, where a
    # kernel cuts all contexts of a batch alike (models/flash_attention.py). Empty where each is cut by its own length
    alone_ns: F64 = NOT_ALONE
    # [max_requests + 1] by requests of the step: what a draft's passes take beside those parts of them that the tables
    # above hold (models/draft_tables.py); [0] = 0. Empty without one
    draft_ns: F64 = NO_SHARES
    # [grid(longest chunk), grid(tokens of all chunks)] what a step's prefill chunks take in layers that keep a state,
    # all of these (models/state_time.py). Empty where there are none
    state_ns: F64 = NOT_ALONE


@compiled
def grid_index(value: int) -> tuple[int, float]:
    """The grid point at or below `value` >= 0 and how far, 0 <= fraction < 1, it lies towards the next one."""
    if value < POINTS_PER_OCTAVE:
        return value, 0.0
    octave = math.frexp(float(value))[1] - 4
    index = (octave << 3) + (value >> octave)
    return index, (value & ((1 << octave) - 1)) / float(1 << octave)


def grid_values(maximum: int) -> NDArray[np.int64]:
    """The grid points 0, 1, .. 8, 9, .. 15, 16, 18, .. up to the second point past `maximum`.

    `grid_values(m)[i]` is the value whose `grid_index` is `(i, 0.0)`; one point beyond is there to interpolate to.
    """
    last = grid_index(maximum)[0] + 2
    index = np.arange(last, dtype=np.int64)
    octave = np.maximum(index // POINTS_PER_OCTAVE - 1, 0)
    return np.where(index < POINTS_PER_OCTAVE, index, (index - (octave << 3)) << octave)


@compiled
def interpolate(table: F64, x: int, y: int) -> float:
    """The value of a table over two geometric axes at (x, y); beyond its edge, the edge's last slope goes on."""
    i, u = grid_index(x)
    j, v = grid_index(y)
    if i > table.shape[0] - 2:
        u += i - (table.shape[0] - 2)
        i = table.shape[0] - 2
    if j > table.shape[1] - 2:
        v += j - (table.shape[1] - 2)
        j = table.shape[1] - 2
    low = table[i, j] * (1.0 - v) + table[i, j + 1] * v
    high = table[i + 1, j] * (1.0 - v) + table[i + 1, j + 1] * v
    return float(low * (1.0 - u) + high * u)


@compiled
def uneven_ns(tables: StepTables, requests: int, context: int, longest: int, even: float) -> float:
    """What a batch of decodes takes beside the `even` ns of one with as many requests and tokens, all equally long.

    Where all contexts are cut alike, a batch waits for its longest. While others run it has its share of the memory's
    bandwidth, then it runs alone. How long others run, tables cannot know: at most as if all the others were equal, at
    least as if none slowed it. This is halfway (how far off: docs/calibrate_errors.md, Ragged batches).

    Args:
        tables: of the deployment.
        requests: that decode.
        context: tokens of all of them.
        longest: tokens of the longest.
        even: `decode_ns` at these, ns.
    """
    if len(tables.alone_ns) == 0 or requests < 2:
        return 0.0
    alone = interpolate(tables.alone_ns, requests, longest)
    share = even * longest / context
    if alone <= share:
        return 0.0
    others = (context - longest) / (requests - 1)
    most = (alone - share) * (1.0 - others / longest)
    return 0.5 * (most + min(most, max(alone - even, 0.0)))


@compiled
def drafting_ns(tables: StepTables, requests: int) -> float:
    """What a draft's passes take beside what other tables hold of them, in a step that proposes to so many requests."""
    return float(tables.draft_ns[requests]) if len(tables.draft_ns) > 0 else 0.0


def scaled(tables: StepTables, factor: float) -> StepTables:
    """The same deployment with every duration multiplied by `factor`: what a step-time bias would do to an answer."""
    durations = {name: getattr(tables, name) * factor for name in StepTables._fields if name.endswith("_ns")}
    return tables._replace(**durations)


def constant_tables(
    max_tokens: int, max_requests: int, token_ns: float = 0.0, request_ns: float = 0.0, step_ns: float = 0.0
) -> StepTables:
    """A server whose step takes `step_ns` + `token_ns` a token + `request_ns` a sampled row, for tests and oracles."""
    tokens = np.arange(max_tokens + 1, dtype=np.float64)
    linear = np.where(tokens > 0, step_ns + token_ns * tokens, 0.0)
    nothing = np.zeros((2, 2))
    return StepTables(
        linear_ns=linear,
        sample_ns=np.arange(max_requests + 1, dtype=np.float64) * request_ns,
        host_ns=np.zeros(max_requests + 1),
        decode_ns=nothing,
        decode_window_ns=np.zeros((0, 0)),
        prefill_ns=nothing,
        window_tokens=0,
    )
