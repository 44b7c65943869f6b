"""The calls that `kernels.py` times: our kernel on cold data, and torch's ways of doing the same on data as cold.

A rotation has so many data sets that none is in the L2 cache when its turn comes again (`kernels/cold_timing.py`).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from kernel_points import Point
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import layer_norm as torch_layer_norm
from torch.nn.functional import rms_norm as torch_rms_norm
from torch.nn.functional import scaled_dot_product_attention, silu

from simkit.kernels.attention_features import AttentionFeatures
from simkit.kernels.block_copy import copy_listed_blocks
from simkit.kernels.cold_timing import Call, sets_for
from simkit.kernels.draft_verification import verify_draft
from simkit.kernels.gated_activation import gated_activation
from simkit.kernels.int8_gemm import Int8Weights, int8_gemm
from simkit.kernels.layer_norm import layer_norm
from simkit.kernels.mixed_attention import mixed_attention
from simkit.kernels.mla_decode import LatentCache, mla_decode
from simkit.kernels.moe_gemm import combine, grouped_gemm, grouped_gemm_config
from simkit.kernels.moe_routing import order_by_expert, route
from simkit.kernels.paged_cache import FP8, PagedCache
from simkit.kernels.paged_decode import paged_decode
from simkit.kernels.paged_prefill import paged_prefill
from simkit.kernels.rms_norm import rms_norm
from simkit.kernels.rope_cache import rope_and_cache
from simkit.kernels.rope_frequencies import rope_table
from simkit.kernels.sampling import SamplingParameters, sample

DEVICE = torch.device("cuda")
BF16 = torch.bfloat16
EPS = 1e-5

Way = Callable[[], list[Call]]


class Calls(NamedTuple):
    """Rotations of a point, each made when it is asked for."""

    ours: Way
    torch: dict[str, Way]


def calls_of(point: Point) -> Calls:
    """What to time for a point."""
    size = {name: value for name, value in point.sizes.items() if isinstance(value, int)}
    calls = _BUILDERS[point.kernel](size, point)
    return Calls(calls.ours, {name: calls.torch[name] for name in point.against})


def normal(*shape: int, dtype: torch.dtype = BF16) -> torch.Tensor:
    """Random values."""
    return torch.randn(shape, device=DEVICE, dtype=BF16).to(dtype)


def sets(set_bytes: float) -> range:
    """Data sets to rotate over."""
    return range(sets_for(int(set_bytes), DEVICE))


def caches(contexts: Sequence[int], size: dict[str, int], dtype: torch.dtype) -> list[PagedCache]:
    """Page tables drawn at random from one pool, in as many sets as keep them cold."""
    page = size["page"]
    counts = [-(-context // page) for context in contexts]
    form = (page, size["kv_heads"], size["head_dim"])
    number = sets(2 * sum(counts) * page * size["kv_heads"] * size["head_dim"] * dtype.itemsize)
    pages = sum(counts) * len(number)
    k, v = (normal(pages, *form, dtype=dtype) for _ in range(2))
    drawn = torch.randperm(pages, device=DEVICE).int().reshape(len(number), -1)
    lengths = torch.tensor(contexts, dtype=torch.int32, device=DEVICE)
    one = torch.ones(1, device=DEVICE) if dtype == FP8 else None
    found = []
    for own in drawn:
        table = torch.zeros(len(contexts), max(counts), dtype=torch.int32, device=DEVICE)
        for row, part in enumerate(own.split(counts)):
            table[row, : len(part)] = part
        found.append(PagedCache(k, v, table, lengths, one, one))
    return found


def _decode(size: dict[str, int], point: Point) -> Calls:
    batch, context = size["batch"], size["context"]
    features = AttentionFeatures(window_tokens=size.get("window"))

    def ours() -> list[Call]:
        q = normal(batch, size["q_heads"], size["head_dim"])
        found = caches([context] * batch, size, FP8 if point.sizes["kv"] == "fp8" else BF16)
        out = torch.empty_like(q)
        return [lambda c=c: paged_decode(q, c, context, out=out, features=features) for c in found]  # type: ignore[misc]

    def gather() -> list[Call]:
        q = normal(batch, size["q_heads"], 1, size["head_dim"])

        def call(cache: PagedCache) -> object:
            # the whole pages of every request, as one padded batch: [batch, kv_heads, context, head_dim]
            k, v = (pool[cache.page_table].flatten(1, 2).transpose(1, 2) for pool in (cache.k, cache.v))
            return scaled_dot_product_attention(q, k, v, enable_gqa=True)

        return [lambda c=c: call(c) for c in caches([context] * batch, size, BF16)]  # type: ignore[misc]

    return Calls(
        ours,
        {
            "gather + SDPA": gather,
            "SDPA contiguous": lambda: _sdpa(size, batch, 1, context, False, None),
            "FlexAttention": lambda: _flex(size, batch, 1, context, causal=False),
        },
    )


def _sdpa(
    size: dict[str, int], batch: int, queries: int, keys: int, causal: bool, backend: SDPBackend | None
) -> list[Call]:
    q = normal(batch, size["q_heads"], queries, size["head_dim"])
    shape = (batch, size["kv_heads"], keys, size["head_dim"])
    pairs = [(normal(*shape), normal(*shape)) for _ in sets(4 * batch * keys * size["kv_heads"] * size["head_dim"])]

    def call(k: torch.Tensor, v: torch.Tensor) -> object:
        if backend is None:
            return scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)

    return [lambda k=k, v=v: call(k, v) for k, v in pairs]  # type: ignore[misc]


def _flex(size: dict[str, int], batch: int, queries: int, keys: int, causal: bool) -> list[Call]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    compiled = torch.compile(flex_attention, dynamic=False)
    mask = None
    if causal:
        mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, queries, keys, device="cuda")
    q = normal(batch, size["q_heads"], queries, size["head_dim"])
    k, v = (normal(batch, size["kv_heads"], keys, size["head_dim"]) for _ in range(2))
    return [lambda: compiled(q, k, v, block_mask=mask, enable_gqa=True)]


def _prefill(size: dict[str, int], point: Point) -> Calls:
    batch, chunk, past = size["batch"], size["chunk"], size["past"]

    def ours() -> list[Call]:
        q = normal(batch * chunk, size["q_heads"], size["head_dim"])
        starts = torch.arange(0, (batch + 1) * chunk, chunk, dtype=torch.int32, device=DEVICE)
        out = torch.empty_like(q)
        found = caches([past + chunk] * batch, size, BF16)
        return [lambda c=c: paged_prefill(q, starts, c, chunk, out=out) for c in found]  # type: ignore[misc]

    return Calls(
        ours,
        {
            "SDPA cuDNN": lambda: _sdpa(size, batch, chunk, chunk, True, SDPBackend.CUDNN_ATTENTION),
            "SDPA flash": lambda: _sdpa(size, batch, chunk, chunk, True, SDPBackend.FLASH_ATTENTION),
            "FlexAttention": lambda: _flex(size, batch, chunk, chunk, causal=True),
        },
    )


def _mixed(size: dict[str, int], point: Point) -> Calls:
    def ours() -> list[Call]:
        decodes, chunk = size["decodes"], size["chunk"]
        q = normal(decodes + chunk, size["q_heads"], size["head_dim"])
        starts = torch.tensor([*range(decodes + 1), decodes + chunk], dtype=torch.int32, device=DEVICE)
        out = torch.empty_like(q)
        found = caches([size["context"]] * decodes + [size["past"] + chunk], size, BF16)
        longest = size["context"]
        return [lambda c=c: mixed_attention(q, starts, c, decodes, chunk, longest, out=out) for c in found]  # type: ignore[misc]

    return Calls(ours, {})


def _mla(size: dict[str, int], point: Point) -> Calls:
    def ours() -> list[Call]:
        batch, context, page = size["batch"], size["context"], size["page"]
        q = normal(batch, size["heads"], 576)
        out = torch.empty(batch, size["heads"], 512, device=DEVICE, dtype=BF16)
        pages = batch * -(-context // page)
        lengths = torch.full((batch,), context, dtype=torch.int32, device=DEVICE)
        found = []
        for _ in sets(pages * page * 576 * 2):
            table = torch.randperm(pages, device=DEVICE).int().reshape(batch, -1)
            found.append(LatentCache(normal(pages, page, 576), table, lengths))
        return [lambda c=c: mla_decode(q, c, context, 192**-0.5, out=out) for c in found]  # type: ignore[misc]

    return Calls(ours, {})


def _norm(size: dict[str, int], point: Point) -> Calls:
    shape = (size["tokens"], size["columns"])
    weight, bias = normal(size["columns"]), normal(size["columns"])
    number = sets(8.0 * size["tokens"] * size["columns"])
    layer = point.kernel.startswith("layer")

    def ours() -> list[Call]:
        rows = [(normal(*shape), normal(*shape), torch.empty(shape, device=DEVICE, dtype=BF16)) for _ in number]
        if layer:
            return [lambda x=x, r=r, o=o: layer_norm(x, weight, bias, EPS, r, o) for x, r, o in rows]  # type: ignore[misc]
        return [lambda x=x, r=r, o=o: rms_norm(x, weight, EPS, r, out=o) for x, r, o in rows]  # type: ignore[misc]

    def torchs() -> list[Call]:
        def call(x: torch.Tensor, residual: torch.Tensor) -> object:
            total = residual.add_(x)
            if layer:
                return torch_layer_norm(total, (size["columns"],), weight, bias, EPS)
            return torch_rms_norm(total, (size["columns"],), weight, EPS)

        rows = [(normal(*shape), normal(*shape)) for _ in number]
        return [lambda x=x, r=r: call(x, r) for x, r in rows]  # type: ignore[misc]

    return Calls(ours, {"torch rms_norm": torchs, "torch layer_norm": torchs})


def _activation(size: dict[str, int], point: Point) -> Calls:
    def inputs() -> list[torch.Tensor]:
        number = sets(6.0 * size["tokens"] * size["width"])
        return [normal(size["tokens"], 2 * size["width"]) for _ in number]

    def ours() -> list[Call]:
        out = torch.empty(size["tokens"], size["width"], device=DEVICE, dtype=BF16)
        return [lambda x=x: gated_activation(x, "silu", out) for x in inputs()]  # type: ignore[misc]

    def torchs() -> list[Call]:
        width = size["width"]
        return [lambda x=x: silu(x[:, :width]) * x[:, width:] for x in inputs()]  # type: ignore[misc]

    return Calls(ours, {"torch silu": torchs})


def _rope(size: dict[str, int], point: Point) -> Calls:
    def ours() -> list[Call]:
        tokens, heads, head_dim = size["tokens"], size["q_heads"] + 2 * size["kv_heads"], size["head_dim"]
        table = rope_table(tokens, head_dim).to(DEVICE)
        positions = torch.arange(tokens, device=DEVICE)
        slots = torch.randperm(tokens, device=DEVICE)
        none = torch.zeros(1, 1, dtype=torch.int32, device=DEVICE)
        pages = -(-tokens // 16)
        found: list[Call] = []
        for _ in sets(2.0 * tokens * heads * head_dim):
            qkv = normal(tokens, heads, head_dim)
            q, k, v = qkv.split([size["q_heads"], size["kv_heads"], size["kv_heads"]], dim=1)
            pool = torch.zeros(2, pages, 16, size["kv_heads"], head_dim, device=DEVICE, dtype=BF16)
            cache = PagedCache(pool[0], pool[1], none, none[0])
            out = torch.empty(q.shape, device=DEVICE, dtype=BF16)
            found.append(
                lambda q=q, k=k, v=v, c=cache, o=out: rope_and_cache(q, k, v, positions, slots, c, table, out=o)  # type: ignore[misc]
            )
        return found

    return Calls(ours, {})


def _copy(size: dict[str, int], point: Point) -> Calls:
    blocks, words = size["blocks"], size["block_bytes"] // 2
    source, target = normal(blocks, words), normal(blocks, words)
    order = torch.stack([torch.randperm(blocks), torch.randperm(blocks)], dim=1).to(DEVICE)
    return Calls(
        lambda: [lambda: copy_listed_blocks(source, target, order)],
        {"torch index": lambda: [lambda: target.index_copy_(0, order[:, 1], source[order[:, 0]])]},
    )


def _combine(size: dict[str, int], point: Point) -> Calls:
    def ours() -> list[Call]:
        weights = torch.rand(size["tokens"], size["k"], device=DEVICE)
        number = sets(2.0 * size["tokens"] * size["k"] * size["columns"])
        rows = [normal(size["tokens"] * size["k"], size["columns"]) for _ in number]
        return [lambda z=z: combine(z, weights) for z in rows]  # type: ignore[misc]

    return Calls(ours, {})


def _grouped(size: dict[str, int], point: Point) -> Calls:
    tokens, k, experts = size["tokens"], size["k"], size["experts"]
    number = sets(2.0 * experts * size["n_in"] * size["n_out"])

    def ours() -> list[Call]:
        x = normal(tokens, size["n_in"])
        config = grouped_gemm_config(tokens * k, experts, BF16, DEVICE)
        chosen = route(normal(tokens, experts), k, "softmax").experts
        order = order_by_expert(chosen, experts, config.block_rows)
        weights = [normal(experts, size["n_out"], size["n_in"]) for _ in number]
        out = torch.empty(tokens * k, size["n_out"], device=DEVICE, dtype=BF16)
        return [lambda w=w: grouped_gemm(x, w, order, config, k, out=out) for w in weights]  # type: ignore[misc]

    def torchs() -> list[Call]:
        # rows sorted by expert beforehand, the same number for each
        x = normal(tokens * k, size["n_in"])
        ends = torch.arange(1, experts + 1, device=DEVICE, dtype=torch.int32) * (tokens * k // experts)
        weights = [normal(experts, size["n_out"], size["n_in"]).transpose(1, 2) for _ in number]
        return [lambda w=w: torch._grouped_mm(x, w, offs=ends) for w in weights]  # type: ignore[misc]

    return Calls(ours, {"torch grouped_mm": torchs})


def _int8(size: dict[str, int], point: Point) -> Calls:
    x = normal(size["tokens"], size["n_in"])

    def ours() -> list[Call]:
        scale = torch.rand(size["n_out"], device=DEVICE)
        shape = (size["n_out"], size["n_in"])
        number = sets(size["n_out"] * size["n_in"])
        weights = [torch.randint(-127, 128, shape, device=DEVICE, dtype=torch.int8) for _ in number]
        return [lambda w=w: int8_gemm(x, Int8Weights(w, scale)) for w in weights]  # type: ignore[misc]

    def torchs() -> list[Call]:
        weights = [normal(size["n_out"], size["n_in"]) for _ in sets(2.0 * size["n_out"] * size["n_in"])]
        return [lambda w=w: torch.mm(x, w.T) for w in weights]  # type: ignore[misc]

    return Calls(ours, {"torch bf16 mm": torchs})


def _routing(size: dict[str, int], point: Point) -> Calls:
    logits = normal(size["tokens"], size["experts"], dtype=torch.float32)
    return Calls(
        lambda: [lambda: route(logits, size["k"], "softmax")],
        {"torch softmax + topk": lambda: [lambda: torch.softmax(logits, 1).topk(size["k"])]},
    )


def _order(size: dict[str, int], point: Point) -> Calls:
    experts = torch.randint(0, size["experts"], (size["tokens"], size["k"]), device=DEVICE).int()
    return Calls(
        lambda: [lambda: order_by_expert(experts, size["experts"], 128)],
        {"torch sort": lambda: [lambda: experts.flatten().sort(stable=True)]},
    )


def _sample(size: dict[str, int], point: Point) -> Calls:
    rows, vocab, how = size["rows"], size["vocab"], point.sizes["how"]
    logits = normal(rows, vocab, dtype=torch.float32) * 3
    filtered = how == "top-k, top-p"

    def column(value: float, dtype: torch.dtype) -> torch.Tensor:
        return torch.full((rows,), value, dtype=dtype, device=DEVICE)

    parameters = SamplingParameters(
        temperature=column(0.0 if how == "greedy" else 0.8, torch.float32),
        top_k=column(50 if filtered else 0, torch.int32),
        top_p=column(0.95 if filtered else 1.0, torch.float32),
        min_p=column(0.0, torch.float32),
        seed=torch.arange(rows, device=DEVICE),
        step=column(0, torch.int32),
    )

    def sorted_draw() -> object:
        values, tokens = (logits / 0.8).sort(dim=1, descending=True)
        chances = torch.softmax(values[:, :50], dim=1)
        chances = chances.masked_fill(chances.cumsum(1) - chances >= 0.95, 0.0)
        noise = torch.empty_like(chances).exponential_()
        return tokens.gather(1, (chances / noise).argmax(1, keepdim=True))

    def draw() -> object:
        chances = torch.softmax(logits / 0.8, dim=1)
        return (chances / torch.empty_like(chances).exponential_()).argmax(1)

    return Calls(
        lambda: [lambda: sample(logits, parameters)],
        {
            "torch argmax": lambda: [lambda: logits.argmax(1)],
            "torch multinomial": lambda: [draw],
            "torch sort + multinomial": lambda: [sorted_draw],
        },
    )


def _verify(size: dict[str, int], point: Point) -> Calls:
    requests, drafted, vocab = size["requests"], size["drafted"], size["vocab"]
    target = torch.softmax(normal(requests * (drafted + 1), vocab, dtype=torch.float32), dim=1)
    draft = torch.softmax(normal(requests * drafted, vocab, dtype=torch.float32), dim=1)
    tokens = draft.argmax(1)
    starts = torch.arange(0, (requests + 1) * drafted, drafted, dtype=torch.int32, device=DEVICE)
    seeds, steps = torch.arange(requests, device=DEVICE), torch.zeros(requests, dtype=torch.int32, device=DEVICE)
    return Calls(lambda: [lambda: verify_draft(tokens, starts, target, draft, seeds, steps, drafted)], {})


_BUILDERS: dict[str, Callable[[dict[str, int], Point], Calls]] = {
    "decode": _decode,
    "prefill": _prefill,
    "mixed": _mixed,
    "mla_decode": _mla,
    "rms_norm add": _norm,
    "layer_norm add": _norm,
    "activation": _activation,
    "rope_cache": _rope,
    "block_copy": _copy,
    "combine": _combine,
    "grouped_gemm": _grouped,
    "int8_gemm": _int8,
    "routing": _routing,
    "expert_order": _order,
    "sample": _sample,
    "verify_draft": _verify,
}
