"""What each operator of a step computes, reads, writes and sends, on one GPU of a layout, over all layers.

Counts are closed forms of tensor shapes (a multiply-add is 2 FLOPs); nothing here knows a device. The token axis is an
array, so one call gives an operator's cost at every step size. With pipeline stages the counts of all stages are
summed, since a batch passes through all of them. Elements are 2 bytes wherever a precision is not named.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from simkit.models.architecture import (
    Architecture,
    DenseFFN,
    GroupedAttention,
    LatentAttention,
    MoE,
    ParameterGroup,
)
from simkit.models.expert_parallel import peers_of, skew_of
from simkit.models.layout import Layout, kv_heads_per_gpu, layer_kv_bytes_per_token, stage_layers
from simkit.models.linear_attention import LinearAttention
from simkit.models.precision import Precision

F64 = NDArray[np.float64]
Family = Literal[
    "gemm",
    "grouped_gemm",
    "elementwise",
    "attention_decode",
    "attention_prefill",
    "state_decode",
    "all_reduce",
    "all_reduce_in_node",
    "all_gather",
    "all_to_all",
    "all_to_all_network",
    "send",
    "network",
]


@dataclass(frozen=True)
class Operator:
    """One operator summed over the layers that have it; arrays are f64 of the shape of the arguments."""

    name: str
    family: Family
    launches: int  # kernels
    flops: F64
    weight_bytes: F64  # weights read
    read_bytes: F64  # activations read
    written_bytes: F64  # activations written
    kv_read_bytes: F64
    kv_written_bytes: F64
    sent_bytes: F64  # bytes each GPU sends to others
    group: ParameterGroup | None = None  # whose weights; decides the precision it is computed in
    link_bytes_per_s: float | None = None  # of the link it sends over; None: the device's own

    @property
    def memory_bytes(self) -> F64:
        """All traffic to and from this GPU's memory."""
        parts = (self.read_bytes, self.written_bytes, self.kv_read_bytes, self.kv_written_bytes)
        return sum(parts, start=self.weight_bytes)


def counted(
    name: str,
    family: Family,
    launches: int,
    like: F64,
    *,
    flops: F64 | float = 0.0,
    weights: F64 | float = 0.0,
    read: F64 | float = 0.0,
    written: F64 | float = 0.0,
    kv_read: F64 | float = 0.0,
    kv_written: F64 | float = 0.0,
    sent: F64 | float = 0.0,
    group: ParameterGroup | None = None,
) -> Operator:
    """An operator of these counts, each broadcast to the shape of `like`; what is not named is zero."""
    zero = np.zeros_like(like)
    return Operator(
        name=name,
        family=family,
        launches=launches,
        flops=zero + flops,
        weight_bytes=zero + weights,
        read_bytes=zero + read,
        written_bytes=zero + written,
        kv_read_bytes=zero + kv_read,
        kv_written_bytes=zero + kv_written,
        sent_bytes=zero + sent,
        group=group,
    )


def touched_experts(experts: int, per_token: int, tokens: F64) -> F64:
    """Expected number of distinct experts that `tokens` tokens reach, choosing evenly: E (1 - (1 - k/E)^T).

    Each expert is missed by one token with probability 1 - k/E (linearity of expectation; evenness is assumed, a
    skewed router touches fewer). Exact for one token (k) and in the limit (E).
    """
    return experts * (1.0 - (1.0 - per_token / experts) ** tokens)


@dataclass(frozen=True)
class _Shard:
    """What the operators of every layer need to know."""

    arch: Architecture
    layout: Layout
    weights: Precision | None
    kv: Precision
    tokens: F64

    def gemm(self, name: str, count: int, inner: float, outer: float, group: ParameterGroup) -> Operator:
        """`count` products of [tokens, inner] and [inner, outer]."""
        bits = self.arch.weight_bits(group, self.weights)
        return counted(
            name,
            "gemm",
            count,
            self.tokens,
            flops=2.0 * count * self.tokens * inner * outer,
            weights=np.where(self.tokens > 0, count * inner * outer * bits / 8, 0.0),
            read=2.0 * count * self.tokens * inner,
            written=2.0 * count * self.tokens * outer,
            group=group,
        )

    def elementwise(self, name: str, count: int, read: float, written: float, kv_written: float = 0.0) -> Operator:
        """`count` passes that read and write so many bytes a token."""
        return counted(
            name,
            "elementwise",
            count,
            self.tokens,
            read=count * self.tokens * read,
            written=count * self.tokens * written,
            kv_written=count * self.tokens * kv_written,
        )

    def all_reduces(self, name: str, count: int) -> Iterator[Operator]:
        """`count` sums of [tokens, hidden]: a ring sends 2 (t - 1) / t of the bytes (Patarasuk and Yuan, 2009).

        A group of several nodes sums its parts in each node (reduce-scatter), each part with the same GPU's of the
        other nodes, and puts them together in each node again (all-gather): Cho et al., BlueConnect, 2019. NCCL's
        trees send as much between nodes (NVIDIA in nccl-tests issue 196).
        """
        near, nodes = self.layout.tensor_in_node, self.layout.tensor_nodes
        whole = count * self.tokens * self.arch.hidden * 2.0
        if near > 1:
            family: Family = "all_reduce" if nodes == 1 else "all_reduce_in_node"
            yield counted(name, family, count, self.tokens, sent=2.0 * (near - 1) / near * whole)
        if nodes > 1:
            # to the other nodes and back
            yield _network(self.layout, name, 2 * count, self.tokens, 2.0 * (nodes - 1) / nodes * whole / near)


