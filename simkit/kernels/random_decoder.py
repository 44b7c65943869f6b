"""A whole decoder of random weights, of any architecture with grouped attention: a step's batch in, logits out."""

import math
from dataclasses import dataclass, replace

import torch
from torch.nn.functional import linear

from simkit.kernels.arguments import FLOATS, check_at_least
from simkit.kernels.decoder_details import DecoderDetails, details_of, rotary_dim
from simkit.kernels.decoder_layer import LayerCache, final_norm, run_layer
from simkit.kernels.decoder_weights import LayerWeights, NormWeights, RandomWeights, random_layer
from simkit.kernels.paged_cache import FP8
from simkit.kernels.rope_frequencies import rope_table
from simkit.kernels.step_batch import StepBatch
from simkit.models.architecture import Architecture, GroupedAttention


@dataclass(frozen=True)
class RandomDecoder:
    """Weights, all of one dtype on one device."""

    architecture: Architecture  # cut to the layers that are here
    details: DecoderDetails
    embedding: torch.Tensor  # [vocab, hidden]
    positions: torch.Tensor | None  # [rows, hidden], learnt
    layers: tuple[LayerWeights, ...]
    norm: NormWeights | None
    lm_head: torch.Tensor  # [vocab, hidden], the embedding itself where tied
    lm_head_bias: torch.Tensor | None  # [vocab]
    rope_tables: tuple[torch.Tensor | None, ...]  # of each layer; layers of the same angles share one
    max_context_tokens: int


def random_decoder(
    architecture: Architecture,
    layers: int | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cuda",
    details: DecoderDetails | None = None,
    max_context_tokens: int | None = None,
) -> RandomDecoder:
    """A decoder of an architecture, cut to its first `layers` layers for small machines.

    Args:
        architecture: of `simkit.models`; a vision encoder in it is left out.
        layers: how many; None: all.
        seed: of the weights.
        dtype: f32, f16 or bf16.
        device: of the weights.
        details: None: those of the architecture's family.
        max_context_tokens: of the tables of rotary angles; None: the architecture's.

    Raises:
        ValueError: naming the argument that is off, or a layer of a kind not computed here.
    """
    if dtype not in FLOATS:
        raise ValueError(f"dtype: is {dtype}; one of {FLOATS} is expected")
    count = len(architecture.layers) if layers is None else layers
    check_at_least("layers", count, 1)
    if count > len(architecture.layers):
        raise ValueError(f"layers: is {count}; {architecture.name} has {len(architecture.layers)}")
    room = architecture.max_context_tokens if max_context_tokens is None else max_context_tokens
    check_at_least("max_context_tokens", room, 1)
    cut = replace(architecture, layers=architecture.layers[:count])
    details = details_of(architecture) if details is None else details
    random = RandomWeights(seed, dtype, torch.device(device))
    embedding = random.normal((cut.vocab, cut.hidden), 1.0)
    return RandomDecoder(
        architecture=cut,
        details=details,
        embedding=embedding,
        positions=random.normal((cut.learned_positions, cut.hidden), 1.0) if cut.learned_positions else None,
        layers=tuple(random_layer(layer, cut.hidden, cut.norm_has_bias, details, random) for layer in cut.layers),
        norm=random.norm(cut.hidden, details.norm_offset, cut.norm_has_bias) if cut.final_norm else None,
        lm_head=embedding if cut.tied_embeddings else random.matrix(cut.vocab, cut.hidden),
        lm_head_bias=random.bias(cut.vocab) if cut.lm_head_bias else None,
        rope_tables=_rope_tables(cut, details, room, torch.device(device)),
        max_context_tokens=room,
    )


def _rope_tables(
    architecture: Architecture, details: DecoderDetails, positions: int, device: torch.device
) -> tuple[torch.Tensor | None, ...]:
    made: dict[tuple[int, bool], torch.Tensor] = {}
    tables: list[torch.Tensor | None] = []
    for layer in architecture.layers:
        attention = layer.attention
        if architecture.learned_positions or not isinstance(attention, GroupedAttention):
            tables.append(None)
            continue
        own = attention.window_tokens is not None and details.windowed_rope_theta is not None
        turned = rotary_dim(attention.head_dim, details)
        if (turned, own) not in made:
            theta = details.windowed_rope_theta if own and details.windowed_rope_theta else details.rope_theta
            scaling = None if own else details.rope_scaling
            made[turned, own] = rope_table(positions, turned, theta, scaling).to(device)
        tables.append(made[turned, own])
    return tuple(tables)


def new_cache(
    decoder: RandomDecoder, pages: int, page_tokens: int, dtype: torch.dtype | None = None
) -> tuple[LayerCache, ...]:
    """An empty pool of pages for each layer; of the weights' dtype if None, of fp8 (scale 1) where asked for."""
    kind, device = dtype or decoder.embedding.dtype, decoder.embedding.device
    one = torch.ones(1, dtype=torch.float32, device=device) if kind == FP8 else None
    pools = []
    for layer in decoder.architecture.layers:
        assert isinstance(layer.attention, GroupedAttention)
        size = (pages, page_tokens, layer.attention.kv_heads, layer.attention.head_dim)
        k, v = (torch.zeros(size, dtype=kind, device=device) for _ in range(2))
        pools.append(LayerCache(k, v, one, one))
    return tuple(pools)


def run_step(decoder: RandomDecoder, caches: tuple[LayerCache, ...], batch: StepBatch) -> torch.Tensor:
    """Compute a batch, its keys and values into the caches: logits of the rows that sample, [rows, vocab].

    Raises:
        ValueError: a context is longer than the decoder's tables.
    """
    if batch.max_context_tokens > decoder.max_context_tokens:
        raise ValueError(
            f"batch: a context of {batch.max_context_tokens} tokens; "
            f"at most the decoder's {decoder.max_context_tokens} are expected"
        )
    with torch.inference_mode():
        residual = _embedded(decoder, batch)
        x = residual
        for index, layer in enumerate(decoder.architecture.layers):
            x = run_layer(
                x,
                residual,
                layer,
                decoder.layers[index],
                decoder.details,
                caches[index],
                batch,
                decoder.rope_tables[index],
                first=index == 0,
            )
        return _logits(decoder, x[batch.sampled], residual[batch.sampled])


def _embedded(decoder: RandomDecoder, batch: StepBatch) -> torch.Tensor:
    """[tokens, hidden] in memory of its own."""
    x = decoder.embedding[batch.tokens]
    if decoder.details.scale_embedding:
        x = x * math.sqrt(decoder.architecture.hidden)
    if decoder.positions is not None:
        # OPT's table begins with two rows that no token uses
        unused = len(decoder.positions) - decoder.architecture.max_context_tokens
        x = x + decoder.positions[batch.positions + unused]
    return x


def _logits(decoder: RandomDecoder, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """[rows, hidden] -> [rows, vocab]."""
    last = x + residual if decoder.norm is None else final_norm(decoder.norm, decoder.details, x, residual)
    logits = linear(last, decoder.lm_head, decoder.lm_head_bias)
    cap = decoder.details.final_soft_cap
    return logits if cap is None else cap * torch.tanh(logits / cap)
