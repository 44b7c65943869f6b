"""Vidur's profiling tables as an operator profile: a directory of its CSVs, plain or gzip'd.

Read are `*mlp*.csv[.gz]` (GEMMs and elementwise kernels by tokens and tensor parallel degree), `*attention*.csv[.gz]`
(prefill of one request by chunk and past, decode by batch and context) and `*all_reduce*.csv[.gz]`, `*send_recv*`.
Times are medians in ms, spread kept as min and max of few repeats, so not taken for p10 and p90. Licence: MIT,
Microsoft; https://github.com/microsoft/vidur, data/profiling.
"""

import io
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from simkit import __version__
from simkit.bounded_file import read_bounded
from simkit.calibrate.operator_profile import DeviceSeen, Header, KernelSource, OperatorProfile, Origin
from simkit.calibrate.profile_csv import unzipped
from simkit.calibrate.profile_tables import TIMING, columns
from simkit.errors import InputError
from simkit.models.device import load_device

if TYPE_CHECKING:
    import pandas as pd

LARGEST_FILE_BYTES = 64 << 20
MOST_ROWS = 1_000_000
NS = 1e6  # of their ms
FLASH_ATTENTION = "AttentionBackend.FLASH_ATTENTION"


def import_vidur(folder: Path, device: str) -> OperatorProfile:
    """The tables of a directory, of one device.

    Args:
        folder: searched with all below it.
        device: whose they are, a name of `simkit devices`; Vidur's files do not say.

    Raises:
        InputError: naming the file, for a directory without tables, or one that is not of their form or that a folder
            or file name says is of another device.
    """
    import pandas as pd

    name = load_device(device).name
    if not folder.is_dir():
        raise InputError(f"{folder}: is no directory; name the one that holds Vidur's CSV files")
    parts: dict[str, list[pd.DataFrame]] = {}
    files = []
    for path in sorted(path for path in folder.rglob("*.csv*") if path.name.endswith((".csv", ".csv.gz"))):
        _check_device(path, folder, name)
        for table, frame in _tables(path):
            parts.setdefault(table, []).append(frame)
            files.append(path.name)
    if not parts:
        raise InputError(f"{folder}: holds no CSV named like Vidur's: *mlp*, *attention*, *all_reduce*, *send_recv*")
    tables = {table: _timed(pd.concat(frames, ignore_index=True), table) for table, frames in parts.items()}
    return OperatorProfile(_header(name, sorted(set(files))), tables)


def _check_device(path: Path, folder: Path, device: str) -> None:
    """InputError if a folder below `folder`, or the file, is named after a device of another kind."""
    for word in re.split(r"[^a-z0-9]+", str(path.relative_to(folder)).lower()):
        try:
            other = load_device(word).name
        except InputError:
            continue
        if _kind(other) != _kind(device):
            raise InputError(f"{path}: is of {word}, not of {device}; name the folder of one device's tables")


def _kind(device: str) -> str:
    return device.partition("-")[0]


def _header(device: str, files: list[str]) -> Header:
    return Header(
        name=f"vidur {device}",
        created=datetime.now(UTC).date().isoformat(),
        simkit_version=__version__,
        device=device,
        seen=DeviceSeen(name=device),
        kernels=KernelSource(name="torch GEMMs, FlashAttention, NCCL as Vidur timed them"),
        origin=Origin(kind="imported", name="microsoft/vidur data/profiling", licence="MIT", files=tuple(files[:1000])),
        notes=("times are rounded to 1 us", "of one tensor parallel degree attention was timed"),
    )


def _tables(path: Path) -> "Iterator[tuple[str, pd.DataFrame]]":
    kind = next((word for word in ("mlp", "attention", "all_reduce", "send_recv") if word in path.name), None)
    if kind is None:
        return
    raw = _read(path)
    try:
        if kind == "mlp":
            yield "gemm", _gemms(raw)
            yield "elementwise", _elementwise(raw)
        elif kind == "attention":
            yield "attention_prefill", _prefill(raw)
            yield "attention_decode", _decode(raw)
        else:
            yield "collective", _collective(raw, kind)
    except KeyError as error:
        raise InputError(f"{path}: column {error} is missing; this is not Vidur's {kind} table") from None
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: holds what is no number: {str(error).splitlines()[0][:200]}; repair it") from None


def _read(path: Path) -> "pd.DataFrame":
    import pandas as pd

    raw = read_bounded(path, LARGEST_FILE_BYTES, "Vidur's tables are smaller; name their directory")
    if path.suffix == ".gz":
        raw = unzipped(raw, path)
    try:
        frame = pd.read_csv(io.BytesIO(raw), nrows=MOST_ROWS + 1)
    except ValueError as error:  # pandas' own are ValueErrors
        raise InputError(f"{path}: is not a CSV table: {str(error).splitlines()[0][:200]}; copy it again") from None
    if len(frame) > MOST_ROWS:
        raise InputError(f"{path}: more than {MOST_ROWS:,} rows; this is none of Vidur's tables")
    return frame


