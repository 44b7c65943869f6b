"""Rotary position embedding fused with the write of keys and values into the paged KV cache.

Math. Token i at position p = positions[i] has cosines c[j] and sines s[j], j = 0 .. rotary_dim / 2 - 1, of the table's
row p. In every head of q and k each pair (x1, x2) of the first rotary_dim elements becomes

    (x1 c - x2 s, x2 c + x1 s)

where the pair j is elements (j, j + rotary_dim / 2) (NeoX: Llama, Qwen) or (2 j, 2 j + 1) (interleaved: GPT-J,
DeepSeek); elements from rotary_dim on stay. Keys and values go to slot slots[i] = page * page_tokens + offset of the
cache, for fp8 as x / scale, clamped to +-448, the largest e4m3; a negative slot is padding, and writes nothing. f32
throughout, rounded once.

Layout. q [tokens, q_heads, head_dim], k and v [tokens, kv_heads, head_dim] of f32, f16 or bf16; positions and slots
i64[tokens]; table f32[positions, rotary_dim] as `rope_table` makes it; cache as in `paged_cache`. A program has one
token and HEADS heads of q, or of k and v; each element is read once more as its pair's other half, which is then near.

Sources: RoFormer (Su et al., 2021); the partial rotation is GPT-NeoX's; slots are vLLM's `reshape_and_cache`.
"""

import math

import torch
import triton
import triton.language as tl

from simkit.kernels.arguments import FLOATS, check_can_launch, check_tensor
from simkit.kernels.configurations import NAMES, configuration
from simkit.kernels.jit import inlined, jit
from simkit.kernels.paged_cache import FP8, PagedCache, check_cache, scale_stride

FP8_MOST = 448.0  # OCP 8-bit floating point specification, table 1
MOST = tl.constexpr(FP8_MOST)


