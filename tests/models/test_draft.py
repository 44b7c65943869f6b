"""Drafts against the sizes of published checkpoints and of a running vLLM, and what they take of a GPU's memory."""

import json
from pathlib import Path

import pytest

from simkit.errors import InputError
from simkit.models.architecture import GroupedAttention
from simkit.models.catalog import load_model
from simkit.models.device import load_device
from simkit.models.draft import Draft, DraftMethod, draft_model, usual_draft
from simkit.models.draft_config import load_draft
from simkit.models.kv_groups import KvGroups, kv_groups
from simkit.models.layout import Layout
from simkit.models.memory import plan_memory
from simkit.models.precision import Precision

# yuhuili/EAGLE3-LLaMA3.1-Instruct-8B, config.json
EAGLE3_LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 2048,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_hidden_layers": 1,
    "tie_word_embeddings": False,
    "vocab_size": 128256,
    "draft_vocab_size": 32000,
}


def usual(method: DraftMethod, target: str, weights: Precision | None = None) -> Draft:
    return load_draft(method, None, load_model(target), weights)


@pytest.mark.parametrize(
    ("target", "billions"),
    [("llama-2-7b", 0.24), ("llama-2-13b", 0.37), ("llama-2-70b", 0.99), ("llama-3-8b", 0.25), ("llama-3-70b", 0.99)],
)
def test_eagle_is_as_large_as_published(target: str, billions: float) -> None:
    """README of SafeAILab/EAGLE, "# EAGLE Parameters"."""
    assert round(usual("eagle", target).parameters / 1e9, 2) == billions


def test_mtp_of_deepseek_v3_is_as_large_as_published() -> None:
    """README_WEIGHTS.md of deepseek-ai/DeepSeek-V3: 11.5B unique, 0.9B embedding and 0.9B head shared."""
    draft = usual("mtp", "deepseek-v3")
    assert draft.parameters == pytest.approx(11.5e9, rel=0.01)
    groups = draft.architecture.parameters_by_group
    assert round(groups["embedding"] / 1e9, 1) == round(groups["lm_head"] / 1e9, 1) == 0.9


def test_vllm_loads_as_many_bytes_with_eagle3() -> None:
    """Llama-3.1-8B with an EAGLE 3 head: "Model loading took 15.8114 GiB".

    From a log of October 2025 in pull request 166 of vllm-project/speculators, the embedding shared and the head not.
    Beside weights it has the rotary tables of both, of 131,072 positions of 128 numbers of 16 bits, and the draft's
    maps between vocabularies: 8 bytes for each of its tokens, 1 for each of the target's.
    """
    draft, target = usual("eagle3", "llama-3.1-8b"), load_model("llama-3.1-8b")
    beside = 2 * 131_072 * 128 * 2 + 8 * 32_000 + target.vocab
    found = target.weight_bytes() + draft.weight_bytes(Layout()) + beside
    assert round(found / 2**30, 4) == 15.8114


def test_usual_eagle3_is_that_of_its_published_config(tmp_path: Path) -> None:
    target = load_model("llama-3.1-8b")
    wrapped = {"speculators_model_type": "eagle3", "draft_vocab_size": 32000, "transformer_layer_config": EAGLE3_LLAMA}
    named = {"model_type": "eagle", "model": EAGLE3_LLAMA}
    for content in (EAGLE3_LLAMA, wrapped, named):
        (tmp_path / "config.json").write_text(json.dumps(content))
        draft = load_draft("eagle3", str(tmp_path), target, None)
        # fc, q k v of two halves, o, the FFN and the head, from the shapes in vLLM's llama_eagle3.py; four norms
        by_hand = 3 * 4096 * 4096 + 2 * 4096 * (4096 + 2 * 1024) + 4096 * 4096 + 3 * 4096 * 14336 + 32000 * 4096
        assert draft.parameters == usual("eagle3", "llama-3.1-8b").parameters == by_hand + 4 * 4096
        assert draft.weight_bytes(Layout(tensor=2)) == usual("eagle3", "llama-3.1-8b").weight_bytes(Layout(tensor=2))


def test_a_head_narrower_than_its_target_has_an_embedding_of_its_own(tmp_path: Path) -> None:
    """yuhuili/EAGLE3-LLaMA3.3-Instruct-70B is 6,144 wide and reads a target of 8,192 (target_hidden_size)."""
    config = EAGLE3_LLAMA | {"hidden_size": 6144, "intermediate_size": 16384, "num_attention_heads": 48}
    (tmp_path / "config.json").write_text(json.dumps(config | {"head_dim": 128, "target_hidden_size": 8192}))
    draft = load_draft("eagle3", str(tmp_path), load_model("llama-3.1-70b"), None)
    assert draft.own_embedding
    assert draft.fc_width == 3 * 8192
    with pytest.raises(InputError, match="target_hidden_size"):
        load_draft("eagle3", str(tmp_path), load_model("llama-3.1-8b"), None)


def test_tensor_parallel_cuts_all_but_the_first_layer_s_input() -> None:
    """vLLM: QKVParallelLinear, RowParallelLinear, ParallelLMHead are cut, fc (ReplicatedLinear) and norms are not."""
    draft = usual("eagle3", "llama-3.1-8b")
    copied = 2 * (3 * 4096 * 4096 + 4 * 4096)
    whole = draft.weight_bytes(Layout())
    assert draft.weight_bytes(Layout(tensor=8)) == (whole - copied) / 8 + copied


