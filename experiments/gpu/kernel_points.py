"""What `kernels.py` times, most important first: sizes, the work in bytes and operations, and what is aimed at.

A point's `ceiling` is the machine's rate that its work is compared with: bytes over `read` (decode reads and hardly
writes) or `copy` (as much read as written), or operations over `gemm`. Aims are fractions of the measured ceilings.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

Ceiling = Literal["read", "copy", "gemm"]
HEADS = {"q_heads": 32, "kv_heads": 8, "head_dim": 128}  # Llama 3 8B's
PAGE = 16


class Point(NamedTuple):
    """One kernel at one size."""

    kernel: str
    sizes: Mapping[str, int | str]
    ceiling: Ceiling
    aim: float | None = None  # of the ceiling
    stretch: float | None = None
    against: tuple[str, ...] = ()  # torch's ways of doing the same
    most_of_torch: float | None = None  # at most this many times the time of torch's best

    @property
    def label(self) -> str:
        """For tables."""
        return f"{self.kernel} " + " ".join(f"{name}={value}" for name, value in self.sizes.items())


class Work(NamedTuple):
    """What a point moves and computes, at least."""

    moved_bytes: float
    operations: float


def decode(
    batch: int, context: int, aim: float | None = None, stretch: float | None = None, **more: int | str
) -> Point:
    sizes = {**HEADS, "page": PAGE, "kv": "bf16", **more, "batch": batch, "context": context}
    plain = "window" not in sizes and sizes["kv"] == "bf16"
    ways = ("gather + SDPA", "SDPA contiguous") if plain else ()
    return Point("decode", sizes, "read", aim, stretch, ways, 1.0 if plain else None)


def prefill(
    batch: int, chunk: int, past: int, aim: float | None = None, stretch: float | None = None, **more: int
) -> Point:
    sizes = {**HEADS, "page": PAGE, **more, "batch": batch, "chunk": chunk, "past": past}
    ways = ("SDPA cuDNN", "SDPA flash") if not past else ()
    return Point("prefill", sizes, "gemm", aim, stretch, ways, 1.25 if not past else None)


def elementwise(kernel: str, against: tuple[str, ...] = (), **sizes: int | str) -> Point:
    return Point(kernel, sizes, "copy", 0.80, None, against)


POINTS: tuple[Point, ...] = (
    decode(64, 4096, 0.85, 0.92),
    decode(128, 4096, 0.85, 0.92),
    decode(64, 16384, 0.85, 0.92),
    decode(16, 8192, 0.75, 0.85),
    decode(1, 131072, 0.70, 0.85),
    decode(1, 8192, 0.30, 0.40),
    prefill(1, 8192, 0, 0.55, 0.65),
    prefill(2, 8192, 0, 0.55, 0.65),
    prefill(1, 512, 8192, 0.45, None),
    elementwise("rms_norm add", ("torch rms_norm",), tokens=16384, columns=4096),
    elementwise("activation", ("torch silu",), tokens=8192, width=14336),
    elementwise("rope_cache", (), tokens=16384, **HEADS),
    elementwise("layer_norm add", ("torch layer_norm",), tokens=16384, columns=4096),
    elementwise("block_copy", ("torch index",), blocks=8192, block_bytes=32768),
    decode(256, 4096, 0.85, 0.92, page=64),
    decode(64, 4096, None, None, kv="fp8"),
    decode(64, 4096, None, None, q_heads=64, kv_heads=8),
    decode(64, 4096, None, None, q_heads=32, kv_heads=32),
    decode(64, 8192, None, None, q_heads=64, head_dim=64, window=128),
    decode(64, 1024),
    decode(16, 1024),
    prefill(1, 2048, 0),
    prefill(1, 16384, 0),
    prefill(8, 512, 0),
    prefill(1, 8192, 0, None, None, head_dim=64),
    prefill(1, 8192, 0, None, None, head_dim=256, q_heads=16),
    Point("mixed", {**HEADS, "page": PAGE, "decodes": 64, "context": 4096, "chunk": 512, "past": 4096}, "read"),
    Point("mla_decode", {"heads": 128, "page": 64, "batch": 64, "context": 4096}, "gemm"),
    Point("mla_decode", {"heads": 16, "page": 64, "batch": 64, "context": 4096}, "read"),
    Point("grouped_gemm", {"tokens": 64, "k": 8, "experts": 128, "n_in": 2048, "n_out": 1536}, "read"),
    Point(
        "grouped_gemm",
        {"tokens": 8192, "k": 8, "experts": 128, "n_in": 2048, "n_out": 1536},
        "gemm",
        against=("torch grouped_mm",),
    ),
    elementwise("combine", (), tokens=8192, k=8, columns=2048),
    Point("int8_gemm", {"tokens": 16, "n_in": 4096, "n_out": 28672}, "read", against=("torch bf16 mm",)),
    Point("int8_gemm", {"tokens": 2048, "n_in": 4096, "n_out": 28672}, "gemm", against=("torch bf16 mm",)),
    Point("routing", {"tokens": 8192, "experts": 128, "k": 8}, "read", against=("torch softmax + topk",)),
    Point("expert_order", {"tokens": 8192, "experts": 128, "k": 8}, "read", against=("torch sort",)),
    Point("sample", {"rows": 64, "vocab": 128256, "how": "greedy"}, "read", against=("torch argmax",)),
    Point("sample", {"rows": 64, "vocab": 128256, "how": "temperature"}, "read", against=("torch multinomial",)),
    Point(
        "sample", {"rows": 64, "vocab": 128256, "how": "top-k, top-p"}, "read", against=("torch sort + multinomial",)
    ),
    Point("verify_draft", {"requests": 64, "drafted": 4, "vocab": 128256}, "read"),
    # compiled by inductor: half a minute each, so last
    Point("prefill", {**HEADS, "page": PAGE, "batch": 1, "chunk": 8192, "past": 0}, "gemm", against=("FlexAttention",)),
    Point(
        "decode",
        {**HEADS, "page": PAGE, "kv": "bf16", "batch": 64, "context": 4096},
        "read",
        against=("FlexAttention",),
    ),
)


def work(point: Point) -> Work:
    """Bytes that must move between memory and chip, and multiply-adds counted twice; 16-bit but where sizes say."""
    size = {name: value for name, value in point.sizes.items() if isinstance(value, int)}
    if point.kernel == "decode":
        return _decode_work(point.sizes, size)
    if point.kernel == "mixed":
        decodes = decode(size["decodes"], size["context"])
        first = _decode_work(decodes.sizes, {n: v for n, v in decodes.sizes.items() if isinstance(v, int)})
        second = _prefill_work({**size, "batch": 1})
        return Work(first.moved_bytes + second.moved_bytes, first.operations + second.operations)
    return _WORK[point.kernel](size)


def _decode_work(sizes: Mapping[str, int | str], size: Mapping[str, int]) -> Work:
    seen = min(size["context"], size.get("window", size["context"]))
    rows = size["batch"] * seen
    kv = 2.0 * rows * size["kv_heads"] * size["head_dim"] * (1 if sizes["kv"] == "fp8" else 2)
    ends = 2.0 * size["batch"] * size["q_heads"] * size["head_dim"] * 2
    return Work(kv + ends, 4.0 * rows * size["q_heads"] * size["head_dim"])


def _prefill_work(size: Mapping[str, int]) -> Work:
    pairs = size["batch"] * (size["chunk"] * size["past"] + size["chunk"] * (size["chunk"] + 1) / 2)
    keys = size["batch"] * (size["past"] + size["chunk"])
    moved = 2.0 * keys * size["kv_heads"] * size["head_dim"] * 2
    moved += 2.0 * size["batch"] * size["chunk"] * size["q_heads"] * size["head_dim"] * 2
    return Work(moved, 4.0 * pairs * size["q_heads"] * size["head_dim"])


def _rows_work(times: float) -> "object":
    return lambda size: Work(times * size["tokens"] * size["columns"] * 2, 0.0)


def _gemm_work(size: Mapping[str, int]) -> Work:
    pairs = size["tokens"] * size["k"]
    # every expert is read: with 128 experts and 512 pairs 2 % are expected to have none
    read = float(size["experts"] * size["n_in"] * size["n_out"] * 2)
    rows = 2.0 * (size["tokens"] * size["n_in"] + pairs * size["n_out"])
    return Work(read + rows, 2.0 * pairs * size["n_in"] * size["n_out"])


_WORK = {
    "prefill": _prefill_work,
    "rms_norm add": _rows_work(4),  # x and residual read, residual and result written
    "layer_norm add": _rows_work(4),
    "activation": lambda size: Work(3.0 * size["tokens"] * size["width"] * 2, 0.0),
    # queries, keys and values read, and written: queries aside, keys and values to the cache
    "rope_cache": lambda size: Work(
        2.0 * size["tokens"] * (size["q_heads"] + 2 * size["kv_heads"]) * size["head_dim"] * 2, 0.0
    ),
    "block_copy": lambda size: Work(2.0 * size["blocks"] * size["block_bytes"], 0.0),
    "combine": lambda size: Work((size["k"] + 1.0) * size["tokens"] * size["columns"] * 2, 0.0),
    "mla_decode": lambda size: Work(
        size["batch"] * (size["context"] * 576.0 + size["heads"] * (576.0 + 512)) * 2,
        2.0 * size["batch"] * size["context"] * size["heads"] * (576 + 512),
    ),
    "grouped_gemm": _gemm_work,
    "int8_gemm": lambda size: Work(
        1.0 * size["n_in"] * size["n_out"] + 2.0 * size["tokens"] * (size["n_in"] + size["n_out"]),
        2.0 * size["tokens"] * size["n_in"] * size["n_out"],
    ),
    "routing": lambda size: Work(4.0 * size["tokens"] * (size["experts"] + 2 * size["k"]), 0.0),
    "expert_order": lambda size: Work(8.0 * size["tokens"] * size["k"], 0.0),
    "sample": lambda size: Work(4.0 * size["rows"] * size["vocab"], 0.0),
    # one target row and one draft row a request: that of the first rejection
    "verify_draft": lambda size: Work(8.0 * size["requests"] * size["vocab"], 0.0),
}
