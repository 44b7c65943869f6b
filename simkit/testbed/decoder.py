"""A decoder of random weights in plain torch: one function runs one step of the engine over a paged KV cache.

Shapes: t tokens in the step, h hidden, H query heads, K KV heads, d head_dim, v vocabulary.
"""

from dataclasses import dataclass
from typing import NamedTuple

from simkit.errors import InputError, suggestion
from simkit.testbed.inputs import StepInputs
from simkit.testbed.paged_attention import KVCache, Part, attend, attention_parts, write_kv
from simkit.testbed.shape import DecoderShape
from simkit.testbed.torch_import import torch

DTYPES = ("float64", "float32", "bfloat16", "float16")


class LayerWeights(NamedTuple):
    """One layer; matrices multiply from the right."""

    attention_norm: torch.Tensor  # [h]
    qkv: torch.Tensor  # [h, (H + 2 K) d]
    out: torch.Tensor  # [H d, h]
    ffn_norm: torch.Tensor  # [h]
    gate_up: torch.Tensor  # [h, 2 ffn]
    down: torch.Tensor  # [ffn, h]


@dataclass(frozen=True)
class Decoder:
    """Weights, all of one dtype on one device."""

    shape: DecoderShape
    embedding: torch.Tensor  # [v, h]
    layers: tuple[LayerWeights, ...]
    norm: torch.Tensor  # [h]
    lm_head: torch.Tensor  # [h, v]
    frequencies: torch.Tensor  # f64 [d / 2] radians a position


def random_decoder(shape: DecoderShape, seed: int = 0, dtype: str = "float32", device: str = "cpu") -> Decoder:
    """A decoder whose matrices are normal with variance 1 / fan-in, so that activations keep their scale.

    Raises InputError for a dtype not of DTYPES.
    """
    if dtype not in DTYPES:
        raise InputError(f"testbed: dtype={dtype!r}: is not known; {suggestion(dtype, DTYPES)}")
    source = torch.Generator().manual_seed(seed)
    kind = getattr(torch, dtype)

    def normal(rows: int, columns: int, scale: float) -> torch.Tensor:
        return (torch.randn(rows, columns, generator=source, dtype=torch.float32) * scale).to(device, kind)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return normal(rows, columns, rows**-0.5)

    def ones() -> torch.Tensor:
        return torch.ones(shape.hidden, dtype=kind, device=device)

    query = shape.heads * shape.head_dim
    width = query + 2 * shape.kv_heads * shape.head_dim
    layers = tuple(
        LayerWeights(
            attention_norm=ones(),
            qkv=matrix(shape.hidden, width),
            out=matrix(query, shape.hidden),
            ffn_norm=ones(),
            gate_up=matrix(shape.hidden, 2 * shape.ffn),
            down=matrix(shape.ffn, shape.hidden),
        )
        for _ in range(shape.layers)
    )
    pairs = torch.arange(0, shape.head_dim, 2, dtype=torch.float64, device=device)
    return Decoder(
        shape=shape,
        embedding=normal(shape.vocab, shape.hidden, 1.0),
        layers=layers,
        norm=ones(),
        lm_head=matrix(shape.hidden, shape.vocab),
        frequencies=shape.rope_theta ** (-pairs / shape.head_dim),
    )


def run_step(decoder: Decoder, cache: KVCache, step: StepInputs, before: torch.Tensor | None = None) -> torch.Tensor:
    """Compute one batch, its keys and values into the cache; returns the greedy token of each row that samples, i64.

    `before` is what the step before returned, from which tokens are fed.
    """
    with torch.inference_mode():
        device = decoder.embedding.device
        positions = torch.from_numpy(step.positions).to(device)
        slots = torch.from_numpy(step.slots).to(device)
        turn = _rotation(decoder, positions)
        parts = attention_parts(step, int(cache.keys.shape[2]), device)
        tokens = torch.from_numpy(step.tokens).to(device)
        if before is not None and len(step.fed.rows):
            rows, samples = (torch.from_numpy(each).to(device) for each in step.fed)
            tokens[rows] = before[samples]
        x = decoder.embedding[tokens]
        for index, layer in enumerate(decoder.layers):
            x = x + _attention(decoder, layer, cache, index, x, turn, slots, parts)
            gate, up = (_rms_norm(decoder, x, layer.ffn_norm) @ layer.gate_up).chunk(2, dim=-1)
            x = x + (torch.nn.functional.silu(gate) * up) @ layer.down
        last = x[torch.from_numpy(step.sampled).to(device)]
        return (_rms_norm(decoder, last, decoder.norm) @ decoder.lm_head).argmax(dim=-1)


def _attention(
    decoder: Decoder,
    layer: LayerWeights,
    cache: KVCache,
    index: int,
    x: torch.Tensor,
    turn: tuple[torch.Tensor, torch.Tensor],
    slots: torch.Tensor,
    parts: tuple[Part, ...],
) -> torch.Tensor:
    """[t, h] the attention block of one layer."""
    shape = decoder.shape
    heads = (_rms_norm(decoder, x, layer.attention_norm) @ layer.qkv).view(len(x), -1, shape.head_dim)
    q, k, v = heads.split([shape.heads, shape.kv_heads, shape.kv_heads], dim=1)
    # all of the step's keys before anybody's attention: a prefix may be shared by requests of this very step
    write_kv(cache, index, slots, _rotated(k, turn), v)
    mixed = attend(cache, index, _rotated(q, turn), parts)
    return mixed.reshape(len(x), -1) @ layer.out


def _rms_norm(decoder: Decoder, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich 2019)."""
    return torch.nn.functional.rms_norm(x, (decoder.shape.hidden,), weight, decoder.shape.norm_eps)


def _rotation(decoder: Decoder, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine [t, 1, d / 2] of each token's rotary angles, in the weights' dtype."""
    angles = positions.to(torch.float64)[:, None, None] * decoder.frequencies
    kind = decoder.embedding.dtype
    return angles.cos().to(kind), angles.sin().to(kind)


def _rotated(x: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotary positions on [t, heads, d]: the halves of a head are the pairs (Hugging Face's Llama, rotate_half)."""
    cos, sin = turn
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
