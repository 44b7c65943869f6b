"""Compile every shipped configuration for sm_90 without a GPU and print what came out, one JSON line each.

Run in a process of its own, without TRITON_INTERPRET: kernels are defined for one of the two.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from simkit.kernels import paged_decode as decode
from simkit.kernels import paged_prefill as prefill

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
# head size, group, page, dtype
CASES = [
    (64, 4, 16, torch.bfloat16),
    (80, 1, 16, torch.bfloat16),
    (128, 4, 16, torch.bfloat16),
    (128, 7, 64, torch.bfloat16),
    (128, 128, 64, torch.bfloat16),
    (256, 8, 16, torch.bfloat16),
    (128, 4, 16, torch.float16),
    (128, 4, 16, torch.float32),
]
SPLITS = 8


def compiled(kernel, pointers, constants, config):  # type: ignore[no-untyped-def]
    """The kernel as the launcher would have it: pointers and strides known to be multiples of 16."""
    signature, attrs = {}, {}
    for i, parameter in enumerate(kernel.params):
        if parameter.is_constexpr:
            signature[parameter.name] = "constexpr"
        elif parameter.annotation == "fp32":
            signature[parameter.name] = "fp32"
        else:
            signature[parameter.name] = "*" + pointers[parameter.name] if parameter.name in pointers else "i32"
            attrs[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attrs)
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


def figures(code):  # type: ignore[no-untyped-def]
    """Shared memory in bytes, registers, spilling instructions, and what feeds and runs the tensor cores."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(code.asm["cubin"])
        use = subprocess.run([TOOLS / "cuobjdump", "-res-usage", cubin], capture_output=True, text=True, check=True)
        sass = subprocess.run([TOOLS / "nvdisasm", "-c", cubin], capture_output=True, text=True, check=True).stdout
    return {
        "shared_bytes": code.metadata.shared,
        "registers": int(re.search(r"REG:(\d+)", use.stdout)[1]),
        "stack_bytes": int(re.search(r"STACK:(\d+)", use.stdout)[1]),
        "spills": len(re.findall(r"\b(?:STL|LDL)\b", sass)),
        "wgmma": len(re.findall(r"\bHGMMA\b", sass)),
        "mma": len(re.findall(r"\bHMMA\b", sass)),
        "cp_async": code.asm["ptx"].count("cp.async.cg"),
    }


def main() -> None:
    ints = {"page_table": "i32", "context_tokens": "i32", "query_starts": "i32"}
    for head_dim, group, page, dtype in CASES:
        name = NAMES[dtype]
        pointers = {**ints, "q": name, "k": name, "v": name, "out": name}
        shape = {"HEAD_DIM": head_dim, "BLOCK_DIM": triton.next_power_of_2(head_dim)}
        parts = {**pointers, "partial_out": "fp32", "partial_lse": "fp32"}
        config = decode.decode_config(head_dim, dtype)
        rows = decode.tile_rows(group)
        split = {"SPLITS": SPLITS, "GROUP": group, "ROWS": rows, "ROW_BLOCKS": -(-group // rows)}
        split |= {"PAGE_TOKENS": page, "BLOCK_TOKENS": config.block_tokens, **shape}
        chunk = prefill.prefill_config(group, head_dim, dtype)
        tiles = {"GROUP": group, "PAGE_TOKENS": page, "BLOCK_ROWS": chunk.block_rows}
        tiles |= {"BLOCK_TOKENS": chunk.block_tokens, **shape}
        reduce_config = decode.DecodeConfig(0, 1, 3)
        for kernel, code in (
            ("decode", compiled(decode.decode_split_kernel, parts, split, config)),
            ("reduce", compiled(decode.decode_reduce_kernel, parts, {"SPLITS": SPLITS, **shape}, reduce_config)),
            ("prefill", compiled(prefill.prefill_kernel, pointers, tiles, chunk)),
        ):
            case = {"kernel": kernel, "head_dim": head_dim, "group": group, "page": page, "dtype": name}
            sys.stdout.write(json.dumps(case | figures(code)) + "\n")


if __name__ == "__main__":
    main()
