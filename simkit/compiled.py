"""The decorators of everything that runs inside the step loop: numba, cached on disk, or plain Python.

`NUMBA_DISABLE_JIT=1` runs the same source uncompiled, for a debugger.
"""

import gc
import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import ParamSpec, TypeVar, cast

import numba
from numba import types
from numba.core.registry import CPUDispatcher

from simkit.compiled_parts import OwnPartCompiler, PartCompiler

F = TypeVar("F", bound=Callable[..., object])
P = ParamSpec("P")
R = TypeVar("R")

_PACKAGE = Path(__file__).parent


def _source_hash() -> str:
    """A hash of every file that holds compiled code.

    numba looks only at the file of the outermost function when it decides whether its cache is stale; a change in a
    function that it calls from another file would go unseen. So the cache folder is named by all of them.
    """
    folders = (_PACKAGE / "engine", _PACKAGE / "cluster/loops")
    files = [
        _PACKAGE / "by_address.py",
        _PACKAGE / "compiled.py",
        _PACKAGE / "compiled_parts.py",
        _PACKAGE / "models/steptables.py",
        _PACKAGE / "cluster/rack.py",
    ]
    files += [file for folder in folders for file in sorted(folder.rglob("*.py"))]
    digest = hashlib.sha256(numba.__version__.encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _cache_folder() -> str:
    """A writable folder for machine code: `$NUMBA_CACHE_DIR`, the user's cache, or a private temporary folder."""
    if "NUMBA_CACHE_DIR" in os.environ:
        return os.environ["NUMBA_CACHE_DIR"]
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = home / "simkit" / f"compiled-{_source_hash()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return str(folder)
    except OSError:
        return tempfile.mkdtemp(prefix="simkit-compiled-")


numba.config.CACHE_DIR = _cache_folder()


# Reference counts of the arrays that are passed around cost 12 times the loop itself, and nothing here allocates: so
# compiled functions run without numba's runtime (`_nrt`), which is a compile-time error where one would need it.


def compiled(function: F) -> F:
    """Compile `function` with numba on first call and keep the machine code on disk between runs.

    Compiled callers take it in, as they do what is `inlined`.
    """
    if numba.config.DISABLE_JIT:
        return function
    dispatcher = numba.njit(cache=True, _nrt=False)(function)
    dispatcher.__class__ = _Entry
    return cast(F, dispatcher)


def inlined(function: F) -> F:
    """Compile `function` into each of its compiled callers; Python itself cannot call it, unless jit is disabled.

    For everything below an entry point: handing a replica's arrays over at each call would cost more than most
    functions do, and a third of the compile time goes into wrappers for Python that nobody calls.
    """
    return _part(function, PartCompiler, forceinline=True)


def called(function: F) -> F:
    """As `inlined`, but a function of its own in each entry point: for what is large and called from several places."""
    return _part(function, OwnPartCompiler, forceinline=False)


class _Entry(CPUDispatcher):  # type: ignore[misc]
    """A compiled function with an entry for Python, which compiled callers do without."""

    @cached_property
    def part(self) -> "_Inlined":
        """The same function for them."""
        return cast(_Inlined, _part(self.py_func, PartCompiler, forceinline=True))

    def _compile_for_args(self, *arguments: object, **named: object) -> object:
        """As numba's, which makes millions of objects that live to the end: to look for garbage is a sixth of it."""
        collects = gc.isenabled()
        gc.disable()
        try:
            return super()._compile_for_args(*arguments, **named)
        finally:
            if collects:
                gc.enable()

    def get_call_template(self, args: Sequence[object], kws: Mapping[str, object]) -> object:
        """The part's."""
        return self.part.get_call_template(args, kws)

    def get_overload(self, signature: object) -> object:
        """The part's."""
        return self.part.get_overload(signature)


class _Inlined(CPUDispatcher):  # type: ignore[misc]
    """A compiled function without an entry for Python."""

    def get_call_template(self, args: Sequence[object], kws: Mapping[str, object]) -> object:
        """As numba's, which would compile it again for each constant that a caller passes."""
        return super().get_call_template(
            [types.unliteral(kind) for kind in args], {name: types.unliteral(kws[name]) for name in kws}
        )

    def __call__(self, *arguments: object) -> object:
        """Say so, where numba would crash."""
        name = self.py_func.__name__
        raise TypeError(
            f"{name} is compiled into its callers only; run with NUMBA_DISABLE_JIT=1 to call it from Python"
        )


class Calls:
    """Compiled functions as one caller calls them: each of them with arguments of the same types every time.

    Numba looks machine code up by the types of all arguments at each call, for a replica's thirty arrays and as many
    settings in 9 us, many times what most calls do. Here it is looked up at the first, and later ones are not checked:
    arrays of another type would be read as if they were of that one. So whoever replaces an argument says `forget`.
    """

    def __init__(self) -> None:
        self._code: dict[Callable[..., object], Callable[..., object]] = {}

    def __call__(self, function: Callable[P, R], *arguments: P.args, **none: P.kwargs) -> R:
        """As the function; one that is not compiled is called as it is."""
        code = self._code.get(function)
        if code is not None:
            return cast(R, code(*arguments, **none))
        result = function(*arguments, **none)
        self._code[function] = _machine_code(function, arguments)
        return result

    def forget(self) -> None:
        """Look them up again: some argument has been replaced."""
        self._code.clear()


def _machine_code(function: Callable[..., object], arguments: Sequence[object]) -> Callable[..., object]:
    """What has just run a function with these arguments."""
    if not isinstance(function, _Entry):
        return function
    overloads = list(function.overloads.values())
    if len(overloads) > 1:  # working the types out in Python takes a millisecond
        overloads = [function.overloads[tuple(numba.typeof(argument) for argument in arguments)]]
    return cast(Callable[..., object], overloads[0].entry_point)


def _part(function: F, compiler: type[PartCompiler], forceinline: bool) -> F:
    if numba.config.DISABLE_JIT:
        return function
    options = {"_nrt": False, "forceinline": forceinline, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    dispatcher = numba.njit(pipeline_class=compiler, **options)(function)
    dispatcher.__class__ = _Inlined
    return cast(F, dispatcher)
