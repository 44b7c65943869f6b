"""A decoder as the numbers that decide its cost: layers, widths, parameters, weight bytes, KV bytes a token.

An architecture is read from a Hugging Face `config.json` (`huggingface.py`) or the catalog; everything here is
arithmetic on it. Published parameter counts are reproduced by summing weight shapes, never by a formula fitted to them.
"""

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from simkit.models.linear_attention import LinearAttention
from simkit.models.precision import WEIGHT_BITS, Precision, vector_bytes

AttentionKind = Literal["MHA", "GQA", "MQA", "MLA"]
ParameterGroup = Literal[
    "embedding", "attention", "dense_ffn", "router", "experts", "shared_experts", "norms", "lm_head", "encoder"
]

# What vLLM, GPTQ and FP8 checkpoints quantise: the linear layers. Embedding, lm_head, norms and router stay at 16 bits
# (`modules_to_not_convert` and `ignore` lists of published checkpoints).
LINEAR_GROUPS: frozenset[ParameterGroup] = frozenset({"attention", "dense_ffn", "experts", "shared_experts"})


@dataclass(frozen=True)
class GroupedAttention:
    """Attention with `heads` query heads sharing `kv_heads` key and value heads: MHA, GQA or MQA."""

    heads: int
    kv_heads: int
    head_dim: int
    window_tokens: int | None = None  # tokens a query sees, itself included; None: all before it
    chunked: bool = False  # the window is an aligned chunk (Llama 4), of which a query sees the part before it
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False  # one norm vector of head_dim for q and one for k (Qwen 3, Gemma 3)
    norms_all_heads: bool = False  # these two are as wide as all heads of q and of k (OLMo 2, MiniMax-M2)
    sinks: bool = False  # one learnt logit a head (GPT-OSS)
    output_gate: bool = False  # queries are projected with a gate of their width for the output (Qwen3-Next)

    @property
    def query_width(self) -> int:
        """What is projected for queries: all heads, and their gates if any."""
        return self.heads * self.head_dim * (1 + self.output_gate)

    @property
    def kind(self) -> AttentionKind:
        """What the field calls this sharing of KV heads."""
        if self.kv_heads == self.heads:
            return "MHA"
        return "MQA" if self.kv_heads == 1 else "GQA"

    def parameters(self, hidden: int) -> int:
        """Weights of q, k, v, o, their biases, norms and sinks."""
        q, kv = self.query_width, self.kv_heads * self.head_dim
        biases = (q + 2 * kv) * self.qkv_bias + hidden * self.output_bias
        normed = self.heads + self.kv_heads if self.norms_all_heads else 2
        norms = normed * self.head_dim * self.qk_norm
        return hidden * (q + 2 * kv) + self.heads * self.head_dim * hidden + biases + norms + self.heads * self.sinks

    def kv_bytes(self, precision: Precision) -> int:
        """Bytes one token leaves in this layer's KV cache: a key and a value vector a KV head."""
        return 2 * self.kv_heads * vector_bytes(self.head_dim, precision)


@dataclass(frozen=True)
class Indexer:
    """The lightning indexer of DeepSeek sparse attention: small heads choose `top_k` tokens for the large ones."""

    heads: int
    head_dim: int
    top_k: int  # tokens

    def parameters(self, hidden: int, q_rank: int) -> int:
        """wq_b, wk, the LayerNorm on k and the weights projection (DeepSeek-V3.2-Exp inference code, `Indexer`)."""
        return q_rank * self.heads * self.head_dim + hidden * (self.head_dim + self.heads) + 2 * self.head_dim


