"""Rotary position embedding: how fast each pair of a head turns, and the table of cosines and sines kernels read.

Pair j of a rotary_dim-wide head turns by position * f[j], with f[j] = base ** (-2 j / rotary_dim) (Su et al., 2021,
RoFormer, equation 15). For contexts longer than those trained on, f is changed:

    linear   f / factor                                              Chen et al. (2023), position interpolation
    llama3   f where the wavelength 2 pi / f is below original / high_freq_factor, f / factor where it is above
             original / low_freq_factor, between the two a blend (1 - s) f / factor + s f,
             s = (original / wavelength - low) / (high - low)        Meta, llama-models `apply_scaling`
    yarn     f / factor where a pair turns at most beta_slow times over `original`, f where at least beta_fast times,
             between the two a blend, linear in j; cosines and sines times 0.1 ln factor + 1
                                                                     Peng et al. (2023), YaRN, sections 3.2 to 3.4

Parameters are those of a Hugging Face `rope_scaling`. All in float64; the table is rounded to float32 once, so that
the angle of a late position is not lost, as it would be were it computed in float32.
"""

import math
from typing import Literal, NamedTuple

import torch


class RopeScaling(NamedTuple):
    """How frequencies are changed for long contexts; fields that a kind has no use for are not looked at."""

    kind: Literal["linear", "llama3", "yarn"]
    factor: float
    original_tokens: int = 0  # the context trained on; `original_max_position_embeddings`
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    attention_factor: float | None = None  # yarn, of cosines and sines; None: 0.1 ln factor + 1
    truncate: bool = True  # yarn, the blend's ends to whole pairs; gpt-oss does not


def rope_frequencies(
    rotary_dim: int, base: float = 10_000.0, scaling: RopeScaling | None = None
) -> tuple[torch.Tensor, float]:
    """Radians a position turns each pair by, f64[rotary_dim // 2], and the factor of cosines and sines.

    Raises:
        ValueError: naming the argument that is off.
    """
    if rotary_dim < 2 or rotary_dim % 2:
        raise ValueError(f"rotary_dim: is {rotary_dim}; an even number >= 2 is expected")
    if not base > 1.0:
        raise ValueError(f"base: is {base}; a number above 1 is expected")
    pair = torch.arange(rotary_dim // 2, dtype=torch.float64)
    plain = base ** (-2.0 * pair / rotary_dim)
    if scaling is None:
        return plain, 1.0
    if not scaling.factor >= 1.0:
        raise ValueError(f"scaling.factor: is {scaling.factor}; a number >= 1 is expected")
    if scaling.kind == "linear":
        return plain / scaling.factor, 1.0
    if scaling.original_tokens < 1:
        raise ValueError(f"scaling.original_tokens: is {scaling.original_tokens}; the context trained on is expected")
    if scaling.kind == "llama3":
        return _llama3(plain, scaling), 1.0
    if scaling.kind == "yarn":
        attention = scaling.attention_factor
        return _yarn(plain, pair, base, scaling), 0.1 * math.log(
            scaling.factor
        ) + 1.0 if attention is None else attention
    raise ValueError(f"scaling.kind: is {scaling.kind!r}; linear, llama3 or yarn is expected")


def rope_table(
    positions: int, rotary_dim: int, base: float = 10_000.0, scaling: RopeScaling | None = None
) -> torch.Tensor:
    """Cosines, then sines, of every position, f32[positions, rotary_dim]: [:, :rotary_dim // 2] are the cosines."""
    frequencies, factor = rope_frequencies(rotary_dim, base, scaling)
    angle = torch.arange(positions, dtype=torch.float64)[:, None] * frequencies[None, :]
    return (torch.cat([angle.cos(), angle.sin()], dim=1) * factor).float()


def _llama3(plain: torch.Tensor, scaling: RopeScaling) -> torch.Tensor:
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    if not high > low:
        raise ValueError(f"scaling.high_freq_factor: is {high}; a number above low_freq_factor, {low}, is expected")
    turns = scaling.original_tokens * plain / (2.0 * math.pi)
    smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return (1.0 - smooth) * plain / scaling.factor + smooth * plain


def _yarn(plain: torch.Tensor, pair: torch.Tensor, base: float, scaling: RopeScaling) -> torch.Tensor:
    pairs = len(pair)

    def pair_that_turns(times: float) -> float:
        return pairs * math.log(scaling.original_tokens / (times * 2.0 * math.pi)) / math.log(base)

    first, last = pair_that_turns(scaling.beta_fast), pair_that_turns(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * pairs - 1)
    if first == last:
        last += 0.001  # a step rather than a ramp
    interpolated = ((pair - first) / (last - first)).clamp(0.0, 1.0)
    return plain / scaling.factor * interpolated + plain * (1.0 - interpolated)
