"""`max_tokens`: after how many samples has a run read so many tokens?

The dataset says how many tokens a sample has, and the order of the data is a pure function of
numbers in the cursor. So the answer is known before the first step and is the same on every rank
and after every restart. The run then counts samples, as it does anyway: nothing is added to a step,
and the limit is met exactly, at the end of the step that reaches it.
"""

from typing import Any

import numpy as np
from torch.utils.data import Subset

from rekindle.data.sampling.order import Cursor
from rekindle.data.sampling.samplers import Draw


def samples_of(
    limit: int, dataset: Any, cursor: Cursor, draw: Draw | None, *, epochs: int | None
) -> int | None:
    """Samples from the beginning of the run until `limit` tokens are read.

    None when `epochs` end before. Raises ValueError when the dataset does not say how many tokens
    its samples have, or when that cannot be followed through the order.
    """
    each = _tokens(dataset)
    if isinstance(each, int):
        return -(-limit // each)
    if cursor.order == "stream" or cursor.before != cursor.epoch * cursor.length:
        what = "a stream" if cursor.order == "stream" else "a dataset that has changed in the run"
        raise ValueError(
            f"max_tokens={limit}: {type(dataset).__name__} is {what}, whose tokens can be counted "
            f"only when every sample has as many (tokens = a number); or use max_samples="
        )
    if limit == 0:
        return 0
    order, length = cursor.order_with(draw), cursor.length
    left, epoch = limit, 0
    if draw is None and length == cursor.N:
        # Every epoch has all samples.
        epoch = (limit - 1) // int(each.sum())
        left -= epoch * int(each.sum())
    while epochs is None or epoch < epochs:
        before = left
        for start, ids in order.stream(epoch, 0, length):
            read = np.cumsum(each[ids])
            if left <= read[-1]:
                return epoch * length + start + int(np.searchsorted(read, left)) + 1
            left -= int(read[-1])
        if left == before:
            raise ValueError(f"max_tokens={limit}: the samples of epoch {epoch} have no tokens")
        epoch += 1
    return None


def _tokens(dataset: Any) -> "int | np.ndarray[Any, np.dtype[np.int64]]":
    """What a dataset says of its samples: one number for all, or one for each."""
    if isinstance(dataset, Subset) and not hasattr(dataset, "tokens"):
        whole = _tokens(dataset.dataset)
        return whole if isinstance(whole, int) else whole[np.asarray(dataset.indices)]
    given = getattr(dataset, "tokens", None)
    if type(given) is int and given > 0:
        return given
    name = type(dataset).__name__
    found = np.asarray([] if given is None else given)
    if found.ndim != 1 or found.dtype.kind not in "iu" or len(found) != _length(dataset):
        raise ValueError(
            f"max_tokens= needs to know how many tokens a sample of {name} has: give the dataset "
            f"an attribute tokens, the length of every sequence, or an array with one for each "
            f"sample"
        )
    if found.min() < 0 or not found.any():
        raise ValueError(f"max_tokens=: {name}.tokens must be counts, and not all of them 0")
    return found.astype(np.int64)


def _length(dataset: Any) -> int:
    return len(dataset) if hasattr(dataset, "__len__") else -1
