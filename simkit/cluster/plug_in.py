"""A part of a fleet of one's own: a name in a .py file, or an entry point of another distribution."""

import importlib.util
import sys
from importlib.metadata import entry_points
from pathlib import Path
from types import FunctionType, TracebackType

from simkit.errors import InputError, suggestion

LARGEST_BYTES = 1 << 20  # nobody writes a megabyte of policy: it is some other file


def find_own(name: str, group: str, default: str) -> object | None:
    """What `path/to/file.py`, `file.py:Name` or an entry point of `group` stands for; None if it is neither.

    `default` is the name looked for in a file where none is given. Raises InputError, naming the file, if it is not
    there, cannot be run, or does not have it.
    """
    path, _, given = name.partition(".py:")
    if name.endswith(".py") or given:
        return _named(Path(path if name.endswith(".py") else path + ".py"), given or default)
    for entry in entry_points(group=group, name=name):
        found: object = entry.load()
        return found
    return None


def entry_point_names(group: str) -> list[str]:
    """What other distributions offer."""
    return sorted(entry_points(group=group).names)


def _named(path: Path, name: str) -> object:
    try:
        if path.stat().st_size > LARGEST_BYTES:
            raise InputError(f"{path}: over {LARGEST_BYTES} bytes; a policy is a small Python file")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give a .py file's path") from None
    spec = importlib.util.spec_from_file_location(f"simkit_own_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path}: is no Python file; give a .py file's path")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        line = f":{error.lineno}" if isinstance(error, SyntaxError) else ""
        raise InputError(f"{path}{line}: {one_line(error)}") from error
    found: object = getattr(module, name, None)
    if found is None:
        known = [key for key, value in vars(module).items() if isinstance(value, type | FunctionType)]
        raise InputError(f"{path}: does not define {name}; {suggestion(name, known) if known else 'define it'}")
    return found


def one_line(error: BaseException) -> str:
    """An exception of somebody's code as one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


class OwnCode:
    """Around a call of somebody's code: what it raises, but InputError, is one, `PLACE: what it was` and the fix."""

    __slots__ = ("_fix", "_place")

    def __init__(self, place: str, fix: str = "") -> None:
        self._place, self._fix = place, fix

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception) and not isinstance(error, InputError):
            raise InputError(f"{self._place}: {one_line(error)}{self._fix}") from error
