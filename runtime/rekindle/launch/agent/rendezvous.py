"""The backend ``rekindle`` of torch's elastic rendezvous: the operator has decided already.

torch's own rendezvous finds out who is alive by waiting: for late comers, for keep-alives that
stay away. Here a round arrives complete, with all members in rank order and the store's address,
so the barrier is reduced to taking one's place. Nobody waits for anybody: a member that is late
is late for the process group, not for this.

The agent of ``rekindle.launch`` joins only when a round is there, so for it ``next_rendezvous``
never blocks for long. Under plain ``torchrun --rdzv-backend=rekindle`` it blocks until there is
one; give torchrun ``--max-restarts`` then, because its own loop counts a worker that fell with a
peer before the new round was seen.
"""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.rendezvous import (
    RendezvousConnectionError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
)
from torch.distributed.elastic.rendezvous.api import RendezvousGracefulExitError

from rekindle.api import ENV_ACCESS, ENV_COORDINATOR, ENV_PROC_PER_NODE, AgentPhase, Round
from rekindle.launch.coordinator.client import CoordinatorConnection, CoordinatorLink
from rekindle.launch.coordinator.session import PodSession
from rekindle.launch.pod import settings as environment
from rekindle.launch.pod.round_store import LOOPBACK, RoundStoreError, Spare, connect

BACKEND = "rekindle"
"""Name under which torchrun knows this backend."""
CONNECT_SECONDS = 10.0
"""For reaching the first member's store before telling the coordinator that it is not there."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the workers of one pod stand in a round."""

    group_rank: int
    """Index of the pod."""
    group_size: int
    """Number of pods."""
    first_rank: int
    """Global rank of its first worker."""
    nproc: int
    world_size: int


def place(offered: Round, uid: str) -> Place:
    """Give a member's place; raises ValueError for a pod that is not in the round."""
    first_rank = offered.first_rank(uid)
    if first_rank is None:
        raise ValueError(f"round {offered.number} has no member with uid {uid}")
    index = [member.uid for member in offered.members].index(uid)
    return Place(
        group_rank=index,
        group_size=len(offered.members),
        first_rank=first_rank,
        nproc=offered.members[index].nproc,
        world_size=offered.world_size,
    )


class Rendezvous(RendezvousHandler):
    """Turns rounds into what torch's agents ask for."""

    def __init__(self, session: PodSession, run_id: str, *, pause: Callable[[float], None]) -> None:
        self._session = session
        self._run_id = run_id
        self._pause = pause
        self._closed = False

    def get_backend(self) -> str:
        """Give the backend's name."""
        return BACKEND

    @property
    def use_agent_store(self) -> bool:
        """Workers are clients of the first agent's store; none of them opens a server."""
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        """Join the next round; wait for one if there is none.

        Raises RendezvousGracefulExitError on an order to stop, and RendezvousConnectionError when
        the store of the round cannot be reached, after which the caller may simply try again.
        """
        session = self._session
        if session.joinable() is None:
            session.announce(AgentPhase.WAITING, session.outcome)
        while (offered := session.joinable()) is None:
            order = session.stop()
            if order is not None:
                raise RendezvousGracefulExitError(f"the coordinator says stop: {order.reason}")
            self._pause(1.0)
        where = place(offered, session.settings.uid)
        try:
            store, place_of_store = self._store(offered, where)
        except RoundStoreError as error:
            session.announce(AgentPhase.WAITING, session.outcome)
            raise RendezvousConnectionError(str(error)) from error
        session.joined(offered)
        address, port = place_of_store
        return RendezvousInfo(
            store,
            where.group_rank,
            where.group_size,
            RendezvousStoreInfo(master_addr=address, master_port=port),
        )

    def _store(self, offered: Round, where: Place) -> tuple[TCPStore, tuple[str, int]]:
        """A client of the round's store, and where that is."""
        first = offered.members[0]
        at = first.address, first.store_port
        # Being the host is a matter of rank, not of comparing addresses: on a loopback network
        # every address looks like one's own.
        if where.group_size == 1:
            store, port = self._session.spare.take_alone()
            return store, (LOOPBACK, port)
        if where.group_rank == 0:
            return self._session.spare.take(first.store_port), at
        store = connect(
            offered,
            seconds=CONNECT_SECONDS,
            outdated=lambda: (
                self._session.joinable() != offered or self._session.stop() is not None
            ),
            pause=self._pause,
        )
        return store, at

    def is_closed(self) -> bool:
        """Say whether this pod has been ordered to stop."""
        return self._closed or self._session.stop() is not None

    def set_closed(self) -> None:
        """Join nothing any more."""
        self._closed = True

    def num_nodes_waiting(self) -> int:
        """Say 1 when there is a round to change to, for which torch's own agent then restarts."""
        return 0 if self._session.joinable() is None else 1

    def get_run_id(self) -> str:
        """Give the name of the run."""
        return self._run_id

    def shutdown(self) -> bool:
        """Say goodbye."""
        self._session.announce(AgentPhase.LEAVING, self._session.outcome)
        self._session.flush(2.0)
        self._session.close()
        return True


def create(parameters: RendezvousParameters) -> RendezvousHandler:
    """Make the backend for plain torchrun.

    The pod's names come from the environment, as under ``rekindle.launch``. ``--rdzv-endpoint``
    gives the coordinator's URL where the environment does not, and ``--rdzv-conf nproc=N`` says how
    many workers ``--nproc-per-node`` starts, which torchrun does not tell its backends. Raises
    ValueError where something is missing.
    """
    variables = dict(os.environ)
    if parameters.endpoint and not (variables.get(ENV_ACCESS) or variables.get(ENV_COORDINATOR)):
        variables[ENV_COORDINATOR] = parameters.endpoint
    nproc = parameters.get_as_int("nproc")
    if nproc is not None:
        variables[ENV_PROC_PER_NODE] = str(nproc)
    settings = environment.from_environment(variables)
    if settings.access is None:
        raise ValueError(
            f"the rendezvous backend {BACKEND!r} needs a coordinator: set {ENV_COORDINATOR}, or "
            "pass its URL as --rdzv-endpoint"
        )
    if parameters.local_addr:
        settings = replace(settings, address=parameters.local_addr)
    session = PodSession(
        settings, CoordinatorLink(CoordinatorConnection(settings)), Spare(settings.address)
    )
    changed = threading.Event()
    session.listen(changed.set)
    session.start()

    def pause(seconds: float) -> None:
        changed.wait(seconds)
        changed.clear()

    return Rendezvous(session, parameters.run_id, pause=pause)
