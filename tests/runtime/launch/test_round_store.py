"""Stores that rounds meet in."""

import socket
import time
from pathlib import Path

import pytest

from rekindle.api import Member, Round
from rekindle.launch.pod.round_store import RoundStoreError, Spare, connect


def a_round(port: int) -> Round:
    first = Member(pod="p", uid="u", address="127.0.0.1", store_port=port, nproc=1)
    return Round(number=3, members=(first,), reason="test", formed_at=0.0)


@pytest.fixture
def spare():
    return Spare("127.0.0.1")


def never() -> bool:
    return False


def test_each_round_gets_a_fresh_store(spare):
    first = spare.port
    store = spare.take(first)
    assert spare.port != first
    store.set("key", "value")
    assert not spare.take(spare.port).check(["key"])


def test_two_rounds_that_name_one_port_get_a_fresh_store_each(spare):
    port = spare.port
    stale = spare.take(port)
    stale.set("key", "of the first round")
    fresh = spare.take(port)
    assert not fresh.check(["key"])
    with pytest.raises(RuntimeError):
        stale.check(["key"])


def test_a_port_of_long_ago_is_refused(spare):
    first = spare.port
    spare.take(first)
    spare.take(spare.port)
    with pytest.raises(RoundStoreError, match="is closed"):
        spare.take(first)


def test_members_meet_in_the_first_ones_store(spare):
    offered = a_round(spare.port)
    hosted = spare.take(spare.port)
    client = connect(offered, seconds=5.0, outdated=never, pause=time.sleep)
    client.set("key", "value")
    assert hosted.get("key") == b"value"


def test_a_dead_host_is_given_up_in_time():
    spare = Spare("127.0.0.1")
    offered = a_round(spare.port)
    del spare
    with pytest.raises(
        RoundStoreError, match=r"round 3 at 127.0.0.1:\d+ \(pod p\) does not answer"
    ):
        connect(offered, seconds=0.0, outdated=never, pause=time.sleep)


def test_an_outdated_round_is_given_up_at_once():
    spare = Spare("127.0.0.1")
    offered = a_round(spare.port)
    del spare
    with pytest.raises(RoundStoreError, match="outdated"):
        connect(offered, seconds=60.0, outdated=lambda: True, pause=time.sleep)


def test_a_host_that_stands_still_is_left_as_soon_as_its_round_is_outdated():
    looks = []

    def outdated() -> bool:
        looks.append(time.monotonic())
        return len(looks) > 3

    with socket.create_server(("127.0.0.1", 0)) as stopped:  # accepts, as a kernel does
        port = stopped.getsockname()[1]
        with pytest.raises(RoundStoreError, match="outdated"):
            connect(a_round(port), seconds=60.0, outdated=outdated, pause=time.sleep)


def listening(port: int) -> set[str]:
    """The IPv4 addresses on which somebody listens at a port, as the kernel writes them."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    lines += [line.split() for line in Path("/proc/net/tcp6").read_text().splitlines()[1:]]
    found = {
        line[1].rpartition(":")[0]
        for line in lines
        if line[3] == "0A" and int(line[1].rpartition(":")[2], 16) == port
    }
    assert found
    return found


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs Linux's list of sockets")
def test_a_store_listens_on_the_pods_address_only():
    spare = Spare("127.0.0.5")
    first = spare.port
    assert listening(first) == {"0500007F"}
    store = spare.take(first)
    store.set("key", "value")
    assert listening(first) == listening(spare.port) == {"0500007F"}


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs Linux's list of sockets")
def test_the_store_of_ranks_that_are_all_here_listens_on_loopback():
    spare = Spare("127.0.0.5")
    store, port = spare.take_alone()
    store.set("key", "value")
    assert listening(port) == {"0100007F"}
    assert spare.port != port
    again, other = spare.take_alone()
    assert not again.check(["key"])
    assert other != port


def test_an_address_that_is_not_here_is_said():
    """192.0.2.0/24 is nobody's."""
    with pytest.raises(RoundStoreError, match=r"cannot listen on 192\.0\.2\.1"):
        Spare("192.0.2.1")
