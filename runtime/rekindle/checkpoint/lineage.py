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

from rekindle.checkpoint.manifest import CommitRef


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
    while by_fence:
        fence = max(by_fence)
        own = by_fence.pop(fence)
        line += [ref for ref in own if limit is None or ref.step <= limit]
        if not by_fence:
            break
        base = base_of(own)
        if base is None:
            break
        limit = base.step if limit is None else min(limit, base.step)
        by_fence = {f: refs for f, refs in by_fence.items() if f <= min(base.fence, fence - 1)}
        if base.fence not in by_fence:
            break
    return line


def garbage(
    groups: Iterable[CommitRef], *, committed: Iterable[CommitRef], newest: CommitRef
) -> list[CommitRef]:
    """Groups without a commit that no reader can need once `newest` is committed by its fence."""
    return sorted(
        ref
        for ref in set(groups) - set(committed)
        if ref.fence < newest.fence or (ref.fence == newest.fence and ref.step < newest.step)
    )
