"""Pods as processes against a coordinator that the test drives."""

import os
import re
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from rekindle.api import AgentPhase, Cause, DirectiveKind
from rekindle_cli.local.stack import free_ports

pytestmark = pytest.mark.processes

# What a trainer does with the control page, without torch. Its ranks agree through a file.
OBEDIENT = """
import os, pathlib, sys, time
from rekindle.ranks.control_page import ControlPage
page = ControlPage.from_environment()
page.attach()
page.begin(step=0, samples=0, total_steps=None)
agreed = pathlib.Path(os.environ["SHARED"], "agreed-" + os.environ["REKINDLE_ROUND"])
step = 0
while not agreed.exists():
    step += 1
    page.step_done(step=step, epoch=0, samples=step, productive=0.0, stall=0.0)
    if page.stop_requested:
        agreed.touch()
    time.sleep(0.01)
page.committed(step=step, at=time.time())
sys.exit(75)
"""
DEAF = """
import os, pathlib, signal, subprocess, time
from rekindle.ranks.control_page import ControlPage
signal.signal(signal.SIGTERM, signal.SIG_IGN)
ControlPage.from_environment().attach()
helper = subprocess.Popen(["sleep", "60"])
pids = pathlib.Path(os.environ["SHARED"], "deaf-" + os.environ["RANK"])
pids.with_suffix(".new").write_text(f"{os.getpid()} {helper.pid}")
pids.with_suffix(".new").rename(pids)
time.sleep(600)
"""
# Round 1 goes on for ever; from round 2 on, one sum proves that the ranks are together.
ALL_REDUCE = """
import os, pathlib, torch, torch.distributed as dist
dist.init_process_group("gloo")
turn = int(os.environ["REKINDLE_ROUND"])
while True:
    total = torch.ones(1)
    dist.all_reduce(total)
    assert int(total) == dist.get_world_size()
    pathlib.Path(os.environ["SHARED"], f"summed-{turn}-{dist.get_rank()}").touch()
    if turn > 1:
        break
print("sum", int(total), "rank", dist.get_rank(), "of", dist.get_world_size())
dist.destroy_process_group()
"""


TELLS = """
import os
names = ("REKINDLE_CHECKPOINT_KEEP", "REKINDLE_HANG_TIMEOUT", "REKINDLE_COORDINATOR_URL")
print("told", [os.environ.get(name) for name in names])
if os.environ["REKINDLE_ROUND"] == "1":
    raise SystemExit(1)
"""


def eventually(what: Callable[[], object], timeout: float = 90.0) -> None:
    """For what leaves no report: looked at until it is so."""
    deadline = time.monotonic() + timeout
    while not what():
        assert time.monotonic() < deadline, "in vain"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pids: Path) -> bool:
    return not any(alive(int(pid)) for pid in pids.read_text().split())


def test_a_pod_whose_script_ends_is_done(coordinator, start_pod):
    pod = start_pod("a", "import sys; print('args', sys.argv)", "--epochs", "3", to=coordinator)
    coordinator.wait_phase("a", AgentPhase.WAITING)
    coordinator.form("a")
    report = coordinator.wait_phase("a", AgentPhase.DONE)
    coordinator.order("a", DirectiveKind.STOP, code=0)
    assert pod.exit_code(5.0) == 0
    assert "train.py', '--epochs', '3']" in pod.text()
    assert report.round == coordinator.round
    assert pod.outcome().cause == Cause.COMPLETED


def test_a_round_brings_what_the_job_has_changed(coordinator, start_pod, tmp_path):
    given = {"REKINDLE_CHECKPOINT_KEEP": "old", "REKINDLE_HANG_TIMEOUT": "60"}
    pod = start_pod("a", TELLS, to=coordinator, environment=given)
    coordinator.wait_phase("a", AgentPhase.WAITING)
    coordinator.form("a")
    coordinator.wait_phase("a", AgentPhase.FAILED, 1)
    # What a round may not change is not taken from it.
    other = {"REKINDLE_HANG_TIMEOUT": "90", "REKINDLE_COORDINATOR_URL": "http://elsewhere"}
    coordinator.form("a", variables={"REKINDLE_CHECKPOINT_KEEP": "new", **other})
    coordinator.wait_phase("a", AgentPhase.DONE, 2)
    coordinator.order("a", DirectiveKind.STOP, code=0)
    assert pod.exit_code() == 0
    first, second = [line for line in pod.text().splitlines() if "told" in line]
    url = coordinator.url
    assert first.endswith(f"told {['old', '60', url]}")
    assert second.endswith(f"told {['new', '90', url]}")


