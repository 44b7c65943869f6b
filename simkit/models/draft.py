"""What proposes the tokens that speculative decoding checks: a draft's layers, and what of it is the target's.

The shapes are those of vLLM's models (`llama_eagle.py`, `llama_eagle3.py`, `deepseek_mtp.py`) and of the checkpoints
that are published for them. EAGLE and MTP run one decoder layer on the target's hidden states and the next token's
embedding, share the target's embedding, and EAGLE 1 and MTP its lm_head; a draft model is a model by itself.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal

from simkit.errors import InputError
from simkit.models.architecture import (
    Architecture,
    Attention,
    DenseFFN,
    GroupedAttention,
    Layer,
    MoE,
)
from simkit.models.layout import Layout, check_layout, kv_heads_per_gpu
from simkit.models.linear_attention import LinearAttention
from simkit.models.precision import Precision
from simkit.models.sharding import layer_weight_bytes

DraftMethod = Literal["eagle", "eagle3", "mtp", "draft_model"]

# of the target's 128,256 tokens and more, what EAGLE 3 heads score (draft_vocab_size of yuhuili's and lmsys' files)
EAGLE3_VOCAB = 32_000
AUXILIARY_STATES = 3  # of the target's layers, which EAGLE 3 reads (Li et al. 2025, 3.1)


@dataclass(frozen=True)
class Draft:
    """A draft as the numbers that decide its cost."""

    method: DraftMethod
    architecture: Architecture  # its layers, `hidden` and embedding; what of it is shared with the target is said below
    head_vocab: int  # tokens that its lm_head scores
    fc_width: int = 0  # what a layer in front of the others reduces to `hidden`; 0: there is none
    fc_each_pass: bool = True  # False: the target's states are reduced once, in a step's first pass
    wide_attention: bool = False  # the first layer's q, k and v read the embedding beside the hidden state
    own_embedding: bool = False
    own_head: bool = False
    weights: Precision | None = None  # the linear layers are stored in; None as published

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Its layers, all of which keep KV."""
        return self.architecture.layers

    def layers_beside(self, target: Architecture) -> tuple[Layer, ...]:
        """The same beside a target's, which are dealt to groups by one window: another is the whole context."""
        return self.layers_within({layer.attention.window_tokens for layer in target.layers})

    def layers_within(self, windows: Collection[int | None]) -> tuple[Layer, ...]:
        """The same, where any window but these is taken for the whole context."""

        def seen(attention: Attention) -> Attention:
            return attention if attention.window_tokens in windows else replace(attention, window_tokens=None)

        return tuple(replace(layer, attention=seen(layer.attention)) for layer in self.layers)

    @property
    def parameters(self) -> int:
        """Weights of its own, tied ones once; what it shares with the target not counted."""
        arch = self.architecture
        sums = dict(arch.parameters_by_group)
        embedding, head = sums.pop("embedding"), sums.pop("lm_head", 0)
        own = sum(sums.values()) + self.own_embedding * embedding
        own += self.own_head * (head and self.head_vocab * arch.hidden)
        return own + (self.fc_width + self.wide_outputs(1)) * arch.hidden

    def wide_outputs(self, tensor: int) -> int:
        """How many elements q, k and v of the wide layer have on one of `tensor` GPUs; 0: there is no such layer."""
        attention = self.layers[0].attention
        if not self.wide_attention or not isinstance(attention, GroupedAttention):
            return 0
        return (attention.heads // tensor + 2 * kv_heads_per_gpu(attention, tensor)) * attention.head_dim

    def layout(self, layout: Layout) -> Layout:
        """How it is spread: over the target's tensor group, whole on the last stage, experts as the target's.

        vLLM SpeculativeConfig: draft_tensor_parallel_size is the target's where nobody says otherwise.
        """
        spread: dict[str, object] = {"pipeline": 1}
        if not any(isinstance(layer.ffn, MoE) for layer in self.layers):
            spread |= {"data": 1, "expert": 1, "expert_skew": 1.0, "expert_zipf": None}
        return layout.model_copy(update=spread)

    def weight_bytes(self, layout: Layout) -> int:
        """Bytes of its own weights on one GPU of the last stage.

        fc is copied (vLLM ReplicatedLinear); on a stage without the target's embedding there is a copy of that, too.
        """
        arch, own = self.architecture, self.layout(layout)
        groups = arch.parameters_by_group
        total = sum(layer_weight_bytes(arch, layer, own, self.weights) for layer in self.layers)
        total += 2.0 * (self.fc_width * arch.hidden + arch.final_norm * arch.hidden * (1 + arch.norm_has_bias))
        total += arch.weight_bits("attention", self.weights) / 8 * self.wide_outputs(layout.tensor) * arch.hidden
        if self.own_embedding or layout.pipeline > 1:
            total += 2.0 * groups["embedding"] / layout.tensor
        if self.own_head and "lm_head" in groups:
            total += 2.0 * self.head_vocab * arch.hidden / layout.tensor
        return round(total)

    def called(self, name: str) -> "Draft":
        """The same by another name."""
        return replace(self, architecture=replace(self.architecture, name=name))

    def check(self, target: Architecture, layout: Layout) -> None:
        """Pass if it can run beside the target in `layout`; InputError if not."""
        if self.method == "draft_model" and self.architecture.vocab != target.vocab:
            raise InputError(
                f"{self.architecture.name} knows {self.architecture.vocab} tokens and {target.name} {target.vocab}; "
                "vLLM wants them equal: choose a smaller model of the same family"
            )
        check_layout(self.architecture, self.layout(layout))


def usual_draft(method: Literal["eagle", "eagle3", "mtp"], target: Architecture, weights: Precision | None) -> Draft:
    """The draft that checkpoints for `target` usually hold; `weights` is the precision that the target is told.

    EAGLE's layer is as the target's last one, of 16 bits, without what its attention has beside q, k, v and o, and
    dense: where the target has experts, as wide as those that a token takes. MTP's is the target's last one with what
    belongs to it. Raises InputError for EAGLE on latent attention, whose heads have shapes of their own.
    """
    if isinstance(target.layers[-1].attention, LinearAttention) or target.layers[-1].ffn is None:
        raise InputError(
            f"{method} for {target.name}, whose last layer is not one of attention and FFN, has no usual shape; give "
            "the draft's config.json"
        )
    if method == "mtp":
        layer = replace(target.layers[-1], norms=target.layers[-1].norms + 2)  # one on each of the halves that fc reads
        arch = replace(target, name=f"MTP of {target.name}", layers=(layer,), encoder_parameters=0)
        return Draft("mtp", arch, target.vocab, fc_width=2 * target.hidden, weights=weights)
    attention = target.layers[-1].attention
    if not isinstance(attention, GroupedAttention):
        raise InputError(
            f"{method} for {target.name}, which has latent attention, has no usual shape; give the draft's config.json"
        )
    plain = GroupedAttention(attention.heads, attention.kv_heads, attention.head_dim, qkv_bias=attention.qkv_bias)
    arch = Architecture(
        name=f"{method} of {target.name}",
        model_type="llama",
        hidden=target.hidden,
        vocab=target.vocab,
        layers=(Layer(plain, DenseFFN(dense_width(target.layers[-1]))),),
        max_context_tokens=target.max_context_tokens,
    )
    return eagle(method, arch, target, min(EAGLE3_VOCAB, target.vocab))


def eagle(method: Literal["eagle", "eagle3"], arch: Architecture, target: Architecture, reduced_vocab: int) -> Draft:
    """EAGLE's draft around the layers of `arch`, as vLLM runs it on `target`.

    EAGLE 1 has no norm before its first attention, nor one at the end (vLLM `llama_eagle.py`); EAGLE 3 one more on the
    hidden state, a head of its own over `reduced_vocab` tokens, and reads three of the target's states. Where it is of
    another width than the target, it cannot share the embedding.
    """
    other = arch.hidden != target.hidden
    first = arch.layers[0]
    if method == "eagle":
        layers = (replace(first, norms=1), *arch.layers[1:])
        shape = replace(arch, layers=layers, final_norm=False)
        return Draft("eagle", shape, target.vocab, fc_width=2 * arch.hidden, own_embedding=other, own_head=other)
    return Draft(
        "eagle3",
        replace(arch, layers=(replace(first, norms=3), *arch.layers[1:]), tied_embeddings=False),
        reduced_vocab,
        fc_width=AUXILIARY_STATES * target.hidden,
        fc_each_pass=False,
        wide_attention=isinstance(first.attention, GroupedAttention),
        own_embedding=other,
        own_head=True,
    )


def draft_model(arch: Architecture) -> Draft:
    """A model by itself, as published; InputError where its layers keep states, which no draft is modelled with."""
    if arch.linear_layers:
        raise InputError(f"{arch.name}: as a draft, a model whose layers keep a state is not modelled; choose another")
    return Draft("draft_model", arch, arch.vocab, own_embedding=True, own_head=True)


def dense_width(layer: Layer) -> int:
    """How wide a layer's FFN is for one token."""
    if layer.ffn is None:
        return 0
    if isinstance(layer.ffn, DenseFFN):
        return layer.ffn.width
    return layer.ffn.per_token * layer.ffn.width + layer.ffn.shared_width
