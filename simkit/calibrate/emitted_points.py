"""Points held out from fitting: operators at the sizes of replayed steps of a trace, never taken from the grid.

A profile is used for what a scheduler emits, so that is what it is judged by. Steps are drawn at random from a replay;
each gives one point to each table that it has something for, at sizes that the grid does not hold.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np

from simkit.calibrate.points import PlannedPoint, Point
from simkit.calibrate.points_plan import decode_point, prefill_point
from simkit.calibrate.points_scope import Scope, attention_shapes, elementwise_passes, gemm_shapes, head_shapes
from simkit.calibrate.profile_csv import LARGEST_TEXT
from simkit.models.captures import padded_tokens

MOST_DRAWS = 2000


class EmittedShare(Protocol):
    """One request's part in a step."""

    @property
    def new(self) -> int:
        """Tokens computed in the step."""

    @property
    def before(self) -> int:
        """Tokens computed before it."""

    @property
    def samples(self) -> bool:
        """Whether it gets a token."""


Step = Sequence[EmittedShare]
Draw = Callable[[Scope, Step, np.random.Generator], Point | None]


def held_out_points(
    scope: Scope, steps: Sequence[Step], grid: set[Point], counts: dict[str, int], seed: int
) -> list[PlannedPoint]:
    """Up to `counts[table]` points a table, none of them in `grid`; half at level 0, half at level 1.

    A table that the steps have too few sizes for gets fewer.
    """
    found: list[PlannedPoint] = []
    for number, (table, wanted) in enumerate(sorted(counts.items())):
        rng = np.random.default_rng((seed, number))
        points = _distinct(scope, steps, grid, table, wanted, rng)
        found += [PlannedPoint(point, i % 2, held_out=True) for i, point in enumerate(points)]
    return found


def _distinct(
    scope: Scope, steps: Sequence[Step], grid: set[Point], table: str, wanted: int, rng: np.random.Generator
) -> list[Point]:
    points: dict[Point, None] = {}
    for _ in range(MOST_DRAWS if steps else 0):
        if len(points) >= wanted:
            break
        point = _DRAWS[table](scope, steps[int(rng.integers(len(steps)))], rng)
        if point is not None and point not in grid:
            points[point] = None
    return list(points)


def step_tokens(scope: Scope, step: Step) -> int:
    """New tokens of a step as the device runs it, padded where its size was captured."""
    tokens = np.array([sum(share.new for share in step)], dtype=np.int64)
    return int(padded_tokens(tokens, scope.capture_sizes)[0])


def _gemm(scope: Scope, step: Step, rng: np.random.Generator) -> Point | None:
    shapes, heads = sorted(gemm_shapes(scope)), sorted(head_shapes(scope))
    which = int(rng.integers(len(shapes) + len(heads)))
    if which < len(shapes):
        return Point("gemm", (scope.dtype, step_tokens(scope, step), *shapes[which]))
    rows = sum(share.samples for share in step)
    return Point("gemm", (scope.dtype, rows, *heads[which - len(shapes)])) if rows else None


def _elementwise(scope: Scope, step: Step, rng: np.random.Generator) -> Point | None:
    passes = sorted(elementwise_passes(scope))
    name, width, token_bytes = passes[int(rng.integers(len(passes)))]
    tokens = step_tokens(scope, step)
    return Point("elementwise", (name, tokens, width, tokens * token_bytes))


def _decode(scope: Scope, step: Step, rng: np.random.Generator) -> Point | None:
    shapes = sorted(attention_shapes(scope))
    contexts = np.array([share.before + 1 for share in step if share.new == 1], dtype=np.int64)
    if len(contexts) == 0 or not shapes:
        return None
    point = decode_point(shapes[int(rng.integers(len(shapes)))], contexts)
    return point if len(point.text("contexts")) <= LARGEST_TEXT else None


def _prefill(scope: Scope, step: Step, rng: np.random.Generator) -> Point | None:
    shapes = sorted(attention_shapes(scope))
    chunks = [share for share in step if share.new > 1]
    if not chunks or not shapes:
        return None
    share = chunks[int(rng.integers(len(chunks)))]
    return prefill_point(shapes[int(rng.integers(len(shapes)))], share.new, share.before)


_DRAWS: dict[str, Draw] = {
    "gemm": _gemm,
    "elementwise": _elementwise,
    "attention_decode": _decode,
    "attention_prefill": _prefill,
}


def tables_drawn() -> Iterator[str]:
    """The tables that held-out points are drawn for."""
    return iter(_DRAWS)
