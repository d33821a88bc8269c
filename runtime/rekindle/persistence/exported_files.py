"""Files beside the commits: a checkpoint as Lightning would have written it, under a path.

A run goes on from its commits, and a file is a copy of one of them for people and other programs.
So it is written after the commit, by a thread of rank 0, from the store, and under its name only
once it is complete. What was asked for and is not there when a run goes on (the process died in
between) is made anew. A file that cannot be written is said and costs the run nothing.
"""

import contextlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue

from rekindle import threads
from rekindle.checkpoint import CommitRef, Restored, Store
from rekindle.interop import lightning_file
from rekindle.model.hyperparameters import recalled


@dataclass(frozen=True, kw_only=True)
class FileJob:
    """What becomes of files with the commit of a step."""

    step: int
    write: dict[str, bool] = field(default_factory=dict)
    """Path -> whether it holds the weights only."""
    links: dict[str, str] = field(default_factory=dict)
    """Path -> the file that it is a link to."""
    remove: tuple[str, ...] = ()
    repair: bool = False
    """Whether only what is not there is written."""
    done: Callable[[], None] | None = None
    """Called once the files are there, from the thread that writes them."""


class ExportedFiles:
    """Writes the files of one run; of use on rank 0."""

    def __init__(self, store: Callable[[], Store], say: Callable[[str], None]) -> None:
        self._store, self._say = store, say
        self._waiting: list[FileJob] = []
        self._due: SimpleQueue[tuple[FileJob, CommitRef | None]] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._open = 0
        self._changed = threading.Condition()

    def plan(self, job: FileJob) -> None:
        """Do it as soon as its step is committed."""
        with self._changed:
            self._waiting.append(job)

    def committed(self, ref: CommitRef) -> None:
        """A step is committed; called from the saver's thread."""
        with self._changed:
            due = [job for job in self._waiting if job.step <= ref.step or job.repair]
            self._waiting = [job for job in self._waiting if job not in due]
        for job in due:
            self._begin(job, ref if job.step == ref.step else None)

    def _begin(self, job: FileJob, ref: CommitRef | None) -> None:
        with self._changed:
            self._open += 1
            if self._thread is None:
                self._thread = threads.task(self._work, name="rekindle-files")
        self._due.put((job, ref))

    def _work(self) -> None:
        while True:
            job, ref = self._due.get()
            try:
                self._do(job, ref)
            except Exception as error:
                paths = ", ".join([*job.write, *job.links]) or ", ".join(job.remove)
                self._say(f"{paths}: not written: {type(error).__name__}: {error}")
            else:
                self._tell(job)
            with self._changed:
                self._open -= 1
                self._changed.notify_all()
                if not self._open:
                    self._thread = None
                    return

    def _tell(self, job: FileJob) -> None:
        try:
            if job.done is not None:
                job.done()
        except Exception as error:
            # A logger's own code, about a file that is there; no run depends on it.
            self._say(f"after_save_checkpoint failed: {type(error).__name__}: {error}")

    def _do(self, job: FileJob, ref: CommitRef | None) -> None:
        missing = [p for p in job.write if not (job.repair and os.path.exists(p))]
        if missing:
            restored = self._load(job.step, ref)
            for path in missing:
                weights = job.write[path]
                content = lightning_file.view(
                    restored.state, restored.meta, recalled, weights_only=weights
                )
                os.makedirs(os.path.dirname(path), exist_ok=True)
                whole = None if weights else restored
                lightning_file.write(path, content, meta=restored.meta, state=whole)
        for path, target in job.links.items():
            if not (job.repair and os.path.lexists(path)):
                _link(path, target)
        for path in job.remove:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def _load(self, step: int, ref: CommitRef | None) -> Restored:
        store = self._store()
        if ref is None:
            ref = next((one for one in store.commits() if one.step == step), None)
        if ref is None:
            raise FileNotFoundError(f"the commit of step {step} is not there any more")
        return store.load(store.read(ref))

    def settle(self, timeout: float | None = None) -> None:
        """Wait until everything that is due is done, at most so many seconds."""
        with self._changed:
            due = [job for job in self._waiting if job.repair]
            self._waiting = [job for job in self._waiting if not job.repair]
        for job in due:
            self._begin(job, None)
        with self._changed:
            self._changed.wait_for(lambda: not self._open, timeout)


def _link(path: str, target: str) -> None:
    """Let a path lead to a file beside it."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    unfinished = f"{path}.unfinished"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(unfinished)
    os.symlink(os.path.relpath(target, os.path.dirname(path)), unfinished)
    os.replace(unfinished, path)
