"""What is to be calibrated for: models, how they are cut, and the limits of the steps that an engine would run."""

from typing import NamedTuple

import numpy as np

from simkit.calibrate.operator_sizes import DTYPE_BYTES, AttentionShape, MoeShape
from simkit.models.architecture import Architecture, GroupedAttention, MoE
from simkit.models.layout import Layout, kv_bytes_per_token_per_gpu, kv_heads_per_gpu
from simkit.models.operators import Operator, linear_operators, sampling_operators
from simkit.models.precision import Precision

ONE_TOKEN = np.ones(1)


class Scope(NamedTuple):
    """Models and limits. Tokens, requests and contexts are the largest that a step may have."""

    architectures: tuple[Architecture, ...]
    max_tokens: int  # new tokens of a step: max_num_batched_tokens
    max_requests: int  # of a step: max_num_seqs
    max_context: int  # tokens of a request: max_model_len
    kv_tokens: int  # that the KV cache holds
    tensor: tuple[int, ...] = (1,)  # tensor parallel sizes whose shards are timed
    dtype: str = "bf16"  # of weights and activations
    kv_dtype: str = "bf16"
    capture_sizes: tuple[int, ...] = ()  # CUDA-graph sizes; () where nothing is captured
    fused_rope: bool = False  # time rotation and KV write as the one launch that our kernels make of them, too

    @property
    def layouts(self) -> list[tuple[Architecture, Layout]]:
        """Every model in every cut."""
        return [(arch, Layout(tensor=size)) for arch in self.architectures for size in self.tensor]


class Elementwise(NamedTuple):
    """A pass over [tokens, width] and the bytes that it moves a token."""

    name: str
    width: int
    token_bytes: int


_OF_EXPERTS = ("expert_activation", "combine")  # part of the experts' row
# how many bytes a value of the width the operator reads in `models/operators.py`, of 2-byte elements
_READ_PER_VALUE = {
    "embedding": 2,  # a row
    "norm": 4,  # input and residual
    "qk_norm": 2,
    "latent_norm": 2,
    "rope": 2,
    "kv_write": 4,  # a key and a value
    "route": 2,
}


def gemm_shapes(scope: Scope) -> set[tuple[int, int]]:
    """(n, k) of every dense product over the step's tokens."""
    found = set()
    for arch, layout in scope.layouts:
        found |= {_gemm_shape(op) for op in _linear(arch, layout, scope) if op.family == "gemm"}
    return found


def head_shapes(scope: Scope) -> set[tuple[int, int]]:
    """(n, k) of lm_head, over the rows that sample."""
    found = set()
    for arch, layout in scope.layouts:
        found |= {_gemm_shape(op) for op in sampling_operators(arch, layout, ONE_TOKEN) if op.family == "gemm"}
    return found


def _gemm_shape(operator: Operator) -> tuple[int, int]:
    """(n, k) from the counts of one token: activations read and written of 2 bytes."""
    n, k = operator.written_bytes[0] / 2 / operator.launches, operator.read_bytes[0] / 2 / operator.launches
    return round(n), round(k)


def elementwise_passes(scope: Scope) -> set[Elementwise]:
    """Every pass over the step's tokens that is no product."""
    scale = DTYPE_BYTES[scope.dtype] / 2.0
    found = set()
    for arch, layout in scope.layouts:
        for op in _linear(arch, layout, scope):
            if op.family != "elementwise" or op.name in _OF_EXPERTS:
                continue
            read, written = float(op.read_bytes[0]), float(op.written_bytes[0])
            width = written / 2 if op.name == "activation" else read / _READ_PER_VALUE[op.name]
            moved = (read + written + float(op.kv_written_bytes[0])) / op.launches
            found.add(Elementwise(op.name, round(width / op.launches), round(moved * scale)))
    if scope.fused_rope:
        found |= {_rope_kv_write(shape, scale) for shape in attention_shapes(scope)}
    return found


def _rope_kv_write(shape: AttentionShape, scale: float) -> Elementwise:
    """Queries, keys and values read, queries written, keys and values written to the cache."""
    query, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    moved = scale * 2.0 * (2 * query + 2 * kv) + shape.kv_bytes
    return Elementwise("rope_kv_write", query + 2 * kv, round(moved))


def attention_shapes(scope: Scope) -> set[AttentionShape]:
    """Attention of grouped heads; latent attention has kernels of its own that are not timed."""
    found = set()
    for arch, layout in scope.layouts:
        for layer in arch.kinds:
            attention = layer.attention
            if isinstance(attention, GroupedAttention):
                heads = attention.heads // layout.tensor
                kv_heads = kv_heads_per_gpu(attention, layout.tensor)
                window = attention.window_tokens or 0
                found.add(AttentionShape(heads, kv_heads, attention.head_dim, window, scope.kv_dtype))
    return found


def moe_shapes(scope: Scope) -> set[MoeShape]:
    """The routed experts."""
    return {
        MoeShape(arch.hidden, layer.ffn.width, layer.ffn.experts, layer.ffn.per_token, layout.tensor, 1, scope.dtype)
        for arch, layout in scope.layouts
        for layer in arch.kinds
        if isinstance(layer.ffn, MoE)
    }


def vocabularies(scope: Scope) -> set[int]:
    """Of the models."""
    return {arch.vocab for arch in scope.architectures}


def step_bytes(scope: Scope) -> float:
    """What a step reads between two uses of one weight: all weights, and the KV cache of a half-loaded step.

    Half of the most requests with half of the longest context; of the smallest shard of all models.
    """
    scale = DTYPE_BYTES[scope.dtype] / 2.0
    held = scope.max_requests / 2 * scope.max_context / 2
    kv: Precision = "fp8" if scope.kv_dtype == "fp8" else "bf16"
    sums = []
    for arch, layout in scope.layouts:
        operators = [*_linear(arch, layout, scope), *sampling_operators(arch, layout, ONE_TOKEN)]
        weights = sum(float(op.weight_bytes[0]) for op in operators)
        sums.append(scale * (weights + held * kv_bytes_per_token_per_gpu(arch, layout, kv)))
    return min(sums)


def _linear(arch: Architecture, layout: Layout, scope: Scope) -> list[Operator]:
    bf16: Precision = "bf16"
    return linear_operators(arch, layout, ONE_TOKEN, bf16, "fp8" if scope.kv_dtype == "fp8" else bf16)
