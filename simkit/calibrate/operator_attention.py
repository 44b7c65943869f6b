"""The attention of a step, all layers, timed from a profile; latent attention with a sparse indexer by a law."""

from collections import Counter

from simkit.calibrate.operator_sizes import F64, AttentionShape, LatentShape
from simkit.calibrate.profiled_step import KV_DTYPE, ProfiledStep, or_nothing
from simkit.calibrate.provenance import Tag, Times, tagged
from simkit.models.architecture import GroupedAttention, LatentAttention
from simkit.models.attention_operators import decode_attention, prefill_attention
from simkit.models.layout import kv_heads_per_gpu
from simkit.models.linear_attention import LinearAttention

Attention = GroupedAttention | LatentAttention


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
    # states of linear attention are in no profile
    parts = [step.by_law(operator) for operator in operators if operator.family != "attention_decode"]
    attentions = [operator for operator in operators if operator.family == "attention_decode"]
    for (attention, count), operator in zip(kinds, attentions, strict=True):
        found = _decode(step, attention, batch, contexts)
        parts.append(step.by_law(operator) if found is None else or_nothing(found.times(count), batch * contexts))
    return parts


def _decode(step: ProfiledStep, attention: Attention, batch: F64, contexts: F64) -> Times | None:
    if isinstance(attention, GroupedAttention):
        return step.model.decode_attention_ns(batch, contexts, _shape(step, attention))
    # a sparse indexer attends to few of the tokens, by other kernels
    return None if attention.indexer else step.model.latent_decode_ns(batch, contexts, _latent(step, attention))


def prefill_parts(step: ProfiledStep, chunk: F64, past: F64) -> list[Times]:
    """Attention of a prefill chunk after `past` tokens (f64[..] each), all layers.

    What layers with a state take is added for each chunk, though a step's chunks may run side by side there.
    """
    operators = prefill_attention(step.arch, step.layout, chunk, past, step.kv, step.law.prefill_extra_keys)
    # what a chunk does beside its attention (latents of its past spelt out) is not in the times of a profile
    parts = [step.by_law(operator) for operator in operators if operator.family != "attention_prefill"]
    for linear, count in Counter(step.arch.linear_layers).items():
        assert step.law.state_prefill_ns is not None, "a law for layers that keep a state is expected"
        own = linear.on_gpu(step.layout.tensor)
        parts.append(tagged(count * step.law.state_prefill_ns(own, chunk, chunk), Tag.ASSUMED))
    attentions = [operator for operator in operators if operator.family == "attention_prefill"]
    for (attention, count), operator in zip(_layers(step), attentions, strict=True):
        found = _prefill(step, attention, chunk, past)
        parts.append(step.by_law(operator) if found is None else or_nothing(found.times(count), chunk))
    return parts


def _prefill(step: ProfiledStep, attention: Attention, chunk: F64, past: F64) -> Times | None:
    if isinstance(attention, GroupedAttention):
        return step.model.prefill_attention_ns(chunk, past, _shape(step, attention))
    return None if attention.indexer else step.model.latent_prefill_ns(chunk, past, _latent(step, attention))


def _layers(step: ProfiledStep) -> list[tuple[Attention, int]]:
    """Each kind of attention that keeps KV and its layers, in the order of the operators'."""
    kinds = [(layer.attention, count) for layer, count in step.arch.kinds.items()]
    return [(attention, count) for attention, count in kinds if not isinstance(attention, LinearAttention)]


def _shape(step: ProfiledStep, attention: GroupedAttention) -> AttentionShape:
    return AttentionShape(
        heads=attention.heads // step.layout.tensor,
        kv_heads=kv_heads_per_gpu(attention, step.layout.tensor),
        head_dim=attention.head_dim,
        window=attention.window_tokens or 0,
        kv_dtype=KV_DTYPE.get(step.kv, "bf16"),
    )


def _latent(step: ProfiledStep, attention: LatentAttention) -> LatentShape:
    return LatentShape(
        heads=attention.heads // step.layout.tensor,
        kv_rank=attention.kv_rank,
        rope_dim=attention.rope_dim,
        query_dim=attention.query_dim,
        value_dim=attention.value_dim,
        kv_dtype=KV_DTYPE.get(step.kv, "bf16"),
    )
