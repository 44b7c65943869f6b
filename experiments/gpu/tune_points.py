"""What `tune.py` chooses among: for each regime of a kernel, candidates and the points they are timed at."""

from collections.abc import Iterable, Mapping, Sequence
from math import exp, log
from typing import NamedTuple

from kernel_points import HEADS, Point, decode, prefill

from simkit.kernels.configurations import Configuration


class Candidate(NamedTuple):
    """One way to compile a kernel."""

    constants: Mapping[str, int]
    num_warps: int
    num_stages: int


class Regime(NamedTuple):
    """Launches that get one entry of the table: all of `where`, numbers as upper bounds."""

    kernel: str
    where: Mapping[str, int | str]
    candidates: tuple[Candidate, ...]
    points: tuple[Point, ...]

    @property
    def label(self) -> str:
        """For messages."""
        parts = [f"{name}{'=' if isinstance(value, str) else '<='}{value}" for name, value in self.where.items()]
        return " ".join([self.kernel, *parts])


class Tried(NamedTuple):
    """A candidate's score, microseconds as the geometric mean of its points', or why it has none."""

    candidate: Candidate
    score_us: float
    failed: str = ""


def tiles(names: Sequence[str], *rows: tuple[int, ...]) -> tuple[Candidate, ...]:
    """Candidates of rows (constants in the order of `names`, warps, stages)."""
    return tuple(Candidate(dict(zip(names, row[:-2], strict=True)), row[-2], row[-1]) for row in rows)


DECODE = tiles(
    ("BLOCK_TOKENS",),
    *((64, 4, 3), (64, 4, 2), (64, 4, 4), (128, 4, 2), (128, 8, 2), (128, 4, 3), (32, 4, 3), (32, 4, 4), (32, 2, 4)),
    *((64, 8, 3), (64, 2, 3), (128, 8, 3)),
)
PREFILL = tiles(
    ("BLOCK_ROWS", "BLOCK_TOKENS"),
    *((128, 64, 8, 2), (128, 64, 8, 3), (128, 128, 8, 2), (64, 64, 4, 2), (64, 64, 4, 3), (128, 64, 4, 2)),
    *((64, 128, 4, 2), (128, 32, 8, 3), (64, 32, 4, 3), (128, 128, 8, 3)),
)
LATENT = tiles(
    ("ROWS", "BLOCK_TOKENS"),
    *((64, 32, 8, 2), (64, 32, 4, 2), (32, 32, 8, 2), (32, 64, 8, 2), (16, 32, 4, 3), (16, 64, 4, 2), (64, 64, 8, 2)),
)
FEW_ROWS = tiles(
    ("BLOCK_ROWS", "BLOCK_OUT", "BLOCK_IN"),
    *((16, 64, 128, 4, 4), (16, 64, 128, 4, 3), (16, 128, 128, 4, 3), (16, 64, 256, 4, 3), (16, 32, 256, 4, 4)),
    *((16, 128, 64, 4, 5), (16, 128, 128, 8, 3)),
)
MANY_ROWS = tiles(
    ("BLOCK_ROWS", "BLOCK_OUT", "BLOCK_IN"),
    *((128, 128, 64, 8, 3), (128, 128, 64, 4, 3), (128, 128, 64, 8, 4), (128, 256, 64, 8, 3), (64, 256, 64, 4, 3)),
    *((64, 128, 64, 4, 4), (128, 128, 128, 8, 2)),
)
ROPE = tiles(("HEADS",), *((heads, warps, 1) for heads in (4, 8, 16, 32) for warps in (2, 4, 8)))
HALF = {"dtype": "bf16", "cache": "bf16"}
FP8 = {"dtype": "bf16", "cache": "fp8e4nv"}


def grouped(tokens: int) -> Point:
    sizes = {"tokens": tokens, "k": 8, "experts": 128, "n_in": 2048, "n_out": 1536}
    return Point("grouped_gemm", sizes, "read")


def int8(tokens: int) -> Point:
    return Point("int8_gemm", {"tokens": tokens, "n_in": 4096, "n_out": 28672}, "read")


def latent(heads: int) -> Point:
    return Point("mla_decode", {"heads": heads, "page": 64, "batch": 64, "context": 4096}, "read")


