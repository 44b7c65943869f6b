"""Every kernel against its float64 reference on this device, in every dtype it is shipped for."""

import math
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from itertools import accumulate
from typing import NamedTuple

import torch
from device_lost import leave_if_lost
from kernel_report import Check
from stages import Row, Stages

from simkit.kernels.attention_features import PLAIN, AttentionFeatures
from simkit.kernels.block_copy import copy_blocks, copy_blocks_reference
from simkit.kernels.draft_verification import (
    verify_draft,
    verify_draft_reference,
    verify_greedy,
    verify_greedy_reference,
)
from simkit.kernels.gated_activation import GATED_ACTIVATIONS, gated_activation, gated_activation_reference
from simkit.kernels.int8_gemm import int8_gemm, int8_gemm_reference, quantize_int8
from simkit.kernels.layer_norm import layer_norm, layer_norm_reference
from simkit.kernels.mixed_attention import mixed_attention, mixed_attention_reference
from simkit.kernels.mla_decode import LatentCache, mla_decode, mla_decode_reference
from simkit.kernels.moe_gemm import (
    combine,
    combine_reference,
    grouped_gemm,
    grouped_gemm_config,
    grouped_gemm_reference,
)
from simkit.kernels.moe_routing import order_by_expert, order_by_expert_reference, route, route_reference
from simkit.kernels.paged_cache import FP8, PagedCache
from simkit.kernels.paged_decode import paged_decode, paged_decode_reference
from simkit.kernels.paged_prefill import paged_prefill, paged_prefill_reference
from simkit.kernels.random_decoder import new_cache, random_decoder, run_step
from simkit.kernels.rms_norm import rms_norm, rms_norm_reference
from simkit.kernels.rope_cache import rope_and_cache, rope_reference
from simkit.kernels.rope_frequencies import rope_table
from simkit.kernels.sampling import (
    SamplingParameters,
    sample,
    sample_reference,
    sampling_probabilities,
    sampling_probabilities_reference,
)
from simkit.kernels.step_batch import Share, step_batch
from simkit.models.architecture import Architecture, DenseFFN, GroupedAttention, Layer

DEVICE = torch.device("cuda")
# Four roundings of the type, as in tests/kernels; f32 on the chip uses its approximate exponential and root, 2^-22.
ACCEPTED = {torch.float32: 2e-5, torch.float16: 4 * 2**-11, torch.bfloat16: 4 * 2**-8}
HALVES = (torch.float16, torch.bfloat16)
CHECK_S = 60.0  # one of them at most: kernels compile in some seconds, longer is no answer
SHORT = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}

Errors = Iterator[tuple[str, str, float, float]]  # kernel, label, error, accepted


class Sizes(NamedTuple):
    """How large the checks are."""

    heads: tuple[int, int]  # of query and of key and value, of the plain cases
    contexts: list[int]
    chunks: list[int]  # the last tokens of the contexts
    mixed_contexts: list[int]
    mixed_chunks: list[int]  # three of one token first
    latent_contexts: list[int]
    widths: tuple[int, ...]  # of rows
    tokens: tuple[int, ...]  # through experts
    experts: int
    hidden: int
    vocab: int
    text: int  # tokens of the decoder's


FULL = Sizes(
    heads=(32, 8),
    contexts=[0, 1, 15, 16, 17, 300, 1025, 4096],
    chunks=[0, 1, 15, 3, 17, 128, 500, 40],
    mixed_contexts=[9, 1, 4000, 0, 17, 300, 1025, 90],
    mixed_chunks=[1, 1, 1, 0, 17, 128, 500, 40],
    latent_contexts=[1, 64, 65, 1000],
    widths=(100, 4096, 8192),
    tokens=(1, 40, 600),
    experts=64,
    hidden=512,
    vocab=32000,
    text=300,
)


