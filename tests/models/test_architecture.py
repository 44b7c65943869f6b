"""Parameters, weight bytes and KV bytes against published figures."""

import pytest

from simkit.models.architecture import Architecture, DenseFFN, GroupedAttention, Layer
from simkit.models.catalog import catalog_entry, known_models, load_model

# Hugging Face safetensors totals and technical reports, written here independently of the catalog's files.
PUBLISHED_BILLIONS = {
    "llama-2-7b": 6.738,
    "llama-2-13b": 13.016,
    "llama-2-70b": 68.977,
    "llama-3.1-8b": 8.030,
    "llama-3.1-70b": 70.554,
    "llama-3.1-405b": 405.85,
    "llama-3.2-1b": 1.236,
    "llama-3.2-3b": 3.213,
    "llama-4-scout": 108.64,
    "mistral-7b": 7.248,
    "mistral-nemo": 12.248,
    "mixtral-8x7b": 46.703,
    "mixtral-8x22b": 140.63,
    "qwen2.5-7b": 7.616,
    "qwen2.5-72b": 72.706,
    "qwen3-30b-a3b": 30.532,
    "qwen3-235b-a22b": 235.09,
    "gemma-2-27b": 27.227,
    "gemma-3-27b": 27.432,
    "phi-4": 14.660,
    "yi-34b": 34.389,
    "gpt-oss-20b": 20.91,
    "gpt-oss-120b": 116.83,
    "deepseek-v2-lite": 15.706,
    "deepseek-v3": 671.0,
}

# 2 x layers x KV heads x head_dim x 2 bytes by hand; MLA: layers x (512 + 64) x 2.
KV_BYTES_PER_TOKEN = {
    "llama-2-7b": 524_288,
    "llama-3.1-8b": 131_072,
    "llama-3.1-70b": 327_680,
    "mistral-nemo": 163_840,
    "qwen2.5-7b": 57_344,
    "yi-34b": 245_760,
    "deepseek-v2-lite": 31_104,
    "deepseek-v3": 70_272,
    "gpt-oss-120b": 73_728,
}


@pytest.mark.parametrize(("name", "billions"), PUBLISHED_BILLIONS.items())
def test_parameters_match_the_published_count(name: str, billions: float) -> None:
    assert load_model(name).parameters / 1e9 == pytest.approx(billions, rel=5e-3)


@pytest.mark.parametrize("name", known_models())
def test_every_catalog_model_matches_its_own_published_count(name: str) -> None:
    entry = catalog_entry(name)
    assert entry.source
    assert entry.architecture.parameters == pytest.approx(entry.published_parameters, rel=1e-4)


@pytest.mark.parametrize(("name", "bytes_per_token"), KV_BYTES_PER_TOKEN.items())
def test_kv_bytes_per_token_are_exact(name: str, bytes_per_token: int) -> None:
    arch = load_model(name)
    assert arch.kv_bytes_per_token("bf16") == bytes_per_token
    assert arch.kv_bytes_per_token("fp8") == bytes_per_token // 2


# Active parameters: Mixtral paper 12.9 B; DeepSeek-V3 report 37 B, V2 report 21 B; Qwen3 report 3.3 B (embedding
# counted) and 22 B; Llama 4 model card 17 B.
@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("mixtral-8x7b", 12.9),
        ("mixtral-8x22b", 39.1),
        ("deepseek-v2", 21.0),
        ("deepseek-v3", 37.0),
        ("qwen3-30b-a3b", 3.3),
        ("qwen3-235b-a22b", 22.0),
        ("llama-4-scout", 17.0),
        ("llama-4-maverick", 17.0),
    ],
)
def test_active_parameters_match_the_published_count(name: str, billions: float) -> None:
    assert load_model(name).active_parameters / 1e9 == pytest.approx(billions, rel=0.025)


@pytest.mark.parametrize("name", known_models())
def test_groups_and_kinds_sum_to_the_whole(name: str) -> None:
    arch = load_model(name)
    assert sum(arch.parameters_by_group.values()) == arch.parameters
    assert sum(arch.kinds.values()) == len(arch.layers)
    assert sum(arch.kv_bytes_by_kind("bf16").values()) == arch.kv_bytes_per_token("bf16")
    assert arch.active_parameters <= arch.parameters


def test_gemma_3_alternates_five_windows_and_one_full_layer() -> None:
    arch = load_model("gemma-3-27b")
    full = [index for index, layer in enumerate(arch.layers) if layer.attention.window_tokens is None]
    assert full == list(range(5, 62, 6))
    assert arch.kv_bytes_by_kind("bf16") == {"GQA window 1024": 52 * 8192, "GQA full": 10 * 8192}


def test_llama_4_chunks_three_layers_in_four() -> None:
    split = load_model("llama-4-scout").kv_bytes_by_kind("bf16")
    assert split == {"GQA chunk 8192": 36 * 4096, "GQA full": 12 * 4096}


def test_weight_bytes_leave_embeddings_and_norms_at_16_bits() -> None:
    arch = load_model("llama-3.1-8b")
    assert arch.weight_bytes() == 2 * arch.parameters
    linear = 32 * (4096 * (4096 + 2 * 1024) + 4096 * 4096 + 3 * 4096 * 14336)
    assert arch.weight_bytes("fp8") == 2 * arch.parameters - linear
    assert arch.weight_bytes("int4") == pytest.approx(2 * (arch.parameters - linear) + linear * 4.15625 / 8)


def test_mxfp4_checkpoint_of_gpt_oss_has_its_published_size() -> None:
    # gpt-oss model card, table 1: checkpoints of 60.8 and 12.8 GiB
    assert load_model("gpt-oss-120b").weight_bytes() / 2**30 == pytest.approx(60.8, rel=0.005)
    assert load_model("gpt-oss-20b").weight_bytes() / 2**30 == pytest.approx(12.8, rel=0.01)


def test_int4_kv_counts_its_scales() -> None:
    # 64 bytes of values and 4 of scale and zero, for key and value of 8 heads in 32 layers
    assert load_model("llama-3.1-8b").kv_bytes_per_token("int4") == 32 * 2 * 8 * 68


@pytest.mark.parametrize(("kv_heads", "kind"), [(8, "MHA"), (2, "GQA"), (1, "MQA")])
def test_attention_is_named_by_its_sharing(kv_heads: int, kind: str) -> None:
    assert GroupedAttention(8, kv_heads, 64).kind == kind


def test_plain_ffn_with_layernorm_matches_torch_transformer() -> None:
    torch = pytest.importorskip("torch")
    layer = torch.nn.TransformerEncoderLayer(64, 4, 256)
    expected = sum(weight.numel() for weight in layer.parameters())
    attention = GroupedAttention(4, 4, 16, qkv_bias=True, output_bias=True)
    arch = Architecture("one", "test", 64, 1, (Layer(attention, DenseFFN(256, gated=False, bias=True)),), 8, True, True)
    groups = arch.parameters_by_group
    assert groups["attention"] + groups["dense_ffn"] + groups["norms"] - 2 * 64 == expected
