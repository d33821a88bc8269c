"""Which run a fit is, as all ranks agree on it: `runs` decides, rank 0 looks at the store.

A run that was found in the memory of its pods is the one that it was: nobody asks the store for it.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from rekindle.checkpoint import Store
from rekindle.checkpoint.objects.interface import Objects
from rekindle.flags import Flags
from rekindle.persistence import policy, run_identity
from rekindle.persistence.admission import job, who
from rekindle.persistence.lease import SharedLease
from rekindle.persistence.restore import Candidates, Found
from rekindle.ranks.distributed import World

_WORDS = ("last", "best", "hpc")
_T = TypeVar("_T")


def identify(
    world: World, lease: SharedLease, flags: Flags, own: run_identity.Identity, found: Found | None
) -> run_identity.Identity:
    """The identity with the script's number in it; collective."""
    root = policy.base(flags)[0]

    def script() -> str:
        if job():
            return who().job
        objects = _objects(lease, flags)
        saved = None if found is None or found.restored is None else found.restored.meta.get("run")
        if saved is not None:
            run_identity.hold(objects, root, saved["script"])
            return str(saved["script"])
        known = run_identity.known_script(root)
        if known is not None and flags.fit_number > 1:
            return known
        return run_identity.enter(
            objects, root, anew=flags.resume == "never" and flags.fit_number == 1
        )

    number = _from_first(world, script)
    run_identity.note_script(root, number)
    return replace(own, script=number)


def decide(
    candidates: Candidates,
    own: run_identity.Identity,
    found: Found | None,
    flags: Flags,
    start_from: str | None,
) -> run_identity.ResumeDecision | None:
    """What the newest checkpoint means for this fit; None where a `ckpt_path` says it; collective.

    `found` is what lies in memory. Raises R11 on every rank.
    """
    if start_from is not None:
        return None

    def decision() -> run_identity.ResumeDecision:
        meta: Mapping[str, Any] | None = None
        if found is not None and found.restored is not None:
            meta = found.restored.meta
        elif flags.resume != "never":
            meta = candidates.newest_meta()
        return run_identity.decide(
            own,
            meta,
            place=candidates.lease.uri,
            resume=flags.resume,
            job=bool(job()),
            world_size=candidates.world.size,
        )

    if found is None:
        candidates.settle()
    return _from_first(candidates.world, decision)


def begin_anew(
    world: World, lease: SharedLease, flags: Flags, own: run_identity.Identity
) -> run_identity.Identity:
    """Give the script another number: what its later fits find is not theirs; collective."""
    root = policy.base(flags)[0]
    number = _from_first(world, lambda: run_identity.enter(_objects(lease, flags), root, anew=True))
    run_identity.note_script(root, number)
    return replace(own, script=number)


def place_of(world: World, lease: SharedLease, flags: Flags, text: str) -> str:
    """The run that a `ckpt_path` is looked for in; collective.

    A word means the newest fit of the script that has a checkpoint, a path is below the root.
    """
    root = policy.base(flags)[0]
    if text not in _WORDS:
        return root if flags.fit_number > 1 else lease.uri
    if flags.fit_number == 1:
        return lease.uri
    return _from_first(world, lambda: newest_place(root, flags.fit_number, lease.options))


def newest_place(root: str, number: int, options: dict[str, str]) -> str:
    """The place of the newest fit up to the n-th that has a checkpoint, else that of the n-th."""
    own = run_identity.place_of(root, number)
    for place in (own, *run_identity.places_before(root, number)):
        if Store.open(place, **options).commits():
            return place
    return own


def begun(flags: Flags, own: run_identity.Identity) -> bool:
    """Whether a fit that is about to begin will go on from a checkpoint; asks the store."""
    options = policy.store_options(flags)
    store = Store.open(policy.root(flags)[0], **options)
    meta = Candidates.newest_of(store)
    if meta is None or flags.resume == "never":
        return False
    root = policy.base(flags)[0]
    script = who().job if job() else run_identity.known_script(root)
    if script is None or (flags.fit_number == 1 and not job()):
        objects = store.objects if flags.fit_number == 1 else Store.open(root, **options).objects
        script = run_identity.peek(objects)
    try:
        return run_identity.decide(
            replace(own, script=script),
            meta,
            place=store.uri,
            resume=flags.resume,
            job=bool(job()),
            world_size=0,
        ).goes_on
    except ValueError:
        return True  # is refused in a moment


def _objects(lease: SharedLease, flags: Flags) -> Objects:
    root = policy.base(flags)[0]
    store = lease.store if flags.fit_number == 1 else Store.open(root, **lease.options)
    return store.objects


def _from_first(world: World, ask: Callable[[], _T]) -> _T:
    """What rank 0 finds, on every rank; its error, too."""
    error: Exception | None = None
    answer: _T | None = None
    if world.first:
        try:
            answer = ask()
        except Exception as failure:
            error = failure
    world.agree(error)
    shared = world.share(answer)
    assert shared is not None or answer is None
    return shared  # type: ignore[return-value]
