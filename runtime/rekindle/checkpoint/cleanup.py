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
from collections.abc import Mapping
from dataclasses import dataclass, replace

from rekindle.checkpoint import lineage, manifest
from rekindle.checkpoint.manifest import CommitRef, IntegrityError, ManifestError, VersionError
from rekindle.checkpoint.objects import AccessDenied, NotFound, PreconditionFailed, Refused
from rekindle.checkpoint.retention import Candidate, Retention, candidate, kept
from rekindle.checkpoint.store import Store

log = logging.getLogger(__name__)

KEPT_LEASES = 20
STALE_UPLOAD_SECONDS = 3600.0
_PREFIXES = ("commit/", "data/", "part/", "bad/")


@dataclass(frozen=True, kw_only=True)
class Plan:
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


class Cleaner:
    """Applies one policy to one store; remembers what it has read of each commit."""

    def __init__(
        self, store: Store, policy: Retention, *, restored: CommitRef | None = None
    ) -> None:
        self._store = store
        self._policy = policy
        self._restored = restored
        self._known: dict[tuple[CommitRef, str], Candidate] = {}

    def plan(self, newest: CommitRef | None = None) -> Plan:
        """Decide; `newest` is a commit that certainly exists, by default the newest of the line.

        Raises `StoreError`; `VersionError` when a newer software has written here, and
        `ManifestError` for a pin that cannot be read: then nothing may be removed.
        """
        objects = self._store.objects
        stats = [stat for prefix in _PREFIXES for stat in objects.list(prefix)]
        etags = {stat.key: stat.etag for stat in stats}
        groups = {ref for ref in map(manifest.ref_of, etags) if ref is not None}
        committed = {r: etags[k] for r in groups if (k := manifest.commit_key(r)) in etags}
        bad = {ref for ref in groups if manifest.bad_key(ref) in etags}
        line = set(self._store.line())
        candidates = [
            replace(found, good=found.good and ref not in bad, on_line=ref in line)
            for ref, etag in committed.items()
            if (found := self._candidate(ref, etag)) is not None
        ]
        pins = {pin.ref for pin in self._store.pins().values()}
        stay = kept(candidates, self._policy, pins, restored=self._restored)
        if newest is None:
            newest = max(line, key=lambda ref: (ref.fence, ref.step), default=None)
        # What vanished since it was listed is in nobody's candidates, and no business of ours.
        goes = {one.ref: committed[one.ref] for one in candidates if one.ref not in stay}
        garbage = (
            [] if newest is None else lineage.garbage(groups, committed=committed, newest=newest)
        )
        live = {key for one in candidates if one.ref in stay for key in one.borrowed}
        doomed = {*goes, *garbage} - {newest}
        keys = [
            stat
            for stat in stats
            if stat.key not in live
            and not stat.key.startswith("commit/")
            and manifest.ref_of(stat.key) in doomed
        ]
        held = {manifest.ref_of(key) for key in live}
        return Plan(
            stays=tuple(sorted(stay, reverse=True)),
            goes={ref: goes[ref] for ref in sorted(goes) if ref != newest},
            left_over=tuple(ref for ref in garbage if ref not in held),
            keys=tuple(stat.key for stat in keys),
            nbytes=sum(stat.size for stat in keys),
        )

    def run(self, newest: CommitRef | None = None) -> Plan:
        """Decide and do it; returns what was decided. Raises as `plan` does."""
        plan = self.plan(newest)
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
        keys = [key for key in plan.keys if manifest.ref_of(key) not in spared]
        if keys:
            self._store.objects.delete_many(keys)
        return plan

    def _candidate(self, ref: CommitRef, etag: str) -> Candidate | None:
        """The summary of one commit; None when it has just been removed."""
        if (ref, etag) not in self._known:
            try:
                found = candidate(self._store.read(ref), good=True, on_line=True)
            except IntegrityError:
                found = Candidate(ref=ref, good=False)
            except NotFound:
                return None
            self._known[ref, etag] = found
        return self._known[ref, etag]


def sweep(store: Store, fence: int) -> None:
    """Old leases, and uploads that a killed process never finished; once per attempt is enough.

    Only uploads of earlier attempts: nobody can tell those of this one from what is on its way.
    """
    fences = (manifest.fence_of(stat.key) for stat in store.objects.list("lease/"))
    old = [f for f in fences if f is not None and f <= fence - KEPT_LEASES]
    store.objects.delete_many(manifest.lease_key(number) for number in old)
    # Listing uploads needs a permission of its own, and not every server can do it.
    with contextlib.suppress(AccessDenied, Refused, NotFound):
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
            self._cleaner.run(newest)
        except (ManifestError, VersionError) as error:
            log.warning("no checkpoint of %s was removed: %s", self._store.uri, error)
        if not self._swept:
            self._swept = True
            sweep(self._store, self._fence)


def tidy(store: Store, newest: CommitRef, *, keep_latest: int) -> None:
    """The policy `latest` alone, without what a `Housekeeper` remembers."""
    Cleaner(store, Retention(latest=keep_latest)).run(newest)