def _network(layout: Layout, name: str, messages: int, like: F64, sent: F64) -> Operator:
    """What each GPU sends to other nodes, in `messages` one after the other."""
    between = counted(f"{name}_network", "network", messages, like, sent=sent)
    return replace(between, link_bytes_per_s=layout.network_gb_per_s * 1e9)


def linear_operators(
    arch: Architecture,
    layout: Layout,
    tokens: F64,
    weights: Precision | None = None,
    kv: Precision = "bf16",
    stage: int | None = None,
) -> list[Operator]:
    """Everything of a step that depends on its number of new tokens alone, of all pipeline stages or of one.

    Args:
        arch: the model.
        layout: how it is spread; assumed checked.
        tokens: f64[n], new tokens of a step.
        weights: precision the linear layers are stored in; None as published.
        kv: precision of the KV cache, for the write.
        stage: number of a pipeline stage, with the send to the next; None: all together.
    """
    shard = _Shard(arch, layout, weights, kv, np.asarray(tokens, dtype=np.float64))
    h2 = 2.0 * arch.hidden
    first, last = stage in (None, 0), stage in (None, layout.pipeline - 1)
    layers = arch.layers if stage is None else stage_layers(arch, layout.pipeline)[stage]
    found = [shard.elementwise("embedding", 1, h2, h2)] if first else []
    for layer, count in Counter(layers).items():
        attention, ffn = layer.attention, layer.ffn
        # residual add fused in: reads input and residual, writes both (vLLM `fused_add_rms_norm`)
        found.append(shard.elementwise("norm", count * layer.norms, 2 * h2, 2 * h2))
        kv_bytes = layer_kv_bytes_per_token(layer, layout.tensor, kv)
        if isinstance(attention, GroupedAttention):
            found.extend(_grouped_projections(shard, attention, count, kv_bytes))
        elif isinstance(attention, LatentAttention):
            found.extend(_latent_projections(shard, attention, count, kv_bytes))
        else:
            found.extend(_linear_projections(shard, attention.on_gpu(layout.tensor), count))
        if isinstance(ffn, DenseFFN):
            found.extend(_dense(shard, ffn, count))
        elif ffn is not None:
            found.extend(_experts(shard, ffn, count))
    if arch.final_norm and last:
        found.append(shard.elementwise("norm", 1, 2 * h2, 2 * h2))
    if layout.tensor > 1:
        # after embedding, each o, each down
        found.extend(shard.all_reduces("all_reduce", sum(1 + (layer.ffn is not None) for layer in layers) + first))
    found.extend(_sends(shard, range(layout.pipeline - 1) if stage is None else range(stage, stage + 1 - last)))
    return found


