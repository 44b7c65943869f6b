"""How numba compiles a function that only other compiled functions call: no further than they need.

Left alone, numba optimises each such function as a whole program, makes machine code of it that nobody runs, and then
does both again inside each caller. On the step loop's hundred functions that is a quarter of the time until the first
answer, and makes no loop faster. So are, with what `simkit.by_address` spares, questions that numba asks LLVM or itself
ten thousands of times over, and passes that look for what is not written here: 2 of 13 seconds of one core until the
first answer (`simkit run`, numba 0.68).
"""

from collections.abc import Mapping
from functools import cache, partial
from typing import Any, ClassVar

from llvmlite import ir
from numba import _dynfunc
from numba.core import typing
from numba.core.codegen import CPUCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder, Flags
from numba.core.compiler_machinery import PassManager
from numba.core.types import BaseFunction

from simkit.by_address import keep_to_registers

_own_parts: set[str] = set()  # names of functions that their callers do not take in


class _Part(CPUCodeLibrary):  # type: ignore[misc]
    """LLVM's intermediate code of a function, to be linked into its callers, which optimise it in place."""

    def add_ir_module(self, ir_module: Any) -> None:
        """As numba's, of a function that keeps what it has by address to itself."""
        for function in ir_module.functions:
            keep_to_registers(function, _own_parts)
        super().add_ir_module(ir_module)

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._verify_declare_only_symbols()
        self._finalized = True


class _OwnPart(_Part):
    """The same of a function that its callers call, and do not take in."""

    def add_ir_module(self, ir_module: Any) -> None:
        """As numba's, once the function is marked for LLVM."""
        for function in ir_module.functions:
            if not function.is_declaration:
                function.attributes.add("noinline")
                _own_parts.add(function.name)
        super().add_ir_module(ir_module)


def _nothing_to_execute(library: _Part, fndesc: Any, env: object) -> object:
    """Stand in for the context's `get_executable`: numba wants a function object to know the code by."""
    library._ensure_finalized()
    name = fndesc.qualname.split(".")[-1]
    return _dynfunc.make_function(fndesc.lookup_module(), name, "", 0, env, (library,))


def _nothing_to_load() -> None:
    """Stand in for the context's `load_additional_registries`: loaded before each function, asked for in it again."""


_sizes: dict[str, int] = {}  # by the text of the type


def _size_of(target_data: Any, kind: ir.Type) -> int:
    """Bytes of one of LLVM's types, which makes and reads a module of code each time it is asked."""
    name = str(kind)
    if name not in _sizes:
        _sizes[name] = kind.get_abi_size(target_data)
    return _sizes[name]


class _KnownFlags(Flags):  # type: ignore[misc]
    """Flags that stay as they are: numba compares all thirty by name for each function that an operator could mean."""

    __slots__ = ("_all",)

    def values(self) -> dict[str, object]:
        """As numba's, remembered."""
        if not hasattr(self, "_all"):
            self._all: dict[str, object] = super().values()
        return self._all

    def __eq__(self, other: object) -> bool:
        if isinstance(other, _KnownFlags) and self._values == other._values:
            return True
        return bool(super().__eq__(other))

    def __hash__(self) -> int:
        return _FLAGS_HASH


_FLAGS_HASH = hash(Flags())


class _PartFlags(Flags):  # type: ignore[misc]
    def copy(self) -> Flags:
        """What numba works by while it compiles."""
        return _KnownFlags(self)


class _Remembering(typing.Context):  # type: ignore[misc]
    """What numba knows of types, and what an operator means for some: it tries all thirty meanings each time."""

    _known: ClassVar[dict[tuple[BaseFunction, tuple[object, ...]], object]] = {}

    def __init__(self, context: typing.Context) -> None:
        self.__dict__ = context.__dict__  # the same one, which whoever else asks goes on with

    def resolve_function_type(self, func: Any, args: tuple[object, ...], kws: Mapping[str, object]) -> object:
        """As numba's, for operators and its own functions once; compiled functions are looked up as ever."""
        meant = self._lookup_global(func) or func
        if kws or not isinstance(meant, BaseFunction):
            return super().resolve_function_type(func, args, kws)
        if (meant, args) not in self._known:
            self._known[meant, args] = super().resolve_function_type(func, args, kws)
        return self._known[meant, args]


_remembering = cache(_Remembering)  # one, since numba remembers things by it

# closures and comprehensions, operators on whole arrays, branches on what is None: not in the step loop
_FRUITLESS = ("InlineClosureLikes", "InlineOverloads", "NopythonRewrites", "DeadBranchPrune")


class PartCompiler(CompilerBase):  # type: ignore[misc]
    """numba's own passes, into a `_Part`; for `numba.njit(pipeline_class=..)`."""

    library: type[_Part] = _Part

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.state.flags = _PartFlags(self.state.flags)

    def define_pipelines(self) -> list[object]:
        """The passes, as numba asks for them (its "Customizing the Compiler")."""
        state = self.state
        context = state.targetctx
        state.typingctx = _remembering(state.typingctx)
        state.targetctx = context.subtarget(
            get_executable=_nothing_to_execute,
            get_abi_sizeof=partial(_size_of, context.target_data),
            typing_context=state.typingctx,
            load_additional_registries=_nothing_to_load,
        )
        state.library = self.library(state.targetctx.codegen(), state.func_id.func_qualname)
        pipeline = DefaultPassBuilder.define_nopython_pipeline(state)
        passes = PassManager(pipeline.pipeline_name)
        for kind, description in pipeline.passes:
            if kind.__name__ not in _FRUITLESS:
                passes.add_pass(kind, description)
        passes.finalize()
        return [passes]


class OwnPartCompiler(PartCompiler):
    """The same into an `_OwnPart`."""

    library = _OwnPart
