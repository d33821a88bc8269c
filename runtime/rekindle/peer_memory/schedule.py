"""Copies of the state in the pod's memory while training goes on: when they are made, and how.

At every save, and in between so often that the copies cost a fixed small share of the time and that
little is lost with the workers. All ranks have to copy after the same step, and none of them may
look at a clock before every step; so with each copy they exchange what the last one has cost and
how long steps take, and from the same numbers each computes the step of the next one. Between
copies there is one comparison per step, and no collective.

What is exchanged as well is what makes every copy whole: the rank states of all ranks, and rank 0's
word on everything that is not a tensor. Tensors are the same everywhere and need not travel.

Slots are touched in a thread before they are used for the first time, since the kernel takes longer
to clear new pages than the copy does; until then this pod leaves copies out, the others need not.
Checksums are computed in a thread as well. Nothing here waits for the store.

Of a sharded state (FSDP2, tensor parallel) each rank holds a part that no other one has, which only
the store puts together again. Such a run keeps no copies and begins from its newest commit.
"""

import contextlib
import json
import math
import threading
import time
from typing import Any

from rekindle import threads
from rekindle.checkpoint.format import encoding
from rekindle.checkpoint.format.manifest import CommitRef
from rekindle.checkpoint.format.tensors import flatten, nbytes
from rekindle.peer_memory.store import (
    Ancestry,
    CopyLayout,
    HostMemory,
    KnownCommit,
    Label,
    Serial,
    pack,
    planned,
)
from rekindle.ranks.distributed import World

SHARE = 0.005
"""Of the time, that copies may take."""
LEAST_SECONDS = 1.0
"""Of training between two copies, however little they cost."""
ROOM_SECONDS = 60.0
"""For memory to be had for a copy; one that comes later is left out."""
_SMALL = 8 * 2**20
"""Bytes of a slot that is touched at once, within a few milliseconds."""
_RATE = 4e9
"""Bytes per second that a first copy is taken to make."""
_NEVER = 2**62


def steps_between(cost: float, step_seconds: float) -> int:
    """Steps from one copy to the next, when one costs `cost` seconds and a step `step_seconds`."""
    seconds = max(LEAST_SECONDS, cost / SHARE)
    return max(1, math.ceil(seconds / max(step_seconds, 1e-6)))


class Keeper:
    """Makes the copies of one attempt; the same calls on all ranks."""

    def __init__(
        self, world: World, memory: HostMemory | None, whose: str, generation: int
    ) -> None:
        """Take this rank's view of its pod's memory; the pod's first rank is the one that fills it.

        `memory` is None on pods that have none, which take part in what is exchanged all the same.
        """
        self._world = world
        self._memory = memory if world.local_rank == 0 else None
        self._whose = whose
        self._generation = generation
        self._number = 0
        self._pace = 1
        self._plan: CopyLayout | None = None
        self._toucher: threading.Thread | None = None
        self._cost = (0.0, 0.0)
        self._seen: tuple[int, float] | None = None
        self._held: int | None = None
        self.due_at = _NEVER
        """The step before which the next copy is made."""

    def begin(self, step: int, productive: float, label: Label | None) -> None:
        """Training begins at a step, from a copy or (None) from something else."""
        self._seen = (step, productive)
        self._pace = 1 if label is None else label.pace
        self._held = None if label is None else step
        self.due_at = step + self._pace

    def take(
        self,
        step: int,
        state: Any,
        rank_state: Any,
        meta: dict[str, Any],
        *,
        productive: float,
        line: Ancestry,
        origin: str | None,
        began: float,
        must: bool = False,
    ) -> None:
        """Copy the state that holds before the next step; collective.

        `productive` are the seconds of all steps so far, `began` is when collecting the state
        began (`time.perf_counter`), which counts as cost. With `must` a slot that is not ready is
        waited for. Raises `EncodingError` for what cannot be stored.
        """
        if self.due_at == _NEVER:
            return
        flat = flatten(state)
        if flat.boxes:
            # Each rank has another part of the whole; only the store puts those together.
            self.due_at = _NEVER
            return
        size = sum(map(nbytes, flat.tensors.values()))
        self._plan = planned(flat, self._plan)
        told = None
        if self._world.first:
            digest = self._plan.digest
            told = (_text(flat.tree), _text(encoding.encode(meta, "meta")), digest)
        seconds = self._step_seconds(step, productive)
        parts = self._world.gather((pack(rank_state), self._cost, seconds))
        tree, words, digest = self._world.share(told) or (b"", b"", "")
        # Who comes last has waited for nobody, and nobody takes less than the copying itself.
        costs = [min(part[1][0] for part in parts), *(part[1][1] for part in parts)]
        if not self._number:
            costs.append(size / _RATE)
        pace = steps_between(max(costs), min(part[2] for part in parts) or LEAST_SECONDS)
        self._number += 1
        blobs = [part[0] for part in parts]
        writing = time.perf_counter()
        if self._memory is not None and digest != self._plan.digest:
            # Rank 0's words would not fit these tensors; pods where they do have the copy.
            self._memory.clear()
        elif self._memory is not None:
            whole = self._plan.size + sum(map(len, blobs)) + 64 * len(blobs) + len(tree + words)
            if self._room(whole, wait=must):
                label = Label(
                    identity=self._whose,
                    serial=Serial(generation=self._generation, number=self._number),
                    step=step,
                    world_size=self._world.size,
                    origin=origin,
                    line=line,
                    pace=pace,
                )
                # A pod that cannot get more memory leaves the copy out; the one before remains.
                with contextlib.suppress(OSError):
                    self._memory.write(label, flat, self._plan, blobs, tree, words, later=not must)
                    self._held = step
        self._pace, self.due_at = pace, step + pace
        self._seen = (step, productive)
        now = time.perf_counter()
        self._cost = (now - began, now - writing)

    def passed(self, batches: int) -> None:
        """So many batches went by between two steps: work that is not to be lost either."""
        if self._seen is not None:
            self.due_at = max(self._seen[0] + 1, self.due_at - batches)

    def holds(self, step: int) -> bool:
        """Whether this rank keeps the copy of a step in its pod's memory."""
        return self._memory is not None and self._held == step

    def note(self, ref: CommitRef) -> None:
        """A commit is durable; called from the saver's thread."""
        if self._memory is not None:
            self._memory.note(self._whose, KnownCommit(generation=self._generation, ref=ref))

    def settle(self) -> None:
        """Wait until the newest copy counts."""
        if self._memory is not None:
            self._memory.settle()

    def forget(self) -> None:
        """Training goes back to an older step: copies of newer ones are no part of it any more."""
        if self._memory is not None:
            self._memory.clear()
        self._generation += 1
        self._number, self._held = 0, None

    def _step_seconds(self, step: int, productive: float) -> float:
        """Of a step since the last copy; 0 when there was none."""
        if self._seen is None or step <= self._seen[0]:
            return 0.0
        return (productive - self._seen[1]) / (step - self._seen[0])

    def _room(self, size: int, *, wait: bool) -> bool:
        """Whether a slot takes so many bytes; makes it so in a thread otherwise."""
        memory = self._memory
        assert memory is not None
        if self._toucher is not None:
            self._toucher.join(ROOM_SECONDS if wait else 0.0)
            if self._toucher.is_alive():
                return False
            self._toucher = None
        if size <= memory.ready:
            return True
        if wait or size <= _SMALL:
            return memory.reserve(size)
        self._toucher = threads.task(lambda: memory.reserve(size), name="rekindle-touch-copies")
        return False


def _text(value: encoding.Json) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
