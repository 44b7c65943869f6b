"""Copies of KV blocks: within a pool (copy on write, beam search), and between pools (swap to host memory and back).

Math. target[to] = source[from] for each pair (from, to): whole blocks, bit for bit, of any dtype.

Layout. A pool is [blocks, ...] with each block contiguous, such as one layer's keys [blocks, page_tokens, kv_heads,
head_dim]. Pairs are i64[n, 2] on the host, where the scheduler made them. On one device a kernel copies all of them in
one launch, in words as wide as the block's size allows. Between devices runs of neighbours, (5, 9), (6, 10), (7, 11),
are copied as one piece by the copy engine, asynchronously where host memory is pinned.

Sources: vLLM's `copy_blocks` and `swap_blocks` (cache_kernels.cu).
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from simkit.kernels.arguments import check_can_launch
from simkit.kernels.jit import jit

WORDS = (torch.int64, torch.int32, torch.int16, torch.uint8)
BLOCK_WORDS = 1024  # a program copies 8 KB


class Run(NamedTuple):
    """Neighbouring blocks that go to neighbouring blocks."""

    source: int
    target: int
    blocks: int


@jit
def block_copy_kernel(
    source: tl.pointer_type,
    target: tl.pointer_type,
    pairs: tl.pointer_type,
    source_stride: int,
    target_stride: int,
    words: int,
    BLOCK: tl.constexpr,
) -> None:
    """BLOCK words of one block. Grid (pairs, words / BLOCK rounded up)."""
    pair = tl.program_id(0).to(tl.int64)
    word = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    ok = word < words
    origin = tl.load(pairs + pair * 2)
    place = tl.load(pairs + pair * 2 + 1)
    values = tl.load(source + origin * source_stride + word, mask=ok)
    tl.store(target + place * target_stride + word, values, mask=ok)


def copy_blocks(source: torch.Tensor, target: torch.Tensor, pairs: torch.Tensor) -> None:
    """Copy source[from] to target[to] for each pair; the pools may be the same, and may be on different devices.

    Args:
        source: [blocks, ...], each block contiguous.
        target: [blocks, ...] of the same dtype and block shape.
        pairs: i64[n, 2] on the host. No block may be written twice, nor both read and written in the same pool: the
            pairs are copied in no order.

    Raises:
        ValueError: naming the argument that is off. Nothing is copied then.
    """
    _check_pool("source", source)
    _check_pool("target", target)
    if target.shape[1:] != source.shape[1:] or target.dtype != source.dtype:
        raise ValueError(
            f"target: blocks of {list(target.shape[1:])} {target.dtype}; "
            f"the source's {list(source.shape[1:])} {source.dtype} are expected"
        )
    _check_pairs(source, target, pairs)
    if not len(pairs) or not source[0].numel():
        return
    if source.device != target.device:
        copy_runs(source, target, runs_of(pairs))
        return
    check_can_launch("source", source, block_copy_kernel)
    copy_listed_blocks(source, target, pairs.to(source.device, non_blocking=True))


def copy_listed_blocks(source: torch.Tensor, target: torch.Tensor, pairs: torch.Tensor) -> None:
    """The copy itself, of pools on one device and pairs on it too, unchecked: what a CUDA graph can capture."""
    word = widest_word(source, target)
    origin, place = _as_words(source, word), _as_words(target, word)
    words = origin.shape[1]
    block_copy_kernel[(len(pairs), triton.cdiv(words, BLOCK_WORDS))](
        origin,
        place,
        pairs,
        origin.stride(0),
        place.stride(0),
        words,
        BLOCK=BLOCK_WORDS,
        num_warps=4,
    )


def runs_of(pairs: torch.Tensor) -> list[Run]:
    """Pairs i64[n, 2] in the order of their sources, neighbours joined."""
    runs: list[Run] = []
    for origin, place in sorted(pairs.tolist()):
        last = runs[-1] if runs else None
        if last and origin == last.source + last.blocks and place == last.target + last.blocks:
            runs[-1] = last._replace(blocks=last.blocks + 1)
        else:
            runs.append(Run(origin, place, 1))
    return runs


def copy_runs(source: torch.Tensor, target: torch.Tensor, runs: list[Run]) -> None:
    """Each run as one copy; asynchronous where the device allows it."""
    for origin, place, blocks in runs:
        target[place : place + blocks].copy_(source[origin : origin + blocks], non_blocking=True)


def widest_word(*pools: torch.Tensor) -> torch.dtype:
    """The widest integer type that every pool's blocks, stride and address are whole numbers of."""
    for word in WORDS:
        width = torch.empty((), dtype=word).element_size()
        numbers = [number for pool in pools for number in _byte_numbers(pool)]
        if all(number % width == 0 for number in numbers):
            return word
    raise AssertionError("every number of bytes is a whole number of bytes")


def _byte_numbers(pool: torch.Tensor) -> tuple[int, int, int]:
    size = pool.element_size()
    return pool[0].numel() * size, pool.stride(0) * size, pool.data_ptr()


def _as_words(pool: torch.Tensor, word: torch.dtype) -> torch.Tensor:
    """The same memory as [blocks, words a block]."""
    flat = pool.as_strided((pool.shape[0], pool[0].numel()), (pool.stride(0), 1))
    return flat.view(word)


def copy_blocks_reference(source: torch.Tensor, target: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
    """What target becomes, changing nothing."""
    after = target.clone()
    for origin, place in pairs.tolist():
        after[place] = source[origin]
    return after


def _check_pool(name: str, pool: torch.Tensor) -> None:
    if not isinstance(pool, torch.Tensor) or pool.ndim < 2:
        raise ValueError(f"{name}: a tensor of shape [blocks, ...] is expected")
    if pool.shape[0] and not pool[0].is_contiguous():
        raise ValueError(f"{name}: its strides are {pool.stride()}; contiguous blocks are expected")


def _check_pairs(source: torch.Tensor, target: torch.Tensor, pairs: torch.Tensor) -> None:
    if not isinstance(pairs, torch.Tensor) or pairs.dtype != torch.int64 or pairs.ndim != 2 or pairs.shape[1] != 2:
        raise ValueError("pairs: a tensor i64[n, 2] is expected")
    if pairs.device.type != "cpu":
        raise ValueError(f"pairs: is on {pairs.device}; the host is expected")
    read, written = pairs[:, 0].tolist(), pairs[:, 1].tolist()
    for name, pool, blocks in (("source", source, read), ("target", target, written)):
        if blocks and not (min(blocks) >= 0 and max(blocks) < pool.shape[0]):
            raise ValueError(f"pairs: names a block outside of the {name}'s 0 to {pool.shape[0] - 1}")
    if len(set(written)) < len(written):
        raise ValueError("pairs: writes a block twice; each at most once is expected")
    if source.data_ptr() == target.data_ptr() and set(read) & set(written):
        block = min(set(read) & set(written))
        raise ValueError(f"pairs: reads and writes block {block} of the same pool; copy in two calls")
