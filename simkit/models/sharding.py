"""How many bytes of weights each GPU of a layout holds."""

from simkit.models.architecture import Architecture, Attention, GroupedAttention, Layer, layer_parameters
from simkit.models.layout import Layout, kv_heads_per_gpu, stage_layers
from simkit.models.linear_attention import LinearAttention
from simkit.models.precision import Precision


def attention_parameters_per_gpu(attention: Attention, hidden: int, tensor: int) -> int:
    """Attention weights on one of `tensor` GPUs.

    Query heads are cut; KV heads are cut or copied; MLA's down projections, their norms and the indexer are copied
    (vLLM: `ReplicatedLinear` for q_a_proj, kv_a_proj_with_mqa and the indexer). Linear attention is cut by its heads.
    """
    if tensor == 1:
        return attention.parameters(hidden)
    if isinstance(attention, LinearAttention):
        return attention.on_gpu(tensor).parameters(hidden)
    heads = attention.heads // tensor
    if isinstance(attention, GroupedAttention):
        kv = kv_heads_per_gpu(attention, tensor)
        q, kv_width = attention.query_width // tensor, kv * attention.head_dim
        biases = (q + 2 * kv_width) * attention.qkv_bias + hidden * attention.output_bias
        extras = 2 * attention.head_dim * attention.qk_norm + heads * attention.sinks
        return hidden * (q + 2 * kv_width) + heads * attention.head_dim * hidden + biases + extras
    cut = attention.heads * attention.query_dim * (attention.q_rank or hidden)
    cut += attention.kv_rank * attention.heads * (attention.nope_dim + attention.value_dim)
    cut += attention.heads * attention.value_dim * hidden
    return attention.parameters(hidden) - cut + cut // tensor


def layer_weight_bytes(arch: Architecture, layer: Layer, layout: Layout, weights: Precision | None) -> float:
    """Bytes of one layer's weights on one GPU of a layout; norms and router are copied, the rest is cut.

    Experts weigh the same cut in slices or spread whole, over the tensor group or over all engines that share them.
    """
    tensor = layout.tensor
    cuts = {"experts": tensor * layout.data, "shared_experts": tensor, "dense_ffn": tensor}
    parts = layer_parameters(layer, arch.hidden, arch.norm_has_bias)
    parts["attention"] = attention_parameters_per_gpu(layer.attention, arch.hidden, tensor)
    return sum(count * arch.weight_bits(group, weights) / 8 / cuts.get(group, 1) for group, count in parts.items())


def weight_bytes_per_stage(arch: Architecture, layout: Layout, weights: Precision | None = None) -> list[int]:
    """Bytes of weights on a GPU of each pipeline stage; `weights` None means as published.

    The first stage has the embedding and a vision encoder, the last the final norm and lm_head (a copy of the embedding
    where they are tied and the stages differ); each is cut over the tensor group.
    """
    stages = stage_layers(arch, layout.pipeline)
    sums = [sum(layer_weight_bytes(arch, layer, layout, weights) for layer in stage) for stage in stages]
    groups = arch.parameters_by_group
    table = 2.0 * groups["embedding"] / layout.tensor
    sums[0] += table + 2.0 * arch.encoder_parameters / layout.tensor
    sums[-1] += 2.0 * arch.final_norm * arch.hidden * (1 + arch.norm_has_bias)
    sums[-1] += 2.0 * groups.get("lm_head", 0) / layout.tensor
    if arch.tied_embeddings and layout.pipeline > 1:
        sums[-1] += table
    return [round(total) for total in sums]
