"""Experts spread over GPUs: how uneven their load is, and where a token's copies go."""

from functools import cache

import numpy as np

from simkit.models.layout import Layout

SHUFFLES = 400  # placements of experts over which the most loaded GPU is averaged: a standard error of about 1 %


def skew_of(layout: Layout, experts: int) -> float:
    """Tokens that the most loaded GPU's experts get, over the mean: its products and its messages last longest."""
    if layout.expert == 1:
        return 1.0
    return layout.expert_skew if layout.expert_zipf is None else zipf_skew(experts, layout.expert, layout.expert_zipf)


@cache
def zipf_skew(experts: int, gpus: int, exponent: float) -> float:
    """The same where the expert of rank r is chosen in proportion to r ^ -`exponent`, placed by chance in equal groups.

    The mean over `SHUFFLES` placements, always the same ones. Copies of hot experts (EPLB) are not made.
    """
    share = np.arange(1, experts + 1, dtype=np.float64) ** -exponent
    share /= share.sum()
    rng = np.random.default_rng(0)
    most = [rng.permutation(share).reshape(gpus, -1).sum(axis=1).max() for _ in range(SHUFFLES)]
    return float(np.mean(most)) * gpus


def peers_of(layout: Layout, per_token: int) -> tuple[float, float]:
    """GPUs beside its own that get a copy of a token, mean: (of its node, of other nodes).

    A GPU gets one copy however many of a token's experts it has (DeepEP's dispatch). With experts chosen evenly, it has
    at least one of `per_token` with probability 1 - (1 - 1/n)^k.
    """
    gpus = layout.expert
    reached = 1.0 - (1.0 - 1.0 / gpus) ** per_token
    near = min(layout.gpus_per_node, gpus) - 1
    return near * reached, (gpus - 1 - near) * reached
