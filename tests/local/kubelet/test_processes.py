import asyncio
import contextlib
import gc
import os
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from rekindle_local.kubelet import hostsfile
from rekindle_local.kubelet.containers.processes import (
    ID_VARIABLE,
    ROOT_VARIABLE,
    ContainerCommand,
    ContainerExit,
    ContainerProcess,
    StartError,
    kill_marked,
)

pytestmark = pytest.mark.processes


def command(script, tmp_path, **options):
    argv = options.pop("argv", ("sh", "-c", script))
    env = {"PATH": os.environ["PATH"], ID_VARIABLE: f"id-{os.getpid()}-{time.time_ns()}"}
    return ContainerCommand(argv=argv, env=env, cwd=tmp_path, log=tmp_path / "log", **options)


async def until(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "condition not met in time"
        await asyncio.sleep(0.02)


def alive(pid):
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def texts(path):
    return [line.split(" ", 3)[3] for line in path.read_text().splitlines()]


def test_output_and_exit_code_are_those_of_the_command(tmp_path):
    async def run():
        process = await ContainerProcess.start(command("echo out; echo err >&2; exit 7", tmp_path))
        return await process.wait()

    assert asyncio.run(run()) == ContainerExit(code=7, signal=0)
    assert texts(tmp_path / "log") == ["out", "err"]


def test_a_signal_reaches_pid_1_only(tmp_path):
    script = (
        "(trap 'echo child' TERM; sleep 0.5 & wait; wait) & trap 'echo main; exit 3' TERM; wait"
    )

    async def run():
        process = await ContainerProcess.start(command("echo up; " + script, tmp_path))
        await until(lambda: len(process.tree()) >= 3)
        process.signal(signal.SIGTERM)
        return await process.wait()

    assert asyncio.run(run()).code == 3
    assert texts(tmp_path / "log") == ["up", "main"]


def test_when_pid_1_is_killed_children_in_their_own_sessions_die_too(tmp_path):
    async def run():
        script = "setsid sleep 60 & setsid setsid sleep 60 & (sleep 60 &) ; sleep 60"
        process = await ContainerProcess.start(command(script, tmp_path))
        await until(lambda: len(process.tree()) >= 5)
        tree = process.tree()
        assert tree[0] == process.pid
        process.signal(signal.SIGKILL)
        ended = await process.wait()
        return ended, [pid for pid in tree if psutil.pid_exists(pid)]

    ended, left = asyncio.run(run())
    assert ended == ContainerExit(code=137, signal=9)
    assert left == []


def test_kill_ends_a_container_that_ignores_signals(tmp_path):
    async def run():
        script = "trap '' TERM; echo up; while :; do sleep 1; done"
        process = await ContainerProcess.start(command(script, tmp_path))
        await until((tmp_path / "log").read_text)
        process.signal(signal.SIGTERM)
        process.kill()
        return await process.wait()

    assert asyncio.run(run()).code == 137


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("no-such-command",), r'exec: "no-such-command": executable file not found in \$PATH'),
        (("/no/such/file",), "no such file or directory"),
        (("/etc/passwd",), "permission denied"),
    ],
)
def test_a_command_that_cannot_run_is_told_as_a_runtime_tells_it(argv, message, tmp_path):
    with pytest.raises(StartError, match=message):
        asyncio.run(ContainerProcess.start(command("", tmp_path, argv=argv)))


def test_a_file_in_path_that_is_not_executable_is_not_found(tmp_path):
    (tmp_path / "file").write_text("not executable")
    env = {"PATH": str(tmp_path)}
    unknown = replace(command("", tmp_path, argv=("file",)), env=env)
    with pytest.raises(StartError, match="not found in"):
        asyncio.run(ContainerProcess.start(unknown))


def test_a_working_directory_that_does_not_exist_is_named(tmp_path):
    gone = replace(command("true", tmp_path), cwd=tmp_path / "gone")
    with pytest.raises(StartError, match="gone.*has to exist here"):
        asyncio.run(ContainerProcess.start(gone))


def test_a_killed_shim_takes_its_container_along(tmp_path):
    async def run():
        process = await ContainerProcess.start(command("setsid sleep 60 & sleep 60", tmp_path))
        await until(lambda: len(process.tree()) >= 3)
        tree = process.tree()
        os.kill(psutil.Process(process.pid).ppid(), signal.SIGKILL)
        ended = await process.wait()
        await until(lambda: not any(alive(pid) for pid in tree))
        return ended

    assert asyncio.run(run()) == ContainerExit(code=137, signal=9)


