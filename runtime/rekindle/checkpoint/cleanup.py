"""Removing what nobody needs: checkpoints that the policy lets go, and what crashes left behind.

The order makes every interruption harmless. First the commit object goes, on the condition that it
is still the one that was judged; from then on no reader finds the checkpoint. Only then its data. A
crash in between leaves a group without a commit, which is garbage like that of a crashed save and
is found again the next time.

What is live is a pure function of the commits that stay: their own groups, and single objects of
other groups that they refer to because a tensor had not changed since. Those objects outlive the
commit that stored them, and stay even when their group is garbage otherwise.

One process cleans at a time, rank 0 of the newest attempt or a person with the command; two of them
do not hurt each other, since each deletes only what is surplus by its rules, commit first.
"""

import contextlib
import logging
import time
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from rekindle.checkpoint import lineage
from rekindle.checkpoint.format import manifest
from rekindle.checkpoint.format.manifest import (
    CommitRef,
    IntegrityError,
    ManifestError,
    VersionError,
)
from rekindle.checkpoint.objects.interface import (
    AccessDenied,
    NotFound,
    PreconditionFailed,
    RequestRefused,
    Stat,
)
from rekindle.checkpoint.retention import Candidate, Retention, candidate, kept
from rekindle.checkpoint.store import Store

log = logging.getLogger(__name__)

KEPT_LEASES = 20
STALE_UPLOAD_SECONDS = 3600.0
LOOK_AGAIN_SECONDS = 3600.0
"""After which the whole store is looked through again: others may have written, or removed."""
PARALLEL_READS = 8
_PREFIXES = ("commit/", "data/", "part/", "bad/")


@dataclass(frozen=True, kw_only=True)
class CleanupPlan:
    """What a clean-up would do."""

    stays: tuple[CommitRef, ...]
    """Newest first."""
    goes: Mapping[CommitRef, str]
    """Surplus commits with the etags that were judged, oldest first."""
    left_over: tuple[CommitRef, ...]
    """Groups without a commit that no reader can need."""
    keys: tuple[str, ...]
    """Every object besides the commits that would be removed."""
    nbytes: int
    """Their size."""


@dataclass
class _Seen:
    """What is known of the store since all of it was looked through."""

    at: float
    committed: dict[CommitRef, str]
    line: set[CommitRef]