def _timed(frame: "pd.DataFrame", table: str) -> "pd.DataFrame":
    """The table with its timing columns; of points timed twice the median, and those timed as 0 us left out."""
    names = [column.name for column in columns(table)][: -len(TIMING)]
    frame = frame[frame["median_ns"] > 0.0]
    medians = frame.groupby(names, sort=True)["median_ns"].median().reset_index()
    frame = medians.assign(p10_ns=np.nan, p90_ns=np.nan, repeats=0, known="measured", use="fit")
    return frame[[column.name for column in columns(table)]]


def _gemms(raw: "pd.DataFrame") -> "pd.DataFrame":
    """Their four GEMMs a layer, as a tensor parallel GPU runs them."""
    import pandas as pd

    tensor, hidden = raw["num_tensor_parallel_workers"], raw["n_embd"]
    kv_width = np.maximum(raw["n_kv_head"] // tensor, 1) * (hidden // raw["n_head"])
    ups = np.where(raw["use_gated_mlp"], 2, 1)
    shapes = {
        "attn_pre_proj": (hidden // tensor + 2 * kv_width, hidden),
        "attn_post_proj": (hidden, hidden // tensor),
        "mlp_up_proj": (ups * raw["n_expanded_embd"] // tensor, hidden),
        "mlp_down_proj": (hidden, raw["n_expanded_embd"] // tensor),
    }
    frames = [
        pd.DataFrame(
            {
                "dtype": "bf16",  # they timed fp16, which runs at the same rate
                "tokens": raw["num_tokens"],
                "n": n,
                "k": k,
                "kernel": "torch",
                "median_ns": raw[f"time_stats.{name}.median"] * NS,
            }
        )
        for name, (n, k) in shapes.items()
    ]
    return pd.concat(frames, ignore_index=True)


def _elementwise(raw: "pd.DataFrame") -> "pd.DataFrame":
    """Norm, rotary embedding, activation: under our names, by the bytes that they move."""
    import pandas as pd

    tensor, tokens = raw["num_tensor_parallel_workers"], raw["num_tokens"]
    head = raw["n_embd"] // raw["n_head"]
    heads = raw["n_head"] // tensor + np.maximum(raw["n_kv_head"] // tensor, 1)
    expanded = raw["n_expanded_embd"] // tensor
    # read and written elements a token: a norm with its residual 2 + 2, rotary in place, a gated product 2 + 1
    sizes = {
        "norm": ("input_layernorm", raw["n_embd"], 8 * raw["n_embd"]),
        "rope": ("attn_rope", heads * head, 4 * heads * head),
        "activation": ("mlp_act", expanded, 6 * expanded),
    }
    frames = [
        pd.DataFrame(
            {
                "name": name,
                "tokens": tokens,
                "width": width,
                "bytes": tokens * moved,
                "kernel": theirs,
                "median_ns": raw[f"time_stats.{theirs}.median"] * NS,
            }
        )
        for name, (theirs, width, moved) in sizes.items()
    ]
    return pd.concat(frames, ignore_index=True)


def _heads(raw: "pd.DataFrame") -> "pd.DataFrame":
    import pandas as pd

    raw = raw[raw["attention_backend"] == FLASH_ATTENTION]
    tensor = raw["num_tensor_parallel_workers"]
    return pd.DataFrame(
        {
            **{name: raw[name] for name in raw},
            "kv_dtype": "bf16",
            "heads": raw["n_q_head"] // tensor,
            "kv_heads": np.maximum(raw["n_kv_head"] // tensor, 1),
            "head_dim": raw["n_embd"] // raw["n_q_head"],
            "window": 0,
            "batch": raw["batch_size"],
            "kernel": "flash_attention",
        }
    )


def _prefill(raw: "pd.DataFrame") -> "pd.DataFrame":
    frame = _heads(raw[raw["is_prefill"].astype(bool)])
    return frame.assign(
        chunk=frame["prefill_chunk_size"],
        past=frame["kv_cache_size"],
        median_ns=frame["time_stats.attn_prefill.median"] * NS,
    )


def _decode(raw: "pd.DataFrame") -> "pd.DataFrame":
    """`kv_cache_size` tokens lie in the cache of each request; the new one makes one more."""
    frame = _heads(raw[~raw["is_prefill"].astype(bool)])
    length = frame["kv_cache_size"] + 1
    return frame.assign(
        context_tokens=length * frame["batch"],
        longest_tokens=length,
        contexts="",
        median_ns=frame["time_stats.attn_decode.median"] * NS,
    )


def _collective(raw: "pd.DataFrame", kind: str) -> "pd.DataFrame":
    """Of one node; a message is 16-bit elements of `size` bytes, the slowest rank's time counts."""
    import pandas as pd

    gpus = raw["num_workers"]
    # two GPUs of two nodes are in both files: a link that is ten to thirty times as slow
    raw = raw[(raw["devices_per_node"] == gpus) & ((gpus == 2) | (kind == "all_reduce"))]
    slowest = raw.groupby(["num_workers", "size"], as_index=False)[f"time_stats.{kind}.median"].max()
    return pd.DataFrame(
        {
            "kind": "all_reduce" if kind == "all_reduce" else "send",
            "gpus": slowest["num_workers"],
            "bytes": slowest["size"],
            "kernel": "NCCL",
            "median_ns": slowest[f"time_stats.{kind}.median"] * NS,
        }
    )
