"""From the times of operators to the tables that the engine replays: the same for every source of such times."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simkit.models.architecture import Architecture
from simkit.models.attention_operators import decode_attention, prefill_attention
from simkit.models.captures import default_capture_sizes, padded_tokens
from simkit.models.layout import Layout, check_layout, stage_layers
from simkit.models.linear_attention import LinearAttention
from simkit.models.operators import F64, Operator, linear_operators, sampling_operators
from simkit.models.precision import Precision
from simkit.models.steptables import NOT_ALONE, StepTables, grid_values

I64 = NDArray[np.int64]

# operators that compute the tokens of all engines that share the experts
EXPERTS = ("experts_gate_up", "experts_down", "expert_activation", "combine")


@dataclass(frozen=True)
class StepLaw:
    """What a step of one deployment is made of; all in ns."""

    operator_ns: Callable[[Operator], F64]  # of the operator's shape, 0 where it has nothing to do
    launch_ns: float  # CPU time to launch one kernel that no graph replays; a step takes at least its launches
    eager_launch_ns: float  # the same of a model that is not compiled either (`enforce_eager`)
    host_step_ns: float  # CPU time of a step, hidden by asynchronous scheduling where the step is longer
    host_request_ns: float
    prefill_extra_keys: float = 0.0
    gap_ns: float = 0.0  # the device waits so long in every step
    chunk_ns: float = 0.0  # a prefill chunk costs so much beside its operators
    row_ns: float = 0.0  # a sampled row costs so much beside its operators
    # of one layer that keeps a state, on one GPU, by tokens of the longest chunk and of all chunks of a step
    state_prefill_ns: Callable[[LinearAttention, F64, F64], F64] | None = None


@dataclass(frozen=True)
class TableSizes:
    """How far the tables reach."""

    max_num_batched_tokens: int = 8192
    max_num_seqs: int = 256
    max_model_len: int | None = None  # None: the model's own limit
    kv_tokens: int | None = None  # tokens the KV cache holds; None if not limiting
    capture_sizes: tuple[int, ...] | None = None  # CUDA-graph sizes; None is vLLM's default
    enforce_eager: bool = False  # no CUDA graphs, and nothing compiled

    def captures(self) -> tuple[int, ...]:
        """The CUDA-graph sizes in use."""
        if self.enforce_eager:
            return ()
        if self.capture_sizes is not None:
            return self.capture_sizes
        return default_capture_sizes(self.max_num_seqs, self.max_num_batched_tokens)


def step_tables(
    law: StepLaw, arch: Architecture, layout: Layout, sizes: TableSizes, weights: Precision | None, kv: Precision
) -> StepTables:
    """The step-time tables of a deployment; of a pipeline also what each stage's share of a step is.

    Raises:
        InputError: the layout is impossible.
    """
    check_layout(arch, layout)
    seqs, batched = sizes.max_num_seqs, sizes.max_num_batched_tokens
    longest = arch.max_context_tokens if sizes.max_model_len is None else sizes.max_model_len
    longest = min(longest, arch.max_context_tokens)
    held = seqs * longest if sizes.kv_tokens is None else min(sizes.kv_tokens, seqs * longest)
    rows = np.arange(seqs + 1, dtype=np.float64)
    batch, contexts = _axes(seqs, held)
    window = max((layer.attention.window_tokens or 0 for layer in arch.kinds), default=0)
    sampling = sum_ns(law, sampling_operators(arch, layout, rows), rows.shape)
    stages = np.stack(
        [
            np.maximum.accumulate(_linear_ns(law, arch, layout, sizes, weights, kv, stage))
            for stage in range(layout.pipeline)
        ]
    )
    tables = StepTables(
        linear_ns=stages.sum(axis=0),
        sample_ns=sampling + law.row_ns * rows,
        host_ns=np.where(rows > 0, law.host_step_ns + law.host_request_ns * rows, 0.0),
        decode_ns=decode_ns(law, arch, layout, batch, contexts, False, kv),
        decode_window_ns=decode_ns(law, arch, layout, batch, contexts, True, kv) if window else np.zeros((0, 0)),
        prefill_ns=prefill_ns(law, arch, layout, *_axes(batched, longest), kv),
        window_tokens=window,
        state_ns=state_ns(law, arch, layout, batched),
    )
    if layout.data > 1:
        padded = padded_tokens(np.arange(batched + 1, dtype=np.int64), sizes.captures()).astype(np.float64)
        experts = [found for found in linear_operators(arch, layout, padded, weights, kv) if found.name in EXPERTS]
        return tables._replace(shared_linear_ns=sum_ns(law, experts, padded.shape))
    if layout.pipeline == 1:
        return tables
    return tables._replace(stage_linear_ns=stages, stage_attention=_layer_shares(arch, layout))


def with_stages(tables: StepTables, arch: Architecture, layout: Layout) -> StepTables:
    """Tables that know a whole step only, measured ones, with its time given to the stages by their layers."""
    if layout.pipeline == 1 or len(tables.stage_linear_ns) > 0:
        return tables
    shares = _layer_shares(arch, layout)
    return tables._replace(stage_linear_ns=shares[:, None] * tables.linear_ns[None, :], stage_attention=shares)


def _layer_shares(arch: Architecture, layout: Layout) -> F64:
    """[stages] the share of the layers that each has."""
    return np.array([len(layers) for layers in stage_layers(arch, layout.pipeline)]) / len(arch.layers)


def _axes(rows: int, columns: int) -> tuple[F64, F64]:
    """The values of a table's two axes, to be broadcast."""
    return grid_values(rows)[:, None].astype(np.float64), grid_values(columns)[None, :].astype(np.float64)


