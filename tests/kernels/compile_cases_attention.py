"""The attention kernels as they are shipped: every configuration of the table, every feature."""

from compile_case import Case

from simkit.kernels import mla_decode, paged_decode, paged_prefill, rope_cache, split_kv
from simkit.kernels.configurations import Configuration, choose, read

FEATURES = ("window", "soft_cap", "alibi", "sinks")
CACHE_STRIDES = ("kv_stride_page", "kv_stride_token", "kv_stride_head")


def shape_of(head_dim: int) -> dict[str, object]:
    return {"HEAD_DIM": head_dim, "BLOCK_DIM": max(16, 1 << (head_dim - 1).bit_length())}


def optional(present: bool, name: str, kind: str) -> dict[str, str]:
    return {name: kind} if present else {}


def attention_arguments(dtype: str, cache: str, features: tuple[str, ...]) -> dict[str, str]:
    """Arguments that decode and prefill share; what is left out is None."""
    fp8 = cache == "fp8e4nv"
    return {
        "q": f"*{dtype}",
        "k": f"*{cache}",
        "v": f"*{cache}",
        "page_table": "*i32",
        "context_tokens": "*i32",
        "scale_log2": "fp32",
        "table_stride": "i32!",
        "k_scale_stride": "i32",
        "v_scale_stride": "i32",
        **dict.fromkeys(CACHE_STRIDES, "i32"),
        **optional(fp8, "k_scale", "*fp32"),
        **optional(fp8, "v_scale", "*fp32"),
        **optional("alibi" in features, "alibi_slopes", "*fp32"),
        **optional("sinks" in features, "sinks", "*fp32"),
        **optional("soft_cap" in features, "soft_cap_log2", "fp32"),
        **optional("window" in features, "window_tokens", "i32!"),
    }


def completed(case: Case) -> Case:
    """The case with None for every argument that neither its signature nor its constants name."""
    names = [parameter.name for parameter in case.function.params]  # type: ignore[attr-defined]
    missing = {name: None for name in names if name not in case.signature and name not in case.constexprs}
    return case._replace(constexprs={**missing, **case.constexprs})


def label_of(head_dim: int, group: int, page: int, dtype: str, cache: str, extras: tuple[str, ...]) -> str:
    kinds = dtype if cache == dtype else f"{dtype}/{cache}"
    return " ".join([f"d{head_dim} g{group} p{page} {kinds}", *extras])


