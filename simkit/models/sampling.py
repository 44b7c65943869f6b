"""Which models are sampled with top-p or top-k when a client asks for nothing.

vLLM takes its default sampling parameters from the model repository's generation_config.json (`--generation-config
auto`, since 0.7). Where that file sets top_p or top_k, every step sorts the whole vocabulary for every request that
samples (`apply_top_k_top_p`), which costs about 0.02 ms a request at 128,000 logits on an H100; where it does not, no
sort is done.
"""

from typing import Literal

from simkit.models.architecture import Architecture

Sampling = Literal["published", "plain", "truncated"]
"""published: as the model's generation_config.json has it; plain: greedy or temperature; truncated: top-p or top-k."""

# Families of this catalogue whose repositories set top_p or top_k in generation_config.json. CodeLlama, Mistral,
# Mixtral, Phi, OPT, GPT-2, gpt-oss and the base Yi models set neither.
_TRUNCATED = (
    "deepseek-v2",
    "deepseek-v3",
    "gemma-",
    "llama-2-",
    "llama-3",
    "llama-4-",
    "qwen2-57b",
    "qwen2.5-",
    "qwen3-",
)


def sorts_vocabulary(arch: Architecture, sampling: Sampling = "published") -> bool:
    """Whether sampling sorts the logits of each request."""
    if sampling == "published":
        return arch.name.startswith(_TRUNCATED) if arch.samples_truncated is None else arch.samples_truncated
    return sampling == "truncated"
