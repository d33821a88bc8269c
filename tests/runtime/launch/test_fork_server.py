"""A worker that is forked from a warm process is like one that Python has just started."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rekindle.api import AgentPhase
from rekindle.launch.spawn import fork_server_client
from rekindle.launch.spawn.fork_server import WorkerJob
from rekindle.launch.spawn.fork_server_client import ForkServer
from rekindle.launch.spawn.preload import EVERYTHING

pytestmark = pytest.mark.processes

# Everything that a script could find different, as JSON; without torch, whose import is slow.
FACTS = """
import atexit, gc, json, logging, multiprocessing, os, random, signal, sys, threading
import __main__

def double(x):
    return 2 * x

class Thing:
    def __reduce__(self):
        return Thing, ()

if __name__ == "__main__":
    paths = [f"/proc/self/fd/{n}" for n in os.listdir("/proc/self/fd") if n > "2"]
    extra = [os.readlink(path) for path in paths if os.path.lexists(path)]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        spawned = pool.map(double, [21]), type(pool.apply(Thing)).__name__
    same = {
        "argv": sys.argv, "path": sys.path, "cwd": os.getcwd(), "spawned": spawned,
        "main": (__name__, __file__, str(__spec__), vars(__main__) is globals()),
        "threads": [each.name for each in threading.enumerate()],
        "process": (multiprocessing.current_process().name, multiprocessing.parent_process()),
        "signals": {
            str(n): getattr(s := signal.getsignal(n), "__name__", str(s))
            for n in signal.valid_signals()
        },
        "mask": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        "gc": (gc.isenabled(), gc.get_threshold()),
        "logging": (len(logging.root.handlers), logging.root.level),
        "streams": [
            (s.name, s.mode, s.encoding, s.errors, s.write_through)
            for s in (sys.stdout, sys.stderr)
        ],
        "umask": os.umask(0o22), "limit": sys.getrecursionlimit(), "executable": sys.executable,
        "files": [os.readlink(f"/proc/self/fd/{n}") for n in (0, 1, 2)],
    }
    own = {
        "random": random.random(), "authkey": multiprocessing.current_process().authkey.hex(),
        "files": extra, "leads": os.getsid(0) == os.getpid(),
        "memory": os.environ.get("REKINDLE_MEMORY"),
        "token": os.environ.get("REKINDLE_TOKEN"), "rank": os.environ.get("RANK"),
        "shown": "a secret" in open("/proc/self/environ").read(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
    }
    if "numpy" in sys.modules:
        import numpy
        own["numpy"] = numpy.random.random()
    atexit.register(print, "at exit")
    print(json.dumps([same, own]))
"""


def eventually(what, timeout=90.0):
    deadline = time.monotonic() + timeout
    while not what():
        assert time.monotonic() < deadline, "in vain"
        time.sleep(0.02)


def said(text: str, prefix: str = "") -> list:
    lines = [line for line in text.splitlines() if line.startswith(prefix + "[{")]
    return json.loads(lines[0].removeprefix(prefix))


def connections(files: list[str]) -> int:
    """How many of the open files lead to another process, or nowhere that has a name."""
    return sum(not file.startswith("/") for file in files)


def test_workers_find_what_a_fresh_interpreter_would_and_share_no_secrets(start_pod, tmp_path):
    two = {"REKINDLE_PROC_PER_NODE": "2", "REKINDLE_TOKEN": "a secret"}
    pod = start_pod("a", FACTS, "-x", "1", python=("-m", "rekindle.launch"), environment=two)
    assert pod.exit_code() == 0
    plain = subprocess.run(
        [sys.executable, "-u", tmp_path / "a" / "train.py", "-x", "1"],
        cwd=tmp_path / "a",
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        # A shell that runs tests in its background has them ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    expected, usual = said(plain.stdout)
    workers = [said(pod.text(), f"[{rank}] ") for rank in range(2)]
    for rank, (same, own) in enumerate(workers):
        assert same | {"files": None} == expected | {"files": None}
        assert same["files"] == ["/dev/null", *(f for f in same["files"][1:] if "/round-1-" in f)]
        assert connections(own["files"]) == connections(usual["files"]) == 0
        assert sum("memfd" in file for file in own["files"]) == 2
        assert (own["leads"], own["rank"], own["token"]) == (True, str(rank), None)
        assert not own["shown"]
        assert own["threads"] == "1"
        assert len(own["memory"].split(",")) == 2
    for secret in ("random", "numpy", "authkey"):
        assert workers[0][1][secret] != workers[1][1][secret]
    assert pod.text().count("at exit") == 2


ROUNDS = """
import os, pathlib, sys, time
import helper
from prometheus_client import Counter

memory = [int(number) for number in os.environ["REKINDLE_MEMORY"].split(",")]
found = os.pread(memory[1], 100, 0)
print("round", os.environ["REKINDLE_ROUND"], "helper", helper.VALUE, "memory", found, flush=True)
Counter("samples", "x").inc(len(found) + 1)
folder = pathlib.Path(os.environ["REKINDLE_RUN_DIR"], "prometheus")
print("metrics", "counter" in [path.name[:7] for path in folder.iterdir()], flush=True)
os.pwrite(memory[1], b"kept", 0)
"""


def test_memory_is_kept_metrics_are_not_and_a_changed_module_is_read_again(
    coordinator, start_pod, tmp_path
):
    # From a fresh interpreter: one that is forked for tests may have the library of metrics
    # already, which decides when it is imported whether they go to files.
    pod = start_pod(
        "a",
        ROUNDS,
        to=coordinator,
        files={"helper.py": "VALUE = 1\n"},
        python=("-m", "rekindle.launch"),
    )
    coordinator.wait_phase("a", AgentPhase.WAITING)
    for number, value in ((1, 1), (2, 1), (3, 22)):
        if value != 1:
            (tmp_path / "a" / "helper.py").write_text(f"VALUE = {value}\n")
        coordinator.form("a")
        coordinator.wait_phase("a", AgentPhase.DONE, number)
    text = pod.text()
    assert "round 1 helper 1 memory b''" in text
    assert "round 2 helper 1 memory b'kept'" in text
    assert "round 3 helper 22 memory b'kept'" in text
    assert text.count("metrics True") == 3
    assert text.count("helper.py has changed since it was imported") == 1


def test_the_death_of_the_fork_server_is_one_of_its_workers_and_another_serves(
    coordinator, start_pod, tmp_path
):
    script = """
import os, pathlib, time
if os.environ["REKINDLE_ROUND"] == "1":
    path = pathlib.Path(os.environ["SHARED"], "parent")
    path.with_suffix(".new").write_text(f"{os.getpid()} {os.getppid()}")
    path.with_suffix(".new").rename(path)
    time.sleep(600)
"""
    pod = start_pod("a", script, to=coordinator)
    coordinator.wait_phase("a", AgentPhase.WAITING)
    coordinator.form("a")
    eventually((tmp_path / "parent").exists)
    worker, server = map(int, (tmp_path / "parent").read_text().split())
    os.kill(server, signal.SIGKILL)
    report = coordinator.wait_phase("a", AgentPhase.FAILED)
    assert report.outcome.cause == "WorkerKilled"
    assert "forked from has ended" in report.outcome.message
    assert 0.0 <= report.failed_for < 10.0
    status = Path(f"/proc/{worker}/stat")
    assert not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z"
    coordinator.form("a")
    coordinator.wait_phase("a", AgentPhase.DONE, 2)
    assert "the fork server ended with -9; starting another" in pod.text()


def test_what_an_import_keeps_of_a_worker_is_left_to_the_workers(start_pod):
    script = "import json, helper\nprint('rank', helper.RANK)"
    pod = start_pod(
        "a",
        script,
        python=("-m", "rekindle.launch"),
        environment={"REKINDLE_PROC_PER_NODE": "2"},
        files={"helper.py": "import os\nRANK = int(os.environ.get('RANK', -1))\n"},
    )
    assert pod.exit_code() == 0
    assert "workers import helper themselves: it reads RANK while it is imported" in pod.text()
    for rank in range(2):
        assert f"[{rank}] rank {rank}\n" in pod.text()


LIBRARIES = """
import os
import sklearn.datasets
from torchmetrics.utilities.prints import rank_zero_only
import helper
print(helper.THERE, helper.PROCESS == os.getpid(), rank_zero_only.rank)
"""
HELPER = """
import os, sys
PROCESS, THERE = os.getpid(), [name for name in ("sklearn", "torchmetrics") if name in sys.modules]
"""


def test_libraries_that_keep_the_rank_or_draw_numbers_are_shared_all_the_same(start_pod):
    two = {"REKINDLE_PROC_PER_NODE": "2"}
    pod = start_pod("a", LIBRARIES, environment=two, files={"helper.py": HELPER})
    assert pod.exit_code() == 0
    for rank in range(2):
        assert f"[{rank}] ['sklearn', 'torchmetrics'] False {rank}\n" in pod.text()


def test_a_fork_server_that_does_not_answer_is_killed_with_what_it_might_still_say(monkeypatch):
    deaf = [sys.executable, "-c", "import time; time.sleep(600)"]
    monkeypatch.setattr(fork_server_client, "arguments_of", lambda _start: deaf)
    monkeypatch.setattr(fork_server_client, "ANSWER_SECONDS", 0.1)
    server = ForkServer(command=["train.py"], count=1, memory=(), unfit={}, like_this=None)
    with pytest.raises(OSError, match="does not answer"):
        server.start(WorkerJob(environment={}))
    assert server.file is None
    eventually(lambda: server.code() == -signal.SIGKILL)


@pytest.fixture(scope="module")
def bare_server(tmp_path_factory):
    script = tmp_path_factory.mktemp("bare") / "train.py"
    script.write_text("import time\ntime.sleep(600)\n")
    bare = {EVERYTHING: "is slow, and nothing here needs it"}
    server = ForkServer(command=[str(script)], count=1, memory=(), unfit=bare, like_this=None)
    eventually(lambda: server.read() or server.ready)
    yield server
    server.kill()


def test_workers_that_are_killed_in_their_first_moment_die(bare_server):
    for _ in range(30):
        one = bare_server.start(WorkerJob(environment={}))
        one.kill()
        assert one.wait(60) == -signal.SIGKILL
        bare_server.bury([one.pid])


def test_a_worker_that_does_not_die_holds_up_neither_the_agent_nor_the_fork_server(bare_server):
    stays = bare_server.start(WorkerJob(environment={}))
    bare_server.bury([stays.pid])  # in vain: it runs
    other = bare_server.start(WorkerJob(environment={}))
    other.kill()
    assert other.wait(60) == -signal.SIGKILL
    bare_server.bury([other.pid])
    stays.kill()
    # It is buried when it does end, so that its number is free.
    eventually(lambda: not Path(f"/proc/{stays.pid}").exists())


def test_a_round_says_how_it_came_up(coordinator, start_pod):
    script = """
import time
from rekindle.ranks.control_page import ControlPage
page = ControlPage.from_environment()
page.attach()
page.begin(step=0, samples=0, total_steps=None)
page.step_done(step=1, epoch=0, samples=1, productive=0.0, stall=0.0)
time.sleep(600)
"""
    start_pod("a", script, to=coordinator)
    coordinator.wait_phase("a", AgentPhase.WAITING)
    phases = [report.phase for report in coordinator.history]
    assert phases[0] == AgentPhase.WARMING
    for _ in range(2):
        current = coordinator.form("a")
        coordinator.wait_for(
            lambda number=current.number: (
                (r := coordinator.reports["a"]).round is not None
                and r.round.number == number
                and r.timings.stepped
            )
        )
    timings = coordinator.reports["a"].timings
    names = ("stopped", "started", "grouped", "restored", "stepped")
    moments = [getattr(timings, name) for name in names]
    assert moments == sorted(moments)
    assert moments[0] > 0.0


def test_without_a_fork_server_workers_are_fresh_interpreters(start_pod):
    script = "import os, sys\nprint('torch' in sys.modules, os.environ['REKINDLE_MEMORY'] != '')"
    pod = start_pod("a", script, environment={"REKINDLE_WARM": "0"})
    assert pod.exit_code() == 0
    assert "False True" in pod.text()
    assert "workers start as fresh interpreters" in pod.text()
