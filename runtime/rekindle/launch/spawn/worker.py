"""A worker process: runs the user's script as Python would, and leaves word when it fails.

What the script sees is what ``python train.py`` would show it: ``sys.argv``, ``sys.path[0]``,
``__main__``, its own traceback without frames of ours. It is either forked from a process that has
imported much of it (``warm``) or, as ``python -m rekindle.launch.spawn.worker``, an interpreter of
its own. Around that, two things. The process dies with the one that started it (Linux), because a
worker of a killed pod that goes on would write checkpoints beside its successor. And an uncaught
exception becomes an Outcome in the round's directory, unless the trainer, which knows more, has
written one already.

Exit codes pass through: only the script, or the trainer in it, can say 75.

The process ends without taking the interpreter apart. With torch loaded that takes one to two
seconds in which nothing happens that anybody sees, and the next round waits for it. What programs
rely on at their end does happen: other threads are joined, atexit functions run, output is flushed.
"""

import atexit
import contextlib
import ctypes
import os
import runpy
import signal
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType, TracebackType
from typing import NoReturn

from rekindle.api import ENV_RUN_DIR, ExitCode
from rekindle.errors.outcome import classify
from rekindle.launch.health import stacks
from rekindle.launch.spawn.command import LOCAL_RANK
from rekindle.launch.spawn.environment import ENV_TORCHRUN
from rekindle.ranks.control_page import ControlPage

ENV_PARENT = "REKINDLE_PARENT_PID"
"""Pid of the process that a worker dies with, if it was started as a fresh interpreter."""
_PR_SET_PDEATHSIG = 1
TOLD = tuple(int(code) for code in (ExitCode.INTEGRITY, ExitCode.PREEMPTED, ExitCode.SAVED))
"""Exit codes that mean something, the graver first."""


def fresh_arguments(command: Sequence[str], flags: Sequence[str] = ()) -> list[str]:
    """Give the command line of a worker that is a fresh interpreter, with these flags."""
    return [sys.executable, "-u", *flags, "-m", "rekindle.launch.spawn.worker", *command]


def prepare(command: Sequence[str]) -> None:
    """Set ``sys.argv`` and ``sys.path`` as Python would for a script, ``-m ...`` or ``-c ...``."""
    sys.argv = list(command)
    if command[0] == "-m":
        # Python puts the working directory first, as it did for this process.
        sys.argv = list(command[1:])
    elif command[0] == "-c":
        sys.argv = ["-c", *command[2:]]
        if not sys.flags.safe_path:
            sys.path[0] = ""
    elif not sys.flags.safe_path:
        sys.path[0] = os.path.dirname(os.path.realpath(command[0]))


def main(command: Sequence[str]) -> None:
    """Run a script, ``-m module`` or ``-c code``, with arguments; returns when it does."""
    sys.argv = [each.replace(LOCAL_RANK, os.environ.get("LOCAL_RANK", "0")) for each in sys.argv]
    if "__mp_main__" in sys.modules:
        # What multiprocessing, when it was imported, took for the main program.
        sys.modules["__mp_main__"] = _MainAlias("__mp_main__")
    page = ControlPage.from_environment()
    if page is not None:
        stacks.prepare(page.directory, int(os.environ.get("RANK", "0")))
    try:
        if command[0] == "-m":
            runpy.run_module(command[1], run_name="__main__", alter_sys=True)
        elif command[0] == "-c":
            _run_code(command[1])
        else:
            # Absolute, as Python makes __file__ and the names in tracebacks; argv[0] follows.
            runpy.run_path(os.path.abspath(command[0]), run_name="__main__")
    except SystemExit as request:
        if isinstance(request.code, str) and page is not None:
            leave_word(page, request)
        raise
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if page is not None:
            leave_word(page, error)
        show(error)
        sys.exit(1)


def _run_code(code: str) -> None:
    """Run code as ``python -c`` does."""
    module = ModuleType("__main__")
    sys.modules["__main__"] = module
    exec(compile(code, "<string>", "exec"), module.__dict__)


