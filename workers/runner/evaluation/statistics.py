"""Means with their standard errors. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev


def mean_with_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean of at least two values and its standard error: sample standard deviation over the root of their number."""
    return fmean(values), stdev(values) / math.sqrt(len(values))
