"""How layers are dealt to KV cache groups, against what vLLM's own functions return.

The figures are the output of vLLM's get_kv_cache_groups, get_kv_cache_config_from_groups (40 GiB for KV, blocks of 16,
bf16) and get_max_concurrency_for_kv_cache_config, called in the wheels of 0.16.0, 0.18.1, 0.22.1, 0.26.0 and 0.33.0.
"""

from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from simkit.engine.deployment import Deployment, ReplicaSpec, resolve, with_whole_contexts
from simkit.engine.dialect import dialect_of
from simkit.engine.settings import EngineSettings, in_flight_tokens
from simkit.errors import InputError
from simkit.models.architecture import Architecture, GroupedAttention
from simkit.models.catalog import load_model
from simkit.models.device import load_device
from simkit.models.kv_groups import PLAIN, KvGroups, block_token_bytes, kv_groups, longest_held
from simkit.models.layout import Layout
from simkit.models.memory import MemoryPlan, plan_memory

AVAILABLE_BYTES = 40 << 30
LONG, SHORT = (131072, 8192, 2), (8192, 2048, 1)  # max_model_len, max_num_batched_tokens, batches in flight

# model, minor version, (length, step, depth), groups in order, blocks, max_concurrency
REAL = [
    ("gemma-3-27b", 22, LONG, "wwwwwwF", 32768, 2.8117384588982324),
    ("gemma-3-27b", 26, LONG, "wwwwwwF", 32768, 2.22517995382317),
    ("gemma-3-27b", 33, SHORT, "wwwwwwF", 32768, 19.621556886227545),
    ("gemma-3-4b", 16, LONG, "wwwwwwF", 131072, 11.24695383559293),
    ("gemma-3-4b", 33, LONG, "wwwwwwF", 131072, 8.90071981529268),
    ("gemma-2-9b", 33, (8192, 8192, 2), "wF", 15603, 15.222439024390244),
    ("gemma-2-9b", 33, SHORT, "wF", 15603, 17.39464882943144),
    ("gpt-oss-120b", 16, LONG, "wF", 72817, 8.357282221967175),
    ("gpt-oss-120b", 33, LONG, "wF", 72817, 7.893441734417344),
    ("gpt-oss-120b", 33, SHORT, "wF", 72817, 112.19876733436055),
    ("llama-4-scout", 22, LONG, "wwwF", 54613, 4.848455255681818),
    ("llama-4-scout", 33, LONG, "wwwF", 54613, 4.266640625),
    ("llama-4-scout", 33, SHORT, "wwwF", 54613, 26.66650390625),
    ("phi-3-mini", 33, (4096, 8192, 2), "w", 6826, 26.560311284046694),
    ("phi-3-mini", 33, (4096, 2048, 1), "w", 6826, 26.560311284046694),
]


def in_order(groups: KvGroups) -> str:
    parts = ["w" * groups.window, "F" * groups.full]
    return "".join(parts if groups.windows_first else reversed(parts))


@pytest.mark.parametrize(("model", "minor", "sizes", "order", "blocks", "concurrency"), REAL)
def test_groups_blocks_and_concurrency_are_those_of_vllm(
    model: str, minor: int, sizes: tuple[int, int, int], order: str, blocks: int, concurrency: float
) -> None:
    dialect, (longest, step, depth) = dialect_of(f"vllm-0.{minor}"), sizes
    arch = load_model(model)
    groups = kv_groups(arch, dialect.padding_ratio)
    assert in_order(groups) == order
    (token_bytes,) = block_token_bytes(arch, groups, Layout(), "bf16")
    assert AVAILABLE_BYTES // (16 * token_bytes) == blocks
    assert blocks / groups.blocks_of(longest, 16, in_flight_tokens(dialect, step, depth)) == concurrency


def of_kinds(windowed: list[bool]) -> Architecture:
    """A model whose layers see a window of 512 tokens or everything."""
    base = load_model("llama-3.1-8b")
    layer = base.layers[0]
    assert isinstance(layer.attention, GroupedAttention)
    narrow = replace(layer, attention=replace(layer.attention, window_tokens=512))
    return replace(base, layers=tuple(narrow if here else layer for here in windowed))


def test_a_few_layers_more_of_a_kind_are_padded_by_the_rule_of_the_version() -> None:
    """9 layers with windows and 7 without: vLLM 0.16 makes groups of 7, 0.18 and later of 9."""
    arch = of_kinds([True] * 9 + [False] * 7)
    assert in_order(kv_groups(arch, dialect_of("vllm-0.16").padding_ratio)) == "wwF"
    assert in_order(kv_groups(arch, dialect_of("vllm-0.18").padding_ratio)) == "wF"
    assert in_order(kv_groups(of_kinds([layer % 2 == 1 for layer in range(25)]), 1.25)) == "Fw"


