"""The operators of a step in plain torch on a CPU, as calls that can be timed, set up at a point's sizes."""

from collections.abc import Callable

import numpy as np
import torch

from simkit.calibrate.cpu_attention import BLOCK_TOKENS, chunk_part, decode_parts, step_attention
from simkit.calibrate.cpu_memory import Arena
from simkit.calibrate.measure import UnmeasurableError
from simkit.calibrate.points import Point, contexts_of

Call = Callable[[], object]
TORCH_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
HEAD_DIM = 64  # where a table names the width alone
PREPARED_CONTEXT = 512  # tokens of each decode of a step that is prepared
MOST_BYTES = 2 << 30  # of one tensor


def cpu_call(point: Point, arena: Arena) -> Call:
    """The operator as a call without arguments; raises UnmeasurableError for what this CPU path does not run."""
    try:
        build = _BUILDERS[point.table]
    except KeyError:
        raise UnmeasurableError(f"{point.table} is not timed on a CPU") from None
    return build(point, arena)


def _check_dtype(name: str, arena: Arena) -> None:
    if TORCH_DTYPES.get(name) != arena.dtype:
        raise UnmeasurableError(f"{name} is not timed on a CPU beside {arena.dtype}")


def _check_size(elements: int, arena: Arena) -> None:
    if elements * arena.dtype.itemsize > MOST_BYTES:
        raise UnmeasurableError(f"a tensor of {elements * arena.dtype.itemsize >> 20} MiB; 2 GiB is the most")


def _gemm(point: Point, arena: Arena) -> Call:
    _check_dtype(point.text("dtype"), arena)
    tokens, n, k = (point.count(name) for name in ("tokens", "n", "k"))
    _check_size(max(n * k, tokens * n, tokens * k), arena)
    x, weights = arena.one(tokens, k), arena.views(k, n)
    return lambda: x @ next(weights)


def _decode(point: Point, arena: Arena) -> Call:
    return _step_attention(point, arena, contexts_of(point), 0, 0)


def _prefill(point: Point, arena: Arena) -> Call:
    if point.count("batch") != 1:
        raise UnmeasurableError("chunks run one by one on a CPU")
    return _step_attention(point, arena, [], point.count("chunk"), point.count("past"))


