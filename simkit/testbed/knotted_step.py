"""The testbed's own step-time model: the cost of a token is no straight line, and decodes read what chunks compute.

    device = f(tokens) + request * decodes + context * sum of their contexts + chunk * chunks + pair * pairs of chunks
             + draft, where drafts are checked

f is piecewise linear over knots at the sizes that steps come in, no part of it falling; the rest is `WholeStep`'s, with
decodes, which read their context, apart from chunks, which compute over it. A chunk's own constant also holds what a
step that is not replayed as a graph takes longer. A draft proposes one token after the other in passes of its own, most
of whose time no batch shares: a constant of the step, which fitted as part of a request would be too little in small
batches. Fitted as `step_fit` does it, to steps of the same executor. The whole-step model of profiles gives a token of
a decode's context and a pair of a prompt one coefficient; on a CPU the former, a read, takes many times the latter, a
product.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from simkit.calibrate.nonnegative import nonnegative_least_squares
from simkit.calibrate.step_features import step_features, step_of_share
from simkit.calibrate.step_fit import relative_fit
from simkit.calibrate.step_log import StepLog, read_step_log
from simkit.models.steptables import StepTables, grid_values
from simkit.testbed.measured import MeasuredRun

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

FEWEST_AT_A_KNOT = 12  # steps between two knots, or the piece is not told from noise


@dataclass(frozen=True)
class KnottedStep:
    """Seconds; see the module."""

    knots: I64  # [k] tokens, ascending, the first 1
    at_knot_s: F64  # [k] f at each, not falling
    decode_s: float
    context_s: float
    chunk_s: float
    pair_s: float
    draft_s: float
    host_step_s: float
    host_request_s: float

    def linear_s(self, tokens: F64) -> F64:
        """f; beyond the last knot its last slope goes on."""
        if len(self.knots) == 1:
            return np.full_like(tokens, self.at_knot_s[0])
        inside: F64 = np.interp(tokens, self.knots, self.at_knot_s)
        rise = self.at_knot_s[-1] - self.at_knot_s[-2]
        slope = float(rise) / float(self.knots[-1] - self.knots[-2])
        beyond: F64 = inside + slope * np.maximum(tokens - self.knots[-1], 0.0)
        return beyond

    def device_s(self, features: F64) -> F64:
        """f64[n] s of rows of `knotted_features`."""
        rest = np.array([self.decode_s, self.context_s, self.chunk_s, self.pair_s, self.draft_s])
        seconds: F64 = self.linear_s(features[:, 0]) + features[:, 1:6] @ rest
        return seconds

    def as_json(self) -> dict[str, object]:
        """Knots and coefficients, s."""
        return {name: np.asarray(value).tolist() for name, value in vars(self).items()}


def fit_knotted(paths: Sequence[Path]) -> KnottedStep:
    """The model of the executor that wrote these logs; InputError for a bad log."""
    logs = [read_step_log(path) for path in paths]
    features = np.concatenate([knotted_features(log) for log in logs])
    tokens, device = features[:, 0], features[:, 6]
    knots = _knots(tokens)
    columns = np.column_stack([_ramps(tokens, knots), features[:, 1:6]])
    found = relative_fit(columns, device)
    timed = [step_features(log) for log in logs]
    host = np.concatenate([each.host_s for each in timed])
    requests = np.concatenate([each.requests for each in timed])
    known = ~np.isnan(host)
    host_columns = np.column_stack([np.ones(int(known.sum())), requests[known]])
    host_fit = nonnegative_least_squares(host_columns, host[known]) if known.any() else np.zeros(2)
    rising, rest = found[: len(knots)], found[len(knots) :]
    return KnottedStep(knots, np.cumsum(rising), *(float(each) for each in rest), *(float(each) for each in host_fit))


def factors_of(model: KnottedStep, paths: Sequence[Path]) -> tuple[F64, ...]:
    """Of each log, f64[steps] how many times as long as the model says its steps took; InputError for a bad log."""
    each = [knotted_features(read_step_log(path)) for path in paths]
    return tuple(features[:, 6] / model.device_s(features) for features in each)


def knotted_tables(
    model: KnottedStep, max_num_batched_tokens: int, max_num_seqs: int, max_model_len: int, kv_tokens: int
) -> StepTables:
    """The model as the engine's tables, in ns; arguments as of `whole_step_tables`. What drafts cost is no table's:
    see `with_drafts`.
    """
    tokens = np.arange(max_num_batched_tokens + 1, dtype=np.float64)
    rows = np.arange(max_num_seqs + 1, dtype=np.float64)
    batch = grid_values(max_num_seqs).astype(np.float64)[:, None]
    context = grid_values(min(kv_tokens, max_num_seqs * max_model_len)).astype(np.float64)[None, :]
    chunk = grid_values(max_num_batched_tokens).astype(np.float64)[:, None]
    past = grid_values(max_model_len).astype(np.float64)[None, :]
    pairs = chunk * past + chunk * (chunk + 1.0) / 2.0
    return StepTables(
        linear_ns=1e9 * np.where(tokens > 0, model.linear_s(tokens), 0.0),
        sample_ns=np.zeros(max_num_seqs + 1),
        host_ns=1e9 * np.where(rows > 0, model.host_step_s + model.host_request_s * rows, 0.0),
        decode_ns=1e9 * (model.decode_s * batch + model.context_s * context),
        decode_window_ns=np.zeros((0, 0)),
        prefill_ns=1e9 * np.where(chunk > 0, model.chunk_s + model.pair_s * pairs, 0.0),
        window_tokens=0,
    )


def with_drafts(model: KnottedStep, run: MeasuredRun) -> MeasuredRun:
    """The run as the model predicts it: what drafts cost is the model's, whatever the settings say."""
    return replace(run, limits=run.limits._replace(draft_ns=round(1e9 * model.draft_s), draft_request_ns=0))


