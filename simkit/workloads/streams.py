"""Random streams: one a purpose, from a seed that a user gave."""

import numpy as np

from simkit.errors import InputError


def streams(seed: int, count: int) -> list[np.random.Generator]:
    """`count` independent generators of a seed; raises InputError for one below 0."""
    if seed < 0:
        raise InputError(f"seed {seed}: a whole number from 0 on is wanted")
    return [np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(count)]


def stream(seed: int) -> np.random.Generator:
    """The one generator of a seed that has a single purpose."""
    return streams(seed, 1)[0]
