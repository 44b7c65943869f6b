"""Runs every builder of `cuda_operators.py` in Triton's interpreter, which is chosen at import: a process of its own.

Prints a line a point: the table, the calls in the rotation, the kernel.
"""

import torch

from simkit.calibrate import cuda_operators
from simkit.calibrate.cuda_operators import CudaRoom, cuda_calls
from simkit.calibrate.measure import UnmeasurableError
from simkit.calibrate.operator_sizes import AttentionShape
from simkit.calibrate.points import Point
from simkit.kernels.jit import interpreted
from simkit.kernels.paged_decode import decode_split_kernel

SHAPE = AttentionShape(4, 2, 16, 0, "fp32")
HEADS = ("fp32", 4, 2, 16, 0)
POINTS = [
    Point("gemm", ("fp32", 3, 32, 16)),
    Point("attention_decode", (*HEADS, 3, 90, 50, "1x10 1x30 1x50")),
    Point("attention_decode", ("fp32", 4, 2, 16, 32, 2, 96, 48, "")),
    Point("attention_prefill", (*HEADS, 2, 17, 20)),
    Point("attention_mixed", (*HEADS, 17, 0, 2, 80)),
    Point("elementwise", ("embedding", 3, 32, 384)),
    Point("elementwise", ("norm", 3, 32, 384)),
    Point("elementwise", ("qk_norm", 3, 48, 384)),
    Point("elementwise", ("activation", 3, 32, 384)),
    Point("elementwise", ("route", 3, 16, 384)),
    Point("elementwise", ("rope", 3, (4 + 2) * 16, 384)),
    Point("elementwise", ("kv_write", 3, 2 * 16, 384)),
    Point("elementwise", ("rope_kv_write", 3, (4 + 2 + 2) * 16, 384)),
    Point("sampling", ("greedy", 3, 100)),
    Point("moe", ("fp32", 3, 32, 16, 4, 2, 1, 1, "even")),
]
REFUSED = [
    Point("elementwise", ("latent_norm", 3, 32, 384)),
    Point("elementwise", ("rope", 3, 999, 384)),
    Point("collective", ("all_reduce", 2, 4096)),
    Point("gemm", ("bf16", 3, 32, 16)),
]


def main() -> None:
    assert interpreted(decode_split_kernel)
    torch.cuda.get_device_properties = lambda _=None: type(  # type: ignore[assignment]
        "Properties", (), {"total_memory": 1 << 34, "L2_cache_size": 1 << 12, "multi_processor_count": 4}
    )()
    room = CudaRoom(torch.device("cpu"), torch.float32, (SHAPE,))
    for point in POINTS:
        made = cuda_calls(point, room)
        outputs = [call() for call in made.rotation]
        assert outputs
        print(point.table, len(made.rotation), made.kernel)
    for point in REFUSED:
        try:
            cuda_calls(point, room)
        except UnmeasurableError:
            continue
        raise AssertionError(f"{point} was not refused")
    assert cuda_operators.PAGE_TOKENS in (16, 32, 64, 128)


if __name__ == "__main__":
    main()
