"""What the scheduler of each vLLM version does differently."""

from typing import NamedTuple

from simkit.engine.state import DROP_BY_KIND, PAD_NOBODY, STATES_LOST
from simkit.errors import InputError
from simkit.models.device import Device
from simkit.models.linear_attention import LinearAttention, LinearForm


class Dialect(NamedTuple):
    """Scheduling rules that changed between vLLM versions, found by driving the same scenarios through each version."""

    lone_request_uncapped: bool
    uncached_free_to_front: bool
    passed_over_counts: bool
    serves_past_self_victim: bool
    has_watermark: bool
    has_reserve_full_isl: bool
    has_active_limits: bool  # max_num_active_seqs, long_prefill_token_threshold_adaptive
    pads_groups_more: bool
    caps_windows: bool  # admission asks for no more than a window's group ever holds
    uncached_leave_to_front: bool
    frees_settled: bool
    registers_accepted: bool
    draft_padding: int
    thins_windows: bool  # prefix_cache_retention_interval, and it is 0: windows' groups cache what is asked for again
    hit_drop: int
    admits_with_lookahead: bool
    hashes_next_token: bool
    has_draft_reserve: bool  # a step keeps a token of its budget for each of max_num_seqs that a draft model reads
    state_chunks: int  # where chunks end so that states can be cached
    checkpointing: tuple[LinearForm, ...]  # layers whose kernels tell a state inside a chunk, too
    has_draft_slots: bool  # it keeps one for each request that it serves, instead

    @property
    def padding_ratio(self) -> float:
        """Of the layers of two kinds, below which a KV cache group has as many as the larger kind (kv_groups)."""
        return 1.5 if self.pads_groups_more else 1.25


FIRST_MINOR, LAST_MINOR = 16, 33


def _dialect(minor: int) -> Dialect:
    """The rules of vLLM 0.`minor`, each from the first minor version whose scheduler.py or block_pool.py has it."""
    return Dialect(
        lone_request_uncapped=minor >= 31,
        uncached_free_to_front=minor >= 24,
        passed_over_counts=minor >= 28,
        serves_past_self_victim=minor >= 33,
        has_watermark=minor >= 24,
        has_reserve_full_isl=minor >= 19,
        has_active_limits=minor >= 31,
        pads_groups_more=minor >= 18,
        caps_windows=minor >= 20,
        uncached_leave_to_front=minor >= 23,
        frees_settled=minor >= 26,
        registers_accepted=minor >= 33,
        draft_padding=PAD_NOBODY + (minor >= 25) + (minor >= 29) + (minor >= 30),
        thins_windows=minor >= 29,
        hit_drop=DROP_BY_KIND + (minor >= 20) + (minor >= 30) + (minor >= 32),
        admits_with_lookahead=minor >= 23,
        hashes_next_token=minor >= 33,
        has_draft_reserve=minor >= 17,
        state_chunks=STATES_LOST + (minor >= 26) + (minor >= 27) + (minor >= 30) + (minor >= 32) + (minor >= 33),
        checkpointing=("Mamba2", "GDN") if minor >= 33 else ("Mamba2",) if minor >= 32 else (),
        has_draft_slots=minor >= 28,
    )


def dialect_of(engine: str) -> Dialect:
    """The rules of an engine version, `vllm-0.16` to `vllm-0.33`; InputError for another name."""
    minor = engine.removeprefix("vllm-0.")
    if not engine.startswith("vllm-0.") or not minor.isdecimal() or not FIRST_MINOR <= int(minor) <= LAST_MINOR:
        raise InputError(f"engine {engine!r} is not known; vllm-0.{FIRST_MINOR} to vllm-0.{LAST_MINOR} are")
    return _dialect(int(minor))


def checkpoint_multiple(attention: LinearAttention, dialect: Dialect, device: Device) -> int | None:
    """Tokens of which the places in a chunk are multiples where kernels tell a state, to be cached; None: nowhere.

    vLLM's num_prefill_checkpoint_blocks: Mamba 2's kernel tells it anywhere (MambaMixer2.get_kv_cache_spec). Gated
    DeltaNet's does where it is FlashInfer's, which is taken on Hopper, and on Blackwell for heads of 128, CUDA 13 taken
    for granted (0.33 _resolve_gdn_prefill_backend); every FLASHINFER_GDN_CHECKPOINT_ALIGNMENT tokens.
    """
    if attention.form not in dialect.checkpointing:
        return None
    if attention.form == "Mamba2":
        return 1
    capability = device.compute_capability.value if device.compute_capability is not None else 0.0
    blackwell = int(capability) in (10, 12) and attention.key_dim == 128
    return 64 if capability == 9.0 or blackwell else None
