"""A coordinator small enough to be driven by hand, and pods as processes."""

import contextlib
import json
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from rekindle.api import (
    AgentPhase,
    AgentReport,
    Directive,
    DirectiveKind,
    Member,
    Outcome,
    Round,
    View,
)

TOKEN = "a secret"
TIMEOUT = 90.0


class FakeCoordinator:
    """Speaks the contract's protocol; decides nothing by itself."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.reports: dict[str, AgentReport] = {}
        self.history: list[AgentReport] = []
        self.round: Round | None = None
        self.directives: dict[str, Directive] = {}
        self.away = False
        self.refusals = 0
        self._version = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        with self.changed:
            self.away = True
            self.changed.notify_all()
        self._server.shutdown()
        self._server.server_close()

    def view(self, pod: str) -> View:
        return View(
            version=str(self._version), round=self.round, directive=self.directives.get(pod)
        )

    def touch(self) -> None:
        with self.changed:
            self._version += 1
            self.changed.notify_all()

    def form(self, *pods: str, variables: dict[str, str] | None = None) -> Round:
        """Publish a round of these pods, in this order, from their newest reports."""
        members = tuple(
            Member(
                pod=pod,
                uid=self.reports[pod].uid,
                address=self.reports[pod].address,
                store_port=self.reports[pod].store_port,
                nproc=self.reports[pod].nproc,
            )
            for pod in pods
        )
        number = 1 if self.round is None else self.round.number + 1
        self.round = Round(
            number=number,
            members=members,
            reason="test",
            formed_at=time.time(),
            variables=variables,
        )
        self.touch()
        return self.round

    def order(self, pod: str, kind: DirectiveKind, **values: object) -> None:
        number = self.round.number if self.round else 0
        self.directives[pod] = Directive(kind=kind, round=number, reason="test", **values)
        self.touch()

    def wait_for(self, what: Callable[[], object], timeout: float = TIMEOUT) -> None:
        with self.changed:
            assert self.changed.wait_for(what, timeout), f"in vain; reports: {self.reports}"

    def wait_phase(self, pod: str, phase: AgentPhase, number: int | None = None) -> AgentReport:
        def there() -> bool:
            report = self.reports.get(pod)
            if report is None or report.phase is not phase:
                return False
            return number is None or (report.round is not None and report.round.number == number)

        self.wait_for(there)
        return self.reports[pod]


def _handler(coordinator: FakeCoordinator) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        disable_nagle_algorithm = True  # headers and body are two packets
        protocol_version = "HTTP/1.1"
        timeout = 60.0

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self._refused():
                return
            report = AgentReport.from_json(json.loads(body))
            with coordinator.changed:
                coordinator.reports[report.pod] = report
                coordinator.history.append(report)
                coordinator.changed.notify_all()
                view = coordinator.view(report.pod)
            self._answer(200, view.to_json())

        def do_GET(self) -> None:
            if self._refused():
                return
            query = parse_qs(urlsplit(self.path).query)
            version, wait = query.get("version", [""])[0], float(query["wait"][0])
            pod = urlsplit(self.path).path.rsplit("/", 1)[1]
            with coordinator.changed:
                coordinator.changed.wait_for(
                    lambda: coordinator.away or coordinator.view(pod).version != version, wait
                )
                view = coordinator.view(pod)
            self._answer(200, view.to_json())

        def _refused(self) -> bool:
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self._answer(401, {"error": "wrong token"})
            elif coordinator.away:
                self._answer(503, {"error": "away"})
                with coordinator.changed:
                    coordinator.refusals += self.command == "POST"
                    coordinator.changed.notify_all()
            else:
                return False
            return True

        def _answer(self, status: int, document: dict[str, object]) -> None:
            body = json.dumps(document).encode()
            # Whoever asked may have been killed meanwhile.
            with contextlib.suppress(OSError):
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


FORKS = multiprocessing.get_context("forkserver")
"""Pods are forked from a process that has imported torch: a second less for each of them."""
FORKS.set_forkserver_preload(
    ["torch._dynamo", "rekindle.launch.__main__", "rekindle.launch.agent.agent"]
)


class Pod:
    """One agent as a process."""

    def __init__(
        self, arguments: list[str], folder: Path, environment: dict[str, str], python: list[str]
    ) -> None:
        self.termination_log = folder / "termination-log"
        self.log = folder / "log"
        variables = {
            name: value for name, value in os.environ.items() if not name.startswith("REKINDLE_")
        }
        variables |= {
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "REKINDLE_TERMINATION_LOG": str(self.termination_log),
            "REKINDLE_METRICS_PORT": "",
            "REKINDLE_PROC_PER_NODE": "1",
            "TMPDIR": str(folder),
            **environment,
        }
        self._cold: subprocess.Popen[bytes] | None = None
        if python:
            with self.log.open("wb") as log:
                self._cold = subprocess.Popen(
                    [sys.executable, *python, *arguments],
                    env=variables,
                    cwd=folder,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            self.pid = self._cold.pid
        else:
            given = {
                "command": arguments,
                "variables": variables,
                "folder": str(folder),
                "log": str(self.log),
            }
            script = str(Path(__file__).with_name("warm_pod.py"))
            self._warm = FORKS.Process(target=runpy.run_path, args=(script, given))
            self._warm.start()
            assert self._warm.pid is not None
            self.pid = self._warm.pid

    def poll(self) -> int | None:
        return self._cold.poll() if self._cold else self._warm.exitcode

    def exit_code(self, timeout: float = TIMEOUT) -> int:
        if self._cold:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._cold.wait(timeout)
        else:
            self._warm.join(timeout)
        code = self.poll()
        assert code is not None, f"still running; its log: {self.text()}"
        return code

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self.exit_code()

    def text(self) -> str:
        return self.log.read_text()

    def outcome(self) -> Outcome:
        return Outcome.from_json(json.loads(self.termination_log.read_text()))


@pytest.fixture
def coordinator() -> Iterator[FakeCoordinator]:
    fake = FakeCoordinator()
    yield fake
    fake.close()


StartPod = Callable[..., Pod]


@pytest.fixture
def start_pod(tmp_path: Path) -> Iterator[StartPod]:
    """start_pod(name, script, *arguments, to=coordinator, environment=...)

    With ``python``, a fresh interpreter is started with these arguments before the script's.
    """
    started: list[Pod] = []

    def start(
        name: str,
        script: str,
        *arguments: str,
        to: FakeCoordinator | None = None,
        environment: dict[str, str] | None = None,
        python: tuple[str, ...] = (),
        files: dict[str, str] | None = None,
        command: list[str] | None = None,
    ) -> Pod:
        folder = tmp_path / name
        folder.mkdir()
        for path, text in {"train.py": script, **(files or {})}.items():
            (folder / path).write_text(text)
        variables = {"SHARED": str(tmp_path)}
        if to is not None:
            variables |= {
                "REKINDLE_COORDINATOR_URL": to.url,
                "REKINDLE_TOKEN": TOKEN,
                "REKINDLE_JOB_NAME": "job",
                "REKINDLE_JOB_NAMESPACE": "default",
                "REKINDLE_POD_NAME": name,
                "REKINDLE_POD_UID": f"uid-{name}",
                "REKINDLE_POD_IP": f"127.0.0.{2 + len(started)}",
            }
        pod = Pod(
            command or ["train.py", *arguments],
            folder,
            variables | (environment or {}),
            list(python),
        )
        started.append(pod)
        return pod

    yield start
    for pod in started:
        if pod.poll() is None:
            pod.kill()
