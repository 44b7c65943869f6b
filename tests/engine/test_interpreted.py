"""Plain Python and compiled code are the same engine, bit for bit."""

from types import SimpleNamespace

import pytest

from simkit.engine.histories import random_history
from simkit.engine.loop import IDLE, advance
from simkit.engine.selftest import state_bytes
from simkit.engine.state import NEVER


@pytest.mark.parametrize("seed", range(40))
def test_interpreted_equals_compiled_bit_for_bit(interpreted: SimpleNamespace, seed: int) -> None:
    history = random_history(seed)
    compiled, plain = history.replica(), history.replica()
    assert advance(compiled, history.tables, NEVER, 10**6) == IDLE
    assert interpreted.loop.advance(plain, history.tables, NEVER, 10**6) == IDLE
    ours, theirs = state_bytes(compiled), state_bytes(plain)
    assert [name for name in ours if ours[name] != theirs[name]] == []


def test_python_cannot_crash_on_a_function_that_is_only_inlined() -> None:
    from simkit.engine.blocks import push_back

    with pytest.raises(TypeError, match="NUMBA_DISABLE_JIT"):
        push_back(random_history(0).replica().pool, 1)