@pytest.mark.parametrize("victim", ["a", "b"], ids=["the-host-of-the-store", "another"])
def test_survivors_of_a_kill_finish_in_the_next_round(coordinator, start_pod, tmp_path, victim):
    pods = {name: start_pod(name, ALL_REDUCE, to=coordinator) for name in ("a", "b")}
    for name in pods:
        coordinator.wait_phase(name, AgentPhase.WAITING)
    coordinator.form("a", "b")
    eventually(lambda: (tmp_path / "summed-1-1").exists() and (tmp_path / "summed-1-0").exists())
    pods[victim].kill()
    survivor = "b" if victim == "a" else "a"
    coordinator.form(survivor)
    coordinator.wait_phase(survivor, AgentPhase.DONE, 2)
    coordinator.order(survivor, DirectiveKind.STOP, code=0)
    assert pods[survivor].exit_code() == 0
    assert "sum 1 rank 0 of 1" in pods[survivor].text()


def test_training_goes_on_after_a_notice_until_the_coordinator_says_save(coordinator, start_pod):
    pods = {name: start_pod(name, OBEDIENT, to=coordinator) for name in ("a", "b")}
    for name in pods:
        coordinator.wait_phase(name, AgentPhase.WAITING)
    coordinator.form("a", "b")
    coordinator.wait_for(
        lambda: all((r.progress and r.progress.step) for r in coordinator.reports.values())
    )
    began = time.monotonic()
    pods["a"].terminate()
    coordinator.wait_for(lambda: coordinator.reports["a"].notice)
    before = coordinator.reports["a"].progress.step
    coordinator.wait_for(lambda: coordinator.reports["a"].progress.step > before)
    coordinator.order("a", DirectiveKind.SAVE, seconds=20.0)
    leaving = coordinator.wait_phase("a", AgentPhase.LEAVING)
    waiting = coordinator.wait_phase("b", AgentPhase.WAITING, 1)
    assert pods["a"].exit_code() == 75
    assert leaving.notice == "SIGTERM"
    assert 29.0 - (time.monotonic() - began) < leaving.notice_seconds <= 30.0
    assert pods["a"].outcome().cause == Cause.SAVED
    assert pods["a"].outcome().checkpoint == leaving.checkpoint.step > 0
    assert waiting.outcome.cause == Cause.SAVED
    coordinator.form("b")
    coordinator.wait_phase("b", AgentPhase.RUNNING, 2)


def test_a_notice_is_heeded_while_the_coordinator_is_away(coordinator, start_pod):
    pod = start_pod("a", OBEDIENT, to=coordinator)
    coordinator.wait_phase("a", AgentPhase.WAITING)
    coordinator.form("a")
    coordinator.wait_for(lambda: coordinator.reports["a"].progress)
    coordinator.away = True
    coordinator.touch()
    pod.terminate()
    assert pod.exit_code(10.0) == 75


@pytest.mark.parametrize("way", ["file", "HTTP call"])
def test_other_platforms_give_a_notice_that_is_like_a_signal(coordinator, start_pod, tmp_path, way):
    (port,) = free_ports(1)
    environment = {
        "REKINDLE_NOTICE_FILE": str(tmp_path / "notice"),
        "REKINDLE_METRICS_PORT": str(port),
    }
    pod = start_pod("a", OBEDIENT, to=coordinator, environment=environment)
    coordinator.wait_phase("a", AgentPhase.WAITING)
    coordinator.form("a")
    coordinator.wait_for(lambda: coordinator.reports["a"].progress)
    words = b'{"seconds": 20, "reason": "rack 7 moves"}'
    began = time.monotonic()
    if way == "file":
        (tmp_path / "notice").write_bytes(words)
    else:
        url = f"http://{coordinator.reports['a'].address}:{port}/v1/notice"
        header = {"Authorization": "Bearer a secret"}
        request = urllib.request.Request(url, data=words, headers=header, method="POST")
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert answer.status == 202
    coordinator.wait_for(lambda: coordinator.reports["a"].notice)
    report = coordinator.reports["a"]
    assert report.notice == f"{way}: rack 7 moves"
    assert 19.0 - (time.monotonic() - began) < report.notice_seconds <= 20.0
    coordinator.order("a", DirectiveKind.SAVE, seconds=10.0)
    assert pod.exit_code() == 75
    assert pod.outcome().cause == Cause.SAVED


def test_workers_that_do_not_save_in_time_cost_76(coordinator, start_pod, tmp_path):
    pod = start_pod("a", DEAF, to=coordinator, environment={"REKINDLE_GRACE_SECONDS": "2"})
    coordinator.wait_phase("a", AgentPhase.WAITING)
    coordinator.form("a")
    eventually((tmp_path / "deaf-0").exists)
    pod.terminate()
    eventually(lambda: pod.termination_log.exists() and pod.termination_log.stat().st_size)
    assert "killed before the workers had saved" in pod.outcome().message
    pod.terminate()
    assert pod.exit_code(4.0) == 76
    assert pod.outcome().cause == Cause.PREEMPTED
    assert "no end before the deadline" in pod.outcome().message
    eventually(lambda: gone(tmp_path / "deaf-0"), 5.0)


