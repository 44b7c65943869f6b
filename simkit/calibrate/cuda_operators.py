"""The operators of a step on a CUDA device, our kernels and torch's GEMMs, as calls on rotating data.

Each builder returns the calls of a rotation: the same work on different weights or different pages, so many that none
is in the L2 cache when its turn comes again. Activations stay the same: in a step the kernel before has just written
them.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from simkit.calibrate.measure import UnmeasurableError
from simkit.calibrate.operator_sizes import AttentionShape
from simkit.calibrate.points import Point, contexts_of
from simkit.kernels.attention_features import AttentionFeatures
from simkit.kernels.cold_timing import Call, sets_for
from simkit.kernels.gated_activation import gated_activation
from simkit.kernels.mixed_attention import mixed_attention
from simkit.kernels.moe_gemm import combine, grouped_gemm, grouped_gemm_config
from simkit.kernels.moe_routing import order_by_expert, route
from simkit.kernels.paged_cache import PagedCache
from simkit.kernels.paged_decode import paged_decode
from simkit.kernels.paged_prefill import paged_prefill
from simkit.kernels.rms_norm import rms_norm
from simkit.kernels.rope_cache import rope_and_cache

TORCH_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp8": torch.float8_e4m3fn}
PAGE_TOKENS = 16
MOST_BYTES_SHARE = 0.5  # of the device's memory, for all tensors of one point
MOST_LAYOUTS = 16
EPS = 1e-5


class CudaCalls(NamedTuple):
    """A rotation, and whose code it runs."""

    rotation: list[Call]
    kernel: str


class CudaRoom(NamedTuple):
    """What builders share."""

    device: torch.device
    dtype: torch.dtype  # of activations
    heads: tuple[AttentionShape, ...]  # whose head sizes elementwise passes over heads have

    def normal(self, *shape: int) -> torch.Tensor:
        """Small random values of the activations' dtype."""
        self.check(shape, self.dtype.itemsize)
        return torch.randn(shape, device=self.device, dtype=torch.bfloat16).mul_(0.05).to(self.dtype)

    def check(self, shape: Sequence[int], itemsize: int) -> None:
        """Raises UnmeasurableError for what does not fit."""
        elements = 1
        for size in shape:
            elements *= size
        limit = MOST_BYTES_SHARE * torch.cuda.get_device_properties(self.device).total_memory
        if elements * itemsize > limit:
            raise UnmeasurableError(f"a tensor of {elements * itemsize >> 20} MiB; {int(limit) >> 20} MiB is the most")

    def sets(self, set_bytes: int) -> int:
        """Data sets to rotate over."""
        return sets_for(set_bytes, self.device)


def cuda_calls(point: Point, room: CudaRoom) -> CudaCalls:
    """The rotation of a point; raises UnmeasurableError for what there is no kernel for."""
    try:
        build = _BUILDERS[point.table]
    except KeyError:
        raise UnmeasurableError(f"{point.table} is not timed on a CUDA device") from None
    return build(point, room)


def _gemm(point: Point, room: CudaRoom) -> CudaCalls:
    dtype = point.text("dtype")
    tokens, n, k = (point.count(name) for name in ("tokens", "n", "k"))
    if TORCH_DTYPES.get(dtype) != room.dtype:
        raise UnmeasurableError(f"GEMM of {dtype} is not timed beside {room.dtype}")
    x = room.normal(tokens, k)
    weights = room.normal(room.sets(n * k * room.dtype.itemsize), n, k)
    out = torch.empty(tokens, n, device=room.device, dtype=room.dtype)
    return CudaCalls([_linear_call(x, weight, out) for weight in weights], f"torch {torch.__version__} linear")


