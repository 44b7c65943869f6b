"""The times of every operator, from a profile's measurements, each with how well it is known.

    model = fit_operators(read_operator_profile(Path("h200")))
    model.gemm_ns(tokens=np.array([1.0, 64.0, 2048.0]), n=6144, k=4096).ns            # f64[3], ns
    model.decode_attention_ns(batch, context_tokens, AttentionShape(32, 8, 128))      # even lengths, arrays broadcast
    model.ragged_decode_ns(np.array([512, 512, 65536]), AttentionShape(32, 8, 128))   # one batch of these lengths
    model.prefill_attention_ns(chunk, past, AttentionShape(32, 8, 128))
    model.latent_decode_ns(batch, context_tokens, LatentShape(heads=128)); model.latent_prefill_ns(chunk, past, ..)
    model.moe_ns(tokens, MoeShape(hidden=4096, width=14336, experts=8, top_k=2))
    model.all_reduce_ns(message_bytes, gpus=8)
    model.elementwise_ns("norm", moved_bytes); model.sampling_ns(rows, vocab); model.host_ns(requests)
    model.mixed_attention_ns(chunk, past, batch, context_tokens, AttentionShape(32, 8, 128))
    model.copy_ns("host_to_device", copied_bytes)

All take and return arrays of any shape, and all times are of ONE launch on one GPU (a layer's, not a model's). A method
returns None where the profile has no measurement that could stand in: the caller falls back (`operator_tables.py` does,
to a roofline, tagged assumed). Fitting takes a second or two.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from simkit.calibrate.chip import chip_of
from simkit.calibrate.collective_model import CollectiveModel, fit_collectives
from simkit.calibrate.copy_model import CopyModel, fit_copies
from simkit.calibrate.decode_model import DecodeModel, fit_decode
from simkit.calibrate.elementwise_model import ElementwiseModel, SamplingModel, fit_elementwise, fit_sampling
from simkit.calibrate.gemm_model import GemmModel, fit_gemm
from simkit.calibrate.host_model import HostModel, fit_host
from simkit.calibrate.latent_attention import as_decode, as_prefill, decode_shape, prefill_shape
from simkit.calibrate.mixed_model import APART, MixedModel, fit_mixed
from simkit.calibrate.moe_model import MoeModel, fit_moe
from simkit.calibrate.operator_profile import Header, OperatorProfile
from simkit.calibrate.operator_sizes import AttentionShape, LatentShape, MoeShape
from simkit.calibrate.prefill_model import PrefillModel, fit_prefill
from simkit.calibrate.provenance import Times

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


@dataclass(frozen=True)
class OperatorModel:
    """What a profile says about each family of operators; None where it has no table of it."""

    header: Header
    gemm: GemmModel | None
    decode: DecodeModel | None
    prefill: PrefillModel | None
    latent_decode: DecodeModel | None
    latent_prefill: PrefillModel | None
    moe: MoeModel | None
    collective: CollectiveModel | None
    elementwise: ElementwiseModel | None
    sampling: SamplingModel | None
    host: HostModel | None
    mixed: MixedModel | None
    copies: CopyModel | None

    def gemm_ns(self, tokens: F64, n: int, k: int, dtype: str = "bf16") -> Times | None:
        """[tokens, k] x [k, n] with weights of `dtype`; None if that was not timed."""
        if self.gemm is None or dtype not in self.gemm.by_dtype:
            return None
        return self.gemm.ns(tokens, n, k, dtype)

    def decode_attention_ns(self, batch: F64, context_tokens: F64, shape: AttentionShape) -> Times | None:
        """One layer's attention of `batch` requests with one new token each, over `context_tokens` in sum."""
        return None if self.decode is None else self.decode.ns(batch, context_tokens, shape)

    def ragged_decode_ns(self, contexts: I64, shape: AttentionShape) -> Times | None:
        """The same of one batch of these lengths, i64[requests]; a scalar time."""
        return None if self.decode is None else self.decode.ragged_ns(contexts, shape)

    def prefill_attention_ns(self, chunk: F64, past: F64, shape: AttentionShape, batch: int = 1) -> Times | None:
        """One layer's attention of `batch` requests that each add `chunk` tokens to `past`."""
        return None if self.prefill is None else self.prefill.ns(chunk, past, shape, batch)

    def latent_decode_ns(self, batch: F64, context_tokens: F64, shape: LatentShape) -> Times | None:
        """The decode of one layer of latent attention, absorbed, projections excluded."""
        if self.latent_decode is None:
            return None
        return self.latent_decode.ns(batch, context_tokens, decode_shape(shape))

    def latent_prefill_ns(self, chunk: F64, past: F64, shape: LatentShape) -> Times | None:
        """The prefill of one layer of latent attention, keys and values spelt out; projections excluded."""
        return None if self.latent_prefill is None else self.latent_prefill.ns(chunk, past, prefill_shape(shape))

    def mixed_attention_ns(
        self, chunk: F64, past: F64, batch: F64, context_tokens: F64, shape: AttentionShape
    ) -> Times | None:
        """One layer's attention of a chunk and of decodes in one launch; one after the other if that was not timed."""
        decode, prefill = (
            self.decode_attention_ns(batch, context_tokens, shape),
            self.prefill_attention_ns(chunk, past, shape),
        )
        if decode is None or prefill is None:
            return None
        return (self.mixed or APART).together(decode, prefill)

    def copy_ns(self, direction: str, copied_bytes: F64) -> Times | None:
        """One copy; directions as in `profile_tables.COPIES`."""
        if self.copies is None or direction not in self.copies.lines:
            return None
        return self.copies.ns(direction, copied_bytes)

    def moe_ns(self, tokens: F64, shape: MoeShape) -> Times | None:
        """One layer's routed experts, router excluded; None if no such dtype was timed."""
        if self.moe is None or self.moe.routing(shape.dtype) is None:
            return None
        return self.moe.ns(tokens, shape)

    def collective_ns(self, kind: str, message_bytes: F64, gpus: int) -> Times | None:
        """One collective of a whole message; kinds as in `profile_tables.COLLECTIVES`."""
        if self.collective is None or not self.collective.has(kind):
            return None
        return self.collective.ns(kind, message_bytes, gpus)

    def all_reduce_ns(self, message_bytes: F64, gpus: int) -> Times | None:
        """One sum of `message_bytes` over GPUs of a node."""
        return self.collective_ns("all_reduce", message_bytes, gpus)

    def elementwise_ns(self, name: str, moved_bytes: F64) -> Times | None:
        """One launch that reads and writes so many bytes."""
        return None if self.elementwise is None else self.elementwise.ns(name, moved_bytes)

    def sampling_ns(self, rows: F64, vocab: int) -> Times | None:
        """Sampling `rows` tokens from logits."""
        return None if self.sampling is None else self.sampling.ns(rows, vocab)

    def host_ns(self, requests: F64) -> Times | None:
        """CPU time between two steps of so many requests."""
        return None if self.host is None or self.host.step_ns is None else self.host.ns(requests)


