"""Whether a pod can be reached is what its own agent says, not what its machine's kernel does."""

import socket
import threading
from types import SimpleNamespace

import pytest

from rekindle.api import Suspect, View
from rekindle.launch.coordinator import peers
from rekindle.launch.coordinator.peers import Peers
from rekindle.launch.coordinator.reachability import Doorstep, unreached

pytestmark = pytest.mark.servers


def suspect(port, uid="uid-1", address="127.0.0.1"):
    return Suspect(pod="digits-1", uid=uid, address=address, reach_port=port)


@pytest.fixture
def door():
    found = Doorstep("127.0.0.1", "uid-1")
    yield found
    found.close()


def test_a_pod_that_says_its_uid_is_reached(door):
    for _ in range(3):
        assert unreached([suspect(door.port)], 10.0) == ()


def test_a_pod_that_has_the_address_of_another_by_now_is_not_that_one(door):
    assert unreached([suspect(door.port, "uid-of-the-dead")], 10.0) == ("uid-of-the-dead",)


def test_a_machine_that_only_accepts_is_not_reached_and_keeps_nobody_else_waiting(door):
    with socket.create_server(("127.0.0.1", 0)) as stopped:
        found = [suspect(stopped.getsockname()[1], "uid-0"), suspect(door.port)]
        assert unreached(found, 0.3) == ("uid-0",)


def test_nobody_there_and_no_address_at_all_are_not_reached():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    found = [suspect(port, "uid-0"), suspect(1, "uid-1", "no address"), suspect(0, "uid-2")]
    assert unreached(found, 10.0) == ("uid-0", "uid-1", "uid-2")
    assert unreached([], 10.0) == ()


def test_whoever_connects_and_says_nothing_keeps_nobody_waiting(door):
    with socket.create_connection(("127.0.0.1", door.port)):
        assert unreached([suspect(door.port)], 10.0) == ()


def test_a_door_that_is_closed_is_closed(door):
    door.close()
    assert unreached([suspect(door.port)], 10.0) == ("uid-1",)


class Session:
    """As much of one as the thread needs."""

    def __init__(self):
        self.settings = SimpleNamespace(uid="uid-0")
        self.view = View(version="1")
        self.said, self.changed = [], threading.Condition()

    def listen(self, listener):
        self.wake = listener

    @property
    def suspects(self):
        return self.view.suspects

    def missed(self, unreachable):
        with self.changed:
            self.said.append(unreachable)
            self.changed.notify_all()

    def show(self, *suspects):
        self.view = View(version="2", suspects=suspects)
        self.wake()

    def wait_for(self, *uids):
        with self.changed:
            assert self.changed.wait_for(lambda: self.said and self.said[-1] == uids, 30), self.said


def test_suspects_are_tried_for_as_long_as_they_are_shown(monkeypatch, door):
    monkeypatch.setattr(peers, "TRY", 0.2)
    monkeypatch.setattr(peers, "AGAIN", 0.05)
    session = Session()
    watching = Peers(session)
    watching.start()
    try:
        session.wait_for()
        gone = suspect(1, "uid-2")
        session.show(gone, suspect(door.port), suspect(1, "uid-0"))
        session.wait_for("uid-2")
        session.show(suspect(door.port))
        session.wait_for()
    finally:
        watching.close()


def test_one_try_that_fails_is_not_the_last(monkeypatch, door):
    monkeypatch.setattr(peers, "AGAIN", 0.05)
    tries = []

    def broken(suspects, seconds):
        tries.append(suspects)
        if len(tries) < 3:
            raise RuntimeError("too many files")
        return ("uid-1",)

    monkeypatch.setattr(peers, "unreached", broken)
    session = Session()
    session.view = View(version="1", suspects=(suspect(1),))
    watching = Peers(session)
    watching.start()
    session.wait_for("uid-1")
    watching.close()
