"""One decoder layer over the paged KV cache, composed of the kernels here and torch's GEMMs.

    two norms    r += x; x = attention(norm1(r)); r += x; x = ffn(norm2(r))                Llama and most since
    four norms   the same with x = norm2(attention(..)), x = norm4(ffn(norm3(..)))         Gemma 2 and 3, GLM-4-0414
    one norm     r += x; h = norm1(r); x = attention(h) + ffn(h)                           Phi 2: in parallel

x and r [tokens, hidden]: the residual stream r lags one addition behind, which the next norm's kernel makes.
"""

from typing import NamedTuple

import torch
from torch.nn.functional import linear

from simkit.kernels.attention_features import AttentionFeatures
from simkit.kernels.decoder_details import DecoderDetails
from simkit.kernels.decoder_weights import AttentionWeights, LayerWeights, NormWeights
from simkit.kernels.feed_forward import feed_forward
from simkit.kernels.layer_norm import layer_norm
from simkit.kernels.mixed_attention import mixed_attention
from simkit.kernels.paged_cache import PagedCache
from simkit.kernels.rms_norm import rms_norm
from simkit.kernels.rope_cache import rope_and_cache
from simkit.kernels.step_batch import StepBatch
from simkit.models.architecture import GroupedAttention, Layer


class LayerCache(NamedTuple):
    """One layer's pool of pages."""

    k: torch.Tensor  # [pages, page_tokens, kv_heads, head_dim]
    v: torch.Tensor  # [pages, page_tokens, kv_heads, head_dim]
    k_scale: torch.Tensor | None = None  # f32[1] or f32[kv_heads], of fp8
    v_scale: torch.Tensor | None = None

    def of(self, batch: StepBatch) -> PagedCache:
        """The pool as the batch's requests see it."""
        return PagedCache(self.k, self.v, batch.page_table, batch.context_tokens, self.k_scale, self.v_scale)


def run_layer(
    x: torch.Tensor,
    residual: torch.Tensor,
    layer: Layer,
    weights: LayerWeights,
    details: DecoderDetails,
    cache: LayerCache,
    batch: StepBatch,
    rope_table: torch.Tensor | None,
    first: bool,
) -> torch.Tensor:
    """The layer's output, [tokens, hidden], which is to be added to the residual.

    Args:
        x: [tokens, hidden], what the layer before put out; not looked at in the first layer.
        residual: [tokens, hidden], changed to what stands before this layer's output.
        layer: its form.
        weights: of `decoder_weights`.
        details: of the model.
        cache: written to and read.
        batch: of the step.
        rope_table: see `rope_frequencies.rope_table`; None: no rotary positions.
        first: whether the residual is the embedding and x nothing.
    """
    norms = weights.norms
    h = _norm(norms[0], details, residual, None) if first else _norm(norms[0], details, x, residual)
    assert isinstance(layer.attention, GroupedAttention)
    assert layer.ffn is not None
    attended = _attention(h, layer.attention, weights.attention, details, cache.of(batch), batch, rope_table)
    if len(norms) == 1:
        return attended + feed_forward(h, layer.ffn, weights.ffn, details)
    if len(norms) == 4:
        attended = _norm(norms[1], details, attended, None)
    h = _norm(norms[len(norms) // 2], details, attended, residual)
    out = feed_forward(h, layer.ffn, weights.ffn, details)
    return _norm(norms[3], details, out, None) if len(norms) == 4 else out


def _norm(
    weights: NormWeights, details: DecoderDetails, x: torch.Tensor, residual: torch.Tensor | None
) -> torch.Tensor:
    if weights.bias is None:
        return rms_norm(x, weights.weight, details.norm_eps, residual, details.norm_offset)
    return layer_norm(x, weights.weight, weights.bias, details.norm_eps, residual)


def final_norm(weights: NormWeights, details: DecoderDetails, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """The norm before the lm_head, of the sum; the residual is changed to the sum."""
    return _norm(weights, details, x, residual)


def _attention(
    h: torch.Tensor,
    form: GroupedAttention,
    weights: AttentionWeights,
    details: DecoderDetails,
    cache: PagedCache,
    batch: StepBatch,
    rope_table: torch.Tensor | None,
) -> torch.Tensor:
    """[tokens, hidden] -> [tokens, hidden]."""
    heads = linear(h, weights.qkv, weights.qkv_bias).unflatten(1, (-1, form.head_dim))
    q, k, v = heads.split([form.heads, form.kv_heads, form.kv_heads], dim=1)  # [tokens, heads, head_dim], views
    if weights.q_norm is not None and weights.k_norm is not None:
        q = rms_norm(q, weights.q_norm, details.norm_eps, None, details.norm_offset, out=q)
        k = rms_norm(k, weights.k_norm, details.norm_eps, None, details.norm_offset, out=k)
    # all of the step's keys before anybody's attention: a prefix may be shared by requests of this very step
    q = rope_and_cache(q, k, v, batch.positions, batch.slots, cache, rope_table, details.neox)
    attended = mixed_attention(
        q,
        batch.query_starts,
        cache,
        batch.decodes,
        batch.max_query_tokens,
        batch.max_decode_context_tokens,
        features=AttentionFeatures(form.window_tokens, details.attention_soft_cap, None, weights.sinks),
    )
    return linear(attended.flatten(1), weights.out, weights.out_bias)
