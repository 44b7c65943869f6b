"""A decoder written out in plain float32 torch, dense and without a cache, from the weights of a `RandomDecoder`.

Nothing of the kernels' code is used: whole sequences, explicit masks, rotary angles by complex numbers, experts one by
one. It follows the models' published equations.
"""

import math

import torch

from simkit.kernels.decoder_details import DecoderDetails
from simkit.kernels.decoder_weights import AttentionWeights, DenseWeights, MoEWeights, NormWeights
from simkit.kernels.random_decoder import RandomDecoder
from simkit.models.architecture import GroupedAttention, MoE


def plain_logits(decoder: RandomDecoder, tokens: list[int]) -> torch.Tensor:
    """Logits after every token, f32[tokens, vocab]."""
    form, details = decoder.architecture, decoder.details
    x = decoder.embedding[tokens].float()
    if details.scale_embedding:
        x = x * math.sqrt(form.hidden)
    if decoder.positions is not None:
        shift = len(decoder.positions) - form.max_context_tokens
        x = x + decoder.positions[shift : shift + len(tokens)].float()
    for layer, weights in zip(form.layers, decoder.layers, strict=True):
        rotary = not form.learned_positions
        h = norm(x, weights.norms[0], details)
        a = attention(h, layer.attention, weights.attention, details, rotary)
        if len(weights.norms) == 1:
            x = x + a + network(h, layer.ffn, weights.ffn, details)
            continue
        if len(weights.norms) == 4:
            a = norm(a, weights.norms[1], details)
        x = x + a
        f = network(
            norm(x, weights.norms[-2 if len(weights.norms) == 4 else -1], details), layer.ffn, weights.ffn, details
        )
        x = x + (norm(f, weights.norms[3], details) if len(weights.norms) == 4 else f)
    x = x if decoder.norm is None else norm(x, decoder.norm, details)
    logits = affine(x, decoder.lm_head, decoder.lm_head_bias)
    cap = details.final_soft_cap
    return logits if cap is None else cap * torch.tanh(logits / cap)


def affine(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return x @ weight.float().T + (0.0 if bias is None else bias.float())


def norm(x: torch.Tensor, weights: NormWeights, details: DecoderDetails) -> torch.Tensor:
    if weights.bias is not None:
        return torch.nn.functional.layer_norm(
            x, x.shape[-1:], weights.weight.float(), weights.bias.float(), details.norm_eps
        )
    return root_mean_square(x, weights.weight, details)


def root_mean_square(x: torch.Tensor, weight: torch.Tensor, details: DecoderDetails) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + details.norm_eps) * (details.norm_offset + weight.float())


def rotated(x: torch.Tensor, theta: float, details: DecoderDetails) -> torch.Tensor:
    """[tokens, heads, head_dim] turned by token number."""
    width = int(x.shape[-1] * details.rotary_share) // 2 * 2
    angles = torch.arange(len(x)).double()[:, None] * theta ** (-torch.arange(0, width, 2).double() / width)
    turn = torch.polar(torch.ones_like(angles), angles)[:, None]
    head = x[..., :width].double()
    if details.neox:
        pairs = torch.complex(head[..., : width // 2], head[..., width // 2 :]) * turn
        head = torch.cat([pairs.real, pairs.imag], dim=-1)
    else:
        head = torch.view_as_real(torch.view_as_complex(head.unflatten(-1, (-1, 2)).contiguous()) * turn).flatten(-2)
    return torch.cat([head.float(), x[..., width:]], dim=-1)


def attention(
    h: torch.Tensor, form: GroupedAttention, weights: AttentionWeights, details: DecoderDetails, rotary: bool
) -> torch.Tensor:
    heads = affine(h, weights.qkv, weights.qkv_bias).reshape(len(h), -1, form.head_dim)
    q, k, v = heads[:, : form.heads], heads[:, form.heads : form.heads + form.kv_heads], heads[:, -form.kv_heads :]
    if weights.q_norm is not None:
        q, k = root_mean_square(q, weights.q_norm, details), root_mean_square(k, weights.k_norm, details)
    if rotary:
        near = form.window_tokens is not None and details.windowed_rope_theta is not None
        theta = details.windowed_rope_theta if near else details.rope_theta
        q, k = rotated(q, theta, details), rotated(k, theta, details)
    group = form.heads // form.kv_heads
    outs = []
    position = torch.arange(len(h))
    distance = position[:, None] - position[None, :]
    seen = distance >= 0
    if form.window_tokens is not None:
        seen &= distance < form.window_tokens
    for head in range(form.heads):
        scores = q[:, head] @ k[:, head // group].T / math.sqrt(form.head_dim)
        if details.attention_soft_cap is not None:
            scores = details.attention_soft_cap * torch.tanh(scores / details.attention_soft_cap)
        weight = torch.where(seen, scores.exp(), 0.0)  # scores of these tests are small
        extra = 0.0 if weights.sinks is None else weights.sinks[head].exp()
        outs.append(weight @ v[:, head // group] / (weight.sum(1, keepdim=True) + extra))
    return affine(torch.cat(outs, dim=1), weights.out, weights.out_bias)


def activated(gate: torch.Tensor, up: torch.Tensor | float, name: str) -> torch.Tensor:
    if name == "clamped_swish":
        gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0) + 1.0  # type: ignore[union-attr]
        return gate * torch.sigmoid(1.702 * gate) * up
    functions = {
        "silu": torch.nn.functional.silu,
        "gelu": torch.nn.functional.gelu,
        "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
        "relu": torch.relu,
    }
    return functions[name](gate) * up


def dense(h: torch.Tensor, weights: DenseWeights, name: str) -> torch.Tensor:
    inner = affine(h, weights.up, weights.up_bias)
    width = weights.down.shape[1]
    gated = weights.up.shape[0] == 2 * width
    inner = activated(inner[:, :width], inner[:, width:], name) if gated else activated(inner, 1.0, name)
    return affine(inner, weights.down, weights.down_bias)


def network(h: torch.Tensor, form, weights: DenseWeights | MoEWeights, details: DecoderDetails) -> torch.Tensor:  # type: ignore[no-untyped-def]
    if not isinstance(weights, MoEWeights):
        return dense(h, weights, details.activation)
    assert isinstance(form, MoE)
    out = torch.zeros_like(h)
    for i, row in enumerate(h):
        logits = affine(row, weights.router, weights.router_bias)
        score = {"softmax": torch.softmax(logits, 0), "sigmoid": logits.sigmoid(), "topk_softmax": logits}
        chances = score[details.router_score]
        rank = chances if weights.correction_bias is None else chances + weights.correction_bias
        chosen = rank.topk(form.per_token).indices
        share = chances[chosen]
        if details.router_score == "topk_softmax":
            share = share.softmax(0)
        elif details.renormalize:
            share = share / share.sum()
        for expert, weight in zip(chosen.tolist(), (share * details.router_scale).tolist(), strict=True):
            biases = [None if b is None else b[expert] for b in (weights.gate_up_bias, weights.down_bias)]
            own = DenseWeights(weights.gate_up[expert], biases[0], weights.down[expert], biases[1])
            out[i] += weight * dense(row[None], own, details.activation)[0]
    if weights.shared is not None:
        shared = dense(h, weights.shared, details.activation)
        out += shared if weights.shared_gate is None else torch.sigmoid(affine(h, weights.shared_gate, None)) * shared
    return out
