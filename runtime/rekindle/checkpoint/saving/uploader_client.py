"""The trainer's side of the process that uploads: starts it, hands over snapshots, hears of them.

The process is started when the first snapshot is there, so a run that saves nothing, or little,
does not pay for it. Starting means a fresh interpreter, never `fork`: a copy of a process that has
threads and an initialised GPU is one that may hang. Should it die (the kernel's choice when memory
is short), its saves have failed, the training goes on, and the next save starts another.
"""

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from rekindle import threads
from rekindle.checkpoint.format import manifest
from rekindle.checkpoint.format.manifest import CommitRef
from rekindle.checkpoint.objects import interface
from rekindle.checkpoint.retention import Retention
from rekindle.checkpoint.saving import flush
from rekindle.checkpoint.saving.snapshot import SnapshotMemory
from rekindle.checkpoint.saving.writer import SaveError, SaveProgress, SaveTimeout
from rekindle.checkpoint.store import LeaseLost, Store

log = logging.getLogger(__name__)

END = 0
"""What is sent instead of a snapshot's number when no more will come."""
ENV_START = "REKINDLE_UPLOADER"
"""What the process begins with, as JSON."""

_ERRORS: dict[str, type[Exception]] = {
    kind.__name__: kind
    for kind in (
        LeaseLost,
        SaveError,
        SaveTimeout,
        manifest.IntegrityError,
        manifest.ManifestError,
        manifest.VersionError,
        interface.StoreError,
        interface.NotFound,
        interface.PreconditionFailed,
        interface.Conflict,
        interface.AccessDenied,
        interface.InvalidCredentials,
        interface.NoSuchBucket,
        interface.NoSpace,
        interface.Unreachable,
        interface.RequestRefused,
    )
}


class SaveWatcher(SaveProgress, Protocol):
    """A save's owner, who also learns when nothing more will happen with it."""

    def done(self) -> None:
        """The save has ended, and so has the tidying after it."""
        ...


class Uploader:
    """One such process; the methods may be called from any thread."""

    def __init__(
        self,
        store: Store,
        slots: Sequence[SnapshotMemory],
        *,
        fence: int,
        base: CommitRef | None,
        policy: Retention,
    ) -> None:
        """Start it; raises OSError when that is not possible."""
        assert store.origin is not None
        own, other = socket.socketpair()
        lock = flush.Lock.create(store.uri)
        descriptors = [slot.descriptor for slot in slots]
        start = {
            "socket": other.fileno(),
            "parent": os.getpid(),
            "slots": descriptors,
            "lock": lock.descriptor,
            "store": store.origin,
            "fence": fence,
            "base": None if base is None else [base.step, base.fence],
            "policy": asdict(policy),
        }
        root = str(Path(__file__).parents[3])
        inherited = os.environ.get("PYTHONPATH")
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "rekindle.checkpoint.saving.uploader"],
                # Not as an argument: those are for everybody on the machine to read.
                env={
                    **os.environ,
                    ENV_START: json.dumps(start),
                    "PYTHONPATH": f"{root}{os.pathsep}{inherited}" if inherited else root,
                },
                pass_fds=[fd for fd in (other.fileno(), lock.descriptor, *descriptors) if fd >= 0],
                stdin=subprocess.DEVNULL,
                stdout=2,
                # Whoever kills the trainer's process group leaves this one alone.
                start_new_session=True,
            )
        except OSError:
            own.close()
            raise
        finally:
            other.close()
            lock.close()
        self._connection = own
        self._watchers: dict[int, SaveWatcher] = {}
        self._lock = threading.Lock()
        self._ended = False
        self._lines = own.makefile("rb")
        self._reader = threads.lasting(self._listen, name="rekindle-uploads")

    @property
    def alive(self) -> bool:
        """Whether it can take another snapshot."""
        return not self._ended and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def submit(self, number: int, watcher: SaveWatcher) -> None:
        """Say that a slot holds the snapshot with this number."""
        with self._lock:
            self._watchers[number] = watcher
        self._send(number)
        if self._ended:
            self._fail_all()

    def _send(self, request: int) -> None:
        # A broken pipe is noticed by the reader, which fails what is outstanding.
        with contextlib.suppress(OSError):
            self._connection.sendall(json.dumps(request).encode() + b"\n")

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            for line in self._lines:
                self._hear(json.loads(line))
        self._ended = True
        self._fail_all()

    def _hear(self, event: dict[str, Any]) -> None:
        with self._lock:
            watcher = self._watchers.get(event["number"])
        if watcher is None:
            return
        if event["event"] == "stored":
            watcher.stored()
        elif event["event"] == "committed":
            watcher.committed(event["size"])
        elif event["event"] == "failed":
            kind = _ERRORS.get(event["kind"])
            text = event["message"] if kind else f"{event['kind']}: {event['message']}"
            watcher.failed((kind or SaveError)(text))
        else:
            with self._lock:
                del self._watchers[event["number"]]
            watcher.done()

    def _fail_all(self) -> None:
        while True:
            with self._lock:
                if not self._watchers:
                    return
                # One at a time: an error of one owner costs the others nothing.
                watcher = self._watchers.pop(next(iter(self._watchers)))
            try:
                how = self._end()
                watcher.failed(SaveError(f"the process that uploads checkpoints {how}"))
            finally:
                watcher.done()

    def _end(self) -> str:
        try:
            code = self._process.wait(10)
        except subprocess.TimeoutExpired:
            return "does not answer any more"
        if code == -signal.SIGKILL:
            return "was killed, for example by the kernel for want of memory"
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"

    def abandon(self) -> None:
        """Tell it nothing: it takes the end of this process for its trainer's death."""
        # Python need not warn that it is still there.
        self._process.returncode = 0

    def close(self, timeout: float) -> None:
        """Let it end after what it has been given; kills nothing that is still at work."""
        self._send(END)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout)
        self._reader.join(1.0)
        self._connection.close()
        if self._process.returncode is None:
            # It ends by itself; Python need not warn that it is still there.
            self._process.returncode = 0
