"""How long clients wait, and what they do when they have not got their answer: give up, or try again."""

from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

Reason = Literal["rejected", "timed_out", "failed"]


class Retries(BaseModel):
    """Exponential back-off; the defaults are those of OpenAI's Python client (2 retries, 0.5 s doubling to 8 s).

    Source: openai-python, _constants.py and _base_client.py, _calculate_retry_timeout: the pause is multiplied by
    1 - 0.25 x a random number.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    most: int = Field(default=2, ge=0, le=1000, description="retries of a request")
    on: tuple[Reason, ...] = Field(default=("rejected", "timed_out", "failed"))
    first_pause_s: float = Field(default=0.5, ge=0, le=1e6, allow_inf_nan=False)
    factor: float = Field(default=2.0, ge=1, le=100, allow_inf_nan=False)
    longest_pause_s: float = Field(default=8.0, ge=0, le=1e6, allow_inf_nan=False)
    jitter: float = Field(default=0.25, ge=0, le=1, description="the most of a pause that is cut off at random")

    def pause_ns(self, retry: int, draw: float) -> int:
        """ns before retry number `retry`, counted from 0; `draw` is uniform over 0 to 1."""
        # the exponent is bounded, so that no power overflows: 1000 retries at a factor of 100
        pause_s = min(self.first_pause_s * self.factor ** min(retry, 60), self.longest_pause_s)
        return round(pause_s * (1.0 - self.jitter * draw) * 1e9)


class Clients(BaseModel):
    """Every client's patience; by default it is endless and nobody tries again."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    timeout_s: float | None = Field(default=None, gt=0, le=1e6, description="for the whole answer of one attempt")
    first_token_timeout_s: float | None = Field(default=None, gt=0, le=1e6, description="for its first token")
    cancel_share: float = Field(default=0.0, ge=0, le=1, description="of the requests that their user breaks off")
    cancel_after_s: float = Field(default=10.0, gt=0, le=1e6, description="mean time after which, exponential")
    retries: Retries = Field(default=Retries(most=0))

    def cancel_times_ns(self, rng: np.random.Generator, requests: int) -> "list[int | None]":
        """[requests] ns after its arrival at which a user breaks it off; None: never."""
        if self.cancel_share == 0.0:
            return [None] * requests
        breaks_off = rng.random(requests) < self.cancel_share
        after = np.rint(rng.exponential(self.cancel_after_s * 1e9, requests)).astype(np.int64)
        return [int(ns) if off else None for off, ns in zip(breaks_off, after, strict=True)]
