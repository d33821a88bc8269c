"""The process that stores snapshots: `python -m rekindle.checkpoint.saving.uploader`.

It is started with two kinds of descriptors: the slots (`snapshot`), and one end of a socket. Over
the socket the trainer says which slot holds a new snapshot, one line each, and hears what became of
it. Uploading in another process keeps the training's interpreter free, and it outlives the trainer:

    when the socket closes or the trainer's process ends, whatever the reason, the slots are looked
    through once more, every whole snapshot that is not stored yet is stored and, where the parts of
    all ranks are there, committed; then this process ends, at the latest after FLUSH_SECONDS.

No collective is involved, so nothing waits for a dead peer (R24). Whether such a commit still
counts is decided by the rules of `writer` and `lineage`, not here.

It imports neither torch nor numpy: it starts in a fraction of a second and takes little memory. It
leads a session of its own, because the agent kills a failed worker's whole process group, and holds
a lock file while it has work, by which the next attempt knows what to wait for (`flush`).
"""

import contextlib
import json
import logging
import os
import queue
import select
import signal
import socket
import sys
import time
from typing import Any

from rekindle import threads
from rekindle.checkpoint.format.manifest import CommitRef
from rekindle.checkpoint.retention import Best, Retention
from rekindle.checkpoint.saving import flush
from rekindle.checkpoint.saving.snapshot import SnapshotMemory
from rekindle.checkpoint.saving.uploader_client import END, ENV_START
from rekindle.checkpoint.saving.writer import FLUSH_SECONDS, Task, Writer
from rekindle.checkpoint.store import Store

log = logging.getLogger("rekindle.checkpoint")


class Channel:
    """The trainer: its requests, and whether it lives. A thread listens all the time."""

    def __init__(self, connection: socket.socket, parent: int) -> None:
        self._connection = connection
        self._parent = parent
        self._requests: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._buffer = b""
        self.lost_at: float | None = None
        """When the trainer was found to have gone without a word."""
        self._poller = select.poll()
        self._poller.register(connection, select.POLLIN)
        if hasattr(os, "pidfd_open"):
            # Without it (an old kernel) the parent is looked for every now and then.
            with contextlib.suppress(OSError):
                self._poller.register(os.pidfd_open(parent), select.POLLIN)
        threads.lasting(self._listen, name="trainer")

    def orphaned(self) -> float | None:
        """`lost_at` as of now: the trainer is looked for at once.

        The thread that listens may be behind on a busy machine, and whoever asks decides by the
        answer whether a snapshot is an orphan's, to be committed, or a zombie's, to be dropped.
        """
        if self.lost_at is None and os.getppid() != self._parent:
            self.lost_at = time.monotonic()
        return self.lost_at

    def request(self, *, wait: bool) -> int | None:
        """The number of the next snapshot, END when no more will come; None when none is there."""
        try:
            return self._requests.get(block=wait)
        except queue.Empty:
            return None

    def _listen(self) -> None:
        # What came with a line that made no sense may be waiting still.
        closed = self._take(b"")
        while not closed:
            ready = dict(self._poller.poll(1000))
            if self._connection.fileno() in ready:
                data = b""
                # A trainer that dies with answers unread resets the connection.
                with contextlib.suppress(ConnectionError):
                    data = self._connection.recv(2**16)
                closed = self._take(data)
                if data:
                    continue
                self.lost_at = time.monotonic()
            elif ready or os.getppid() != self._parent:
                # A forked child of the trainer may keep its end of the socket open.
                self.lost_at = time.monotonic()
            if self.lost_at is not None:
                self._requests.put(END)
                time.sleep(FLUSH_SECONDS)
                os._exit(1)

    def _take(self, data: bytes) -> bool:
        """Take in what has come; whether the trainer says that no more will."""
        self._buffer += data
        number = None
        while b"\n" in self._buffer:
            line, _, self._buffer = self._buffer.partition(b"\n")
            number = int(line)
            self._requests.put(number)
        return number == END

    def send(self, event: str, number: int, **values: Any) -> None:
        """Tell the trainer, if it still listens."""
        line = json.dumps({"event": event, "number": number, **values}).encode() + b"\n"
        with contextlib.suppress(OSError):
            self._connection.sendall(line)


class _Report:
    def __init__(self, channel: Channel, number: int, step: int) -> None:
        self._channel = channel
        self._number = number
        self._step = step

    def stored(self) -> None:
        self._channel.send("stored", self._number)

    def committed(self, size: int) -> None:
        self._channel.send("committed", self._number, size=size)
        if self._channel.lost_at is not None:
            log.warning("checkpoint of step %d was committed after its trainer died", self._step)

    def failed(self, error: Exception) -> None:
        self._channel.send("failed", self._number, kind=type(error).__name__, message=str(error))


def serve(slots: list[SnapshotMemory], channel: Channel, writer: Writer, lock: flush.Lock) -> None:
    """Store snapshots until the trainer has no more, or is gone and all are flushed."""
    writer.orphaned = channel.orphaned
    done = 0
    while True:
        number = channel.request(wait=False)
        if number is None:
            lock.release()
            number = channel.request(wait=True)
            lock.hold()
        if number is None or number == END:
            break
        done = _handle(number, slots, channel, writer)
    if channel.lost_at is not None:
        numbers = [found[0] for slot in slots if (found := slot.read()) is not None]
        for number in sorted(number for number in numbers if number > done):
            _handle(number, slots, channel, writer)


def _handle(number: int, slots: list[SnapshotMemory], channel: Channel, writer: Writer) -> int:
    for slot in slots:
        found = slot.read()
        if found is None or found[0] != number:
            continue
        task = Task.from_json(json.loads(found[1]))
        memory, at = [], 0
        for plan in task.plans:
            memory.append(found[2][at : at + plan.size])
            at += plan.size
        writer.run(task, memory, _Report(channel, number, task.ref.step))
    channel.send("done", number)
    return number


def main() -> int:
    """Run with the JSON document that `background` left in the environment."""
    # Only the end of the trainer ends this process; a terminal's Ctrl-C is the trainer's business.
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    start = json.loads(os.environ.pop(ENV_START))
    channel = Channel(socket.socket(fileno=start["socket"]), start["parent"])
    policy = start["policy"]
    base = start["base"]
    writer = Writer(
        Store.open(**start["store"]),
        fence=start["fence"],
        base=None if base is None else CommitRef(step=base[0], fence=base[1]),
        policy=Retention(**{**policy, "best": tuple(Best(**best) for best in policy["best"])}),
    )
    slots = [SnapshotMemory(descriptor) for descriptor in start["slots"]]
    serve(slots, channel, writer, flush.Lock(start["lock"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
