"""The engine twice: compiled, as users run it, and the same source as plain Python."""

import importlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numba
import pytest

sys.path.insert(0, str(Path(__file__).parent))

_PARTS = ("simkit.compiled", "simkit.models.steptables", "simkit.engine")


@pytest.fixture(scope="session")
def interpreted() -> SimpleNamespace:
    """Modules of the engine imported again with compilation switched off."""
    ours = {name: module for name, module in sys.modules.items() if name.startswith(_PARTS)}
    for name in ours:
        del sys.modules[name]
    numba.config.DISABLE_JIT = 1
    try:
        names = ("loop", "blocks", "prefix", "waiting", "vllm_v1", "record")
        modules: dict[str, ModuleType] = {name: importlib.import_module(f"simkit.engine.{name}") for name in names}
        modules["steptables"] = importlib.import_module("simkit.models.steptables")
    finally:
        numba.config.DISABLE_JIT = 0
        for name in [name for name in sys.modules if name.startswith(_PARTS)]:
            del sys.modules[name]
        sys.modules.update(ours)
    return SimpleNamespace(**modules)
