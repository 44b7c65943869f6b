"""Where output goes: JSON alone on stdout, everything for people on stderr or a terminal."""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from simkit.errors import PartialResultError

WIDTH_IN_A_FILE = 120

people = Console(stderr=True, highlight=False)
answers = Console(highlight=False)
for console in (people, answers):
    if not console.is_terminal:
        console.width = WIDTH_IN_A_FILE


def emit_json(tree: object) -> None:
    """Print one JSON object on stdout."""
    print(to_json(tree))


def to_json(tree: object) -> str:
    """Strict JSON, the same bytes for the same values; a number that is not finite is null."""
    return json.dumps(_finite(tree), indent=2, allow_nan=False, ensure_ascii=False)


def _finite(tree: object) -> object:
    if isinstance(tree, dict):
        return {str(key): _finite(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_finite(value) for value in tree]
    if isinstance(tree, float) and not math.isfinite(tree):
        return None
    return tree


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal's stderr that is told how much is done; gone when it ends, silent elsewhere."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=people, transient=True, disable=not people.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)


@contextmanager
def nothing_yet() -> Iterator[None]:
    """For what comes before the work (imports, input, compiling): an interrupt ends in a line that says so."""
    try:
        yield
    except KeyboardInterrupt:
        raise PartialResultError("interrupted before anything was computed; nothing was written") from None


@contextmanager
def summing_up() -> Iterator[None]:
    """For what comes after the work: an interrupt ends in a line that says what may be missing."""
    try:
        yield
    except KeyboardInterrupt:
        raise PartialResultError(
            "interrupted while the result was summed up: it is not printed, or its files are not all there"
        ) from None


@contextmanager
def whole_or_nothing() -> Iterator[None]:
    """For work of which a part is no answer: an interrupt ends in a line that says so."""
    try:
        yield
    except KeyboardInterrupt:
        raise PartialResultError("interrupted before the answer; nothing was written") from None


@contextmanager
def waiting_for(what: str) -> Iterator[None]:
    """A spinner on a terminal's stderr for work whose length is not known; silent elsewhere."""
    if not people.is_terminal:
        yield
        return
    with people.status(what):
        yield
