"""Entry point ``torchrun.handlers``: how torchrun finds the backend ``rekindle``.

torch loads every registered backend while its own rendezvous package is being imported. A module
that imports that package in turn would be caught half-made, and the warning about it costs a
second, so this one imports nothing until a backend is really wanted. The backend is in
``rendezvous``.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from rekindle.launch.agent import manual_torchrun, nested_torchrun

if TYPE_CHECKING:
    from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousParameters


def get_handler() -> "Callable[[RendezvousParameters], RendezvousHandler]":
    """Give the function that makes the backend; torch calls this once, when it registers it.

    Inside of a worker, whichever backend is asked for is the round (see ``joining``). Elsewhere a
    torchrun, whatever its backend, tells 75 for workers that have saved (see ``byhand``).
    """
    if nested_torchrun.inside():
        from torch.distributed.elastic.rendezvous.api import rendezvous_handler_registry

        nested_torchrun.take_over(rendezvous_handler_registry)
        return nested_torchrun.create
    manual_torchrun.watch()
    return _create


def _create(parameters: "RendezvousParameters") -> "RendezvousHandler":
    from rekindle.launch.agent.rendezvous import create

    return create(parameters)
