"""A Hugging Face `config.json` becomes an architecture."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from simkit.bounded_file import read_bounded
from simkit.errors import InputError, suggestion
from simkit.models.architecture import Architecture
from simkit.models.config_fields import ConfigFields
from simkit.models.families import FAMILIES
from simkit.models.quantization import native_precision
from simkit.models.rotary import rotary_table_bytes
from simkit.models.vision import ENCODERS

LARGEST_CONFIG_BYTES = 4 << 20

# Multimodal wrappers, the family of the text model inside, and the fields that published files leave to the
# configuration class (transformers `Gemma3TextConfig`: released Gemma 3 files omit what equals these).
_WRAPPERS = {
    "gemma3": "gemma3_text",
    "kimi_k25": "kimi_k2",
    "llama4": "llama4_text",
    "mistral3": "mistral",
    "qwen2_vl": "qwen2_vl_text",
    "qwen2_5_vl": "qwen2_5_vl_text",
    "qwen3_vl": "qwen3_vl_text",
    "qwen3_vl_moe": "qwen3_vl_moe_text",
    "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
}
_OMITTED: dict[str, dict[str, object]] = {
    "gemma3_text": {
        "vocab_size": 262208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131072,
    },
}


def architecture_from_config(config: Mapping[str, object], place: str) -> Architecture:
    """The architecture a parsed config.json describes; `place` (a path, a catalog name) is named in errors.

    Raises:
        InputError: the model type is unknown, or a field is missing, of the wrong type, or not possible.
    """
    fields = ConfigFields(place, config)
    model_type = fields.text("model_type")
    text = _text_fields(fields, _WRAPPERS[model_type]) if model_type in _WRAPPERS else fields
    text_type = text.text("model_type")
    if text_type not in FAMILIES:
        known = [*FAMILIES, *_WRAPPERS]
        raise text.error("model_type", f"is {text_type!r}, which is not understood; {suggestion(text_type, known)}")
    text = text.with_defaults(_OMITTED.get(text_type, {}))
    # Kimi K2.5 has it with the text model, to which alone it applies
    precision, groups = native_precision(text if text.has("quantization_config") else fields)
    read = FAMILIES[text_type](text)
    if len(read.linear_layers) == len(read.layers):
        raise text.error("model_type", f"is {model_type!r} without a layer of attention, which is not understood")
    return replace(
        read,
        name=place,
        model_type=model_type,
        native_weights=precision,
        native_groups=groups,
        encoder_parameters=_encoder_parameters(fields, text),
        rotary_bytes=rotary_table_bytes(text, read),
    )


def read_config(path: Path) -> Architecture:
    """The architecture of a config.json file, or of a model folder that holds one.

    A generation_config.json beside it says how the model is sampled where a client asks for nothing.

    Raises:
        InputError: the file cannot be read, is too large, is not JSON, or is not understood.
    """
    path = config_path(path)
    architecture = architecture_from_config(_with_quantization(object_in(path), path.parent), str(path))
    return replace(architecture, name=called(path), samples_truncated=_samples_truncated(path.parent))


def config_path(path: Path) -> Path:
    """The config.json of a model folder; a file is itself."""
    return path / "config.json" if path.is_dir() else path


def object_in(path: Path) -> dict[str, object]:
    """The JSON object in a file; InputError where it cannot be read, is too large, or holds something else."""
    raw = read_bounded(path, LARGEST_CONFIG_BYTES, "give a config.json or its folder")
    try:
        config = json.loads(raw.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: line {error.lineno}: is not JSON: {error.msg}") from error
    except (UnicodeDecodeError, RecursionError, ValueError) as error:
        raise InputError(f"{path}: is not JSON text: {type(error).__name__}") from error
    if not isinstance(config, dict):
        raise InputError(f"{path}: holds a {type(config).__name__}; a JSON object is expected")
    return config


def _with_quantization(config: dict[str, object], folder: Path) -> dict[str, object]:
    """The fields with what ModelOpt wrote into a file of its own, hf_quant_config.json, as it did for long."""
    path = folder / "hf_quant_config.json"
    if config.get("quantization_config") is not None or not path.is_file():
        return config
    told = ConfigFields(str(path), object_in(path)).child("quantization").values()
    return {**config, "quantization_config": {**told, "quant_method": "modelopt"}}


def _samples_truncated(folder: Path) -> bool:
    """Whether a model's generation_config.json sets top-p or top-k; without the file an engine has neither (vLLM)."""
    path = folder / "generation_config.json"
    if not path.is_file():
        return False
    told = object_in(path)
    top_p, top_k = told.get("top_p"), told.get("top_k")
    return (isinstance(top_p, int | float) and 0 < top_p < 1) or (isinstance(top_k, int) and top_k > 0)


def called(path: Path) -> str:
    """What a model of one's own is called: its file's name, or the folder's of a config.json, which all are called."""
    return (path.expanduser().resolve().parent.name or path.name) if path.name == "config.json" else path.stem


def _text_fields(fields: ConfigFields, text_type: str) -> ConfigFields:
    """The text model's fields in a wrapper's file; early files of Qwen2-VL and 2.5-VL have them among its own."""
    if not fields.has("text_config"):
        return fields.replaced({"model_type": text_type})
    tied = fields.flag("tie_word_embeddings", False)
    outer: dict[str, object] = {"tie_word_embeddings": tied} if fields.has("tie_word_embeddings") else {}
    return fields.child("text_config").with_defaults({**outer, "model_type": text_type})


def _encoder_parameters(fields: ConfigFields, text: ConfigFields) -> int:
    if not fields.has("vision_config"):
        return 0
    vision = fields.child("vision_config")
    kind = (vision.text("model_type", "") or fields.text("model_type")).removesuffix("_vision")
    if kind not in ENCODERS:
        raise vision.error("model_type", f"is {kind!r}, which is not understood; {suggestion(kind, ENCODERS)}")
    return ENCODERS[kind](vision, fields, text.positive("hidden_size"))
