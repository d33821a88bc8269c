import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rekindle_cli.jobs import client
from rekindle_cli.jobs.client import Forgotten, Unavailable
from rekindle_cli.output.failure import CommandFailure

RESOURCES = {
    "resources": [
        {"name": "secrets/x", "kind": "Secret", "namespaced": True},
        {"name": "secrets", "kind": "Secret", "namespaced": True},
        {"name": "namespaces", "kind": "Namespace", "namespaced": False},
    ]
}
KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: c
clusters: [{name: c, cluster: {server: "http://127.0.0.1:%d"}}]
users: [{name: u, user: {token: secret-token}}]
contexts: [{name: c, context: {cluster: c, user: u, namespace: team}}]
"""


@pytest.fixture
def server():
    """A server whose `answers` map (method, path) to (status, document or lines)."""

    class Handler(BaseHTTPRequestHandler):
        disable_nagle_algorithm = True  # headers and body are two packets

        def answer(self) -> None:
            path = self.path.partition("?")[0]
            length = int(self.headers.get("Content-Length") or 0)
            self.server.asked.append((self.command, self.path, self.rfile.read(length)))
            self.server.tokens.add(self.headers.get("Authorization"))
            status, body = self.server.answers.get((self.command, path), (404, {}))
            text = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_PUT = answer

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.tokens = [], set()
    server.answers = {("GET", "/version"): (200, {}), ("GET", "/api/v1"): (200, RESOURCES)}
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def api(server, tmp_path):
    path = tmp_path / "config"
    path.write_text(KUBECONFIG % server.server_port)
    api = client.connect(path)
    yield api
    api.close()


SECRET = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}}
SECRETS = "/api/v1/namespaces/team/secrets"


def test_the_kubeconfig_gives_server_token_and_namespace(api, server) -> None:
    assert api.namespace == "team"
    assert server.tokens == {"Bearer secret-token"}


def test_an_object_is_created_where_discovery_says_and_checked_strictly(api, server) -> None:
    server.answers["POST", SECRETS] = (201, SECRET)
    api.apply(SECRET, "team")
    assert server.asked[-1][:2] == ("POST", f"{SECRETS}?fieldValidation=Strict")
    assert json.loads(server.asked[-1][2]) == SECRET


def test_a_secret_that_exists_is_replaced(api, server) -> None:
    server.answers["POST", SECRETS] = (409, {"message": "exists"})
    server.answers["PUT", f"{SECRETS}/s"] = (200, SECRET)
    api.apply(SECRET, "team")
    assert server.asked[-1][:2] == ("PUT", f"{SECRETS}/s")


def test_a_namespace_that_exists_is_fine(api, server) -> None:
    server.answers["POST", "/api/v1/namespaces"] = (409, {"message": "exists"})
    api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "x"}}, "x")


def test_a_refusal_becomes_a_failure_with_the_field(api, server) -> None:
    causes = [{"field": "data", "message": "too large"}]
    server.answers["POST", SECRETS] = (422, {"details": {"causes": causes}})
    with pytest.raises(CommandFailure, match="refuses Secret s:\n  data: too large"):
        api.apply(SECRET, "team")


def test_a_kind_that_the_server_does_not_have_is_named(api) -> None:
    with pytest.raises(CommandFailure, match="no kind Frob in frob.dev/v1"):
        api.apply({"apiVersion": "frob.dev/v1", "kind": "Frob", "metadata": {}}, "team")


def test_an_absent_object_is_none(api) -> None:
    assert api.find(f"{SECRETS}/none") is None


def test_a_watch_gives_one_event_after_the_other(api, server) -> None:
    events = [{"type": "ADDED", "object": {"n": number}} for number in range(3)]
    server.answers["GET", "/w"] = (200, b"\n".join(json.dumps(e).encode() for e in events) + b"\n")
    assert list(api.watch("/w", {}, "1", threading.Event())) == events


@pytest.mark.parametrize(("code", "error"), [(410, Forgotten), (500, Unavailable)])
def test_an_error_in_a_watch_is_told_apart(api, server, code, error) -> None:
    event = {"type": "ERROR", "object": {"code": code, "message": "no"}}
    server.answers["GET", "/w"] = (200, json.dumps(event).encode() + b"\n")
    with pytest.raises(error):
        list(api.watch("/w", {}, "1", threading.Event()))


def test_a_log_that_cannot_be_had_is_empty(api, server) -> None:
    assert api.log_tail("team", "gone", 5) == []
    server.answers["GET", "/api/v1/namespaces/team/pods/p/log"] = (200, b"a\n\nb\nc\n")
    assert api.log_tail("team", "p", 2) == ["b", "c"]


def test_a_server_that_is_not_there_is_one_clear_line(tmp_path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        path = tmp_path / "config"
        path.write_text(KUBECONFIG % taken.getsockname()[1])
        with pytest.raises(CommandFailure) as caught:
            client.connect(path)
    first, second = caught.value.lines
    assert "does not answer" in first
    assert "refused" in first
    assert "<urllib3" not in first
    assert "rekindle up" in second


def test_a_server_that_refuses_the_token_says_so(server, tmp_path) -> None:
    server.answers["GET", "/version"] = (401, {})
    path = tmp_path / "config"
    path.write_text(KUBECONFIG % server.server_port)
    with pytest.raises(CommandFailure, match=r"does not let you in \(HTTP 401\)"):
        client.connect(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "kind: Config", "a: b"])
def test_a_kubeconfig_that_is_none_is_refused(tmp_path, text) -> None:
    path = tmp_path / "config"
    path.write_text(text)
    with pytest.raises(CommandFailure, match="cannot be used"):
        client.connect(path)


def test_a_kubeconfig_that_does_not_exist_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "absent"))
    with pytest.raises(CommandFailure, match="absent does not exist"):
        client.connect()


def test_without_any_kubeconfig_the_ways_to_a_cluster_are_named(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(CommandFailure, match="There is no cluster"):
        client.connect()
