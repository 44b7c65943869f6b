"""A whole step's time as a straight line in four numbers, and the tables that the engine replays it from.

    device = step + token * tokens + request * requests + pair * pairs
    host   = step + request * requests

`pairs` are the query-key pairs of causal attention: over the step's requests, new * past + new (new + 1) / 2. The
first three terms are weights read once, GEMMs, and per-request work; the last one is attention, KV reads included. How
well the form predicts a run that it was not fitted on is in docs/calibrate.md.
"""

from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from simkit.models.steptables import StepTables, grid_values

F64 = NDArray[np.float64]

Coefficient = Annotated[float, Field(ge=0.0, le=1e6, allow_inf_nan=False)]


class HostTime(BaseModel):
    """CPU time between a step's end and the next one's start, s."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    step_s: Coefficient
    request_s: Coefficient


class WholeStep(BaseModel):
    """Seconds a step, a new token, a request in the step, and a query-key pair of its attention."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    step_s: Coefficient
    token_s: Coefficient
    request_s: Coefficient
    pair_s: Coefficient
    host: HostTime

    def device_s(self, columns: F64) -> F64:
        """f64[n] s for f64[n, 4] rows of 1, tokens, requests, pairs."""
        seconds: F64 = columns @ np.array([self.step_s, self.token_s, self.request_s, self.pair_s])
        return seconds


def whole_step_tables(
    model: WholeStep, max_num_batched_tokens: int, max_num_seqs: int, max_model_len: int, kv_tokens: int
) -> StepTables:
    """The model as the engine's tables, in ns.

    Args:
        model: the fitted coefficients.
        max_num_batched_tokens: tokens of the largest step.
        max_num_seqs: the most requests of a step.
        max_model_len: tokens of the longest request.
        kv_tokens: tokens the KV cache holds.

    A prefill chunk's pairs are quadratic in the chunk, which the tables interpolate to within 0.2 %; all else is exact.
    """
    step, token, request, pair = (1e9 * c for c in (model.step_s, model.token_s, model.request_s, model.pair_s))
    tokens = np.arange(max_num_batched_tokens + 1, dtype=np.float64)
    rows = np.arange(max_num_seqs + 1, dtype=np.float64)
    batch = grid_values(max_num_seqs).astype(np.float64)[:, None]
    context = grid_values(min(kv_tokens, max_num_seqs * max_model_len)).astype(np.float64)[None, :]
    chunk = grid_values(max_num_batched_tokens).astype(np.float64)[:, None]
    past = grid_values(max_model_len).astype(np.float64)[None, :]
    return StepTables(
        linear_ns=np.where(tokens > 0, step + token * tokens, 0.0),
        sample_ns=np.zeros(max_num_seqs + 1),
        host_ns=np.where(rows > 0, 1e9 * (model.host.step_s + model.host.request_s * rows), 0.0),
        decode_ns=request * batch + pair * context,
        decode_window_ns=np.zeros((0, 0)),
        prefill_ns=np.where(chunk > 0, request + pair * (chunk * past + chunk * (chunk + 1.0) / 2.0), 0.0),
        window_tokens=0,
    )