def _grouped_projections(shard: _Shard, attention: GroupedAttention, count: int, kv_bytes: int) -> Iterator[Operator]:
    hidden, tensor = shard.arch.hidden, shard.layout.tensor
    q = attention.heads // tensor * attention.head_dim
    kv = kv_heads_per_gpu(attention, tensor) * attention.head_dim
    yield shard.gemm("qkv", count, hidden, attention.query_width // tensor + 2 * kv, "attention")
    if attention.qk_norm:
        yield shard.elementwise("qk_norm", 2 * count, 1.0 * (q + kv), 1.0 * (q + kv))
    if not shard.arch.learned_positions:
        yield shard.elementwise("rope", count, 2.0 * (q + kv), 2.0 * (q + kv))
    yield shard.elementwise("kv_write", count, 4.0 * kv, 0.0, kv_written=kv_bytes)
    if attention.output_gate:
        yield shard.elementwise("output_gate", count, 4.0 * q, 2.0 * q)
    yield shard.gemm("o", count, q, hidden, "attention")


def _linear_projections(shard: _Shard, own: LinearAttention, count: int) -> Iterator[Operator]:
    """Linear attention but for its state: `own` is one GPU's share of it."""
    hidden, values = shard.arch.hidden, own.heads * own.value_dim
    yield shard.gemm("linear_in", count, hidden, own.input_width, "attention")
    yield shard.elementwise("conv", count, 2.0 * own.channels, 2.0 * own.channels)
    yield shard.elementwise("gated_norm", count, 4.0 * values, 2.0 * values)
    yield shard.gemm("linear_out", count, values, hidden, "attention")


def _latent_projections(shard: _Shard, attention: LatentAttention, count: int, kv_bytes: int) -> Iterator[Operator]:
    """MLA in its absorbed form for all tokens: kv_up is applied to queries and outputs (DeepSeek-V2 report, 2.1.2)."""
    hidden, heads = shard.arch.hidden, attention.heads // shard.layout.tensor
    latent, query = attention.kv_rank + attention.rope_dim, heads * attention.query_dim
    if attention.q_rank is None:
        yield shard.gemm("qkv_down", count, hidden, latent, "attention")
        yield shard.gemm("q_up", count, hidden, query, "attention")
    else:
        yield shard.gemm("qkv_down", count, hidden, attention.q_rank + latent, "attention")
        yield shard.gemm("q_up", count, attention.q_rank, query, "attention")
    yield shard.elementwise("latent_norm", count, 2.0 * latent, 2.0 * latent)
    yield shard.elementwise("rope", count, 2.0 * heads * attention.rope_dim, 2.0 * heads * attention.rope_dim)
    yield shard.elementwise("kv_write", count, 2.0 * latent, 0.0, kv_written=kv_bytes)
    # heads products of [tokens, nope] x [nope, rank] and of [tokens, rank] x [rank, value]
    yield shard.gemm("kv_up", count, attention.kv_rank, heads * (attention.nope_dim + attention.value_dim), "attention")
    if attention.indexer is not None:
        width = attention.indexer.heads * attention.indexer.head_dim
        yield shard.gemm("indexer_q", count, attention.q_rank or hidden, width, "attention")
        yield shard.gemm("indexer_k", count, hidden, attention.indexer.head_dim + attention.indexer.heads, "attention")
    yield shard.gemm("o", count, heads * attention.value_dim, hidden, "attention")


def _dense(shard: _Shard, ffn: DenseFFN, count: int) -> Iterator[Operator]:
    hidden, width = shard.arch.hidden, ffn.width / shard.layout.tensor
    ups = 2 if ffn.gated else 1
    yield shard.gemm("gate_up", count, hidden, ups * width, "dense_ffn")
    yield shard.elementwise("activation", count, 2.0 * ups * width, 2.0 * width)
    yield shard.gemm("down", count, width, hidden, "dense_ffn")


def _experts(shard: _Shard, ffn: MoE, count: int) -> Iterator[Operator]:
    """Router and routed experts, each touched expert's weights read once; and the shared expert.

    Cut in slices, a GPU runs every touched expert at width / t; spread whole, it runs 1 / t of the touched experts and
    1 / t of the token copies, times the skew of the most loaded one, which all wait for: even, the same FLOPs and
    weight bytes. Engines that share experts are taken to compute as many tokens each.
    """
    hidden, tensor, tokens = shard.arch.hidden, shard.layout.tensor, shard.tokens
    yield shard.gemm("router", count, hidden, ffn.experts, "router")
    # top-k and sorting tokens by expert: two small kernels over the scores
    yield shard.elementwise("route", 2 * count, 2.0 * ffn.experts, 4.0 * ffn.per_token)
    layout = shard.layout
    touched = touched_experts(ffn.experts, ffn.per_token, tokens * layout.data)
    copies = tokens * ffn.per_token * layout.data * skew_of(layout, ffn.experts)
    bits = shard.arch.weight_bits("experts", shard.weights)
    spread = layout.expert > 1
    width, held = (ffn.width, copies / layout.expert) if spread else (ffn.width / tensor, copies)
    read = ffn.latent or hidden
    if ffn.latent:
        yield shard.gemm("latent_in", count, hidden, read, "shared_experts")
        yield shard.gemm("latent_out", count, read, hidden, "shared_experts")
    for name, inner, outer in (("experts_gate_up", read, float(ffn.ups) * width), ("experts_down", width, read)):
        yield counted(
            name,
            "grouped_gemm",
            count,
            tokens,
            flops=2.0 * count * held * inner * outer,
            weights=count * touched / layout.expert * inner * outer * bits / 8,
            read=2.0 * count * held * inner,
            written=2.0 * count * held * outer,
            group="experts",
        )
    per_token = held / np.maximum(tokens, 1.0)
    yield counted(
        "expert_activation",
        "elementwise",
        count,
        tokens,
        read=2.0 * ffn.ups * count * held * width,
        written=2.0 * count * held * width,
    )
    yield counted(
        "combine",
        "elementwise",
        count,
        tokens,
        read=2.0 * count * tokens * per_token * read,
        written=2.0 * count * tokens * read,
    )
    if ffn.shared_width:
        shared = ffn.shared_width / tensor
        yield shard.gemm("shared_gate_up", count, hidden, ffn.ups * shared, "shared_experts")
        yield shard.elementwise("activation", count, 2.0 * ffn.ups * shared, 2.0 * shared)
        yield shard.gemm("shared_down", count, shared, hidden, "shared_experts")
    if layout.data > 1:
        yield from _exchanges(shard, ffn, count)


def _exchanges(shard: _Shard, ffn: MoE, count: int) -> Iterator[Operator]:
    """Dispatch and combine of all layers: a GPU's share of its engine's tokens to the GPUs of their experts and back.

    Dispatched as the experts compute, in 8 or 16 bits, combined in 16 (DeepEP; vLLM's backends of that name). Messages
    between nodes are added to those within.
    """
    layout = shard.layout
    element_bytes = (1 if shard.arch.weight_bits("experts", shard.weights) == 8 else 2) + 2
    width = ffn.latent or shard.arch.hidden
    sent = count * shard.tokens / layout.tensor * width * element_bytes * skew_of(layout, ffn.experts)
    near, far = peers_of(layout, ffn.per_token)
    if near > 0:
        yield counted("exchange", "all_to_all", 2 * count, shard.tokens, sent=sent * near)
    if far > 0:
        network = _network(layout, "exchange", 2 * count, shard.tokens, sent * far)
        yield replace(network, family="all_to_all_network")


def _sends(shard: _Shard, stages: Sequence[int]) -> Iterator[Operator]:
    """Hidden states and residual pass to the next stage, each GPU sending its slice (vLLM `send_tensor_dict`)."""
    layout = shard.layout
    sent = shard.tokens * 2 * shard.arch.hidden * 2.0 / layout.tensor  # by each of the `stages`
    far = sum(layout.leaves_node(stage) for stage in stages)
    near = len(stages) - far
    if near > 0:
        yield counted("send", "send", 2 * near, shard.tokens, sent=near * sent)
    if far > 0:
        yield _network(layout, "send", 2 * far, shard.tokens, far * sent)


def sampling_operators(arch: Architecture, layout: Layout, rows: F64) -> list[Operator]:
    """lm_head and sampling of `rows` (f64[n]) tokens.

    Sampling is greedy or plain temperature: a cast to fp32, a softmax and a draw over the vocabulary (vLLM `Sampler`
    without top-k and top-p): about 20 bytes a logit.
    """
    rows = np.asarray(rows, dtype=np.float64)
    vocab = float(arch.vocab)
    sampling = counted("sampling", "elementwise", 5, rows, read=12.0 * rows * vocab, written=8.0 * rows * vocab)
    return [lm_head(arch, layout, rows), sampling, *logits_gathers(arch, layout, rows)]


def lm_head(arch: Architecture, layout: Layout, rows: F64) -> Operator:
    """The logits of `rows` (f64[n]) tokens, each GPU's share of the vocabulary."""
    vocab, tensor = float(arch.vocab), layout.tensor
    return counted(
        "lm_head",
        "gemm",
        1,
        rows,
        flops=2.0 * rows * arch.hidden * vocab / tensor,
        weights=np.where(rows > 0, arch.hidden * vocab / tensor * 2.0, 0.0),
        read=2.0 * rows * arch.hidden,
        written=2.0 * rows * vocab / tensor,
        group="lm_head",
    )


def logits_gathers(arch: Architecture, layout: Layout, rows: F64) -> list[Operator]:
    """The shares of the logits of `rows` tokens come to every GPU."""
    found = []
    near, nodes, whole = layout.tensor_in_node, layout.tensor_nodes, 2.0 * rows * float(arch.vocab)
    if nodes > 1:  # first each GPU's share from its peers in the other nodes
        found.append(_network(layout, "logits_gather", 1, rows, whole * (nodes - 1) / layout.tensor))
    if near > 1:
        found.append(counted("logits_gather", "all_gather", 1, rows, sent=whole * (near - 1) / near))
    return found
