"""Threads that something relies on go on after any error, and nobody waits without an end."""

import ast
import json
import os
import socket
import threading
from pathlib import Path

import pytest

import rekindle
from rekindle import threads
from rekindle.api import AgentPhase, AgentReport, View
from rekindle.checkpoint.saving.uploader import Channel
from rekindle.checkpoint.saving.uploader_client import Uploader
from rekindle.launch.coordinator.client import CoordinatorLink
from rekindle.launch.health import preemption_notices
from rekindle.launch.health.progress_tracker import Tracker
from rekindle.launch.health.watcher import Watcher
from rekindle.launch.spawn import init_process
from rekindle.launch.spawn.streams import Copier

ROOT = Path(rekindle.__file__).parent
SECONDS = 20.0

THREADS = {
    # A loop that something relies on for as long as the process lives.
    ("lasting", "console", "rekindle-progress"),
    ("lasting", "checkpoint.saving.uploader_client", "rekindle-uploads"),
    ("lasting", "checkpoint.saving.uploader", "trainer"),
    ("lasting", "launch.coordinator.client", "link*"),
    ("lasting", "launch.health.exporter", "exporter"),
    ("lasting", "launch.spawn.init_process", "lifeline"),
    ("lasting", "launch.health.preemption_notices", "notices"),
    ("lasting", "launch.coordinator.peers", "peers"),
    ("lasting", "launch.coordinator.reachability", "doorstep"),
    ("lasting", "launch.spawn.streams", "copier"),
    ("lasting", "launch.health.progress_tracker", "tracker"),
    ("lasting", "launch.health.watcher", "watcher"),
    ("lasting", "persistence.admission", "rekindle-lease"),
    # One piece of work, whose outcome somebody is told.
    ("task", "peer_memory.store", "rekindle-copy"),
    ("task", "checkpoint.saving.saver", "rekindle-save-*"),
    ("task", "checkpoint.saving.saver", "rekindle-touch"),
    ("task", "launch.pod.round_store", "store"),
    ("task", "loggers.feed", "rekindle-*"),
    ("task", "pytorch.serving", "rekindle-serving"),
    ("task", "persistence.exported_files", "rekindle-files"),
    ("task", "peer_memory.schedule", "rekindle-touch-copies"),
    ("task", "persistence.async_open", "rekindle-opening"),
    ("task", "training.sources", "rekindle-signs"),
}

WITHOUT_END = {
    # Idle, until one of those comes that this thread or process exists for.
    ("launch.coordinator.client", "_watch", "wait_for"): "a report that arrives, or close, ends it",
    (
        "launch.spawn.init_process",
        "_attend",
        "sigwait",
    ): "PID 1 waits for signals, SIGCHLD among them",
    ("launch.spawn.program", "main", "sigwait"): "as PID 1, below a worker",
    ("launch.coordinator.reachability", "_serve", "accept"): "who asks for this pod, and close",
    ("launch.spawn.streams", "_run", "poll"): "FIFOs and the pipe of stop",
    (
        "checkpoint.saving.uploader",
        "request",
        "get",
    ): "the thread that listens puts END in at the end",
    (
        "persistence.exported_files",
        "_work",
        "get",
    ): "runs only while jobs are counted, and each is put at once",
    # What is waited for has a deadline itself.
    (
        "checkpoint.objects.s3",
        "_put_parts",
        "result",
    ): "each request has timeouts and limited retries",
    ("checkpoint.shards", "read", "result"): "reads of objects, as above",
    ("checkpoint.shards", "exchange", "result"): "reads of objects, as above",
}
"""Calls that wait without a deadline of their own, and why that is right."""


def modules(*folders):
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if not folders or name.partition(".")[0] in folders:
            yield name, ast.parse(path.read_text())


def calls(tree):
    """Each call, with the innermost function that it is in."""

    def walk(node, function):
        if isinstance(node, ast.FunctionDef):
            function = node.name
        if isinstance(node, ast.Call):
            yield function, node
        for child in ast.iter_child_nodes(node):
            yield from walk(child, function)

    return walk(tree, "")


