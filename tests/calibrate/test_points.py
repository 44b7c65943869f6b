"""What is planned to be timed, against shapes known by hand and steps replayed by the engine."""

import numpy as np
import pytest
from scipy.special import erfinv

from simkit.calibrate.emitted_points import held_out_points
from simkit.calibrate.operator_sizes import AttentionShape
from simkit.calibrate.points import Point, contexts_of, point_columns
from simkit.calibrate.points_plan import _inverse_error, decode_point, plan_points, ragged_batches, tile_multiples
from simkit.calibrate.points_scope import (
    Elementwise,
    Scope,
    attention_shapes,
    elementwise_passes,
    gemm_shapes,
    head_shapes,
    moe_shapes,
    step_bytes,
)
from simkit.engine.emitted_steps import Share, emitted_steps
from simkit.engine.settings import EngineSettings
from simkit.models.captures import default_capture_sizes
from simkit.models.catalog import load_model
from simkit.models.steptables import constant_tables
from simkit.workloads.presets import preset
from simkit.workloads.transform import fit_context

CAPTURES = default_capture_sizes(256, 8192)


@pytest.fixture(scope="module")
def llama() -> Scope:
    return Scope((load_model("llama-3.1-8b"),), 8192, 256, 32_768, 600_000, capture_sizes=CAPTURES, fused_rope=True)


@pytest.fixture(scope="module")
def small() -> Scope:
    return Scope((load_model("llama-3.1-8b"),), 512, 16, 2048, 65_536)


@pytest.fixture(scope="module")
def steps(small: Scope) -> list[tuple[Share, ...]]:
    workload = fit_context(preset("azure-conv-2023", requests=60, rate_per_s=40.0), small.max_context, "clip")
    limits = EngineSettings(async_scheduling=False, enable_prefix_caching=False).limits(4096, 2048, 512, 16)
    return list(emitted_steps(workload, limits, constant_tables(512, 16, step_ns=1e6), 4096, 100_000))


def test_shapes_are_those_of_llama_8b(llama: Scope) -> None:
    """Hugging Face's config: hidden 4096, 32 heads of 128, 8 KV heads, FFN 14336, vocabulary 128256."""
    assert gemm_shapes(llama) == {(6144, 4096), (4096, 4096), (28_672, 4096), (4096, 14_336)}
    assert head_shapes(llama) == {(128_256, 4096)}
    assert attention_shapes(llama) == {AttentionShape(32, 8, 128)}
    passes = {name: (width, token_bytes) for name, width, token_bytes in elementwise_passes(llama)}
    # the activation reads gate and up and writes one, 2 bytes each
    assert passes["activation"] == (14_336, 3 * 2 * 14_336)
    assert passes["norm"] == (4096, 4 * 2 * 4096)
    # q, k read and written, v read, k and v written to the cache
    assert passes["rope_kv_write"] == (6144, 2 * (2 * 4096 + 4 * 1024))
    # 8.03 B parameters less the embedding, 2 bytes each, and 128 KiB of KV a token for 128 requests of 16 Ki tokens
    assert step_bytes(llama) == pytest.approx(2 * (8.03e9 - 128_256 * 4096) + 131_072 * 128 * 16_384, rel=1e-3)


def test_a_tensor_cut_divides_heads_and_widths(llama: Scope) -> None:
    cut = llama._replace(tensor=(4,))
    assert gemm_shapes(cut) == {(1536, 4096), (4096, 1024), (7168, 4096), (4096, 3584)}
    assert attention_shapes(cut) == {AttentionShape(8, 2, 128)}


def test_experts_are_planned_as_one() -> None:
    scope = Scope((load_model("mixtral-8x7b"),), 1024, 64, 4096, 65_536)
    (shape,) = moe_shapes(scope)
    assert (shape.hidden, shape.width, shape.experts, shape.top_k) == (4096, 14_336, 8, 2)
    assert not {Elementwise(name, 0, 0).name for name, _, _ in elementwise_passes(scope)} & {"combine", "activation"}
    tables = {planned.point.table for planned in plan_points(scope)}
    assert "moe" in tables


def test_every_captured_size_and_chunk_budget_is_a_gemm_point(llama: Scope) -> None:
    points = {planned.point for planned in plan_points(llama)}
    for tokens in (*CAPTURES, 2048, 4096, 8192):
        assert Point("gemm", ("bf16", tokens, 6144, 4096)) in points
    assert all(Point("gemm", ("bf16", rows, 128_256, 4096)) in points for rows in (1, 8, 64, 256))