@dataclass(frozen=True)
class LatentAttention:
    """Multi-head latent attention: keys and values of all heads in one vector a token (DeepSeek-V2 report, 2.1)."""

    heads: int
    q_rank: int | None  # None: queries are projected directly (DeepSeek-V2-Lite)
    kv_rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int
    qkv_bias: bool = False
    indexer: Indexer | None = None
    window_tokens: int | None = None
    chunked: bool = False

    @property
    def kind(self) -> AttentionKind:
        """Always MLA."""
        return "MLA"

    @property
    def query_dim(self) -> int:
        """Width of one query head: its part without and its part with rotary position."""
        return self.nope_dim + self.rope_dim

    def parameters(self, hidden: int) -> int:
        """Weights of the down and up projections of queries and of the latent, of o, and of the two latent norms."""
        query = self.heads * self.query_dim
        if self.q_rank is None:
            q = hidden * query
        else:
            q = hidden * self.q_rank + self.q_rank + self.q_rank * query + self.q_rank * self.qkv_bias
        latent = self.kv_rank + self.rope_dim
        kv_down = hidden * latent + self.kv_rank + latent * self.qkv_bias
        kv_up = self.kv_rank * self.heads * (self.nope_dim + self.value_dim)
        indexer = 0 if self.indexer is None else self.indexer.parameters(hidden, self.q_rank or hidden)
        return q + kv_down + kv_up + self.heads * self.value_dim * hidden + hidden * self.qkv_bias + indexer

    def kv_bytes(self, precision: Precision) -> int:
        """Bytes one token leaves: the latent and the rotary key, once for all heads; the indexer's fp8 key if any.

        The indexer caches head_dim fp8 values and one fp32 scale a token (vLLM `DeepseekV32IndexerCache`: 132 bytes).
        """
        indexer = 0 if self.indexer is None else self.indexer.head_dim + 4
        return vector_bytes(self.kv_rank + self.rope_dim, precision) + indexer


Attention = GroupedAttention | LatentAttention | LinearAttention


@dataclass(frozen=True)
class DenseFFN:
    """A feed-forward network of `width`; gated (SwiGLU, GeGLU: three matrices) or plain (two)."""

    width: int
    gated: bool = True
    bias: bool = False

    def parameters(self, hidden: int) -> int:
        """Weights of gate (if any), up and down, and their biases."""
        ups = 2 if self.gated else 1
        return (ups + 1) * hidden * self.width + (ups * self.width + hidden) * self.bias


@dataclass(frozen=True)
class MoE:
    """`experts` gated networks of `width`, of which each token takes `per_token`; and a shared one all tokens take."""

    experts: int
    per_token: int
    width: int
    shared_width: int = 0  # 0: no shared expert; several shared experts are one of their summed width
    shared_gate: bool = False  # a scalar gate on the shared expert (Qwen2-MoE)
    bias: bool = False  # in the experts and the router (GPT-OSS)
    correction_bias: bool = False  # one number an expert steers balance (DeepSeek-V3, GLM-4.5)
    gated: bool = True  # three matrices an expert, the shared one too; False: two (Nemotron)
    # experts read and write vectors of this width, projected for all of them together (Nemotron 3 Super); 0: of hidden
    latent: int = 0

    @property
    def ups(self) -> int:
        """Matrices of an expert that read its input: the gate's, if any, and the other."""
        return 2 if self.gated else 1

    def expert_parameters(self, hidden: int) -> int:
        """Weights of one routed expert."""
        inner = self.latent or hidden
        return (self.ups + 1) * inner * self.width + (self.ups * self.width + inner) * self.bias

    def router_parameters(self, hidden: int) -> int:
        """Weights of the router, and of the shared expert's gate."""
        return self.experts * (hidden + self.bias + self.correction_bias) + hidden * self.shared_gate

    def shared_parameters(self, hidden: int) -> int:
        """Weights of the shared expert, and of the projections to the experts' latent vectors and back."""
        return (self.ups + 1) * hidden * self.shared_width + 2 * hidden * self.latent


FFN = DenseFFN | MoE


@dataclass(frozen=True)
class Layer:
    """One decoder layer. Equal layers are the same kind."""

    attention: Attention
    ffn: FFN | None  # None: the next layer's attention follows at once (Nemotron-H)
    norms: int = 2  # norm vectors of hidden size: 2 before attention and FFN; 4 in Gemma; 1 where both run in parallel


