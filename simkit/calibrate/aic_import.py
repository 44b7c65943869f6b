"""AIConfigurator's measured tables as an operator profile.

Their times are medians in ms of kernels replayed in a CUDA graph, without a spread. What they lack: attention has no
ragged batches and, in prefill, no past; there are no elementwise kernels and no host. The models of `operator_model.py`
fill that by scaling their own forms, and tag it.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from simkit import __version__
from simkit.calibrate.aic_experts import with_matrices
from simkit.calibrate.aic_source import (
    DISTRIBUTION,
    SYSTEMS,
    TableOrigin,
    check_system,
    distribution_version,
    find_table,
    read_parquet,
    versions_of,
)
from simkit.calibrate.operator_profile import DeviceSeen, Header, KernelSource, OperatorProfile, Origin
from simkit.calibrate.operator_sizes import LatentShape
from simkit.calibrate.profile_tables import TIMING, columns
from simkit.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

DTYPES = {"bfloat16": "bf16", "float16": "bf16", "half": "bf16", "fp8": "fp8", "fp8_block": "fp8_block"}
ABSENT: dict[str, int | str] = {"window_size": 0, "device": ""}  # in files before version 0.24 of vLLM, NCCL 2.26
DTYPES |= {"fp8_static": "fp8", "int8_wo": "int8", "int4_wo": "int4", "w4a16_mxfp4": "mxfp4", "nvfp4": "nvfp4"}


OWN = "own"  # the engine asked for


class _Their(NamedTuple):
    """One of their tables and how it reads."""

    table: str  # ours
    family: str  # their folder
    file: str
    convert: "Callable[[pd.DataFrame], pd.DataFrame]"
    columns: tuple[str, ...]
    sources: tuple[str, ...] = (OWN,)  # whose will do, best first


def import_aic(system: str, backend: str, version: str | None = None) -> OperatorProfile:
    """Their newest tables of a system and an engine, or those of one version of it.

    Raises:
        InputError: the distribution is not installed, or has no such system, engine or version.
    """
    check_system(system, backend)
    known = versions_of(system, backend)
    if not known:
        raise InputError(f"--backend {backend}: {DISTRIBUTION} has no tables of it for {system}; try another")
    if version is not None and version not in known:
        raise InputError(f"--version {version}: not among those of {backend} on {system}: {', '.join(known)}")
    tables: dict[str, pd.DataFrame] = {}
    files: list[str] = []
    versions: dict[str, str] = {}
    seen = ""
    for their in _THEIR:
        source, origin = _origin(their, system, backend, version)
        if origin is None:
            continue
        raw = read_parquet(origin.path, (*their.columns, "kernel_source", "device", "latency"), ABSENT)
        seen = seen or str(raw["device"].iloc[0])
        converted = their.convert(raw)
        if their.table == "moe":
            converted = with_matrices(converted, source, origin.version)
        frame = _timed(converted, their.table)
        if len(frame):
            _merge(tables, their.table, frame)
            files.append(_place(origin))
            versions[source] = origin.version
    if not tables:
        raise InputError(f"--version {version}: {backend} {version} on {system} has no table that is known here")
    notes = _notes(backend, versions, tables)
    return OperatorProfile(_header(system, backend, versions, seen, files, notes), tables)


def _origin(their: _Their, system: str, backend: str, version: str | None) -> tuple[str, TableOrigin | None]:
    """Whose table it is, and where it lies; None if nobody has one."""
    for name in their.sources:
        source = backend if name == OWN else name
        found = find_table(system, their.family, source, their.file, version if source == backend else None)
        if found is not None:
            return source, found
    return backend, None


def _header(
    system: str, backend: str, versions: dict[str, str], seen: str, files: list[str], notes: tuple[str, ...]
) -> Header:
    engine = f"{backend} {versions.get(backend, '')}".strip()
    return Header(
        name=f"aiconfigurator {system} {engine}",
        created=datetime.now(UTC).date().isoformat(),
        simkit_version=__version__,
        device=SYSTEMS[system] or system.replace("_", "-"),
        seen=DeviceSeen(name=seen),
        engine=engine,
        versions=versions,
        kernels=KernelSource(name=f"{engine}, the kernels each row names"),
        origin=Origin(
            kind="imported",
            name=DISTRIBUTION,
            version=distribution_version(),
            licence="Apache-2.0",
            files=tuple(files),
        ),
        notes=notes,
    )


def _notes(backend: str, versions: dict[str, str], tables: "dict[str, pd.DataFrame]") -> tuple[str, ...]:
    """What whoever uses the tables should know of how they were timed."""
    notes = [
        "small KV caches were timed from the L2 cache: below its size real decode attention is slower",
        "prefill attention was timed without a past; ragged decode batches were not timed",
    ]
    if "gemm" in tables and (tables["gemm"]["dtype"] == "fp8_block").any():
        launches = "with their launches: 55 us or more whatever the size, which a CUDA graph saves"
        notes.append(f"fp8_block GEMMs were timed {launches}")
    others = [f"{name} {version}" for name, version in sorted(versions.items()) if name not in (backend, "nccl")]
    if others:
        notes.append(f"latent attention (MLA): kernels of {' and '.join(others)}")
    return tuple(notes)


def _place(origin: TableOrigin) -> str:
    return "/".join(origin.path.parts[-5:])


def _timed(frame: "pd.DataFrame", table: str) -> "pd.DataFrame":
    """The table with its timing columns; of rows of equal sizes the last one counts, as appended corrections do."""
    frame = frame.assign(p10_ns=np.nan, p90_ns=np.nan, repeats=0, known="measured", use="fit")
    names = [column.name for column in columns(table)]
    frame = frame[frame["median_ns"] > 0.0]
    return frame.drop_duplicates(names[: -len(TIMING)], keep="last")[names].reset_index(drop=True)


def _merge(tables: "dict[str, pd.DataFrame]", name: str, frame: "pd.DataFrame") -> None:
    """Add rows to a table; of collectives the engine's own stand, NCCL's are for kinds that it has none of."""
    import pandas as pd

    if name not in tables:
        tables[name] = frame
        return
    others = frame[~frame["kind"].isin(tables[name]["kind"].unique())]
    tables[name] = pd.concat([tables[name], others], ignore_index=True)


def _common(raw: "pd.DataFrame") -> "pd.DataFrame":
    return raw.assign(median_ns=raw["latency"] * 1e6, kernel=raw["kernel_source"])


def _gemm(raw: "pd.DataFrame") -> "pd.DataFrame":
    frame = _common(raw).assign(dtype=raw["gemm_dtype"].map(DTYPES), tokens=raw["m"])
    return frame.dropna(subset=["dtype"])


def _attention(raw: "pd.DataFrame") -> "pd.DataFrame":
    kv = raw["kv_cache_dtype"].map({"bfloat16": "bf16", "float16": "bf16", "fp8": "fp8"})
    frame = _common(raw).assign(
        kv_dtype=kv,
        heads=raw["num_heads"],
        kv_heads=raw["num_key_value_heads"],
        window=raw["window_size"],
        batch=raw["batch_size"],
    )
    # attention computed at 8 bits is another kernel, which serving engines do not run by default
    return frame[frame["attn_dtype"].isin(("bfloat16", "float16"))].dropna(subset=["kv_dtype"])


def _decode(raw: "pd.DataFrame") -> "pd.DataFrame":
    """`step` tokens lie in the cache; the new one makes one more."""
    length = raw["step"] + raw["isl"]
    return _attention(raw.assign(longest_tokens=length, context_tokens=length * raw["batch_size"], contexts=""))


def _prefill(raw: "pd.DataFrame") -> "pd.DataFrame":
    frame = _attention(raw.assign(chunk=raw["isl"], past=raw["step"]))
    # a chunk of one token is a decode
    return frame[frame["chunk"] > 1]


def _latent(raw: "pd.DataFrame") -> "pd.DataFrame":
    """DeepSeek-V3's widths; they name the heads of one GPU."""
    kv = raw["kv_cache_dtype"].map({"bfloat16": "bf16", "float16": "bf16", "fp8": "fp8"})
    frame = _common(raw).assign(kv_dtype=kv, heads=raw["num_heads"], batch=raw["batch_size"])
    return frame[frame["mla_dtype"].isin(("bfloat16", "float16"))].dropna(subset=["kv_dtype"])


