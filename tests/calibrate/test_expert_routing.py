"""Copies of tokens for each expert, against drawing and dealing them one by one."""

import math

import numpy as np
import pytest

from simkit.calibrate.expert_routing import TILE_ROWS, Routing, _drawn, _filled, routed


@pytest.mark.parametrize(("experts", "top_k"), [(8, 2), (16, 1), (128, 8), (60, 4), (512, 22)])
@pytest.mark.parametrize("gpus", [1, 4])
@pytest.mark.parametrize("tokens", [1, 3, 16, 40, 104, 640])
def test_balanced_routing_is_the_collectors_loop(experts: int, top_k: int, gpus: int, tokens: int) -> None:
    """`balanced_logits` of AIConfigurator's collector, as its two nested loops."""
    stride = math.ceil(experts / top_k)
    copies = np.zeros(experts, np.int64)
    for token in range(tokens):
        for i in range(top_k):
            place = token + i * stride if tokens >= stride else token * stride / tokens + i * stride
            copies[int(place % experts)] += 1
    held = copies[: experts // gpus]
    found = routed(np.array([float(tokens)]), Routing(experts, top_k, gpus, "balanced"))
    assert found.rows.tolist() == [held.sum()]
    assert found.reached.tolist() == [(held > 0).sum()]
    assert found.tiles.tolist() == [[sum(-(-int(n) // rows) for n in held)] for rows in TILE_ROWS]


@pytest.mark.parametrize(
    ("experts", "top_k", "gpus"), [(128, 8, 1), (128, 8, 16), (8, 2, 4), (16, 1, 2), (512, 22, 64)]
)
@pytest.mark.parametrize("tokens", [1, 2, 8, 50, 3000])
def test_drawn_copies_are_all_there_and_no_expert_has_more_than_every_token(
    experts: int, top_k: int, gpus: int, tokens: int
) -> None:
    drawn = _drawn(experts, top_k, tokens, gpus, 1.01)
    assert drawn.min() >= 0
    assert drawn.max() <= tokens
    # rounding may leave half a copy an expert where there are many copies of each
    most_off = experts / 2 if tokens * top_k > 4 * experts else 0
    assert (np.abs(drawn.sum(axis=(1, 2)) - tokens * top_k) <= most_off).all()


def test_few_copies_are_dealt_to_gpus_in_turn() -> None:
    """One token, 8 experts of 128 over 8 GPUs: no load rounds to a whole copy, so each GPU is dealt one."""
    found = routed(np.array([1.0]), Routing(128, 8, 8, "power_law_1.01"))
    assert (found.rows.tolist(), found.reached.tolist()) == ([1.0], [1.0])


def test_the_smallest_load_is_filled_first() -> None:
    rng = np.random.default_rng(5)
    loads, more = rng.integers(0, 30, (40, 7)), rng.integers(0, 60, 40)
    expected = loads.copy()
    for row, count in zip(expected, more, strict=True):
        for _ in range(count):
            row[row.argmin()] += 1
    np.testing.assert_array_equal(np.sort(_filled(loads, more)), np.sort(expected))


def test_uneven_routing_reaches_fewer_experts_and_wastes_more_of_tiles() -> None:
    tokens = np.array([64.0, 2048.0])
    even, uneven = (routed(tokens, Routing(128, 8, 1, name)) for name in ("balanced", "power_law_1.2"))
    assert uneven.reached[0] < 0.95 * even.reached[0] == 0.95 * 128
    column = TILE_ROWS.index(128)
    assert even.tiles[column, 1] == 128.0  # 2048 x 8 copies: 128 for each expert
    assert uneven.tiles[column, 1] > 1.2 * 128


def test_the_busiest_gpu_has_more_than_its_share() -> None:
    tokens = np.array([4096.0])
    shares = [
        float(routed(tokens, Routing(256, 8, gpus, "power_law_1.01")).rows[0]) * gpus / (4096 * 8)
        for gpus in (1, 8, 64)
    ]
    assert shares[0] == pytest.approx(1.0, abs=0.01)
    assert 1.0 < shares[1] < shares[2]


def test_between_counted_sizes_copies_lie_on_the_line() -> None:
    found = routed(np.array([640.0, 650.0, 704.0]), Routing(64, 4, 2, "power_law_1.01"))
    share = 10.0 / 64.0
    assert found.rows[1] == pytest.approx(found.rows[0] * (1 - share) + found.rows[2] * share)


def test_more_experts_than_can_be_counted_are_an_expectation() -> None:
    found = routed(np.array([1.0, 1e6]), Routing(1 << 40, 8, 4, "power_law_1.01"))
    np.testing.assert_allclose(found.rows, [2.0, 2e6])
    np.testing.assert_allclose(found.reached, [2.0, 2e6], rtol=1e-4)
