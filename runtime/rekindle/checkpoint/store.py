"""Reading checkpoints, and owning the right to write them.

There is no pointer to the latest checkpoint that could be stale: the newest is found by listing
`commit/` and walking the live line (`lineage`). A commit is believed only as far as it can be
verified: its own digest, then every chunk that is read. What fails is marked in `bad/` so that
nobody tries it again, and the one before takes its place; the caller is told what that cost.

Errors decide what happens next: `IntegrityError` (R16) means this checkpoint is damaged and another
may be good; `VersionError` (R21) means stop, the image is too old; `StoreError` is about the store
and says nothing about the checkpoint, which is therefore never marked because of it.

Everything but `load` and `restore` works without torch.
"""

import contextlib
import hashlib
import logging
import random
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from rekindle.checkpoint import lineage
from rekindle.checkpoint.format import encoding, manifest
from rekindle.checkpoint.format.manifest import (
    Commit,
    CommitRef,
    IntegrityError,
    ManifestError,
    TensorEntry,
    VersionError,
)
from rekindle.checkpoint.holder import Holder
from rekindle.checkpoint.objects import location
from rekindle.checkpoint.objects.file import FileObjects
from rekindle.checkpoint.objects.guarded import SETTLE_SECONDS, GuardedObjects
from rekindle.checkpoint.objects.interface import (
    Conflict,
    NotFound,
    Objects,
    PreconditionFailed,
    StoreError,
)
from rekindle.checkpoint.objects.probe import probe

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


log = logging.getLogger(__name__)
_jitter = random.Random()
"""Of its own: a script's numbers come from Python's generator, and are those of its seed."""


class LeaseLost(Exception):
    """A newer attempt writes this run (R15): this process must stop; it cannot commit any more."""


@dataclass(frozen=True, kw_only=True)
class Lease:
    """The right of one attempt to write; a higher fence ends it."""

    fence: int
    owner: str
    etag: str = ""
    """Of the lease as it was taken."""
    fields: Mapping[str, str | int | float] = field(default_factory=dict)
    """What it says."""


@dataclass(frozen=True, kw_only=True)
class NewestLease:
    """The newest lease of a run, as somebody finds it who wants to write there, too."""

    fence: int
    holder: Holder
    since: float
    """By the holder's clock, for people."""
    ended: bool
    etag: str


