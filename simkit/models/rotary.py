"""The table of cosines and sines that an engine keeps on every GPU for rotary positions.

vLLM computes it when the model is loaded, for every position that the configuration allows and whatever `max_model_len`
is: positions x rotary width x 2 bytes (rotary_embedding/base.py, `cos_sin_cache`). Scaling that stretches positions
stretches the table (linear_scaling_rope.py, yarn_scaling_rope.py, phi3_long_rope_scaled_rope.py), positions in three
dimensions are given four times as many (mrope.py). vLLM's pull 44738 names what three models could save by
`max_model_len`: 224 MB (Qwen3-VL), 336 MB (Gemma 4), 248 MB (DeepSeek-V4), which is this rule's.
"""

from collections.abc import Iterator

from simkit.models.architecture import Architecture, GroupedAttention, LatentAttention
from simkit.models.config_fields import ConfigFields
from simkit.models.linear_attention import LinearAttention

_QWEN_NEXT = ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text")
# transformers' default where a file does not say: GlmConfig, Glm4Config, Glm4MoeConfig, PhiConfig, Qwen3NextConfig
_PARTIAL = {"glm": 0.5, "glm4": 0.5, "glm4_moe": 0.5, "phi": 0.5, **dict.fromkeys(_QWEN_NEXT, 0.25)}
_NO_POSITIONS = ("nemotron_h",)  # attention knows none (vLLM nemotron_h.py)
_FULL_PRECISION = ("gpt_oss",)  # the table is kept in 32 bits (vLLM gpt_oss.py)


def rotary_table_bytes(fields: ConfigFields, arch: Architecture) -> int:
    """Bytes of all tables of a model, from its text model's `config.json` and what was read of it.

    Raises:
        InputError: the file scales positions by something that is not a number above 0.
    """
    if arch.learned_positions or arch.model_type in _NO_POSITIONS:
        return 0
    if fields.has("position_embedding_type") and fields.text("position_embedding_type") == "nope":
        return 0  # Granite 4
    width = _rotary_width(fields, arch)
    rows = sum(_rows(each, arch.max_context_tokens) for each in _ropes(fields, arch.model_type))
    indexed = any(isinstance(each.attention, LatentAttention) and each.attention.indexer for each in arch.kinds)
    copies = 2 if indexed else 1  # an indexer turns other pairs of numbers (vLLM deepseek_v2.py, indexer_rope_emb)
    return rows * width * copies * (4 if arch.model_type in _FULL_PRECISION else 2)


def _rotary_width(fields: ConfigFields, arch: Architecture) -> int:
    """Numbers of a head that positions turn."""
    attention = next(layer.attention for layer in arch.layers if not isinstance(layer.attention, LinearAttention))
    if not isinstance(attention, GroupedAttention):
        return attention.rope_dim
    own = fields.child("rope_parameters") if fields.has("rope_parameters") else fields
    partial = own.number("partial_rotary_factor", fields.number("partial_rotary_factor", _default(arch)))
    return int(attention.head_dim * min(partial, 1.0))


def _default(arch: Architecture) -> float:
    return _PARTIAL.get(arch.model_type, 1.0)


def _ropes(fields: ConfigFields, model_type: str) -> Iterator[ConfigFields | None]:
    """How positions are scaled, for each table: None if they are not."""
    if fields.has("rope_parameters"):
        told = fields.child("rope_parameters")
        kinds = [name for name in told.names() if isinstance(told.values()[name], dict)]
        yield from (told.child(name) for name in kinds) if kinds else (told,)
        return
    yield fields.child("rope_scaling") if fields.has("rope_scaling") else None
    if model_type == "gemma3_text":
        yield None  # layers that see a window have a table of their own


def _rows(rope: ConfigFields | None, positions: int) -> int:
    """Rows of a table."""
    if rope is None:
        return positions
    kind = rope.text("rope_type", rope.text("type", "default"))
    if rope.has("mrope_section"):
        return 4 * positions
    if kind == "linear":
        return int(positions * rope.number("factor"))
    if kind.endswith("yarn") and rope.has("original_max_position_embeddings"):
        return int(rope.positive("original_max_position_embeddings") * rope.number("factor"))
    if kind in ("longrope", "su"):
        return positions + rope.count("original_max_position_embeddings", 0)
    return positions
