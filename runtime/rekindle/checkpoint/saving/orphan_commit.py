"""Making a checkpoint of what a dead attempt has stored completely but could not commit.

Between the last part and the commit lies one request, and rank 0's machine may go just then. All
bytes are there, and the parts hold everything that the commit needs, so the next attempt can write
it before it chooses where to begin. The rules are those for an orphaned writer:

- under the key of the step and the attempt that stored it, on the condition that there is none: of
  several adopters, and the writer itself, one wins, and all of them would write the same;
- only what would be the newest checkpoint of the live line, and only while no newer attempt has
  committed, because from then on nobody would see it;
- with the same proof of coverage as any commit.
"""

import logging

from rekindle.checkpoint.format import manifest
from rekindle.checkpoint.format.manifest import CommitRef, IntegrityError, Part
from rekindle.checkpoint.objects.interface import Conflict, NotFound, PreconditionFailed
from rekindle.checkpoint.saving.writer import is_committed, read_parts, whole
from rekindle.checkpoint.store import Store

log = logging.getLogger(__name__)


def adopt(store: Store, *, fence: int) -> CommitRef | None:
    """Commit the newest complete group of an attempt before `fence`, if there is one.

    For the owner of that fence, before its own first commit. Raises `StoreError`.
    """
    committed = store.listed()
    newest = max(committed, key=lambda ref: (ref.fence, ref.step), default=None)
    groups = {manifest.ref_of(stat.key) for stat in store.objects.list("part/")} - {None}
    candidates = [
        ref
        for ref in groups
        if ref is not None
        and ref.fence < fence
        and (newest is None or (ref.fence, ref.step) > (newest.fence, newest.step))
    ]
    for ref in sorted(candidates, key=lambda ref: (ref.fence, ref.step), reverse=True):
        try:
            if _adopt(store, ref):
                log.warning("step %d was stored completely and is committed now", ref.step)
                return ref
        except (IntegrityError, NotFound) as error:
            log.warning("step %d was stored, but cannot be committed: %s", ref.step, error)
    return None


def _adopt(store: Store, ref: CommitRef) -> bool:
    found: dict[int, tuple[Part, bytes]] = {}
    read_parts(store, ref, 1, found)
    if 0 not in found:
        return False
    size = found[0][0].world_size
    read_parts(store, ref, size, found)
    if len(found) != size:
        return False
    first = found[0][0]
    commit, body = whole(store, [found[rank] for rank in range(size)], first.meta)
    try:
        store.objects.put(manifest.commit_key(ref), body, if_none_match=True)
    except (PreconditionFailed, Conflict):
        return is_committed(store, commit)
    return True