def test_containers_do_not_outlive_a_killed_kubelet(tmp_path):
    program = (
        "import asyncio, os, sys\n"
        "from pathlib import Path\n"
        "from rekindle_local.kubelet.containers.processes import ContainerCommand\n"
        "from rekindle_local.kubelet.containers.processes import ContainerProcess\n"
        "async def main():\n"
        "    here = Path(sys.argv[1])\n"
        "    command = ('sh', '-c', 'setsid sleep 60 & sleep 60')\n"
        "    one = await ContainerProcess.start(ContainerCommand(argv=command,\n"
        "        env=dict(os.environ), cwd=here, log=here / 'log'))\n"
        "    while len(one.tree()) < 3: await asyncio.sleep(0.02)\n"
        "    print(*one.tree(), flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    root = Path(__file__).parents[3] / "operator"
    kubelet = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    with kubelet:
        pids = [int(pid) for pid in kubelet.stdout.readline().split()]
        kubelet.kill()
    assert len(pids) >= 3
    asyncio.run(until(lambda: not any(alive(pid) for pid in pids)))


def test_leftovers_are_found_by_their_mark(tmp_path):
    env = {**os.environ, ROOT_VARIABLE: str(tmp_path)}
    with subprocess.Popen(["sleep", "60"], env=env, start_new_session=True) as left:
        assert kill_marked(ROOT_VARIABLE, str(tmp_path)) == 1
        assert left.wait(60) == -signal.SIGKILL


def test_a_leftover_that_is_just_starting_is_found_too(tmp_path, monkeypatch):
    """Between two programs the kernel shows an empty environment for a moment."""
    env, real, looks = {**os.environ, ROOT_VARIABLE: str(tmp_path)}, psutil.Process.environ, []
    with subprocess.Popen(["sleep", "60"], env=env, start_new_session=True) as left:

        def environ(process):
            looks.append(process.pid)
            return {} if process.pid == left.pid and looks.count(left.pid) == 1 else real(process)

        monkeypatch.setattr(psutil.Process, "environ", environ)
        assert kill_marked(ROOT_VARIABLE, str(tmp_path)) == 1
        assert left.wait(60) == -signal.SIGKILL


def test_a_log_is_cut_at_its_limit_and_one_older_half_is_kept(tmp_path):
    async def run():
        script = "for i in 1 2 3; do seq -f $i-%g 50; sleep 0.1; done"
        process = await ContainerProcess.start(command(script, tmp_path, log_limit=2000))
        await process.wait()

    asyncio.run(run())
    assert texts(tmp_path / "log")[-1] == "3-50"
    assert texts(tmp_path / "log.1")[-1] == "2-50"
    assert "1-1" not in texts(tmp_path / "log") + texts(tmp_path / "log.1")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux ties a child so")
def test_pid_1_is_tied_to_its_shim_by_the_kernel(tmp_path):
    async def run():
        unmarked = {"PATH": os.environ["PATH"]}
        process = await ContainerProcess.start(
            replace(command("exec sleep 60", tmp_path), env=unmarked)
        )
        os.kill(psutil.Process(process.pid).ppid(), signal.SIGKILL)
        await until(lambda: not alive(process.pid))

    asyncio.run(run())


def test_a_last_line_without_newline_is_kept(tmp_path):
    async def run():
        await (await ContainerProcess.start(command("printf end", tmp_path))).wait()

    asyncio.run(run())
    assert texts(tmp_path / "log") == ["end"]


@pytest.mark.parametrize("turns", [1, 5])
def test_a_trial_of_names_that_nobody_waits_for_leaves_no_process(tmp_path, turns):
    async def run():
        trial = asyncio.create_task(hostsfile.problem(tmp_path))
        await until(lambda: trial.done() or psutil.Process().children())
        for _ in range(turns):
            await asyncio.sleep(0)
        trial.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await trial

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", ResourceWarning)
        asyncio.run(run())
        gc.collect()
    assert not [str(one.message) for one in told]
    assert not list(tmp_path.iterdir())