def test_a_directive_to_save_leads_to_the_next_round(coordinator, start_pod):
    start_pod("a", OBEDIENT, to=coordinator)
    coordinator.wait_phase("a", AgentPhase.WAITING)
    coordinator.form("a")
    coordinator.wait_for(lambda: coordinator.reports["a"].progress)
    coordinator.order("a", DirectiveKind.SAVE, seconds=20.0)
    report = coordinator.wait_phase("a", AgentPhase.WAITING, 1)
    assert report.outcome.cause == Cause.SAVED
    assert report.outcome.code == 75
    assert report.progress.step == report.checkpoint.step > 0
    coordinator.directives.clear()
    coordinator.form("a")
    coordinator.wait_phase("a", AgentPhase.RUNNING, 2)


def test_a_plain_script_is_terminated_when_asked_to_save(coordinator, start_pod):
    start_pod("a", "import time; time.sleep(600)", to=coordinator)
    coordinator.wait_phase("a", AgentPhase.WAITING)
    coordinator.form("a")
    coordinator.wait_phase("a", AgentPhase.RUNNING)
    coordinator.order("a", DirectiveKind.SAVE, seconds=20.0)
    report = coordinator.wait_phase("a", AgentPhase.WAITING, 1)
    assert report.outcome.code == 76
    assert "not saved" in report.outcome.message


def test_a_user_error_is_held_until_the_coordinator_decides(coordinator, start_pod):
    pod = start_pod("a", "def f():\n    raise KeyError('the reason')\nf()", to=coordinator)
    coordinator.wait_phase("a", AgentPhase.WAITING)
    coordinator.form("a")
    report = coordinator.wait_phase("a", AgentPhase.FAILED)
    assert report.outcome.cause == Cause.USER_ERROR
    assert "the reason" in report.outcome.message
    assert 'train.py", line 2, in f' in report.outcome.traceback
    assert pod.poll() is None
    coordinator.order("a", DirectiveKind.STOP, code=1)
    assert pod.exit_code(5.0) == 1
    assert pod.outcome().message == report.outcome.message
    assert re.search(
        r'Traceback \(most recent call last\):\n  File ".*train.py", line 3', pod.text()
    )
    assert "torch._dynamo" not in pod.text()


def test_a_failed_pod_tries_again_in_a_new_round(coordinator, start_pod):
    script = "import os\nassert os.environ['REKINDLE_ROUND'] == '2'"
    start_pod("a", script, to=coordinator)
    coordinator.wait_phase("a", AgentPhase.WAITING)
    coordinator.form("a")
    coordinator.wait_phase("a", AgentPhase.FAILED)
    coordinator.form("a")
    assert coordinator.wait_phase("a", AgentPhase.DONE, 2).outcome.code == 0


def test_training_goes_on_while_the_coordinator_is_away(coordinator, start_pod):
    pod = start_pod("a", OBEDIENT, to=coordinator)
    coordinator.wait_phase("a", AgentPhase.WAITING)
    coordinator.form("a")
    coordinator.wait_for(lambda: coordinator.reports["a"].progress)
    before = coordinator.reports["a"].progress.step
    coordinator.away = True
    coordinator.touch()
    coordinator.wait_for(lambda: coordinator.refusals >= 5)
    # It comes back with nothing in its memory.
    coordinator.reports.clear()
    coordinator.round = None
    coordinator.away = False
    report = coordinator.wait_phase("a", AgentPhase.RUNNING, 1)
    assert report.progress.step > before
    assert pod.text().count("training goes on") == 1


def test_a_failing_worker_ends_deaf_siblings_at_once(coordinator, start_pod, tmp_path):
    script = DEAF.replace(
        "time.sleep(600)",
        "shared = pathlib.Path(os.environ['SHARED'])\n"
        "while not (shared / 'deaf-0').exists(): time.sleep(0.01)\n"
        "assert os.environ['RANK'] == '0', 'rank 1 fails'\n"
        "time.sleep(600)",
    )
    pod = start_pod("a", script, to=coordinator, environment={"REKINDLE_PROC_PER_NODE": "2"})
    coordinator.wait_phase("a", AgentPhase.WAITING)
    coordinator.form("a")
    eventually((tmp_path / "deaf-1").exists)
    began = time.monotonic()
    report = coordinator.wait_phase("a", AgentPhase.FAILED)
    assert time.monotonic() - began < 20.0, "it has been given the grace of 30 s"
    assert report.outcome.rank == 1
    assert "rank 1 fails" in report.outcome.message
    assert "[1] AssertionError: rank 1 fails" in pod.text()
    eventually(lambda: gone(tmp_path / "deaf-0"), 5.0)


