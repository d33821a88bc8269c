"""``python -m rekindle.launch [-m] SCRIPT [ARGUMENTS]``, or ``-- COMMAND...``: see the package.

Two things come before all else. SIGTERM gets its handler before torch is imported, because as PID
1 a process without one does not notice it. And every way out, wrong arguments and bugs of the
agent included, writes the termination message, because that is all that is left of a pod for
people and for the operator's verdict.
"""

import contextlib
import importlib.util
import io
import logging
import os
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rekindle.api import (
    ENV_CHECKPOINT_URI,
    ENV_PROGRESS,
    ENV_RUN_DIR,
    ENV_TOKEN,
    ENV_WARM,
    AgentPhase,
    Cause,
    ExitCode,
    Outcome,
)
from rekindle.checkpoint.objects.location import InvalidLocation, parse
from rekindle.checkpoint.saving import flush
from rekindle.launch.health import preemption_notices
from rekindle.launch.health.progress_readers import ProgressSource, source_of
from rekindle.launch.pod import settings as environment
from rekindle.launch.pod import termination_message
from rekindle.launch.pod.settings import Settings
from rekindle.launch.pod.signals import Signals
from rekindle.launch.spawn import fork_server_client, preload, torchrun_flags, worker
from rekindle.launch.spawn import init_process as first
from rekindle.launch.spawn.command import LaunchCommand, Program, Script, command_of, is_python
from rekindle.launch.spawn.environment import of_pod
from rekindle.launch.spawn.fork_server_client import Starter

UPLOAD_SECONDS = 10.0
"""Longest wait for uploads at the end of a pod; agents of an ended job are given 15 s."""
UPLOAD_MARGIN = 2.0
"""Seconds of a grace period that are left alone."""

USAGE = "usage: python -m rekindle.launch [-m] SCRIPT [ARGUMENTS], or -- COMMAND [ARGUMENTS]"

ENV_SOUGHT = "REKINDLE_SOUGHT_TORCH"
"""Set once another interpreter has been tried, so that two without torch do not call each other."""

logger = logging.getLogger("rekindle.launch")


def main(arguments: Sequence[str]) -> int:
    """Run the pod; gives its exit code."""
    signals = Signals()
    signals.install()
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s rekindle %(message)s", stream=sys.stderr
    )
    logging.getLogger("rekindle").setLevel(logging.INFO)
    log = environment.termination_log(os.environ)
    try:
        if importlib.util.find_spec("torch") is None:
            seek_torch(arguments)
        command = checked(arguments)
        settings = environment.from_environment(os.environ, command.nproc)
        source = source_of(os.environ.get(ENV_PROGRESS))
    except ValueError as error:
        print(f"rekindle.launch: {error}", file=sys.stderr)
        return _refuse(log, str(error))
    for note in command.notes:
        logger.info("%s", note)
    # Workers have no business with it, and a script that prints its environment must not tell it.
    first.forget(ENV_TOKEN)
    try:
        code = _serve(settings, signals, command, source)
        await_uploads(os.environ.get(ENV_CHECKPOINT_URI), upload_seconds(signals))
        return code
    except BaseException as error:
        logger.exception("the agent itself has failed")
        lines = traceback.format_exception(error)
        outcome = Outcome(
            cause=Cause.POD_LOST,
            code=int(ExitCode.USER_ERROR),
            message=f"the agent itself has failed: {type(error).__name__}: {error}",
            reason="AgentFailed",
            traceback=termination_message.middle_out("".join(lines), 2000),
            at=time.time(),
        )
        termination_message.write(log, outcome)
        return int(ExitCode.USER_ERROR)


def checked(arguments: Sequence[str]) -> LaunchCommand:
    """Check the command line; raises ValueError saying what is missing."""
    words = list(arguments)
    if words[:1] == ["--"]:
        command = command_of(
            words[1:],
            torchrun=lambda given, legacy: torchrun_flags.parse(given, legacy, os.environ),
            same_python=_is_this_python,
            read=_shell_script,
        )
    else:
        if not words or words == ["-m"]:
            raise ValueError(f"no script to run; {USAGE}")
        if words[0].startswith("-") and words[0] != "-m":
            raise ValueError(
                f"unknown option {words[0]!r}; {USAGE}. Options of the script come after it"
            )
        command = LaunchCommand(target=Script(arguments=tuple(words)))
    target = command.target
    name = target.arguments[0]
    where = "check command, args and workingDir of the container, and that the image holds the file"
    if isinstance(target, Program):
        if shutil.which(name) is None:
            raise ValueError(f"there is no executable {name!r} (seen from {Path.cwd()}); {where}")
    elif name not in {"-m", "-c"} and not Path(name).exists():
        raise ValueError(f"there is no script {name!r} in {Path.cwd()}; {where}")
    return command