def text_of(node):
    """A constant string, or an f-string with a star for each value."""
    if isinstance(node, ast.Constant):
        return node.value
    parts = [part.value if isinstance(part, ast.Constant) else "*" for part in node.values]
    return "".join(parts)


def test_every_thread_is_one_of_two_kinds_and_is_in_the_table():
    found, others = set(), []
    for name, tree in modules():
        for _, call in calls(tree):
            words = ast.unparse(call.func)
            if words in {"threads.lasting", "threads.task"}:
                (thread,) = [text_of(word.value) for word in call.keywords if word.arg == "name"]
                found.add((words.partition(".")[2], name, thread))
            elif words.rpartition(".")[2] in {"Thread", "Timer", "start_new_thread"}:
                others.append(name)
    assert found == THREADS
    assert set(others) == {"threads"}


def waits_without_end(call):
    """Whether a call may wait for ever, by what it is named and given."""
    if not isinstance(call.func, ast.Attribute):
        return False
    name, of = call.func.attr, ast.unparse(call.func.value)
    given = {word.arg for word in call.keywords}
    if name in {"waitpid", "waitid"}:
        return "WNOHANG" not in ast.unparse(call)
    if name == "wait_for":
        return len(call.args) < 2 and "timeout" not in given
    if name == "get" and "block" in given:
        return "timeout" not in given
    if name == "poll" and "poller" not in of:
        return False  # a process is asked
    if name in {"wait", "join", "poll", "result", "get", "acquire", "communicate", "select"}:
        return not call.args and not given
    return name in {"sigwait", "sigwaitinfo", "pause", "accept"}


def test_nobody_waits_without_an_end_but_who_is_in_the_table():
    found = {
        (name, function, call.func.attr)
        for name, tree in modules("launch", "checkpoint", "peer_memory", "persistence")
        for function, call in calls(tree)
        if waits_without_end(call)
    }
    assert found == set(WITHOUT_END)


class Pauses:
    """Stands in for the pauses of a thread; the test is told of each."""

    def __init__(self):
        self.taken = []

    def __call__(self, seconds):
        self.taken.append(seconds)


def test_a_loop_begins_anew_after_an_error_and_each_kind_is_logged_once(caplog):
    pauses, errors = Pauses(), iter([*[ValueError("one")] * 6, KeyError("two"), None])

    def body():
        error = next(errors)
        if isinstance(error, ValueError):
            raise ValueError(f"the {id(error)}th")  # as different each time as errors are
        if error is not None:
            raise error

    thread = threads.lasting(body, name="loop", pause=pauses)
    thread.join(SECONDS)
    assert not thread.is_alive()
    assert pauses.taken == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0]
    logged = [record.exc_info[0] for record in caplog.records]
    assert logged == [ValueError, KeyError]
    assert "thread loop begins anew" in caplog.records[0].getMessage()


class Once:
    """Raises the first time that it is called; then tells that it has been called again."""

    def __init__(self, answer=None):
        self.calls, self.answer = 0, answer
        self.failed, self.again = threading.Event(), threading.Event()

    def __call__(self, *_, **__):
        self.calls += 1
        if self.calls == 1:
            self.failed.set()
            raise RuntimeError("nobody has thought of this")
        self.again.set()
        return self.answer


class Talks:
    """A coordinator that knows one view."""

    def report(self, report):
        return View(version="1")

    def watch(self, version, wait):
        return View(version="1")


REPORT = AgentReport(
    pod="a", uid="a", address="127.0.0.1", store_port=1, nproc=1, phase=AgentPhase.WAITING
)


class Quiet:
    """A session as far as the threads of the agent ask one."""

    phase, runs, settings = AgentPhase.WAITING, False, None

    def listen(self, wake):
        self.wake = wake