def _latent_decode(raw: "pd.DataFrame") -> "pd.DataFrame":
    """`step` tokens lie in the cache, as for other attention."""
    length = raw["step"] + raw["isl"]
    sizes = {"context_tokens": length * raw["batch_size"], "longest_tokens": length}
    return _latent(raw.assign(kv_rank=_WIDTHS.kv_rank, rope_dim=_WIDTHS.rope_dim, **sizes))


def _latent_prefill(raw: "pd.DataFrame") -> "pd.DataFrame":
    sizes = {"query_dim": _WIDTHS.query_dim, "value_dim": _WIDTHS.value_dim}
    frame = _latent(raw.assign(chunk=raw["isl"], past=raw["step"], **sizes))
    return frame[frame["chunk"] > 1]


def _moe(raw: "pd.DataFrame") -> "pd.DataFrame":
    frame = _common(raw).assign(
        dtype=raw["moe_dtype"].map(DTYPES),
        tokens=raw["num_tokens"],
        hidden=raw["hidden_size"],
        width=raw["inter_size"],
        experts=raw["num_experts"],
        top_k=raw["topk"],
        tensor=raw["moe_tp_size"],
        expert=raw["moe_ep_size"],
        routing=raw["distribution"],
    )
    return frame.dropna(subset=["dtype"])


