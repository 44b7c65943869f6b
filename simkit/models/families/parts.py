"""What the readers of several families share: from the fields of a config.json to a part of an architecture."""

from collections.abc import Callable
from dataclasses import replace

from simkit.models.architecture import FFN, Architecture, Attention, DenseFFN, GroupedAttention, Layer, MoE
from simkit.models.config_fields import ConfigFields

_MOST_LAYERS = 4096
_STATE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


def layer_count(fields: ConfigFields, name: str = "num_hidden_layers") -> int:
    """How many layers the model has; InputError for more than any has."""
    count = fields.positive(name)
    if count > _MOST_LAYERS:
        raise fields.error(name, f"is {count}; at most {_MOST_LAYERS} is expected")
    return count


def decoder_of(fields: ConfigFields, layers: list[Layer], tied: bool = False) -> Architecture:
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


def grouped_attention(fields: ConfigFields, qkv_bias: bool = False, output_bias: bool = False) -> GroupedAttention:
    """Attention by the fields that nearly all families share; InputError where heads do not divide."""
    hidden = fields.positive("hidden_size")
    heads = fields.positive("num_attention_heads")
    kv_heads = fields.positive("num_key_value_heads", heads)
    if not fields.has("head_dim") and hidden % heads:
        raise fields.error("num_attention_heads", f"is {heads}, which does not divide hidden_size {hidden}")
    if heads % kv_heads:
        raise fields.error("num_key_value_heads", f"is {kv_heads}, which does not divide num_attention_heads {heads}")
    head_dim = fields.positive("head_dim", hidden // heads)
    return GroupedAttention(heads, kv_heads, head_dim, qkv_bias=qkv_bias, output_bias=output_bias)


def window_tokens(fields: ConfigFields, name: str = "sliding_window", default: int | None = None) -> int | None:
    """The sliding window in tokens; None when there is none, or when it is no shorter than the context limit."""
    if not fields.has(name) and default is None:
        return None
    window = fields.positive(name, default)
    return window if window < fields.positive("max_position_embeddings") else None


def windowed_layers(fields: ConfigFields, layers: int, otherwise: Callable[[int], bool]) -> list[bool]:
    """Which layers look through a window: `layer_types` where the file has it, else the family's own rule."""
    names = {"full_attention": "full", "sliding_attention": "window", "chunked_attention": "window"}
    kinds = layer_kinds(fields, "layer_types", names, layers)
    return [kind == "window" for kind in kinds] if kinds else [otherwise(index) for index in range(layers)]


def with_window(
    attention: GroupedAttention, ffns: list[FFN], window: int | None, windowed: list[bool], norms: int
) -> list[Layer]:
    """Layers of which those that are `windowed` see a window of so many tokens."""
    narrow = replace(attention, window_tokens=window)
    return [Layer(narrow if near else attention, ffn, norms) for ffn, near in zip(ffns, windowed, strict=True)]


def gated_ffn(fields: ConfigFields, bias: bool = False) -> DenseFFN:
    """Three matrices: the gate's, up and down."""
    return DenseFFN(fields.positive("intermediate_size"), gated=True, bias=bias)


def routed_experts(fields: ConfigFields, experts: str, width: str, top_k: str = "num_experts_per_tok") -> MoE:
    """Routed experts, from the fields that say how many, how wide, and how many a token goes to."""
    total, chosen = fields.positive(experts), fields.positive(top_k)
    if chosen > total:
        raise fields.error(top_k, f"is {chosen}, more than the {total} of {experts}")
    return MoE(total, chosen, fields.positive(width))


def dense_then_moe(fields: ConfigFields, attention: Attention, correction_bias: bool) -> list[Layer]:
    """The first few layers dense, the rest (every `moe_layer_freq`-th) with routed and shared experts."""
    layers = layer_count(fields)
    if not fields.has("n_routed_experts"):
        return [Layer(attention, gated_ffn(fields))] * layers
    moe = replace(
        routed_experts(fields, "n_routed_experts", "moe_intermediate_size"),
        shared_width=fields.count("n_shared_experts", 0) * fields.positive("moe_intermediate_size"),
        correction_bias=correction_bias,
    )
    kinds = layer_kinds(fields, "mlp_layer_types", {"dense": "dense", "sparse": "sparse"}, layers)
    if kinds and not fields.has("first_k_dense_replace"):
        return [Layer(attention, moe if kind == "sparse" else gated_ffn(fields)) for kind in kinds]
    dense, period = fields.count("first_k_dense_replace", 0), fields.positive("moe_layer_freq", 1)
    return [Layer(attention, gated_ffn(fields) if i < dense or i % period else moe) for i in range(layers)]


def layer_kinds(fields: ConfigFields, name: str, known: dict[str, str], layers: int | None = None) -> list[str]:
    """What each of `layers` layers is, in the words that `known` puts in place of the file's; empty if it is silent."""
    found: list[str] = []
    told = fields.texts(name)
    if told and len(told) != (layers or len(told)):
        raise fields.error(name, f"has {len(told)} entries for {layers} layers")
    for kind in told:
        if kind not in known:
            raise fields.error(name, f"holds {kind!r}, which is not understood")
        found.append(known[kind])
    return found


def state_bytes(fields: ConfigFields, name: str, default: str) -> int:
    """Bytes of a number of the state, by the type that the file names."""
    kind = fields.text(name, default)
    if kind not in _STATE_BYTES:
        raise fields.error(name, f"is {kind!r}; {', '.join(_STATE_BYTES)} are understood")
    return _STATE_BYTES[kind]
