"""Layers that keep a state: sizes, blocks and groups against what vLLM prints, and their share of a step's time."""

import numpy as np
import pytest

from simkit.engine.deployment import Deployment, resolve
from simkit.engine.settings import EngineSettings
from simkit.errors import InputError
from simkit.models.catalog import load_model
from simkit.models.device import load_device
from simkit.models.draft import draft_model
from simkit.models.kernel_laws import laws_of
from simkit.models.kv_groups import aligned_block_size, kv_groups
from simkit.models.layout import Layout, check_layout
from simkit.models.linear_attention import LinearAttention
from simkit.models.precision import Precision
from simkit.models.state_time import ASSUMED


def blocks(name: str, kv: Precision = "bf16", tensor: int = 1) -> int:
    return aligned_block_size(load_model(name), Layout(tensor=tensor), kv, 16)


def test_blocks_and_concurrency_are_those_of_a_server_without_prefix_caching() -> None:
    """vLLM issue 40691, Qwen3.5-27B under 0.19: blocks of 784 tokens, 1487 of them; it prints a KV cache of 290,864
    tokens and a concurrency of 33.04 for 32,768 tokens.
    """
    groups = kv_groups(load_model("qwen3.5-27b"))
    assert (groups.full, groups.state) == (1, 3)
    assert blocks("qwen3.5-27b") == 784
    assert 1487 // 4 * 784 == 290_864
    assert round(1487 / groups.blocks_of(32768, 784, 2048), 2) == 33.04


def test_blocks_and_concurrency_are_those_of_a_server_with_prefix_caching() -> None:
    """noonghunna/club-3090 issue 612, Qwen3.6-35B-A3B (the layers of 3.5) under 0.24, KV in fp8: 5.98 GiB are 299
    blocks, and 567,978 tokens that requests of 131,072 hold.
    """
    arch = load_model("qwen3.5-35b-a3b")
    groups = kv_groups(arch, keeps_states=True)
    assert (groups.full, groups.window, groups.kept_states) == (1, 3, True)
    size = blocks("qwen3.5-35b-a3b", "fp8")
    assert size == 2096
    block_bytes = size * 10 * 2 * 2 * 256  # ten layers of a group, keys and values of two heads
    assert int(5.98 * 2**30) // block_bytes == 299
    assert int(299 / groups.blocks_of(131_072, size, 8192) * 131_072) == 567_978


# heads x key_dim x value_dim of each layer in fp32 but for Qwen3-Next's, and (conv - 1) x channels at 16 bits
STATES = {
    "qwen3.5-27b": 48 * (48 * 128 * 128 * 4 + 3 * (2 * 16 * 128 + 48 * 128) * 2),
    "qwen3-next-80b-a3b": 36 * (32 * 128 * 128 * 2 + 3 * (2 * 16 * 128 + 32 * 128) * 2),
    "nemotron-3-nano-30b-a3b": 23 * (64 * 128 * 64 * 4 + 3 * (2 * 8 * 128 + 64 * 64) * 2),
}


@pytest.mark.parametrize("name", STATES)
def test_a_request_keeps_so_many_bytes(name: str) -> None:
    assert load_model(name).state_bytes() == STATES[name]


def test_tensor_parallelism_cuts_heads_and_copies_what_does_not_divide() -> None:
    nano = load_model("nemotron-3-nano-30b-a3b").linear_layers[0]
    shares = {tensor: nano.on_gpu(tensor) for tensor in (2, 8, 16)}
    assert {t: (own.heads, own.key_heads) for t, own in shares.items()} == {2: (32, 4), 8: (8, 1), 16: (4, 1)}
    # copied groups take part of a state that is cut
    assert 16 * shares[16].state_bytes() > 8 * shares[8].state_bytes() == nano.state_bytes()
    with pytest.raises(InputError, match="heads"):
        check_layout(load_model("nemotron-3-nano-30b-a3b"), Layout(tensor=128))


def test_a_gpus_share_has_no_more_state_than_its_heads() -> None:
    arch = load_model("qwen3.5-397b-a17b")
    own = arch.linear_layers[0].on_gpu(8)
    assert (own.heads, own.key_heads, own.channels) == (8, 2, 2 * 2 * 128 + 8 * 128)


def test_blocks_hold_a_layers_state_on_every_gpu() -> None:
    """vLLM: so many tokens, a multiple of the block asked for, that a page is no smaller than a state."""
    for name in ("qwen3.5-27b", "qwen3.5-122b-a10b", "qwen3-next-80b-a3b", "nemotron-3-nano-30b-a3b"):
        arch = load_model(name)
        attention = next(layer.attention for layer in arch.layers if not isinstance(layer.attention, LinearAttention))
        for tensor in (1, 2, 4, 8):
            for kv in ("bf16", "fp8"):
                size = aligned_block_size(arch, Layout(tensor=tensor), kv, 32)
                page = attention.kv_bytes(kv) * max(1, attention.kv_heads // tensor) // attention.kv_heads  # type: ignore[union-attr]
                state = arch.linear_layers[0].on_gpu(tensor).state_bytes()
                assert size % 32 == 0
                assert (size - 32) * page < state <= size * page


def test_time_of_prompts_rises_with_the_longest_and_with_all() -> None:
    """Rounds of the longest prompt one after another, or the multiprocessors' work on all: whichever is more."""
    delta = load_model("qwen3.5-27b").linear_layers[0]
    device = load_device("h100")
    one, many = np.array([4096.0]), np.array([16384.0])
    alone = ASSUMED.ns(delta, device, one, one)
    assert ASSUMED.ns(delta, device, one, many) > alone
    assert ASSUMED.ns(delta, device, one / 4, one) < alone
    # as many tokens of a quarter of the heads leave multiprocessors idle, so the rounds bind
    quarter = delta.on_gpu(4)
    rounds = ASSUMED.start_us + ASSUMED.chunk_us * 4096 / 64
    assert ASSUMED.ns(quarter, device, one, one) == pytest.approx(1e3 * rounds, rel=0.01)
    assert ASSUMED.ns(delta, device, 0 * one, 0 * one) == 0.0
    # Mamba 2 computes its chunks side by side
    mamba = load_model("nemotron-3-nano-30b-a3b").linear_layers[0]
    assert ASSUMED.ns(mamba, device, one, many) == ASSUMED.ns(mamba, device, many, many)


def test_laws_of_devices_say_how_far_they_are_from_the_tables() -> None:
    for name, most in {"h100": 0.06, "h200": 0.06, "b200": 0.06, "l40s": 0.35}.items():
        found = laws_of(load_device(name))
        assert found is not None
        law = found[0].state_prefill
        assert law is not None
        assert law.error <= most


def test_a_step_takes_longer_where_prompts_pass_layers_with_states() -> None:
    spec = resolve(
        Deployment(model="qwen3.5-27b", device="h200", engine=EngineSettings(max_model_len=32768, engine="vllm-0.30"))
    )
    table = spec.tables.state_ns
    assert table.shape[0] > 1
    assert np.all(np.diff(table, axis=0) >= 0)
    assert np.all(np.diff(table, axis=1) >= 0)
    plain = resolve(Deployment(model="qwen3-8b", device="h200"))
    assert plain.tables.state_ns.size == 0


def test_such_a_model_is_no_draft() -> None:
    with pytest.raises(InputError, match=r"qwen3\.5-27b: as a draft.*keep a state"):
        draft_model(load_model("qwen3.5-27b"))
