"""What a decoder computes with beyond its widths: activation, rotary positions, soft-caps, scores of the router.

`simkit.models` keeps what decides a model's cost. These decide its results, and few of them its time: a random decoder
has them from the family it belongs to, and a caller replaces what it knows better.
"""

from typing import NamedTuple

from simkit.kernels.rope_frequencies import RopeScaling
from simkit.models.architecture import Architecture


class DecoderDetails(NamedTuple):
    """Llama's, as they stand."""

    activation: str = "silu"  # of `gated_activation`
    norm_eps: float = 1e-5
    norm_offset: float = 0.0  # added to RMSNorm's weights
    rope_theta: float = 10_000.0
    windowed_rope_theta: float | None = None  # of layers with a window; None: rope_theta
    rope_scaling: RopeScaling | None = None  # not of layers with a theta of their own
    rotary_share: float = 1.0  # of each head
    neox: bool = True  # rotary pairs are half a rotary dimension apart; False: neighbours
    attention_soft_cap: float | None = None
    final_soft_cap: float | None = None
    scale_embedding: bool = False  # by sqrt(hidden)
    router_score: str = "softmax"  # of `moe_routing`
    renormalize: bool = True  # a token's expert weights add up to `router_scale`
    router_scale: float = 1.0


# Defaults of each family's configuration class and `modeling_*.py` in Hugging Face transformers, but where noted.
FAMILIES: dict[str, DecoderDetails] = {
    "llama": DecoderDetails(),
    "mistral": DecoderDetails(),
    "mixtral": DecoderDetails(rope_theta=1e6),
    "qwen2": DecoderDetails(norm_eps=1e-6, rope_theta=1e6),
    "qwen2_moe": DecoderDetails(norm_eps=1e-6, rope_theta=1e6, renormalize=False),
    "qwen3": DecoderDetails(norm_eps=1e-6, rope_theta=1e6),
    "qwen3_moe": DecoderDetails(norm_eps=1e-6, rope_theta=1e6),
    "gemma": DecoderDetails("gelu_tanh", 1e-6, 1.0, scale_embedding=True),
    # attn_logit_softcapping and final_logit_softcapping: Gemma 2 report, section 2
    "gemma2": DecoderDetails(
        "gelu_tanh", 1e-6, 1.0, attention_soft_cap=50.0, final_soft_cap=30.0, scale_embedding=True
    ),
    "gemma3": DecoderDetails(
        "gelu_tanh", 1e-6, 1.0, rope_theta=1e6, windowed_rope_theta=10_000.0, scale_embedding=True
    ),
    "phi": DecoderDetails("gelu_tanh", rotary_share=0.4),
    "phi3": DecoderDetails(),
    "phimoe": DecoderDetails(renormalize=False),
    # YaRN of the published config.json: factor 32 over 4,096 tokens
    "gpt_oss": DecoderDetails(
        "clamped_swish",
        rope_theta=150_000.0,
        rope_scaling=RopeScaling("yarn", 32.0, 4096, truncate=False),
        router_score="topk_softmax",
    ),
    "glm": DecoderDetails(rotary_share=0.5, neox=False),
    "glm4": DecoderDetails(rotary_share=0.5, neox=False),
    "glm4_moe": DecoderDetails(rope_theta=1e6, rotary_share=0.5, router_score="sigmoid"),
    "gpt2": DecoderDetails("gelu_tanh"),
    "opt": DecoderDetails("relu"),
}


def details_of(architecture: Architecture) -> DecoderDetails:
    """The details of an architecture's family; Llama's for a family that is not known."""
    family = architecture.model_type.removesuffix("_text")
    return FAMILIES.get(family, DecoderDetails())


def rotary_dim(head_dim: int, details: DecoderDetails) -> int:
    """Elements of a head that turn: even."""
    return int(head_dim * details.rotary_share) // 2 * 2
