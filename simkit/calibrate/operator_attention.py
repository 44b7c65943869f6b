"""The attention of a step, all layers, timed from a profile; latent attention (MLA) by a law."""

from simkit.calibrate.operator_sizes import F64, AttentionShape
from simkit.calibrate.profiled_step import KV_DTYPE, ProfiledStep, or_nothing
from simkit.calibrate.provenance import Times
from simkit.models.architecture import GroupedAttention, LatentAttention
from simkit.models.attention_operators import decode_attention, prefill_attention
from simkit.models.layout import kv_heads_per_gpu


def decode_parts(step: ProfiledStep, batch: F64, contexts: F64, windowed: bool) -> list[Times]:
    """Attention of `batch` one-token queries over `contexts` tokens in sum, of the layers with or without a window.

    Args:
        step: the deployment.
        batch: f64[..].
        contexts: f64[..], windows already applied.
        windowed: which layers.
    """
    operators = decode_attention(step.arch, step.layout, batch, contexts, windowed, step.kv)
    kinds = [kind for kind in _layers(step) if (kind[0].window_tokens is not None) == windowed]
    parts = []
    for (attention, count), operator in zip(kinds, operators, strict=True):
        found = None
        if isinstance(attention, GroupedAttention):
            found = step.model.decode_attention_ns(batch, contexts, _shape(step, attention))
        parts.append(step.by_law(operator) if found is None else or_nothing(found.times(count), batch * contexts))
    return parts


def prefill_parts(step: ProfiledStep, chunk: F64, past: F64) -> list[Times]:
    """Attention of a prefill chunk after `past` tokens (f64[..] each), all layers."""
    if step.model.prefill is None or not all(isinstance(kind[0], GroupedAttention) for kind in _layers(step)):
        operators = prefill_attention(step.arch, step.layout, chunk, past, step.kv, step.law.prefill_extra_keys)
        return [step.by_law(operator) for operator in operators]
    parts = []
    for attention, count in _layers(step):
        assert isinstance(attention, GroupedAttention)
        found = step.model.prefill_attention_ns(chunk, past, _shape(step, attention))
        assert found is not None
        parts.append(or_nothing(found.times(count), chunk))
    return parts


def _layers(step: ProfiledStep) -> list[tuple[GroupedAttention | LatentAttention, int]]:
    """Each kind of attention and its layers, in the order of the operators'."""
    return [(layer.attention, count) for layer, count in step.arch.kinds.items()]


def _shape(step: ProfiledStep, attention: GroupedAttention) -> AttentionShape:
    return AttentionShape(
        heads=attention.heads // step.layout.tensor,
        kv_heads=kv_heads_per_gpu(attention, step.layout.tensor),
        head_dim=attention.head_dim,
        window=attention.window_tokens or 0,
        kv_dtype=KV_DTYPE.get(step.kv, "bf16"),
    )