class Cleaner:
    """Applies one policy to one store; remembers what it has read of each commit.

    A run that keeps thousands of checkpoints must not pay for all of them with each save. So the
    whole store is listed once (`run`), and from then on each commit of this attempt is added to
    what is known (`go_on`); only what people and readers may set at any time, pins and marks of
    damage, is asked for again. Commits are read as far as the policy depends on what is in them.
    """

    def __init__(
        self, store: Store, policy: Retention, *, restored: CommitRef | None = None
    ) -> None:
        self._store = store
        self._policy = policy
        self._restored = restored
        self._known: dict[tuple[CommitRef, str], Candidate] = {}
        self._seen: _Seen | None = None

    def plan(self, newest: CommitRef | None = None) -> CleanupPlan:
        """Look through the whole store and decide.

        `newest` is a commit that certainly exists, by default the newest of the line. Raises
        `StoreError`; `VersionError` when a newer software has written here, and `ManifestError` for
        a pin that cannot be read: then nothing may be removed.
        """
        objects = self._store.objects
        stats = [stat for prefix in _PREFIXES for stat in objects.list(prefix)]
        etags = {stat.key: stat.etag for stat in stats}
        groups = {ref for ref in map(manifest.ref_of, etags) if ref is not None}
        committed = {r: etags[k] for r in groups if (k := manifest.commit_key(r)) in etags}
        line = set(self._store.line())
        if newest is None:
            newest = max(line, key=lambda ref: (ref.fence, ref.step), default=None)
        garbage = (
            [] if newest is None else lineage.garbage(groups, committed=committed, newest=newest)
        )
        bad = {ref for ref in groups if manifest.bad_key(ref) in etags}
        seen = _Seen(time.monotonic(), committed, line)
        plan = self._decide(seen, bad, garbage, newest, stats)
        self._seen = seen
        return plan

    def run(self, newest: CommitRef | None = None) -> CleanupPlan:
        """Look through the whole store, decide and do it; returns what was decided.

        Raises as `plan` does.
        """
        return self._do(self.plan(newest))

    def go_on(self, newest: CommitRef) -> CleanupPlan:
        """The same after one more commit of this attempt, from what is known; raises as `plan`."""
        seen = self._seen
        if seen is None or time.monotonic() - seen.at > LOOK_AGAIN_SECONDS:
            return self.run(newest)
        objects = self._store.objects
        seen.committed[newest] = objects.head(manifest.commit_key(newest)).etag
        seen.line.add(newest)
        marks = {manifest.ref_of(stat.key) for stat in objects.list("bad/")}
        bad = {ref for ref in marks if ref in seen.committed}
        return self._do(self._decide(seen, bad, [], newest, None))

    def forget(self) -> None:
        """Something may be left over: look through the whole store the next time."""
        self._seen = None

    def _decide(
        self,
        seen: _Seen,
        bad: set[CommitRef],
        garbage: list[CommitRef],
        newest: CommitRef | None,
        stats: list[Stat] | None,
    ) -> CleanupPlan:
        """`stats` are all objects, or None when they are listed as far as they are to go."""
        pins = {pin.ref for pin in self._store.pins().values()}
        candidates = self._candidates(seen, bad, pins)
        stay = kept(candidates.values(), self._policy, pins, restored=self._restored)
        goes = {ref: seen.committed[ref] for ref in candidates if ref not in stay}
        doomed = {*goes, *garbage} - {newest}
        live = self._borrowed(seen, stay, doomed)
        if stats is None:
            groups = [f"{kind}/{ref}/" for ref in sorted(doomed) for kind in ("data", "part")]
            groups += [manifest.bad_key(ref) for ref in sorted(doomed & bad)]
            stats = [stat for prefix in groups for stat in self._store.objects.list(prefix)]
        keys = [
            stat
            for stat in stats
            if stat.key not in live
            and not stat.key.startswith("commit/")
            and manifest.ref_of(stat.key) in doomed
        ]
        held = {manifest.ref_of(key) for key in live}
        return CleanupPlan(
            stays=tuple(sorted(stay, reverse=True)),
            goes={ref: goes[ref] for ref in sorted(goes) if ref != newest},
            left_over=tuple(ref for ref in garbage if ref not in held),
            keys=tuple(stat.key for stat in keys),
            nbytes=sum(stat.size for stat in keys),
        )

    def _do(self, plan: CleanupPlan) -> CleanupPlan:
        spared: set[CommitRef | None] = set()
        for ref, etag in plan.goes.items():
            key = manifest.commit_key(ref)
            try:
                self._store.objects.delete(key, if_match=etag)
            except (PreconditionFailed, NotFound):
                # Another process was here. If the commit is gone, its data may go too.
                with contextlib.suppress(NotFound):
                    self._store.objects.head(key)
                    spared.add(ref)
                self.forget()
            if self._seen is not None:
                self._seen.committed.pop(ref, None)
        keys = [key for key in plan.keys if manifest.ref_of(key) not in spared]
        if keys:
            self._store.objects.delete_many(keys)
        return plan

    def _candidates(
        self, seen: _Seen, bad: set[CommitRef], pins: set[CommitRef]
    ) -> dict[CommitRef, Candidate]:
        """What the rules need to know, read as far as they depend on it.

        Without a rule that looks into commits, those are read that stay for being among the newest:
        one that turns out to be damaged does not count, and another one takes its place.
        """
        everything = bool(self._policy.best) or self._policy.hourly > 0
        asked = list(seen.committed) if everything else []
        while True:
            self._read(seen, asked)
            found = {
                ref: replace(one, good=one.good and ref not in bad, on_line=ref in seen.line)
                for ref, etag in seen.committed.items()
                for one in [self._known.get((ref, etag), Candidate(ref=ref))]
            }
            latest = Retention(latest=self._policy.latest)
            asked = [
                ref
                for ref in kept(found.values(), latest, pins, restored=self._restored)
                if (ref, seen.committed[ref]) not in self._known
            ]
            if not asked:
                return found

    def _borrowed(
        self, seen: _Seen, stay: Collection[CommitRef], doomed: Collection[CommitRef]
    ) -> set[str]:
        """Objects of groups that are to go which commits that stay need.

        A commit borrows from groups of its own step or a lower one only.
        """
        lowest = min((ref.step for ref in doomed), default=None)
        later = [ref for ref in stay if lowest is not None and ref.step >= lowest]
        self._read(seen, later)
        known = [self._known.get((ref, seen.committed.get(ref, ""))) for ref in later]
        return {key for one in known if one is not None for key in one.borrowed}

    def _read(self, seen: _Seen, refs: Collection[CommitRef]) -> None:
        """Know what is in these commits; some at a time, since each of them is a request."""
        todo = [ref for ref in refs if (ref, seen.committed[ref]) not in self._known]
        if len(todo) < PARALLEL_READS:
            summaries = [self._summary(ref) for ref in todo]
        else:
            with ThreadPoolExecutor(PARALLEL_READS) as pool:
                summaries = list(pool.map(self._summary, todo))
        for ref, found in zip(todo, summaries, strict=True):
            if found is None:
                # It vanished since it was listed, and is no business of ours.
                del seen.committed[ref]
            else:
                self._known[ref, seen.committed[ref]] = found

    def _summary(self, ref: CommitRef) -> Candidate | None:
        """The summary of one commit; None when it has just been removed."""
        try:
            return candidate(self._store.read(ref), good=True, on_line=True)
        except IntegrityError:
            return Candidate(ref=ref, good=False)
        except NotFound:
            return None


