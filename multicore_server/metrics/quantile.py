"""Calculates quantiles of a histogram."""

from __future__ import annotations

import math
from collections.abc import Sequence


def quantile(share: float, counts: Sequence[tuple[float, float]]) -> float | None:
    """The value that this share of the observations did not exceed, as Prometheus' histogram_quantile()
    computes it; None if there were none. ``counts``: upper bounds, in their order, with how many observations
    were at most that large."""
    if not counts or counts[-1][1] <= 0:
        return None
    rank = share * counts[-1][1]
    low, below = 0.0, 0.0
    for bound, count in counts:
        if count >= rank and count > below:
            return low if math.isinf(bound) else low + (bound - low) * (rank - below) / (count - below)
        low, below = bound, count
    return low
