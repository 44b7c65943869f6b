"""The context plan in words, and as JSON."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict

from simkit.plan.context import RETRIEVED, WHOLE, WINDOWED
from simkit.plan.context_cells import Cell, ContextQuestion, Line, line_of

MOST_LINES = 15
NAMES = {WHOLE: "the whole document", RETRIEVED: "retrieval", WINDOWED: "a sliding window"}


def lines_of(found: Sequence[Cell]) -> list[Line]:
    """Every way, KV precision and rate, over its lengths; in the order of the cells."""
    keys = dict.fromkeys((cell.way, cell.kv, cell.rate_per_s) for cell in found)
    return [line_of(found, *key) for key in keys]


def reasons_of(found: Sequence[Cell]) -> list[str]:
    """Why cells are empty: each different reason once, in the order of the cells."""
    return list(dict.fromkeys(cell.reason for cell in found if cell.filled is None))


def context_verdict(question: ContextQuestion, found: Sequence[Cell]) -> list[str]:
    """What the cells say, the first line the answer; what does not fit is named and stands in the table."""
    lines = list(_said(question, found))
    if len(lines) <= MOST_LINES:
        return lines
    left = len(lines) - MOST_LINES + 1
    return [*lines[: MOST_LINES - 1], f"{left} more lines of this kind are in context.html."]


def _said(question: ContextQuestion, found: Sequence[Cell]) -> Iterator[str]:
    share = f"{100 * question.settings.long_share:g} % of the requests"
    whole = [line for line in lines_of(found) if line.way == WHOLE]
    held = [line.longest for line in whole if line.longest is not None]
    if held:
        used = f"{share} using them to their end; the promise is over all requests"
        yield f"Contexts of up to {max(held):,} tokens hold, {used}.{_otherwise(question, found)}"
    else:
        yield f"No context that was tried holds with {share} using it to its end.{_otherwise(question, found)}"
    yield from _ways(question, found)
    for line in whole:
        at = f"{line.rate_per_s:.3g} requests/s, KV in {line.kv}"
        if line.longest is None:
            first = next(c for c in found if (c.way, c.kv, c.rate_per_s) == (line.way, line.kv, line.rate_per_s))
            yield f"{at}: nothing holds; {first.reason[:160]}."
            continue
        last = next(
            c
            for c in found
            if (c.way, c.kv, c.rate_per_s, c.max_context) == (line.way, line.kv, line.rate_per_s, line.longest)
        )
        assert last.filled is not None, "the longest that holds"
        heavy = line.prefill_dominates_from
        dominates = "prefill never dominates" if heavy is None else f"prefill dominates from {heavy:,} tokens"
        steps = ", ".join(f"{a:,} to {b:,} x {times:.2f}" for a, b, times in line.doublings)
        yield (
            f"{at}: up to {line.longest:,} tokens on {_gpus(last.filled.gpus)}, {last.filled.usd_per_hour:.2f} USD/h, "
            f"TTFT p99 of the long ones {last.filled.ttft_p99_s:.3g} s{_kept(last)}; {dominates}."
        )
        if steps:
            yield f"  GPU time a request from length to length: {steps}."


def _kept(cell: Cell) -> str:
    """How sure the promise is kept on that many GPUs, where it was asked."""
    if cell.kept is None:
        return ""
    return f", promise kept with probability {cell.kept.value:.2f} ({cell.kept.low:.2f} to {cell.kept.high:.2f})"


def _ways(question: ContextQuestion, found: Sequence[Cell]) -> Iterator[str]:
    """The ways of answering beside each other, at the longest context at which all hold."""
    ways = question.ways
    if len(ways) < 2:
        return
    first = next(question.places())
    for length in reversed(question.settings.lengths):
        cells = [c for c in found if c.max_context == length and (c.kv, c.rate_per_s) == (first[1], first[2])]
        if len(cells) == len(ways) and all(c.filled is not None for c in cells):
            said = "; ".join(
                f"{NAMES[c.way]} {1000 * c.filled.usd_per_request:.3g} USD a thousand requests, "
                f"TTFT p99 {c.filled.ttft_p99_s:.3g} s, {_gpus(c.filled.gpus)}{_kept(c) if c.way != WHOLE else ''}"
                for c in cells
                if c.filled is not None
            )
            yield f"At {length:,} tokens: {said}."
            return
    yield "The ways of answering hold at no length together."


def _otherwise(question: ContextQuestion, found: Sequence[Cell]) -> str:
    """The longest context of the other ways of answering, at any rate and KV precision."""
    said = []
    for way in question.ways:
        held = [cell.max_context for cell in found if cell.way == way and cell.filled is not None]
        if way != WHOLE:
            said.append(f"by {NAMES[way]}: {f'up to {max(held):,} tokens' if held else 'none'}")
    return f" Otherwise answered, {'; '.join(said)}." if said else ""


def _gpus(number: int) -> str:
    return f"{number} GPU{'' if number == 1 else 's'}"


def context_tree(question: ContextQuestion, found: Sequence[Cell]) -> dict[str, object]:
    """All cells and lines as JSON."""
    return {
        "long_share": question.settings.long_share,
        "cells": [
            {**{k: v for k, v in asdict(cell).items() if k != "filled"}, **(asdict(cell.filled) if cell.filled else {})}
            for cell in found
        ],
        "lines": [asdict(line) for line in lines_of(found)],
    }
