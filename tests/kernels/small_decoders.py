"""Decoders small enough for the interpreter, one of each form, and a request book that runs them over a paged cache."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from simkit.kernels.decoder_details import details_of
from simkit.kernels.decoder_layer import LayerCache
from simkit.kernels.random_decoder import RandomDecoder, new_cache, random_decoder, run_step
from simkit.kernels.step_batch import Share, StepBatch, step_batch
from simkit.models.architecture import Architecture, DenseFFN, GroupedAttention, Layer, MoE

PAGE_TOKENS = 16
GQA = GroupedAttention(heads=4, kv_heads=2, head_dim=16)
DENSE = DenseFFN(40)
BIASED = replace(GQA, kv_heads=4, qkv_bias=True, output_bias=True)
PLAIN = DenseFFN(40, gated=False, bias=True)


def architecture(model_type: str, *layers: Layer, **more: object) -> Architecture:
    return Architecture(model_type, model_type, 32, 61, layers, 256, **more)  # type: ignore[arg-type]


FORMS = {
    "llama GQA": architecture("llama", Layer(GQA, DENSE), Layer(GQA, DENSE)),
    "MHA": architecture("llama", Layer(replace(GQA, kv_heads=4), DENSE)),
    "MQA": architecture("llama", Layer(replace(GQA, kv_heads=1), DENSE)),
    "mistral window": architecture("mistral", Layer(replace(GQA, window_tokens=7), DENSE), Layer(GQA, DENSE)),
    "gemma2": architecture(
        "gemma2", Layer(replace(GQA, window_tokens=20), DENSE, 4), Layer(GQA, DENSE, 4), tied_embeddings=True
    ),
    "gemma3": architecture(
        "gemma3_text",
        Layer(replace(GQA, window_tokens=9, qk_norm=True), DENSE, 4),
        Layer(replace(GQA, qk_norm=True), DENSE, 4),
        tied_embeddings=True,
    ),
    "gpt2": architecture("gpt2", Layer(BIASED, PLAIN), norm_has_bias=True, learned_positions=256, tied_embeddings=True),
    "opt": architecture("opt", Layer(BIASED, PLAIN), norm_has_bias=True, learned_positions=258),
    "phi": architecture("phi", Layer(BIASED, PLAIN, 1), Layer(BIASED, PLAIN, 1), norm_has_bias=True, lm_head_bias=True),
    "mixtral": architecture("mixtral", Layer(GQA, MoE(4, 2, 24))),
    "qwen2 moe": architecture(
        "qwen2_moe", Layer(replace(GQA, qkv_bias=True), MoE(6, 3, 24, shared_width=40, shared_gate=True))
    ),
    "gpt oss": architecture("gpt_oss", Layer(replace(BIASED, sinks=True, window_tokens=12), MoE(4, 2, 24, bias=True))),
    "glm4 moe": architecture(
        "glm4_moe", Layer(GQA, DENSE), Layer(GQA, MoE(5, 2, 24, shared_width=24, correction_bias=True))
    ),
}


def small_decoder(name: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> RandomDecoder:
    """One of FORMS; YaRN is left out, which `test_rope_frequencies` has to itself."""
    form = FORMS[name]
    details = details_of(form)._replace(rope_scaling=None)
    return random_decoder(form, seed=seed, dtype=dtype, device="cpu", details=details)


def prompt(length: int, seed: int) -> list[int]:
    return torch.randint(0, 61, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@dataclass
class Book:
    """Requests over one pool, whose unused pages are NaN; pages are given out in a random order."""

    decoder: RandomDecoder
    pages: int = 24
    caches: tuple[LayerCache, ...] = ()
    free: list[int] = field(default_factory=list)
    held: dict[str, list[int]] = field(default_factory=dict)
    past: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.caches = new_cache(self.decoder, self.pages, PAGE_TOKENS)
        self.free = torch.randperm(self.pages, generator=torch.Generator().manual_seed(1)).tolist()
        for page in range(self.pages):
            self.poison(page)

    def poison(self, page: int) -> None:
        for cache in self.caches:
            cache.k[page] = cache.v[page] = math.nan

    def share(self, name: str, tokens: Sequence[int], samples: bool = True) -> Share:
        """The next tokens of a request, with pages for them."""
        pages, past = self.held.setdefault(name, []), self.past.setdefault(name, 0)
        while len(pages) * PAGE_TOKENS < past + len(tokens):
            pages.append(self.free.pop())
        self.past[name] = past + len(tokens)
        return Share(tokens, past, list(pages), samples)

    def batch(self, *shares: Share) -> StepBatch:
        return step_batch(shares, PAGE_TOKENS, torch.device("cpu"))

    def run(self, *shares: Share) -> list[torch.Tensor]:
        """One step: logits of each share that samples, in the order given."""
        batch = self.batch(*shares)
        logits = run_step(self.decoder, self.caches, batch)
        return [row for _, row in sorted(zip(batch.samplers, logits, strict=True), key=lambda pair: pair[0])]

    def preempt(self, name: str) -> None:
        """Take a request's pages and forget what it computed."""
        for page in self.held[name]:
            self.poison(page)
        self.free = self.held[name] + self.free
        self.held[name], self.past[name] = [], 0
