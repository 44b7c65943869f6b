"""What a whole-step model sees of a step, and the times it is to explain, from a step log."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simkit.calibrate.step_log import StepLog

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class StepFeatures:
    """One entry a step that computed something, in order of time."""

    tokens: I64  # [steps] new tokens
    requests: I64  # [steps]
    # [steps] query-key pairs of causal attention: over requests, tokens * before + tokens (tokens + 1) / 2; for a
    # request beyond its prompt before + tokens, because one that checks drafts reads its context once for all of them
    pairs: F64
    longest: I64  # [steps] the most tokens that one request had after it
    device_s: F64  # [steps] from the end of scheduling, and of the step before, to the start of the update
    host_s: F64  # [steps] scheduling, update and what lies before the next step; NaN where the engine then waited
    decodes_only: Flags  # [steps] each request got one token

    def __len__(self) -> int:
        return len(self.tokens)

    def columns(self) -> F64:
        """f64[steps, 4]: 1, tokens, requests, pairs, what `WholeStep` multiplies its coefficients with."""
        return np.column_stack([np.ones(len(self)), self.tokens, self.requests, self.pairs])

    def take(self, which: I64 | Flags) -> "StepFeatures":
        """The steps named by index or flag."""
        return StepFeatures(*(getattr(self, name)[which] for name in self.__dataclass_fields__))


def step_features(log: StepLog) -> StepFeatures:
    """The features and times of a log's steps; those that scheduled nothing are left out."""
    step = step_of_share(log)
    new, before = log.share_tokens, log.share_before
    pairs = np.where(_decodes(log), before + new, new * before.astype(np.float64) + new * (new + 1.0) / 2.0)
    requests = np.diff(log.first)
    tokens = _sum_by(step, new.astype(np.float64), log.steps).astype(np.int64)
    longest = np.zeros(log.steps, dtype=np.int64)
    np.maximum.at(longest, step, new + before)
    every = StepFeatures(
        tokens=tokens,
        requests=requests,
        pairs=_sum_by(step, pairs, log.steps),
        longest=longest,
        device_s=log.device_s,
        host_s=_host_s(log),
        decodes_only=tokens == requests,
    )
    return every.take((requests > 0) & (every.device_s > 0.0))


def _decodes(log: StepLog) -> Flags:
    """bool[shares]: the request is beyond its prompt; False where the log has no line for it."""
    prompts = {line.id: line.prompt_tokens for line in log.requests}
    # a request whose prompt is not known stays in it for ever
    prompt = np.array([prompts.get(name, 1 << 62) for name in log.names], dtype=np.int64)
    flags: Flags = log.share_before >= prompt[log.share_request]
    return flags


def step_of_share(log: StepLog) -> I64:
    """The step that each share belongs to, i64[shares]."""
    return np.repeat(np.arange(log.steps), np.diff(log.first))


def joined(parts: list[StepFeatures]) -> StepFeatures:
    """Several runs' steps, one after the other."""
    names = StepFeatures.__dataclass_fields__
    return StepFeatures(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def went_on(log: StepLog) -> Flags:
    """bool[steps]: some request was computed both in or before a step and after it, so the engine did not idle."""
    step = step_of_share(log)
    count = int(log.share_request.max(initial=-1)) + 1
    begins, ends = np.full(count, log.steps), np.full(count, -1)
    np.minimum.at(begins, log.share_request, step)
    np.maximum.at(ends, log.share_request, step)
    alive = np.zeros(log.steps + 1, dtype=np.int64)
    np.add.at(alive, begins, 1)
    np.add.at(alive, ends, -1)
    flags: Flags = np.cumsum(alive)[:-1] > 0
    return flags


def _host_s(log: StepLog) -> F64:
    """Schedule + update + gap to the next step, f64[steps] s; NaN where the engine may have waited for work."""
    own = (log.schedule_end_s - log.schedule_start_s) + (log.update_end_s - log.update_start_s)
    total: F64 = own + np.where(went_on(log), log.gap_s, np.nan)
    return total


def _sum_by(step: I64, values: F64, steps: int) -> F64:
    return np.bincount(step, weights=values, minlength=steps).astype(np.float64)