@pytest.fixture
def fails(monkeypatch, tmp_path):
    """Start a thread whose work fails once; gives what is told when it is done again."""

    def link_report():
        once = Once(REPORT)
        CoordinatorLink(Talks(), heartbeat=0.01).start(once, lambda view: None)
        return once

    def link_watch():
        once = Once()
        CoordinatorLink(Talks(), heartbeat=60.0).start(lambda: REPORT, once)
        return once

    def tracker():
        once = Once()
        own = Tracker(Quiet(), source=None)
        own.look = once
        own.start()
        own._wake.set()
        return once

    def watcher():
        once = Once()
        own = Watcher(Quiet(), directory=lambda: None, send=lambda number: None)
        own.look = once
        own.start()
        own._wake.set()
        return once

    def copier():
        once = Once()
        own = Copier()
        paths = own.streams(tmp_path, prefix=b"", tap=once)
        own.start()
        with open(paths["stdout"], "wb", buffering=0) as file:
            file.write(b"a line\nanother\n")  # the tap fails at the first
            assert once.failed.wait(SECONDS)
            file.write(b"a third\n")
        once.stop = own.stop
        return once

    def notice():
        once = Once(preemption_notices.NoticeRequest())
        monkeypatch.setattr(preemption_notices, "_read", once)
        preemption_notices.watch(tmp_path / "notice", lambda words, seconds: None)
        return once

    def lifeline():
        once = Once()
        monkeypatch.setenv(init_process.ENV_COORDINATOR, "http://127.0.0.1:1")
        own = init_process.LifelineRequest()
        monkeypatch.setattr(own, "_hold_one", once)
        threads.lasting(own.hold, name="lifeline")
        return once

    kinds = (link_report, link_watch, tracker, watcher, copier, notice, lifeline)
    return {kind.__name__: kind for kind in kinds}


@pytest.mark.parametrize(
    "kind", ["link_report", "link_watch", "tracker", "watcher", "copier", "notice", "lifeline"]
)
def test_a_thread_of_the_agent_survives_what_nobody_has_thought_of(fails, kind, caplog):
    once = fails[kind]()
    assert once.again.wait(SECONDS)
    if hasattr(once, "stop"):
        once.stop()


class Owner:
    """Of a save that the uploader tells of."""

    def __init__(self, error=None):
        self.told, self.ended, self.error = [], threading.Event(), error

    def stored(self):
        self.told.append("stored")
        if self.error is not None:
            raise self.error

    def committed(self, size):
        self.told.append(size)

    def failed(self, error):
        self.told.append(str(error))

    def done(self):
        self.ended.set()


class Ended:
    """A process that has ended."""

    returncode = 0

    def wait(self, timeout):
        return 0

    def poll(self):
        return 0


def test_the_reader_of_uploads_survives_an_owner_that_raises_and_a_line_that_is_none(caplog):
    own, other = socket.socketpair()
    uploader = Uploader.__new__(Uploader)
    bad, good = Owner(RuntimeError("its callback")), Owner()
    uploader._process, uploader._connection, uploader._lock = Ended(), own, threading.Lock()
    uploader._watchers, uploader._ended = {1: bad, 2: good}, False
    uploader._lines = own.makefile("rb")
    reader = threads.lasting(uploader._listen, name="uploads")
    with own, other:
        events = [{"event": "stored", "number": 1}, {"event": "committed", "number": 2, "size": 7}]
        lines = [json.dumps(each).encode() + b"\n" for each in events]
        other.sendall(lines[0] + b"no JSON\n" + lines[1])
        other.shutdown(socket.SHUT_RDWR)
        assert bad.ended.wait(SECONDS)
        assert good.ended.wait(SECONDS)
        assert good.told == [7, "the process that uploads checkpoints exited with 0"]
        reader.join(SECONDS)
        assert not reader.is_alive()
    uploader._lines.close()


def test_the_uploader_hears_its_trainer_after_a_line_that_is_none(caplog):
    own, other = socket.socketpair()
    with own, other:
        channel = Channel(own, os.getppid())
        other.sendall(b"no number\n")
        other.sendall(b"7\n")
        assert channel.request(wait=True) == 7
        other.sendall(b"0\n")
        assert channel.request(wait=True) == 0
