"""Distil AIConfigurator's measured tables (Apache-2.0) into the kernel laws that ship: simkit/models/laws/kernels.yaml.

    pip install aiconfigurator-core pyarrow pandas scipy
    python experiments/fidelity/distil_kernels.py [FOLDER OF systems/data] [OUT.yaml]

Every law is fitted on the vLLM tables of one device by least squares of log time, bounded to what is physical. Rows
that a running engine does not meet are left out: weights that fit in a cache, attention over so little that the hot
loop of a benchmark reads it from L2. Nothing of the tables is copied; the law's numbers and its median error are.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray
from scipy.optimize import least_squares

from simkit.models.device import Device, load_device
from simkit.models.kernel_laws import KERNELS_FILE, LARGE_MESSAGE_BYTES
from simkit.models.state_time import CHUNK_TOKENS

F64 = NDArray[np.float64]
Law = dict[str, float]

# our device -> folder of the tables
DEVICES = {
    "a100-80gb": "a100_sxm",
    "h100-sxm": "h100_sxm",
    "h200": "h200_sxm",
    "l40s": "l40s",
    "b200": "b200_sxm",
    "rtx-pro-6000": "rtx_pro_6000_server",
}
STAND_INS = {
    "a100-40gb": "a100-80gb",
    "a100-80gb-pcie": "a100-80gb",
    "h100-pcie": "h100-sxm",
    "h100-nvl": "h100-sxm",
    "l4": "l40s",
    "a10g": "l40s",
    "rtx-4090": "l40s",
    "rtx-5090": "rtx-pro-6000",
}
HEAD_DIM = 128
BYTES = {"bfloat16": 2.0, "fp8_block": 1.0, "w4a16_mxfp4": 4.25 / 8, "int4_wo": 4.25 / 8}  # a weight, scales included
# (name, first guess, lower, upper) of what is fitted
BOUNDS = {
    "compute": (0.7, 0.05, 1.2),
    "bandwidth": (0.8, 0.1, 1.05),
    "fixed_us": (4.0, 0.02, 200.0),
    "corner": (1.6, 1.02, 8.0),
    "extra_keys": (200.0, 1.0, 2000.0),
    "copies": (0.4, 0.03, 1.05),
    "efficiency": (0.3, 0.01, 1.2),
    "start_us": (10.0, 0.1, 200.0),
    "chunk_us": (3.0, 0.01, 100.0),
    "busy_us": (5.0, 0.01, 500.0),
    "q": (4.0, 1.5, 20.0),
}


def fitted(names: list[str], predict: Callable[[Law], F64], measured_s: F64) -> Law:
    """The law of these numbers that is nearest to the measured times, and its median relative error."""
    guess, low, high = (np.log([BOUNDS[name][i] for name in names]) for i in range(3))

    def law(x: F64) -> Law:
        return dict(zip(names, np.exp(x).tolist(), strict=True))

    found = least_squares(
        lambda x: np.log(predict(law(x)) / measured_s), guess, bounds=(low, high), loss="soft_l1", f_scale=0.05
    )
    best = law(found.x)
    error = float(np.median(np.abs(np.log(predict(best) / measured_s))))
    return {name: float(f"{value:.3g}") for name, value in best.items()} | {"error": round(error, 3)}


def roofline(law: Law, compute_s: F64, memory_s: F64) -> F64:
    """`KernelLaw.ns` of one kernel, in s."""
    q = law.get("corner", 8.0)
    busy = ((compute_s / law["compute"]) ** q + (memory_s / law["bandwidth"]) ** q) ** (1 / q)
    return np.asarray(law["fixed_us"] * 1e-6 + busy)


def columns(table: pd.DataFrame, *names: str) -> list[F64]:
    """Columns as f64, and the latency in s last."""
    return [table[name].to_numpy(float) for name in names] + [table["latency"].to_numpy(float) * 1e-3]


def gemm(table: pd.DataFrame, device: Device, kind: str) -> Law | None:
    """Products of weights of 16 MB to 1.2 GB with up to 4,096 rows."""
    rows = table[(table.gemm_dtype == kind) & (table.m <= 4096) & (table.k >= 1024) & (table.n >= 1024)]
    wide = 2 if kind == "bfloat16" else 1
    weights = rows.n * rows.k * wide
    m, n, k, t = columns(rows[(weights >= 16e6) & (weights <= 1.2e9)], "m", "n", "k")
    if len(t) < 100:
        return None
    compute = 2 * m * n * k / device.flops_per_s("bf16" if wide == 2 else "fp8")
    memory = (n * k * wide + m * k * 2 + m * n * 2) / device.bandwidth_bytes_per_s
    return fitted(
        ["compute", "bandwidth", "fixed_us", "corner"],
        lambda law: roofline(law, compute, memory),
        t,
    )


def grouped(table: pd.DataFrame, device: Device, kinds: tuple[str, ...]) -> Law | None:
    """MoE layers, evenly routed where that was measured; Triton kernels where there are any."""
    rows = table[table.moe_dtype.isin(kinds)]
    triton = rows.kernel_source.str.contains("triton|fused_moe")
    return expert_layers(rows[triton] if triton.sum() >= 100 else rows, device, BYTES[kinds[0]])


def marlin(table: pd.DataFrame, device: Device) -> Law | None:
    """MoE layers whose weights of 4 bits Marlin multiplies, which does without Hopper's `wgmma`."""
    rows = table[table.moe_dtype.isin(("w4a16_mxfp4", "int4_wo"))]
    return expert_layers(rows[rows.kernel_source.str.contains("marlin")], device, BYTES["int4_wo"])


