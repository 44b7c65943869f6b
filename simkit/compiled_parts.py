"""How numba compiles a function that only other compiled functions call: no further than they need.

Left alone, numba optimises each such function as a whole program, makes machine code of it that nobody runs, and then
does both again inside each caller. On the step loop's hundred functions that is a quarter of the time until the first
answer, and makes no loop faster.
"""

from typing import Any

from numba import _dynfunc
from numba.core.codegen import CPUCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder


class _Part(CPUCodeLibrary):  # type: ignore[misc]
    """LLVM's intermediate code of a function, to be linked into its callers, which optimise it in place."""

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
        super().add_ir_module(ir_module)


def _nothing_to_execute(library: _Part, fndesc: Any, env: object) -> object:
    """Stand in for the context's `get_executable`: numba wants a function object to know the code by."""
    library._ensure_finalized()
    name = fndesc.qualname.split(".")[-1]
    return _dynfunc.make_function(fndesc.lookup_module(), name, "", 0, env, (library,))


class PartCompiler(CompilerBase):  # type: ignore[misc]
    """numba's own passes, into a `_Part`; for `numba.njit(pipeline_class=..)`."""

    library: type[_Part] = _Part

    def define_pipelines(self) -> list[object]:
        """The passes, as numba asks for them (its "Customizing the Compiler")."""
        state = self.state
        state.targetctx = state.targetctx.subtarget(get_executable=_nothing_to_execute)
        state.library = self.library(state.targetctx.codegen(), state.func_id.func_qualname)
        return [DefaultPassBuilder.define_nopython_pipeline(state)]


class OwnPartCompiler(PartCompiler):
    """The same into an `_OwnPart`."""

    library = _OwnPart
