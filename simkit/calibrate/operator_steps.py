"""The parts of a step that depend on its tokens or its sampled rows alone, timed from a profile."""

from collections.abc import Iterator

import numpy as np

from simkit.calibrate.emitted_launches import as_launched
from simkit.calibrate.operator_sizes import F64, MoeShape
from simkit.calibrate.profiled_step import ProfiledStep, or_nothing
from simkit.calibrate.provenance import Tag, Times
from simkit.models.architecture import MoE
from simkit.models.operators import Operator, linear_operators, sampling_operators
from simkit.models.precision import Precision
from simkit.models.roofline import operator_ns

# how a table of GEMMs or experts may call the precision of our weights, best first
DTYPES: dict[Precision, tuple[str, ...]] = {
    "bf16": ("bf16",),
    "fp16": ("bf16",),
    "fp8": ("fp8", "fp8_block"),
    "int8": ("int8",),
    "int4": ("int4",),
    "mxfp4": ("mxfp4",),
    "nvfp4": ("nvfp4",),
}
# how a table calls what is sent within a node
COLLECTIVE_KIND = {
    "all_reduce": "all_reduce",
    "all_reduce_in_node": "all_reduce",
    "all_gather": "all_gather",
    "send": "send",
}
OF_EXPERTS = ("experts_gate_up", "experts_down", "expert_activation", "combine")  # timed as one


def linear_parts(step: ProfiledStep, tokens: F64) -> tuple[list[Times], int]:
    """Every operator of `linear_operators` over all its launches, and how many launches these are.

    `tokens` is f64[n], rising, of steps as they run (padding included).
    """
    operators = as_launched(linear_operators(step.arch, step.layout, tokens, step.weights, step.kv), step.model)
    plain = as_launched(linear_operators(step.arch, step.layout, tokens, "bf16", step.kv), step.model)
    experts = _experts(step, tokens, operators, plain)
    parts = [] if experts is None else [experts]
    for operator, like in zip(operators, plain, strict=True):
        if experts is None or operator.name not in OF_EXPERTS:
            parts.append(_part(step, operator, like, tokens))
    return parts, sum(operator.launches for operator in operators)


def sampling_parts(step: ProfiledStep, rows: F64) -> list[Times]:
    """lm_head and sampling of `rows` (f64[n]) tokens."""
    return [_part(step, operator, operator, rows) for operator in sampling_operators(step.arch, step.layout, rows)]


def _part(step: ProfiledStep, operator: Operator, like: Operator, tokens: F64) -> Times:
    found = None
    if operator.family == "gemm":
        found = _gemm(step, operator, like, tokens)
    elif operator.family == "elementwise":
        found = _elementwise(step, operator, tokens)
    elif operator.family in COLLECTIVE_KIND:
        found = _collective(step, operator)
    return step.by_law(operator) if found is None else or_nothing(found, tokens)


def _gemm(step: ProfiledStep, operator: Operator, like: Operator, tokens: F64) -> Times | None:
    """All launches of a GEMM; one whose precision was not timed from the 16-bit one's."""
    sizes = _gemm_sizes(operator, tokens)
    if sizes is None:
        return None
    n, k = sizes
    for dtype in _dtypes(step, operator):
        found = step.model.gemm_ns(tokens, n, k, dtype)
        if found is not None:
            return found.times(operator.launches)
    found = step.model.gemm_ns(tokens, n, k, "bf16")
    return None if found is None else _by_ratio(step, found.times(operator.launches), operator, like)


def _gemm_sizes(operator: Operator, tokens: F64) -> tuple[int, int] | None:
    """n and k of one launch, from what it writes and computes; None if it never has work."""
    some = np.flatnonzero(operator.flops > 0)
    if not len(some):
        return None
    last = int(some[-1])
    rows = operator.launches * tokens[last]
    n = operator.written_bytes[last] / (2.0 * rows)
    return round(float(n)), round(float(operator.flops[last] / (2.0 * rows * n)))


