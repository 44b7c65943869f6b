"""How an engine deals a model's layers to groups that share one pool of KV blocks, and what of a context each keeps.

vLLM's hybrid KV cache manager: all layers of a group have the same kind of attention and the same row of blocks, and
all groups have equally many layers (short ones are padded), so that one block is as large in every group. A group whose
layers see a window gives back the blocks that the window has passed; a group whose layers keep a state has one block a
request, and blocks are made large enough for that.
"""

from collections import Counter
from dataclasses import dataclass
from math import lcm

import numpy as np
from numpy.typing import NDArray

from simkit.errors import InputError
from simkit.models.architecture import Architecture, GroupedAttention, Layer
from simkit.models.layout import Layout, layer_kv_bytes_per_token, stage_layers
from simkit.models.linear_attention import LinearAttention
from simkit.models.precision import Precision

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class KvGroups:
    """Groups of layers: `full` that keep their whole context, `window` that keep a window of it and `state` that keep a
    state of fixed size in one block a request.

    Plain is one group that keeps everything, whatever its layers see.
    """

    full: int = 1
    window: int = 0
    windows_first: bool = False  # the model's first layer sees a window
    window_tokens: int = 0  # that a token sees, itself included
    chunked: bool = False  # the window is an aligned chunk
    state: int = 0  # groups of layers that keep a state, of one block a request each
    kept_states: bool = False  # the `window` groups keep states, that of the last block beside the one that changes
    checkpoints: bool = False  # and a chunk may leave one of the block before it, too

    @property
    def count(self) -> int:
        """Groups, which is the rows of blocks that a request has."""
        return self.full + self.window

    def window_cap_blocks(self, block_size: int, in_flight_tokens: int, max_model_len: int) -> int:
        """The most blocks that a request of `max_model_len` tokens holds in one window's group.

        `in_flight_tokens` may be scheduled and not settled at once. vLLM SlidingWindowSpec and
        ChunkedLocalAttentionSpec, max_admission_blocks_per_request: a window may begin in the
        middle of a block, a chunk does not.
        """
        if self.kept_states:
            return 3 if self.checkpoints else 2  # MambaSpec.max_memory_usage_bytes
        seen = self.window_tokens + (0 if self.chunked else -1)
        blocks = -(-min(seen + in_flight_tokens, max_model_len) // block_size)
        return blocks if self.chunked else blocks + 1

    def blocks_of(self, tokens: int, block_size: int, in_flight_tokens: int) -> int:
        """Blocks that a request of `tokens` tokens may need, over all groups (vLLM max_memory_usage_bytes)."""
        blocks = self.state + self.full * -(-tokens // block_size)
        if self.window:
            blocks += self.window * self.window_cap_blocks(block_size, in_flight_tokens, tokens)
        return blocks

    def least_blocks(self, tokens: F64, block_size: int) -> F64:
        """[n] blocks that requests with so many tokens or more hold at the least, over all groups."""
        blocks: F64 = self.state + self.full * np.ceil(tokens / block_size)
        if self.window:
            seen = np.zeros_like(tokens) if self.chunked else np.minimum(tokens, self.window_tokens - 1)
            blocks = blocks + self.window * np.ceil(seen / block_size)
        return blocks


PLAIN = KvGroups()
STATE_REACH = 2  # tokens of a window that keeps what kept states do: the block of the last token computed


def kv_groups(
    arch: Architecture, padding_ratio: float = 1.5, draft: tuple[Layer, ...] = (), keeps_states: bool = False
) -> KvGroups:
    """The groups that vLLM deals a model's layers to; PLAIN where it sees no window, or where this is not modelled.

    A draft's layers are dealt with the others (vLLM get_kv_cache_spec: all that have KV); where they are of another
    size, they are taken to join a group that keeps everything.

    `padding_ratio`: with less than so many times more layers of one kind than of the other, a group holds all layers of
    the larger kind; else as many as the smaller has (vLLM _get_kv_cache_groups_uniform_page_size; 1.25 until 0.17).

    `keeps_states`: where layers keep a state, that after the last whole block stays, for prefix caching.

    Not modelled, and charged in full: windows of several sizes, layers of different KV bytes a token, latent attention.
    """
    if arch.linear_layers:
        return _with_states(arch, padding_ratio, keeps_states)
    pages = {layer_kv_bytes_per_token(layer, 1) for layer in arch.layers}
    alike = len(pages) == 1 and all(layer_kv_bytes_per_token(layer, 1) in pages for layer in draft)
    layers = arch.layers + (draft if alike else ())
    reaches = [(layer.attention.window_tokens, layer.attention.chunked) for layer in layers]
    windows = {reach for reach in reaches if reach[0] is not None}
    grouped = all(isinstance(layer.attention, GroupedAttention) for layer in layers)
    if len(windows) != 1 or len(pages) > 1 or not grouped:
        return PLAIN
    ((window_tokens, chunked),) = windows
    assert window_tokens is not None
    if not alike and all(reach[0] is not None for reach in reaches):
        return PLAIN  # no group that a draft's layers could join
    seeing = sum(reach[0] is not None for reach in reaches)
    kinds = [count for count in (seeing, len(reaches) - seeing) if count]
    size = _group_size(kinds, padding_ratio)
    return KvGroups(
        full=-(-(len(reaches) - seeing) // size),
        window=-(-seeing // size),
        windows_first=reaches[0][0] is not None,
        window_tokens=window_tokens,
        chunked=chunked,
    )


def _with_states(arch: Architecture, padding_ratio: float, kept: bool) -> KvGroups:
    """The groups of a model some of whose layers keep a state.

    Raises:
        InputError: layers of attention beside them see windows or are of several sizes, which is not modelled.
    """
    attending = [layer for layer in arch.layers if not isinstance(layer.attention, LinearAttention)]
    pages = {layer_kv_bytes_per_token(layer, 1) for layer in attending}
    if len(pages) > 1 or any(layer.attention.window_tokens is not None for layer in attending):
        raise InputError(
            f"{arch.name}: layers that keep a state beside attention with windows, or of several KV sizes, are not "
            "modelled"
        )
    size = _group_size([len(arch.linear_layers), len(attending)], padding_ratio)
    full, states = -(-len(attending) // size), -(-len(arch.linear_layers) // size)
    if not kept:
        return KvGroups(full, state=states)
    first = isinstance(arch.layers[0].attention, LinearAttention)
    return KvGroups(full, states, first, STATE_REACH, kept_states=True)


def _group_size(kinds: list[int], padding_ratio: float) -> int:
    """Layers of a group, of these numbers of layers of each kind."""
    return max(kinds) if max(kinds) < min(kinds) * padding_ratio else min(kinds)


def aligned_block_size(
    arch: Architecture, layout: Layout, kv: Precision, block_size: int, kernel_multiple: int = 1
) -> int:
    """Tokens of a KV block where some layers keep a state: so many that a block has room for one layer's state.

    A multiple of `block_size`, or of 16 where that is less, of latent attention of 128 (vLLM 0.33
    Platform._align_hybrid_block_size; before, HybridAttentionMambaModelConfig, which rounds latent attention to 64);
    and of `kernel_multiple`, where a chunk's kernels tell states at such places alone.
    """
    if not arch.linear_layers:
        return block_size
    state = max(attention.on_gpu(layout.tensor).state_bytes() for attention in arch.linear_layers)
    attending = next(layer for layer in arch.layers if not isinstance(layer.attention, LinearAttention))
    step = lcm(max(block_size, 16 if isinstance(attending.attention, GroupedAttention) else 128), kernel_multiple)
    return step * -(-state // (step * layer_kv_bytes_per_token(attending, layout.tensor, kv)))


def block_token_bytes(
    arch: Architecture, groups: KvGroups, layout: Layout, kv: Precision, draft: tuple[Layer, ...] = ()
) -> list[int]:
    """Bytes that a block's token takes on one GPU of each pipeline stage: in the layers of the stage's largest group.

    A draft's layers are on the last stage.
    """
    found = []
    stages = stage_layers(arch, layout.pipeline)
    stages[-1] += draft
    # a kind's layers go to its groups in turn, so that every stage has about as many of each (vLLM layers[i::groups])
    rows = {"full": groups.full, "window": groups.window, "state": groups.state}
    dealt = dict.fromkeys(rows, 0)
    page = max(layer_kv_bytes_per_token(layer, layout.tensor, kv) for layer in arch.layers)
    for stage in stages:
        sizes: Counter[tuple[str, int]] = Counter()
        for layer in stage:
            kind = _keeps(layer, groups)
            # a state has a block of its own, which is as large as attention's
            own = page if kind == "state" else layer_kv_bytes_per_token(layer, layout.tensor, kv)
            sizes[kind, dealt[kind] % rows[kind]] += own
            dealt[kind] += 1
        found.append(max(sizes.values()))
    return found


def _keeps(layer: Layer, groups: KvGroups) -> str:
    """Which kind of group a layer belongs to."""
    if isinstance(layer.attention, LinearAttention):
        return "window" if groups.kept_states else "state"
    return "window" if groups.window and layer.attention.window_tokens is not None else "full"


def longest_held(blocks: int, groups: KvGroups, block_size: int, in_flight_tokens: int, most_tokens: int) -> int:
    """Tokens of the longest request that `blocks` blocks hold; of all contexts' tokens where there is one group.

    Of several groups, up to `most_tokens`: beyond that a window's need does not tell.
    """
    if groups.window == 0:
        return max(0, blocks - groups.state) * block_size // groups.full
    low, high = 0, most_tokens
    while low < high:
        middle = (low + high + 1) // 2
        if groups.blocks_of(middle, block_size, in_flight_tokens) <= blocks:
            low = middle
        else:
            high = middle - 1
    return low