def test_a_dead_host_is_reported_and_the_next_round_works(coordinator, start_pod):
    pods = {name: start_pod(name, "print('ran')", to=coordinator) for name in ("a", "b")}
    for name in pods:
        coordinator.wait_phase(name, AgentPhase.WAITING)
    pods["a"].kill()
    coordinator.form("a", "b")
    coordinator.form("b")
    coordinator.wait_phase("b", AgentPhase.DONE, 2)


def test_workers_die_with_their_agent(coordinator, start_pod, tmp_path):
    pod = start_pod("a", DEAF, to=coordinator)
    coordinator.wait_phase("a", AgentPhase.WAITING)
    coordinator.form("a")
    eventually((tmp_path / "deaf-0").exists)
    pid = int((tmp_path / "deaf-0").read_text().split()[0])
    assert alive(pid)
    pod.kill()
    eventually(lambda: not alive(pid), 5.0)


def test_without_an_operator_a_pod_runs_by_itself_and_serves_metrics(start_pod, tmp_path):
    # Below those that outgoing connections get: one to a port where nobody listens yet could be
    # given that very port, and connect to itself.
    pod = start_pod(
        "a",
        OBEDIENT,
        environment={"REKINDLE_METRICS_PORT": "29430"},
        python=("-m", "rekindle.launch"),
    )
    scraped = []

    def scrape() -> bool:
        try:
            with urllib.request.urlopen("http://127.0.0.1:29430/metrics", timeout=2) as answer:
                scraped.append(answer.read().decode())
        except OSError:
            return False
        return "rekindle_step " in scraped[-1]

    eventually(scrape)
    assert 'rekindle_pod_phase{phase="running"} 1.0' in scraped[-1]
    assert "rekindle_rounds_joined_total 1.0" in scraped[-1]
    pod.terminate()
    assert pod.exit_code() == 75
    assert pod.outcome().cause == Cause.SAVED


def test_a_script_that_is_not_there_leaves_a_message(start_pod):
    pod = start_pod("a", "", python=("-m", "rekindle.launch", "missing.py"))
    assert pod.exit_code() == 1
    assert pod.outcome().cause == Cause.CONFIGURATION
    assert "missing.py" in pod.outcome().message


def test_torchrun_by_hand_takes_the_backend(coordinator, start_pod, tmp_path):
    # As an installed distribution would register it; a bare checkout has none.
    registered = tmp_path / "registered"
    (registered / "rekindle-0.dist-info").mkdir(parents=True)
    (registered / "rekindle-0.dist-info" / "METADATA").write_text("Name: rekindle\nVersion: 0\n")
    (registered / "rekindle-0.dist-info" / "entry_points.txt").write_text(
        "[torchrun.handlers]\nrekindle = rekindle.launch.agent.backend:get_handler\n"
    )
    paths = {"PYTHONPATH": os.pathsep.join([str(registered), *filter(None, sys.path)])}
    # torchrun tells its workers no round; in the second one the pods change places.
    script = ALL_REDUCE.replace(
        'int(os.environ["REKINDLE_ROUND"])',
        '1 if (os.environ["REKINDLE_POD_NAME"] == "a") == (dist.get_rank() == 0) else 2',
    )
    hand = (
        "-m",
        "torch.distributed.run",
        "--rdzv-backend=rekindle",
        "--max-restarts=3",
        "--nnodes=1:2",
    )
    pods = {
        name: start_pod(name, script, to=coordinator, python=hand, environment=paths)
        for name in ("a", "b")
    }
    for name in pods:
        coordinator.wait_phase(name, AgentPhase.WAITING)
    coordinator.form("a", "b")
    for name in pods:
        coordinator.wait_phase(name, AgentPhase.RUNNING, 1)
    coordinator.form("b", "a")
    assert [pod.exit_code() for pod in pods.values()] == [0, 0]
    assert "sum 2 rank 1 of 2" in pods["a"].text()


def test_a_failure_is_logged_without_importing_dynamo(start_pod, tmp_path):
    (tmp_path / "log.py").write_text(
        "import logging, sys, torch\n"
        "from rekindle.launch.__main__ import plain_torch_logs\n"
        "plain_torch_logs()\n"
        "try:\n    1 / 0\n"
        "except ZeroDivisionError:\n"
        "    logging.getLogger('torch.distributed.elastic').exception('in vain')\n"
        "assert 'torch._dynamo' not in sys.modules\n"
    )
    pod = start_pod("a", "", python=(str(tmp_path / "log.py"),))
    assert pod.exit_code() == 0
    assert "ZeroDivisionError" in pod.text()