def _dtypes(step: ProfiledStep, operator: Operator) -> tuple[str, ...]:
    if operator.group is None or step.arch.weight_bits(operator.group, step.weights) >= 16:
        return ("bf16",)
    return DTYPES[step.weights or step.arch.native_weights]


def _by_ratio(step: ProfiledStep, times: Times, operator: Operator, like: Operator) -> Times:
    """Times of `like` scaled to `operator` by their rooflines."""
    wanted = operator_ns(operator, step.device, step.arch, step.weights)
    known = operator_ns(like, step.device, step.arch, "bf16")
    ratio = np.divide(wanted, known, out=np.ones_like(wanted), where=known > 0)
    return Times(times.ns * ratio, np.full_like(times.tag, Tag.EXTRAPOLATED))


def _elementwise(step: ProfiledStep, operator: Operator, tokens: F64) -> Times | None:
    if operator.name == "sampling":
        found = step.model.sampling_ns(tokens, step.arch.vocab)
        if found is not None:
            return found
    found = step.model.elementwise_ns(operator.name, operator.memory_bytes / operator.launches)
    return None if found is None else found.times(operator.launches)


def _collective(step: ProfiledStep, operator: Operator) -> Times | None:
    """A message is what a ring of t GPUs sends, undone: 2 (t - 1) / t of a sum, (t - 1) / t of a gathering."""
    kind, tensor = COLLECTIVE_KIND[operator.family], step.layout.tensor_in_node
    sent = {"all_reduce": 2.0 * (tensor - 1) / tensor, "all_gather": (tensor - 1) / tensor}.get(kind, 1.0)
    message = operator.sent_bytes / operator.launches / sent
    gpus = tensor if kind != "send" else 2
    found = step.model.collective_ns(kind, message, gpus)
    return None if found is None else found.times(operator.launches)


def _experts(step: ProfiledStep, tokens: F64, operators: list[Operator], plain: list[Operator]) -> Times | None:
    """The routed experts of all layers, their sum timed as one; None if no experts were timed."""
    found = [_experts_of(step, ffn, count, tokens, operators, plain) for ffn, count in _moe_layers(step)]
    known = [times for times in found if times is not None]
    if not known or len(known) < len(found):
        return None
    ns = np.sum([times.ns for times in known], axis=0)
    return or_nothing(Times(ns, np.max([times.tag for times in known], axis=0)), tokens)


def _moe_layers(step: ProfiledStep) -> Iterator[tuple[MoE, int]]:
    for layer, count in step.arch.kinds.items():
        if isinstance(layer.ffn, MoE):
            yield layer.ffn, count


def _experts_of(
    step: ProfiledStep, ffn: MoE, count: int, tokens: F64, operators: list[Operator], plain: list[Operator]
) -> Times | None:
    cut = (1, step.layout.expert) if step.layout.expert > 1 else (step.layout.tensor, 1)
    shape = MoeShape(step.arch.hidden, ffn.width, ffn.experts, ffn.per_token, *cut)
    quantized = step.arch.weight_bits("experts", step.weights) < 16
    dtypes = DTYPES[(step.weights or step.arch.native_weights) if quantized else "bf16"]
    timed = [step.model.moe_ns(tokens, shape._replace(dtype=dtype)) for dtype in dtypes]
    # a model's experts are often timed in one of the forms only, and carried over from other models they are far off
    best = min((found for found in timed if found is not None), key=lambda found: float(found.tag.mean()), default=None)
    if best is not None:
        return best.times(count)
    found = step.model.moe_ns(tokens, shape)
    if found is None:
        return None
    wanted = [(o, p) for o, p in zip(operators, plain, strict=True) if o.family == "grouped_gemm"]
    # layers of experts are alike but for their sizes, so the ratio of any is that of all
    return _by_ratio(step, found.times(count), *wanted[0])