def decode(
    configurations: tuple[Configuration, ...],
    architecture: int,
    head_dim: int,
    group: int,
    page: int,
    dtype: str,
    cache: str,
    *features: str,
) -> Case:
    rows = paged_decode.tile_rows(group)
    where = {"dtype": dtype, "cache": cache, "head_dim": head_dim, "rows": rows}
    config = choose(configurations, "decode", architecture, where)
    signature = attention_arguments(dtype, cache, features) | {
        "partial_out": "*fp32",
        "partial_lse": "*fp32",
        "split_tokens": "i32",
        "splits": "i32!",
        "q_stride_request": "i32",
        "q_stride_head": "i32",
        "out_stride_request": "i32",
        "out_stride_head": "i32",
        "out_stride_split": "i32",
    }
    constants = {"SPLIT": True, "GROUP": group, "ROWS": rows, "ROW_BLOCKS": -(-group // rows), "PAGE_TOKENS": page}
    constants |= {**shape_of(head_dim), **config.constants}
    label = label_of(head_dim, group, page, dtype, cache, features)
    kernel = paged_decode.decode_split_kernel
    return completed(Case("decode", label, kernel, signature, constants, config.num_warps, config.num_stages))


def prefill(
    configurations: tuple[Configuration, ...],
    architecture: int,
    head_dim: int,
    group: int,
    page: int,
    dtype: str,
    cache: str,
    *features: str,
) -> Case:
    where = {"dtype": dtype, "cache": cache, "head_dim": head_dim, "group": group}
    config = choose(configurations, "prefill", architecture, where)
    signature = attention_arguments(dtype, cache, features) | {
        "query_starts": "*i32",
        "out": f"*{dtype}",
        "q_stride_token": "i32",
        "q_stride_head": "i32",
        "out_stride_token": "i32",
        "out_stride_head": "i32",
    }
    constants = {"CAUSAL": "bidirectional" not in features, "GROUP": group, "PAGE_TOKENS": page, **shape_of(head_dim)}
    constants |= {**config.constants, "BLOCK_ROWS": paged_prefill.block_rows(config, group)}
    label = label_of(head_dim, group, page, dtype, cache, features)
    kernel = paged_prefill.prefill_kernel
    return completed(Case("prefill", label, kernel, signature, constants, config.num_warps, config.num_stages))


def mla(configurations: tuple[Configuration, ...], architecture: int, heads: int, dtype: str, cache: str) -> Case:
    where = {"dtype": dtype, "cache": cache, "latent_dim": 512, "heads": heads}
    config = choose(configurations, "mla_decode", architecture, where)
    signature = {
        "q": f"*{dtype}",
        "latents": f"*{cache}",
        "page_table": "*i32",
        "context_tokens": "*i32",
        **optional(cache == "fp8e4nv", "cache_scale", "*fp32"),
        "partial_out": "*fp32",
        "partial_lse": "*fp32",
        "scale_log2": "fp32",
        "heads": "i32",
        "split_tokens": "i32",
        "splits": "i32!",
        "q_stride_request": "i32",
        "q_stride_head": "i32",
        "cache_stride_page": "i32",
        "cache_stride_token": "i32",
        "table_stride": "i32!",
        "out_stride_request": "i32",
        "out_stride_head": "i32",
        "out_stride_split": "i32",
    }
    constants = {"SPLIT": True, "LATENT_DIM": 512, "ROPE_DIM": 64, "PAGE_TOKENS": 64, **config.constants}
    constants["ROWS"] = mla_decode.tile_rows(config, heads)
    label = f"h{heads} d512+64 p64 {dtype}" + (f"/{cache}" if cache != dtype else "")
    kernel = mla_decode.mla_split_kernel
    return completed(Case("mla_decode", label, kernel, signature, constants, config.num_warps, config.num_stages))


def rope(
    configurations: tuple[Configuration, ...],
    architecture: int,
    head_dim: int,
    rotary_dim: int,
    heads: tuple[int, int],
    dtype: str,
    cache: str,
    neox: bool,
) -> Case:
    where = {"dtype": dtype, "cache": cache, "head_dim": head_dim}
    config = choose(configurations, "rope_cache", architecture, where)
    pointers = dict.fromkeys(("q", "k", "v", "q_out"), f"*{dtype}") | dict.fromkeys(("k_cache", "v_cache"), f"*{cache}")
    if rotary_dim:
        pointers |= {"table": "*fp32"}
    if cache == "fp8e4nv":
        pointers |= {"k_scale": "*fp32", "v_scale": "*fp32"}
    pointers |= {"positions": "*i64", "slots": "*i64"}
    kernel = rope_cache.rope_cache_kernel
    strides = [p.name for p in kernel.params if "stride" in p.name]  # type: ignore[attr-defined]
    constants = {"Q_HEADS": heads[0], "KV_HEADS": heads[1], "ROTARY_DIM": rotary_dim, "NEOX": neox, "PAGE_TOKENS": 16}
    constants |= {"FP8_CACHE": cache == "fp8e4nv", **shape_of(head_dim), **config.constants}
    kinds = dtype if cache == dtype else f"{dtype}/{cache}"
    label = f"d{head_dim} r{rotary_dim} h{heads[0]}/{heads[1]} {kinds} {'neox' if neox else 'interleaved'}"
    signature = pointers | dict.fromkeys(strides, "i32")
    return completed(Case("rope_cache", label, kernel, signature, constants, config.num_warps, config.num_stages))


def reduce(head_dim: int, dtype: str) -> Case:
    signature = {
        "partial_out": "*fp32",
        "partial_lse": "*fp32",
        "context_tokens": "*i32",
        "out": f"*{dtype}",
        "split_tokens": "i32",
        "splits": "i32!",
        "out_stride_request": "i32",
        "out_stride_head": "i32",
    }
    return completed(
        Case("reduce", f"d{head_dim} {dtype}", split_kv.decode_reduce_kernel, signature, shape_of(head_dim), 1, 3)
    )


# head size, group, page, dtype, cache, features: each a model's, or a corner of the table
BOTH = [
    (64, 8, 16, "bf16", "bf16", "window", "sinks"),  # gpt-oss
    (80, 1, 16, "fp16", "fp16"),
    (128, 4, 16, "bf16", "bf16"),  # Llama, Qwen
    (128, 4, 64, "fp16", "fp16"),
    (128, 7, 64, "bf16", "bf16", "window"),  # Qwen2.5 7B
    (128, 2, 16, "bf16", "bf16", "window", "soft_cap"),  # Gemma 2 27B
    (128, 1, 16, "bf16", "bf16", "alibi"),  # Bloom, MPT
    (128, 128, 64, "bf16", "bf16"),
    (256, 8, 16, "bf16", "bf16", "window", "soft_cap"),  # Gemma 2 9B
    (256, 4, 16, "fp16", "fp16"),
    (128, 4, 16, "fp32", "fp32"),
    (256, 2, 16, "fp32", "fp32", "window", "soft_cap", "alibi", "sinks"),
]
FP8 = [
    (64, 8, 16, "bf16", "fp8e4nv", "window", "sinks"),
    (128, 4, 16, "bf16", "fp8e4nv"),
    (128, 8, 64, "fp16", "fp8e4nv"),
    (256, 8, 16, "bf16", "fp8e4nv", "window", "soft_cap"),
]
LATENT = [
    (16, "bf16", "bf16"),
    (16, "fp16", "fp16"),
    (128, "bf16", "bf16"),
    (128, "fp16", "fp16"),
    (16, "fp32", "fp32"),
]
LATENT_FP8 = [(16, "bf16", "fp8e4nv"), (128, "bf16", "fp8e4nv")]
ROPE = [
    (128, 128, (32, 8), "bf16", "bf16", True),
    (128, 64, (32, 32), "fp16", "fp16", False),
    (80, 0, (16, 16), "fp16", "fp16", True),
    (256, 256, (16, 8), "bf16", "bf16", True),
    (128, 128, (4, 2), "fp32", "fp32", True),
]
ROPE_FP8 = [(128, 128, (32, 8), "bf16", "fp8e4nv", True)]
ENCODERS = [
    (64, 1, 16, "bf16", "bf16", "bidirectional"),
    (64, 1, 16, "bf16", "bf16", "bidirectional", "window"),
    (128, 4, 16, "bf16", "bf16", "bidirectional"),
]


def cases(architecture: int) -> list[Case]:
    """What is compiled for an architecture; its Triton knows fp8 from 8.9 on."""
    table = read()
    shapes = BOTH + (FP8 if architecture >= 89 else [])
    found = [decode(table, architecture, *shape) for shape in shapes]
    found += [prefill(table, architecture, *shape) for shape in [*shapes, *ENCODERS]]
    found += [mla(table, architecture, *shape) for shape in LATENT + (LATENT_FP8 if architecture >= 89 else [])]
    found += [rope(table, architecture, *shape) for shape in ROPE + (ROPE_FP8 if architecture >= 89 else [])]
    found += [reduce(128, "bf16"), reduce(256, "fp32")]
    return found