def _custom_all_reduce(raw: "pd.DataFrame") -> "pd.DataFrame":
    """The engine's own all-reduce, inside a CUDA graph where it was timed both ways; `message_size` counts elements.

    That it does: NCCL's times of 16-bit and 8-bit elements agree only so.
    """
    frame = _common(raw).assign(kind="all_reduce", gpus=raw["num_gpus"], bytes=raw["message_size"] * 2)
    graph = ~frame["kernel"].str.contains("eager")
    return frame[graph & (raw["allreduce_dtype"] == "bfloat16")]


def _nccl(raw: "pd.DataFrame") -> "pd.DataFrame":
    kinds = {"all_gather": "all_gather", "all_reduce": "all_reduce", "alltoall": "all_to_all"}
    kinds["reduce_scatter"] = "reduce_scatter"
    frame = _common(raw).assign(kind=raw["op_name"].map(kinds), gpus=raw["num_gpus"], bytes=raw["message_size"] * 2)
    return frame[raw["nccl_dtype"] == "half"].dropna(subset=["kind"])


_WIDTHS = LatentShape(1)
_SIZES = ("batch_size", "isl", "num_heads", "num_key_value_heads", "head_dim", "window_size", "step")
_ATTENTION = (*_SIZES, "attn_dtype", "kv_cache_dtype")
_LATENT = ("batch_size", "isl", "num_heads", "step", "mla_dtype", "kv_cache_dtype")
_MOE = ("num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size", "moe_ep_size")
_THEIR = (
    _Their("gemm", "gemm", "gemm_perf", _gemm, ("gemm_dtype", "m", "n", "k")),
    _Their("attention_prefill", "attention", "context_attention_perf", _prefill, _ATTENTION),
    _Their("attention_decode", "attention", "generation_attention_perf", _decode, _ATTENTION),
    # sglang timed prefills against the latents, three times the work: vLLM and TensorRT-LLM spell keys and values out
    _Their("mla_prefill", "mla", "context_mla_perf", _latent_prefill, _LATENT, ("trtllm",)),
    _Their("mla_decode", "mla", "generation_mla_perf", _latent_decode, _LATENT, (OWN, "sglang", "trtllm")),
    _Their("moe", "moe", "moe_perf", _moe, (*_MOE, "moe_dtype", "distribution")),
    _Their(
        "collective", "comm", "custom_allreduce_perf", _custom_all_reduce,
        ("allreduce_dtype", "num_gpus", "message_size"),
    ),
    _Their(
        "collective", "comm", "nccl_perf", _nccl, ("op_name", "nccl_dtype", "num_gpus", "message_size"), ("nccl",)
    ),
)  # fmt: skip
