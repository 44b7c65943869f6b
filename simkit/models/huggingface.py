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
_WRAPPERS = {"llama4": "llama4_text", "gemma3": "gemma3_text"}
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
    text_type = _WRAPPERS.get(model_type, model_type)
    if text_type not in FAMILIES:
        known = [*FAMILIES, *_WRAPPERS]
        raise fields.error("model_type", f"is {model_type!r}, which is not understood; {suggestion(model_type, known)}")
    text = fields
    if model_type in _WRAPPERS:
        text = _text_fields(fields, text_type)
    elif text_type in _OMITTED:
        text = fields.with_defaults(_OMITTED[text_type])
    precision, groups = native_precision(fields)
    read = FAMILIES[text_type](text)
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
    architecture = architecture_from_config(object_in(path), str(path))
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
    inner = fields.child("text_config")
    return inner.with_defaults({**_OMITTED.get(text_type, {}), "model_type": text_type})


def _encoder_parameters(fields: ConfigFields, text: ConfigFields) -> int:
    if not fields.has("vision_config"):
        return 0
    vision = fields.child("vision_config")
    kind = vision.text("model_type")
    if kind not in ENCODERS:
        raise vision.error("model_type", f"is {kind!r}, which is not understood; {suggestion(kind, ENCODERS)}")
    return ENCODERS[kind](vision, text.positive("hidden_size"))
