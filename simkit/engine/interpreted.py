"""The engine a second time, as plain Python: for what numba cannot compile, for debuggers, and to compare the two.

The same files are imported again with compilation switched off, beside the compiled modules that are in use.
"""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType

import numba

# what holds compiled code; everything else is shared
_PARTS = ("simkit.compiled", "simkit.models.steptables", "simkit.engine")


class Interpreted:
    """Modules of `simkit.engine` as attributes, by name, with plain functions; `steptables` is among them.

    They work on the same arrays as the compiled ones: a Replica can be handed from one to the other.
    """

    def __getattr__(self, name: str) -> ModuleType:
        """Import the module when it is first asked for; AttributeError if there is none."""
        full = "simkit.models.steptables" if name == "steptables" else f"simkit.engine.{name}"
        try:
            with uncompiled():
                module = importlib.import_module(full)
        except ModuleNotFoundError as error:
            raise AttributeError(f"{full}: {error}") from error
        setattr(self, name, module)
        return module


@cache
def interpreted() -> Interpreted:
    """The one uncompiled copy of the engine."""
    return Interpreted()


@contextmanager
def uncompiled() -> Iterator[None]:
    """Inside, what is imported from the engine is plain Python, and decorators of simkit.compiled do nothing."""
    ours = _loaded()
    was_disabled = numba.config.DISABLE_JIT
    _replace(ours, _copies())
    numba.config.DISABLE_JIT = 1
    try:
        yield
    finally:
        numba.config.DISABLE_JIT = was_disabled
        copies = _loaded()
        _copies().update(copies)
        _replace(copies, ours)


@cache
def _copies() -> dict[str, ModuleType]:
    """The plain modules imported so far, by full name: one of each, however often `uncompiled` is entered."""
    return {}


def _loaded() -> dict[str, ModuleType]:
    return {name: module for name, module in sys.modules.items() if name.startswith(_PARTS)}


def _replace(old: dict[str, ModuleType], new: dict[str, ModuleType]) -> None:
    """Put `new` in the place of `old`, as modules and as attributes of the packages that hold them."""
    for name in old:
        del sys.modules[name]
    sys.modules.update(new)
    for name, module in new.items():
        package, _, attribute = name.rpartition(".")
        setattr(sys.modules[package], attribute, module)