@dataclass(frozen=True, kw_only=True)
class Restored:
    """A loaded checkpoint."""

    ref: CommitRef
    state: encoding.Tree
    rank_state: encoding.Tree | None
    """What the asked rank had saved for itself; None if it saved nothing or did not exist then."""
    meta: dict[str, Any]
    world_size: int
    """The world size that wrote it."""


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A checkpoint that could not be used and was passed over."""

    ref: CommitRef
    reason: str
    """The R16 message, with what the fallback cost."""
    steps_lost: int
    """Steps between this checkpoint and the one that was restored instead."""


@dataclass
class Store:
    """The checkpoints of one run."""

    objects: Objects
    commit: str = "conditional"
    """How a commit is made the only one; see `open`."""
    origin: dict[str, Any] | None = field(default=None, repr=False)
    """The arguments of `open`, for another process to open the same store; None if it cannot."""
    _commits: dict[tuple[CommitRef, str], Commit] = field(default_factory=dict, repr=False)
    _bases: dict[tuple[CommitRef, str], CommitRef | None] = field(default_factory=dict, repr=False)
    """Of commits that were read: there may be more of them than are worth keeping."""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @classmethod
    def open(
        cls,
        uri: str,
        *,
        endpoint_url: str | None = None,
        region: str | None = None,
        profile: str | None = None,
        ca_bundle: str | None = None,
        addressing: str | None = None,
        commit: str = "conditional",
    ) -> Self:
        """The store at an `s3://` or `file://` root; nothing but a metadata service is asked yet.

        The options of S3 are explained in `s3`; without them the environment and the AWS
        configuration decide. They mean nothing to `file://` and are no error there, since those of
        a job come along wherever its script looks; `location.check_options` is for a root of one's
        own. `commit="lease"` is the weaker mode for stores without conditional writes (`guarded`).
        Raises `InvalidLocation` (R25 where a path library damaged the URL), also for an endpoint
        that holds a password.
        """
        if commit not in manifest.MODES:
            raise ValueError(f"store.commit is {commit!r}: allowed are {manifest.MODES}")
        where = location.parse(uri)
        objects: Objects
        if where.scheme == "file":
            objects = FileObjects(where.path)
        else:
            # boto3 is needed for s3:// only and takes half a second to import.
            from rekindle.checkpoint.objects.s3 import S3Objects

            objects = S3Objects(
                where.bucket,
                where.path,
                endpoint_url=endpoint_url or None,
                region=region or None,
                profile=profile or None,
                ca_bundle=ca_bundle or None,
                addressing=addressing or None,
            )
        if commit == "lease":
            objects = GuardedObjects(objects)
        origin = {
            "uri": uri,
            "endpoint_url": endpoint_url,
            "region": region,
            "profile": profile,
            "ca_bundle": ca_bundle,
            "addressing": addressing,
            "commit": commit,
        }
        return cls(objects=objects, commit=commit, origin=origin)

    @property
    def uri(self) -> str:
        """The root, as given to `open`."""
        return self.objects.uri

    def probe(self, attempt: str) -> None:
        """Check before training that checkpoints can be written safely; `ProbeError` (R5)."""
        probe(self.objects, attempt)

    def acquire(self, *, owner: str, holder: Holder | None = None) -> Lease:
        """Take the next fence; from now on commits of lower fences are refused or ignored.

        Whoever holds the run is not asked; see `held`, and say with `holder` who is here.
        """
        fence = 0
        for attempt in range(1, 101):
            # Higher than the one before, whatever is listed: what stands there may be no lease.
            fence = 1 + max(fence, self.newest_fence(), self.highest_committed())
            if fence > manifest.LAST_FENCE:
                raise StoreError(
                    f"{self.uri}: commits have fences up to {fence - 1}, after which there are no "
                    f"more. Nobody counts that far: remove what is in commit/ by mistake."
                )
            fields: dict[str, str | int | float] = {
                "fence": fence,
                "owner": owner,
                "created": time.time(),
                "token": secrets.token_hex(8),
                **({} if holder is None else holder.fields()),
            }
            body = manifest.note_bytes("lease", fields)
            key = manifest.lease_key(fence)
            try:
                etag = self.objects.put(key, body, if_none_match=True)
                if isinstance(self.objects, GuardedObjects):
                    # Whoever looked before we wrote has written by now; the last one owns it.
                    time.sleep(SETTLE_SECONDS)
                    if not self.objects.holds(key, body):
                        continue
            except (PreconditionFailed, Conflict):
                # Somebody else was faster (or our own first try got through unheard): next number.
                time.sleep(_jitter.uniform(0, min(1.0, 0.01 * attempt)))
                continue
            return Lease(fence=fence, owner=owner, etag=etag, fields=fields)
        raise StoreError(f"{self.uri}: 100 other attempts took the lease first; is this a loop?")

    def held(self) -> NewestLease | None:
        """The newest lease; None when there is none, or none that says who holds it."""
        fence = self.newest_fence()
        if not fence:
            return None
        key = manifest.lease_key(fence)
        try:
            etag = self.objects.head(key).etag
            found = manifest.read_lease(self.objects.get(key, limit=2**16))
        except (NotFound, ManifestError):
            return None
        holder, since = Holder.of(found), found.get("created")
        if holder is None or not isinstance(since, int | float) or not 0 <= since < 1e11:
            return None
        ended = found.get("ended") == 1
        return NewestLease(fence=fence, holder=holder, since=float(since), ended=ended, etag=etag)

    def renew(self, lease: Lease, *, ended: bool = False) -> Lease:
        """Show that the holder of a lease is there, or with `ended` that it is not any more.

        Raises `PreconditionFailed` when the lease is not as it was left.
        """
        fields = {**lease.fields, "renewed": time.time(), **({"ended": 1} if ended else {})}
        body = manifest.note_bytes("lease", fields)
        etag = self.objects.put(manifest.lease_key(lease.fence), body, if_match=lease.etag)
        return Lease(fence=lease.fence, owner=lease.owner, etag=etag, fields=fields)

    def newest_fence(self) -> int:
        """The highest fence that was ever taken, 0 if none."""
        found = (manifest.fence_of(stat.key) for stat in self.objects.list("lease/"))
        fences = [fence for fence in found if fence is not None]
        newest = lineage.newest_fence(fences, ())
        if newest == max(fences, default=0):
            return newest
        # Far from the others: is there a commit that makes it likely?
        newest = lineage.newest_fence(fences, (ref.fence for ref in self.listed()))
        for stray in sorted(fence for fence in fences if fence > newest):
            log.warning(
                "%s/%s is no lease of any attempt, and is passed over; remove it",
                self.uri,
                manifest.lease_key(stray),
            )
        return newest

    def highest_committed(self) -> int:
        """The highest fence that has a commit, 0 if none."""
        return max((ref.fence for ref in self.listed()), default=0)

    def listed(self) -> dict[CommitRef, str]:
        """All commit objects with their etags, counted or not."""
        found: dict[CommitRef, str] = {}
        for stat in self.objects.list("commit/"):
            ref = manifest.ref_of(stat.key)
            if ref is not None and stat.key == manifest.commit_key(ref):
                found[ref] = stat.etag
        return found

    def commits(self) -> list[CommitRef]:
        """The checkpoints that count, newest first, without those marked as damaged."""
        bad = {manifest.ref_of(stat.key) for stat in self.objects.list("bad/")}
        return [ref for ref in self.line() if ref not in bad]

    def line(self) -> list[CommitRef]:
        """The live line, newest first, damaged checkpoints included."""
        listed = self.listed()

        def base_of(own: Sequence[CommitRef]) -> CommitRef | None:
            for ref in own:
                found = (ref, listed[ref])
                if found not in self._bases:
                    with contextlib.suppress(IntegrityError, NotFound):
                        self._bases[found] = self._read(*found).base
                if found in self._bases:
                    return self._bases[found]
            # No commit of this fence can be read, so where it began is unknown: let everything
            # below it count, rather than nothing.
            ref = own[-1]
            lower = [other for other in listed if other.fence < ref.fence]
            return max(lower, key=lambda other: (other.fence, other.step), default=None)

        return lineage.live_line(listed, base_of)

    def pins(self) -> dict[str, manifest.Pin]:
        """All pins by name; `ManifestError` for one that cannot be read, naming it."""
        found: dict[str, manifest.Pin] = {}
        for stat in self.objects.list("tag/"):
            name = manifest.pin_of(stat.key)
            if name is None:
                continue
            try:
                found[name] = manifest.read_pin(self.objects.get(stat.key, limit=2**16))
            except NotFound:
                continue  # just taken away
            except ManifestError as error:
                raise ManifestError(
                    f"R16 {self.uri}/{stat.key}: {error}. Set the pin anew, or delete it."
                ) from error
        return found

    def pin(self, ref: CommitRef, *, name: str | None = None, note: str = "") -> str:
        """Keep a checkpoint whatever the policy says; returns the pin's name.

        A pin of that name moves here. Raises `NotFound` when the checkpoint does not exist, or went
        while it was being pinned, and `ValueError` for a name that cannot be one.
        """
        name = name or str(ref)
        key = manifest.pin_key(name)
        body = manifest.pin_bytes(manifest.Pin(ref=ref, note=note[:2000], at=time.time()))
        self.objects.head(manifest.commit_key(ref))
        for _ in range(10):
            try:
                etag = self.objects.head(key).etag
            except NotFound:
                etag = None
            try:
                self.objects.put(key, body, if_none_match=etag is None, if_match=etag)
            except (PreconditionFailed, Conflict):
                continue  # somebody set the same pin between our look and our write
            break
        else:
            raise StoreError(f"{self.uri}/{key}: 10 others changed the pin first; try again")
        try:
            self.objects.head(manifest.commit_key(ref))
        except NotFound:
            self.objects.delete(key)
            raise
        return name

    def unpin(self, name: str) -> bool:
        """Take a pin away; whether there was one."""
        key = manifest.pin_key(name)
        try:
            self.objects.delete(key, if_match=self.objects.head(key).etag)
        except NotFound:
            return False
        return True

    def read(self, ref: CommitRef) -> Commit:
        """The verified manifest; `IntegrityError`, `VersionError` (R21) or `NotFound`."""
        return self._read(ref, None)

    def _read(self, ref: CommitRef, etag: str | None) -> Commit:
        if etag is not None:
            with self._lock:
                known = self._commits.get((ref, etag))
            if known is not None:
                return known
        key = manifest.commit_key(ref)
        try:
            raw = self.objects.get(key, limit=manifest.MAX_DOCUMENT)
            try:
                commit = manifest.read_commit(raw, ref)
            except ManifestError:
                # Once more, as for data: the wire may have been at fault, and what is marked as
                # damaged is lost.
                raw = self.objects.get(key, limit=manifest.MAX_DOCUMENT)
                commit = manifest.read_commit(raw, ref)
        except ManifestError as error:
            raise IntegrityError(
                f"R16 checkpoint step {ref.step}: {manifest.commit_key(ref)}: {error}."
            ) from error
        if etag is not None:
            with self._lock:
                while len(self._commits) >= 8:
                    del self._commits[next(iter(self._commits))]
                self._commits[ref, etag] = commit
        return commit

    def load(
        self,
        commit: Commit,
        *,
        into: "Mapping[str, Any] | None" = None,
        rank: int | None = None,
        group: "ProcessGroup | None" = None,
    ) -> Restored:
        """Read and verify all tensors of a checkpoint.

        `into` holds tensors to fill in place (any device, `DTensor`s too): a state of the same
        form, or tensors by their path in it. Dtype and shape must match (`ValueError`), and after
        an `IntegrityError` some of them may hold data of the damaged checkpoint. `rank` asks for
        the private state of that rank as well.

        With a `group` of ranks that all load this checkpoint into the same names, each reads a
        share of what is not sharded and they exchange it. Collective; an error of one is raised by
        all. The group must be able to send host memory (gloo).
        """
        # torch is needed only where tensors are, and the command line reads manifests without it.
        from rekindle.checkpoint import loading

        what = f"step {commit.ref.step}"
        rank_state = None
        error: Exception | None = None
        try:
            self.check_sizes(commit, what)
            if rank is not None and rank < commit.world_size:
                part = self._part(commit, rank, what)
                if part.rank_tree is not None:
                    rank_state = loading.load(
                        self.objects,
                        part.objects,
                        part.rank_tensors,
                        part.rank_tree,
                        into={},
                        chunk=part.chunk,
                        what=what,
                    )
        except Exception as failure:
            error = failure
        state = loading.load(
            self.objects,
            commit.objects,
            commit.tensors,
            commit.tree,
            into=into or {},
            chunk=commit.chunk,
            what=what,
            group=group,
            error=error,
        )
        return Restored(
            ref=commit.ref,
            state=state,
            rank_state=rank_state,
            meta=commit.meta,
            world_size=commit.world_size,
        )

    def check_sizes(self, commit: Commit, what: str) -> None:
        """All objects exist with the stored size; what is allocated next is thus really there."""
        prefixes = {entry.key.rpartition("/")[0] + "/" for entry in commit.objects}
        listed = {stat.key: stat.size for prefix in prefixes for stat in self.objects.list(prefix)}
        for entry in commit.objects:
            if listed.get(entry.key) != entry.size:
                found = listed.get(entry.key)
                state = "is missing" if found is None else f"has {found} bytes, not {entry.size}"
                raise IntegrityError(f"R16 checkpoint {what}: object {entry.key} {state}.")

    def _part(self, commit: Commit, rank: int, what: str) -> manifest.Part:
        key = manifest.part_key(commit.ref, rank)
        expected = commit.parts[rank]
        for _ in range(2):  # once more, since the wire may have been at fault
            try:
                raw = self.objects.get(key, limit=manifest.MAX_DOCUMENT)
            except NotFound:
                raise IntegrityError(f"R16 checkpoint {what}: object {key} is missing.") from None
            if len(raw) == expected.size and hashlib.sha256(raw).hexdigest() == expected.sha256:
                return manifest.read_part(raw, commit.ref, rank)
        raise IntegrityError(f"R16 checkpoint {what}: object {key} failed SHA-256.")

    def quarantine(self, ref: CommitRef, reason: str) -> None:
        """Mark a checkpoint as damaged, so that no reader tries it again; idempotent."""
        body = manifest.note_bytes(
            "bad",
            {"step": ref.step, "fence": ref.fence, "reason": reason[:2000], "at": time.time()},
        )
        with contextlib.suppress(PreconditionFailed, Conflict):
            self.objects.put(manifest.bad_key(ref), body, if_none_match=True)

    def restore(
        self, *, into: "Mapping[str, Any] | None" = None, rank: int | None = None
    ) -> tuple[Restored, list[Skipped]] | None:
        """Load the newest good checkpoint, passing over (and marking) damaged ones.

        None if the run has no checkpoint at all; `IntegrityError` if it has some and none is good,
        since starting from nothing would silently throw the training away. For one process; ranks
        of a group must agree on the checkpoint before each of them calls `load`.
        """
        bad: list[tuple[CommitRef, str]] = []
        for ref in self.commits():
            try:
                restored = self.load(self.read(ref), into=into, rank=rank)
            except IntegrityError as error:
                bad.append((ref, str(error)))
                # With read-only credentials there is no mark, but the fallback works all the same.
                with contextlib.suppress(StoreError):
                    self.quarantine(ref, str(error))
            except NotFound:
                continue  # retention of a living writer removed it between listing and reading
            else:
                return restored, [_skip(*item, restored.ref) for item in bad]
        if bad or any(True for _ in self.listed()):
            reasons = " ".join(reason for _, reason in bad) or "all are marked in bad/."
            raise IntegrityError(
                f"R16 no good checkpoint is left in {self.uri}: {reasons} Restore the objects from "
                f"a backup, or choose a new checkpoint URI to begin again."
            )
        return None


def _skip(ref: CommitRef, reason: str, used: CommitRef) -> Skipped:
    lost = ref.step - used.step
    return Skipped(
        ref=ref,
        reason=f"{reason} Falling back to step {used.step} ({lost} steps lost).",
        steps_lost=lost,
    )


__all__ = [
    "Commit",
    "CommitRef",
    "IntegrityError",
    "Lease",
    "LeaseLost",
    "Restored",
    "Skipped",
    "Store",
    "TensorEntry",
    "VersionError",
]