def test_plans_hold_each_point_once_within_the_limits(llama: Scope) -> None:
    plan = plan_points(llama)
    assert len({planned.point for planned in plan}) == len(plan)
    assert {planned.level for planned in plan} == {0, 1, 2}
    for point in (planned.point for planned in plan):
        assert len(point.sizes) == len(point_columns(point.table))
        if point.table == "attention_decode":
            contexts = contexts_of(point)
            assert len(contexts) == point.count("batch") <= llama.max_requests
            assert sum(contexts) == point.count("context_tokens") <= llama.kv_tokens
            assert max(contexts) == point.count("longest_tokens") <= llama.max_context
        if point.table == "attention_prefill":
            assert point.count("chunk") + point.count("past") <= llama.max_context
    tables = {planned.point.table for planned in plan}
    assert tables >= {"gemm", "attention_decode", "attention_prefill", "attention_mixed", "elementwise", "host", "copy"}


def test_the_coarse_level_covers_every_operator_by_itself(llama: Scope) -> None:
    coarse = [planned.point for planned in plan_points(llama) if planned.level == 0]
    assert len(coarse) < 250
    assert {point.table for point in coarse} >= {"gemm", "attention_decode", "attention_prefill", "elementwise", "host"}
    shapes = {(point.count("n"), point.count("k")) for point in coarse if point.table == "gemm"}
    assert shapes >= gemm_shapes(llama)
    assert any(point.text("contexts") for point in coarse if point.table == "attention_decode")


def test_tile_multiples_are_every_64_to_1024() -> None:
    sizes = tile_multiples(8192, fine=False)
    assert sizes[:16] == [64 * i for i in range(1, 17)]
    assert sizes[-1] == 8192
    assert all(size % 64 == 0 for size in sizes)
    assert set(sizes) <= set(tile_multiples(8192, fine=True))


def test_ragged_batches_keep_their_mean_and_reach_far() -> None:
    for contexts in ragged_batches(64, 1024, 32_768):
        assert contexts.mean() == pytest.approx(1024, rel=0.02)
        assert contexts.max() > 1.5 * 1024
        assert contexts.min() >= 1


def test_inverse_error_function_matches_scipy() -> None:
    x = np.linspace(-0.999, 0.999, 401)
    assert np.allclose(_inverse_error(x), erfinv(x), rtol=3e-3, atol=1e-12)


def test_a_ragged_point_tells_its_lengths() -> None:
    contexts = np.array([512] * 63 + [65_536])
    point = decode_point(AttentionShape(32, 8, 128), contexts)
    assert point.text("contexts") == "63x512 1x65536"
    assert sorted(contexts_of(point)) == sorted(contexts.tolist())
    even = decode_point(AttentionShape(32, 8, 128), np.full(4, 700))
    assert even.text("contexts") == ""
    assert contexts_of(even) == [700] * 4


def test_replayed_steps_compute_every_token_once(steps: list[tuple[Share, ...]], small: Scope) -> None:
    workload = fit_context(preset("azure-conv-2023", requests=60, rate_per_s=40.0), small.max_context, "clip")
    computed = sum(share.new for step in steps for share in step)
    assert computed == int((workload.prompt_tokens.astype(int) + workload.output_tokens - 1).sum())
    assert sum(share.samples for step in steps for share in step) == int(workload.output_tokens.sum())
    assert all(sum(share.new for share in step) <= 512 and len(step) <= 16 for step in steps)


def test_held_out_points_come_from_steps_and_never_from_the_grid(steps: list[tuple[Share, ...]], small: Scope) -> None:
    grid = {planned.point for planned in plan_points(small)}
    counts = {"gemm": 20, "attention_decode": 20, "attention_prefill": 15, "elementwise": 10}
    drawn = held_out_points(small, steps, grid, counts, seed=3)
    assert not grid & {planned.point for planned in drawn}
    assert all(planned.held_out for planned in drawn)
    found = {table: sum(planned.point.table == table for planned in drawn) for table in counts}
    assert found == counts
    step_sizes = {sum(share.new for share in step) for step in steps}
    rows = {sum(share.samples for share in step) for step in steps}
    decodes = {tuple(sorted(share.before + 1 for share in step if share.new == 1)) for step in steps}
    chunks = {(share.new, share.before) for step in steps for share in step if share.new > 1}
    for point in (planned.point for planned in drawn):
        if point.table == "gemm":
            assert point.count("tokens") in (rows if point.count("n") == 128_256 else step_sizes)
        if point.table == "attention_decode":
            assert tuple(sorted(contexts_of(point))) in decodes
        if point.table == "attention_prefill":
            assert (point.count("chunk"), point.count("past")) in chunks
    assert held_out_points(small, steps, grid, counts, seed=3) == drawn
    assert held_out_points(small, steps, grid, counts, seed=4) != drawn


def test_no_steps_hold_out_nothing(small: Scope) -> None:
    assert held_out_points(small, [], set(), {"gemm": 5}, seed=0) == []
