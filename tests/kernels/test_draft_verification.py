"""Verification of drafts: what is accepted, and that the tokens are distributed as the target's."""

from itertools import accumulate

import pytest
import torch

from simkit.kernels.draft_verification import (
    Verified,
    verify_draft,
    verify_draft_reference,
    verify_greedy,
    verify_greedy_reference,
)


def starts_of(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)


def emitted(verified: Verified) -> list[list[int]]:
    """The tokens of each request; what follows them must be -1."""
    rows = []
    for row, count in zip(verified.tokens.tolist(), verified.count.tolist(), strict=True):
        assert row[count:] == [-1] * (len(row) - count)
        rows.append(row[:count])
    return rows


def random_case(lengths: list[int], vocab: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Drafts drawn from random distributions that resemble the target's: tokens, target and draft rows."""
    random = torch.Generator().manual_seed(seed)
    drafted = sum(lengths)
    target = torch.randn(drafted + len(lengths), vocab, generator=random)
    rows = [
        start + request + i
        for request, start in enumerate(accumulate([0, *lengths[:-1]]))
        for i in range(lengths[request])
    ]
    draft = torch.softmax(target[rows] + torch.randn(drafted, vocab, generator=random), dim=1)
    tokens = torch.multinomial(draft, 1, generator=random).flatten() if drafted else torch.zeros(0, dtype=torch.int64)
    return tokens, torch.softmax(target, dim=1), draft


LENGTHS = [0, 1, 5, 3, 0, 8, 2, 4, 4, 7]


@pytest.mark.parametrize("max_draft", [8, 20])
def test_greedy_emits_what_the_target_would(max_draft: int) -> None:
    drafts = torch.tensor([7, 7, 3, 3, 3, 1, 2])
    starts = starts_of([2, 0, 3, 2])
    target = torch.tensor([7, 7, 4, 9, 3, 3, 5, 6, 0, 2, 8])
    wanted = [[7, 7, 4], [9], [3, 3, 5], [0]]
    assert emitted(verify_greedy(drafts, starts, target, max_draft)) == wanted
    assert verify_greedy_reference(drafts, starts, target) == wanted


def test_greedy_of_random_drafts_matches_the_plain_loop() -> None:
    random = torch.Generator().manual_seed(1)
    drafts = torch.randint(0, 2, (sum(LENGTHS),), generator=random)
    target = torch.randint(0, 2, (sum(LENGTHS) + len(LENGTHS),), generator=random)
    found = emitted(verify_greedy(drafts, starts_of(LENGTHS), target, 8))
    assert found == verify_greedy_reference(drafts, starts_of(LENGTHS), target)
    assert len({len(row) for row in found}) > 2


@pytest.mark.parametrize("drawn", [True, False], ids=["drawn", "looked up"])
@pytest.mark.parametrize("vocab", [2, 50, 2100])
def test_rejection_sampling_matches_float64(drawn: bool, vocab: int) -> None:
    tokens, target, draft = random_case(LENGTHS, vocab, seed=2)
    seeds = torch.arange(10, 20)
    steps = torch.arange(10, dtype=torch.int32)
    q = draft if drawn else None
    found = emitted(verify_draft(tokens, starts_of(LENGTHS), target, q, seeds, steps, 8))
    assert found == verify_draft_reference(tokens, starts_of(LENGTHS), target, q, seeds, steps)


def test_a_perfect_draft_is_accepted_whole() -> None:
    tokens, target, _ = random_case([4, 2], 30, seed=3)
    draft = target[[0, 1, 2, 3, 5, 6]]
    verified = verify_draft(tokens, starts_of([4, 2]), target, draft, torch.arange(2), torch.zeros(2).int(), 4)
    assert verified.count.tolist() == [5, 3]


def test_a_draft_that_the_target_excludes_is_refused() -> None:
    target = torch.tensor([[0.0, 0.5, 0.5], [1.0, 0.0, 0.0]])
    for seed in range(10):
        verified = verify_draft(
            torch.tensor([0]), starts_of([1]), target, None, torch.tensor([seed]), torch.zeros(1).int(), 1
        )
        assert verified.count.tolist() == [1]
        assert int(verified.tokens[0, 0]) in (1, 2)


def many_trials(drawn: bool, trials: int) -> tuple[torch.Tensor, list[list[int]], torch.Tensor]:
    """A draft of two over four tokens, tried again and again: p [3, 4], emitted tokens, and the kernel's first few."""
    p = torch.tensor([[0.1, 0.4, 0.3, 0.2], [0.25, 0.05, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1]])
    q = torch.tensor([[0.4, 0.1, 0.3, 0.2], [0.25, 0.5, 0.05, 0.2]])
    random = torch.Generator().manual_seed(4)
    if drawn:
        drafts = torch.stack([torch.multinomial(row, trials, True, generator=random) for row in q], dim=1).flatten()
    else:
        drafts = torch.tensor([1, 3]).repeat(trials)
    arguments = (drafts, starts_of([2] * trials), p.repeat(trials, 1), q.repeat(trials, 1) if drawn else None)
    seeds, steps = torch.arange(5000, 5000 + trials), torch.full((trials,), 3, dtype=torch.int32)
    few = 40
    first = (
        drafts[: 2 * few],
        arguments[1][: few + 1],
        arguments[2][: 3 * few],
        None if not drawn else q.repeat(few, 1),
    )
    kernel = verify_draft(*first, seeds[:few], steps[:few], 2)
    return p, verify_draft_reference(*arguments, seeds, steps), kernel.tokens


def chi_squared(seen: list[int], chances: torch.Tensor) -> float:
    wanted = len(seen) * chances
    return float(((torch.bincount(torch.tensor(seen), minlength=4) - wanted) ** 2 / wanted).sum())


@pytest.mark.parametrize("drawn", [True, False], ids=["drawn", "looked up"])
def test_emitted_tokens_are_distributed_as_the_targets(drawn: bool) -> None:
    p, rows, kernel = many_trials(drawn, 8000)
    assert [[token for token in row if token >= 0] for row in kernel.tolist()] == rows[:40]
    # chance 1 in 1,000 at three degrees of freedom is 16.3
    assert chi_squared([row[0] for row in rows], p[0]) < 16.3
    assert chi_squared([row[1] for row in rows if len(row) > 1], p[1]) < 16.3
    assert chi_squared([row[2] for row in rows if len(row) > 2], p[2]) < 16.3
    # second tokens are independent of the first: checked for the likeliest accepted one
    assert chi_squared([row[1] for row in rows if len(row) > 1 and row[0] == 1], p[1]) < 16.3
    # sum_t min(p, q) of first drafts are accepted (Leviathan et al., theorem 3.5): 0.7, or p of the one looked up
    share = sum(len(row) > 1 for row in rows) / len(rows)
    assert abs(share - (0.7 if drawn else 0.4)) < 0.02


def test_what_is_left_by_rounding_is_drawn_from_the_target() -> None:
    # q says 1.5 at the refused token and p nowhere more than q: a caller's rounding, not a distribution
    p, q = torch.tensor([[0.5, 0.5], [0.5, 0.5]]), torch.tensor([[1.5, 0.5]])
    for seed in range(20):
        verified = verify_draft(torch.tensor([0]), starts_of([1]), p, q, torch.tensor([seed]), torch.zeros(1).int(), 1)
        assert all(token in (-1, 0, 1) for token in verified.tokens[0].tolist())


def test_nothing_to_do_is_done() -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    assert verify_greedy(nothing, starts_of([]), nothing, 3).tokens.shape == (0, 4)


def test_bad_arguments_are_named() -> None:
    tokens, target, draft = random_case([2, 1], 5, seed=5)
    starts, seeds, steps = starts_of([2, 1]), torch.arange(2), torch.zeros(2).int()
    with pytest.raises(ValueError, match=r"^draft_tokens: its dtype is torch.int32"):
        verify_greedy(tokens.int(), starts, torch.zeros(5).long(), 2)
    with pytest.raises(ValueError, match=r"^draft_starts: is empty"):
        verify_greedy(tokens, starts[:0], torch.zeros(5).long(), 2)
    with pytest.raises(ValueError, match=r"^target_tokens: its shape is \[4\]; \[5\]"):
        verify_greedy(tokens, starts, torch.zeros(4).long(), 2)
    with pytest.raises(ValueError, match=r"^max_draft_tokens: is -1"):
        verify_greedy(tokens, starts, torch.zeros(5).long(), -1)
    with pytest.raises(ValueError, match=r"^target_probabilities: its shape is \[4, 5\]; \[5, any\]"):
        verify_draft(tokens, starts, target[:4], draft, seeds, steps, 2)
    with pytest.raises(ValueError, match=r"^draft_probabilities: its shape is \[3, 4\]; \[3, 5\]"):
        verify_draft(tokens, starts, target, draft[:, :4], seeds, steps, 2)
    with pytest.raises(ValueError, match=r"^seed: its dtype is torch.int32"):
        verify_draft(tokens, starts, target, draft, seeds.int(), steps, 2)
    with pytest.raises(ValueError, match=r"^step: its shape is \[1\]; \[2\]"):
        verify_draft(tokens, starts, target, draft, seeds, steps[:1], 2)
