"""What a checkpoint's `quantization_config` says: the precision of its weights, and which groups of them have it."""

from simkit.models.architecture import LINEAR_GROUPS, ParameterGroup
from simkit.models.config_fields import ConfigFields
from simkit.models.precision import Precision

_DTYPES: dict[str, Precision] = {"bfloat16": "bf16", "float16": "fp16", "float32": "bf16"}  # fp32 is served at 16 bits
_BY_TYPE_AND_BITS: dict[tuple[str, int], Precision] = {
    ("float", 8): "fp8",
    ("int", 8): "int8",
    ("int", 4): "int4",
    ("float", 4): "nvfp4",
}
_MODELOPT: dict[str, Precision] = {"FP8": "fp8", "NVFP4": "nvfp4", "W4A16_AWQ": "int4", "INT4_AWQ": "int4"}


def native_precision(fields: ConfigFields) -> tuple[Precision, frozenset[ParameterGroup]]:
    """The stored precision of the linear layers and the groups it applies to, from a whole config.json."""
    if not fields.has("quantization_config"):
        return _dtype(fields), LINEAR_GROUPS
    quantized = fields.child("quantization_config")
    # files that ModelOpt wrote before it named itself
    method = quantized.text("quant_method", "modelopt" if quantized.has("quant_algo") else None)
    if method == "mxfp4":  # GPT-OSS: only the experts
        return "mxfp4", frozenset({"experts"})
    return _precision(quantized, method), LINEAR_GROUPS - _left_alone(quantized)


def _dtype(fields: ConfigFields) -> Precision:
    name = "torch_dtype" if fields.has("torch_dtype") else "dtype"
    if not fields.has(name):
        return "bf16"
    dtype = fields.text(name)
    if dtype not in _DTYPES:
        raise fields.error(name, f"is {dtype!r}; known: {', '.join(_DTYPES)}")
    return _DTYPES[dtype]


def _precision(quantized: ConfigFields, method: str) -> Precision:
    if method in ("fp8", "fbgemm_fp8"):
        return "fp8"
    if method in ("gptq", "awq"):
        return _by_bits(quantized, "int", quantized.positive("bits"), "bits")
    if method == "compressed-tensors":
        groups = quantized.child("config_groups")
        names = groups.names()
        if not names:
            raise quantized.error("config_groups", "is empty")
        weights = groups.child(names[0]).child("weights")
        return _by_bits(weights, weights.text("type"), weights.positive("num_bits"), "num_bits")
    if method == "bitsandbytes":
        return "int8" if quantized.flag("load_in_8bit", False) else "int4"
    if method == "modelopt":
        algorithm = quantized.text("quant_algo")
        if algorithm in _MODELOPT:
            return _MODELOPT[algorithm]
        raise quantized.error("quant_algo", f"is {algorithm!r}; known: {', '.join(_MODELOPT)}")
    known = "fp8, fbgemm_fp8, gptq, awq, compressed-tensors, bitsandbytes, modelopt, mxfp4"
    raise quantized.error("quant_method", f"is {method!r}; known: {known}")


def _by_bits(fields: ConfigFields, kind: str, bits: int, name: str) -> Precision:
    if (kind, bits) in _BY_TYPE_AND_BITS:
        return _BY_TYPE_AND_BITS[kind, bits]
    raise fields.error(name, f"is {bits} ({kind}); 8 and 4 are understood")


def _left_alone(quantized: ConfigFields) -> frozenset[ParameterGroup]:
    """Groups whose modules are named as not quantised. A vision encoder's modules say nothing about the decoder."""
    listed = [name for key in ("ignore", "modules_to_not_convert", "exclude_modules") for name in quantized.texts(key)]
    names = [name for name in listed if "vision" not in name and "visual" not in name]
    groups: set[ParameterGroup] = set()
    if any(_is_projection(name) for name in names):
        groups.add("attention")
    if any("shared_expert" in name and "gate" not in name.rsplit(".", 1)[-1] for name in names):
        groups.add("shared_experts")
    if any("mlp" in name and "_proj" in name and "expert" not in name for name in names):
        groups.add("dense_ffn")
    return frozenset(groups)


def _is_projection(name: str) -> bool:
    """Whether a module is attention itself or one of its large matrices: norms and indexers stay at 16 bits anyway."""
    for attention in ("self_attn", "linear_attn", "mixer"):
        _, found, inside = name.partition(attention)
        if found and "indexer" not in inside and not inside.endswith(("norm", "norm.weight", "bias")):
            # of a mixer (Nemotron-H) only in_proj and out_proj are Mamba's; gate, experts and the like are not
            parts = inside.strip(".*")
            small = parts in ("conv1d", "in_proj_a", "in_proj_b", "in_proj_ba")
            if attention == "mixer":
                return parts in ("in_proj", "out_proj", "q_proj", "k_proj", "v_proj", "o_proj")
            return not small
    return False