REGIMES: tuple[Regime, ...] = (
    Regime(
        "decode", {**HALF, "head_dim": 128, "rows": 16}, DECODE, (decode(64, 4096), decode(16, 8192), decode(1, 131072))
    ),
    Regime("prefill", {**HALF, "head_dim": 128, "group": 4}, PREFILL, (prefill(1, 8192, 0), prefill(1, 512, 8192))),
    Regime("rope_cache", {**HALF, "head_dim": 128}, ROPE, (Point("rope_cache", {"tokens": 16384, **HEADS}, "copy"),)),
    Regime("decode", {**FP8, "head_dim": 128, "rows": 16}, DECODE, (decode(64, 4096, kv="fp8"),)),
    Regime("grouped_gemm", {"dtype": "bf16", "rows": 16}, FEW_ROWS, (grouped(64), grouped(8))),
    Regime("grouped_gemm", {"dtype": "bf16"}, MANY_ROWS, (grouped(8192),)),
    Regime("decode", {**HALF, "head_dim": 64, "rows": 16}, DECODE, (decode(64, 4096, head_dim=64, q_heads=64),)),
    Regime("prefill", {**HALF, "head_dim": 64, "group": 8}, PREFILL, (prefill(1, 8192, 0, head_dim=64, q_heads=64),)),
    Regime("decode", {**HALF, "head_dim": 256, "rows": 16}, DECODE, (decode(64, 4096, head_dim=256, q_heads=16),)),
    Regime("prefill", {**HALF, "head_dim": 256, "group": 2}, PREFILL, (prefill(1, 8192, 0, head_dim=256, q_heads=16),)),
    Regime("prefill", {**HALF, "head_dim": 128, "group": 1}, PREFILL, (prefill(1, 8192, 0, kv_heads=32),)),
    Regime("mla_decode", {**HALF, "latent_dim": 512}, LATENT, (latent(128),)),
    Regime("mla_decode", {**HALF, "latent_dim": 512, "heads": 16}, LATENT, (latent(16),)),
    Regime("int8_gemm", {"dtype": "bf16", "rows": 16}, FEW_ROWS, (int8(16),)),
    Regime("int8_gemm", {"dtype": "bf16"}, MANY_ROWS, (int8(2048),)),
)


def score(times_us: Iterable[float]) -> float:
    """The geometric mean: a candidate is not chosen for one long point."""
    logs = [log(time) for time in times_us]
    return exp(sum(logs) / len(logs))


def entry(regime: Regime, candidate: Candidate, architecture: int, basis: str) -> Configuration:
    """The candidate as an entry of the table."""
    return Configuration(
        regime.kernel, architecture, regime.where, candidate.constants, candidate.num_warps, candidate.num_stages, basis
    )


def best(tried: Sequence[Tried]) -> Tried | None:
    """The fastest that ran."""
    ran = [one for one in tried if not one.failed]
    return min(ran, key=lambda one: one.score_us) if ran else None


def merged(table: Sequence[Configuration], tuned: Sequence[Configuration]) -> tuple[Configuration, ...]:
    """The table with tuned entries: in the place of one for the same launches, else where a launch meets it first.

    Entries are looked through in order. A new one stands right before the first that answers all its launches too, and
    tuned ones of lower bounds stand before those of higher.
    """
    places = {_key(new): new for new in tuned}
    kept = [places.pop(_key(old), old) for old in table]
    inserted: set[tuple[object, ...]] = set()
    for new in sorted(places.values(), key=_bounds, reverse=True):
        family = (new.kernel, new.architecture)
        same = [i for i, old in enumerate(kept) if (old.kernel, old.architecture) == family]
        ahead = [i for i in same if _covers(kept[i], new) or _key(kept[i]) in inserted]
        kept.insert(min(ahead, default=max(same, default=len(kept) - 1) + 1), new)
        inserted.add(_key(new))
    return tuple(kept)


def _covers(old: Configuration, new: Configuration) -> bool:
    """Whether every launch that `new` answers fits `old` as well."""
    for name, bound in old.where.items():
        own = new.where.get(name)
        if own is None or isinstance(own, str) != isinstance(bound, str):
            return False
        if own != bound and (isinstance(own, str) or isinstance(bound, str) or own > bound):
            return False
    return True


def _key(one: Configuration) -> tuple[object, ...]:
    return one.kernel, one.architecture, tuple(sorted(one.where.items()))


def _bounds(one: Configuration) -> int:
    return sum(bound for bound in one.where.values() if isinstance(bound, int))
