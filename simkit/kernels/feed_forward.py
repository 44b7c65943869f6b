"""The network of a decoder layer, dense or of experts: torch's GEMMs for dense products, our kernels for the rest."""

import torch
from torch.nn.functional import linear

from simkit.kernels.decoder_details import DecoderDetails
from simkit.kernels.decoder_weights import DenseWeights, MoEWeights
from simkit.kernels.gated_activation import gated_activation, plain_activation
from simkit.kernels.moe_gemm import combine, grouped_gemm, grouped_gemm_config
from simkit.kernels.moe_routing import order_by_expert, route
from simkit.models.architecture import FFN, MoE


def feed_forward(
    x: torch.Tensor, ffn: FFN, weights: DenseWeights | MoEWeights, details: DecoderDetails
) -> torch.Tensor:
    """[tokens, hidden] -> [tokens, hidden]."""
    if isinstance(weights, MoEWeights):
        assert isinstance(ffn, MoE)
        return _experts(x, ffn, weights, details)
    gated = not isinstance(ffn, MoE) and ffn.gated
    return _dense(x, weights, details.activation, gated)


def _dense(x: torch.Tensor, weights: DenseWeights, activation: str, gated: bool) -> torch.Tensor:
    up = linear(x, weights.up, weights.up_bias)  # [tokens, 2 width], or [tokens, width]
    inner = gated_activation(up, activation) if gated else plain_activation(up, activation)
    return linear(inner, weights.down, weights.down_bias)


def _experts(x: torch.Tensor, ffn: MoE, weights: MoEWeights, details: DecoderDetails) -> torch.Tensor:
    scores = linear(x, weights.router, weights.router_bias)  # [tokens, experts]
    routes = route(
        scores,
        ffn.per_token,
        details.router_score,
        details.renormalize,
        weights.correction_bias,
        details.router_scale,
    )
    config = grouped_gemm_config(routes.experts.numel(), ffn.experts, x.dtype, x.device)
    order = order_by_expert(routes.experts, ffn.experts, config.block_rows)
    up = grouped_gemm(x, weights.gate_up, order, config, ffn.per_token, weights.gate_up_bias)  # [pairs, 2 width]
    inner = gated_activation(up, details.activation)
    down = grouped_gemm(inner, weights.down, order, config, 1, weights.down_bias)  # [pairs, hidden]
    out = combine(down, routes.weights)
    if weights.shared is None:
        return out
    shared = _dense(x, weights.shared, details.activation, gated=True)
    if weights.shared_gate is not None:
        shared = torch.sigmoid(linear(x, weights.shared_gate)) * shared
    return out + shared
