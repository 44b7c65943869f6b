"""How one replica's model is spread over GPUs, and which spreads are possible."""

from pydantic import BaseModel, ConfigDict, Field

from simkit.errors import InputError
from simkit.models.architecture import Architecture, DenseFFN, GroupedAttention, Layer, MoE
from simkit.models.linear_attention import LinearAttention
from simkit.models.precision import Precision

_TENSOR_SIZES = (1, 2, 4, 8, 16, 32)


class Layout(BaseModel):
    """Tensor, pipeline, data and expert parallel sizes in vLLM's meaning.

    With `expert` = `tensor` the experts are spread whole over the tensor group (`--enable-expert-parallel`) instead of
    each being cut in `tensor` slices; activations stay replicated, so the exchange is the same all-reduce.

    With `data` = d, d engines, each with its own requests and KV cache, share one set of experts, spread over all their
    GPUs: `expert` = `tensor` x d. Tokens go to their experts and back by all-to-all in every layer with experts, so the
    engines take their steps together.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tensor: int = Field(default=1, ge=1, le=1024)
    pipeline: int = Field(default=1, ge=1, le=1024)
    data: int = Field(default=1, ge=1, le=1024, description="engines that share the experts")
    expert: int = Field(default=1, ge=1, le=1024)
    expert_skew: float = Field(
        default=1.0, ge=1.0, le=1024.0, description="tokens of the most loaded GPU's experts over the mean; 1 is even"
    )
    expert_zipf: float | None = Field(
        default=None,
        ge=0.0,
        le=5.0,
        description="in place of expert_skew: Zipf exponent of the choice of experts",
    )
    gpus_per_node: int = Field(default=8, ge=1, le=1024, description="GPUs that the device's own link connects")
    network_gb_per_s: float = Field(
        default=50.0, gt=0.0, le=1e6, description="between nodes, a GPU, one way; default InfiniBand NDR, 400 Gb/s"
    )

    @property
    def gpus(self) -> int:
        """GPUs of one engine."""
        return self.tensor * self.pipeline

    @property
    def tensor_in_node(self) -> int:
        """GPUs of a tensor group that are in one node."""
        return min(self.tensor, self.gpus_per_node)

    @property
    def tensor_nodes(self) -> int:
        """Nodes that a tensor group is spread over."""
        return self.tensor // self.tensor_in_node

    def leaves_node(self, stage: int) -> bool:
        """Whether a pipeline stage's successor is in another node; stages fill the nodes in order."""
        first = stage * self.tensor
        return first // self.gpus_per_node != (first + self.tensor) // self.gpus_per_node

    def parts_a_stage(self, stage: int) -> bool:
        """Whether a pipeline stage that would fit in a node begins in one and ends in the next."""
        first = stage * self.tensor
        spread = (first + self.tensor - 1) // self.gpus_per_node - first // self.gpus_per_node
        return spread >= self.tensor_nodes

    def __str__(self) -> str:
        data = f", data {self.data}" if self.data > 1 else ""
        return f"tensor {self.tensor}, pipeline {self.pipeline}{data}, expert {self.expert}"


def check_layout(arch: Architecture, layout: Layout) -> None:
    """Pass if `layout` can run `arch` in vLLM.

    Raises:
        InputError: it cannot; the message says why and which sizes could.
    """
    problem = _tensor_problem(arch, layout.tensor, layout.expert > 1)
    if problem is not None:
        raise InputError(f"layout: tensor {layout.tensor}: {problem}; {fitting_tensor_sizes_hint(arch, layout)}")
    if layout.tensor % layout.tensor_in_node:
        raise InputError(
            f"layout: tensor {layout.tensor}: does not fill nodes of {layout.gpus_per_node} GPUs evenly; use a "
            "multiple, or set gpus_per_node"
        )
    if layout.pipeline > 1 and any(layout.parts_a_stage(stage) for stage in range(layout.pipeline)):
        raise InputError(
            f"layout: tensor {layout.tensor}: with pipeline {layout.pipeline} a stage would lie in two nodes of "
            f"{layout.gpus_per_node} GPUs; set gpus_per_node to a multiple of {layout.tensor}"
        )
    if layout.pipeline > len(arch.layers):
        raise InputError(
            f"layout: pipeline {layout.pipeline}: {arch.name} has {len(arch.layers)} layers; "
            f"use a pipeline of 1 to {len(arch.layers)}"
        )
    if layout.expert > 1 or layout.data > 1:
        _check_expert(arch, layout)
    elif layout.expert_skew != 1.0 or layout.expert_zipf is not None:
        raise InputError(
            "layout: expert_skew and expert_zipf go with experts spread over GPUs; set expert, or leave out"
        )
    if layout.expert_zipf is not None and layout.expert_skew != 1.0:
        raise InputError("layout: expert_zipf stands in place of expert_skew; give one of them")
    if layout.data > 1 and layout.pipeline > 1:
        raise InputError(f"layout: data {layout.data}: not with a pipeline of {layout.pipeline} here; use pipeline 1")


