"""A measurement in stages, each with a limit of time: what is under way and what came out, a JSON line each.

Work on a device that hangs cannot be ended from within: the call never comes back. So a process of its own does it,
writes what it begins and what it finds, and `watched.py` ends it where a line is too long in coming. The process after
it reads what its forerunners found and goes on behind the stage that hung.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

Row = float | str | list[float | str] | dict[str, float | str]

LOST = 75  # the exit code of a process that has lost its device (sysexits.h, EX_TEMPFAIL): another one may go on
BETWEEN_S = 90.0  # from a start or a stage's end to the next stage: imports, the CUDA context, ceilings, a report


class Found(NamedTuple):
    """What a stage found."""

    rows: list[Row]
    cut: str  # why there are no more: it hung, or its process died; "" if it came to its end


class Stages:
    """What was found so far, and the log in which it is."""

    def __init__(self, log: Path | None = None) -> None:
        """`log` is read where forerunners left one; None: nobody watches, and nothing is written."""
        self._log = log
        self._found: dict[str, Found] = {}
        for line in read_lines(log):
            name = str(line["stage"])
            before = self._found.get(name, Found([], "its process died"))
            if "row" in line:
                before.rows.append(line["row"])  # type: ignore[arg-type]
            self._found[name] = Found(before.rows, str(line.get("cut", "" if "end" in line else before.cut)))

    def known(self, name: str) -> Found | None:
        """What a forerunner found; None if none began it."""
        return self._found.get(name)

    def run(self, name: str, limit_s: float, work: Callable[[], Iterator[Row]]) -> Found:
        """The rows of `work`, each at most `limit_s` after the one before; of a forerunner, if one began it."""
        known = self._found.get(name)
        if known is not None:
            return known
        self.under_way(name, limit_s)
        rows = []
        for row in work():
            rows.append(row)
            self._write({"stage": name, "limit_s": limit_s, "row": row})
        self.over(name)
        self._found[name] = Found(rows, "")
        return self._found[name]

    def under_way(self, name: str, limit_s: float) -> None:
        """Something is, which keeps what it finds by itself; the next word of it comes within `limit_s`."""
        self._write({"stage": name, "limit_s": limit_s})

    def over(self, name: str, limit_s: float = BETWEEN_S) -> None:
        """It came to its end; the next stage begins within `limit_s`."""
        self._write({"stage": name, "limit_s": limit_s, "end": True})

    def _write(self, line: dict[str, object]) -> None:
        if self._log is not None:
            append(self._log, line)


def append(log: Path, line: dict[str, object]) -> None:
    """One line more, at once on the disk's side of this process."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def read_lines(log: Path | None) -> list[dict[str, object]]:
    """All whole lines of a log; none of one that is not there."""
    if log is None or not log.exists():
        return []
    lines = log.read_text(encoding="utf-8").split("\n")[:-1]  # what is behind the last line's end is half a line
    return [json.loads(line) for line in lines]


def last_line(log: Path) -> dict[str, object] | None:
    """The last whole line of a log; None if there is none."""
    lines = log.read_text(encoding="utf-8").split("\n")[-2:-1] if log.exists() else []
    return json.loads(lines[0]) if lines else None
