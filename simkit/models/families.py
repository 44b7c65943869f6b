"""The model families that are understood: one reader a family, from the fields of its config.json to an architecture.

Field names and defaults are those of Hugging Face transformers' configuration classes; which tensors a family has
follows its `modeling_*.py` there. Adding a family is one reader here and one line in `FAMILIES`.
"""

from collections.abc import Callable
from dataclasses import replace

from simkit.models.architecture import (
    FFN,
    Architecture,
    Attention,
    DenseFFN,
    GroupedAttention,
    Indexer,
    LatentAttention,
    Layer,
    MoE,
)
from simkit.models.config_fields import ConfigFields

_MOST_LAYERS = 4096


def _layer_count(fields: ConfigFields, name: str = "num_hidden_layers") -> int:
    count = fields.positive(name)
    if count > _MOST_LAYERS:
        raise fields.error(name, f"is {count}; at most {_MOST_LAYERS} is expected")
    return count


def _decoder(fields: ConfigFields, layers: list[Layer], tied: bool = False) -> Architecture:
    """The architecture around `layers`, from the fields all families since Llama share."""
    return Architecture(
        name=fields.place,
        model_type=fields.text("model_type"),
        hidden=fields.positive("hidden_size"),
        vocab=fields.positive("vocab_size"),
        layers=tuple(layers),
        max_context_tokens=fields.positive("max_position_embeddings"),
        tied_embeddings=fields.flag("tie_word_embeddings", tied),
    )


