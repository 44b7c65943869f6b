"""Random numbers that kernels draw by name: the same for a seed, wherever and with whom a request runs.

Math. Philox4x32-10 (Salmon et al., SC 2011) maps a key, the request's seed, and a counter (index, step, stream, 0) to
128 bits, of which the first 32 are used: b. From them

    uniform       (b >> 8) / 2^24              in [0, 1), exact in f32
    exponential   -log(1 - v),  v = (b + 1/2) / 2^32 kept below 1

where v is small the logarithm is v + v^2 / 2, for 1 - v would round v away and with it all tokens of probability under
2^-24. `index` counts within a draw (tokens of a vocabulary, positions of a draft), `step` the request's draws, `stream`
what the number is for.
"""

import numpy as np
import torch
import triton.language as tl

from simkit.kernels.jit import inlined

SAMPLING, ACCEPTANCE, RECOVERY = 0, 1, 2  # streams
LARGEST_V = 1 - 2.0**-24  # the largest f32 below 1


@inlined
def random_bits(seed: tl.tensor, index: tl.tensor, step: tl.tensor, STREAM: tl.constexpr) -> tl.tensor:
    """u32 of index's shape; seed i64, index and step i32."""
    zero = index * 0
    bits, _, _, _ = tl.philox(seed, index, zero + step, zero + STREAM, zero)
    return bits


@inlined
def uniform(seed: tl.tensor, index: tl.tensor, step: tl.tensor, STREAM: tl.constexpr) -> tl.tensor:
    """f32 of index's shape, in [0, 1)."""
    return (random_bits(seed, index, step, STREAM) >> 8).to(tl.float32) * 5.9604644775390625e-8


@inlined
def exponential(seed: tl.tensor, index: tl.tensor, step: tl.tensor, STREAM: tl.constexpr) -> tl.tensor:
    """f32 of index's shape, above 0, of mean 1."""
    v = (random_bits(seed, index, step, STREAM).to(tl.float32) + 0.5) * 2.3283064365386963e-10
    v = tl.minimum(v, 0.999999940395355)
    return tl.where(v < 1e-3, v + 0.5 * v * v, -tl.log(1.0 - v))


def random_bits_reference(seed: int, index: torch.Tensor, step: int, stream: int) -> torch.Tensor:
    """The first word of Philox4x32-10, as i64 in [0, 2^32), of index's shape."""
    low = np.uint64(0xFFFFFFFF)
    key = [np.uint64(seed & 0xFFFFFFFF), np.uint64((seed >> 32) & 0xFFFFFFFF)]
    zero = np.zeros(index.shape, dtype=np.uint64)
    c = [index.numpy().astype(np.uint64), zero + np.uint64(step), zero + np.uint64(stream), zero]
    for _ in range(10):
        first, second = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [
            (second >> np.uint64(32)) ^ c[1] ^ key[0],
            second & low,
            (first >> np.uint64(32)) ^ c[3] ^ key[1],
            first & low,
        ]
        key = [(key[0] + np.uint64(0x9E3779B9)) & low, (key[1] + np.uint64(0xBB67AE85)) & low]
    return torch.from_numpy(c[0].astype(np.int64))


def uniform_reference(seed: int, index: torch.Tensor, step: int, stream: int) -> torch.Tensor:
    """The same in float64."""
    return (random_bits_reference(seed, index, step, stream) >> 8).double() / 2**24


def exponential_reference(seed: int, index: torch.Tensor, step: int, stream: int) -> torch.Tensor:
    """The same in float64."""
    v = (random_bits_reference(seed, index, step, stream).double() + 0.5) / 2**32
    return -torch.log1p(-v.clamp(max=LARGEST_V))