def _check_expert(arch: Architecture, layout: Layout) -> None:
    experts = {layer.ffn.experts for layer in arch.kinds if isinstance(layer.ffn, MoE)}
    if not experts:
        raise InputError(f"layout: expert {layout.expert}: {arch.name} has no experts; use expert 1")
    if layout.data > 1 and layout.expert != layout.tensor * layout.data:
        raise InputError(
            f"layout: data {layout.data}: engines share experts that are spread over all their GPUs; use expert "
            f"{layout.tensor * layout.data}, or data 1 and pools of engines that share nothing"
        )
    if layout.expert != layout.tensor * layout.data:
        raise InputError(
            f"layout: expert {layout.expert}: experts are spread over the tensor group; "
            f"use expert 1 or expert {layout.tensor}"
        )
    if any(count % layout.expert for count in experts):
        raise InputError(
            f"layout: expert {layout.expert} does not divide the {max(experts)} experts of {arch.name}; "
            f"{fitting_tensor_sizes_hint(arch, layout)}"
        )


def fitting_tensor_sizes(arch: Architecture, expert_parallel: bool = False) -> list[int]:
    """The usual tensor sizes (powers of two to 32) that `arch` can be cut into."""
    return [size for size in _TENSOR_SIZES if _tensor_problem(arch, size, expert_parallel) is None]


def fitting_tensor_sizes_hint(arch: Architecture, layout: Layout) -> str:
    """The end of an error line: which tensor sizes would be possible."""
    sizes = fitting_tensor_sizes(arch, layout.expert > 1)
    return f"tensor sizes that fit {arch.name}: {', '.join(map(str, sizes))}"


def _tensor_problem(arch: Architecture, tensor: int, expert_parallel: bool) -> str | None:
    """Why vLLM refuses to cut `arch` in `tensor` parts; None if it does not."""
    for layer in arch.kinds:
        attention, ffn = layer.attention, layer.ffn
        if attention.heads % tensor:
            what = "attention" if not isinstance(attention, LinearAttention) else attention.form
            return f"does not divide {attention.heads} {what} heads"
        if isinstance(attention, GroupedAttention) and attention.kv_heads % tensor and tensor % attention.kv_heads:
            return f"neither divides {attention.kv_heads} KV heads nor is a multiple of them"
        if isinstance(attention, LinearAttention) and attention.form == "GDN" and attention.key_heads % tensor:
            return f"does not divide {attention.key_heads} key heads of the Gated DeltaNet layers"
        if isinstance(ffn, DenseFFN) and ffn.width % tensor:
            return f"does not divide the FFN width {ffn.width}"
        if isinstance(ffn, MoE):
            if ffn.shared_width % tensor:
                return f"does not divide the shared expert's width {ffn.shared_width}"
            if expert_parallel and ffn.experts % tensor:
                return f"does not divide {ffn.experts} experts"
            if not expert_parallel and ffn.width % tensor:
                return f"does not divide the experts' width {ffn.width}"
    return None


def kv_heads_per_gpu(attention: GroupedAttention, tensor: int) -> int:
    """KV heads one GPU holds: a share, or a copy of one where there are fewer heads than GPUs (as vLLM)."""
    return max(1, attention.kv_heads // tensor)


def layer_kv_bytes_per_token(layer: Layer, tensor: int, kv: Precision = "bf16") -> int:
    """Bytes one token leaves on one GPU in one layer; MLA's latent is on every GPU of the tensor group."""
    attention = layer.attention
    if isinstance(attention, GroupedAttention):
        return attention.kv_bytes(kv) // attention.kv_heads * kv_heads_per_gpu(attention, tensor)
    return attention.kv_bytes(kv)


def stage_layers(arch: Architecture, pipeline: int) -> list[tuple[Layer, ...]]:
    """The layers of each pipeline stage: as even as can be, the extra ones on the stages before the last.

    vLLM `get_pp_indices`: the last stage also has lm_head, so it takes an extra layer last of all.
    """
    counts = [len(arch.layers) // pipeline] * pipeline
    for extra in range(len(arch.layers) % pipeline):
        counts[pipeline - 2 - extra] += 1
    ends = [sum(counts[: index + 1]) for index in range(pipeline)]
    return [arch.layers[end - count : end] for end, count in zip(ends, counts, strict=True)]


def kv_bytes_per_token_per_gpu(arch: Architecture, layout: Layout, kv: Precision = "bf16") -> int:
    """Bytes one token leaves on a GPU of the stage that holds most KV, copies counted."""
    stages = stage_layers(arch, layout.pipeline)
    return max(sum(layer_kv_bytes_per_token(layer, layout.tensor, kv) for layer in stage) for stage in stages)
