"""What can go wrong from the outside, each an exception the command line turns into one line and an exit code."""

from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """Bad input of any kind: the message is one line that names the place, the value and the fix (exit code 2)."""


class TargetNotMetError(Exception):
    """A question was answered, and the answer is that the target cannot be met (exit code 3)."""


class PartialResultError(Exception):
    """Work was interrupted; what was done was kept and says that it is partial (exit code 130)."""


def suggestion(name: str, known: Iterable[str]) -> str:
    """The end of an error line: the known name nearest to `name`, or all of them when none is near.

    >>> suggestion("modle", ["model", "device"])
    "did you mean 'model'?"
    """
    known = sorted(known)
    near = get_close_matches(name.lower(), known, n=1, cutoff=0.6)
    if near:
        return f"did you mean '{near[0]}'?"
    return "known: " + ", ".join(known)