class _MainAlias(ModuleType):
    """Another name of ``__main__``, whichever that is: spawned processes pickle by it."""

    def __getattr__(self, name: str) -> object:
        return getattr(sys.modules["__main__"], name)


def die_with(parent: int) -> None:
    """Ask the kernel for SIGKILL when the parent dies; a no-op where there is no such thing."""
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        # It has died before the kernel was asked.
        os.kill(os.getpid(), signal.SIGKILL)


def leave_word(page: ControlPage, error: BaseException) -> None:
    """Write the outcome of this worker unless there is one."""
    rank = int(os.environ.get("RANK", "0"))
    if (page.directory / f"outcome-{rank}.json").exists():
        return
    step = page.progress().step if page.attached else None
    error.__traceback__ = user_frames(error.__traceback__)
    # A full disk must not hide the error itself, which is printed next.
    with contextlib.suppress(OSError):
        outcome = classify(error, step=step, rank=rank, now=time.time())
        if isinstance(error, SystemExit):
            # sys.exit("words") is a message to people, not an error with a traceback.
            words = str(error).strip().split("\n")[0]
            outcome = replace(outcome, message=words[:1000], traceback=None)
        page.write_outcome(outcome)


def show(error: BaseException) -> None:
    """Print an uncaught exception as Python would, without frames of ours."""
    trace = user_frames(error.__traceback__)
    sys.excepthook(type(error), error.with_traceback(trace), trace)


def user_frames(trace: TracebackType | None) -> TracebackType | None:
    """Leave out the frames of this module and of runpy, up to the script's first.

    An error from before the script's first line (no such file, a syntax error) has no such frame;
    then there is nothing to show but the error.
    """
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if name != __file__ and not name.startswith("<frozen"):
            return trace
        trace = trace.tb_next
    return None


def leave(code: object) -> NoReturn:
    """End the process as ``sys.exit(code)`` would be seen from outside, but at once."""
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    leave_code(code or 0)
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        keep_operators()
        atexit._run_exitfuncs()
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit((code or 0) & 0xFF)


def leave_code(code: int) -> None:
    """Leave an exit code of ours for the agent, where a launcher in between tells 1 for all."""
    if ENV_TORCHRUN not in os.environ or code not in TOLD:
        return
    with contextlib.suppress(OSError, KeyError):
        name = f"code-{os.environ.get('RANK', '0')}"
        (Path(os.environ[ENV_RUN_DIR]) / name).write_text(str(code))


def left_code(directory: Path, rank: int | None) -> int | None:
    """Give the exit code that a worker of this rank, or with None of any, has left."""
    found = set()
    for path in directory.glob("code-*" if rank is None else f"code-{rank}"):
        with contextlib.suppress(OSError, ValueError):
            found.add(int(path.read_text()))
    return next((code for code in TOLD if code in found), None)


def keep_operators() -> None:
    """Have torch leave its operators registered at the end of the process.

    Taking back each of its libraries costs 30 to 150 ms in all, for memory that the kernel is about
    to take anyway, and the next round waits for it.
    """
    take_back = getattr(sys.modules.get("torch.library"), "_del_library", None)
    if take_back is None:
        return
    for finalizer in list(getattr(weakref.finalize, "_registry", ())):
        found = finalizer.peek()
        if found is not None and found[1] is take_back:
            finalizer.atexit = False


def end(command: Sequence[str]) -> NoReturn:
    """Run the script and end the process as Python would."""
    try:
        main(command)
    except SystemExit as request:
        leave(request.code)
    except KeyboardInterrupt as interrupt:
        show(interrupt)
        # As Python does: whoever waits for this process shall see what ended it.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except Exception:
        # Not the script's fault: this module's. Say so with the whole traceback.
        traceback.print_exc()
        leave(1)
    leave(0)


if __name__ == "__main__":
    if ENV_PARENT in os.environ:
        die_with(int(os.environ.pop(ENV_PARENT)))
    given = tuple(sys.argv[2:] if sys.argv[1:2] == ["-u"] else sys.argv[1:])
    prepare(given)
    end(given)
