"""The cheapest deployment among many kinds, exhaustively but for what bounds rule out.

The kinds are few thousands at most and a replay takes some hundredths of a second, so an exact answer is cheaper than a
clever one: every kind is bounded, those that could be cheapest are replayed, cheapest bound first. A sampler such as
Optuna's would have to be told when to stop, and could not say that nothing cheaper exists.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from simkit.plan.answer import HOLDS, Answer, Question, Start, answer, start
from simkit.plan.parallel import ALONE, Workers, over
from simkit.plan.space import Kind
from simkit.plan.study import Study

ROUND = 16  # kinds replayed between two looks at the best so far: the same whatever the number of workers


@dataclass(frozen=True)
class SearchResult:
    """Every kind's answer, and the cheapest that holds."""

    kinds: tuple[Kind, ...]
    answers: tuple[Answer, ...]  # in the order of the kinds
    best: int | None  # number of the kind; None: nothing holds

    @property
    def chosen(self) -> tuple[Kind, Answer] | None:
        """The cheapest kind that holds."""
        return None if self.best is None else (self.kinds[self.best], self.answers[self.best])

    def counts(self) -> dict[str, int]:
        """How many kinds ended in each status."""
        found: dict[str, int] = {}
        for one in self.answers:
            found[one.status] = found.get(one.status, 0) + 1
        return found


def search(
    kinds: Sequence[Kind],
    question: Question,
    workers: Workers = ALONE,
    study: Study | None = None,
    every: bool = False,
    on_answer: Callable[[int], None] | None = None,
) -> SearchResult:
    """The cheapest kind and number of replicas that hold in every scenario.

    `every` answers also kinds that cannot be the cheapest, for a Pareto front. `on_answer` is told how many are
    settled. The result does not depend on the workers, nor on what a study already knew.
    """
    kept = study or Study(None, "")
    starts = list(over(partial(start, question=question), kinds, workers))
    for begun in starts:
        if begun.verdict is not None and begun.kind.number not in kept.answers:
            kept.add(begun.verdict)
    waiting = sorted((s for s in starts if s.verdict is None), key=lambda s: (s.least_usd_per_hour, s.kind.number))
    settled = len(starts) - len(waiting)
    ceiling = float("inf")
    for first in range(0, len(waiting), ROUND):
        batch = waiting[first : first + ROUND]
        new = [begun for begun in batch if begun.kind.number not in kept.answers]
        for found in over(partial(_answer, question=question, most_usd_per_hour=ceiling), new, workers):
            kept.add(found)
            settled += 1
            if on_answer is not None:
                on_answer(settled)
        if not every:
            # what a study knows of later rounds must not count here, or a search taken up again would end otherwise
            ceiling = min(ceiling, cheapest_usd(kept.answers[begun.kind.number] for begun in batch))
    answers = tuple(kept.answers[kind.number] for kind in kinds)
    return SearchResult(tuple(kinds), answers, cheapest(kinds, answers))


def _answer(begun: Start, question: Question, most_usd_per_hour: float) -> Answer:
    return answer(begun, question, most_usd_per_hour)


def cheapest_usd(answers: Iterable[Answer]) -> float:
    """What the cheapest that holds costs, USD/h; inf if nothing does."""
    return min((one.usd_per_hour for one in answers if one.usd_per_hour is not None), default=float("inf"))


def cheapest(kinds: Sequence[Kind], answers: Sequence[Answer]) -> int | None:
    """The number of the kind that holds for the least money; of equals the one with fewest GPUs, then the first."""
    held = [
        (one.usd_per_hour, one.replicas * kind.gpus, kind.number)
        for kind, one in zip(kinds, answers, strict=True)
        if one.status == HOLDS and one.usd_per_hour is not None and one.replicas is not None
    ]
    return min(held)[2] if held else None


def pareto(answers: Sequence[Answer], figure: str) -> list[int]:
    """Numbers of the kinds that no other beats in both price and a figure (less is better), cheapest first."""
    points = [
        (one.usd_per_hour, value, one.number)
        for one in answers
        if one.holds and one.usd_per_hour is not None and (value := one.figures.get(figure)) is not None
    ]
    front: list[int] = []
    best = float("inf")
    for _, value, number in sorted(points):
        if value < best:
            front.append(number)
            best = value
    return front
