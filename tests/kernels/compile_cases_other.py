"""The kernels beside attention as they are shipped: one case of each form, and every tile of the table."""

from compile_case import Case

from simkit.kernels import (
    block_copy,
    draft_verification,
    gated_activation,
    int8_gemm,
    layer_norm,
    moe_gemm,
    moe_routing,
    rms_norm,
    sampling,
)
from simkit.kernels.configurations import choose, read
from simkit.kernels.row_tiles import row_tiles

STAGES = 3  # Triton's own, where a kernel has no loop to pipeline
ROW_STRIDES = ("x", "residual", "out")


def norm(kernel: str, columns: int, dtype: str, add: bool) -> Case:
    tiles = row_tiles(columns)
    layer = kernel == "layer_norm"
    strides = [f"{name}_stride_{axis}" for name in ROW_STRIDES for axis in ("token", "head")]
    signature = {
        **dict.fromkeys(("x", "residual", "out", "weight", *(("bias",) if layer else ())), f"*{dtype}"),
        "rows": "i32!",
        "heads": "i32!",
        **dict.fromkeys(strides, "i32"),
        "eps": "fp32",
        **({} if layer else {"weight_offset": "fp32"}),
    }
    constants = {"COLUMNS": columns, "ADD": add, "ROWS": tiles.rows, "BLOCK": tiles.block}
    function = layer_norm.layer_norm_kernel if layer else rms_norm.rms_norm_kernel
    label = f"{columns} {dtype}" + (" add" if add else "")
    return Case(
        kernel, label, function, signature, constants | ({"BIAS": True} if layer else {}), tiles.num_warps, STAGES
    )


def activation(name: str, gated: bool, dtype: str) -> Case:
    block, warps = gated_activation.activation_block(14336)
    signature = {
        **dict.fromkeys(("x", "out"), f"*{dtype}"),
        **dict.fromkeys(("width", "x_stride", "out_stride"), "i32"),
    }
    label = f"{name} {dtype}" + ("" if gated else " plain")
    constants = {"ACTIVATION": name, "GATED": gated, "BLOCK": block}
    return Case("activation", label, gated_activation.activation_kernel, signature, constants, warps, STAGES)


def copy() -> Case:
    signature = {
        "source": "*i64",
        "target": "*i64",
        "pairs": "*i64",
        **dict.fromkeys(("source_stride", "target_stride", "words"), "i32"),
    }
    constants = {"BLOCK": block_copy.BLOCK_WORDS}
    return Case("block_copy", "i64", block_copy.block_copy_kernel, signature, constants, 4, STAGES)


def samplers(dtype: str) -> list[Case]:
    constants = {"BLOCK": sampling.BLOCK_TOKENS}
    row = {"logits": f"*{dtype}", "temperature": "*fp32", "best_logit": "*fp32", "best_token": "*i32", "vocab": "i32"}
    row |= {"stride": "i32"}
    limits = row | {"top_k": "*i32", "top_p": "*fp32", "min_p": "*fp32", "cutoff_out": "*fp32", "mass_out": "*fp32"}
    draw = row | {"seed": "*i64", "step": "*i32", "cutoff": "*fp32", "out": "*i64"}
    chances = row | {"cutoff": "*fp32", "mass": "*fp32", "out": "*fp32", "out_stride": "i32"}
    forms = (
        ("sampling_limits", sampling.sampling_limits_kernel, limits),
        ("draw", sampling.draw_kernel, draw),
        ("probabilities", sampling.probabilities_kernel, chances),
    )
    return [
        Case(name, dtype, function, signature, constants, sampling.WARPS, STAGES) for name, function, signature in forms
    ]


def verifiers() -> list[Case]:
    greedy = {
        "draft_tokens": "*i64",
        "draft_starts": "*i32",
        "target_tokens": "*i64",
        "tokens": "*i64",
        "count": "*i32",
    }
    greedy |= {"tokens_stride": "i32!"}
    drawn = {"draft_tokens": "*i64", "draft_starts": "*i32", "target": "*fp32", "draft": "*fp32", "seed": "*i64"}
    drawn |= {"step": "*i32", "tokens": "*i64", "count": "*i32", "tokens_stride": "i32!"}
    drawn |= dict.fromkeys(("vocab", "target_stride", "draft_stride"), "i32")
    constants = {"DRAWN": True, "SLOTS": 8, "BLOCK": draft_verification.BLOCK_TOKENS}
    return [
        Case("verify_greedy", "8", draft_verification.greedy_verification_kernel, greedy, {"SLOTS": 8}, 1, STAGES),
        Case("verify_draft", "8 drawn", draft_verification.rejection_kernel, drawn, constants, 8, STAGES),
    ]