def test_what_is_not_modelled_is_charged_in_full() -> None:
    two = of_kinds([True, False])
    attention = two.layers[0].attention
    assert isinstance(attention, GroupedAttention)
    other = replace(two.layers[0], attention=replace(attention, window_tokens=256))
    small = replace(two.layers[1], attention=replace(attention, window_tokens=None, kv_heads=1))
    assert kv_groups(replace(two, layers=(*two.layers, other))) == PLAIN
    assert kv_groups(replace(two, layers=(two.layers[0], small))) == PLAIN
    assert kv_groups(load_model("llama-3.1-8b")) == kv_groups(load_model("deepseek-v3")) == PLAIN


def test_each_stage_of_a_pipeline_has_its_share_of_every_group() -> None:
    """GPT-OSS on two stages: 18 layers each, 9 of a kind: half of the 18 layers of a group."""
    arch = load_model("gpt-oss-120b")
    whole = block_token_bytes(arch, kv_groups(arch), Layout(), "bf16")
    halves = block_token_bytes(arch, kv_groups(arch), Layout(pipeline=2), "bf16")
    assert halves == [whole[0] // 2] * 2


def test_the_longest_request_is_found_by_trying_all() -> None:
    groups = KvGroups(full=1, window=3, window_tokens=100)
    for blocks in range(0, 200, 7):
        fitting = [tokens for tokens in range(1, 600) if groups.blocks_of(tokens, 16, 64) <= blocks]
        assert longest_held(blocks, groups, 16, 64, 599) == max(fitting, default=0)


def test_the_least_blocks_are_no_more_than_may_be_needed() -> None:
    for groups in (PLAIN, KvGroups(1, 2, window_tokens=100), KvGroups(0, 1, window_tokens=64, chunked=True)):
        tokens = np.arange(1, 1000, dtype=np.float64)
        least = groups.least_blocks(tokens, 16)
        assert all(least[i] <= groups.blocks_of(i + 1, 16, 1) for i in range(len(tokens)))


def spec(**engine: object) -> ReplicaSpec:
    settings = EngineSettings.model_validate({"max_model_len": 32768, **engine})
    return resolve(Deployment(model="gpt-oss-120b", device="h200", engine=settings))


def test_whole_contexts_are_kept_where_vllm_or_another_engine_keeps_them() -> None:
    assert spec().limits.window_groups == 1
    for other in ({"disable_hybrid_kv_cache_manager": True}, {"discipline": "sglang"}, {"discipline": "vllm-v0"}):
        plain = spec(**other)
        assert plain.limits.window_groups == 0
        assert plain.kv_tokens == plain.num_blocks * 16 == plain.memory.kv_tokens


def test_moved_kv_is_whole() -> None:
    assert with_whole_contexts(spec(), resolve).num_blocks == spec(disable_hybrid_kv_cache_manager=True).num_blocks
    with pytest.raises(InputError, match="moved"):
        with_whole_contexts(spec(disable_hybrid_kv_cache_manager=False), resolve)


def test_the_kv_cache_is_as_large_as_vllm_prints_it() -> None:
    replica = spec()
    concurrency = replica.num_blocks / replica.blocks_of(32768)
    assert replica.memory.max_concurrency == concurrency
    assert replica.kv_tokens == replica.memory.kv_tokens == int(concurrency * 32768)
    assert replica.num_blocks == 2 * spec(disable_hybrid_kv_cache_manager=True).num_blocks


def test_what_does_not_fit_says_how_long_a_context_would() -> None:
    arch = load_model("gemma-3-27b")

    def plan(longest: int) -> MemoryPlan:
        groups = kv_groups(arch)
        return plan_memory(arch, load_device("h100"), groups=groups, max_model_len=longest, in_flight_tokens=32768)

    with pytest.raises(InputError, match=r"less than one request of 131072.* max_model_len (\d+);") as caught:
        plan(131072)
    longest = int(str(caught.value).split("max_model_len ")[1].split(";")[0])
    plan(longest)
    with pytest.raises(InputError):
        plan(longest + 1)


def test_a_version_that_admits_whole_contexts_only_needs_room_for_one_in_every_group() -> None:
    """vLLM 0.19 asks admission for the whole context in windows' groups too: a longer one would wait for ever."""
    blocks = 2 * 2048 + 1  # of a context of 32768 tokens in both groups
    spec(engine="vllm-0.19", num_gpu_blocks_override=1 + blocks + 1)
    with pytest.raises(InputError, match="max_model_len"):
        spec(engine="vllm-0.19", num_gpu_blocks_override=blocks - 100)
    spec(engine="vllm-0.20", num_gpu_blocks_override=blocks - 100)


def test_a_discipline_of_the_users_has_room_for_a_whole_context_in_every_group() -> None:
    """It may set memory aside for all of a request before it admits it, and would wait for ever where it cannot."""
    own = {"discipline": "experiments/own_discipline/decode_first.py"}
    blocks = 2 * 2048  # of a context of 32768 tokens in both groups
    spec(**own, num_gpu_blocks_override=2 + blocks)
    with pytest.raises(InputError, match="max_model_len"):
        spec(**own, num_gpu_blocks_override=blocks - 100)


def test_windows_cannot_be_kept_under_a_discipline_that_keeps_whole_contexts() -> None:
    for discipline in ("sglang", "vllm-v0", "sarathi", "orca", "static"):
        with pytest.raises(InputError, match=f"disable_hybrid_kv_cache_manager=false: discipline {discipline} keeps"):
            spec(discipline=discipline, disable_hybrid_kv_cache_manager=False)


def test_groups_that_are_not_modelled_cannot_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    two = of_kinds([True, False])
    attention = two.layers[0].attention
    assert isinstance(attention, GroupedAttention)
    wider = replace(two.layers[0], attention=replace(attention, window_tokens=1024))
    uneven = replace(two, layers=(two.layers[0], wider, two.layers[1]) * 4)

    def of(arch: Architecture, **engine: object) -> ReplicaSpec:
        monkeypatch.setattr("simkit.engine.deployment.load_model", lambda _: arch)
        return resolve(Deployment(model="any", device="h100", engine=EngineSettings.model_validate(engine)))

    with pytest.raises(InputError, match=r"manager=false: the groups that vLLM .* not modelled .* leave it out"):
        of(uneven, disable_hybrid_kv_cache_manager=False)
    assert of(uneven).limits.window_groups == of(uneven, disable_hybrid_kv_cache_manager=True).limits.window_groups == 0
    # where there is nothing to deal, or it is modelled, the engine's default can be said aloud
    assert of(of_kinds([False] * 4), disable_hybrid_kv_cache_manager=False).limits.window_groups == 0
    assert of(of_kinds([True, False] * 4), disable_hybrid_kv_cache_manager=False).limits.window_groups == 1


def test_an_interval_of_prefixes_is_for_sliding_windows_only() -> None:
    assert spec().limits.retention_blocks == 0
    assert spec(engine="vllm-0.28").limits.retention_blocks == 1
    assert spec(prefix_cache_retention_interval="dense").limits.retention_blocks == 1
    assert spec(prefix_cache_retention_interval=512).limits.retention_blocks == 32
    with pytest.raises(InputError, match="retention_interval=40: not a multiple of block_size=16"):
        spec(prefix_cache_retention_interval=40)
    with pytest.raises(InputError, match="retention_interval=512: no layer's KV is kept by a sliding window"):
        spec(prefix_cache_retention_interval=512, disable_hybrid_kv_cache_manager=True)


@pytest.mark.parametrize("interval", [-16, 1 << 23, True, 0.5, "sparse"])
def test_an_interval_that_is_none_is_told_with_what_is(interval: object) -> None:
    with pytest.raises(ValidationError, match="choose 0, a number of tokens up to 4194304, or dense") as caught:
        EngineSettings.model_validate({"prefix_cache_retention_interval": interval})
    assert caught.value.errors()[0]["loc"] == ("prefix_cache_retention_interval",)


def test_chunks_keep_whole_contexts_with_drafts_of_eagles_kind() -> None:
    """vLLM turns its hybrid KV cache manager off for them, and refuses it (VllmConfig.__post_init__)."""

    def scout(**engine: object) -> ReplicaSpec:
        settings = EngineSettings.model_validate({"max_model_len": 16384, "speculative_tokens": 2, **engine})
        return resolve(
            Deployment(model="llama-4-scout", device="h200", layout=Layout(tensor=4), weights="fp8", engine=settings)
        )

    assert scout(speculative_method="eagle", acceptance=0.7).limits.window_groups == 0
    assert scout(speculative_method="ngram", acceptance=0.7, async_scheduling=False).limits.window_groups == 3
    with pytest.raises(InputError, match="no hybrid KV cache manager for layers that see chunks"):
        scout(speculative_method="eagle", acceptance=0.7, disable_hybrid_kv_cache_manager=False)