def expert_layers(rows: pd.DataFrame, device: Device, wide: float) -> Law | None:
    """A law of whole MoE layers of up to 8,192 tokens, experts in slices of 128 and wider; None of too few.

    `wide` bytes a weight. Beside the two products, each token is copied to its experts, activated and summed again by
    kernels of their own: in narrow slices that is half of the time.
    """
    rows = rows[(rows.num_tokens <= 8192) & (rows.moe_ep_size == 1) & (rows.topk <= 8)]
    rows = rows[(rows.hidden_size >= 2048) & (rows.inter_size / rows.moe_tp_size >= 128)]
    even = rows.distribution == "balanced"
    rows = rows[even] if even.any() else rows[rows.distribution == rows.distribution.min()]
    tokens, hidden, inter, top, experts, tensor, t = columns(
        rows, "num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size"
    )
    if len(t) < 100:
        return None
    touched = np.minimum(experts, tokens * top) if even.any() else experts * (1 - (1 - top / experts) ** tokens)
    width = inter / tensor
    compute = 6 * tokens * top * hidden * width / device.flops_per_s("fp8" if wide == 1 else "bf16")
    memory = touched * 3 * hidden * width * wide + tokens * top * (4 * hidden + 6 * width)
    memory_s = memory / device.bandwidth_bytes_per_s
    # `expert_activation` and `combine` of simkit/models/operators.py
    copies_s = (tokens * top * (2 * hidden + 6 * width) + tokens * 2 * hidden) / device.bandwidth_bytes_per_s
    return fitted(
        ["compute", "bandwidth", "fixed_us", "corner", "copies"],
        lambda law: roofline(law, compute, memory_s) + copies_s / law["copies"],
        t,
    )


def attention_rows(table: pd.DataFrame) -> pd.DataFrame:
    """16-bit, 128 wide, full attention, grouped queries."""
    if "window_size" in table:
        table = table[table.window_size == 0]
    grouped_queries = (table.num_key_value_heads <= 8) & (table.num_heads >= 2 * table.num_key_value_heads)
    return table[(table.kv_cache_dtype == "bfloat16") & (table.head_dim == HEAD_DIM) & grouped_queries]


