"""Operator counts against closed forms and brute force."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simkit.models.attention_operators import attended_pairs, decode_attention, prefill_attention
from simkit.models.catalog import known_models, load_model
from simkit.models.huggingface import read_config
from simkit.models.layout import Layout
from simkit.models.operators import (
    Operator,
    linear_operators,
    sampling_operators,
    touched_experts,
)

ONE = Layout()


def total(operators: list[Operator], field: str) -> float:
    return float(sum(getattr(operator, field).sum() for operator in operators))


@pytest.mark.parametrize("name", known_models())
def test_flops_are_twice_the_active_matrices_a_token(name: str) -> None:
    """Kaplan et al. 2020, equation 2.2: 2 N a token, N without embedding; norms, biases and sinks do no product."""
    arch = load_model(name)
    tokens = 37.0
    flops = total(linear_operators(arch, ONE, np.array([tokens])), "flops")
    flops += total(sampling_operators(arch, ONE, np.array([tokens])), "flops")
    groups = arch.parameters_by_group
    matrices = (
        arch.active_parameters - groups["embedding"] - groups["norms"] + arch.tied_embeddings * arch.vocab * arch.hidden
    )
    if arch.learned_positions:
        assert groups["embedding"] > arch.vocab * arch.hidden
    if arch.tied_embeddings:
        matrices -= groups.get("lm_head", 0)
    assert flops == pytest.approx(2 * tokens * matrices, rel=2e-3)


@pytest.mark.parametrize("name", known_models())
def test_a_large_step_reads_every_matrix_once(name: str) -> None:
    arch = load_model(name)
    operators = linear_operators(arch, ONE, np.array([1e6])) + sampling_operators(arch, ONE, np.array([1.0]))
    tables = arch.parameters_by_group["embedding"] * (0 if arch.tied_embeddings else 1)
    positions = arch.learned_positions * arch.hidden
    expected = arch.weight_bytes() - 2 * (tables + positions) - 2 * arch.encoder_parameters
    assert total(operators, "weight_bytes") == pytest.approx(expected, rel=5e-3)


@pytest.mark.parametrize("name", ["llama-3.1-70b", "mixtral-8x7b", "deepseek-v3"])
def test_tensor_parallel_cuts_products_and_rings_the_sums(name: str) -> None:
    arch, tokens = load_model(name), np.array([100.0])
    one, four = linear_operators(arch, ONE, tokens), linear_operators(arch, Layout(tensor=4), tokens)
    assert total(one, "sent_bytes") == 0
    # embedding, every o and every down: 2 (t - 1) / t of [100, hidden] at 2 bytes
    assert total(four, "sent_bytes") == pytest.approx((2 * len(arch.layers) + 1) * 1.5 * 100 * arch.hidden * 2)
    assert total(four, "flops") >= total(one, "flops") / 4
    if name != "deepseek-v3":  # MLA's down projections are copied
        assert total(four, "flops") == pytest.approx(total(one, "flops") / 4, rel=1e-3)


def test_whole_experts_cost_the_same_as_slices() -> None:
    arch, tokens = load_model("mixtral-8x7b"), np.array([1.0, 7.0, 500.0])
    slices = linear_operators(arch, Layout(tensor=4), tokens)
    whole = linear_operators(arch, Layout(tensor=4, expert=4), tokens)
    for field in ("flops", "weight_bytes", "sent_bytes"):
        assert total(whole, field) == pytest.approx(total(slices, field))


def test_pipeline_sends_hidden_states_between_stages() -> None:
    arch = load_model("llama-3.1-8b")
    sends = [op for op in linear_operators(arch, Layout(pipeline=4), np.array([10.0])) if op.family == "send"]
    assert total(sends, "sent_bytes") == 3 * 10 * 2 * 4096 * 2


@given(experts=st.integers(1, 12), data=st.data(), tokens=st.integers(0, 6))
def test_touched_experts_is_the_expectation_of_random_routing(experts: int, data: st.DataObject, tokens: int) -> None:
    per_token = data.draw(st.integers(1, experts))
    assert touched_experts(experts, per_token, np.array(1.0)) == pytest.approx(per_token)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    draws = [
        len({int(e) for _ in range(tokens) for e in rng.choice(experts, per_token, replace=False)}) for _ in range(300)
    ]
    assert float(touched_experts(experts, per_token, np.array(float(tokens)))) == pytest.approx(np.mean(draws), abs=0.6)


@given(chunk=st.integers(0, 40), past=st.integers(0, 60), window=st.none() | st.integers(1, 50))
def test_attended_pairs_count_the_causal_mask(chunk: int, past: int, window: int | None) -> None:
    query, key = np.arange(past, past + chunk)[:, None], np.arange(past + chunk)[None, :]
    mask = (key <= query) & (key > query - (window or past + chunk + 1))
    assert attended_pairs(np.array(float(chunk)), np.array(float(past)), window) == mask.sum()


def test_chunks_of_a_prefill_add_up_to_the_whole() -> None:
    arch = load_model("gemma-3-12b")
    whole = total(prefill_attention(arch, ONE, np.array(3000.0), np.array(0.0)), "flops")
    parts = [total(prefill_attention(arch, ONE, np.array(500.0), np.array(500.0 * i)), "flops") for i in range(6)]
    assert sum(parts) == pytest.approx(whole)


def test_prefill_flops_are_four_heads_dim_half_square() -> None:
    arch, length = load_model("llama-3.1-8b"), 2048
    flops = total(prefill_attention(arch, ONE, np.array(float(length)), np.array(0.0)), "flops")
    assert flops == 32 * 4 * 32 * 128 * length * (length + 1) / 2


@pytest.mark.parametrize("name", ["llama-3.1-8b", "deepseek-v3", "yi-34b"])
def test_decode_reads_the_kv_cache_once(name: str) -> None:
    arch = load_model(name)
    operators = decode_attention(arch, ONE, np.array(8.0), np.array(10_000.0), False)
    assert total(operators, "kv_read_bytes") == 10_000 * arch.kv_bytes_per_token()


def test_window_and_full_layers_are_told_apart() -> None:
    arch = load_model("gpt-oss-20b")
    one, thousand = np.array(1.0), np.array(1000.0)
    full = total(decode_attention(arch, ONE, one, thousand, False), "kv_read_bytes")
    near = total(decode_attention(arch, ONE, one, thousand, True), "kv_read_bytes")
    assert full == near == 1000 * arch.kv_bytes_per_token() / 2


@pytest.mark.parametrize("name", known_models())
def test_kv_written_is_the_cache_of_the_new_tokens(name: str) -> None:
    arch = load_model(name)
    for kv in ("bf16", "fp8"):
        operators = linear_operators(arch, ONE, np.array([11.0]), kv=kv)
        assert total(operators, "kv_written_bytes") == 11 * arch.kv_bytes_per_token(kv)


def test_nothing_to_do_costs_nothing() -> None:
    arch, zero = load_model("deepseek-v3"), np.array([0.0])
    operators = linear_operators(arch, Layout(tensor=2, pipeline=2), zero) + sampling_operators(arch, ONE, zero)
    operators += decode_attention(arch, ONE, zero, zero, False) + prefill_attention(arch, ONE, zero, np.array([9.0]))
    assert total(operators, "flops") == total(operators, "memory_bytes") == total(operators, "sent_bytes") == 0


def test_sparse_indexer_caps_what_decode_attends_to(shared: Path) -> None:
    arch = read_config(shared / "hf_configs" / "glm-5.2-fp8.json")
    short, long = (
        total(decode_attention(arch, ONE, np.array(1.0), np.array(float(length)), False), "kv_read_bytes")
        for length in (2048, 20480)
    )
    assert short == 2048 * 78 * (576 * 2 + 132)
    assert long - short == (20480 - 2048) * 78 * 132
