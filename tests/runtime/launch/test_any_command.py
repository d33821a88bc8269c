"""Commands as people write them, run by the launcher: without an operator, and in a round of two.

Each pod has a torch of its own to import, some two: seconds that these tests spend.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rekindle.api import AgentPhase, Cause, DirectiveKind

pytestmark = [pytest.mark.processes, pytest.mark.timeout(600)]

BIN = Path(sys.executable).parent
PATHS = {"PATH": f"{BIN}:{os.environ['PATH']}"}
# One sum proves that all are together; then it is written who was there.
TOGETHER = """
import json, os, pathlib, sys, torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.ones(1)
dist.all_reduce(total)
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE")
who = {name: int(os.environ[name]) for name in names}
told = pathlib.Path(os.environ["SHARED"], f"told-{dist.get_rank()}")
told.write_text(json.dumps({**who, "sum": int(total), "argv": sys.argv[1:]}))
dist.barrier()
dist.destroy_process_group()
"""


def told(tmp_path: Path, rank: int) -> dict[str, object]:
    return json.loads((tmp_path / f"told-{rank}").read_text())


def ready(coordinator, name: str) -> None:
    def waits() -> bool:
        report = coordinator.reports.get(name)
        return report is not None and report.phase is AgentPhase.WAITING

    coordinator.wait_for(waits, 120.0)


def start(start_pod, name, *command, script=TOGETHER, nproc="auto", to=None, **environment):
    """A pod with this command, which begins with --."""
    return start_pod(
        name,
        script,
        to=to,
        command=["--", *command],
        environment={**PATHS, "REKINDLE_PROC_PER_NODE": nproc, **environment},
    )


@pytest.mark.parametrize(
    ("command", "nproc"),
    [
        (["python", "-X", "faulthandler", "train.py", "--x"], "2"),
        (["torchrun", "--nproc_per_node=2", "--nnodes=4", "train.py", "--x"], "auto"),
        (["bash", "-c", "cd . && exec python train.py --x"], "2"),
        (["bash", "-c", "torchrun --nproc_per_node=2 --nnodes=4 train.py --x; true"], "auto"),
        (["accelerate", "launch", "--cpu", "--num_processes=2", "train.py", "--x"], "auto"),
        (["python", "-c", TOGETHER, "--x"], "2"),
        (["bash", "-c", "exec python -m rekindle.launch train.py --x"], "2"),
    ],
    ids=[
        "python",
        "torchrun",
        "shell",
        "torchrun in a shell",
        "accelerate",
        "code",
        "the launcher",
    ],
)
def test_two_workers_of_one_pod_train_together(start_pod, tmp_path, command, nproc):
    pod = start(start_pod, "a", *command, nproc=nproc)
    assert pod.exit_code(240.0) == 0, pod.text()
    for rank in (0, 1):
        said = told(tmp_path, rank)
        assert said["sum"] == 2
        assert (said["RANK"], said["LOCAL_RANK"], said["WORLD_SIZE"]) == (rank, rank, 2)
        assert (said["LOCAL_WORLD_SIZE"], said["GROUP_RANK"]) == (2, 0)
        assert said["argv"] == ["--x"]


@pytest.mark.parametrize(
    "command",
    [
        ["bash", "-c", "torchrun --nnodes=5 --rdzv_backend=c10d --rdzv_endpoint=no:1 train.py"],
        ["bash", "-c", "torchrun --standalone train.py"],
        ["bash", "-c", "torchrun --nnodes=$NNODES --node_rank=$NODE_RANK train.py"],
    ],
    ids=["another rendezvous", "standalone", "Kubeflow's variables"],
)
def test_a_torchrun_in_a_shell_is_a_node_of_the_round(coordinator, start_pod, tmp_path, command):
    for name in ("a", "b"):
        start(start_pod, name, *command, to=coordinator)
    for name in ("a", "b"):
        ready(coordinator, name)
    coordinator.form("a", "b")
    coordinator.wait_for(
        lambda: all(r.phase is AgentPhase.DONE for r in coordinator.reports.values()), 240.0
    )
    assert [told(tmp_path, rank)["sum"] for rank in (0, 1)] == [2, 2]
    assert [told(tmp_path, rank)["GROUP_RANK"] for rank in (0, 1)] == [0, 1]


@pytest.mark.parametrize(
    ("command", "script", "code", "cause", "message"),
    [
        (["bash", "-c", "python train.py"], "1 / 0", 1, Cause.USER_ERROR, "ZeroDivisionError"),
        (["bash", "-c", "torchrun train.py"], "1 / 0", 1, Cause.USER_ERROR, "ZeroDivisionError"),
        (["accelerate", "launch", "--cpu", "train.py"], "1 / 0", 1, Cause.USER_ERROR, "ZeroDivis"),
        (["python", "-c", "1 / 0"], "", 1, Cause.USER_ERROR, "ZeroDivisionError"),
        (["bash", "-c", "exit 3"], "", 1, Cause.USER_ERROR, "exited with code 3"),
        (["bash", "-c", "kill -SEGV $$"], "", 1, Cause.CRASHED, "crashed with SIGSEGV"),
        (["bash", "-c", "kill -KILL $$"], "", 76, Cause.WORKER_KILLED, "killed by SIGKILL"),
        (["bash", "-c", "exit 75"], "", 75, Cause.SAVED, ""),
        (["bash", "-c", "torchrun train.py"], "raise SystemExit(75)", 75, Cause.SAVED, ""),
        (
            ["accelerate", "launch", "--cpu", "train.py"],
            "raise SystemExit(75)",
            75,
            Cause.SAVED,
            "",
        ),
    ],
)
def test_how_a_program_ends_is_told_as_of_a_script(
    start_pod, command, script, code, cause, message
):
    pod = start(start_pod, "a", *command, script=script)
    assert pod.exit_code(240.0) == code, pod.text()
    assert pod.outcome().cause == cause
    assert message in pod.outcome().message


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["torchrun", "--virtual-local-rank", "train.py"], "--virtual-local-rank"),
        (["no-such-program"], "there is no executable 'no-such-program'"),
        (["python", "absent.py"], "there is no script 'absent.py'"),
        (["mpirun", "-np", "2", "x"], "mpirun starts processes on other machines"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_starts(start_pod, command, message):
    pod = start(start_pod, "a", *command)
    assert pod.exit_code() == 1
    assert pod.outcome().cause == Cause.CONFIGURATION
    assert message in pod.outcome().message


# A shell that starts a worker which saves when it is told to, and one that leaves a stray behind.
SAVES = """
import os, pathlib, signal, subprocess, sys, time
shared = pathlib.Path(os.environ["SHARED"])
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
stray = subprocess.Popen(["sleep", "600"], start_new_session=True)
(shared / "new").write_text(str(stray.pid))
(shared / "new").rename(shared / "stray")
while True: time.sleep(0.01)
"""


def eventually(what: Callable[[], object], timeout: float = 90.0) -> None:
    deadline = time.monotonic() + timeout
    while not what():
        assert time.monotonic() < deadline, "in vain"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    "command",
    ["python train.py; echo shell goes on", "torchrun train.py"],
    ids=["script", "torchrun"],
)
def test_a_notice_reaches_what_a_shell_runs_and_nothing_stays_behind(
    coordinator, start_pod, tmp_path, command
):
    pod = start(start_pod, "a", "bash", "-c", command, script=SAVES, to=coordinator)
    ready(coordinator, "a")
    coordinator.form("a")
    stray = tmp_path / "stray"
    coordinator.wait_for(stray.exists, 240.0)
    pod.terminate()
    coordinator.wait_for(lambda: coordinator.reports["a"].notice)
    coordinator.order("a", DirectiveKind.SAVE, seconds=25.0)
    assert pod.exit_code(240.0) == 75, pod.text()
    assert not alive(int(stray.read_text()))


def test_a_program_dies_with_its_agent_and_with_it_what_it_has_started(
    coordinator, start_pod, tmp_path
):
    pod = start(start_pod, "a", "bash", "-c", "python train.py; true", script=SAVES, to=coordinator)
    ready(coordinator, "a")
    coordinator.form("a")
    stray = tmp_path / "stray"
    coordinator.wait_for(stray.exists, 240.0)
    os.kill(pod.pid, signal.SIGKILL)
    pod.exit_code()
    eventually(lambda: not alive(int(stray.read_text())))
