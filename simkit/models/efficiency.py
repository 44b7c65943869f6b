"""What fraction of a device's peaks each family of operators reaches, and what a kernel costs beside that.

A kernel of `f` FLOPs and `m` bytes takes `fixed + (t_compute^q + t_memory^q)^(1/q)`, with t_compute = f / (c x peak)
and t_memory = m / (b x bandwidth): the roofline with a rounded corner. Constants are fitted to public measurements
where those exist and said to be assumed where not. The assumed ones were chosen with the end-to-end runs listed in
docs/models.md in view: those runs are no held-out test of them.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from simkit.models.device import Device
from simkit.models.operators import Family


@dataclass(frozen=True)
class Efficiency:
    """Constants of one family on any device."""

    compute: float  # c, fraction of the dense peak
    bandwidth: float  # b, fraction of the memory bandwidth
    fixed_ns: float  # start and tail of one kernel, on the GPU
    source: str


# q of the rounded corner, from the same fit as the GEMM constants.
CORNER = 1.4

EFFICIENCY: dict[Family, Efficiency] = {
    "gemm": Efficiency(
        0.74,
        0.92,
        5_500.0,
        "fitted to Vidur's A100 and H100 mlp profiles together (4 GEMMs of 3 models, 1 to 4,096 tokens, tensor 1 to 8)",
    ),
    "grouped_gemm": Efficiency(
        0.50,
        0.92,
        10_000.0,
        "assumed: streams weights as a GEMM does, two thirds of its compute (tiles partly filled), alignment included",
    ),
    "elementwise": Efficiency(
        1.0, 0.60, 2_500.0, "Vidur's A100 and H100 mlp profiles: norm, activation, rotary, add; smallest 1 to 4 us"
    ),
    "attention_decode": Efficiency(
        0.55,
        0.86,
        12_000.0,
        "bandwidth: middle of fits of Vidur A100 (0.78) and InferSim H800 FlashInfer (0.95); fixed: the same fits give "
        "16 and 17 us with launches, less an assumed 4 to 5 us inside a graph; compute: plateau of MLA decode on H800 "
        "(InferSim, 0.53 to 0.56)",
    ),
    "state_decode": Efficiency(
        1.0,
        0.85,
        4_000.0,
        "fits of AIConfigurator's tables of Gated DeltaNet in vLLM: 0.81 to 0.90 on H100, H200, B200, L40S; 2 to 4 us",
    ),
    "attention_prefill": Efficiency(
        0.50, 0.86, 12_000.0, "assumed where a device has no figure of its own; the device's figure otherwise"
    ),
}

# Prefill attention approaches its limit as queries see more keys: time as if each saw this many more. FlashAttention 3
# on H100, causal, reaches 364, 560, 667, 685 TFLOP/s at 1k, 2k, 4k, 8k tokens (facebookexperimental/triton PR 3582);
# a limit of 0.72 of the peak, 160 keys and the fixed cost come within 15 % (tests/models/test_roofline.py).
PREFILL_EXTRA_KEYS = 160.0


@dataclass(frozen=True)
class Collective:
    """alpha + bytes / (efficiency x link bandwidth), of one collective."""

    fixed_ns: float
    efficiency: float
    source: str


CollectiveFamily = Literal[
    "all_reduce", "all_reduce_in_node", "all_gather", "all_to_all", "all_to_all_network", "send", "network"
]
COLLECTIVES: tuple[CollectiveFamily, ...] = get_args(CollectiveFamily)
_DEEPEP_NETWORK = Collective(
    5_000.0,
    0.92,
    "DeepEP README, low-latency kernels over RDMA alone, 8 GPUs, 128 tokens: 46 of 50 GB/s, dispatch and combine on "
    "one line through 1 us; fixed: assumed 5 us",
)
_NCCL_NETWORK = Collective(
    12_500.0,
    0.94,
    "bytes: 46 to 48 of an NDR card's 50 GB/s (NVIDIA in nccl-tests issue 290); fixed: 4 to 512 bytes over 2 nodes of "
    "8 H20 take 46 to 48 us (nccl issue 1244, NVLSTree), less the 21 us of an H100's 8 in a node, half of it each way",
)
_NVLINK: dict[CollectiveFamily, Collective] = {
    "all_reduce": Collective(
        7_000.0,
        0.70,
        "bytes: fits of Vidur's DGX A100 and H100 profiles (0.51 to 0.60 and 0.67 to 0.81 of NVLink); fixed: assumed "
        "7 us, a custom kernel inside a CUDA graph (NCCL outside one: 20 to 50 us in the same profiles)",
    ),
    "all_reduce_in_node": Collective(20_000.0, 0.70, "as all_reduce; NCCL, custom kernels sum within one node only"),
    "all_gather": Collective(20_000.0, 0.70, "as all_reduce; NCCL"),
    "all_to_all": Collective(
        30_000.0,
        0.77,
        "DeepEP README: 153 and 158 of H800's 200 GB/s for 4,096 tokens; fixed: 77 and 114 us for 128 tokens lie on a "
        "line through 38 us",
    ),
    "all_to_all_network": _DEEPEP_NETWORK,
    "network": _NCCL_NETWORK,
    "send": Collective(
        14_000.0, 0.80, "Vidur's DGX A100 and H100 send_recv profiles: 14 and 8 us, 0.8 to 1.0 of NVLink"
    ),
}
_PCIE: dict[CollectiveFamily, Collective] = {
    "all_reduce": Collective(25_000.0, 0.60, "assumed: no public table for PCIe; staged through host memory"),
    "all_reduce_in_node": Collective(30_000.0, 0.60, "assumed, as all_gather"),
    "all_gather": Collective(30_000.0, 0.60, "assumed, as all_reduce"),
    "all_to_all": Collective(40_000.0, 0.60, "assumed, as all_reduce"),
    "all_to_all_network": _DEEPEP_NETWORK,
    "network": _NCCL_NETWORK,
    "send": Collective(20_000.0, 0.70, "assumed, as all_reduce"),
}

# CPU time to launch one kernel when no CUDA graph replays it; a step cannot be shorter than its launches.
# Assumed: 4 to 6 us is the usual range of cudaLaunchKernel plus framework dispatch after compilation.
LAUNCH_NS = 5_000.0
# The same with `enforce_eager`, where nothing is compiled: Python's modules, custom operators and checks as well. From
# decodes of one request in vLLM: 10.0 ms a token of Qwen3-0.6B (pytorch/torchtitan pull request 2373: 199 ms for 20),
# and 22 to 23 of Qwen2.5-7B on A800 (vllm-project/vllm-omni issue 7960, vLLM 0.29; 13 with graphs), whose hosts take
# `old_host_factor` longer. Of 338 and 282 operators as counted here each took 30 and 45 us; this is their middle.
EAGER_LAUNCH_NS = 38_000.0

# CPU time of one step that the GPU waits for: scheduling, input preparation, output processing. Assumed. vLLM V0 was
# measured at 0.5 to 2 ms for scheduling and 1 to 5 ms for preparation (inference-sim issue 482); V1 with asynchronous
# scheduling hides most of it.
HOST_STEP_NS = 300_000.0
HOST_REQUEST_NS = 4_000.0


def compute_fraction(family: Family, device: Device) -> float:
    """The fraction of the peak an operator family reaches on `device` at best."""
    if family == "attention_prefill" and device.prefill_attention_fraction is not None:
        return device.prefill_attention_fraction.value
    return EFFICIENCY[family].compute


def collective(family: CollectiveFamily, device: Device) -> Collective:
    """The constants of a collective over the links of one node, or between nodes."""
    return (_PCIE if device.link.kind == "pcie" else _NVLINK)[family]
