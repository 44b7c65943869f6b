"""Token ids for a workload that gives lengths: random, but equal where the workload says that content is equal."""

import numpy as np

from simkit.engine.state import I64
from simkit.workloads.workload import Workload

_SHARED, _OWN = 0, 1  # streams of the seed


def prompt_tokens(workload: Workload, vocab: int, seed: int = 0) -> list[I64]:
    """[n] each request's prompt, ids below `vocab`: its named blocks by their content id, the rest its own."""
    prompts = []
    prefixes = workload.prefixes
    for row, length in enumerate(workload.prompt_tokens.tolist()):
        parts: list[I64] = []
        if prefixes is not None:
            named = prefixes.ids[prefixes.start[row] : prefixes.start[row + 1]].tolist()
            parts = [_draw((seed, _SHARED, content), prefixes.block_tokens, vocab) for content in named]
        covered = sum(map(len, parts))
        parts.append(_draw((seed, _OWN, row), max(0, length - covered), vocab))
        prompts.append(np.concatenate(parts)[:length])
    return prompts


def _draw(key: tuple[int, ...], count: int, vocab: int) -> I64:
    return np.random.default_rng(key).integers(0, vocab, count)
