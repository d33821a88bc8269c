"""A file system, an S3 server in this process, and stores that fail on demand."""

import inspect
import itertools
import threading
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import botocore.hooks
import botocore.session
import pytest
import torch

from rekindle.checkpoint import Saver, Store
from rekindle.checkpoint.objects.file import FileObjects
from rekindle.checkpoint.objects.interface import Unreachable
from rekindle.checkpoint.objects.s3 import S3Objects
from rekindle_local.objectstore.server import one_at_a_time

_numbers = itertools.count()
_names: dict[str, str] = {}
_plain_name = botocore.hooks.EventAliaser._alias_event_name


@pytest.fixture(autouse=True)
def credentials(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDTESTTESTTEST")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "verysecretverysecret")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def loader():
    return botocore.session.Session().get_component("data_loader")


@pytest.fixture(autouse=True)
def parse_service_models_once(monkeypatch, loader):
    """Every session of boto3 parses megabytes of JSON; those of one test run can share it."""
    plain = boto3.session.Session

    def session(profile_name=None):
        core = botocore.session.Session(profile=profile_name)
        core.register_component("data_loader", loader)
        return plain(botocore_session=core)

    monkeypatch.setattr(boto3.session, "Session", session)


@pytest.fixture(autouse=True)
def name_events_once(monkeypatch):
    """Every session and client of boto3 finds out anew how each of its 130 events is called now,
    and whether each handler takes keywords: more work than all that the tests do with them.
    """

    def name(self, event):
        if event not in _names:
            _names[event] = _plain_name(self, event)
        return _names[event]

    def accepts_keywords(handler):
        code = getattr(handler, "__code__", None)
        if code is None:
            return inspect.getfullargspec(handler)[2]
        return code.co_flags & inspect.CO_VARKEYWORDS

    monkeypatch.setattr(botocore.hooks.EventAliaser, "_alias_event_name", name)
    monkeypatch.setattr(botocore.hooks, "accepts_kwargs", accepts_keywords)


@pytest.fixture(scope="session")
def endpoint() -> Iterator[str]:
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log(self, *_: object) -> None:
            pass

    app = one_at_a_time(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def bucket(endpoint: str) -> str:
    name = f"checkpoints-{next(_numbers)}"
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{name}", method="PUT")).close()
    return name


@pytest.fixture(params=["file", "s3"])
def objects(request, tmp_path: Path):
    """Every implementation of the object store, empty."""
    if request.param == "file":
        return FileObjects(str(tmp_path / "run"))
    endpoint = request.getfixturevalue("endpoint")
    return S3Objects(request.getfixturevalue("bucket"), "team/run", endpoint_url=endpoint)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(f"file://{tmp_path}/run")


@pytest.fixture
def answering() -> Iterator[Callable[[int, str], str]]:
    """Start an S3 server that gives every request the same error, and return its URL."""
    servers = []

    def start(status: int, code: str) -> str:
        body = f"<Error><Code>{code}</Code><Message>no AKIDTESTTESTTEST here</Message></Error>"

        class Handler(BaseHTTPRequestHandler):
            disable_nagle_algorithm = True  # headers and body are two packets
            protocol_version = "HTTP/1.1"  # else boto3 waits a second for "100 Continue"

            def answer(self):
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

            do_GET = do_PUT = do_POST = do_DELETE = answer

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


class Faulty:
    """An object store whose call number `at` fails.

    mode `before`: the call does nothing, and neither does any later one (a crash);
    mode `after`: the call takes effect, then as above;
    mode `lost`: the call takes effect, its answer is lost, and all is well again.
    """

    CALLS = ("put", "get", "get_into", "head", "list", "delete", "delete_many")

    def __init__(self, inner, at: int = -1, mode: str = "before"):
        self.inner, self.at, self.mode = inner, at, mode
        self.count = 0
        self.log: list[tuple[str, object]] = []
        self.dead = False

    def __getattr__(self, name):
        value = getattr(self.inner, name)
        if name not in self.CALLS:
            return value

        def call(*args, **kwargs):
            number, self.count = self.count, self.count + 1
            self.log.append((name, args[0]))
            if self.dead or (number == self.at and self.mode == "before"):
                self.dead = True
                raise Unreachable(f"injected before {name} {args[0]}")
            result = value(*args, **kwargs)
            if number == self.at:
                self.dead = self.mode == "after"
                raise Unreachable(f"injected after {name} {args[0]}")
            return result

        return call


@pytest.fixture
def faulty() -> type[Faulty]:
    return Faulty


def _state(step: int) -> dict:
    generator = torch.Generator().manual_seed(step)
    return {
        "model": {
            "weight": torch.randn(37, 11, generator=generator),
            "bias": torch.randn(5, generator=generator).to(torch.bfloat16),
            "empty": torch.empty(0, 3),
            "count": torch.tensor(step),
        },
        "optim": {"state": {0: {"exp_avg": torch.randn(300, generator=generator)}}, "lr": 0.1},
    }


@pytest.fixture
def state() -> Callable[[int], dict]:
    """A small state that differs in every byte from step to step."""
    return _state


@pytest.fixture
def same() -> Callable[[object, object], bool]:
    """Bit equality of two trees."""

    def equal(a, b) -> bool:
        if isinstance(a, torch.Tensor):
            return (
                isinstance(b, torch.Tensor)
                and a.dtype == b.dtype
                and a.shape == b.shape
                and torch.equal(
                    a.contiguous().reshape(-1).view(torch.uint8),
                    b.contiguous().reshape(-1).view(torch.uint8),
                )
            )
        if isinstance(a, dict):
            return type(a) is type(b) and list(a) == list(b) and all(equal(a[k], b[k]) for k in a)
        return type(a) is type(b) and a == b

    return equal


@pytest.fixture
def savers() -> Iterator[Callable[..., list[Saver]]]:
    """Make the savers of all ranks of an attempt, with chunks of 256 bytes."""
    made: list[Saver] = []

    def make(store, *, fence=1, base=None, world_size=2, **kwargs) -> list[Saver]:
        stores = store if isinstance(store, list) else [store] * world_size
        new = [
            Saver(
                stores[rank],
                lease_fence=fence,
                base=base,
                rank=rank,
                world_size=world_size,
                chunk_bytes=256,
                **kwargs,
            )
            for rank in range(world_size)
        ]
        made.extend(new)
        return new

    yield make
    for saver in made:
        saver.close(timeout=10)


@pytest.fixture
def save(state) -> Callable[..., None]:
    """Save a step on all ranks and wait until each has finished."""

    def run(savers: list[Saver], step: int, **kwargs) -> None:
        for saver in reversed(savers):
            saver.save(step, state(step), rank_state={"rank": saver._rank}, **kwargs)
        for saver in reversed(savers):
            saver._drain(float("inf"))

    return run
