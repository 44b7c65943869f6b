"""What kinds of drafts ask of the scheduler, by vLLM's `speculative_config.method`.

An n-gram draft reads tokens only. The others have layers with KV of their own in the target's blocks: a step's blocks
must have room for the tokens that are proposed after it. EAGLE and MTP read the target's hidden states, and with them
each token's successor; a cached prefix has no hidden states, and its last token may have had another successor. A draft
model reads one token more of each request than the target does.
"""

from typing import Literal, get_args

from simkit.engine.dialect import Dialect
from simkit.engine.state import KEEP_HIT, Limits

SpeculativeMethod = Literal["ngram", "eagle", "eagle3", "mtp", "draft_model"]
METHODS = get_args(SpeculativeMethod)
READ_HIDDEN_STATES = ("eagle", "eagle3", "mtp")  # of the target (vLLM SpeculativeConfig.use_eagle)


def drafting(limits: Limits, method: SpeculativeMethod, dialect: Dialect, max_num_seqs: int) -> Limits:
    """The same limits, with what drafts of this kind need besides; nothing of it for n-grams, or without drafts.

    vLLM Scheduler.__init__ (num_lookahead_tokens, use_eagle), SpeculativeConfig.max_num_new_slots_for_drafting,
    VllmConfig.num_hash_lookahead_tokens; of MTP with one layer, and of drafts that propose one token after the other.
    """
    tokens = limits.speculative_tokens
    if method == "ngram" or tokens == 0:
        return limits
    limits = limits._replace(
        lookahead_tokens=tokens,
        admission_lookahead_tokens=tokens if dialect.admits_with_lookahead else 0,
    )
    if method == "draft_model":
        slots = dialect.has_draft_slots
        reserve = max_num_seqs if dialect.has_draft_reserve and not slots else 0
        return limits._replace(draft_slots=int(slots), draft_reserve=reserve)
    return limits._replace(
        hit_drop=KEEP_HIT if dialect.hashes_next_token else dialect.hit_drop,
        hashes_next_token=dialect.hashes_next_token,
    )
