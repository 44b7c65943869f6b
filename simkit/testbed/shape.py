"""The size of the decoder that the testbed runs: Llama's form, of any widths."""

from dataclasses import dataclass

from simkit.errors import InputError
from simkit.models.architecture import Architecture, DenseFFN, GroupedAttention, Layer, named_kind


@dataclass(frozen=True)
class DecoderShape:
    """Pre-norm decoder: RMSNorm, rotary GQA, RMSNorm, SwiGLU, with untied embeddings (Llama 2 report, section 2.2)."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    rope_theta: float = 10_000.0  # Su et al., RoFormer, section 3.4.3
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("hidden", "layers", "heads", "kv_heads", "head_dim", "ffn", "vocab"):
            if getattr(self, name) < 1:
                raise InputError(f"decoder: {name}={getattr(self, name)}: at least 1 is wanted")
        if self.heads % self.kv_heads:
            raise InputError(f"decoder: kv_heads={self.kv_heads}: must divide heads={self.heads}")
        if self.head_dim % 2:
            raise InputError(f"decoder: head_dim={self.head_dim}: rotary positions turn pairs; choose an even one")

    @property
    def group(self) -> int:
        """Query heads that share a KV head."""
        return self.heads // self.kv_heads

    @property
    def parameters(self) -> int:
        """Weights of the whole decoder."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        layer = attention + 3 * self.hidden * self.ffn + 2 * self.hidden
        return self.layers * layer + 2 * self.vocab * self.hidden + self.hidden

    def facts(self) -> dict[str, int | str]:
        """The sizes under the names that a Hugging Face config.json gives them."""
        return {
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.ffn,
            "vocab_size": self.vocab,
        }


def shape_of(architecture: Architecture, layers: int | None = None) -> DecoderShape:
    """The shape of an architecture, cut to `layers` layers for small machines.

    Raises InputError for what this decoder is not: experts, latent or windowed attention, biases, plain FFNs.
    """
    layer = architecture.layers[0]
    attention, ffn = layer.attention, layer.ffn
    odd = _odd_part(architecture)
    if odd or not isinstance(attention, GroupedAttention) or not isinstance(ffn, DenseFFN):
        raise InputError(
            f"testbed: model {architecture.name} has {odd}; the testbed runs Llama-shaped dense decoders, "
            "for instance llama-3.1-8b"
        )
    count = len(architecture.layers) if layers is None else layers
    if not 1 <= count <= len(architecture.layers):
        raise InputError(f"testbed: layers={count}: {architecture.name} has 1 to {len(architecture.layers)}")
    return DecoderShape(
        hidden=architecture.hidden,
        layers=count,
        heads=attention.heads,
        kv_heads=attention.kv_heads,
        head_dim=attention.head_dim,
        ffn=ffn.width,
        vocab=architecture.vocab,
    )


def _odd_part(architecture: Architecture) -> str:
    """What keeps an architecture from being Llama's form; "" if nothing does."""
    if len(architecture.kinds) > 1:
        return "layers of several kinds"
    if architecture.norm_has_bias or architecture.learned_positions or architecture.lm_head_bias:
        return "LayerNorm, learnt positions or an lm_head bias"
    return _odd_layer(architecture.layers[0])


def _odd_layer(layer: Layer) -> str:
    attention, ffn = layer.attention, layer.ffn
    if not isinstance(attention, GroupedAttention):
        return f"{named_kind(attention)} attention"
    if attention.window_tokens is not None:
        return "windowed attention"
    if attention.qkv_bias or attention.output_bias or attention.qk_norm or attention.sinks or attention.output_gate:
        return "biases, norms, sinks or a gate in its attention"
    if not isinstance(ffn, DenseFFN):
        return "experts"
    if not ffn.gated or ffn.bias:
        return "a plain FFN or biases in it"
    return "" if layer.norms == 2 else f"{layer.norms} norms a layer"
