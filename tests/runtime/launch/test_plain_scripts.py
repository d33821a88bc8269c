"""Scripts without any import of ours: since when they run, how far they are, how they end."""

import json
import re

import pytest

from rekindle.api import AgentPhase, Cause, DirectiveKind

pytestmark = pytest.mark.processes

# Forms a group, and goes on until it is told to end.
DDP = """
import os, pathlib, torch, torch.distributed as dist
dist.init_process_group("gloo")
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 1))
shared = pathlib.Path(os.environ["SHARED"])
while True:
    model(torch.ones(2, 4)).sum().backward()
    stop = torch.tensor(float((shared / "enough").exists()))
    dist.all_reduce(stop)
    if stop:
        break
dist.barrier()
dist.destroy_process_group()
"""
QUIET = "import os, pathlib, time\nshared = pathlib.Path(os.environ['SHARED'])\n"
UNTIL_ENOUGH = "while not (shared / 'enough').exists(): time.sleep(0.01)\n"


def running(coordinator, *pods):
    coordinator.wait_for(
        lambda: all(
            pod in coordinator.reports
            and (timings := coordinator.reports[pod].timings) is not None
            and timings.running is not None
            for pod in pods
        )
    )


def form(coordinator, *pods):
    for pod in pods:
        coordinator.wait_phase(pod, AgentPhase.WAITING)
    return coordinator.form(*pods)


def test_a_plain_ddp_script_runs_once_its_group_is_formed(coordinator, start_pod, tmp_path):
    pods = {name: start_pod(name, DDP, to=coordinator) for name in ("a", "b")}
    form(coordinator, *pods)
    running(coordinator, *pods)
    for name in pods:
        report = coordinator.reports[name]
        assert report.timings.running == report.timings.grouped
        assert report.timings.started <= report.timings.running < 9.0
        assert report.timings.stepped is None
        assert report.progress is None
        assert report.ranks == ()
        assert report.hang is None
    (tmp_path / "enough").touch()
    for name in pods:
        coordinator.wait_phase(name, AgentPhase.DONE)


def test_a_script_that_forms_no_group_runs_after_a_while(coordinator, start_pod, tmp_path):
    start_pod("a", QUIET + UNTIL_ENOUGH, to=coordinator)
    form(coordinator, "a")
    running(coordinator, "a")
    timings = coordinator.reports["a"].timings
    assert timings.running == pytest.approx(timings.started + 10.0, abs=0.01)
    (tmp_path / "enough").touch()
    assert coordinator.wait_phase("a", AgentPhase.DONE).timings.running == timings.running


def test_a_report_makes_a_script_run_and_its_last_word_is_kept(coordinator, start_pod, tmp_path):
    script = (
        QUIET + "import rekindle\n"
        "rekindle.report(step=500, total_steps=510, loss=0.5)\n"
        + UNTIL_ENOUGH
        + "for step in range(501, 511): rekindle.report(step=step, total_steps=510)\n"
    )
    start_pod("a", script, to=coordinator)
    form(coordinator, "a")
    coordinator.wait_for(lambda: coordinator.reports["a"].progress)
    report = coordinator.reports["a"]
    progress = report.progress
    assert (progress.step, progress.total_steps, progress.loss) == (500, 510, 0.5)
    assert progress.round_steps == 1
    assert report.timings.running is not None
    (tmp_path / "enough").touch()
    done = coordinator.wait_phase("a", AgentPhase.DONE)
    assert (done.progress.step, done.progress.round_steps) == (510, 11)


