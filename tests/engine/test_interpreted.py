"""Plain Python and compiled code are the same engine, bit for bit."""

from types import SimpleNamespace

import numpy as np
import pytest
from histories import random_history

from simkit.engine.loop import IDLE, advance
from simkit.engine.state import NEVER, Replica


def flat(r: Replica) -> dict[str, np.ndarray]:
    """Every array of a replica."""
    arrays = {name: getattr(r, name) for name in ("progress", "ledger", "batches", "running", "at")}
    arrays |= {f"pool.{name}": getattr(r.pool, name) for name in ("blocks", "places", "counts")}
    return arrays | {f"record.{name}": getattr(r.record, name) for name in r.record._fields}


@pytest.mark.parametrize("seed", range(40))
def test_interpreted_equals_compiled_bit_for_bit(interpreted: SimpleNamespace, seed: int) -> None:
    history = random_history(seed)
    compiled, plain = history.replica(), history.replica()
    assert advance(compiled, history.tables, NEVER, 10**6) == IDLE
    assert interpreted.loop.advance(plain, history.tables, NEVER, 10**6) == IDLE
    for name, array in flat(compiled).items():
        assert array.tobytes() == flat(plain)[name].tobytes(), name


def test_python_cannot_crash_on_a_function_that_is_only_inlined() -> None:
    from simkit.engine.blocks import push_back

    with pytest.raises(TypeError, match="NUMBA_DISABLE_JIT"):
        push_back(random_history(0).replica().pool, 1)
