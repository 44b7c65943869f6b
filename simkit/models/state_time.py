"""How long the prompts of a step take in layers that keep a state (`linear_attention.py`).

Kernels of the chunked form compute 64 tokens of one head at a time. In Gated DeltaNet the next 64 wait for their state,
so a prompt is done after as many rounds as it has chunks, however many multiprocessors are idle; heads and prompts run
beside one another until all multiprocessors are busy. With t the time of a round alone, b the time of a chunk where all
are busy and S multiprocessors:

    start + ((t longest / 64)^q + (b tokens heads / (64 S))^q)^(1/q)

which is within 6 % (median) of the kernels that vLLM runs on Hopper where prompts leave multiprocessors idle (laws and
errors of each device: `laws/kernels.yaml`). Mamba 2 computes its chunks side by side (Dao and Gu 2024, section 6), so
it has the second term alone.
"""

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from simkit.models.device import Device
from simkit.models.linear_attention import LinearAttention
from simkit.models.operators import F64

CHUNK_TOKENS = 64
HEAD_NUMBERS = 128 * 128  # of the state of a head that was measured


class StatePrefillLaw(BaseModel):
    """The numbers of the law above for heads of 128 x 128."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    start_us: float = Field(ge=0.0, le=1e3)
    chunk_us: float = Field(gt=0.0, le=1e3)
    busy_us: float = Field(gt=0.0, le=1e4)
    corner: float = Field(default=8.0, ge=1.0, le=20.0)
    error: float = Field(ge=0.0, le=10.0)  # median relative distance from the table

    def ns(self, own: LinearAttention, device: Device, longest: F64, tokens: F64) -> F64:
        """One layer's time for prompts of `tokens` (f64) tokens, of which the longest has `longest`; 0 without tokens.

        `own` is one GPU's share of the layer.
        """
        size = own.key_dim * own.value_dim / HEAD_NUMBERS
        rounds = 0.0 if own.form == "Mamba2" else self.chunk_us * longest / CHUNK_TOKENS
        busy = self.busy_us * tokens * own.heads / CHUNK_TOKENS / device.multiprocessors.value
        both = np.power(np.power(rounds, self.corner) + np.power(busy, self.corner), 1.0 / self.corner)
        return np.where(tokens > 0, 1e3 * (self.start_us + size * both), 0.0)


# without measurements: H100's under vLLM, which is what is known of any device
ASSUMED = StatePrefillLaw(start_us=11.1, chunk_us=2.87, busy_us=4.32, corner=20.0, error=0.5)
