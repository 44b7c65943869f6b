"""How an engine deals a model's layers to groups that share one pool of KV blocks, and what of a context each keeps.

vLLM's hybrid KV cache manager: all layers of a group have the same kind of attention and the same row of blocks, and all
groups have equally many layers (short ones are padded), so that one block is as large in every group. A group whose
layers see a window gives back the blocks that the window has passed.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simkit.models.architecture import Architecture, GroupedAttention, Layer
from simkit.models.layout import Layout, layer_kv_bytes_per_token, stage_layers
from simkit.models.precision import Precision

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class KvGroups:
    """Groups of layers: `full` that keep their whole context and `window` that keep a window of it.

    Plain is one group that keeps everything, whatever its layers see.
    """

    full: int = 1
    window: int = 0
    windows_first: bool = False  # the model's first layer sees a window
    window_tokens: int = 0  # that a token sees, itself included
    chunked: bool = False  # the window is an aligned chunk

    @property
    def count(self) -> int:
        """Groups, which is the rows of blocks that a request has."""
        return self.full + self.window

    def window_cap_blocks(self, block_size: int, in_flight_tokens: int, max_model_len: int) -> int:
        """The most blocks that a request of `max_model_len` tokens holds in one window's group.

        `in_flight_tokens` may be scheduled and not settled at once. vLLM SlidingWindowSpec and ChunkedLocalAttentionSpec,
        max_admission_blocks_per_request: a window may begin in the middle of a block, a chunk does not.
        """
        seen = self.window_tokens + (0 if self.chunked else -1)
        blocks = -(-min(seen + in_flight_tokens, max_model_len) // block_size)
        return blocks if self.chunked else blocks + 1

    def blocks_of(self, tokens: int, block_size: int, in_flight_tokens: int) -> int:
        """Blocks of the pool that a request of `tokens` tokens may need, over all groups (vLLM max_memory_usage_bytes)."""
        blocks = self.full * -(-tokens // block_size)
        if self.window:
            blocks += self.window * self.window_cap_blocks(block_size, in_flight_tokens, tokens)
        return blocks

    def least_blocks(self, tokens: F64, block_size: int) -> F64:
        """[n] blocks that requests with so many tokens or more hold at the least, over all groups."""
        blocks: F64 = self.full * np.ceil(tokens / block_size)
        if self.window:
            seen = np.zeros_like(tokens) if self.chunked else np.minimum(tokens, self.window_tokens - 1)
            blocks = blocks + self.window * np.ceil(seen / block_size)
        return blocks


PLAIN = KvGroups()


def kv_groups(arch: Architecture, padding_ratio: float = 1.5, draft: tuple[Layer, ...] = ()) -> KvGroups:
    """The groups that vLLM deals a model's layers to; PLAIN where it sees no window, or where this is not modelled.

    A draft's layers are dealt with the others (vLLM get_kv_cache_spec: all that have KV); where they are of another
    size, they are taken to join a group that keeps everything.

    `padding_ratio`: with less than so many times more layers of one kind than of the other, a group holds all layers of
    the larger kind; else as many as the smaller kind has (vLLM _get_kv_cache_groups_uniform_page_size; 1.25 until 0.17).

    Not modelled, and charged in full: windows of different sizes, layers of different KV bytes a token, latent attention.
    """
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
    size = max(kinds) if max(kinds) < min(kinds) * padding_ratio else min(kinds)
    return KvGroups(
        full=-(-(len(reaches) - seeing) // size),
        window=-(-seeing // size),
        windows_first=reaches[0][0] is not None,
        window_tokens=window_tokens,
        chunked=chunked,
    )


def block_token_bytes(
    arch: Architecture, groups: KvGroups, layout: Layout, kv: Precision, draft: tuple[Layer, ...] = ()
) -> list[int]:
    """Bytes that a token of a block takes on one GPU of each pipeline stage: in the layers of the stage's largest group.

    A draft's layers are on the last stage.
    """
    found = []
    stages = stage_layers(arch, layout.pipeline)
    stages[-1] += draft
    # a kind's layers go to its groups in turn, so that every stage has about as many of each (vLLM layers[i::groups])
    dealt = {False: 0, True: 0}
    for stage in stages:
        sizes: Counter[tuple[bool, int]] = Counter()
        for layer in stage:
            windowed = groups != PLAIN and layer.attention.window_tokens is not None
            turn = dealt[windowed] % (groups.window if windowed else groups.full)
            sizes[windowed, turn] += layer_kv_bytes_per_token(layer, layout.tensor, kv)
            dealt[windowed] += 1
        found.append(max(sizes.values()))
    return found


def longest_held(blocks: int, groups: KvGroups, block_size: int, in_flight_tokens: int, most_tokens: int) -> int:
    """Tokens of the longest request, of all contexts' tokens at most where there is one group, that `blocks` blocks hold.

    Of several groups, up to `most_tokens`: beyond that a window's need does not tell.
    """
    if groups.window == 0:
        return blocks * block_size // groups.full
    low, high = 0, most_tokens
    while low < high:
        middle = (low + high + 1) // 2
        if groups.blocks_of(middle, block_size, in_flight_tokens) <= blocks:
            low = middle
        else:
            high = middle - 1
    return low