@dataclass(frozen=True)
class Architecture:
    """A decoder, and what of it a serving engine keeps in memory."""

    name: str
    model_type: str
    hidden: int
    vocab: int
    layers: tuple[Layer, ...] = field(repr=False)
    max_context_tokens: int
    tied_embeddings: bool = False
    norm_has_bias: bool = False  # LayerNorm (weight and bias); False: RMSNorm
    learned_positions: int = 0  # rows of a learnt position table (GPT-2, OPT); 0: rotary
    final_norm: bool = True
    lm_head_bias: bool = False
    native_weights: Precision = "bf16"  # what the published checkpoint is stored in
    native_groups: frozenset[ParameterGroup] = LINEAR_GROUPS  # the groups of it that `native_weights` applies to
    encoder_parameters: int = 0  # a vision encoder that the engine loads beside the decoder
    rotary_bytes: int = 0  # the tables of cosines and sines that an engine keeps on every GPU
    # its generation_config.json sets top-p or top-k; None: only its name is known
    samples_truncated: bool | None = None

    @cached_property
    def kinds(self) -> dict[Layer, int]:
        """Each kind of layer with its count, in order of first use."""
        return dict(Counter(self.layers))

    @cached_property
    def parameters_by_group(self) -> dict[ParameterGroup, int]:
        """Weights by group; they sum to `parameters`. A tied lm_head counts once, as the embedding."""
        sums: Counter[ParameterGroup] = Counter()
        for layer, count in self.kinds.items():
            for group, parameters in layer_parameters(layer, self.hidden, self.norm_has_bias).items():
                sums[group] += count * parameters
        sums["embedding"] += (self.vocab + self.learned_positions) * self.hidden
        sums["norms"] += self.final_norm * self.hidden * (1 + self.norm_has_bias)
        sums["lm_head"] += (not self.tied_embeddings) * self.vocab * self.hidden + self.vocab * self.lm_head_bias
        sums["encoder"] += self.encoder_parameters
        return {group: count for group, count in sums.items() if count}

    @property
    def parameters(self) -> int:
        """All weights, as published counts are counted: tied weights once, the vision encoder included."""
        return sum(self.parameters_by_group.values())

    @property
    def active_parameters(self) -> int:
        """Weights one text token takes part in: all of the decoder but the experts it is not routed to."""
        idle = sum(
            count * (layer.ffn.experts - layer.ffn.per_token) * layer.ffn.expert_parameters(self.hidden)
            for layer, count in self.kinds.items()
            if isinstance(layer.ffn, MoE)
        )
        return self.parameters - self.encoder_parameters - idle

    def weight_bits(self, group: ParameterGroup, weights: Precision | None = None) -> float:
        """Bits of one weight of `group` when the model is stored in `weights` (None: as published)."""
        precision = weights or self.native_weights
        groups = self.native_groups if precision == self.native_weights else LINEAR_GROUPS
        return WEIGHT_BITS[precision] if group in groups else 16.0

    def weight_bytes(self, weights: Precision | None = None) -> int:
        """Bytes of all weights when stored in `weights` (None: as published); only linear layers are quantised."""
        return round(sum(n * self.weight_bits(g, weights) / 8 for g, n in self.parameters_by_group.items()))

    @cached_property
    def linear_layers(self) -> list[LinearAttention]:
        """Of the layers that keep a state and no KV, their attention; equal ones as often as they are there."""
        return [layer.attention for layer in self.layers if isinstance(layer.attention, LinearAttention)]

    def state_bytes(self) -> int:
        """Bytes that a request keeps in all layers whose attention keeps a state."""
        return sum(attention.state_bytes() for attention in self.linear_layers)

    def kv_bytes_per_token(self, kv: Precision = "bf16") -> int:
        """Bytes one token leaves in the KV cache of all layers, exactly."""
        return sum(self.kv_bytes_by_kind(kv).values())

    def kv_bytes_by_kind(self, kv: Precision = "bf16") -> dict[str, int]:
        """The same by kind of attention: `GQA full`, `GQA window 1024`, `MLA full` .."""
        split: Counter[str] = Counter()
        for layer, count in self.kinds.items():
            split[reach_name(layer.attention)] += count * layer.attention.kv_bytes(kv)
        return dict(split)


def layer_parameters(layer: Layer, hidden: int, norm_has_bias: bool) -> dict[ParameterGroup, int]:
    """Weights of one layer by group."""
    parts: dict[ParameterGroup, int] = {
        "attention": layer.attention.parameters(hidden),
        "norms": layer.norms * hidden * (1 + norm_has_bias),
    }
    if isinstance(layer.ffn, MoE):
        parts["experts"] = layer.ffn.experts * layer.ffn.expert_parameters(hidden)
        parts["router"] = layer.ffn.router_parameters(hidden)
        parts["shared_experts"] = layer.ffn.shared_parameters(hidden)
    elif layer.ffn is not None:
        parts["dense_ffn"] = layer.ffn.parameters(hidden)
    return parts


def named_kind(attention: Attention) -> str:
    """The kind of an attention in a sentence: MHA, latent, Mamba2 .."""
    return "latent" if isinstance(attention, LatentAttention) else attention.kind


def reach_name(attention: Attention) -> str:
    """The kind of an attention and how far it looks back, for tables: `GQA window 4096`."""
    if isinstance(attention, LinearAttention):
        return f"{attention.kind} state"
    if attention.window_tokens is None:
        return f"{attention.kind} full"
    return f"{attention.kind} {'chunk' if attention.chunked else 'window'} {attention.window_tokens}"
