"""Splits that stay: which part a sample belongs to follows from its number and a seed.

Samples are ranked by a fixed hash and cut at the fractions. No generator's state is involved, so a
split is the same in every process and every release; when samples are appended to the dataset,
nearly all old ones keep their part. The parts' indices are in the dataset's fingerprint: a run
whose split has changed does not resume (R12).
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.utils.data import Subset

from rekindle.data.ledger import hashes


def split(dataset: Any, fractions: Sequence[float], seed: int = 0) -> list[Subset[Any]]:
    """Cut a map-style dataset into parts of the given fractions, which add up to 1.

    Sizes are exact up to rounding. Raises ValueError for other fractions, or when a part would be
    empty.
    """
    if not fractions or min(fractions) <= 0 or not math.isclose(sum(fractions), 1.0):
        raise ValueError(f"fractions={list(fractions)!r} must be above 0 and add up to 1")
    n = len(dataset)
    ranked = np.argsort(hashes(seed, np.arange(n, dtype=np.int64)), kind="stable")
    edges = [round(n * sum(fractions[: part + 1])) for part in range(len(fractions))]
    edges[-1] = n
    starts = [0, *edges[:-1]]
    if any(start >= stop for start, stop in zip(starts, edges, strict=True)):
        raise ValueError(f"{n} samples are too few for fractions={list(fractions)!r}")
    return [
        Subset(dataset, np.sort(ranked[start:stop]).tolist())
        for start, stop in zip(starts, edges, strict=True)
    ]
