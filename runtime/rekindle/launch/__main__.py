"""``python -m rekindle.launch [-m] SCRIPT [ARGUMENTS]``: see the package.

Two things come before all else. SIGTERM gets its handler before torch is imported, because as PID
1 a process without one does not notice it. And every way out, wrong arguments and bugs of the
agent included, writes the termination message, because that is all that is left of a pod for
people and for the operator's verdict.
"""

import contextlib
import logging
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from rekindle.checkpoint import flush
from rekindle.checkpoint.location import InvalidLocation, parse
from rekindle.contract import ENV_CHECKPOINT_URI, ENV_TOKEN, Cause, ExitCode, Outcome
from rekindle.launch import settings as environment
from rekindle.launch import termination
from rekindle.launch.settings import Settings
from rekindle.launch.signals import Signals

UPLOAD_SECONDS = 10.0
"""Longest wait for uploads at the end of a pod; agents of an ended job are given 15 s."""
UPLOAD_MARGIN = 2.0
"""Seconds of a grace period that are left alone."""

USAGE = "usage: python -m rekindle.launch [-m] SCRIPT [ARGUMENTS]"

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
        command = checked(arguments)
        settings = environment.from_environment(os.environ)
    except ValueError as error:
        print(f"rekindle.launch: {error}", file=sys.stderr)
        return _refuse(log, str(error))
    # Workers have no business with it, and a script that prints its environment must not tell it.
    os.environ.pop(ENV_TOKEN, None)
    try:
        code = _serve(settings, signals, command)
        await_uploads(os.environ.get(ENV_CHECKPOINT_URI), upload_seconds(settings, signals))
        return code
    except BaseException as error:
        logger.exception("the agent itself has failed")
        lines = traceback.format_exception(error)
        outcome = Outcome(
            cause=Cause.POD_LOST,
            code=int(ExitCode.USER_ERROR),
            message=f"the agent itself has failed: {type(error).__name__}: {error}",
            reason="AgentFailed",
            traceback=termination.middle_out("".join(lines), 2000),
            at=time.time(),
        )
        termination.write(log, outcome)
        return int(ExitCode.USER_ERROR)


def checked(arguments: Sequence[str]) -> list[str]:
    """Check the command line; raises ValueError saying what is missing."""
    command = list(arguments)
    if not command or command == ["-m"]:
        raise ValueError(f"no script to run; {USAGE}")
    target = command[0]
    if target.startswith("-") and target != "-m":
        raise ValueError(f"unknown option {target!r}; {USAGE}. Options of the script come after it")
    if target != "-m" and not Path(target).exists():
        raise ValueError(
            f"there is no script {target!r} in {Path.cwd()}; check args and workingDir of the "
            "container, and that the image holds the file"
        )
    return command


def _refuse(log: Path | None, message: str) -> int:
    code = int(ExitCode.USER_ERROR)
    cause = Cause.CONFIGURATION
    termination.write(log, Outcome(cause=cause, code=code, message=message, at=time.time()))
    return code


def _serve(settings: Settings, signals: Signals, command: Sequence[str]) -> int:
    # Counting GPUs must not initialise CUDA in a process that starts others.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    from rekindle.launch import exporter
    from rekindle.launch.agent import Agent
    from rekindle.launch.client import Coordinator, CoordinatorLink, Link
    from rekindle.launch.session import Session
    from rekindle.launch.solo import SoloLink
    from rekindle.launch.store import Spare

    plain_torch_logs()
    link: Link = CoordinatorLink(Coordinator(settings)) if settings.coordinator else SoloLink()
    session = Session(settings, link, Spare(settings.address), signals)
    agent = Agent(session, signals, command)
    if settings.metrics_port is not None:
        exporter.start(
            session,
            lambda: agent.directory,
            address=settings.address,
            port=settings.metrics_port,
        )
    session.start()
    return agent.serve()


def upload_seconds(settings: Settings, signals: Signals) -> float:
    """How long the pod may stay for uploads: a while, or what is left of its grace period."""
    if signals.noticed_at is None:
        return UPLOAD_SECONDS
    left = signals.noticed_at + settings.grace - UPLOAD_MARGIN - time.monotonic()
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


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: nothing may stand in the way any more, least of all a thread in a network call.
    os._exit(code)