def fit_operators(profile: OperatorProfile) -> OperatorModel:
    """Fit every table of a profile; rows kept as held-out are not looked at."""
    tables = {name: frame[frame["use"] == "fit"] for name, frame in profile.tables.items()}
    tables = {name: frame for name, frame in tables.items() if len(frame)}

    def table(name: str) -> bool:
        return name in tables

    chip = chip_of(profile.header)
    model = OperatorModel(
        header=profile.header,
        gemm=fit_gemm(tables["gemm"], chip.multiprocessors) if table("gemm") else None,
        decode=(
            fit_decode(tables["attention_decode"], chip)
            if table("attention_decode") and (tables["attention_decode"]["contexts"] == "").any()
            else None
        ),
        prefill=fit_prefill(tables["attention_prefill"]) if table("attention_prefill") else None,
        latent_decode=fit_decode(as_decode(tables["mla_decode"]), chip) if table("mla_decode") else None,
        latent_prefill=fit_prefill(as_prefill(tables["mla_prefill"])) if table("mla_prefill") else None,
        moe=fit_moe(tables["moe"]) if table("moe") else None,
        collective=fit_collectives(tables["collective"]) if table("collective") else None,
        elementwise=fit_elementwise(tables["elementwise"]) if table("elementwise") else None,
        sampling=fit_sampling(tables["sampling"]) if table("sampling") else None,
        host=fit_host(tables["host"]) if table("host") else None,
        mixed=None,
        copies=fit_copies(tables["copy"]) if table("copy") else None,
    )
    if not table("attention_mixed") or model.decode is None or model.prefill is None:
        return model
    return replace(model, mixed=fit_mixed(tables["attention_mixed"], model.decode.ns, model.prefill.ns))
