"""Operators that our kernels run as one launch, merged where a profile has timed them as one.

`models/operators.py` counts rotation and KV write apart, as vLLM launches them. `kernels/rope_cache.py` does both at
once; a profile of it has rows called `rope_kv_write`, and charging both parts would count a launch too many a layer.
"""

from collections.abc import Sequence
from dataclasses import replace

from simkit.calibrate.operator_model import OperatorModel
from simkit.models.operators import Operator

FUSED = "rope_kv_write"


def as_launched(operators: Sequence[Operator], model: OperatorModel) -> list[Operator]:
    """The operators of a step as the profile's kernels launch them, in their order."""
    if model.elementwise is None or FUSED not in model.elementwise.lines:
        return list(operators)
    found: list[Operator] = []
    for operator in operators:
        if operator.name == "kv_write" and found and found[-1].name == "rope":
            found[-1] = _fused(found[-1], operator)
        else:
            found.append(operator)
    return found


def _fused(rope: Operator, write: Operator) -> Operator:
    """One launch; the keys that are written are those that were turned, so only values are read for the write."""
    return replace(
        rope,
        name=FUSED,
        read_bytes=rope.read_bytes + write.read_bytes / 2.0,
        written_bytes=rope.written_bytes - write.read_bytes / 2.0,
        kv_written_bytes=write.kv_written_bytes,
    )