def attention_decode(table: pd.DataFrame, device: Device) -> Law:
    """KV of two L2 caches to 1 GB, batches of 2 to 256: what a step finds cold."""
    rows = attention_rows(table)
    kv = rows.batch_size * (rows.step + 1) * rows.num_key_value_heads * HEAD_DIM * 4.0
    cold = (kv > 2 * device.l2_mib.value * 2**20) & (kv < 1e9) & rows.batch_size.between(2, 256)
    memory = kv[cold].to_numpy(float) / device.bandwidth_bytes_per_s
    (t,) = columns(rows[cold])
    law = fitted(["bandwidth", "fixed_us"], lambda law: law["fixed_us"] * 1e-6 + memory / law["bandwidth"], t)
    return {"compute": 0.55} | law  # plateau of MLA decode on H800 (InferSim's bench_data, 0.53 to 0.56)


def attention_prefill(table: pd.DataFrame, device: Device) -> Law:
    """Causal prompts of 64 to 16,384 tokens."""
    rows = attention_rows(table)
    batch, length, heads, t = columns(rows[rows.isl.between(64, 16384)], "batch_size", "isl", "num_heads")
    per_key = 4 * batch * heads * HEAD_DIM * length / device.flops_per_s("bf16")

    def predict(law: Law) -> F64:
        return law["fixed_us"] * 1e-6 + per_key * ((length + 1) / 2 + law["extra_keys"]) / law["compute"]

    return fitted(["compute", "fixed_us", "extra_keys"], predict, t) | {"bandwidth": 0.8}


def state_decode(table: pd.DataFrame, device: Device) -> Law:
    """Gated DeltaNet of one token a request: states of two L2 caches and more, and of requests too few to matter."""
    rows = table[(table.phase == "generation") & ~table.kernel_source.str.contains("conv")]
    batch, heads, key, value, t = columns(rows, "batch_size", "num_v_heads", "head_k_dim", "head_v_dim")
    # read and written in fp32; the kernel of older tables would beat the memory's peak so, and is taken to keep 16 bits
    wide = np.where(rows.kernel_source.str.contains("packed"), 4, 2)
    moved = 2 * wide * batch * heads * key * value
    cold = moved > 2 * device.l2_mib.value * 2**20
    memory = moved / device.bandwidth_bytes_per_s
    few = batch <= 2
    law = fitted(
        ["bandwidth", "fixed_us"],
        lambda law: (law["fixed_us"] * 1e-6 + memory / law["bandwidth"])[cold | few],
        t[cold | few],
    )
    return {"compute": 1.0} | law


def state_prefill(table: pd.DataFrame, device: Device) -> Law | None:
    """Gated DeltaNet over prompts of 64 tokens and more, up to 32,768 of them a step; None without a table."""
    rows = table[(table.phase == "context") & ~table.kernel_source.str.contains("conv")]
    rows = rows[(rows.seq_len >= CHUNK_TOKENS) & (rows.seq_len * rows.batch_size <= 32768)]
    batch, length, heads, t = columns(rows, "batch_size", "seq_len", "num_v_heads")
    if len(t) < 100:
        return None
    alone = length / CHUNK_TOKENS
    busy = batch * alone * heads / device.multiprocessors.value

    def predict(law: Law) -> F64:
        both = (law["chunk_us"] * alone) ** law["q"] + (law["busy_us"] * busy) ** law["q"]
        return 1e-6 * (law["start_us"] + both ** (1 / law["q"]))

    law = fitted(["start_us", "chunk_us", "busy_us", "q"], predict, t)
    return {"corner" if name == "q" else name: value for name, value in law.items()}


def all_reduce(table: pd.DataFrame, device: Device) -> list[Law]:
    """vLLM's all-reduce in a graph, 4 KB to 512 MB, by number of GPUs; a line below the switch and one above."""
    rows = table[table.kernel_source.str.contains("graph") & (table.message_size >= 4096)]
    laws = []
    for gpus in sorted(int(gpus) for gpus in rows.num_gpus.unique()):
        found: Law = {"gpus": gpus}
        errors = []
        for prefix, own in (
            ("", rows.message_size <= LARGE_MESSAGE_BYTES),
            ("large_", rows.message_size > LARGE_MESSAGE_BYTES),
        ):
            size, t = columns(rows[(rows.num_gpus == gpus) & own], "message_size")
            sent = 2 * (gpus - 1) / gpus * size / device.link_bytes_per_s

            def predict(law: Law, sent: F64 = sent) -> F64:
                return law["fixed_us"] * 1e-6 + sent / law["efficiency"]

            law = fitted(["fixed_us", "efficiency"], predict, t)
            errors.append(law.pop("error"))
            found |= {prefix + name: value for name, value in law.items()}
        laws.append(found | {"error": max(errors)})
    return laws


