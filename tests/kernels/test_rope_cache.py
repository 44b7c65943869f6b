"""Rotation and cache write against float64 and torch's own rounding; frequencies against recorded ones."""

import math

import pytest
import torch
from kernel_batches import TOLERANCE, poisoned, random_cache, random_queries, worst

from simkit.kernels.paged_cache import FP8, PagedCache
from simkit.kernels.rope_cache import cache_reference, rope_and_cache, rope_reference
from simkit.kernels.rope_frequencies import RopeScaling, rope_frequencies, rope_table

TOKENS = 5
POSITIONS = torch.tensor([0, 1, 99, 17, 4])
SLOTS = torch.tensor([3, 16 * 2 + 15, 16 * 1, -1, 16 * 1 + 1])  # the fourth is padding


def empty_cache(kv_heads: int, head_dim: int, dtype: torch.dtype) -> PagedCache:
    cache = random_cache([64], kv_heads, head_dim, 16, torch.float32, seed=1)
    pools = [torch.full_like(cache.k, math.nan).to(dtype) for _ in range(2)]
    return cache._replace(k=pools[0], v=pools[1])


def rows(q_heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    heads = (q_heads, kv_heads, kv_heads)
    return tuple(random_queries(TOKENS, count, head_dim, dtype, seed=2 + i) for i, count in enumerate(heads))


def written(pool: torch.Tensor) -> torch.Tensor:
    """What stands at the slots of the tokens that are not padding."""
    slots = SLOTS[SLOTS >= 0]
    return pool.flatten(0, 1)[slots]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("neox", [True, False], ids=["neox", "interleaved"])
@pytest.mark.parametrize(
    ("head_dim", "rotary_dim", "q_heads", "kv_heads"),
    [(64, 64, 2, 2), (80, 32, 6, 2), (96, 96, 17, 1), (256, 128, 3, 3)],
)
def test_rotation_and_write_match_float64(
    dtype: torch.dtype, neox: bool, head_dim: int, rotary_dim: int, q_heads: int, kv_heads: int
) -> None:
    table = rope_table(100, rotary_dim)
    cache = empty_cache(kv_heads, head_dim, dtype)
    q, k, v = rows(q_heads, kv_heads, head_dim, dtype)
    found = rope_and_cache(q, k, v, POSITIONS, SLOTS, cache, table, neox, poisoned(q))
    real = SLOTS >= 0
    assert worst(found, rope_reference(q, POSITIONS, table, neox)) <= TOLERANCE[dtype]
    assert worst(written(cache.k), rope_reference(k, POSITIONS, table, neox)[real]) <= TOLERANCE[dtype]
    assert torch.equal(written(cache.v), v[real]), "values are copied bit by bit"
    assert torch.equal(found[:, :, rotary_dim:], q[:, :, rotary_dim:]), "what is not rotated is kept"
    for pool in (cache.k, cache.v):
        assert int(pool.isfinite().flatten(2).all(2).sum()) == int(real.sum()), "no other slot is written"


@pytest.mark.parametrize("per_head", [False, True], ids=["tensor", "head"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_fp8_caches_get_what_torch_rounds_to(dtype: torch.dtype, per_head: bool) -> None:
    scales = [torch.tensor([0.02, 0.5]) if per_head else torch.tensor([0.07]), torch.tensor([0.001])]
    cache = empty_cache(2, 64, FP8)._replace(k_scale=scales[0], v_scale=scales[1])  # v / scale is beyond 448 at times
    table = rope_table(100, 64)
    q, k, v = rows(4, 2, 64, dtype)
    rope_and_cache(q, k, v, POSITIONS, SLOTS, cache, table)
    real = SLOTS >= 0
    wanted = cache_reference(v[real], scales[1], FP8)
    assert float(wanted.double().abs().max()) == 448.0
    assert torch.equal(written(cache.v).float(), wanted.float())
    # a rotated key may lie on either side of a midpoint in f32 and f64: then one step of e4m3, 2^-3 at most, apart
    keys = rope_reference(k, POSITIONS, table)[real]
    off = written(cache.k).double() - cache_reference(keys, scales[0], FP8).double()
    assert float((off / keys * scales[0][:, None]).abs().max()) <= 2**-3
    assert float((off != 0).double().mean()) < 0.01


def test_fp8_numbers_are_kept_and_what_is_beyond_them_is_clamped() -> None:
    numbers = torch.arange(256, dtype=torch.uint8).view(FP8).float()
    numbers = torch.cat([numbers[numbers.isfinite()], torch.tensor([449.0, -1e30])]).view(-1, 1, 64)
    cache = random_cache([len(numbers)], 1, 64, 16, torch.float32, seed=5)
    cache = cache._replace(k=torch.zeros_like(cache.k).to(FP8), v=torch.zeros_like(cache.v).to(FP8))
    slots = torch.arange(len(numbers))
    rope_and_cache(numbers, numbers, numbers, slots, slots, cache)
    for pool in (cache.k, cache.v):
        assert torch.equal(pool.flatten(0, 1)[slots].float(), numbers.clamp(-448, 448))


def test_a_model_without_rotary_embedding_is_only_written() -> None:
    cache = empty_cache(2, 64, torch.float16)
    q, k, v = rows(4, 2, 64, torch.float16)
    assert rope_and_cache(q, k, v, POSITIONS, SLOTS, cache) is q
    assert torch.equal(written(cache.k), k[SLOTS >= 0])
    assert torch.equal(written(cache.v), v[SLOTS >= 0])


def test_slices_of_a_fused_projection_are_read_in_place() -> None:
    cache, again = empty_cache(2, 64, torch.float32), empty_cache(2, 64, torch.float32)
    table = rope_table(100, 64)
    fused = random_queries(TOKENS, 8, 64, torch.float32, seed=6)
    q, k, v = fused[:, :4], fused[:, 4:6], fused[:, 6:]
    found = rope_and_cache(q, k, v, POSITIONS, SLOTS, cache, table)
    alone = rope_and_cache(q.contiguous(), k.contiguous(), v.contiguous(), POSITIONS, SLOTS, again, table)
    assert torch.equal(found, alone)
    assert torch.equal(written(cache.k), written(again.k))


def test_scores_of_rotated_heads_depend_on_the_distance_only() -> None:
    # what rotary embedding is for (RoFormer, section 3.2.2): q at p and k at t score as q at p + d and k at t + d
    for scaling in (None, RopeScaling("yarn", 4.0, 64, attention_factor=1.0)):
        table = rope_table(10_000, 64, scaling=scaling)
        q, k = random_queries(1, 1, 64, torch.float32, seed=7), random_queries(1, 1, 64, torch.float32, seed=8)
        scores = [
            float(
                (rope_reference(q, torch.tensor([p + 30]), table) * rope_reference(k, torch.tensor([p]), table)).sum()
            )
            for p in (0, 1, 5000, 9969)
        ]
        assert max(scores) - min(scores) < 1e-4


# Pairs 0, 1, a quarter, half, three quarters and the last of the way, in float32, and the attention factor: computed by
# transformers 5.23.0, `modeling_rope_utils.ROPE_INIT_FUNCTIONS`, for the parameters of the models named.
RECORDED = [
    ("llama3 8B", 128, 500_000.0, RopeScaling("llama3", 8.0, 8192), 1.0,
     [1.0, 0.814617217, 0.0376060307, 0.000524846022, 6.64786967e-06, 3.06892588e-07]),
    ("linear", 128, 10_000.0, RopeScaling("linear", 4.0), 1.0,
     [0.25, 0.216491088, 0.0250000004, 0.00249999994, 0.000250000012, 2.88695483e-05]),
    ("deepseek v3", 64, 10_000.0, RopeScaling("yarn", 40.0, 4096), 1.3688879454113936,
     [1.0, 0.749894202, 0.100000001, 0.00550000044, 2.49999994e-05, 3.33380353e-06]),
    ("gpt-oss", 64, 150_000.0, RopeScaling("yarn", 32.0, 4096, truncate=False), 1.3465735902799727,
     [1.0, 0.689044297, 0.0508132726, 0.000456483918, 4.09997847e-06, 3.0235114e-07]),
    ("qwen 2.5", 128, 1_000_000.0, RopeScaling("yarn", 4.0, 32768), 1.138629436111989,
     [1.0, 0.805842221, 0.0316227786, 0.000602941145, 7.90569356e-06, 3.10234441e-07]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("dim", "base", "scaling", "factor", "wanted"), [r[1:] for r in RECORDED], ids=[r[0] for r in RECORDED]
)
def test_frequencies_are_those_recorded(
    dim: int, base: float, scaling: RopeScaling, factor: float, wanted: list[float]
) -> None:
    found, attention = rope_frequencies(dim, base, scaling)
    half = dim // 2
    some = found[[0, 1, half // 4, half // 2, 3 * half // 4, half - 1]]
    assert attention == pytest.approx(factor, rel=1e-12)
    assert torch.allclose(some, torch.tensor(wanted, dtype=torch.float64), rtol=4e-7, atol=0)


def test_a_late_position_keeps_its_angle() -> None:
    table = rope_table(131_072, 128)
    for position in (1, 65_537, 131_071):
        assert float(table[position, 0]) == pytest.approx(math.cos(position), abs=1e-7)
        assert float(table[position, 64]) == pytest.approx(math.sin(position), abs=1e-7)


def test_bad_arguments_are_named() -> None:
    cache = empty_cache(2, 64, torch.float32)
    q, k, v = rows(4, 2, 64, torch.float32)
    table = rope_table(100, 64)
    for change, message in (
        ({"k": k[:, :1]}, r"^k: its shape is \[5, 1, 64\]; \[5, 2, 64\]"),
        ({"v": v.half()}, r"^v: its dtype is torch.float16; torch.float32"),
        ({"positions": POSITIONS.int()}, r"^positions: its dtype is torch.int32"),
        ({"slots": SLOTS[:3]}, r"^slots: its shape is \[3\]"),
        ({"table": rope_table(100, 66)}, r"^table: is of a rotary_dim of 66; even, 2 to 64"),
        ({"table": table.double()}, r"^table: its dtype is torch.float64"),
        ({"cache": cache._replace(v=cache.v.half())}, r"^cache.v: its dtype is torch.float16"),
        ({"out": q}, r"^out: is q's memory"),
        ({"out": q[:, :2]}, r"^out: its shape is \[5, 2, 64\]"),
    ):
        arguments = {"q": q, "k": k, "v": v, "positions": POSITIONS, "slots": SLOTS, "cache": cache, "table": table}
        with pytest.raises(ValueError, match=message):
            rope_and_cache(**{**arguments, **change})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^rotary_dim: is 7"):
        rope_frequencies(7)
    with pytest.raises(ValueError, match=r"^scaling.factor: is 0.5"):
        rope_frequencies(64, scaling=RopeScaling("linear", 0.5))
    with pytest.raises(ValueError, match=r"^scaling.original_tokens: is 0"):
        rope_frequencies(64, scaling=RopeScaling("yarn", 2.0))
