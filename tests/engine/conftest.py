"""The engine twice: compiled, as users run it, and the same source as plain Python."""

import sys
from pathlib import Path

import pytest

from simkit.engine.interpreted import Interpreted
from simkit.engine.interpreted import interpreted as plain_engine

sys.path.insert(0, str(Path(__file__).parent))  # for hand_worked


@pytest.fixture(scope="session")
def interpreted() -> Interpreted:
    """Modules of the engine imported again with compilation switched off."""
    return plain_engine()
