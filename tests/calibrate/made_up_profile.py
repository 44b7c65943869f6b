"""A made-up device whose kernels follow closed forms, and the profile that measuring it would give."""

import numpy as np
import pandas as pd

from simkit.calibrate.operator_profile import DeviceSeen, Header, KernelSource, OperatorProfile, Origin
from simkit.calibrate.profile_tables import columns

FIXED_NS = 4_000.0
FLOPS_PER_NS = 500e3  # 500 TFLOP/s
BYTES_PER_NS = 3e3  # 3 TB/s

GEMM_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 192, 256, 512, 1024, 2048, 4096, 8192)
WIDTHS = (1024, 2048, 4096, 8192, 16384)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CONTEXTS = (16, 64, 256, 1024, 4096, 16384)
CHUNKS = (16, 64, 256, 1024, 4096, 8192)
PASTS = (0, 256, 1024, 4096, 16384)
HEADS = ((8, 1), (8, 2), (16, 4), (32, 8), (32, 4), (64, 8))


def work_ns(flops: object, moved: object) -> np.ndarray:
    """What the device takes: a start, and the longer of computing and moving."""
    return FIXED_NS + np.maximum(np.asarray(flops) / FLOPS_PER_NS, np.asarray(moved) / BYTES_PER_NS)


def gemm_ns(tokens: object, n: object, k: object) -> np.ndarray:
    """[tokens, k] x [k, n] at 16 bits."""
    m, n, k = (np.asarray(value, float) for value in (tokens, n, k))
    return work_ns(2.0 * m * n * k, 2.0 * (n * k + m * k + m * n))


def decode_ns(batch: object, context_tokens: object, heads: object, kv_heads: object) -> np.ndarray:
    """Reads keys and values of 128 x 16 bits once."""
    total = np.asarray(context_tokens, float)
    kv = 2.0 * np.asarray(kv_heads, float) * 128 * 2
    io = 4.0 * np.asarray(batch, float) * np.asarray(heads, float) * 128
    return work_ns(0.0, total * kv + io)


def prefill_ns(chunk: object, past: object, heads: object) -> np.ndarray:
    """Computes every query-key pair at 128 dimensions."""
    c, p = np.asarray(chunk, float), np.asarray(past, float)
    return work_ns(4.0 * 128 * np.asarray(heads, float) * (c * p + c * (c + 1) / 2), 0.0)


def table(name: str, median_ns: object, **sizes: object) -> pd.DataFrame:
    """Rows of a table with all its columns."""
    frame = pd.DataFrame({**sizes, "median_ns": median_ns})
    filled = {"kernel": "made up", "contexts": "", "p10_ns": np.nan, "p90_ns": np.nan}
    filled |= {
        "repeats": 5,
        "known": "measured",
        "use": "fit",
        "kv_dtype": "bf16",
        "dtype": "bf16",
        "window": 0,
        "matrices": 3,
    }
    for column in columns(name):
        if column.name not in frame:
            frame[column.name] = filled[column.name]
    return frame[[column.name for column in columns(name)]]


def gemm_table() -> pd.DataFrame:
    m, n, k = (axis.ravel() for axis in np.meshgrid(GEMM_TOKENS, WIDTHS, WIDTHS, indexing="ij"))
    return table("gemm", gemm_ns(m, n, k), tokens=m, n=n, k=k)


def decode_table() -> pd.DataFrame:
    shape, batch, each = (axis.ravel() for axis in np.meshgrid(np.arange(len(HEADS)), BATCHES, CONTEXTS, indexing="ij"))
    heads, kv_heads = np.array(HEADS)[shape].T
    ns = decode_ns(batch, batch * each, heads, kv_heads)
    sizes = {"batch": batch, "context_tokens": batch * each, "longest_tokens": each}
    return table("attention_decode", ns, heads=heads, kv_heads=kv_heads, head_dim=128, **sizes)


def prefill_table() -> pd.DataFrame:
    shape, chunk, past = (axis.ravel() for axis in np.meshgrid(np.arange(len(HEADS)), CHUNKS, PASTS, indexing="ij"))
    heads, kv_heads = np.array(HEADS)[shape].T
    ns = prefill_ns(chunk, past, heads)
    return table("attention_prefill", ns, heads=heads, kv_heads=kv_heads, head_dim=128, batch=1, chunk=chunk, past=past)


def header(**changes: object) -> Header:
    """A header of the made-up device, which is called h100-sxm so that a datasheet is at hand."""
    values: dict[str, object] = {
        "name": "made up",
        "created": "2026-01-31",
        "simkit_version": "0",
        "device": "h100-sxm",
        "seen": DeviceSeen(name="made up", multiprocessors=132),
        "kernels": KernelSource(name="closed forms"),
        "origin": Origin(kind="measured", name="arithmetic"),
    }
    return Header(**(values | changes))


def made_up_profile() -> OperatorProfile:
    """GEMM, decode and prefill attention, host."""
    requests = np.array([1, 8, 64, 256])
    return OperatorProfile(
        header(),
        {
            "gemm": gemm_table(),
            "attention_decode": decode_table(),
            "attention_prefill": prefill_table(),
            "host": table("host", 200e3 + 3e3 * requests, part="step", requests=requests, tokens=requests),
        },
    )
