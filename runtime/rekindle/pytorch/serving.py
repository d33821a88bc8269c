"""A model behind HTTP for as long as one question takes: ``GET /ping`` and ``POST /serve``.

The server is a thread of this process that has a copy of the model, so a served step changes
neither weights nor modes nor statistics of the one that trains. A forked process would do the same
and may hang in it: torch has threads by then, and a fork has none of them.
"""

import copy
import dataclasses
import enum
import json
import os
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import torch

from rekindle import threads

Serving = Callable[[dict[str, Any]], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Response:
    """What the server has answered."""

    status_code: int
    text: str
    """The body."""
    error: str = ""
    """The traceback of what went wrong in the server."""

    @property
    def ok(self) -> bool:
        """Whether it is no error."""
        return self.status_code < 400

    def __bool__(self) -> bool:
        """Whether it is no error."""
        return self.ok

    def json(self) -> Any:
        """The body as JSON; ValueError where it is none."""
        return json.loads(self.text)


def serving(model: Any) -> Serving:
    """What a copy of a `ServableModule` does with the payload of a request."""
    deserializers, serializers = model.configure_serialization()
    if any(hasattr(parameter, "placements") for parameter in model.parameters()):
        raise ValueError("a sharded model cannot be served; use strategy='ddp' for this check")
    served = copy.deepcopy(model)
    served.eval()

    def serve(payload: dict[str, Any]) -> dict[str, Any]:
        body = payload["body"]
        for key, deserialize in deserializers.items():
            body[key] = deserialize(body[key])
        with torch.no_grad():
            output = served.serve_step(**body)
        if not isinstance(output, dict):
            raise TypeError(
                f"{type(model).__name__}.serve_step returned {type(output).__name__}; return a "
                f"dictionary"
            )
        for key, serialize in serializers.items():
            output[key] = serialize(output[key])
        return output

    return serve


@contextmanager
def server(serve: Serving, host: str, port: int) -> Iterator["Client"]:
    """Answer requests inside; OSError where the port is taken. Port 0 is any free one."""
    failed: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(200, True) if self.path == "/ping" else self._answer(404, "Not Found")

        def do_POST(self) -> None:
            if self.path != "/serve":
                return self._answer(404, "Not Found")
            length = int(self.headers.get("Content-Length") or 0)
            try:
                payload = json.loads(self.rfile.read(length))
            except ValueError as error:
                return self._answer(422, f"the body is no JSON: {error}")
            if not isinstance(payload, dict):
                return self._answer(422, "the body is no JSON object")
            try:
                return self._answer(200, serve(payload))
            except Exception:
                failed.append(traceback.format_exc())
                return self._answer(500, "Internal Server Error")

        def _answer(self, status: int, content: Any) -> None:
            if status == 200:
                text = json.dumps(content, allow_nan=False, default=_plain)
            else:
                text = str(content)
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json" if status == 200 else "text/plain")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: Any) -> None:
            """Not a word for each request."""

    with HTTPServer((host, port), Handler) as found:
        threads.task(found.serve_forever, name="rekindle-serving")
        try:
            yield Client(host, found.server_port, failed)
        finally:
            found.shutdown()


class Client:
    """Asks the server."""

    def __init__(self, host: str, port: int, failed: list[str]) -> None:
        self.host, self.port, self._failed = host, port, failed

    def get(self, path: str, timeout: float | None = None) -> Response:
        """``GET``."""
        return self._ask("GET", path, None, timeout)

    def post(self, path: str, payload: Any) -> Response:
        """``POST`` of JSON; TypeError or ValueError for what cannot be written as JSON."""
        return self._ask("POST", path, json.dumps(payload, allow_nan=False).encode(), None)

    def _ask(self, verb: str, path: str, body: bytes | None, timeout: float | None) -> Response:
        connection = HTTPConnection(self.host, self.port, timeout=timeout)
        try:
            headers = {} if body is None else {"Content-Type": "application/json"}
            connection.request(verb, path, body, headers)
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        return Response(answer.status, text, self._failed.pop() if self._failed else "")


def _plain(value: Any) -> Any:
    """What JSON has no form for, as the form that services give it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, set | frozenset):
        return list(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(
        f"an answer holds a {type(value).__name__}, which JSON cannot hold: have "
        f"configure_serialization turn it into numbers, texts, lists and dictionaries"
    )