@inlined
def _turned(  # type: ignore[no-untyped-def]
    heads_at: tl.pointer_type,
    head_ok: tl.tensor,
    turn: tl.pointer_type,
    ROTARY_DIM: tl.constexpr,
    NEOX: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    """Heads [HEADS, BLOCK_DIM] in f32, rotated by the cosines and sines at `turn`."""
    dim = tl.arange(0, BLOCK_DIM)
    rotated = dim < ROTARY_DIM
    ok = head_ok[:, None] & (dim < HEAD_DIM)[None, :]
    x = tl.load(heads_at[:, None] + dim[None, :], mask=ok, other=0.0).to(tl.float32)
    if ROTARY_DIM > 0:
        HALF: tl.constexpr = ROTARY_DIM // 2
        if NEOX:
            pair = dim % HALF
            other = tl.where(dim < HALF, dim + HALF, dim - HALF)
            first = dim < HALF
        else:
            pair = dim // 2
            other = dim ^ 1
            first = dim % 2 == 0
        cos = tl.load(turn + pair, mask=rotated, other=1.0)
        sin = tl.load(turn + HALF + pair, mask=rotated, other=0.0)
        both = head_ok[:, None] & rotated[None, :]
        y = tl.load(heads_at[:, None] + other[None, :], mask=both, other=0.0).to(tl.float32)
        x = x * cos[None, :] + y * tl.where(first, -sin, sin)[None, :]
    return x


@inlined
def _scaled(x: tl.tensor, scale: tl.pointer_type, stride: int, head: tl.tensor, head_ok: tl.tensor):  # type: ignore[no-untyped-def]
    """Heads as an fp8 cache holds them; a cache without scales that is not fp8 takes them as they are."""
    if scale is not None:
        x = x / tl.load(scale + head * stride, mask=head_ok, other=1.0)[:, None]
    return x


@jit
def rope_cache_kernel(
    q: tl.pointer_type,
    k: tl.pointer_type,
    v: tl.pointer_type,
    positions: tl.pointer_type,
    slots: tl.pointer_type,
    table: tl.pointer_type,
    k_scale: tl.pointer_type,
    v_scale: tl.pointer_type,
    q_out: tl.pointer_type,
    k_cache: tl.pointer_type,
    v_cache: tl.pointer_type,
    q_stride_token: int,
    q_stride_head: int,
    k_stride_token: int,
    k_stride_head: int,
    v_stride_token: int,
    v_stride_head: int,
    table_stride: int,
    k_scale_stride: int,
    v_scale_stride: int,
    out_stride_token: int,
    out_stride_head: int,
    cache_stride_page: int,
    cache_stride_token: int,
    cache_stride_head: int,
    Q_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEADS: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    NEOX: tl.constexpr,
    FP8_CACHE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    PAGE_TOKENS: tl.constexpr,
) -> None:
    """One token; HEADS heads of q, or of k and v. Grid (tokens, blocks of q heads if rotated + blocks of kv heads)."""
    token = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    Q_BLOCKS: tl.constexpr = (Q_HEADS + HEADS - 1) // HEADS if ROTARY_DIM > 0 else 0
    dim = tl.arange(0, BLOCK_DIM)
    turn = table
    if ROTARY_DIM > 0:
        turn += tl.load(positions + token) * table_stride
    if block < Q_BLOCKS:
        head = block * HEADS + tl.arange(0, HEADS)
        head_ok = head < Q_HEADS
        q_at = q + token * q_stride_token + head * q_stride_head
        x = _turned(q_at, head_ok, turn, ROTARY_DIM, NEOX, HEAD_DIM, BLOCK_DIM)
        out_at = q_out + token * out_stride_token + head[:, None] * out_stride_head + dim[None, :]
        tl.store(out_at, x.to(q_out.dtype.element_ty), mask=head_ok[:, None] & (dim < HEAD_DIM)[None, :])
    else:
        slot = tl.load(slots + token)
        if slot >= 0:
            head = (block - Q_BLOCKS) * HEADS + tl.arange(0, HEADS)
            head_ok = head < KV_HEADS
            ok = head_ok[:, None] & (dim < HEAD_DIM)[None, :]
            place = slot // PAGE_TOKENS * cache_stride_page + slot % PAGE_TOKENS * cache_stride_token
            at = place + head[:, None] * cache_stride_head + dim[None, :]
            k_at = k + token * k_stride_token + head * k_stride_head
            x = _turned(k_at, head_ok, turn, ROTARY_DIM, NEOX, HEAD_DIM, BLOCK_DIM)
            x = _scaled(x, k_scale, k_scale_stride, head, head_ok)
            v_at = v + token * v_stride_token + head[:, None] * v_stride_head + dim[None, :]
            y = tl.load(v_at, mask=ok, other=0.0).to(tl.float32)
            y = _scaled(y, v_scale, v_scale_stride, head, head_ok)
            if FP8_CACHE:
                x = tl.minimum(tl.maximum(x, -MOST), MOST)
                y = tl.minimum(tl.maximum(y, -MOST), MOST)
            tl.store(k_cache + at, x.to(k_cache.dtype.element_ty), mask=ok)
            tl.store(v_cache + at, y.to(v_cache.dtype.element_ty), mask=ok)


def rope_and_cache(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    cache: PagedCache,
    table: torch.Tensor | None = None,
    neox: bool = True,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Rotate queries and keys, write keys and values to the cache; gives the rotated queries, of q's shape and dtype.

    Args:
        q: [tokens, q_heads, head_dim], f32, f16 or bf16, last axis contiguous.
        k: [tokens, kv_heads, head_dim], of q's dtype.
        v: as k.
        positions: i64[tokens], of the tokens in their sequences: rows of the table, those of padding too.
        slots: i64[tokens], page * page_tokens + offset; negative: not written. No two tokens share a slot.
        cache: written to; its page table and contexts are not looked at.
        table: cosines and sines, see `rope_table`; None: a model without rotary embedding, q is given back as it is.
        neox: whether pairs are half a rotary_dim apart, or neighbours.
        out: where to write rotated queries, other memory than q's; made if None.

    Raises:
        ValueError: naming the argument whose shape, dtype, stride or device is off. Nothing is launched then.
    """
    tokens, q_heads, head_dim = _check_rows(q, k, v, cache)
    check_cache(cache, cache.page_table.shape[0], head_dim, q.dtype, q.device)
    for name, tensor in (("positions", positions), ("slots", slots)):
        check_tensor(name, tensor, (tokens,), (torch.int64,), q.device)
    if table is not None:
        check_tensor("table", table, (None, None), (torch.float32,), q.device)
        if table.shape[1] % 2 or not 2 <= table.shape[1] <= head_dim:
            raise ValueError(f"table: is of a rotary_dim of {table.shape[1]}; even, 2 to {head_dim}, is expected")
    check_can_launch("q", q, rope_cache_kernel)
    if table is None:
        out = q
    else:
        out = torch.empty_like(q, memory_format=torch.contiguous_format) if out is None else out
        check_tensor("out", out, tuple(q.shape), (q.dtype,), q.device)
        if tokens and q_heads and out.data_ptr() == q.data_ptr():
            raise ValueError("out: is q's memory; other memory is expected, as pairs are read by several threads")
    if tokens and q_heads + cache.kv_heads:
        _launch(q, k, v, positions, slots, cache, table, neox, out)
    return out


def _check_rows(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cache: PagedCache) -> tuple[int, int, int]:
    check_tensor("q", q, (None, None, None), FLOATS, q.device)
    tokens, q_heads, head_dim = q.shape
    check_tensor("cache.k", cache.k, (None, None, None, head_dim), (*FLOATS, FP8), q.device)
    for name, tensor in (("k", k), ("v", v)):
        check_tensor(name, tensor, (tokens, cache.kv_heads, head_dim), (q.dtype,), q.device)
    return tokens, q_heads, head_dim


def _launch(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    cache: PagedCache,
    table: torch.Tensor | None,
    neox: bool,
    out: torch.Tensor,
) -> None:
    tokens, q_heads, head_dim = q.shape
    names = {"dtype": NAMES[q.dtype], "cache": NAMES[cache.k.dtype]}
    config = configuration("rope_cache", q.device, **names, head_dim=head_dim)
    heads = config.constants["HEADS"]
    blocks = math.ceil(cache.kv_heads / heads) + (0 if table is None else math.ceil(q_heads / heads))
    rope_cache_kernel[(tokens, blocks)](
        q,
        k,
        v,
        positions,
        slots,
        table,
        cache.k_scale,
        cache.v_scale,
        out,
        cache.k,
        cache.v,
        *q.stride()[:2],
        *k.stride()[:2],
        *v.stride()[:2],
        0 if table is None else table.stride(0),
        scale_stride(cache.k_scale),
        scale_stride(cache.v_scale),
        *out.stride()[:2],
        *cache.k.stride()[:3],
        Q_HEADS=q_heads,
        KV_HEADS=cache.kv_heads,
        HEADS=heads,
        ROTARY_DIM=0 if table is None else table.shape[1],
        NEOX=neox,
        FP8_CACHE=cache.k.dtype == FP8,
        HEAD_DIM=head_dim,
        BLOCK_DIM=max(16, triton.next_power_of_2(head_dim)),
        PAGE_TOKENS=cache.page_tokens,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )


def rope_reference(x: torch.Tensor, positions: torch.Tensor, table: torch.Tensor, neox: bool = True) -> torch.Tensor:
    """Rotated heads in float64, f64[tokens, heads, head_dim]: pairs as complex numbers, each multiplied by its turn.

    Args:
        x: [tokens, heads, head_dim].
        positions: i64[tokens].
        table: cosines and sines, [positions, rotary_dim].
        neox: whether pairs are half a rotary_dim apart, or neighbours.
    """
    rotary_dim = table.shape[1]
    half = rotary_dim // 2
    turn = torch.complex(table[:, :half].double(), table[:, half:].double())[positions][:, None, :]
    kept = x[:, :, rotary_dim:].double()
    pairs = x[:, :, :rotary_dim].double().unflatten(2, (2, half) if neox else (half, 2)).movedim(2 if neox else 3, -1)
    turned = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * turn)
    return torch.cat([turned.movedim(-1, 2 if neox else 3).flatten(2), kept], dim=2)


def cache_reference(x: torch.Tensor, scale: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """Heads as a cache of this dtype holds them, rounded by torch; f64 or any [tokens, kv_heads, head_dim]."""
    if dtype == FP8:
        x = (x.double() / (1.0 if scale is None else scale.double()[:, None])).clamp(-FP8_MOST, FP8_MOST)
    return x.to(dtype)