def _linear_ns(
    law: StepLaw,
    arch: Architecture,
    layout: Layout,
    sizes: TableSizes,
    weights: Precision | None,
    kv: Precision,
    stage: int,
) -> F64:
    """GEMMs, norms, activations, experts and collectives of one stage, for steps of 0, 1, .. new tokens.

    Up to the largest capture size a graph of the next size runs; above it kernels are launched one by one, and the step
    takes at least the time of its launches.
    """
    tokens = np.arange(sizes.max_num_batched_tokens + 1, dtype=np.int64)
    bounded = launched_ns(
        law,
        lambda padded: linear_operators(arch, layout, padded, weights, kv, stage),
        len(stage_layers(arch, layout.pipeline)[stage]),
        tokens,
        sizes,
    )
    # later stages prepare a step while the first computes it
    return np.where(tokens > 0, bounded + (law.gap_ns if stage == 0 else 0.0), 0.0)


def launched_ns(
    law: StepLaw, operators_of: Callable[[F64], list[Operator]], layers: int, tokens: I64, sizes: TableSizes
) -> F64:
    """A pass over `tokens` (i64[n]) tokens: `operators_of` so many, padded, and the attention of `layers` to launch."""
    captures = sizes.captures()
    padded = padded_tokens(tokens, captures)
    operators = operators_of(padded.astype(np.float64))
    total = sum_ns(law, operators, padded.shape)
    launches = sum(operator.launches for operator in operators) + layers
    eager = (tokens > max(captures, default=0)) & (tokens > 0)
    launch_ns = law.eager_launch_ns if sizes.enforce_eager else law.launch_ns
    return np.where(eager, np.maximum(total, launches * launch_ns), total)


def decode_ns(
    law: StepLaw, arch: Architecture, layout: Layout, requests: F64, contexts: F64, windowed: bool, kv: Precision
) -> F64:
    """Attention of `requests` decodes over `contexts` tokens in sum, of the layers with or without a window; in ns."""
    operators = decode_attention(arch, layout, requests, contexts, windowed, kv)
    return np.where(requests > 0, sum_ns(law, operators, np.broadcast_shapes(requests.shape, contexts.shape)), 0.0)


def prefill_ns(law: StepLaw, arch: Architecture, layout: Layout, chunk: F64, past: F64, kv: Precision) -> F64:
    """Attention of a prefill chunk after `past` tokens, all layers, and what else a chunk costs; in ns."""
    operators = prefill_attention(arch, layout, chunk, past, kv, law.prefill_extra_keys)
    total = sum_ns(law, operators, np.broadcast_shapes(chunk.shape, past.shape))
    return np.where(chunk > 0, total + law.chunk_ns, 0.0)


def state_ns(law: StepLaw, arch: Architecture, layout: Layout, batched: int) -> F64:
    """[grid(longest chunk), grid(tokens)] what chunks of up to `batched` tokens take in layers with states; in ns.

    Empty where no layer does.
    """
    if not arch.linear_layers:
        return NOT_ALONE
    assert law.state_prefill_ns is not None, "a law for layers that keep a state is expected"
    longest, tokens = _axes(batched, batched)
    total = np.zeros(np.broadcast_shapes(longest.shape, tokens.shape))
    for attention, count in Counter(arch.linear_layers).items():
        total += count * law.state_prefill_ns(attention.on_gpu(layout.tensor), longest, tokens)
    return total


def sum_ns(law: StepLaw, operators: Iterable[Operator], shape: tuple[int, ...]) -> F64:
    """The operators one after the other, f64[shape]."""
    total = np.zeros(shape)
    for operator in operators:
        total += law.operator_ns(operator)
    return total
