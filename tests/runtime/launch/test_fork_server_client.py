"""What starts workers when a fork server dies, does not get ready, or cannot be had."""

from types import SimpleNamespace

import pytest

from rekindle.launch.spawn import fork_server_client
from rekindle.launch.spawn.command import Script
from rekindle.launch.spawn.fork_server_client import DEATHS, Fresh, Starter
from rekindle.launch.spawn.preload import EVERYTHING


class Server:
    """A fork server that does what a test wants; all of them by their number."""

    made: "list[Server]" = []
    refuses: OSError | None = None

    def __init__(self, *, unfit, **_):
        if self.refuses is not None:
            raise self.refuses
        self.unfit, self.left_out = {}, dict(unfit)
        self.file: int | None = 3
        self.ready, self.failed, self.began, self.killed = False, (), 0.0, False
        self.made.append(self)

    def read(self):
        pass

    def kill(self):
        self.killed = True
        return -9


@pytest.fixture
def starter(monkeypatch):
    monkeypatch.setattr(Server, "made", [])
    monkeypatch.setattr(Server, "refuses", None)
    monkeypatch.setattr(fork_server_client, "ForkServer", Server)
    at(monkeypatch, 0.0)
    script = Script(arguments=("train.py",))
    return lambda: Starter(target=script, count=1, memory=(), warm=True)


def at(monkeypatch, seconds):
    monkeypatch.setattr(fork_server_client, "time", SimpleNamespace(monotonic=lambda: seconds))


def test_one_that_does_not_get_ready_is_replaced_by_one_that_imports_nothing(
    starter, monkeypatch, caplog
):
    made = starter()
    made.tend()
    assert len(Server.made) == 1
    at(monkeypatch, fork_server_client.WARM_SECONDS + 1)
    made.tend()
    first, second = Server.made
    assert first.killed
    assert "was not ready within 300 s; starting another" in caplog.text
    assert EVERYTHING not in first.left_out
    assert EVERYTHING in second.left_out
    made.tend()  # nor does that one: imports are not what keeps it
    assert len(Server.made) == 2
    assert second.killed
    assert "workers start as fresh interpreters" in caplog.text


def test_one_that_dies_is_replaced_a_few_times(starter, caplog):
    made = starter()
    for number in range(1, DEATHS + 1):
        Server.made[-1].ready = True
        Server.made[-1].file = None
        made.tend()
        assert len(Server.made) == number + 1
        assert Server.made[-1].left_out == {}, "it had come through its imports"
    Server.made[-1].ready = True
    Server.made[-1].file = None
    made.tend()
    assert len(Server.made) == DEATHS + 1
    assert "ended with -9; workers start as fresh interpreters" in caplog.text


def test_where_none_can_be_had_workers_are_interpreters_of_their_own(starter, monkeypatch, caplog):
    monkeypatch.setattr(Server, "refuses", OSError("Resource temporarily unavailable"))
    made = starter()
    assert "no fork server: Resource temporarily unavailable; workers start" in caplog.text
    made.tend()
    started = []
    monkeypatch.setattr(Fresh, "__init__", lambda self, *given, **_: started.append(given[0]))
    assert isinstance(made.start(fork_server_client.WorkerJob(environment={})), Fresh)
    assert started[0][-1] == "train.py"