@pytest.mark.parametrize("source", ["file", "tensorboard", "pattern", "huggingface"])
def test_every_source_of_progress(coordinator, start_pod, tmp_path, source):
    given, script = {
        "file": (
            {"file": "steps.jsonl"},
            "open('steps.jsonl', 'w').write('{\"step\": 7, \"loss\": 0.5}\\n')\n",
        ),
        "tensorboard": (
            {"tensorboard": "logs"},
            "from torch.utils.tensorboard import SummaryWriter\n"
            "log = SummaryWriter('logs')\nlog.add_scalar('loss', 0.5, 7)\nlog.flush()\n",
        ),
        "pattern": (
            {"log": {"pattern": r"step=(?P<step>\d+) loss=(?P<loss>\S+)"}},
            "print('step=7 loss=0.5')\n",
        ),
        "huggingface": (
            {"log": {"preset": "huggingface"}},
            "import sys\nsys.stderr.write('\\r 70%|#####     | 7/10 [00:01<00:01, 5it/s]')\n"
            "sys.stderr.write('\\r 70%|#####     | 7/10 [00:01<00:01, 5it/s]\\r')\n"
            "print({'loss': 0.5, 'epoch': 1.5})\n",
        ),
    }[source]
    environment = {"REKINDLE_PROGRESS": json.dumps(given)}
    start_pod("a", QUIET + script + UNTIL_ENOUGH, to=coordinator, environment=environment)
    form(coordinator, "a")
    coordinator.wait_for(
        lambda: (
            (progress := coordinator.reports["a"].progress) is not None
            and (source == "tensorboard" or progress.loss is not None)
        )
    )
    progress = coordinator.reports["a"].progress
    assert (progress.step, progress.round_steps) == (7, 1)
    assert progress.loss == (None if source == "tensorboard" else 0.5)
    (tmp_path / "enough").touch()
    coordinator.wait_phase("a", AgentPhase.DONE)


def test_lines_that_are_read_along_reach_the_log_unchanged_also_of_a_killed_worker(start_pod):
    script = (
        "import os, signal, sys\n"
        "for number in range(2000):\n"
        "    print('out', number)\n"
        "    sys.stderr.write(f'err {number}\\r\\n')\n"
        "sys.stdout.write('no end')\n"
        "sys.stdout.flush()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    pattern = json.dumps({"log": {"pattern": r"out (?P<step>\d+)"}})
    pod = start_pod("a", script, environment={"REKINDLE_PROGRESS": pattern})
    assert pod.exit_code() == 76  # killed, as far as anybody can tell by somebody else
    expected = b"".join(b"out %d\nerr %d\r\n" % (number, number) for number in range(2000))
    # What the launcher has to say itself comes when it comes, and was never read along.
    said = re.sub(rb"\d{4}-\d\d-\d\d [\d:,]+ rekindle [^\n]*\n", b"", pod.log.read_bytes())
    assert expected + b"no end" in said
    assert pod.outcome().step == 1999


@pytest.mark.parametrize(
    ("handler", "code", "cause"),
    [
        ("pass", 76, Cause.PREEMPTED),
        ("signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))", 75, Cause.SAVED),
        ("signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))", 76, Cause.PREEMPTED),
        ("signal.signal(signal.SIGTERM, lambda *_: 1 / 0)", 76, Cause.PREEMPTED),
    ],
    ids=["killed by it", "saves", "ends", "fails"],
)
def test_a_preempted_script_is_never_a_user_error(
    coordinator, start_pod, tmp_path, handler, code, cause
):
    script = QUIET + f"import signal, sys\n{handler}\n(shared / 'up').touch()\n" + UNTIL_ENOUGH
    pod = start_pod("a", script, to=coordinator)
    form(coordinator, "a")
    coordinator.wait_for((tmp_path / "up").exists)
    pod.terminate()
    coordinator.wait_for(lambda: coordinator.reports["a"].notice)
    coordinator.order("a", DirectiveKind.SAVE, seconds=20.0)
    assert pod.exit_code() == code
    assert pod.outcome().cause == cause


def test_a_source_that_makes_no_sense_is_refused_before_anything_starts(start_pod):
    pattern = json.dumps({"log": {"pattern": "step"}})
    pod = start_pod("a", "print('started')", environment={"REKINDLE_PROGRESS": pattern})
    assert pod.exit_code() == 1
    assert pod.outcome().cause == Cause.CONFIGURATION
    assert "has no group named step" in pod.outcome().message
    assert "started" not in pod.text()