def _is_this_python(word: str) -> bool:
    """Whether a word names the interpreter that this process is."""
    if word == sys.orig_argv[0]:
        return True
    found = shutil.which(word)
    if found is None:
        return False
    mine = Path(sys.executable)
    try:
        return Path(found).parent.samefile(mine.parent) and Path(found).samefile(mine)
    except OSError:
        return False


def _shell_script(word: str) -> str | None:
    """Give the text of a shell script; None for anything else."""
    path = shutil.which(word) or word
    try:
        with open(path, "rb") as file:
            text = file.read(1 << 16)
    except OSError:
        return None
    first = text.partition(b"\n")[0]
    is_shell = first.startswith(b"#!") and first.rstrip().endswith((b"sh", b"sh -e", b"sh -ex"))
    return text.decode(errors="replace") if is_shell or path.endswith(".sh") else None


def seek_torch(arguments: Sequence[str]) -> None:
    """Go on in the interpreter of the command, if that has torch; raises ValueError if none has.

    The launcher may have been started by the first ``python3`` there is, while torchrun and the
    like are scripts of another one, which their first line names.
    """
    tried = sys.executable
    found = shutil.which(arguments[1]) if arguments[:1] == ["--"] and len(arguments) > 1 else None
    with contextlib.suppress(OSError):
        if found is not None:
            other = found if is_python(found) else interpreter_of(_first_line(Path(found)))
            if other is not None and other != sys.executable and ENV_SOUGHT not in os.environ:
                os.environ[ENV_SOUGHT] = "1"
                os.execv(other, [other, "-m", "rekindle.launch", *arguments])
    raise ValueError(
        f"there is no torch in {tried} (Python {sys.version.split()[0]}); install torch in the "
        "image, for the Python that the container's command names"
    )


