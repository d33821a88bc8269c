"""One run, one job: of several jobs whose checkpoints lie in one place, one trains.

Two jobs that write one run would take its lease from each other again and again, and each would be
told that a peer was lost. So the place is what a job holds from its beginning to its end, also
while it is suspended; another one that names the same place waits, without pods, and begins when
the first has ended or is deleted. Which of them is the first is decided by what the statuses hold
and which pods there are, and so is the same for the next operator: whoever has begun, and among
those that have not, whoever asks to run and is the oldest.

The same path of a file system is the same place only where the volume is known to be the same.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rekindle.api import TRAINER_CONTAINER

if TYPE_CHECKING:
    from rekindle.api.spec import TrainingJob
    from rekindle_operator.status.status import JobRecord

IN_USE = "CheckpointInUse"
"""Reason of a job that waits for another one."""

Place = tuple[str, ...]
Key = tuple[str, str]
"""Namespace and name of a job."""


@dataclass(frozen=True, kw_only=True)
class Use:
    """A job that has not ended, and the place of its checkpoints."""

    key: Key
    place: Place
    uri: str
    created_at: float
    began_at: float | None = None
    suspended: bool = False

    @property
    def turn(self) -> tuple[bool, float, bool, float, Key]:
        """Whoever has the lowest holds the place."""
        begun = self.began_at is not None
        return (not begun, self.began_at or 0.0, self.suspended, self.created_at, self.key)


def use_of(
    job: "TrainingJob", record: "JobRecord", *, ended: bool, first_pod: float | None = None
) -> Use | None:
    """The use that a job makes of a place; None when it has ended or nobody can tell the place.

    ``first_pod`` is when the first of its pods was made that live. A job that has one has begun,
    also where its operator died before it could write that down.
    """
    place = None if ended else place_of(job)
    if place is None:
        return None
    return Use(
        key=(job.namespace, job.name),
        place=place,
        uri=job.checkpoint.uri,
        created_at=job.created_at,
        began_at=first_pod if record.start_time is None else record.start_time,
        suspended=job.suspend,
    )


def place_of(job: "TrainingJob") -> Place | None:
    """Where the checkpoints of a job lie, alike for all jobs that mean the same place."""
    scheme, separator, rest = job.checkpoint.uri.partition("://")
    rest = rest.rstrip("/")
    if separator and scheme.lower() == "s3":
        return ("s3", (job.checkpoint.endpoint_url or "").rstrip("/"), rest)
    if separator and scheme.lower() != "file":
        return None
    path = rest if separator else job.checkpoint.uri.rstrip("/")
    return _on_volume(job.namespace, job.template.get("spec") or {}, path)


def _on_volume(namespace: str, pod: Mapping[str, Any], path: str) -> Place | None:
    containers = pod.get("containers") or ()
    trainer: Mapping[str, Any] = next(
        (one for one in containers if one.get("name") == TRAINER_CONTAINER), {}
    )
    mounts = [
        mount
        for mount in trainer.get("volumeMounts") or ()
        if f"{path}/".startswith(f"{mount['mountPath'].rstrip('/')}/")
    ]
    if not mounts:
        return None
    mount = max(mounts, key=lambda mount: len(mount["mountPath"].rstrip("/")))
    volumes = pod.get("volumes") or ()
    volume: Mapping[str, Any] = next(
        (one for one in volumes if one.get("name") == mount["name"]), {}
    )
    inside = (str(mount.get("subPath") or ""), path[len(mount["mountPath"].rstrip("/")) :])
    if claim := (volume.get("persistentVolumeClaim") or {}).get("claimName"):
        return ("claim", namespace, str(claim), *inside)
    if nfs := volume.get("nfs"):
        return ("nfs", str(nfs.get("server")), str(nfs.get("path")), *inside)
    return None


class RunClaims:
    """Which jobs use which places, as far as this process has seen; filled before anybody asks."""

    def __init__(self, wake: Callable[[Key], object]) -> None:
        """``wake`` is called with each job for which a change makes a difference."""
        self._wake = wake
        self._by_job: dict[Key, Use] = {}
        self._by_place: dict[Place, dict[Key, Use]] = {}

    def note(self, key: Key, use: Use | None) -> None:
        """Take over what a job uses now, None for nothing."""
        before = self._by_job.get(key)
        if use == before:
            return
        if before is not None:
            del self._by_job[key]
            others = self._by_place[before.place]
            del others[key]
            if not others:
                del self._by_place[before.place]
        if use is not None:
            self._by_job[key] = use
            self._by_place.setdefault(use.place, {})[key] = use
        for place in {one.place for one in (before, use) if one is not None}:
            for other in [k for k in self._by_place.get(place, {}) if k != key]:
                self._wake(other)

    def holder(self, key: Key) -> Use | None:
        """The use that this job has to wait for; None when it is its turn."""
        own = self._by_job.get(key)
        if own is None:
            return None
        first = min(self._by_place[own.place].values(), key=lambda use: use.turn)
        return None if first.key == key else first


def words(holder: Use, when: str | None) -> str:
    """Why a job waits; ``when`` the other one began."""
    since = f", which has had it since {when}" if when else ", which was there first"
    return (
        f"{holder.uri} is in use by TrainingJob {'/'.join(holder.key)}{since}; this job begins "
        f"when that one has ended or is deleted. To run both, give each a spec.checkpoint.uri of "
        f"its own"
    )
