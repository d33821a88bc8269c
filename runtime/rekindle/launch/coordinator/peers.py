"""The thread that tries to reach the pods that the coordinator does not hear, and says which fail.

The coordinator cannot tell a dead pod from a broken way to it; its peers can. So it shows whom it
misses, all agents that it does hear try to reach them, again each second for as long as they are
shown, and report whom they could not.
"""

import threading

from rekindle import threads
from rekindle.launch.coordinator.reachability import unreached
from rekindle.launch.coordinator.session import PodSession

TRY = 0.7
"""Seconds that a peer has to answer."""
AGAIN = 1.0
"""Seconds between two tries."""


class Peers:
    """Tries to reach suspects; a daemon thread that sleeps while there are none."""

    def __init__(self, session: PodSession) -> None:
        self._session = session
        self._wake = threading.Event()
        self._closed = False
        session.listen(self._wake.set)

    def start(self) -> None:
        """Begin."""
        threads.lasting(self._run, name="peers")

    def close(self) -> None:
        """End after the present try."""
        self._closed = True
        self._wake.set()

    def _run(self) -> None:
        while not self._closed:
            self._wake.clear()
            self.look()
            self._wake.wait(AGAIN if self._session.suspects else None)

    def look(self) -> None:
        """Try once to reach those that are missed now."""
        suspects = [one for one in self._session.suspects if one.uid != self._session.settings.uid]
        self._session.missed(unreached(suspects, TRY))