def routing(experts: int, k: int, score: str, bias: bool) -> Case:
    signature = {"logits": "*fp32", "bias": "*fp32", "weights": "*fp32", "experts": "*i32", "tokens": "i32!"}
    signature |= {"stride": "i32", "scale": "fp32"}
    block = 1 << (experts - 1).bit_length()
    constants = {"EXPERTS": experts, "K": k, "SCORE": score, "RENORMALIZE": True, "BIAS": bias, "BLOCK": block}
    constants |= {"ROWS": max(1, min(16, 1024 // block)), "SLOTS": 1 << (k - 1).bit_length()}
    return Case("routing", f"e{experts} k{k} {score}", moe_routing.routing_kernel, signature, constants, 4, STAGES)


def ordering() -> list[Case]:
    count = {"experts": "*i32", "counts": "*i32", "pairs": "i32!"}
    place = count | {"rows": "*i32", "block_expert": "*i32"}
    block = {"BLOCK": moe_routing.BLOCK_PAIRS}
    constants = {**block, "BLOCK_ROWS": 128, "EXPERTS_BLOCK": 128}
    return [
        Case("expert_count", "i32", moe_routing.expert_count_kernel, count, block, 4, STAGES),
        Case("expert_place", "r128 e128", moe_routing.expert_place_kernel, place, constants, 4, STAGES),
    ]


def grouped_gemms(architecture: int, dtype: str) -> list[Case]:
    numbers = ("n_out", "n_in", "x_stride", "weights_stride_expert", "weights_stride_out", "bias_stride", "out_stride")
    signature = {
        **dict.fromkeys(("x", "weights", "bias", "out"), f"*{dtype}"),
        **dict.fromkeys(("rows", "block_expert"), "*i32"),
        "pairs": "i32!",
        **dict.fromkeys(numbers, "i32"),
    }
    found = []
    for rows in (16, 32, 64, 1000) if dtype != "fp32" else (1000,):
        entry = choose(read(), "grouped_gemm", architecture, {"dtype": dtype, "rows": rows})
        constants = {**entry.constants, "PAIRS_PER_ROW": 8, "BIAS": False}
        label = f"r{entry.constants['BLOCK_ROWS']} {dtype}"
        kernel = moe_gemm.grouped_gemm_kernel
        found.append(Case("grouped_gemm", label, kernel, signature, constants, entry.num_warps, entry.num_stages))
    return found


def int8_gemms(architecture: int, dtype: str) -> list[Case]:
    signature = {"x": f"*{dtype}", "q": "*i8", "scale": "*fp32", "out": f"*{dtype}", "tokens": "i32!"}
    signature |= dict.fromkeys(("n_out", "n_in", "x_stride", "q_stride", "out_stride"), "i32")
    found = []
    for rows in (16, 256, 1000) if dtype != "fp32" else (1000,):
        entry = choose(read(), "int8_gemm", architecture, {"dtype": dtype, "rows": rows})
        label = f"r{entry.constants['BLOCK_ROWS']} {dtype}"
        kernel = int8_gemm.int8_gemm_kernel
        found.append(Case("int8_gemm", label, kernel, signature, entry.constants, entry.num_warps, entry.num_stages))
    return found


def combine(k: int, dtype: str) -> Case:
    signature = {"z": f"*{dtype}", "weights": "*fp32", "out": f"*{dtype}"}
    signature |= dict.fromkeys(("columns", "z_stride", "out_stride"), "i32")
    constants = {"K": k, "BLOCK": moe_gemm.BLOCK_COLUMNS}
    return Case("combine", f"k{k} {dtype}", moe_gemm.combine_kernel, signature, constants, 4, STAGES)


def cases(architecture: int) -> list[Case]:
    """What is compiled for an architecture."""
    return [
        norm("rms_norm", 128, "bf16", add=False),
        norm("rms_norm", 4096, "bf16", add=True),
        norm("rms_norm", 8192, "fp16", add=True),
        norm("rms_norm", 32768, "bf16", add=True),
        norm("layer_norm", 12288, "bf16", add=True),
        norm("layer_norm", 32768, "fp32", add=True),
        *(activation(name, True, "bf16") for name in gated_activation.GATED_ACTIVATIONS),
        activation("gelu", False, "fp16"),
        copy(),
        *samplers("bf16"),
        *samplers("fp32"),
        *verifiers(),
        routing(8, 2, "softmax", bias=False),
        routing(128, 8, "softmax", bias=False),
        routing(256, 8, "sigmoid", bias=True),
        routing(1024, 8, "topk_softmax", bias=False),
        *ordering(),
        *grouped_gemms(architecture, "bf16"),
        *grouped_gemms(architecture, "fp32"),
        *int8_gemms(architecture, "bf16"),
        *int8_gemms(architecture, "fp32"),
        combine(2, "bf16"),
        combine(8, "bf16"),
    ]
