"""What attention computes, reads and writes, on one GPU of a layout, over all layers: decodes and prefill chunks."""

import numpy as np

from simkit.models.architecture import Architecture, GroupedAttention, LatentAttention
from simkit.models.layout import Layout, layer_kv_bytes_per_token
from simkit.models.linear_attention import LinearAttention
from simkit.models.operators import F64, Operator, counted
from simkit.models.precision import Precision


def decode_attention(
    arch: Architecture, layout: Layout, requests: F64, contexts: F64, windowed: bool, kv: Precision = "bf16"
) -> list[Operator]:
    """Attention of `requests` one-token queries over `contexts` cached tokens in sum, one operator a kind of layer.

    Layers whose attention is linear are among those without a window; their time does not go by contexts.

    Args:
        arch: the model.
        layout: how it is spread.
        requests: f64, broadcast against `contexts`.
        contexts: f64, tokens attended to in one layer, summed over requests (windows already applied by the caller).
        windowed: only the layers with a window, or only those without.
        kv: precision of the KV cache.
    """
    requests, contexts = np.broadcast_arrays(np.asarray(requests, np.float64), np.asarray(contexts, np.float64))
    found = []
    for layer, count in arch.kinds.items():
        attention = layer.attention
        if (attention.window_tokens is not None) != windowed:
            continue
        if isinstance(attention, LinearAttention):
            found.append(state_update(attention.on_gpu(layout.tensor), count, requests))
            continue
        heads = attention.heads // layout.tensor
        kv_bytes = float(layer_kv_bytes_per_token(layer, layout.tensor, kv))
        read, flops = contexts * kv_bytes, 4.0 * heads * contexts
        if isinstance(attention, GroupedAttention):
            flops, io = flops * attention.head_dim, 2.0 * heads * attention.head_dim
        else:
            flops, read = _latent_decode(attention, heads, requests, contexts, kv)
            io = 2.0 * heads * attention.kv_rank
        found.append(
            counted(
                "attention_decode",
                "attention_decode",
                count,
                contexts,
                flops=count * flops,
                read=count * requests * io,
                written=count * requests * io,
                kv_read=count * read,
            )
        )
    return found


def state_update(own: LinearAttention, count: int, requests: F64) -> Operator:
    """One token of each of `requests` (f64) changes and reads its state, in `count` layers; `own` is a GPU's share.

    A head's matrix decays, is asked for the token's key, corrected by an outer product and asked for its query: 7
    operations a number (Yang et al. 2024, equation 10). It is read and written, and so are the convolution's inputs.
    """
    state = float(own.state_bytes())
    return counted(
        "state_update",
        "state_decode",
        count,
        requests,
        flops=7.0 * count * requests * own.heads * own.key_dim * own.value_dim,
        read=count * requests * (state + 2.0 * own.channels),
        written=count * requests * (state + 2.0 * own.heads * own.value_dim),
    )


def _latent_decode(
    attention: LatentAttention, heads: int, requests: F64, contexts: F64, kv: Precision
) -> tuple[F64, F64]:
    """FLOPs and KV bytes of absorbed MLA: every head against the latent. A sparse indexer caps what is attended to.

    The indexer itself scores all tokens with its own heads on fp8 keys (DeepSeek-V3.2-Exp report, equation 1).
    """
    latent_bytes = attention.kv_bytes(kv)
    seen = contexts
    flops, read = np.zeros_like(contexts), np.zeros_like(contexts)
    if attention.indexer is not None:
        index_bytes = attention.indexer.head_dim + 4
        latent_bytes -= index_bytes
        seen = np.minimum(contexts, requests * attention.indexer.top_k)
        flops = 2.0 * attention.indexer.heads * attention.indexer.head_dim * contexts
        read = contexts * float(index_bytes)
    flops = flops + 2.0 * heads * (2 * attention.kv_rank + attention.rope_dim) * seen
    return flops, read + seen * float(latent_bytes)


def attended_pairs(chunk: F64, past: F64, window: int | None) -> F64:
    """Query-key pairs of a causal chunk after `past` tokens: sum over i < chunk of min(past + i + 1, window)."""
    full = chunk * past + chunk * (chunk + 1) / 2
    if window is None:
        return full
    growing = np.clip(window - past, 0, chunk)  # queries whose window is not yet full
    return growing * past + growing * (growing + 1) / 2 + (chunk - growing) * window


def prefill_attention(
    arch: Architecture, layout: Layout, chunk: F64, past: F64, kv: Precision = "bf16", extra_keys: float = 0.0
) -> list[Operator]:
    """Attention of one prefill chunk, by kind of layer, linear ones left out; `chunk` and `past` (f64) are broadcast.

    Keys and values are read once a layer (query tiles of one KV head share them through L2). `extra_keys` are charged
    to every query beyond those it sees: how a roofline says that short rows use the matrix units badly.
    """
    chunk, past = np.broadcast_arrays(np.asarray(chunk, np.float64), np.asarray(past, np.float64))
    found = []
    for layer, count in arch.kinds.items():
        attention, window = layer.attention, layer.attention.window_tokens
        if isinstance(attention, LinearAttention):
            continue  # all chunks of a step together: simkit.models.state_time
        heads = attention.heads // layout.tensor
        pairs = attended_pairs(chunk, past, window) + extra_keys * chunk
        seen = past + chunk if window is None else np.minimum(past + chunk, window + chunk)
        kv_bytes = float(layer_kv_bytes_per_token(layer, layout.tensor, kv))
        if isinstance(attention, GroupedAttention):
            flops = 4.0 * heads * attention.head_dim * pairs
            io = 2.0 * heads * attention.head_dim
        else:
            flops, io = _latent_prefill(attention, heads, chunk, past, pairs), 2.0 * heads * attention.query_dim
            if attention.indexer is None:
                found.append(_expand_latents(attention, heads, count, chunk, past))
        found.append(
            counted(
                "attention_prefill",
                "attention_prefill",
                count,
                chunk,
                flops=count * np.where(chunk > 0, flops, 0.0),
                read=count * chunk * io,
                written=count * chunk * io,
                kv_read=count * np.where(chunk > 0, seen, 0.0) * kv_bytes,
            )
        )
    return found


def _latent_prefill(attention: LatentAttention, heads: int, chunk: F64, past: F64, pairs: F64) -> F64:
    """FLOPs of MLA prefill: full keys and values of every head.

    With a sparse indexer, its scores of all pairs and absorbed attention to at most top_k tokens a query.
    """
    if attention.indexer is not None:
        index = attention.indexer
        attended = attended_pairs(chunk, past, index.top_k)
        per_pair = 2.0 * heads * (2 * attention.kv_rank + attention.rope_dim)
        return 2.0 * index.heads * index.head_dim * pairs + per_pair * attended
    return 2.0 * heads * (attention.query_dim + attention.value_dim) * pairs


def _expand_latents(attention: LatentAttention, heads: int, count: int, chunk: F64, past: F64) -> Operator:
    """The cached latents of the past become full keys and values again for each chunk (vLLM MLA backend)."""
    width = heads * (attention.nope_dim + attention.value_dim)
    tokens = np.where(chunk > 0, past, 0.0)
    return counted(
        "kv_expand",
        "gemm",
        count,
        tokens,
        flops=2.0 * count * tokens * attention.kv_rank * width,
        weights=np.where(tokens > 0, 2.0 * count * attention.kv_rank * width, 0.0),
        written=2.0 * count * tokens * width,
    )
