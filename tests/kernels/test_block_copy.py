"""Block copies, bit for bit."""

import pytest
import torch
from kernel_batches import TOLERANCE
from random_rows import normal

from simkit.kernels.block_copy import Run, copy_blocks, copy_blocks_reference, copy_runs, runs_of, widest_word

BLOCK = (16, 2, 20)  # tokens, heads, head_dim: 640 values
PAIRS = [(0, 5), (7, 2), (3, 6)]


def as_pairs(pairs: list[tuple[int, int]]) -> torch.Tensor:
    return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)


@pytest.mark.parametrize("dtype", [*TOLERANCE, torch.float8_e4m3fn, torch.int8], ids=str)
def test_blocks_move_within_a_pool_bit_for_bit(dtype: torch.dtype) -> None:
    pool = normal((8, *BLOCK), torch.float32, seed=1).to(dtype)
    wanted = copy_blocks_reference(pool, pool, as_pairs(PAIRS))
    copy_blocks(pool, pool, as_pairs(PAIRS))
    assert torch.equal(pool.view(torch.uint8), wanted.view(torch.uint8))


def test_blocks_move_between_pools_and_leave_the_rest_alone() -> None:
    source, target = (normal((9, *BLOCK), torch.float16, seed) for seed in (2, 3))
    before, wanted = source.clone(), copy_blocks_reference(source, target, as_pairs(PAIRS))
    copy_blocks(source, target, as_pairs(PAIRS))
    assert torch.equal(target, wanted)
    assert torch.equal(source, before)


def test_nan_and_infinity_move_as_bits() -> None:
    pool = torch.randint(-(2**31), 2**31 - 1, (4, 33), generator=torch.Generator().manual_seed(4)).int()
    source = pool.view(torch.float32)
    target = torch.zeros_like(source)
    copy_blocks(source, target, as_pairs([(2, 0)]))
    assert torch.equal(target[0].view(torch.int32), pool[2])


@pytest.mark.parametrize(
    ("columns", "dtype", "word"),
    [
        (4, torch.float16, torch.int64),
        (2, torch.float16, torch.int32),
        (3, torch.bfloat16, torch.int16),
        (3, torch.int8, torch.uint8),
    ],
)
def test_odd_blocks_move_in_narrower_words(columns: int, dtype: torch.dtype, word: torch.dtype) -> None:
    source = normal((5, columns), torch.float32, seed=5, scale=50.0).to(dtype)
    target = torch.zeros_like(source)
    assert widest_word(source, target) == word
    copy_blocks(source, target, as_pairs([(4, 1), (0, 0)]))
    assert torch.equal(target[[1, 0]], source[[4, 0]])
    assert not bool(target[2:].any())


def test_a_pool_may_lie_between_others() -> None:
    layers = normal((6, 3, 40), torch.float32, seed=6)  # [blocks, layers, ...]: one layer's blocks lie apart
    before = layers.clone()
    copy_blocks(layers[:, 1], layers[:, 1], as_pairs([(0, 5)]))
    assert torch.equal(layers[5, 1], before[0, 1])
    layers[5, 1] = before[5, 1]
    assert torch.equal(layers, before)


def test_there_and_back_is_where_it_began() -> None:
    device, host = normal((6, *BLOCK), torch.bfloat16, seed=7), torch.zeros(3, *BLOCK, dtype=torch.bfloat16)
    before = device.clone()
    copy_blocks(device, host, as_pairs([(4, 0), (1, 2)]))
    device[[4, 1]] = float("nan")
    copy_blocks(host, device, as_pairs([(0, 4), (2, 1)]))
    assert torch.equal(device, before)


def test_neighbours_are_joined_into_runs() -> None:
    pairs = as_pairs([(7, 1), (5, 9), (6, 10), (8, 3), (9, 4), (10, 6)])
    assert runs_of(pairs) == [Run(5, 9, 2), Run(7, 1, 1), Run(8, 3, 2), Run(10, 6, 1)]


def test_runs_copy_what_pairs_say() -> None:
    source, target = (normal((12, 10), torch.float32, seed) for seed in (8, 9))
    pairs = as_pairs([(5, 9), (6, 10), (0, 3)])
    wanted = copy_blocks_reference(source, target, pairs)
    copy_runs(source, target, runs_of(pairs))
    assert torch.equal(target, wanted)


def test_nothing_to_do_is_done() -> None:
    pool = normal((3, 8), torch.float32, seed=10)
    before = pool.clone()
    copy_blocks(pool, pool, as_pairs([]))
    assert torch.equal(pool, before)


def test_bad_arguments_are_named() -> None:
    pool = torch.zeros(4, 8)
    with pytest.raises(ValueError, match=r"^source: its strides are"):
        copy_blocks(torch.zeros(4, 8, 2).transpose(1, 2), pool, as_pairs([]))
    with pytest.raises(ValueError, match=r"^target: blocks of \[8\] torch.float16"):
        copy_blocks(pool, pool.half(), as_pairs([]))
    with pytest.raises(ValueError, match=r"^pairs: a tensor i64"):
        copy_blocks(pool, pool, as_pairs([]).int())
    with pytest.raises(ValueError, match=r"^pairs: names a block outside of the source's 0 to 3"):
        copy_blocks(pool, pool, as_pairs([(4, 0)]))
    with pytest.raises(ValueError, match=r"^pairs: names a block outside of the target's 0 to 3"):
        copy_blocks(pool, pool, as_pairs([(0, -1)]))
    with pytest.raises(ValueError, match=r"^pairs: writes a block twice"):
        copy_blocks(pool, pool, as_pairs([(0, 1), (2, 1)]))
    with pytest.raises(ValueError, match=r"^pairs: reads and writes block 1"):
        copy_blocks(pool, pool, as_pairs([(0, 1), (1, 2)]))
    assert not bool(pool.any())