def _linear_call(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> Call:
    turned = weight.t()
    return lambda: torch.mm(x, turned, out=out)


def _caches(room: CudaRoom, shape: AttentionShape, contexts: Sequence[int]) -> list[PagedCache]:
    """Page tables drawn at random from one pool, several sets where one alone would stay in the L2 cache."""
    dtype = TORCH_DTYPES[shape.kv_dtype]
    counts = [-(-context // PAGE_TOKENS) for context in contexts]
    used = sum(counts)
    page_bytes = 2 * PAGE_TOKENS * shape.kv_heads * shape.head_dim * dtype.itemsize
    sets = min(MOST_LAYOUTS, room.sets(used * page_bytes))
    pages = used * sets
    form = (pages, PAGE_TOKENS, shape.kv_heads, shape.head_dim)
    room.check((2, *form), dtype.itemsize)
    k, v = (torch.empty(form, device=room.device, dtype=torch.bfloat16).normal_(0.0, 0.05).to(dtype) for _ in range(2))
    drawn = torch.randperm(pages, device=room.device).to(torch.int32)
    lengths = torch.tensor(contexts, dtype=torch.int32, device=room.device)
    caches = []
    for i in range(sets):
        table = torch.zeros(len(contexts), max(counts), dtype=torch.int32, device=room.device)
        own = drawn[i * used : (i + 1) * used].split(counts)
        for row, part in enumerate(own):
            table[row, : len(part)] = part
        scale = torch.ones(1, device=room.device) if shape.kv_dtype == "fp8" else None
        caches.append(PagedCache(k, v, table, lengths, scale, scale))
    return caches


def _shape(point: Point) -> AttentionShape:
    heads, kv_heads, head_dim, window = (point.count(name) for name in ("heads", "kv_heads", "head_dim", "window"))
    return AttentionShape(heads, kv_heads, head_dim, window, point.text("kv_dtype"))


def _features(shape: AttentionShape) -> AttentionFeatures:
    return AttentionFeatures(window_tokens=shape.window or None)


def _decode(point: Point, room: CudaRoom) -> CudaCalls:
    shape, contexts = _shape(point), contexts_of(point)
    q = room.normal(len(contexts), shape.heads, shape.head_dim)
    out, features, longest = torch.empty_like(q), _features(shape), max(contexts)

    def call(cache: PagedCache) -> Call:
        return lambda: paged_decode(q, cache, longest, out=out, features=features)

    return CudaCalls([call(cache) for cache in _caches(room, shape, contexts)], "simkit paged_decode")


def _prefill(point: Point, room: CudaRoom) -> CudaCalls:
    shape = _shape(point)
    batch, chunk, past = (point.count(name) for name in ("batch", "chunk", "past"))
    q = room.normal(batch * chunk, shape.heads, shape.head_dim)
    starts = torch.arange(0, (batch + 1) * chunk, chunk, dtype=torch.int32, device=room.device)
    out, features = torch.empty_like(q), _features(shape)

    def call(cache: PagedCache) -> Call:
        return lambda: paged_prefill(q, starts, cache, chunk, out=out, features=features)

    caches = _caches(room, shape, [chunk + past] * batch)
    return CudaCalls([call(cache) for cache in caches], "simkit paged_prefill")


def _mixed(point: Point, room: CudaRoom) -> CudaCalls:
    shape = _shape(point)
    chunk, past, batch = (point.count(name) for name in ("chunk", "past", "batch"))
    context = point.count("context_tokens") // batch
    q = room.normal(batch + chunk, shape.heads, shape.head_dim)
    starts = torch.tensor([*range(batch + 1), batch + chunk], dtype=torch.int32, device=room.device)
    out, features = torch.empty_like(q), _features(shape)

    def call(cache: PagedCache) -> Call:
        return lambda: mixed_attention(q, starts, cache, batch, chunk, context, out=out, features=features)

    caches = _caches(room, shape, [*[context] * batch, chunk + past])
    return CudaCalls([call(cache) for cache in caches], "simkit mixed_attention")


def _elementwise(point: Point, room: CudaRoom) -> CudaCalls:
    name, tokens, width = point.text("name"), point.count("tokens"), point.count("width")
    try:
        return _PASSES[name](tokens, width, room)
    except KeyError:
        raise UnmeasurableError(f"elementwise {name} is not timed on a CUDA device") from None


def _embedding(tokens: int, width: int, room: CudaRoom) -> CudaCalls:
    table = room.normal(131_072, width)
    calls: list[Call] = []
    for _ in range(min(MOST_LAYOUTS, room.sets(2 * tokens * width))):
        ids = torch.randint(0, len(table), (tokens,), device=room.device)
        calls.append(lambda ids=ids: torch.nn.functional.embedding(ids, table))  # type: ignore[misc]
    return CudaCalls(calls, "torch embedding")


def _norm(tokens: int, width: int, room: CudaRoom) -> CudaCalls:
    x, residual, weight = room.normal(tokens, width), room.normal(tokens, width), room.normal(width)
    out = torch.empty_like(x)
    return CudaCalls([lambda: rms_norm(x, weight, EPS, residual, out=out)], "simkit rms_norm")


def _head_norm(tokens: int, width: int, room: CudaRoom) -> CudaCalls:
    head_dim = room.heads[0].head_dim
    x, weight = room.normal(tokens, max(1, width // head_dim), head_dim), room.normal(head_dim)
    return CudaCalls([lambda: rms_norm(x, weight, EPS, out=x)], "simkit rms_norm")


def _activation(tokens: int, width: int, room: CudaRoom) -> CudaCalls:
    both = room.normal(tokens, 2 * width)
    out = torch.empty(tokens, width, device=room.device, dtype=room.dtype)
    return CudaCalls([lambda: gated_activation(both, "silu", out)], "simkit gated_activation")


def _route(tokens: int, width: int, room: CudaRoom) -> CudaCalls:
    """The choice of experts; the other half of the pass, their order, is part of the experts' row."""
    scores = room.normal(tokens, width)
    return CudaCalls([lambda: route(scores, min(8, width), "softmax")], "simkit route")


def _rope_kv_write(tokens: int, width: int, room: CudaRoom) -> CudaCalls:
    """Rotation of queries and keys with the write of keys and values, one launch."""
    shape = _heads_of(room, width, lambda heads: heads.heads + 2 * heads.kv_heads)
    return _rope_call(tokens, shape, room, rotate=True, write=True)


def _rope(tokens: int, width: int, room: CudaRoom) -> CudaCalls:
    """The rotation by itself: every slot is padding."""
    shape = _heads_of(room, width, lambda heads: heads.heads + heads.kv_heads)
    return _rope_call(tokens, shape, room, rotate=True, write=False)


def _kv_write(tokens: int, width: int, room: CudaRoom) -> CudaCalls:
    """The write by itself: no rotary table."""
    return _rope_call(tokens, _heads_of(room, width, lambda heads: heads.kv_heads), room, rotate=False, write=True)


def _heads_of(room: CudaRoom, width: int, count: Callable[[AttentionShape], int]) -> AttentionShape:
    for shape in room.heads:
        if count(shape) * shape.head_dim == width:
            return shape
    raise UnmeasurableError(f"no attention of the models has {width} values over its heads")


def _rope_call(tokens: int, shape: AttentionShape, room: CudaRoom, rotate: bool, write: bool) -> CudaCalls:
    q = room.normal(tokens, shape.heads, shape.head_dim)
    k, v = room.normal(tokens, shape.kv_heads, shape.head_dim), room.normal(tokens, shape.kv_heads, shape.head_dim)
    cache = _caches(room, shape, [max(tokens, 4096)])[0]
    positions = torch.arange(tokens, device=room.device)
    slots = torch.randperm(cache.k.shape[0] * PAGE_TOKENS, device=room.device)[:tokens]
    slots = slots if write else torch.full_like(slots, -1)
    table = torch.rand(tokens, shape.head_dim, device=room.device) if rotate else None
    out = torch.empty_like(q) if rotate else None
    return CudaCalls(
        [lambda: rope_and_cache(q, k, v, positions, slots, cache, table, out=out)], "simkit rope_and_cache"
    )


_PASSES: dict[str, Callable[[int, int, CudaRoom], CudaCalls]] = {
    "embedding": _embedding,
    "norm": _norm,
    "qk_norm": _head_norm,
    "activation": _activation,
    "route": _route,
    "rope": _rope,
    "kv_write": _kv_write,
    "rope_kv_write": _rope_kv_write,
}


def _sampling(point: Point, room: CudaRoom) -> CudaCalls:
    logits = room.normal(point.count("rows"), point.count("vocab"))
    return CudaCalls([lambda: logits.argmax(dim=-1)], "torch argmax")


def _moe(point: Point, room: CudaRoom) -> CudaCalls:
    """Order, both grouped products, activation and combination; every expert gets as many tokens as the next."""
    if TORCH_DTYPES.get(point.text("dtype")) != room.dtype:
        raise UnmeasurableError(f"experts of {point.text('dtype')} are not timed beside {room.dtype}")
    tokens, hidden, experts, top_k = (point.count(name) for name in ("tokens", "hidden", "experts", "top_k"))
    width = point.count("width") // point.count("tensor")
    sets = room.sets(3 * experts * width * hidden * room.dtype.itemsize)
    ups, downs = room.normal(sets, experts, 2 * width, hidden), room.normal(sets, experts, hidden, width)
    x = room.normal(tokens, hidden)
    pairs = torch.arange(tokens * top_k, device=room.device).view(tokens, top_k)
    chosen = (pairs % experts)[torch.randperm(tokens, device=room.device)].to(torch.int32).contiguous()
    weights = torch.full((tokens, top_k), 1.0 / top_k, device=room.device)
    config = grouped_gemm_config(chosen.numel(), experts, room.dtype, room.device)

    def call(up: torch.Tensor, down: torch.Tensor) -> Call:
        def run() -> torch.Tensor:
            order = order_by_expert(chosen, experts, config.block_rows)
            inner = gated_activation(grouped_gemm(x, up, order, config, top_k), "silu")
            return combine(grouped_gemm(inner, down, order, config, 1), weights)

        return run

    return CudaCalls([call(up, down) for up, down in zip(ups, downs, strict=True)], "simkit grouped_gemm")


def _copy(point: Point, room: CudaRoom) -> CudaCalls:
    count, direction = point.count("bytes"), point.text("direction")
    host = torch.empty(count, dtype=torch.uint8, pin_memory=True)
    near = torch.empty(count, dtype=torch.uint8, device=room.device)
    if direction == "device_to_device":
        far = torch.empty_like(near)
        return CudaCalls([lambda: far.copy_(near)], "")
    target, source = (near, host) if direction == "host_to_device" else (host, near)
    return CudaCalls([lambda: target.copy_(source, non_blocking=True)], "")


_BUILDERS: dict[str, Callable[[Point, CudaRoom], CudaCalls]] = {
    "gemm": _gemm,
    "attention_decode": _decode,
    "attention_prefill": _prefill,
    "attention_mixed": _mixed,
    "elementwise": _elementwise,
    "sampling": _sampling,
    "moe": _moe,
    "copy": _copy,
}
