"""Which commits count, and which objects are left over. Pure decisions over names.

A zombie is an attempt that was declared dead, was replaced, and still runs. It checks the lease
before it commits, but between the check and the write it may sleep for an hour, so correctness
rests on the reader instead: every commit records its *base*, the checkpoint its attempt resumed
from. The live line begins with the highest fence that has a commit; below it, only the fence of its
base counts, and only up to the base's step; and so on downward. Whatever a zombie commits later
lies beyond the base and is invisible, even at a higher step. A deliberate rollback works the same
way: a new fence whose base is the older checkpoint.

Clocks and modification times play no part (R22).

The same rule makes garbage certain. Once a fence has committed, no uncommitted group of a lower
fence can become visible any more; and a group of its own fence below the committed step has no
writer left, since a rank stores one step after the other. Groups of *higher* fences are never
touched: then we are the zombie. Commits off the line are no garbage: they are whole, and a user who
began anew in the wrong place will want them back. Retention (`retention`) lets them go first.
"""

from collections.abc import Callable, Iterable, Sequence

from rekindle.checkpoint.format.manifest import CommitRef

FURTHEST = 10_000
"""From one lease to the next above it; some may have been removed in between."""


def live_line(
    refs: Iterable[CommitRef], base_of: Callable[[Sequence[CommitRef]], CommitRef | None]
) -> list[CommitRef]:
    """The commits that count, newest first.

    `base_of` gets the commits of one fence, newest first, and returns their common base (None for
    an attempt that began from nothing). It is asked only for fences on the line that have others
    below them.
    """
    by_fence: dict[int, list[CommitRef]] = {}
    for ref in sorted(refs, reverse=True):
        by_fence.setdefault(ref.fence, []).append(ref)
    line: list[CommitRef] = []
    limit: int | None = None
    lowest, fence = min(by_fence, default=0), max(by_fence, default=None)
    while fence is not None:
        own = by_fence[fence]
        line += [ref for ref in own if limit is None or ref.step <= limit]
        base = None if fence == lowest else base_of(own)
        if base is None:
            break
        limit = base.step if limit is None else min(limit, base.step)
        fence = base.fence if base.fence < fence and base.fence in by_fence else None
    return line


def newest_fence(leases: Iterable[int], committed: Iterable[int]) -> int:
    """The highest fence that was taken, 0 if none.

    Fences are taken one after the other, so a lease that is further above all others than
    `FURTHEST` was put there by somebody else: a number from which counting could not go on.
    """
    highest = max(committed, default=0)
    for fence in sorted(leases):
        if fence > highest + FURTHEST:
            break
        highest = max(highest, fence)
    return highest


def garbage(
    groups: Iterable[CommitRef], *, committed: Iterable[CommitRef], newest: CommitRef
) -> list[CommitRef]:
    """Groups without a commit that no reader can need once `newest` is committed by its fence."""
    return sorted(
        ref
        for ref in set(groups) - set(committed)
        if ref.fence < newest.fence or (ref.fence == newest.fence and ref.step < newest.step)
    )