def worst(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest error, relative where |wanted| > 1; infinite where a value is NaN."""
    error = (found.double() - wanted.double()).abs() / wanted.double().abs().clamp(min=1.0)
    return float(error.nan_to_num(nan=math.inf).max()) if error.numel() else 0.0


def normal(*shape: int, dtype: torch.dtype, scale: float = 1.0) -> torch.Tensor:
    """Random values on the device."""
    return (torch.randn(shape, device=DEVICE) * scale).to(dtype)


def cache_of(contexts: list[int], kv_heads: int, head_dim: int, page: int, dtype: torch.dtype) -> PagedCache:
    """Random pages; those that nobody has are NaN."""
    counts = [-(-context // page) for context in contexts]
    pages = sum(counts) + 3
    scale = torch.rand(kv_heads, device=DEVICE) + 0.5 if dtype == FP8 else None
    k, v = (normal(pages, page, kv_heads, head_dim, dtype=torch.float32).to(dtype) for _ in range(2))
    order = torch.randperm(pages, device=DEVICE).int()
    table = torch.zeros(len(contexts), max(counts) + 1, dtype=torch.int32, device=DEVICE)
    for row, own in enumerate(order[: sum(counts)].split(counts)):
        table[row, : len(own)] = own
    if dtype != FP8:
        k[order[-3:].long()] = v[order[-3:].long()] = math.nan
    return PagedCache(k, v, table, torch.tensor(contexts, dtype=torch.int32, device=DEVICE), scale, scale)


def features_of(heads: int) -> AttentionFeatures:
    """All at once."""
    return AttentionFeatures(200, 30.0, torch.rand(heads, device=DEVICE) * 0.1, torch.randn(heads, device=DEVICE))


def starts_of(chunks: list[int]) -> torch.Tensor:
    """i32[requests + 1] on the device."""
    return torch.tensor([0, *accumulate(chunks)], dtype=torch.int32, device=DEVICE)


ATTENTION = [  # query heads, key-value heads (None: the plain cases'), head size, page, dtype, cache, all features
    (None, 128, 16, torch.bfloat16, torch.bfloat16, False),
    (None, 128, 64, torch.float16, torch.float16, False),
    ((8, 8), 64, 16, torch.bfloat16, torch.bfloat16, True),
    ((16, 2), 256, 16, torch.float16, torch.float16, True),
    ((5, 1), 80, 16, torch.bfloat16, torch.bfloat16, False),
    (None, 128, 16, torch.bfloat16, FP8, False),
]


def attention(sizes: Sizes) -> Errors:
    """Decode, prefill and mixed steps."""
    for heads, head_dim, page, dtype, kind, full in ATTENTION:
        q_heads, kv_heads = heads or sizes.heads
        label = f"{q_heads}/{kv_heads}/{head_dim} p{page} {SHORT[dtype]}" + (" fp8 KV" if kind == FP8 else "")
        features, label = (features_of(q_heads), label + " all features") if full else (PLAIN, label)
        accepted, longest = ACCEPTED[dtype], max(sizes.contexts)
        cache = cache_of(sizes.contexts, kv_heads, head_dim, page, kind)
        q = normal(len(sizes.contexts), q_heads, head_dim, dtype=dtype)
        found = paged_decode(q, cache, longest, features=features)
        yield "decode", label, worst(found, paged_decode_reference(q, cache, features=features)), accepted
        q, starts = normal(sum(sizes.chunks), q_heads, head_dim, dtype=dtype), starts_of(sizes.chunks)
        found = paged_prefill(q, starts, cache, max(sizes.chunks), features=features)
        yield "prefill", label, worst(found, paged_prefill_reference(q, starts, cache, features=features)), accepted
        if not full:
            cache = cache_of(sizes.mixed_contexts, kv_heads, head_dim, page, kind)
            q, starts = normal(sum(sizes.mixed_chunks), q_heads, head_dim, dtype=dtype), starts_of(sizes.mixed_chunks)
            found = mixed_attention(q, starts, cache, 3, max(sizes.mixed_chunks), max(sizes.mixed_contexts))
            yield "mixed", label, worst(found, mixed_attention_reference(q, starts, cache)), accepted


def latent(sizes: Sizes) -> Errors:
    """MLA decode."""
    for heads, dtype in ((16, torch.bfloat16), (128, torch.float16)):
        contexts = sizes.latent_contexts
        pages = [-(-context // 64) for context in contexts]
        table = torch.zeros(len(pages), max(pages), dtype=torch.int32, device=DEVICE)
        for row, own in enumerate(torch.randperm(sum(pages), device=DEVICE).int().split(pages)):
            table[row, : len(own)] = own
        lengths = torch.tensor(contexts, dtype=torch.int32, device=DEVICE)
        cache = LatentCache(normal(sum(pages), 64, 576, dtype=dtype), table, lengths)
        q = normal(len(pages), heads, 576, dtype=dtype)
        error = worst(mla_decode(q, cache, max(contexts), 192**-0.5), mla_decode_reference(q, cache, 192**-0.5))
        yield "mla_decode", f"{heads} heads {SHORT[dtype]}", error, ACCEPTED[dtype]


def rows(sizes: Sizes) -> Errors:
    """Norms, activations, rotary positions."""
    for dtype in (*HALVES, torch.float32):
        accepted, name = ACCEPTED[dtype], SHORT[dtype]
        for columns in sizes.widths:
            x, weight, bias = normal(77, columns, dtype=dtype), *(normal(columns, dtype=dtype) for _ in range(2))
            residual = normal(77, columns, dtype=dtype)
            wanted, total = rms_norm_reference(x, weight, 1e-5, residual)
            kept = residual.clone()
            yield "rms_norm", f"{columns} {name}", worst(rms_norm(x, weight, 1e-5, kept), wanted), accepted
            yield "rms_norm sum", f"{columns} {name}", worst(kept, total.to(dtype)), 0.0
            wanted, _ = layer_norm_reference(x, weight, bias, 1e-5, residual)
            error = worst(layer_norm(x, weight, bias, 1e-5, residual), wanted)
            yield "layer_norm", f"{columns} {name}", error, accepted
        gate_up = normal(50, 2 * (sizes.widths[0] + 1), dtype=dtype, scale=4.0)
        for activation in GATED_ACTIVATIONS:
            error = worst(gated_activation(gate_up, activation), gated_activation_reference(gate_up, activation))
            yield "activation", f"{activation} {name}", error, accepted
        q, k, v = (normal(60, heads, 128, dtype=dtype) for heads in (sizes.heads[0], *[sizes.heads[1]] * 2))
        positions, slots = (torch.randperm(4096, device=DEVICE)[:60] for _ in range(2))
        table = rope_table(4096, 128).to(DEVICE)
        cache = cache_of([4096], sizes.heads[1], 128, 16, dtype)
        turned = rope_and_cache(q, k, v, positions, slots, cache, table)
        yield "rope_cache q", name, worst(turned, rope_reference(q, positions, table)), accepted
        kept = cache.k.flatten(0, 1)[slots]
        yield "rope_cache k", name, worst(kept, rope_reference(k, positions, table)), accepted
        yield "rope_cache v", name, worst(cache.v.flatten(0, 1)[slots], v), 0.0


def experts(sizes: Sizes) -> Errors:
    """Routing, the order of experts, the grouped GEMM, the combine, int8 weights."""
    many, hidden = sizes.experts, sizes.hidden
    for tokens in sizes.tokens:
        logits = normal(tokens, many, dtype=torch.float32)
        routes = route(logits, 6, "softmax")
        weights, chosen = route_reference(logits, 6, "softmax")
        yield "routing weights", f"{tokens}", worst(routes.weights, weights), 2e-6
        yield "routing experts", f"{tokens}", worst(routes.experts, chosen), 0.0
        for dtype in HALVES:
            name = f"{tokens} tokens {SHORT[dtype]}"
            config = grouped_gemm_config(tokens * 6, many, dtype, DEVICE)
            order = order_by_expert(routes.experts, many, config.block_rows)
            placed, _ = order_by_expert_reference(routes.experts, config.block_rows)
            yield "expert_order", name, float(order.rows[: len(placed)].tolist() != placed), 0.0
            x = normal(tokens, hidden, dtype=dtype)
            matrices = normal(many, hidden - 100, hidden, dtype=dtype, scale=hidden**-0.5)
            found = grouped_gemm(x, matrices, order, config, 6)
            wanted = grouped_gemm_reference(x, matrices, routes.experts, 6)
            yield "grouped_gemm", name, worst(found, wanted), ACCEPTED[dtype]
            yield (
                "combine",
                name,
                worst(combine(found, routes.weights), combine_reference(found, routes.weights)),
                (ACCEPTED[dtype]),
            )
            quantised = quantize_int8(normal(hidden - 100, hidden, dtype=dtype, scale=hidden**-0.5))
            yield "int8_gemm", name, worst(int8_gemm(x, quantised), int8_gemm_reference(x, quantised)), ACCEPTED[dtype]


def tokens(sizes: Sizes) -> Errors:
    """Sampling and verification; draws must be the reference's own but for ties in f32."""
    rows, vocab = 24, sizes.vocab
    logits = normal(rows, vocab, dtype=torch.float32, scale=3.0)
    floats = {"dtype": torch.float32, "device": DEVICE}
    parameters = SamplingParameters(
        temperature=torch.tensor([0.0, 0.7, 1.3] * 8, **floats),
        top_k=torch.tensor([0, 50, 1000, 1] * 6, dtype=torch.int32, device=DEVICE),
        # with few tokens left, so that none is so near the edge that f32 sums could put it on the other side
        top_p=torch.tensor([1.0, 0.9, 1.0, 0.9] * 6, **floats),
        min_p=torch.tensor([0.0] * 12 + [0.05] * 12, **floats),
        seed=torch.arange(rows, device=DEVICE),
        step=torch.arange(rows, dtype=torch.int32, device=DEVICE),
    )
    wanted = sampling_probabilities_reference(logits, parameters)
    yield "sampling probabilities", "", worst(sampling_probabilities(logits, parameters), wanted), 1e-5
    differ = int((sample(logits, parameters) != sample_reference(logits, parameters)).sum())
    yield "sample", f"{rows} draws", float(differ), 0.0
    lengths = [0, 1, 3, 5, 4]
    starts = starts_of(lengths)
    target = torch.softmax(normal(sum(lengths) + 5, 1000, dtype=torch.float32), dim=1)
    draft = torch.softmax(normal(sum(lengths), 1000, dtype=torch.float32), dim=1)
    drafted = torch.multinomial(draft, 1).flatten()
    seeds, steps = torch.arange(5, device=DEVICE), torch.zeros(5, dtype=torch.int32, device=DEVICE)
    found = verify_draft(drafted, starts, target, draft, seeds, steps, 5)
    rows_found = [row[:count] for row, count in zip(found.tokens.tolist(), found.count.tolist(), strict=True)]
    likeliest = torch.randint(0, 2, (sum(lengths) + 5,), device=DEVICE)
    guesses = torch.randint(0, 2, (sum(lengths),), device=DEVICE)
    greedy = verify_greedy(guesses, starts, likeliest, 5)
    rows_greedy = [row[:count] for row, count in zip(greedy.tokens.tolist(), greedy.count.tolist(), strict=True)]
    wanted_greedy = verify_greedy_reference(guesses, starts, likeliest)
    yield "verify_greedy", "5 requests", float(rows_greedy != wanted_greedy), 0.0
    host = [tensor.cpu() for tensor in (drafted, starts, target, draft, seeds, steps)]
    yield "verify_draft", "5 requests", float(rows_found != verify_draft_reference(*host)), 0.0


def blocks(sizes: Sizes) -> Errors:
    """Copies within the device, to the host and back."""
    pool = normal(20, 16, 8, 128, dtype=torch.bfloat16)
    pairs = torch.tensor([[0, 9], [1, 10], [5, 3]])
    wanted = copy_blocks_reference(pool, pool, pairs)
    copy_blocks(pool, pool, pairs)
    yield "block_copy", "on the device", float(not torch.equal(pool, wanted)), 0.0
    host = torch.zeros(20, 16, 8, 128, dtype=torch.bfloat16, pin_memory=torch.cuda.is_available())
    copy_blocks(pool, host, pairs)
    again = torch.zeros_like(pool)
    copy_blocks(host, again, pairs.flip(1))
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    yield "block_copy", "to the host and back", float(not torch.equal(again[[0, 1, 5]], pool[[0, 1, 5]])), 0.0


def decoder(sizes: Sizes) -> Errors:
    """A decoder's logits after chunks and decodes against one pass."""
    layer = Layer(GroupedAttention(*sizes.heads, 128), DenseFFN(2 * sizes.hidden))
    form = Architecture("small", "llama", sizes.hidden, 1000, (layer, layer), 4096)
    for dtype in HALVES:
        model = random_decoder(form, dtype=dtype, device=DEVICE)
        caches = new_cache(model, 80, 16)
        text = torch.randint(0, 1000, (sizes.text,)).tolist()
        whole = run_step(model, caches, step_batch([Share(text, 0, range(20), True)], 16, DEVICE))
        part = (sizes.text - 4) // 8
        pages, cut, past = list(range(20, 40)), [sizes.text - 4 - 7 * part, *[part] * 7, 1, 1, 1, 1], 0
        logits = whole
        for tokens_now in cut:
            share = Share(text[past : past + tokens_now], past, pages, True)
            logits = run_step(model, caches, step_batch([share], 16, DEVICE))
            past += tokens_now
        accepted = 20 * ACCEPTED[dtype] / 4 * float(whole.float().std())
        yield (
            "decoder",
            f"chunks and decodes as one pass, {SHORT[dtype]}",
            float((logits - whole).abs().max()),
            accepted,
        )


GROUPS: tuple[Callable[[Sizes], Errors], ...] = (attention, latent, rows, experts, tokens, blocks, decoder)


def checked(group: Callable[[Sizes], Errors], sizes: Sizes) -> Iterator[Row]:
    """The rows of a group's checks, the last of them the reason where it breaks off."""
    torch.manual_seed(0)
    try:
        yield from map(list, group(sizes))
    except Exception as error:  # whatever a kernel does on a new device: the report must still be written
        traceback.print_exc()
        yield [group.__name__, "broke off", math.inf, 0.0, f"{type(error).__name__}: {error}"[:300]]


def all_checks(
    sizes: Sizes = FULL, on_group: Callable[[list[Check]], object] | None = None, stages: Stages | None = None
) -> list[Check]:
    """Every check; a group that breaks off, or hangs, is a failed check of its own, with the reason.

    `on_group` is given what there is after each group. Each check may take CHECK_S where `stages` are watched.
    """
    stages = stages or Stages()
    found: list[Check] = []
    for group in GROUPS:
        name = group.__name__
        rows, cut = stages.run(f"checks: {name}", CHECK_S, partial(checked, group, sizes))
        found += [Check(*row) for row in rows]
        if cut:
            found.append(Check(name, "cut short, with what follows in its group", math.inf, 0.0, cut))
        if on_group is not None:
            on_group(found)
        leave_if_lost()
    return found