@pytest.mark.parametrize(
    ("method", "target", "layer_bytes"),
    [("eagle", "llama-3.1-8b", 2 * 8 * 128 * 2), ("eagle3", "llama-3.1-8b", 4096), ("mtp", "deepseek-v3", 1152)],
)
def test_blocks_are_larger_by_a_layer_and_fewer_by_the_weights(
    method: DraftMethod, target: str, layer_bytes: int
) -> None:
    arch, device = load_model(target), load_device("h200")
    layout = Layout(tensor=8) if target == "deepseek-v3" else Layout()
    draft = usual(method, target)
    alone = plan_memory(arch, device, layout, max_model_len=8192)
    beside = plan_memory(arch, device, layout, max_model_len=8192, draft=draft)
    assert beside.block_bytes - alone.block_bytes == 16 * layer_bytes
    left = dict(alone.rows())["KV cache"] + dict(alone.rows())["less than a block"]
    assert beside.num_blocks == (left - draft.weight_bytes(layout)) // (alone.block_bytes + 16 * layer_bytes)
    assert dict(beside.rows())["draft weights"] == draft.weight_bytes(layout)
    assert sum(size for _, size in beside.rows()) == device.memory_bytes
    assert "draft weights" not in dict(alone.rows())


def test_a_draft_lies_on_the_last_stage() -> None:
    arch, device = load_model("llama-3.1-70b"), load_device("h100")
    draft = usual("eagle", "llama-3.1-70b")
    two = plan_memory(arch, device, Layout(tensor=2, pipeline=2), max_model_len=8192, draft=draft)
    # the stage without the target's embedding has a copy of it
    embedding = 2 * arch.vocab * arch.hidden / 2
    assert two.draft_bytes == pytest.approx(draft.weight_bytes(Layout(tensor=2)) + embedding, abs=1)
    assert two.block_bytes == 16 * 41 * 2 * 4 * 128 * 2


def test_a_draft_s_layer_is_dealt_to_the_groups_of_layers() -> None:
    """12 layers of gpt-oss-20b see everything and 12 a window; a 13th makes groups of 13 (fewer than 1.5 times 12)."""
    arch, draft = load_model("gpt-oss-20b"), usual("eagle3", "gpt-oss-20b")
    assert kv_groups(arch, draft=draft.layers) == kv_groups(arch) == KvGroups(1, 1, True, 128)
    plan = plan_memory(
        arch, load_device("h100"), groups=kv_groups(arch, draft=draft.layers), max_model_len=8192, draft=draft
    )
    assert plan.block_bytes == 16 * 13 * 2 * 8 * 64 * 2


def test_windows_that_the_target_has_none_of_are_whole_contexts() -> None:
    draft = draft_model(load_model("gemma-3-4b"))
    assert any(layer.attention.window_tokens for layer in draft.layers)
    assert not any(layer.attention.window_tokens for layer in draft.layers_beside(load_model("llama-3.1-8b")))
    assert draft.layers_beside(load_model("gemma-3-12b")) == draft.layers


def test_a_draft_model_is_a_model_by_itself() -> None:
    draft = load_draft("draft_model", "llama-3.2-1b", load_model("llama-3.1-8b"), "fp8")
    assert draft.parameters == load_model("llama-3.2-1b").parameters
    # vLLM stores it as published, whatever the target is told
    assert draft.weight_bytes(Layout()) == load_model("llama-3.2-1b").weight_bytes()


def test_experts_make_a_dense_head_as_wide_as_a_token_s() -> None:
    """Tengyunw/qwen3_30b_moe_eagle3 and its target's config.json have intermediate_size 6144: 8 experts of 768."""
    draft = usual_draft("eagle3", load_model("qwen3-30b-a3b"), None)
    (layer,) = draft.layers
    assert isinstance(layer.attention, GroupedAttention)
    assert layer.ffn.width == 6144


@pytest.mark.parametrize(
    ("method", "model", "target", "words"),
    [
        ("eagle", "llama-3.2-1b", "llama-3.1-8b", "'llama-3.2-1b' is a model by itself, no draft by eagle"),
        ("eagle3", None, "deepseek-v3", "latent attention, has no usual shape; give the draft's config.json"),
        ("draft_model", "lama-3.2-1b", "llama-3.1-8b", "did you mean 'llama-3.2-1b'"),
        ("mtp", "/nowhere/config.json", "deepseek-v3", "cannot be read"),
    ],
)
def test_what_is_no_draft_is_refused(method: DraftMethod, model: str | None, target: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        load_draft(method, model, load_model(target), None)


def test_a_draft_that_cannot_run_beside_its_target_is_refused() -> None:
    with pytest.raises(InputError, match=r"knows 151936 tokens and qwen2\.5-7b 152064"):
        draft_model(load_model("qwen2.5-0.5b")).check(load_model("qwen2.5-7b"), Layout())
    with pytest.raises(InputError, match="does not divide 14 attention heads"):
        draft_model(load_model("qwen2.5-0.5b")).check(load_model("qwen2.5-1.5b"), Layout(tensor=4))