def sweep(store: Store, fence: int) -> None:
    """Old leases, and uploads that a killed process never finished; once per attempt is enough.

    Only uploads of earlier attempts: nobody can tell those of this one from what is on its way.
    """
    fences = (manifest.fence_of(stat.key) for stat in store.objects.list("lease/"))
    old = [f for f in fences if f is not None and f <= fence - KEPT_LEASES]
    store.objects.delete_many(manifest.lease_key(number) for number in old)
    # Listing uploads needs a permission of its own, and not every server can do it.
    with contextlib.suppress(AccessDenied, RequestRefused, NotFound):
        store.objects.abandon_uploads(
            "",
            older_than=STALE_UPLOAD_SECONDS,
            only=lambda key: (ref := manifest.ref_of(key)) is not None and ref.fence < fence,
        )


class Housekeeper:
    """What rank 0 does after each of its commits."""

    def __init__(
        self, store: Store, policy: Retention, *, fence: int, restored: CommitRef | None
    ) -> None:
        self._store = store
        self._fence = fence
        self._cleaner = Cleaner(store, policy, restored=restored)
        self._swept = False

    def tidy(self, newest: CommitRef) -> None:
        """Clean after `newest` was committed; raises `StoreError`, and then it is done later."""
        if self._store.newest_fence() > self._fence:
            return  # a newer attempt lives; what is old is its business now
        try:
            self._cleaner.go_on(newest)
        except (ManifestError, VersionError) as error:
            log.warning("no checkpoint of %s was removed: %s", self._store.uri, error)
        if not self._swept:
            self._swept = True
            sweep(self._store, self._fence)

    def disturbed(self) -> None:
        """A save has failed, and what it had stored is to be found after the next one."""
        self._cleaner.forget()


def tidy(store: Store, newest: CommitRef, *, keep_latest: int) -> None:
    """The policy `latest` alone, without what a `Housekeeper` remembers."""
    Cleaner(store, Retention(latest=keep_latest)).run(newest)
