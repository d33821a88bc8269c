"""The state of a run out of the memory of its members, before anybody asks the store.

When workers come up, each pod says which copies (`peer_memory.store`) lie in its memory, and all
ranks choose alike, by a pure function: the newest copy that some member holds, unless a newer
commit is known of. Members that lack it (newcomers, or pods that died in the middle of making it)
get it from one that has it, point to point over the group for control, from mapped memory into
mapped memory in pieces of bounded size; givers take turns. Afterwards every pod holds it, so the
next failure may come at once.

Nothing is believed: givers verify what they are about to give, receivers what they got. A copy that
turns out damaged is left out, and the next best one is chosen. When nothing is left, or a member
has no room, all ranks say so together and the store decides, as on the first start.
"""

import socket
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from rekindle.peer_memory.store import Copy, HostMemory, KnownCommit, Label, Serial
from rekindle.ranks.distributed import World

PIECE = 32 * 2**20
"""Bytes that travel at once."""


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What one rank says of the memory of its pod."""

    rank: int
    seat: int
    """The rank that holds the copies of this one's pod; itself where the pod has no memory."""
    pod: str
    able: bool
    """Whether the pod has memory that outlives its workers."""
    labels: tuple[Label, ...] = ()
    """Newest first; those of the seat only, so that each slot is offered once."""
    good: tuple[bool, ...] = ()
    """Of the first labels, whether they match their checksums; the others are not verified."""
    known: KnownCommit | None = None


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What all ranks begin from."""

    label: Label
    holders: tuple[int, ...]
    """Seats that have it."""
    sources: Mapping[int, int]
    """For each seat that lacks it, the one that gives it."""


@dataclass(frozen=True, kw_only=True)
class Recalled:
    """A copy that every rank can read where it is."""

    copy: Copy
    giver: str | None
    """The pod that it came from; None where it was here."""


def choose(
    offers: Sequence[Offer], bad: Collection[tuple[int, Serial]] = frozenset()
) -> Choice | None:
    """The newest copy that some seat holds, or None when there is none or a commit is newer.

    `bad` are copies, by seat, that were found damaged in the meantime. Copies of one serial are the
    same on all pods; should they differ all the same, those that most have count, and the others
    are replaced.
    """
    held = [
        (offer.seat, label)
        for offer in offers
        for label, good in zip(offer.labels, _verdicts(offer), strict=True)
        if good is not False and (offer.seat, label.serial) not in bad
    ]
    if not held:
        return None
    serial = max(label.serial for _, label in held)
    newest = sorted((item for item in held if item[1].serial == serial), key=lambda item: item[0])
    labels = [label for _, label in newest]
    label = max(labels, key=labels.count)
    commits = [offer.known for offer in offers if offer.known is not None]
    if any(
        (known.generation, known.ref.step) > (serial.generation, label.step) for known in commits
    ):
        return None
    holders = tuple(seat for seat, other in newest if other == label)
    lacking = sorted({offer.seat for offer in offers} - set(holders))
    sources = {seat: holders[index % len(holders)] for index, seat in enumerate(lacking)}
    return Choice(label=label, holders=holders, sources=sources)


def _verdicts(offer: Offer) -> list[bool | None]:
    return [*offer.good, *[None] * (len(offer.labels) - len(offer.good))]


class Recall:
    """One round's look at the memory of all members; `offers` is the same on all ranks."""

    def __init__(
        self,
        world: World,
        memory: HostMemory | None,
        whose: str,
        pod: str,
        origin: str | None = None,
    ) -> None:
        """Gather what there is, of runs that were begun with `origin` if one is given; collective.

        `memory` is that of this rank's pod, None if it has none.
        """
        self._world, self._whose = world, whose
        self._borrowed = memory is None
        seat = world.rank - world.local_rank if memory is not None else world.rank
        seated = seat == world.rank
        self.memory = memory
        copies = memory.copies(whose) if memory is not None and seated else []
        copies = [copy for copy in copies if origin is None or copy.label.origin == origin]
        self._verified = {copy.label.serial: copy.good() for copy in copies[:1]}
        mine = Offer(
            rank=world.rank,
            seat=seat,
            pod=pod,
            able=memory is not None,
            labels=tuple(copy.label for copy in copies),
            good=tuple(self._verified.values()),
            known=None if memory is None or not seated else memory.known(whose),
        )
        self.offers = world.gather(mine)
        self._seat = seat

    @property
    def able(self) -> bool:
        """Whether any pod keeps copies."""
        return any(offer.able for offer in self.offers)

    @property
    def generation(self) -> int:
        """A number that is higher than that of any copy or commit that was offered."""
        made = [label.serial.generation for offer in self.offers for label in offer.labels]
        heard = [offer.known.generation for offer in self.offers if offer.known is not None]
        return 1 + max([0, *made, *heard])

    def recall(self) -> Recalled | None:
        """The copy that all begin from, on every rank; None for the store. Collective."""
        bad: set[tuple[int, Serial]] = set()
        while (choice := choose(self.offers, bad)) is not None:
            if choice.sources or not self._all_verified(choice):
                damaged, room = self._prepare(choice)
                if damaged:
                    bad |= {(seat, choice.label.serial) for seat in damaged}
                    continue
                if not room:
                    return None
            if choice.sources and not all(self._world.gather(self._exchange(choice))):
                return None
            copy = self._mine(choice.label)
            if copy is None:
                raise RuntimeError(
                    "the copy of the state that this pod has offered is not in its memory any more"
                )
            assert self.memory is not None
            self.memory.keep(copy)
            giver = choice.sources.get(self._seat)
            return Recalled(copy=copy, giver=None if giver is None else self.offers[giver].pod)
        return None

    def release(self) -> None:
        """Give memory back that was made for this round only."""
        if self._borrowed and self.memory is not None:
            self.memory.close()
            self.memory = None

    def _all_verified(self, choice: Choice) -> bool:
        return all(
            self.offers[seat].good and self.offers[seat].labels[0] == choice.label
            for seat in choice.holders
        )

    def _prepare(self, choice: Choice) -> tuple[list[int], bool]:
        """Verify what is given and make room for what comes; who is damaged, and is there room."""
        good, room = True, True
        serial = choice.label.serial
        if self._world.rank in choice.holders and serial not in self._verified:
            copy = self._mine(choice.label)
            self._verified[serial] = copy is not None and copy.good()
        if self._world.rank in choice.holders:
            good = self._verified[serial]
        if self._world.rank in choice.sources:
            try:
                if self.memory is None:
                    self.memory = HostMemory.create()
                room = self.memory.reserve(choice.label.size)
            except OSError:
                room = False
        views = self._world.gather((good, room))
        damaged = [rank for rank, (fine, _) in enumerate(views) if not fine]
        return damaged, all(enough for _, enough in views)

    def _exchange(self, choice: Choice) -> bool:
        """Give or take; whether what came is whole."""
        rank, group = self._world.rank, self._world.control
        if rank in choice.sources:
            assert self.memory is not None
            target = self.memory.receive(choice.label.size)
            ticket = _take(target, choice.sources[rank], group)
            return self.memory.received(ticket)
        takers = [seat for seat, giver in choice.sources.items() if giver == rank]
        if takers:
            copy = self._mine(choice.label)
            assert copy is not None, "verified a moment ago"
            for taker in takers:
                _give(copy, taker, group)
        return True

    def _mine(self, label: Label) -> Copy | None:
        """The copy as it lies in the memory of this rank's pod."""
        if self.memory is None:
            return None
        return next((c for c in self.memory.copies(self._whose) if c.label == label), None)


def _give(copy: Copy, taker: int, group: "dist.ProcessGroup | None") -> None:
    head = torch.frombuffer(bytearray(copy.ticket), dtype=torch.uint8)
    dist.send(torch.tensor([len(head)]), taker, group=group)
    dist.send(head, taker, group=group)
    for piece in _pieces(copy.payload):
        dist.send(piece, taker, group=group)


def _take(target: memoryview, giver: int, group: "dist.ProcessGroup | None") -> bytes:
    size = torch.zeros(1, dtype=torch.int64)
    dist.recv(size, giver, group=group)
    head = torch.empty(int(size), dtype=torch.uint8)
    dist.recv(head, giver, group=group)
    for piece in _pieces(target):
        dist.recv(piece, giver, group=group)
    return head.numpy().tobytes()


def _pieces(memory: memoryview) -> list[torch.Tensor]:
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    return [whole[at : at + PIECE] for at in range(0, len(whole), PIECE)]


def pod_name(named: str | None) -> str:
    """This pod, for people."""
    return named or socket.gethostname()
