"""Following one job: successive snapshots from watches on the job and its pods.

Two threads keep a copy of one collection each, by list and watch, so that an unchanged cluster
costs nothing and a change is seen at once. The reader takes a snapshot whenever something changed,
at most a few times a second: a view needs no more, and on a laptop the cores are the training's.
When the server is away the copies stay as they were and the threads try again with back-off; that
is reported as `lost_for`, so that a view can say it instead of standing still.
"""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Self

from rekindle.api import LABEL_JOB
from rekindle_cli.jobs.client import Api, Forgotten, ServerError, Unavailable, jobs_path, pods_path
from rekindle_cli.jobs.rounds import PodJoined, RoundView, assemble, joined
from rekindle_cli.jobs.snapshot import JobSnapshot

_PAUSE = 0.25
"""Least seconds between two snapshots."""
_LOG_LINES = 400
"""How far back a pod's log is searched for the round that it has just joined."""


class _Copy:
    """One collection, kept up to date by a thread."""

    def __init__(
        self, api: Api, path: str, query: dict[str, str], changed: threading.Event
    ) -> None:
        self._api, self._path, self._query = api, path, query
        self._changed = changed
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._items: dict[str, dict[str, Any]] = {}
        self._deleted: list[dict[str, Any]] = []
        self.synced = threading.Event()
        self.lost_since: float | None = None
        self._thread = threading.Thread(target=self._run, name=f"follow {path}", daemon=True)
        self._thread.start()

    def items(self) -> list[dict[str, Any]]:
        """The objects as they are now."""
        with self._lock:
            return list(self._items.values())

    def deleted(self) -> list[dict[str, Any]]:
        """The objects that were deleted since the last call, as they were at their end."""
        with self._lock:
            found, self._deleted = self._deleted, []
            return found

    def stop(self) -> None:
        """Tell the thread to end; it is a daemon and may sit in a read for a moment longer."""
        self._stop.set()

    def _run(self) -> None:
        delay = 0.2
        while not self._stop.is_set():
            try:
                version = self._list()
                delay = 0.2
                # Each minute the server ends the watch and a list follows: what a watch may have
                # lost is then seen after all.
                self._watch(version)
            except Forgotten:
                continue
            except (Unavailable, ServerError):
                self.lost_since = self.lost_since or time.monotonic()
                self._stop.wait(delay)
                delay = min(delay * 2, 5.0)

    def _list(self) -> str:
        answer = self._api.get(self._path, self._query)
        with self._lock:
            self._items = {item["metadata"]["uid"]: item for item in answer.get("items") or ()}
        self._told()
        return str(answer["metadata"]["resourceVersion"])

    def _watch(self, version: str) -> None:
        for event in self._api.watch(self._path, self._query, version, self._stop):
            item = event["object"]
            if event["type"] == "BOOKMARK":
                continue
            uid = item["metadata"]["uid"]
            with self._lock:
                if event["type"] == "DELETED":
                    self._items.pop(uid, None)
                    self._deleted.append(item)
                else:
                    self._items[uid] = item
            self._told()

    def _told(self) -> None:
        self.lost_since = None
        self.synced.set()
        self._changed.set()


class _Rounds:
    """The rounds so far; logs are read only while the newest round is not known whole."""

    def __init__(self, api: Api, namespace: str) -> None:
        self._api = api
        self._namespace = namespace
        self._words: dict[tuple[int, str], PodJoined] = {}

    def of(self, seen: JobSnapshot) -> tuple[RoundView, ...]:
        """What is known, after asking the pods about the newest round if need be."""
        known = assemble(self._words.values())
        newest = seen.job.round if seen.job is not None else None
        if not newest or any(found.number == newest and found.whole for found in known):
            return known
        for pod in seen.pods:
            if pod.phase == "Pending" or (newest, pod.name) in self._words:
                continue
            log = self._api.log_tail(self._namespace, pod.name, _LOG_LINES, timestamps=True)
            for word in joined(pod.name, log):
                self._words[word.number, word.pod] = word
        return assemble(self._words.values())


class Follower:
    """The snapshots of one job; a context manager that ends its threads."""

    def __init__(self, api: Api, namespace: str, name: str) -> None:
        self._changed = threading.Event()
        self._jobs = _Copy(
            api, jobs_path(namespace), {"fieldSelector": f"metadata.name={name}"}, self._changed
        )
        self._pods = _Copy(
            api,
            pods_path(namespace),
            {"labelSelector": f"{LABEL_JOB}={name}"},
            self._changed,
        )
        self._copies = (self._jobs, self._pods)
        self._rounds = _Rounds(api, namespace)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for copy in self._copies:
            copy.stop()

    def ready(self, seconds: float) -> bool:
        """Wait until job and pods have been listed once."""
        end = time.monotonic() + seconds
        return all(copy.synced.wait(max(0.0, end - time.monotonic())) for copy in self._copies)

    @property
    def lost_for(self) -> float:
        """Seconds since the server was last reached, 0 while it is."""
        since = [copy.lost_since for copy in self._copies if copy.lost_since]
        return time.monotonic() - min(since) if since else 0.0

    def now(self) -> JobSnapshot:
        """The newest that is known."""
        jobs = self._jobs.items()
        seen = JobSnapshot.read(
            at=datetime.now(UTC),
            job=jobs[0] if jobs else None,
            pods=self._pods.items(),
            gone=self._pods.deleted(),
        )
        return replace(seen, rounds=self._rounds.of(seen))

    def snapshots(self, tick: float = 1.0) -> Iterator[JobSnapshot]:
        """A snapshot after each change, and one every `tick` seconds without; never ends itself."""
        self.ready(10.0)
        while True:
            self._changed.clear()
            yield self.now()
            time.sleep(_PAUSE)
            self._changed.wait(max(0.0, tick - _PAUSE))