def _grouped(fields: ConfigFields, qkv_bias: bool = False, output_bias: bool = False) -> GroupedAttention:
    hidden = fields.positive("hidden_size")
    heads = fields.positive("num_attention_heads")
    kv_heads = fields.positive("num_key_value_heads", heads)
    if not fields.has("head_dim") and hidden % heads:
        raise fields.error("num_attention_heads", f"is {heads}, which does not divide hidden_size {hidden}")
    if heads % kv_heads:
        raise fields.error("num_key_value_heads", f"is {kv_heads}, which does not divide num_attention_heads {heads}")
    head_dim = fields.positive("head_dim", hidden // heads)
    return GroupedAttention(heads, kv_heads, head_dim, qkv_bias=qkv_bias, output_bias=output_bias)


def _window(fields: ConfigFields, name: str = "sliding_window", default: int | None = None) -> int | None:
    """The sliding window in tokens; None when there is none, or when it is no shorter than the context limit."""
    if not fields.has(name) and default is None:
        return None
    window = fields.positive(name, default)
    return window if window < fields.positive("max_position_embeddings") else None


def _windowed_layers(fields: ConfigFields, layers: int, otherwise: Callable[[int], bool]) -> list[bool]:
    """Which layers look through a window: `layer_types` where the file has it, else the family's own rule."""
    types = fields.texts("layer_types")
    if not types:
        return [otherwise(index) for index in range(layers)]
    if len(types) != layers:
        raise fields.error("layer_types", f"has {len(types)} entries for {layers} layers")
    for kind in types:
        if kind not in ("full_attention", "sliding_attention", "chunked_attention"):
            raise fields.error("layer_types", f"holds {kind!r}, which is not understood")
    return [kind != "full_attention" for kind in types]


def _with_window(
    attention: GroupedAttention, ffns: list[FFN], window: int | None, windowed: list[bool], norms: int
) -> list[Layer]:
    narrow = replace(attention, window_tokens=window)
    return [Layer(narrow if near else attention, ffn, norms) for ffn, near in zip(ffns, windowed, strict=True)]


def _gated(fields: ConfigFields, bias: bool = False) -> DenseFFN:
    return DenseFFN(fields.positive("intermediate_size"), gated=True, bias=bias)


def _moe(fields: ConfigFields, experts: str, width: str) -> MoE:
    total, chosen = fields.positive(experts), fields.positive("num_experts_per_tok")
    if chosen > total:
        raise fields.error("num_experts_per_tok", f"is {chosen}, more than the {total} of {experts}")
    return MoE(total, chosen, fields.positive(width))


def llama(fields: ConfigFields) -> Architecture:
    """Llama 2 and 3, CodeLlama, Yi, Mistral, Nemo."""
    layers = _layer_count(fields)
    biased = fields.flag("attention_bias", False)
    attention = _grouped(fields, qkv_bias=biased, output_bias=biased)
    if fields.text("model_type") == "mistral":
        attention = replace(attention, window_tokens=_window(fields))
    return _decoder(fields, [Layer(attention, _gated(fields, fields.flag("mlp_bias", False)))] * layers)


def mixtral(fields: ConfigFields) -> Architecture:
    """Mixtral: Mistral with experts."""
    attention = replace(_grouped(fields), window_tokens=_window(fields))
    layer = Layer(attention, _moe(fields, "num_local_experts", "intermediate_size"))
    return _decoder(fields, [layer] * _layer_count(fields))


def qwen(fields: ConfigFields) -> Architecture:
    """Qwen 2 and 2.5 (biases on q, k, v), Qwen 3 (norms on q, k), and the MoE of both."""
    layers = _layer_count(fields)
    model_type = fields.text("model_type")
    if model_type in ("qwen2", "qwen2_moe"):
        attention = _grouped(fields, qkv_bias=fields.flag("qkv_bias", True))
    else:
        biased = fields.flag("attention_bias", False)
        attention = replace(_grouped(fields, qkv_bias=biased, output_bias=biased), qk_norm=True)
    ffns: list[FFN] = [_gated(fields)] * layers
    if model_type.endswith("_moe"):
        moe = _moe(fields, "num_experts", "moe_intermediate_size")
        if model_type == "qwen2_moe":
            moe = replace(moe, shared_width=fields.positive("shared_expert_intermediate_size"), shared_gate=True)
        step, dense = fields.positive("decoder_sparse_step", 1), fields.indices("mlp_only_layers", layers)
        ffns = [ffns[i] if i in dense or (i + 1) % step else moe for i in range(layers)]
    window = _window(fields) if fields.flag("use_sliding_window", False) else None
    first = fields.count("max_window_layers", layers)
    windowed = _windowed_layers(fields, layers, lambda index: index >= first)
    return _decoder(fields, _with_window(attention, ffns, window, windowed, norms=2))


def gemma(fields: ConfigFields) -> Architecture:
    """Gemma 1, 2 and 3 (text): tied embeddings, wide heads; 2 and 3 with four norms a layer and alternating windows."""
    layers = _layer_count(fields)
    model_type = fields.text("model_type")
    biased = fields.flag("attention_bias", False)
    attention = _grouped(fields, qkv_bias=biased, output_bias=biased)
    ffns: list[FFN] = [_gated(fields)] * layers
    if model_type == "gemma":
        return _decoder(fields, [Layer(attention, ffn) for ffn in ffns], tied=True)
    # Gemma 2: every other layer, the first windowed. Gemma 3: five windowed, then a full one.
    period = 2 if model_type == "gemma2" else fields.positive("sliding_window_pattern", 6)
    windowed = _windowed_layers(fields, layers, lambda index: (index + 1) % period != 0)
    attention = replace(attention, qk_norm=model_type == "gemma3_text")
    window = _window(fields, default=4096)
    return _decoder(fields, _with_window(attention, ffns, window, windowed, norms=4), tied=True)


def phi(fields: ConfigFields) -> Architecture:
    """Phi 1.5 and 2: one LayerNorm feeds attention and a plain FFN in parallel; biases everywhere."""
    attention = _grouped(fields, qkv_bias=True, output_bias=True)
    ffn = DenseFFN(fields.positive("intermediate_size"), gated=False, bias=True)
    decoder = _decoder(fields, [Layer(attention, ffn, norms=1)] * _layer_count(fields))
    return replace(decoder, norm_has_bias=True, lm_head_bias=True)


def phi3(fields: ConfigFields) -> Architecture:
    """Phi 3, 3.5 and 4."""
    attention = replace(_grouped(fields), window_tokens=_window(fields))
    return _decoder(fields, [Layer(attention, _gated(fields))] * _layer_count(fields))


def phimoe(fields: ConfigFields) -> Architecture:
    """Phi 3.5 MoE: LayerNorm, biased attention and lm_head, 16 experts."""
    biased = fields.flag("attention_bias", False)
    attention = replace(_grouped(fields, qkv_bias=biased, output_bias=biased), window_tokens=_window(fields))
    layer = Layer(attention, _moe(fields, "num_local_experts", "intermediate_size"))
    decoder = _decoder(fields, [layer] * _layer_count(fields))
    return replace(decoder, norm_has_bias=True, lm_head_bias=fields.flag("lm_head_bias", False))


def gpt_oss(fields: ConfigFields) -> Architecture:
    """GPT-OSS: attention sinks, biases in experts and router, every other layer windowed."""
    layers = _layer_count(fields)
    biased = fields.flag("attention_bias", True)
    attention = replace(_grouped(fields, qkv_bias=biased, output_bias=biased), sinks=True)
    moe = replace(_moe(fields, "num_local_experts", "intermediate_size"), bias=True)
    windowed = _windowed_layers(fields, layers, lambda index: index % 2 == 0)
    ffns: list[FFN] = [moe] * layers
    return _decoder(fields, _with_window(attention, ffns, _window(fields), windowed, norms=2))


def glm(fields: ConfigFields) -> Architecture:
    """GLM-4: 9B (two norms a layer) and 0414 (four); biases on q, k, v only."""
    attention = _grouped(fields, qkv_bias=fields.flag("attention_bias", False))
    norms = 4 if fields.text("model_type") == "glm4" else 2
    return _decoder(fields, [Layer(attention, _gated(fields), norms)] * _layer_count(fields))


def _dense_then_moe(fields: ConfigFields, attention: Attention, correction_bias: bool) -> list[Layer]:
    """The first few layers dense, the rest (every `moe_layer_freq`-th) with routed and shared experts."""
    layers = _layer_count(fields)
    if not fields.has("n_routed_experts"):
        return [Layer(attention, _gated(fields))] * layers
    moe = replace(
        _moe(fields, "n_routed_experts", "moe_intermediate_size"),
        shared_width=fields.count("n_shared_experts", 0) * fields.positive("moe_intermediate_size"),
        correction_bias=correction_bias,
    )
    dense, period = fields.count("first_k_dense_replace", 0), fields.positive("moe_layer_freq", 1)
    return [Layer(attention, _gated(fields) if i < dense or i % period else moe) for i in range(layers)]


def glm_moe(fields: ConfigFields) -> Architecture:
    """GLM-4.5 and 4.5-Air: grouped attention, optional norms on q and k, routed and shared experts."""
    attention = _grouped(fields, qkv_bias=fields.flag("attention_bias", False))
    attention = replace(attention, qk_norm=fields.flag("use_qk_norm", False))
    return _decoder(fields, _dense_then_moe(fields, attention, correction_bias=True))


def deepseek(fields: ConfigFields) -> Architecture:
    """DeepSeek V2, V2-Lite, V3, V3.2 and GLM-5: latent attention, with a sparse indexer where the file has one."""
    indexer = None
    if fields.has("index_topk"):
        indexer = Indexer(
            fields.positive("index_n_heads"), fields.positive("index_head_dim"), fields.positive("index_topk")
        )
    attention = LatentAttention(
        heads=fields.positive("num_attention_heads"),
        q_rank=fields.positive("q_lora_rank") if fields.has("q_lora_rank") else None,
        kv_rank=fields.positive("kv_lora_rank"),
        nope_dim=fields.positive("qk_nope_head_dim"),
        rope_dim=fields.positive("qk_rope_head_dim"),
        value_dim=fields.positive("v_head_dim"),
        qkv_bias=fields.flag("attention_bias", False),
        indexer=indexer,
    )
    balanced = fields.text("topk_method", "noaux_tc") == "noaux_tc"
    return _decoder(fields, _dense_then_moe(fields, attention, correction_bias=balanced))


def llama4(fields: ConfigFields) -> Architecture:
    """Llama 4: three layers in four see a chunk, the fourth (without rotary positions) sees all; one expert a token."""
    layers = _layer_count(fields)
    biased = fields.flag("attention_bias", False)
    attention = _grouped(fields, qkv_bias=biased, output_bias=biased)
    chunk = _window(fields, "attention_chunk_size", default=8192)
    near = replace(attention, window_tokens=chunk, chunked=chunk is not None)
    moe = replace(
        _moe(fields, "num_local_experts", "intermediate_size"), shared_width=fields.positive("intermediate_size")
    )
    dense = DenseFFN(fields.positive("intermediate_size_mlp"))
    step = fields.positive("interleave_moe_layer_step", 1)
    # `no_rope_layers` says 1 where a layer has rotary positions; empty means every fourth has not
    rotary = fields.switches("no_rope_layers", layers) or [(index + 1) % 4 != 0 for index in range(layers)]
    rotary = _windowed_layers(fields, layers, lambda index: rotary[index])
    return _decoder(
        fields,
        [Layer(near if rotary[i] else attention, dense if (i + 1) % step else moe) for i in range(layers)],
    )


def gpt2(fields: ConfigFields) -> Architecture:
    """GPT-2: LayerNorm, learnt positions, plain FFN, tied embeddings, biases everywhere."""
    hidden, heads = fields.positive("n_embd"), fields.positive("n_head")
    if hidden % heads:
        raise fields.error("n_head", f"is {heads}, which does not divide n_embd {hidden}")
    attention = GroupedAttention(heads, heads, hidden // heads, qkv_bias=True, output_bias=True)
    ffn = DenseFFN(fields.positive("n_inner", 4 * hidden), gated=False, bias=True)
    context = fields.positive("n_positions")
    return Architecture(
        name=fields.place,
        model_type="gpt2",
        hidden=hidden,
        vocab=fields.positive("vocab_size"),
        layers=(Layer(attention, ffn),) * _layer_count(fields, "n_layer"),
        max_context_tokens=context,
        tied_embeddings=True,
        norm_has_bias=True,
        learned_positions=context,
    )


def opt(fields: ConfigFields) -> Architecture:
    """OPT: as GPT-2 with other names; two unused rows in the position table."""
    hidden = fields.positive("hidden_size")
    if fields.positive("word_embed_proj_dim", hidden) != hidden:
        raise fields.error("word_embed_proj_dim", "differs from hidden_size (OPT-350m), which is not understood")
    attention = _grouped(fields, qkv_bias=True, output_bias=True)
    ffn = DenseFFN(fields.positive("ffn_dim"), gated=False, bias=True)
    decoder = _decoder(fields, [Layer(attention, ffn)] * _layer_count(fields), tied=True)
    return replace(decoder, norm_has_bias=True, learned_positions=decoder.max_context_tokens + 2)


FAMILIES: dict[str, Callable[[ConfigFields], Architecture]] = {
    "llama": llama,
    "mistral": llama,
    "mixtral": mixtral,
    "qwen2": qwen,
    "qwen2_moe": qwen,
    "qwen3": qwen,
    "qwen3_moe": qwen,
    "gemma": gemma,
    "gemma2": gemma,
    "gemma3_text": gemma,
    "phi": phi,
    "phi3": phi3,
    "phimoe": phimoe,
    "gpt_oss": gpt_oss,
    "glm": glm,
    "glm4": glm,
    "glm4_moe": glm_moe,
    "glm_moe_dsa": deepseek,
    "deepseek_v2": deepseek,
    "deepseek_v3": deepseek,
    "deepseek_v32": deepseek,
    "llama4_text": llama4,
    "gpt2": gpt2,
    "opt": opt,
}
