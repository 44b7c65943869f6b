"""How many bits a stored number takes, its share of the scales included."""

from typing import Literal, get_args

from simkit.errors import InputError, suggestion

Precision = Literal["bf16", "fp16", "fp8", "int8", "int4", "mxfp4", "nvfp4"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

# Bits of one weight with its share of the scales.
# fp8, int8: one fp32 scale a 128 x 128 block (DeepSeek-V3 report, section 3.3) or a channel: under 0.01 bit, left out.
# int4: AWQ and GPTQ checkpoints keep an fp16 scale and a 4-bit zero a group of 128: 4 + 20 / 128.
# mxfp4: one 8-bit scale a block of 32 (OCP Microscaling Formats v1.0, table 1): 4 + 8 / 32.
# nvfp4: one fp8 scale a block of 16 (NVIDIA TensorRT Model Optimizer): 4 + 8 / 16.
WEIGHT_BITS: dict[Precision, float] = {
    "bf16": 16.0,
    "fp16": 16.0,
    "fp8": 8.0,
    "int8": 8.0,
    "int4": 4.15625,
    "mxfp4": 4.25,
    "nvfp4": 4.5,
}

# What the KV cache may be stored in, and the bits of a value.
KV_BITS: dict[Precision, int] = {"bf16": 16, "fp16": 16, "fp8": 8, "int8": 8, "int4": 4}

# int8 and int4 caches keep an fp16 scale and an fp16 zero for every head of every token (LMDeploy, "INT4/INT8 KV
# Cache": per-head, per-token, asymmetric); fp8 caches have one scale a layer (vLLM, "Quantized KV Cache").
KV_SCALE_BYTES: dict[Precision, int] = {"bf16": 0, "fp16": 0, "fp8": 0, "int8": 4, "int4": 4}


def parse_precision(text: str, place: str) -> Precision:
    """`text` as a weight precision; `place` names the field in the error.

    Raises:
        InputError: the precision is unknown.
    """
    name = text.strip().lower()
    if name not in PRECISIONS:
        raise InputError(f"{place}: unknown precision {text!r}; {suggestion(name, PRECISIONS)}")
    return name


def parse_kv_precision(text: str, place: str) -> Precision:
    """`text` as a precision of the KV cache; `place` names the field in the error.

    Raises:
        InputError: the precision is unknown, or one that no KV cache is stored in.
    """
    precision = parse_precision(text, place)
    if precision not in KV_BITS:
        raise InputError(f"{place}: a KV cache is not stored in {precision}; use one of {', '.join(KV_BITS)}")
    return precision


def vector_bytes(length: int, precision: Precision) -> int:
    """Bytes of one cached K or V vector of `length` values (one head of one token), scales included.

    Raises:
        InputError: no KV cache is stored in this precision.
    """
    if precision not in KV_BITS:
        raise InputError(f"kv precision: a KV cache is not stored in {precision}; use one of {', '.join(KV_BITS)}")
    return (length * KV_BITS[precision] + 7) // 8 + KV_SCALE_BYTES[precision]
