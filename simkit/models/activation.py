"""The peak of working memory that an engine meets when it profiles itself before it sizes the KV cache.

vLLM runs one forward pass of `max_num_batched_tokens` tokens, then samples `max_num_seqs` rows, and keeps the larger of
the two peaks (`GPUModelRunner.profile_run`). Both are written here as sums of the tensors alive at their worst moment.
"""

from simkit.models.architecture import Architecture, DenseFFN, GroupedAttention, Layer
from simkit.models.layout import Layout, kv_heads_per_gpu
from simkit.models.linear_attention import LinearAttention

# Bytes a logit of the dummy sampling pass, which sorts for top-k and top-p: 16-bit logits 2, fp32 logits 4, sorted
# values 4, their int64 indices 8, and the sort's own copy of both 12 (vLLM `_dummy_sampler_run`, torch.sort). In the
# measured runs of docs/models.md the rest of the budget leaves room for 26 to 34.
SAMPLER_BYTES_PER_LOGIT = 30


def held_bytes(arch: Architecture, tokens: int) -> int:
    """Hidden states and residual of all tokens, 16-bit, alive through both passes.

    Seen directly: Qwen2.5-7B profiled with 2,048 and 1,024 tokens differs by 16 blocks of 917,504 bytes, which is
    1,024 tokens x 2 x 3,584 x 2 bytes to the byte.
    """
    return tokens * 2 * arch.hidden * 2


def forward_bytes(arch: Architecture, layout: Layout, tokens: int) -> int:
    """Tensors beside the held ones at the widest point of the widest layer, 16-bit."""
    return (
        tokens * 2 * max(max(_attention_width(layer, layout), _ffn_width(arch, layer, layout)) for layer in arch.kinds)
    )


def sampler_bytes(arch: Architecture, rows: int) -> int:
    """Copies of the logits of `rows` rows over the whole vocabulary: every GPU of a tensor group samples."""
    return rows * arch.vocab * SAMPLER_BYTES_PER_LOGIT


def peak_bytes(arch: Architecture, layout: Layout, max_num_batched_tokens: int, max_num_seqs: int) -> int:
    """Peak working memory of the profiling run on one GPU."""
    rows = min(max_num_seqs, max_num_batched_tokens)
    forward = forward_bytes(arch, layout, max_num_batched_tokens)
    return held_bytes(arch, max_num_batched_tokens) + max(forward, sampler_bytes(arch, rows))


def _attention_width(layer: Layer, layout: Layout) -> int:
    """q, k, v and the attention output, in elements a token; of linear attention its inputs twice, and the output."""
    attention = layer.attention
    if isinstance(attention, LinearAttention):
        own = attention.on_gpu(layout.tensor)
        return own.input_width + own.channels + own.heads * own.value_dim  # projected; convolved; output
    heads = attention.heads // layout.tensor
    if isinstance(attention, GroupedAttention):
        gated = heads * attention.output_gate
        return (2 * heads + gated + 2 * kv_heads_per_gpu(attention, layout.tensor)) * attention.head_dim
    # keys and values are expanded for all heads
    return heads * (2 * attention.query_dim + 2 * attention.value_dim) + attention.kv_rank + attention.rope_dim


def _ffn_width(arch: Architecture, layer: Layer, layout: Layout) -> int:
    """Gate, up, their product and the output, in elements a token; of every copy a token makes in an MoE."""
    ffn = layer.ffn
    if ffn is None:
        return arch.hidden
    if isinstance(ffn, DenseFFN):
        return (3 if ffn.gated else 2) * ffn.width // layout.tensor + arch.hidden
    # two caches of vLLM's fused_moe: [copies, max(2 width, hidden)] and [copies, width]
    width = ffn.width if layout.expert > 1 else ffn.width // layout.tensor
    shared = (ffn.ups + 1) * ffn.shared_width // layout.tensor
    return ffn.per_token * (max(ffn.ups * width, ffn.latent or arch.hidden) + width) + arch.hidden + shared
