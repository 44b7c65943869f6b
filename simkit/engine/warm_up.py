"""Compile a discipline's loop, or fetch its machine code from disk, before anything is timed or a bar is shown."""

import numpy as np

from simkit.engine.simulate import simulate
from simkit.engine.state import Limits
from simkit.models.steptables import constant_tables
from simkit.workloads.workload import Workload


def warm_up(discipline: str = "vllm-v1") -> None:
    """Serve one request of one token."""
    one = np.ones(1, dtype=np.int32)
    workload = Workload("warm-up", np.zeros(1, dtype=np.int64), one, one)
    tables = constant_tables(SMALL.max_num_batched_tokens, 1, step_ns=1.0)
    if not simulate(workload, SMALL, tables, 4, discipline=discipline).complete:
        raise KeyboardInterrupt


SMALL = Limits(
    max_num_batched_tokens=16,
    max_running=1,
    max_model_len=16,
    block_size=16,
)
