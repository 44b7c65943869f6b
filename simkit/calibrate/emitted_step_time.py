"""The time of one emitted step, composed of the operators that a profile times: to be held against the whole step.

The engine's tables answer for steps of so many tokens and contexts; this knows every request of a step, so that what
it misses is due to the operators and their composition alone.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simkit.calibrate.emitted_launches import as_launched
from simkit.calibrate.emitted_points import EmittedShare, Step
from simkit.calibrate.host_model import fit_prepare
from simkit.calibrate.operator_model import OperatorModel
from simkit.calibrate.operator_sizes import DTYPE_BYTES, AttentionShape
from simkit.calibrate.provenance import Times
from simkit.models.architecture import Architecture, GroupedAttention, MoE
from simkit.models.layout import Layout
from simkit.models.operators import Operator, linear_operators, sampling_operators

if TYPE_CHECKING:
    import pandas as pd

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


class StepPart(NamedTuple):
    """One kind of operator in one step, all layers."""

    name: str
    ns: float
    tag: int  # of provenance.Tag, the worst of its launches


class StepComposer(NamedTuple):
    """Composes steps of a model of grouped attention on one GPU, or a CPU."""

    model: OperatorModel
    arch: Architecture
    dtype: str
    prepare: Callable[[int, int], float] | None = None  # ns of (requests, tokens) that the device waits for

    def parts(self, step: Step) -> list[StepPart]:
        """The parts of a step; KeyError for an operator that the profile has nothing for."""
        tokens, rows = sum(share.new for share in step), sum(share.samples for share in step)
        found = [*self._linear(float(tokens)), *self._attention(step)]
        if rows:
            found += self._sampling(float(rows))
        if self.prepare is not None:
            found.append(StepPart("prepare", self.prepare(len(step), tokens), 1))
        return found

    def ns(self, step: Step) -> float:
        """The time of a step."""
        return sum(part.ns for part in self.parts(step))

    def _linear(self, tokens: float) -> Iterator[StepPart]:
        scale = DTYPE_BYTES[self.dtype] / 2.0
        if any(isinstance(layer.ffn, MoE) for layer in self.arch.kinds):
            raise KeyError("experts are not composed here")
        for op in as_launched(linear_operators(self.arch, Layout(), np.array([tokens]), "bf16"), self.model):
            if op.family == "gemm":
                yield self._gemm(op, tokens)
            else:
                times = self.model.elementwise_ns(op.name, op.memory_bytes * scale / op.launches)
                yield _part(op.name, times, op.launches)

    def _gemm(self, op: Operator, tokens: float) -> StepPart:
        """n and k from the counts: activations read and written, 2 bytes each."""
        each = 2.0 * tokens * op.launches
        n, k = round(float(op.written_bytes[0]) / each), round(float(op.read_bytes[0]) / each)
        times = self.model.gemm_ns(np.array([tokens]), n, k, self.dtype)
        return _part(op.name, times, op.launches)

    def _attention(self, step: Step) -> Iterator[StepPart]:
        contexts = np.array([share.before + 1 for share in step if share.new == 1], dtype=np.int64)
        chunks = [share for share in step if share.new > 1]
        for layer, count in self.arch.kinds.items():
            form = layer.attention
            if not isinstance(form, GroupedAttention):
                raise KeyError("latent attention is not composed here")
            shape = AttentionShape(form.heads, form.kv_heads, form.head_dim, form.window_tokens or 0, self.dtype)
            yield from self._heads(shape, contexts, chunks, count)

    def _heads(
        self, shape: AttentionShape, contexts: I64, chunks: list[EmittedShare], count: int
    ) -> Iterator[StepPart]:
        """Decodes and chunks of one kind of layer, and what it saves or costs that both are in one launch."""
        decode = self.model.ragged_decode_ns(contexts, shape) if len(contexts) else None
        prefill = None
        if chunks:
            news, befores = (np.array([float(getattr(share, name)) for share in chunks]) for name in ("new", "before"))
            each = self.model.prefill_attention_ns(news, befores, shape)
            prefill = None if each is None else Times(each.ns.sum(), each.tag.max())
        if len(contexts):
            yield _part("attention_decode", decode, count)
        if chunks:
            yield _part("attention_prefill", prefill, count)
        if decode is not None and prefill is not None and self.model.mixed is not None:
            both = self.model.mixed.together(decode, prefill)
            yield _part("attention_mixed", both._replace(ns=both.ns - decode.ns - prefill.ns), count)

    def _sampling(self, rows: float) -> Iterator[StepPart]:
        for op in sampling_operators(self.arch, Layout(), np.array([rows])):
            if op.family == "gemm":
                yield self._gemm(op, rows)
            else:
                yield _part(op.name, self.model.sampling_ns(np.array([rows]), self.arch.vocab), 1)


def _part(name: str, times: Times | None, launches: int) -> StepPart:
    if times is None:
        raise KeyError(f"the profile has nothing for {name}")
    return StepPart(name, launches * float(np.ravel(times.ns)[0]), int(np.ravel(times.tag)[0]))


def prepare_line(host: "pd.DataFrame") -> Callable[[int, int], float] | None:
    """What a profile's `host` table says of preparing (requests, tokens): step + request + token; None if nothing."""
    found = fit_prepare(host[host["use"] == "fit"])
    return (
        None
        if found is None
        else lambda requests, tokens: found.step_ns + found.request_ns * requests + found.token_ns * tokens
    )


class ComposedError(NamedTuple):
    """Predicted over measured steps, as shares: 0.05 is 5 %."""

    steps: int
    median_abs: float
    p95_abs: float
    bias: float  # all predicted time / all measured time - 1
    worst_abs: float


def composed_error(predicted_ns: Sequence[float], measured_ns: Sequence[float]) -> ComposedError:
    """The errors of predictions of one or more measured times."""
    predicted, measured = np.array(predicted_ns), np.array(measured_ns)
    off = np.abs(predicted / measured - 1.0)
    return ComposedError(
        steps=len(off),
        median_abs=float(np.median(off)),
        p95_abs=float(np.percentile(off, 95)),
        bias=float(predicted.sum() / measured.sum() - 1.0),
        worst_abs=float(off.max()),
    )