def _first_line(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.readline(4096)


def interpreter_of(line: bytes) -> str | None:
    """Give the Python interpreter that a script's first line names by its path."""
    if not line.startswith(b"#!"):
        return None
    words = line[2:].decode(errors="replace").split()
    return words[0] if words and is_python(words[0]) and words[0].startswith("/") else None


def _refuse(log: Path | None, message: str) -> int:
    code = int(ExitCode.USER_ERROR)
    cause = Cause.CONFIGURATION
    termination_message.write(log, Outcome(cause=cause, code=code, message=message, at=time.time()))
    return code


def _serve(
    settings: Settings, signals: Signals, command: LaunchCommand, source: ProgressSource
) -> int:
    # First of all: it takes longest, and what follows has threads and files of its own.
    directory = Path(tempfile.mkdtemp(prefix="rekindle-"))
    starter = _starter(settings, signals, command, directory)
    from rekindle.launch.agent.agent import Agent
    from rekindle.launch.coordinator.client import CoordinatorConnection, CoordinatorLink, Link
    from rekindle.launch.coordinator.peers import Peers
    from rekindle.launch.coordinator.reachability import Doorstep
    from rekindle.launch.coordinator.session import PodSession
    from rekindle.launch.coordinator.single_pod import SoloLink
    from rekindle.launch.health import exporter
    from rekindle.launch.pod.round_store import Spare

    plain_torch_logs()
    link: Link = CoordinatorLink(CoordinatorConnection(settings)) if settings.access else SoloLink()
    spare = Spare(settings.address)
    phase = AgentPhase.WAITING if starter.ready else AgentPhase.WARMING
    session = PodSession(settings, link, spare, signals, phase)
    agent = Agent(
        session,
        signals,
        starter,
        directory,
        source=source,
        target=command.target,
        gpus=environment.gpus() if getattr(command.target, "one_gpu", False) else (),
    )
    if settings.metrics_port is not None:
        exporter.start(
            session,
            lambda: agent.directory,
            address=settings.address,
            port=settings.metrics_port,
            tell=signals.tell,
        )
    if settings.access:
        try:
            session.reach_port = Doorstep(settings.address, settings.uid).port
        except OSError as error:
            logger.warning("other pods cannot ask whether this one is there: %s", error)
        Peers(session).start()
    signals.grace = settings.grace
    preemption_notices.watch(preemption_notices.notice_file(os.environ), signals.tell)
    session.start()
    return agent.serve()


def _starter(
    settings: Settings, signals: Signals, command: LaunchCommand, directory: Path
) -> Starter:
    """Begin to warm up what workers are started from.

    While this process has no threads, the fork server is forked from it: torch is then imported
    once for both, and in memory once.
    """
    (directory / "prometheus").mkdir()
    target = command.target
    if isinstance(target, Program):
        # Descriptors do not come through launchers; another file might have their number there.
        os.environ.update(of_pod(settings, directory, (), command.role or "default"))
        return Starter(target=target, count=settings.nproc, memory=(), warm=False)
    memory = memory_files()
    variables = of_pod(settings, directory, memory, command.role or "default")
    warm = os.environ.get(ENV_WARM) != "0" and fork_server_client.usable() and not target.flags
    # Some variables are read by libraries that are here already, or are set by the script first.
    late = "torch" in sys.modules and "OMP_NUM_THREADS" in variables
    top = preload.script_top(target.arguments)
    os.environ.update(variables)
    like_this = None
    if warm and not late and not top.variables and not top.defaults:
        preload.import_base()
        if threading.active_count() == 1:

            def like_this() -> None:
                signals.uninstall()
                plain_logs()
                unbuffer()

    return Starter(
        target=target,
        count=settings.nproc,
        memory=memory,
        warm=warm,
        like_this=like_this,
    )


def plain_logs() -> None:
    """Undo what ``main`` has done to logging: whoever is forked from here decides for itself."""
    for handler in logging.root.handlers[:]:
        logging.root.removeHandler(handler)
    logging.getLogger("rekindle").setLevel(logging.NOTSET)


def unbuffer() -> None:
    """Have what is printed go out at once, as ``python -u`` would, also if this process buffers."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        old = getattr(sys, name)
        if isinstance(old, io.TextIOWrapper) and not isinstance(old.buffer, io.RawIOBase):
            raw = io.FileIO(number, "w", closefd=False)
            raw.name = f"<{name}>"
            new: Any = io.TextIOWrapper(
                raw,
                encoding=old.encoding,
                errors=old.errors,
                newline="\n",
                write_through=True,
            )
            new.mode = "w"
            setattr(sys, name, new)
            setattr(sys, f"__{name}__", new)


def memory_files() -> tuple[int, ...]:
    """Make two files without a name that workers keep copies of the state in (``hostcopy``).

    They take no memory until something is written, and count as the container's like its own.
    None where the system has no such files.
    """
    if not hasattr(os, "memfd_create"):
        return ()
    try:
        return tuple(os.memfd_create(f"rekindle-{number}") for number in range(2))
    except OSError as error:
        logger.warning("no memory that outlives workers: %s", error)
        return ()


def upload_seconds(signals: Signals) -> float:
    """How long the pod may stay for uploads: a while, or what is left of its grace period."""
    if signals.noticed_at is None:
        return UPLOAD_SECONDS
    left = signals.noticed_at + signals.grace - UPLOAD_MARGIN - time.monotonic()
    return min(max(0.0, left), UPLOAD_SECONDS)


def await_uploads(uri: str | None, seconds: float) -> None:
    """Let processes finish that store the snapshot of a worker which is dead already.

    The kernel kills everything in a container whose PID 1 ends, and with it a checkpoint that is
    whole in memory and on its way. Without a root in the environment there is nothing to look for.
    """
    with contextlib.suppress(InvalidLocation):
        if uri and not flush.wait(str(parse(uri)), seconds):
            logger.warning("a snapshot is still on its way after %.0f s and is given up", seconds)


def plain_torch_logs() -> None:
    """Give torch's log handlers a plain format.

    torch's own formatter imports ``torch._dynamo`` (800 modules, a second) for the first record
    that carries an exception, which would be the first failure of a worker: no moment to be slow.
    """
    plain = logging.Formatter("%(asctime)s %(name)s %(message)s")
    # Several of torch's loggers have handlers of their own.
    for name in [name for name in logging.root.manager.loggerDict if name.startswith("torch")]:
        for handler in logging.getLogger(name).handlers:
            handler.setFormatter(plain)


def stand_in_a_worker(arguments: Sequence[str]) -> None:
    """Be the script itself where a launcher has started this process already.

    A script of the image may end in ``exec python -m rekindle.launch train.py``, which the operator
    cannot see; its launcher comes before that, and one for each pod is enough.
    """
    if ENV_RUN_DIR not in os.environ or "RANK" not in os.environ or not arguments:
        return
    if arguments[0] == "--":
        os.execvp(arguments[1], list(arguments[1:]))
    fresh = worker.fresh_arguments(arguments)
    os.execv(fresh[0], fresh)


if __name__ == "__main__":
    stand_in_a_worker(sys.argv[1:])
    first.stand_before_the_agent()
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: nothing may stand in the way any more, least of all a thread in a network call.
    os._exit(code)
