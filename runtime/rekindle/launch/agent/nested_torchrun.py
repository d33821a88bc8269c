"""A torchrun that runs inside of a worker joins the round as one of its nodes.

``bash -c "pip install .; torchrun train.py"`` starts a torchrun of its own in each pod. Left alone
it would look for the others by what its flags say, which was written for other machines, or train
alone. Its agents load this package through the entry point ``torchrun.handlers``; and where the
environment says that this process belongs to a worker (``REKINDLE_TORCHRUN``), whichever rendezvous
it asks for is the round that is there already: rank and size are known, and the store listens. A
round does not come twice: workers that fail end this torchrun, and the operator decides.

The workers that it starts run through ours, so that their errors and exit codes are told as those
of any other; torchrun itself tells 1 for all.
"""

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rekindle.api import ENV_RUN_DIR
from rekindle.launch.spawn.environment import ENV_TORCHRUN

if TYPE_CHECKING:
    from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousParameters


def inside() -> bool:
    """Whether this process is part of a worker of ours that is no Python script."""
    return ENV_TORCHRUN in os.environ


def take_over(registry: Any) -> None:
    """Have this registry of torch's make our handler, whichever backend is asked for."""
    registry.create_handler = create
    directory = os.environ.get(ENV_RUN_DIR)
    if directory and "PYTHON_EXEC" not in os.environ:
        os.environ["PYTHON_EXEC"] = str(_worker(Path(directory)))


def _worker(directory: Path) -> Path:
    """Write what torchrun starts in place of its own interpreter."""
    path = directory / f"worker-{os.getpid()}"
    path.write_text(
        f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -u -m rekindle.launch.spawn.worker "$@"\n'
    )
    path.chmod(0o755)
    return path


def create(parameters: "RendezvousParameters") -> "RendezvousHandler":
    """Make the handler; raises ValueError where there is no place for a torchrun."""
    from datetime import timedelta

    from torch.distributed import TCPStore  # type: ignore[attr-defined]
    from torch.distributed.elastic.rendezvous import (
        RendezvousClosedError,
        RendezvousHandler,
        RendezvousInfo,
        RendezvousStoreInfo,
    )

    place = os.environ[ENV_TORCHRUN]
    if "/" not in place:
        raise ValueError(place)
    rank, size = (int(each) for each in place.split("/"))
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])

    class JoinedRendezvous(RendezvousHandler):
        """Gives the round once."""

        def __init__(self) -> None:
            self._given = False

        def get_backend(self) -> str:
            return parameters.backend

        @property
        def use_agent_store(self) -> bool:
            return True

        def next_rendezvous(self) -> RendezvousInfo:
            if self._given:
                raise RendezvousClosedError(
                    "workers have failed; the operator decides what comes next"
                )
            self._given = True
            store = TCPStore(
                address,
                port,
                is_master=False,
                wait_for_workers=False,
                timeout=timedelta(minutes=10),
            )
            info = RendezvousStoreInfo(master_addr=address, master_port=port)
            return RendezvousInfo(store, rank, size, info)

        def is_closed(self) -> bool:
            return self._given

        def set_closed(self) -> None:
            self._given = True

        def num_nodes_waiting(self) -> int:
            return 0

        def get_run_id(self) -> str:
            return parameters.run_id

        def shutdown(self) -> bool:
            return True

    return JoinedRendezvous()
