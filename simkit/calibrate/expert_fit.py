"""Prices of the law of experts (`expert_law.py`), fitted to one kernel's times.

The mean absolute log error, smoothed near zero, by Levenberg's and Marquardt's steps on reweighted squares (Huber,
Robust Statistics, 1981, chapter 7): a table has points twice as slow as their neighbours, which must not steer it. A
weak pull towards the beginning keeps prices that a table says nothing about. A fixed random part of the rows is enough:
equal tables give equal prices.
"""

import numpy as np
from numpy.typing import NDArray

from simkit.calibrate.expert_law import HIGHEST, LOWEST, Law, Layers, beginning

F64 = NDArray[np.float64]

ROWS = 1000  # 4,000 predict alike
STEPS = 40
SMOOTH = 0.02  # log error that counts as a square
PULL = 3e-4  # of a price that is e times its beginning
LONGEST = 0.7  # log change of a price in a step
ENOUGH, TIMES = 5e-5, 3  # gains below this, so often in turn, end it
NUDGE = 1e-3
SEED = 0


def fit_law(layers: Layers, ns: F64) -> Law:
    """The law of measured times, f64[n], n >= 1."""
    law = beginning(layers, ns)
    which = np.random.default_rng(SEED).permutation(len(ns))[:ROWS]
    part, wanted = layers.some(which), np.log(ns[which])
    begin, prices, damping = law.log_prices, law.log_prices, 0.1
    found = law.log_ns(part)
    cost = _cost(found - wanted, prices - begin)
    small = 0
    for _ in range(STEPS):
        slopes = law._replace(log_prices=prices + NUDGE * np.eye(len(prices))).log_ns(part)
        slopes = (slopes - found) / NUDGE
        off = found - wanted
        weight = 1.0 / np.sqrt(off**2 + SMOOTH**2) / len(off)
        curve = (slopes * weight) @ slopes.T + 2.0 * PULL * np.eye(len(prices))
        down = (slopes * weight) @ off + 2.0 * PULL * (prices - begin)
        tried = _step(law, part, wanted, (prices, begin), (curve, down), cost, damping)
        if tried is None:
            break
        gained = cost - tried[1]
        prices, cost, damping = tried
        law = law._replace(log_prices=prices)
        found = law.log_ns(part)
        small = small + 1 if gained < ENOUGH else 0
        if small >= TIMES:
            break
    return law


def _cost(off: F64, away: F64) -> float:
    return float(np.sqrt(off**2 + SMOOTH**2).mean() + PULL * (away**2).sum())


def _step(
    law: Law, part: Layers, wanted: F64, at: tuple[F64, F64], local: tuple[F64, F64], cost: float, damping: float
) -> tuple[F64, float, float] | None:
    """Better prices, their cost and the next damping; None if eight dampings found none."""
    (prices, begin), (curve, down) = at, local
    for _ in range(8):
        damped = curve + damping * np.diag(curve).mean() * np.eye(len(prices))
        change = np.clip(np.linalg.solve(damped, down), -LONGEST, LONGEST)
        tried = np.clip(prices - change, LOWEST, HIGHEST)
        new = _cost(law._replace(log_prices=tried).log_ns(part) - wanted, tried - begin)
        if new < cost:
            return tried, new, max(damping / 5.0, 1e-7)
        damping *= 3.0
    return None
