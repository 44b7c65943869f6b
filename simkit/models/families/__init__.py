"""The model families that are understood: one reader a family, from the fields of its config.json to an architecture.

Field names and defaults are those of Hugging Face transformers' configuration classes; which tensors a family has
follows its `modeling_*.py` there. Adding a family is one reader in the file of its kin and one line here.
"""

from collections.abc import Callable

from simkit.models.architecture import Architecture
from simkit.models.config_fields import ConfigFields
from simkit.models.families import deepseek, dense, gemma, glm, gpt, granite, llama, mixtures, nemotron, phi, qwen

FAMILIES: dict[str, Callable[[ConfigFields], Architecture]] = {
    "llama": llama.llama,
    "mistral": llama.llama,
    "ministral3": llama.llama,
    "granite": llama.llama,
    "smollm3": llama.llama,
    "seed_oss": llama.llama,
    "mixtral": llama.mixtral,
    "llama4_text": llama.llama4,
    "qwen2": qwen.qwen,
    "qwen2_moe": qwen.qwen,
    "qwen3": qwen.qwen,
    "qwen3_moe": qwen.qwen,
    "mimo": qwen.qwen,
    "qwen2_vl_text": qwen.qwen,
    "qwen2_5_vl_text": qwen.qwen,
    "qwen3_vl_text": qwen.qwen,
    "qwen3_vl_moe_text": qwen.qwen,
    "qwen3_next": qwen.qwen_next,
    "qwen3_5_text": qwen.qwen_next,
    "qwen3_5_moe_text": qwen.qwen_next,
    "gemma": gemma.gemma,
    "gemma2": gemma.gemma,
    "gemma3_text": gemma.gemma,
    "phi": phi.phi,
    "phi3": phi.phi3,
    "phimoe": phi.phimoe,
    "gpt_oss": gpt.gpt_oss,
    "gpt2": gpt.gpt2,
    "opt": gpt.opt,
    "glm": glm.glm,
    "glm4": glm.glm,
    "glm4_moe": glm.glm_moe,
    "solar_open": glm.glm_moe,
    "glm4_moe_lite": deepseek.deepseek,
    "glm_moe_dsa": deepseek.deepseek,
    "deepseek_v2": deepseek.deepseek,
    "deepseek_v3": deepseek.deepseek,
    "deepseek_v32": deepseek.deepseek,
    "kimi_k2": deepseek.deepseek,
    "minimax_m2": mixtures.minimax,
    "olmoe": mixtures.olmoe,
    "ernie4_5_moe": mixtures.ernie_moe,
    "dots1": mixtures.dots,
    "olmo2": dense.olmo,
    "olmo3": dense.olmo,
    "exaone4": dense.exaone,
    "hunyuan_v1_dense": dense.hunyuan,
    "ernie4_5": dense.ernie,
    "arcee": dense.arcee,
    "nemotron": dense.nemotron,
    "starcoder2": dense.starcoder,
    "cohere": dense.cohere,
    "cohere2": dense.cohere,
    "stablelm": dense.stablelm,
    "gpt_neox": dense.neox,
    "nemotron_h": nemotron.nemotron_h,
    "granitemoe": granite.granite_moe,
    "granitemoeshared": granite.granite_moe,
    "granitemoehybrid": granite.granite_hybrid,
}