def knotted_features(log: StepLog) -> F64:
    """f64[steps, 7]: tokens, decodes, sum of their contexts, chunks, pairs of these, 1 with drafts, device seconds.

    A request beyond its prompt is a decode, also where it checks drafts; without a line for it, one of a single token.
    """
    step = step_of_share(log)
    new, before = log.share_tokens.astype(np.float64), log.share_before.astype(np.float64)
    prompts = {line.id: line.prompt_tokens for line in log.requests}
    prompt = np.array([prompts.get(name, 1 << 62) for name in log.names], dtype=np.int64)
    decode = (log.share_tokens == 1) | (log.share_before >= prompt[log.share_request])

    def total(values: F64) -> F64:
        return np.bincount(step, weights=values, minlength=log.steps).astype(np.float64)

    columns = [
        total(new),
        total(decode.astype(np.float64)),
        total(np.where(decode, before + new, 0.0)),
        total((~decode).astype(np.float64)),
        total(np.where(decode, 0.0, new * before + new * (new + 1.0) / 2.0)),
        np.minimum(total((decode & (log.share_tokens > 1)).astype(np.float64)), 1.0),
        log.device_s,
    ]
    every = np.column_stack(columns)
    kept: F64 = every[(every[:, 0] > 0) & (every[:, 6] > 0)]
    return kept


def _knots(tokens: F64) -> I64:
    """1 and powers of two and their halves above, as far as there are steps enough between them."""
    largest = int(tokens.max())
    wanted = [size for power in range(24) for size in (2**power, 3 * 2**power // 2) if 1 < size < largest]
    knots = [1]
    for size in sorted(set(wanted)):
        if np.count_nonzero((tokens > knots[-1]) & (tokens <= size)) >= FEWEST_AT_A_KNOT:
            knots.append(size)
    if np.count_nonzero(tokens > knots[-1]) >= FEWEST_AT_A_KNOT or len(knots) == 1:
        knots.append(max(largest, knots[-1] + 1))
    return np.array(knots, dtype=np.int64)


def _ramps(tokens: F64, knots: I64) -> F64:
    """f64[n, k]: 1, then for each piece how far along it a step is; non-negative weights make f rise only."""
    ramps = [np.ones(len(tokens))]
    for i, (low, high) in enumerate(pairwise(knots)):
        along = (tokens - low) / (high - low)
        # the last piece goes on beyond its end
        ramps.append(np.maximum(along, 0.0) if i == len(knots) - 2 else np.clip(along, 0.0, 1.0))
    return np.column_stack(ramps)