def _mixed(point: Point, arena: Arena) -> Call:
    batch = point.count("batch")
    contexts = [point.count("context_tokens") // batch] * batch
    return _step_attention(point, arena, contexts, point.count("chunk"), point.count("past"))


def _step_attention(point: Point, arena: Arena, contexts: list[int], chunk: int, past: int) -> Call:
    heads, kv_heads, head_dim = _attention(point, arena)
    padded = len(contexts) * max(contexts, default=0) * kv_heads * head_dim
    _check_size(max(padded, 2 * heads * chunk * (chunk + past)), arena)
    q = arena.one(len(contexts) + chunk, heads, head_dim)
    attend = step_attention(arena, (kv_heads, head_dim), contexts, chunk, past)
    return lambda: attend(q, torch.empty_like(q))


def _attention(point: Point, arena: Arena) -> tuple[int, int, int]:
    _check_dtype(point.text("kv_dtype"), arena)
    if point.count("window"):
        raise UnmeasurableError("windowed attention is not timed on a CPU")
    return point.count("heads"), point.count("kv_heads"), point.count("head_dim")


def _elementwise(point: Point, arena: Arena) -> Call:
    tokens, width = point.count("tokens"), point.count("width")
    _check_size(2 * tokens * width, arena)
    name = point.text("name")
    if name not in _PASSES:
        raise UnmeasurableError(f"elementwise {name} is not timed on a CPU")
    return _PASSES[name](tokens, width, arena)


def _embedding(tokens: int, width: int, arena: Arena) -> Call:
    table = next(arena.views(max(1024, arena.footprint_bytes // (width * arena.dtype.itemsize)), width))
    ids = torch.randint(0, len(table), (tokens,))
    return lambda: table[ids]


def _norm(tokens: int, width: int, arena: Arena) -> Call:
    """The residual sum and the norm of it."""
    x, y, weight = arena.one(tokens, width), arena.one(tokens, width), arena.one(width)
    return lambda: torch.nn.functional.rms_norm(x + y, (width,), weight, 1e-5)


def _head_norm(tokens: int, width: int, arena: Arena) -> Call:
    x, weight = arena.one(tokens, max(1, width // HEAD_DIM), min(width, HEAD_DIM)), arena.one(min(width, HEAD_DIM))
    return lambda: torch.nn.functional.rms_norm(x, (len(weight),), weight, 1e-5)


def _rope(tokens: int, width: int, arena: Arena) -> Call:
    """Queries and keys are turned one after the other, as in the testbed."""
    heads = max(2, width // HEAD_DIM)
    q, k = (arena.one(tokens, count, HEAD_DIM) for count in (heads - heads // 2, heads // 2))
    cos, sin = arena.one(tokens, 1, HEAD_DIM // 2), arena.one(tokens, 1, HEAD_DIM // 2)

    def turned(x: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

    return lambda: (turned(q), turned(k))


def _kv_write(tokens: int, width: int, arena: Arena) -> Call:
    cache = next(arena.views(2, max(tokens + 1, 4096), width))
    slots = torch.randperm(cache.shape[1])[:tokens]
    k, v = arena.one(tokens, width), arena.one(tokens, width)

    def call() -> None:
        cache[0][slots] = k
        cache[1][slots] = v

    return call


def _activation(tokens: int, width: int, arena: Arena) -> Call:
    both = arena.one(tokens, 2 * width)

    def call() -> torch.Tensor:
        gate, up = both.chunk(2, dim=-1)
        return torch.nn.functional.silu(gate) * up

    return call


_PASSES: dict[str, Callable[[int, int, Arena], Call]] = {
    "embedding": _embedding,
    "norm": _norm,
    "qk_norm": _head_norm,
    "rope": _rope,
    "kv_write": _kv_write,
    "activation": _activation,
}


def _sampling(point: Point, arena: Arena) -> Call:
    rows, vocab = point.count("rows"), point.count("vocab")
    _check_size(rows * vocab, arena)
    logits = arena.one(rows, vocab)
    return lambda: logits.argmax(dim=-1).cpu().numpy()


def _moe(point: Point, arena: Arena) -> Call:
    """Routed experts one after the other, tokens spread evenly."""
    _check_dtype(point.text("dtype"), arena)
    tokens, hidden, experts, top_k = (point.count(name) for name in ("tokens", "hidden", "experts", "top_k"))
    width = point.count("width") // point.count("tensor")
    _check_size(tokens * hidden * top_k, arena)
    x = arena.one(tokens, hidden)
    ups, downs = arena.views(hidden, 2 * width), arena.views(width, hidden)
    chosen = torch.stack([torch.randperm(experts)[:top_k] for _ in range(tokens)])
    weight = arena.one(tokens, 1)

    def call() -> torch.Tensor:
        out = torch.zeros_like(x)
        for expert in chosen.unique().tolist():
            rows = (chosen == expert).any(dim=1).nonzero()[:, 0]
            gate, up = (x[rows] @ next(ups)).chunk(2, dim=-1)
            out.index_add_(0, rows, (torch.nn.functional.silu(gate) * up) @ next(downs) * weight[rows])
        return out

    return call


def _copy(point: Point, arena: Arena) -> Call:
    if point.text("direction") != "device_to_device":
        raise UnmeasurableError("a CPU has no host beside it")
    source = next(arena.views(max(1, point.count("bytes") // arena.dtype.itemsize)))
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def _host(point: Point, arena: Arena) -> Call:
    """One call of torch; or what a step needs before its first operator: ids, positions, slots, angles."""
    if point.text("part") == "launch":
        one = torch.zeros(1)
        return lambda: one.add_(1.0)
    if point.text("part") != "prepare":
        raise UnmeasurableError(f"host {point.text('part')} is not timed on a CPU")
    requests, tokens = point.count("requests"), point.count("tokens")
    each = [tokens // requests + (i < tokens % requests) for i in range(requests)]
    return lambda: _prepared(each, arena.dtype)


def _prepared(each: list[int], dtype: torch.dtype) -> tuple[object, ...]:
    """The inputs of a step that gives request i `each[i]` tokens, as `testbed/inputs.py` and `decoder.py` make them.

    Who brings one token has a context of PREPARED_CONTEXT, the others none.
    """
    ids, positions, slots, tables, parts = [], [], [], [], []
    for new in each:
        before = PREPARED_CONTEXT if new == 1 else 0
        position = np.arange(before, before + new)
        blocks = np.arange(-(-(before + new) // BLOCK_TOKENS), dtype=np.int64)
        ids.append(position % 31)
        positions.append(position)
        slots.append(blocks[position // BLOCK_TOKENS] * BLOCK_TOKENS + position % BLOCK_TOKENS)
        if new == 1:
            tables.append(blocks)
        else:
            parts.append(chunk_part(0, new, before, blocks))
    if tables:
        contexts = np.full(len(tables), PREPARED_CONTEXT + 1, dtype=np.int64)
        parts += decode_parts(np.arange(len(tables)), np.stack(tables), contexts)
    where = torch.from_numpy(np.concatenate(positions))
    frequencies = 10_000.0 ** (-torch.arange(0, HEAD_DIM, 2, dtype=torch.float64) / HEAD_DIM)
    angles = where.to(torch.float64)[:, None, None] * frequencies
    tokens, slot = torch.from_numpy(np.concatenate(ids)), torch.from_numpy(np.concatenate(slots))
    return tokens, slot, angles.cos().to(dtype), angles.sin().to(dtype), parts


_BUILDERS: dict[str, Callable[[Point, Arena], Call]] = {
    "gemm": _gemm,
    "attention_decode": _decode,
    "attention_prefill": _prefill,
    "attention_mixed": _mixed,
    "elementwise": _elementwise,
    "sampling": _sampling,
    "moe": _moe,
    "copy": _copy,
    "host": _host,
}
