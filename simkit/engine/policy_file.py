"""A user's own discipline as a file: finding it, reading it, running it as a module."""

import ast
import hashlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from types import FunctionType, ModuleType
from typing import cast

import numba

from simkit.bounded_file import read_bounded
from simkit.compiled import inlined
from simkit.engine.state import Replica
from simkit.errors import InputError, suggestion

Schedule = Callable[[Replica, int], None]

ENTRY_POINTS = "simkit.disciplines"
FUNCTION = "schedule"  # unless `file.py:other` names another
_ENGINE = Path(__file__).parent
LARGEST_BYTES = 1 << 20  # nobody writes a megabyte of discipline: it is some other file


@dataclass(frozen=True)
class PolicyFile:
    """A discipline's source, read once: what is compiled, named and reported is this text."""

    path: Path
    function: str
    package: str  # what relative imports in it are relative to; empty for a file by itself
    text: str

    @property
    def name(self) -> str:
        """A name that is this text's own, under which its machine code is filed."""
        digest = hashlib.sha256(self.text.encode()).hexdigest()[:16]
        return re.sub(r"\W", "_", f"{self.path.stem}_{self.function}_{digest}")

    @property
    def line(self) -> int:
        """The line on which the function begins; 1 if it is not defined in this file."""
        found = re.search(rf"^def {re.escape(self.function)}\b", self.text, re.MULTILINE)
        return 1 + self.text.count("\n", 0, found.start()) if found else 1


def find_policy(name: str) -> PolicyFile | None:
    """The file that `path/to/file.py`, `file.py:function` or an entry point's name stands for; None if it is neither.

    Raises InputError for a file that is not there or cannot be read.
    """
    path, _, function = name.partition(".py:")
    if name.endswith(".py") or function:
        return _read(Path(path if name.endswith(".py") else path + ".py"), function or FUNCTION, "")
    for entry in entry_points(group=ENTRY_POINTS, name=name):
        spec = importlib.util.find_spec(entry.module)
        if spec is None or spec.origin is None:
            raise InputError(f"discipline {name!r}: its entry point names module {entry.module}, which has no file")
        return _read(Path(spec.origin), entry.attr or FUNCTION, spec.parent or "")
    return None


def entry_point_names() -> list[str]:
    """Disciplines that other distributions offer."""
    return sorted(entry_points(group=ENTRY_POINTS).names)


def _read(path: Path, function: str, package: str) -> PolicyFile:
    """A file's text; InputError if there is none, it is too long or not UTF-8."""
    data = read_bounded(path, LARGEST_BYTES, "give the path of a discipline, a small .py file")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not UTF-8 text; give the path of a .py file") from None
    return PolicyFile(path, function, package, text)


def load_schedule(policy: PolicyFile) -> Schedule:
    """Run the file and return its function, with every function of the file compiled when it is called.

    Under `simkit.engine.interpreted.uncompiled` it stays plain Python. Raises InputError, naming file and line.
    """
    module = _run(policy)
    functions = {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, FunctionType) and value.__code__.co_filename == str(policy.path)
    }
    for name, function in functions.items():
        setattr(module, name, inlined(function))
    schedule = getattr(module, policy.function, None)
    if not callable(schedule):
        raise InputError(
            f"{policy.path}: has no function {policy.function}(r, row); " + suggestion(policy.function, functions)
            if functions
            else f"{policy.path}: has no function {policy.function}(r, row); define it"
        )
    _check_arguments(policy, cast(Schedule, functions.get(policy.function, schedule)))
    return cast(Schedule, schedule)


def _run(policy: PolicyFile) -> ModuleType:
    """The file as a module: numba finds it again under its name when it takes machine code from the disk."""
    plain = "_plain" if numba.config.DISABLE_JIT else ""
    module = ModuleType(f"simkit_policy_{policy.name}{plain}")
    module.__file__ = str(policy.path)
    module.__package__ = policy.package
    sys.modules[module.__name__] = module
    try:
        tree = ast.parse(policy.text, str(policy.path))
        code = compile(tree, str(policy.path), "exec")
    except SyntaxError as error:
        raise InputError(f"{policy.path}:{error.lineno}: syntax error: {error.msg}") from None
    except ValueError as error:
        raise InputError(f"{policy.path}: is no Python ({error})") from None
    try:
        exec(code, vars(module))
    except Exception as error:
        raise told(policy, error) from error
    return module


def _check_arguments(policy: PolicyFile, schedule: Schedule) -> None:
    """InputError unless the function can be called with (replica, row)."""
    function = getattr(schedule, "py_func", schedule)
    if inspect.isgeneratorfunction(function) or inspect.iscoroutinefunction(function):
        raise InputError(f"{policy.path}:{policy.line}: {policy.function} must not yield or be async; return None")
    try:
        inspect.signature(function).bind(None, 0)
    except TypeError:
        raise InputError(
            f"{policy.path}:{policy.line}: {policy.function}{inspect.signature(function)} is called with the "
            f"replica and the batch's row; write def {policy.function}(r, row)"
        ) from None


def told(policy: PolicyFile, error: BaseException, when: str = "") -> InputError:
    """An exception out of a policy as one line: file, line, what happened, and in which action of the engine."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if frame.filename == str(policy.path)]
    place = f"{policy.path}:{theirs[-1].lineno}" if theirs else f"{policy.path}"
    actions = [frame.name for frame in frames if Path(frame.filename).parent == _ENGINE]
    where = f" (in {actions[-1]})" if theirs and frames[-1].filename != str(policy.path) and actions else ""
    message = " ".join(str(error).split())[:300]
    return InputError(f"{place}: {when}{type(error).__name__}: {message}{where}")
