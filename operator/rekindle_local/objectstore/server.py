"""The embedded S3 server: moto's S3 behind a check of signatures and permissions.

moto implements S3's dialect well, conditional writes included, but takes any credentials;
`signatures` stands in front of it. Whether a condition is met and the write that follows are two
steps of it, in many threads, so changes of one object wait for each other (`one_at_a_time`): two
would else both be told that they were the first. It runs in a process of its own, because it
computes checksums and copies bodies in Python threads and would hold up the event loop that serves
the API; the process ends when its standard input does, so it never outlives the cluster. Only S3 is
reachable, not the other services or moto's own control API.

Three things are done about memory: moto remembers every object it ever made so that a reset can
close them (deleted and overwritten checkpoints would stay for ever), which is turned off; it leaves
bodies in reference cycles, which are looked for after each large one; and large buffers are given
back to the system when freed.

moto and `signatures` are imported when the server process starts and never by importing this
module.
"""

import argparse
import asyncio
import contextlib
import gc
import json
import os
import secrets
import sys
import threading
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

REGION = "us-east-1"
ACCESS_KEY = "embedded"
"""The access key of every embedded store; the secret is new with each start."""
LARGE = 1 << 20
"""Bytes of a body from which on what it leaves behind is looked for at once."""
_START_SECONDS = 60.0


class ObjectStore:
    """Starts, configures and stops the server process."""

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        secret: str | None = None,
        deny: Collection[str] = (),
    ) -> None:
        self.credentials = (ACCESS_KEY, secret or secrets.token_urlsafe(24))
        """Access key and secret."""
        self.endpoint = ""
        """The URL, known after `start`."""
        self._host = host
        self._port = port
        self._deny = frozenset(deny)
        self._process: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()

    async def start(self) -> str:
        """Start the server and return its endpoint; raises RuntimeError when it does not come."""
        package_root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "rekindle_local.objectstore.server",
            "--host",
            self._host,
            "--port",
            str(self._port),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            env={
                **os.environ,
                "PYTHONPATH": path,
                # Freed bodies go back to the system at once instead of into arenas.
                "MALLOC_ARENA_MAX": "2",
                "MALLOC_MMAP_THRESHOLD_": "262144",
            },
        )
        try:
            answer = await self._tell(
                {"secret": self.credentials[1], "deny": sorted(self._deny)}, _START_SECONDS
            )
        except BaseException:
            await self.stop()
            raise
        self.endpoint = str(answer["endpoint"])
        return self.endpoint

    @property
    def pid(self) -> int:
        """Of the server process; raises RuntimeError when it does not run."""
        if self._process is None:
            raise RuntimeError("the object store is not running: call start() first")
        return self._process.pid

    async def set_deny(self, deny: Collection[str]) -> None:
        """Refuse these buckets (`name`) and prefixes (`name/prefix`) with AccessDenied from now."""
        self._deny = frozenset(deny)
        await self._tell({"deny": sorted(self._deny)})

    async def create_bucket(self, name: str) -> None:
        """Create a bucket; one that exists already is fine. A denied one is created, too."""
        await self._tell({"bucket": name})

    async def _tell(self, message: dict[str, Any], seconds: float = 30.0) -> dict[str, Any]:
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise RuntimeError("the object store is not running: call start() first")
        async with self._lock:
            with contextlib.suppress(ConnectionError):
                process.stdin.write(json.dumps(message).encode() + b"\n")
                await process.stdin.drain()
            line = await asyncio.wait_for(process.stdout.readline(), seconds)
        if not line:
            assert process.stderr is not None
            errors = (await process.stderr.read()).decode(errors="replace").strip()
            raise RuntimeError(f"the object store ended: {errors[-2000:] or 'no message'}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"the object store refused: {answer['error']}")
        return answer

    async def stop(self) -> None:
        """End the server; everything stored is gone."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        try:
            async with asyncio.timeout(5):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


class _Forgetful(list[Any]):
    """A list that keeps nothing."""

    def append(self, _item: Any) -> None:
        """Forget it."""


def _moto_app() -> "WSGIApplication":
    from moto.moto_server.werkzeug_app import create_backend_app
    from moto.s3.models import FakeKey, FakeMultipart

    for model in (FakeKey, FakeMultipart):
        setattr(model, "instances_tracked", _Forgetful())  # noqa: B010
    return create_backend_app("s3")


def _create_bucket(name: str) -> None:
    from moto.core.models import DEFAULT_ACCOUNT_ID
    from moto.s3.models import s3_backends

    backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
    if name not in backend.buckets:
        backend.create_bucket(name, REGION)


def one_at_a_time(app: "WSGIApplication") -> "WSGIApplication":
    """Let requests that change an object wait for others that change the same one.

    Parts of an upload change nothing before it is completed. The locks are few, so some objects
    share one.
    """
    locks = [threading.Lock() for _ in range(256)]

    def guarded(environ: "WSGIEnvironment", answer: "StartResponse") -> "Iterable[bytes]":
        reads = environ["REQUEST_METHOD"] in {"GET", "HEAD"}
        if reads or "partNumber=" in environ.get("QUERY_STRING", ""):
            return app(environ, answer)
        with locks[hash(environ["PATH_INFO"]) % len(locks)]:
            return app(environ, answer)

    return guarded


def serve(host: str, port: int) -> None:
    """The server process: obeys lines on standard input until its end."""
    from werkzeug.serving import WSGIRequestHandler, make_server

    from rekindle_local.objectstore.signatures import SignatureGate

    class Quiet(WSGIRequestHandler):
        def log(self, type: str, message: str, *args: Any) -> None:
            """Errors are the client's to report."""

        def run_wsgi(self) -> None:
            """Answer a request, and let go of what it brought."""
            super().run_wsgi()
            if int(self.headers.get("Content-Length") or 0) >= LARGE:
                gc.collect()

    def say(**message: Any) -> None:
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()

    first = json.loads(sys.stdin.readline() or "{}")
    if "secret" not in first:
        return
    gate = SignatureGate(
        one_at_a_time(_moto_app()), {ACCESS_KEY: first["secret"]}, first.get("deny", ())
    )
    gc.freeze()  # what is there now stays: only what requests make is looked through
    server = make_server(host, port, gate, threaded=True, request_handler=Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    say(endpoint=f"http://{host}:{server.server_port}")
    for line in sys.stdin:
        message = json.loads(line)
        try:
            if "deny" in message:
                gate.deny = frozenset(message["deny"])
            if "bucket" in message:
                _create_bucket(message["bucket"])
            say(ok=True)
        except Exception as error:
            say(error=f"{type(error).__name__}: {error}")
    os._exit(0)  # threads may still hold connections; nothing here is worth waiting for


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The embedded S3 server.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    arguments = parser.parse_args()
    serve(arguments.host, arguments.port)
