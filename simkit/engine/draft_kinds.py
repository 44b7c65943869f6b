"""What kinds of drafts ask of the scheduler, by vLLM's `speculative_config.method` (SpeculativeConfig, Scheduler).

An n-gram draft reads tokens only. The others have layers with KV of their own, which lies in the same blocks: a step's
blocks must have room for the tokens that are proposed after it. EAGLE and MTP read the target's hidden states of the
tokens before, which a cached prefix does not keep. A draft model reads one token more a request than the target does.
"""

from typing import Literal

from simkit.engine.dialect import Dialect
from simkit.engine.state import Limits

SpeculativeMethod = Literal["ngram", "eagle", "eagle3", "mtp", "draft_model"]
READS_HIDDEN_STATES = ("eagle", "eagle3", "mtp")  # SpeculativeConfig.use_eagle


def drafting(limits: Limits, method: SpeculativeMethod, dialect: Dialect, max_num_seqs: int) -> Limits:
    """The same limits, with what drafts of this kind need besides; nothing of it for n-grams, or without drafts."""
    tokens = limits.speculative_tokens
    if method == "ngram" or tokens == 0:
        return limits
    if method == "draft_model":
        slots = dialect.has_draft_slots
        return limits._replace(
            lookahead_tokens=tokens,
            admission_lookahead_tokens=tokens if dialect.admits_with_lookahead else 0,
            draft_slots=int(slots),
            draft_reserve=max_num_seqs if dialect.has_draft_reserve and not slots else 0,
        )
    return limits._replace(
        lookahead_tokens=tokens,
        admission_lookahead_tokens=tokens if dialect.admits_with_lookahead else 0,
        drops_hit_block=limits.prefix_caching and not dialect.hashes_next_token,
        hashes_next_token=limits.prefix_caching and dialect.hashes_next_token,
    )
