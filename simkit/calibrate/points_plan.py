"""Which points to time for a scope: the sizes that a scheduler emits, a coarse grid first, then what makes it finer.

Levels, in the order in which they are measured; within one the order is drawn at random:

    0   every operator over its whole range, a factor of 2 to 4 from point to point; half of the held-out points
    1   every capture size, multiples of a tile, the other half of the grids; the other half of the held-out points
    2   the rest of the tile multiples

GEMMs are stairs over tokens, whence the tile multiples (a step up to the next measured multiple of 64 predicts Vidur's
H100 GEMMs to 3.1 %, a smooth curve through powers of two to 9.5 %); decode attention is a surface over batch and
context with ragged batches beside it; prefill attention a surface over chunk and past.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from simkit.calibrate.operator_sizes import AttentionShape, write_contexts
from simkit.calibrate.points import PlannedPoint, Point
from simkit.calibrate.points_scope import (
    Scope,
    attention_shapes,
    elementwise_passes,
    gemm_shapes,
    head_shapes,
    moe_shapes,
    vocabularies,
)

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]

TILE = 64
SMALLEST_CONTEXT = 32
PASTS = (0, 64, 128, 512, 2048, 8192, 32_768, 131_072)
COPY_BYTES = tuple(4096 << (2 * i) for i in range(9))  # 4 KiB to 256 MiB
MOST_CHUNK_DECODES = 64  # requests beside a chunk, in mixed points


def plan_points(scope: Scope, host_copies: bool = True) -> list[PlannedPoint]:
    """The grid of a scope, each point once, at the lowest level that asks for it."""
    lowest: dict[Point, int] = {}
    for planned in _asked(scope, host_copies):
        lowest[planned.point] = min(planned.level, lowest.get(planned.point, planned.level))
    return [PlannedPoint(point, level) for point, level in lowest.items()]


def _asked(scope: Scope, host_copies: bool) -> Iterator[PlannedPoint]:
    yield from _gemm(scope)
    yield from _elementwise(scope)
    for shape in sorted(attention_shapes(scope)):
        yield from _decode(scope, shape)
        yield from _ragged_decode(scope, shape)
        yield from _prefill(scope, shape)
        yield from _mixed(scope, shape)
    yield from _moe(scope)
    yield from _host(scope)
    for bytes_ in COPY_BYTES:
        for direction in ("host_to_device", "device_to_host", "device_to_device") if host_copies else ():
            yield PlannedPoint(Point("copy", (direction, bytes_)), 1)


def token_levels(scope: Scope) -> dict[int, int]:
    """The sizes of steps, and at which level each is measured."""
    most = scope.max_tokens
    levels = dict.fromkeys(tile_multiples(most, fine=True), 2)
    levels |= dict.fromkeys(tile_multiples(most, fine=False), 1)
    # without captured sizes a small step runs at its own size
    small = scope.capture_sizes or (*range(1, 17), *range(20, 33, 4), *range(40, 65, 8))
    levels |= {size: 1 for size in small if size <= most}
    levels |= dict.fromkeys(octaves(1, most), 0)
    return levels


def tile_multiples(most: int, fine: bool) -> list[int]:
    """Multiples of 64 that grow sparser: every one to 1,024 (fine: 2,048), then every 2nd, 4th, .. an octave."""
    sizes, step, size = [], TILE, TILE
    until = TILE * (32 if fine else 16)
    while size <= most:
        sizes.append(size)
        if size >= until:
            step, until = 2 * step, 2 * until
        size += step
    return [*sizes, most]


def octaves(least: int, most: int, step: int = 1) -> list[int]:
    """Powers of 2**step from `least` up, and `most`."""
    sizes = []
    while least < most:
        sizes.append(least)
        least <<= step
    return [*sizes, most]


def _gemm(scope: Scope) -> Iterator[PlannedPoint]:
    for n, k in sorted(gemm_shapes(scope)):
        for tokens, level in token_levels(scope).items():
            yield PlannedPoint(Point("gemm", (scope.dtype, tokens, n, k)), level)
    for n, k in sorted(head_shapes(scope)):
        for rows, level in token_levels(scope._replace(max_tokens=scope.max_requests)).items():
            yield PlannedPoint(Point("gemm", (scope.dtype, rows, n, k)), min(level, 1))


def _elementwise(scope: Scope) -> Iterator[PlannedPoint]:
    sizes = octaves(1, scope.max_tokens, step=2)
    between = octaves(2, scope.max_tokens, step=2)
    for name, width, token_bytes in sorted(elementwise_passes(scope)):
        for tokens in {*sizes, *between}:
            point = Point("elementwise", (name, tokens, width, tokens * token_bytes))
            yield PlannedPoint(point, 0 if tokens in sizes else 1)
    for vocab in sorted(vocabularies(scope)):
        for rows in octaves(1, scope.max_requests):
            yield PlannedPoint(Point("sampling", ("greedy", rows, vocab)), 0)


def decode_point(shape: AttentionShape, contexts: I64) -> Point:
    """One launch for requests of these contexts, i64[batch], the new token of each included."""
    ragged = "" if contexts.min() == contexts.max() else write_contexts(contexts)
    totals = (len(contexts), int(contexts.sum()), int(contexts.max()), ragged)
    return Point("attention_decode", (*_attention(shape), *totals))


def prefill_point(shape: AttentionShape, chunk: int, past: int, batch: int = 1) -> Point:
    """One launch for `batch` chunks."""
    return Point("attention_prefill", (*_attention(shape), batch, chunk, past))


def _attention(shape: AttentionShape) -> tuple[str, int, int, int, int]:
    return shape.kv_dtype, shape.heads, shape.kv_heads, shape.head_dim, shape.window


def _decode(scope: Scope, shape: AttentionShape) -> Iterator[PlannedPoint]:
    batches, contexts = octaves(1, scope.max_requests), octaves(SMALLEST_CONTEXT, scope.max_context)
    for i, batch in enumerate(batches):
        for j, context in enumerate(contexts):
            if batch * context <= scope.kv_tokens:
                every_other = (len(batches) - 1 - i) % 2 == 0 and (len(contexts) - 1 - j) % 2 == 0
                yield PlannedPoint(decode_point(shape, np.full(batch, context)), 0 if every_other else 1)


def _ragged_decode(scope: Scope, shape: AttentionShape) -> Iterator[PlannedPoint]:
    """Batches of unequal contexts: two lengths, one long among short ones, lognormal and Pareto."""
    for batch in octaves(4, scope.max_requests, step=2):
        for mean in octaves(4 * SMALLEST_CONTEXT, scope.max_context // 4, step=2):
            for family, contexts in enumerate(ragged_batches(batch, mean, scope.max_context)):
                if contexts.sum() <= scope.kv_tokens and contexts.min() < contexts.max():
                    yield PlannedPoint(decode_point(shape, contexts), 0 if family % 2 == 0 else 1)


def ragged_batches(batch: int, mean: int, longest: int) -> list[I64]:
    """Four batches of about this mean context, i64[batch], in quantiles: nothing is drawn, so plans repeat."""
    level = (np.arange(batch) + 0.5) / batch
    normal = np.sqrt(2.0) * _inverse_error(2.0 * level - 1.0)
    shapes = [
        np.where(np.arange(batch) < batch // 2, 1.0, 8.0),
        np.where(np.arange(batch) < batch - 1, 1.0, 16.0),
        np.exp(normal),
        (1.0 - level) ** (-1 / 1.5),
    ]
    return [np.clip(np.rint(mean * shape / shape.mean()), 1, longest).astype(np.int64) for shape in shapes]


def _inverse_error(x: F64) -> F64:
    """erf^-1 to 0.2 %: sign(x) sqrt(sqrt(u^2 - ln(1 - x^2) / a) - u), u = 2 / (pi a) + ln(1 - x^2) / 2.

    Winitzki (2008), "A handy approximation for the error function and its inverse".
    """
    a = 0.147
    log = np.log1p(-x * x)
    u = 2.0 / (np.pi * a) + log / 2.0
    value: F64 = np.sign(x) * np.sqrt(np.sqrt(u * u - log / a) - u)
    return value


def _prefill(scope: Scope, shape: AttentionShape) -> Iterator[PlannedPoint]:
    pasts = [past for past in PASTS if past < scope.max_context]
    for chunk in octaves(2, scope.max_tokens):
        for j, past in enumerate(pasts):
            if chunk + past <= scope.max_context:
                coarse = chunk >= 16 and (chunk.bit_length() + j) % 2 == 0
                yield PlannedPoint(prefill_point(shape, chunk, past), 0 if coarse else 1)


def _mixed(scope: Scope, shape: AttentionShape) -> Iterator[PlannedPoint]:
    """A chunk and decodes in one launch."""
    for chunk in octaves(64, scope.max_tokens, step=2):
        for batch in octaves(4, min(MOST_CHUNK_DECODES, scope.max_requests), step=2):
            for context in octaves(4 * SMALLEST_CONTEXT, scope.max_context // 2, step=2):
                if chunk + batch <= scope.max_tokens and batch * context + chunk <= scope.kv_tokens:
                    point = Point("attention_mixed", (*_attention(shape), chunk, 0, batch, batch * context))
                    yield PlannedPoint(point, 1)


def _moe(scope: Scope) -> Iterator[PlannedPoint]:
    for shape in sorted(moe_shapes(scope)):
        sizes = (shape.dtype, shape.hidden, shape.width, shape.experts, shape.top_k, shape.tensor, shape.expert)
        dtype, *rest = sizes
        for tokens, level in token_levels(scope).items():
            coarse = level == 0 or tokens in octaves(1, scope.max_tokens)
            if coarse or level == 1:
                yield PlannedPoint(Point("moe", (dtype, tokens, *rest, "even")), 0 if coarse else 2)


def _host(scope: Scope) -> Iterator[PlannedPoint]:
    """Launches, and what the host prepares for a step."""
    yield PlannedPoint(Point("host", ("launch", 0, 0)), 0)
    if scope.capture_sizes:
        yield PlannedPoint(Point("host", ("graph_launch", 0, 0)), 0)
    for requests in octaves(1, scope.max_requests, step=1):
        yield PlannedPoint(Point("host", ("prepare", requests, requests)), 0)
        if requests <= scope.max_tokens // 2:
            yield PlannedPoint(Point("host", ("prepare", requests, scope.max_tokens)), 1)