def state_table(folder: Path) -> pd.DataFrame:
    """Measurements of Gated DeltaNet, by vLLM's kernels where there are any, else by SGLang's."""
    for engine in ("vllm", "sglang"):
        if (folder / engine).is_dir():
            return newest(folder / engine, "gdn_perf.parquet")[0]
    raise FileNotFoundError(f"{folder}: no table of Gated DeltaNet")


def newest(folder: Path, name: str) -> tuple[pd.DataFrame, str]:
    """A table of the highest vLLM version that has it, and that version."""
    files = sorted(folder.glob(f"*/{name}"), key=lambda file: [int(part) for part in file.parent.name.split(".")])
    file = files[-1]
    return pd.read_parquet(file), file.parent.name


def laws(folder: Path, device: Device) -> dict[str, object]:
    """All laws of a device."""
    gemms, gemm_version = newest(folder / "gemm/vllm", "gemm_perf.parquet")
    experts, _ = newest(folder / "moe/vllm", "moe_perf.parquet")
    decode, _ = newest(folder / "attention/vllm", "generation_attention_perf.parquet")
    prefill, _ = newest(folder / "attention/vllm", "context_attention_perf.parquet")
    states = state_table(folder / "linear_attention")
    sums, sum_version = newest(folder / "comm/vllm", "custom_allreduce_perf.parquet")
    dense, moe = gemm(gemms, device, "bfloat16"), grouped(experts, device, ("bfloat16",))
    assert dense is not None, f"{folder}: too few products"
    assert moe is not None, f"{folder}: too few MoE layers"
    return {
        "source": f"AIConfigurator 0.12 tables {folder.name}, vLLM {gemm_version} (all-reduce {sum_version}), fitted",
        "link": device.link.kind,
        "gemm": dense,
        "gemm_8bit": gemm(gemms, device, "fp8") or dense,
        "grouped_gemm": moe,
        "grouped_gemm_8bit": grouped(experts, device, ("fp8_block",)) or moe,
        "grouped_gemm_4bit": grouped(experts, device, ("w4a16_mxfp4",))
        or grouped(experts, device, ("int4_wo",))
        or moe,
        "grouped_gemm_marlin": marlin(experts, device) or moe,
        "attention_decode": attention_decode(decode, device),
        "attention_prefill": attention_prefill(prefill, device),
        "state_decode": state_decode(states, device),
        "state_prefill": state_prefill(states, device),
        "all_reduce": all_reduce(sums, device),
    }


def main() -> None:
    """Fit, write, and print."""
    if len(sys.argv) > 1:
        data = Path(sys.argv[1])
    else:
        import aiconfigurator_core

        data = Path(aiconfigurator_core.__file__).parent / "systems/data"
    out = Path(sys.argv[2]) if len(sys.argv) > 2 else KERNELS_FILE
    devices = {name: laws(data / folder, load_device(name)) for name, folder in DEVICES.items()}
    for found in devices.values():
        if found["state_prefill"] is None:  # not in the A100's table; of the devices measured, L40S runs its kernels
            found["state_prefill"] = devices["l40s"]["state_prefill"]
    head = "# Made by experiments/fidelity/distil_kernels.py; fractions of the datasheet peaks in facts/devices.yaml.\n"
    tree = {"devices": devices, "stand_ins": STAND_INS}

    class Plain(yaml.SafeDumper):
        def ignore_aliases(self, data: object) -> bool:
            return True

    out.write_text(head + yaml.dump(tree, Dumper=Plain, sort_keys=False, default_flow_style=None, width=120))
    print(out.read_text())


if __name__ == "__main__":
    main()
