"""Keeping one process alive, as a Deployment keeps its pod: started again, with back-off.

Its end is seen at once; that it hangs is seen by its health endpoint, three times in a row, and
ends in SIGKILL, as a liveness probe does. Until it has answered once it is starting, for which a
busy machine may need long: as with a startup probe, nothing is held against it for two minutes.

The operator may die at any moment without harm to the training, so its death here is an event to
report and not an error. A process that keeps dying is started ever more rarely, and its last words
are shown once, because then something about the installation is wrong.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_HEALTHY_AFTER = 30.0
_LONGEST_PAUSE = 30.0
_TAIL = 15
_PROBE_EVERY = 10.0
_PROBE_SECONDS = 5.0
_PROBE_MISSES = 3
_START_SECONDS = 120.0
_STOP_SECONDS = 2.0
"""What it holds is in the API server, which ends too: there is little to wait for."""
_HOPELESS = 3


def pause(failures: int) -> float:
    """Seconds before the next start, after this many short lives in a row (1 is the first)."""
    return min(_LONGEST_PAUSE, 0.5 * 2.0 ** (failures - 1))


class Supervisor:
    """Runs a command until `stop`; the log of all its lives is one file."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        log: Path,
        health: str,
        tell: Callable[[str], None],
    ) -> None:
        self._name = name
        self._command = [
            sys.executable,
            str(Path(__file__).with_name("tether.py")),
            str(os.getpid()),
            *command,
        ]
        self._env = dict(env)
        self.log = log
        self._health = health
        self._tell = tell
        self._stopping = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._failures = 0
        self._has_answered = False
        """In its present life."""
        self.restarts = 0
        """How often it was started again."""
        self._thread = threading.Thread(target=self._run, name=f"supervise {name}", daemon=True)

    def start(self) -> None:
        """Start it; returns at once."""
        self._thread.start()

    @property
    def pid(self) -> int | None:
        """Of the process that runs now."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    @property
    def hopeless(self) -> bool:
        """Whether it has died again and again without ever running for a while."""
        return self._failures >= _HOPELESS

    def wait_until_healthy(self, seconds: float) -> bool:
        """Wait for its health endpoint to answer 200; False when time is up or it is hopeless."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self._stopping.is_set() and not self.hopeless:
            if self._process is not None and self._answers(1.0):
                return True
            self._stopping.wait(0.1)
        return False

    def last_words(self) -> list[str]:
        """The end of its log."""
        try:
            return self.log.read_text(errors="replace").splitlines()[-_TAIL:]
        except OSError:
            return []

    def stop(self) -> None:
        """End it: SIGTERM, then SIGKILL after a few seconds."""
        self._stopping.set()
        process = self._process
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(_STOP_SECONDS)
        if self._thread.is_alive():
            self._thread.join(_STOP_SECONDS)

    def _answers(self, seconds: float) -> bool:
        try:
            # No proxy: the address is this machine's.
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(self._health, timeout=seconds) as answer:
                answers = bool(answer.status == 200)
                self._has_answered |= answers
                return answers
        except (urllib.error.URLError, OSError):
            return False

    def _run(self) -> None:
        # This thread must outlive the process: Linux tethers a child to the thread that made it.
        while not self._stopping.is_set():
            started = time.monotonic()
            code = self._one_life()
            if self._stopping.is_set():
                return
            lived = time.monotonic() - started
            self._failures = 1 if lived > _HEALTHY_AFTER else self._failures + 1
            wait = pause(self._failures)
            self._tell(f"{self._name} ended with {_how(code)}; started again in {wait:g} s")
            if self._failures == _HOPELESS:
                self._tell(f"{self._name} keeps ending; the last lines of {self.log}:")
                for line in self.last_words():
                    self._tell(f"  {line}")
            self._stopping.wait(wait)
            self.restarts += 1

    def _one_life(self) -> int:
        with self.log.open("ab") as output:
            process = subprocess.Popen(
                self._command,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._has_answered, starts_until = False, time.monotonic() + _START_SECONDS
        self._process = process
        if self._stopping.is_set():  # stop() came between the check and the start
            process.terminate()
        misses = 0
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(_PROBE_EVERY)
            answers = self._answers(_PROBE_SECONDS)
            starting = not self._has_answered and time.monotonic() < starts_until
            misses = 0 if answers or starting else misses + 1
            if misses == _PROBE_MISSES and not self._stopping.is_set():
                self._tell(f"{self._name} runs and does not answer at {self._health}; killed")
                process.kill()


def _how(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"
