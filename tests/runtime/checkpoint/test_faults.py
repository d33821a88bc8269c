"""Every request of a save, a load and a clean-up goes wrong in every way.

A proxy before the S3 server counts the requests of one operation and does something to the one with
number k: drops it (before or after the server saw it), delays it, truncates or corrupts the answer,
corrupts the body on its way up, answers 500, 503, 409 or 412 in the server's place, or kills the
process that sent it (before or after). Then, over the plain server: no commit is torn, the newest
whole checkpoint loads bit-equal, what was reported durable is there, and the next attempt saves and
leaves no garbage.

CI runs every k with some of the faults, in turn; `REKINDLE_FAULTS=all` runs every pair.
"""

import copy
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from botocore.retries import standard

from rekindle.checkpoint import CommitRef, Retention, Saver, Store
from rekindle.checkpoint.cleanup import Cleaner
from rekindle.checkpoint.format import manifest
from rekindle.checkpoint.verify import verify

FAULTS = (
    "drop", "lose", "delay", "truncate", "corrupt", "corrupt-up", "500", "503", "409", "412",
    "kill", "kill-after",
)  # fmt: skip
EVERYTHING = os.environ.get("REKINDLE_FAULTS") == "all"
pytestmark = [pytest.mark.processes, pytest.mark.timeout(3600 if EVERYTHING else 400)]
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CODES = {
    "500": "InternalError",
    "503": "SlowDown",
    "409": "ConditionalRequestConflict",
    "412": "PreconditionFailed",
}


class Proxy:
    """Forwards requests one by one, and does `fault` to number `at`."""

    def __init__(self, upstream: int) -> None:
        self.upstream = upstream
        self.lock = threading.Lock()
        self.arm()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def arm(self, at: int = -1, fault: str = "", hold=None) -> None:
        """Forget what was counted, and set the next fault; `hold` gets every request line."""
        with self.lock:
            self.at, self.fault, self.hold = at, fault, hold
            self.log: list[str] = []
            self.victim = threading.Event()
            self.pid = 0

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        server = socket.create_connection(("127.0.0.1", self.upstream))
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with client, server:
            try:
                while self._exchange(client, server):
                    pass
            except OSError:
                return

    def _exchange(self, client: socket.socket, server: socket.socket) -> bool:
        request = _message(client)
        if request is None:
            return False
        line = request.split(b"\r\n", 1)[0].decode()
        with self.lock:
            number = len(self.log)
            self.log.append(line)
            fault = self.fault if number == self.at else ""
            hold = self.hold
        if hold is not None:
            hold(line)
        if fault == "drop":
            return False
        if fault == "kill":
            return self._kill()
        if fault in _CODES:
            client.sendall(_refusal(fault, head=line.startswith("HEAD")))
            return False
        if fault == "corrupt-up":
            request = _flipped(request)
        server.sendall(request)
        answer = _message(server, head=line.startswith("HEAD"))
        if answer is None:
            return False
        if fault == "delay":
            threading.Event().wait(0.3)
        elif fault == "lose":
            return False
        elif fault == "kill-after":
            return self._kill()
        elif fault == "truncate":
            body = answer.index(b"\r\n\r\n") + 4
            client.sendall(answer[: body + (len(answer) - body) // 2])
            return len(answer) == body
        elif fault == "corrupt":
            answer = _flipped(answer)
        client.sendall(answer)
        return True

    def _kill(self) -> bool:
        assert self.victim.wait(60)
        os.kill(self.pid, signal.SIGKILL)
        return False


def _message(connection: socket.socket, *, head: bool = False) -> bytes | None:
    """One whole HTTP message with a Content-Length, or None at the end of the connection."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(2**16)
        if not piece:
            return None
        data += piece
    end = data.index(b"\r\n\r\n") + 4
    length = _LENGTH.search(data[:end])
    # Clients wait for "100 Continue" for a while and send the body anyway; this is quicker.
    if b"100-continue" in data[:end]:
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        lines = [s for s in data[:end].split(b"\r\n") if not s.lower().startswith(b"expect:")]
        head_ = b"\r\n".join(lines)
        data, end = head_ + data[end:], len(head_)
    size = end + (int(length[1]) if length and not head else 0)
    while len(data) < size:
        piece = connection.recv(2**16)
        if not piece:
            return None
        data += piece
    return data


def _flipped(message: bytes) -> bytes:
    """The message with one bit of the middle of its body changed."""
    body = message.index(b"\r\n\r\n") + 4
    if body == len(message):
        return message
    at = (body + len(message)) // 2
    return message[:at] + bytes([message[at] ^ 4]) + message[at + 1 :]


def _refusal(status: str, *, head: bool) -> bytes:
    body = b"" if head else f"<Error><Code>{_CODES[status]}</Code></Error>".encode()
    length = f"HTTP/1.1 {status} x\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return length.encode() + body


class Forker:
    """Runs operations in children of a warm process."""

    def __init__(self, endpoint: str, bucket: str) -> None:
        paths = os.pathsep.join(path for path in sys.path if path)
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("forker.py")), endpoint, bucket],
            env={**os.environ, "PYTHONPATH": paths},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.line() == "ready"

    def line(self) -> str:
        assert self.process.stdout is not None
        found = self.process.stdout.readline().strip()
        assert found, "the forker ended"
        return found

    def run(self, proxy: Proxy | None = None, **order) -> int:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        pid = int(self.line())
        if proxy is not None:
            proxy.pid = pid
            proxy.victim.set()
        return int(self.line())

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()


def state(step: int) -> dict:
    """As in `forker`."""
    generator = torch.Generator().manual_seed(step)
    return {
        "model": {
            "weight": torch.randn(37, 11, generator=generator),
            "bias": torch.randn(5, generator=generator).to(torch.bfloat16),
        },
        "step": step,
    }


@pytest.fixture(scope="module")
def place(endpoint):
    """A bucket, the way around the proxy, the proxy, and the forker behind it."""
    settings = pytest.MonkeyPatch()
    settings.setenv("AWS_ACCESS_KEY_ID", "AKIDTESTTESTTEST")
    settings.setenv("AWS_SECRET_ACCESS_KEY", "verysecretverysecret")
    settings.setattr(standard.ExponentialBackoff, "delay_amount", lambda *_: 0.005)
    proxy = Proxy(int(endpoint.rsplit(":", 1)[1]))
    boto = Store.open("s3://faults/x", endpoint_url=endpoint).objects._client
    boto.create_bucket(Bucket="faults")
    forker = Forker(f"http://127.0.0.1:{proxy.port}", "faults")
    yield endpoint, proxy, forker
    forker.close()
    proxy.listener.close()
    settings.undo()


@pytest.fixture
def direct(place, monkeypatch):
    """Open a run over the server itself; clients share one session."""
    endpoint = place[0]
    made = Store.open("s3://faults/x", endpoint_url=endpoint)

    def opened(prefix: str) -> Store:
        objects = copy.copy(made.objects)
        objects._prefix, objects.uri = prefix + "/", f"s3://faults/{prefix}"
        return Store(objects=objects)

    return opened


def save(store: Store, step: int, *, fence: int, base: CommitRef | None, keep: int = 9) -> Saver:
    saver = Saver(
        store, lease_fence=fence, base=base, rank=0, world_size=1, keep_latest=keep, chunk_bytes=256
    )
    saver.save(step, state(step), rank_state={"rank": 0}, wait=True)
    saver.close()
    return saver


def same(one: dict, step: int) -> bool:
    return one["step"] == step and all(
        torch.equal(one["model"][name], tensor) for name, tensor in state(step)["model"].items()
    )


def cases(requests: int, salt: int, share: int):
    """Every k with every fault, or with the next `share` of them in turn."""
    if EVERYTHING:
        yield from itertools.product(range(requests), FAULTS)
        return
    for number in range(requests * share):
        # 5 and the count of faults have no common divisor, so every 12 pairs have all of them.
        yield number // share, FAULTS[(number * 5 + salt) % len(FAULTS)]


def whole(store: Store, where: str, *, allow_damage: bool = False):
    """No commit is torn, and the newest that is whole loads bit-equal; returns what restored."""
    for ref in store.commits():
        damage = verify(store, ref).damage
        assert allow_damage or not damage, f"{where}: {damage}"
    restored, skipped = store.restore(rank=0)
    assert same(restored.state, restored.ref.step), where
    assert restored.rank_state == {"rank": 0}, where
    assert allow_damage or not skipped, where
    return restored


def goes_on(store: Store, restored, where: str) -> None:
    """The next attempt saves, and nothing is left that no commit needs."""
    fence = store.acquire(owner="next").fence
    save(store, 50, fence=fence, base=restored.ref, keep=2)
    assert same(store.restore()[0].state, 50), where
    groups = {manifest.ref_of(stat.key) for stat in store.objects.list("")} - {None}
    assert groups == set(store.listed()), f"{where}: garbage was left"


_templates: dict[tuple[int, ...], dict[str, bytes]] = {}


def prepared(direct, prefix: str, *steps: int) -> Store:
    """A run with these steps; made once and copied from then on."""
    store = direct(prefix)
    if steps not in _templates:
        fence = store.acquire(owner="first").fence
        for step in steps:
            save(store, step, fence=fence, base=None)
        keys = [stat.key for stat in store.objects.list("")]
        _templates[steps] = {key: store.objects.get(key) for key in keys}
    else:
        for key, body in _templates[steps].items():
            store.objects.put(key, body)
    return store


def counted(place, direct, prefix: str, steps: tuple[int, ...], **order) -> list[str]:
    """The requests of an operation in which nothing goes wrong."""
    _, proxy, forker = place
    prepared(direct, prefix, *steps)
    proxy.arm()
    assert forker.run(proxy, prefix=prefix, **order) == 0
    return list(proxy.log)


def test_a_save_survives_every_fault_at_every_request(place, direct):
    _, proxy, forker = place
    order = {"do": "save", "step": 2, "base": [1, 1], "fence": 2}
    requests = counted(place, direct, "save-count", (1,), **order)
    assert len(requests) > 12
    outcomes = set()
    for k, fault in cases(len(requests), 0, 1):
        prefix, where = f"save-{k}-{fault}", f"{fault} at {k}: {requests[k]}"
        store = prepared(direct, prefix, 1)
        proxy.arm(k, fault)
        code = forker.run(proxy, prefix=prefix, **order)
        assert code in {0, 3, -9}, where
        assert (code == -9) == fault.startswith("kill"), where
        spoiled = fault == "corrupt-up" and requests[k].startswith("PUT")
        restored = whole(direct(prefix), where, allow_damage=spoiled)
        assert code != 0 or restored.ref.step == 2 or spoiled, f"{where}: a durable one was lost"
        outcomes.add(restored.ref.step)
        goes_on(store, restored, where)
    assert outcomes == {1, 2}


def test_a_load_survives_every_fault_at_every_request(place, direct):
    _, proxy, forker = place
    requests = counted(place, direct, "load", (1, 2), do="load", step=2)
    assert len(requests) > 4
    everywhere = ((k, "corrupt") for k in range(len(requests)))
    for k, fault in itertools.chain(cases(len(requests), 3, 3), everywhere):
        where = f"{fault} at {k}: {requests[k]}"
        proxy.arm(k, fault)
        code = forker.run(proxy, prefix="load", do="load", step=2)
        # Either everything is right, or it says that it could not; nothing else, and no mark.
        allowed = {-9} if fault.startswith("kill") else {0, 3}
        assert code in allowed, where
        if fault in {"drop", "lose", "delay", "truncate", "500", "503"}:
            assert code == 0, f"{where}: one more try would have done"
        if fault == "corrupt" and re.search(r"/(commit|part|data)/\d", requests[k].split("?")[0]):
            assert code == 0, f"{where}: it was not read once more"
        assert direct("load").objects.list("bad/") == [], where
    assert whole(direct("load"), "after all").ref.step == 2


def test_a_clean_up_survives_every_fault_at_every_request(place, direct):
    _, proxy, forker = place
    requests = counted(place, direct, "clean-count", (1, 2, 3), do="clean")
    assert [ref.step for ref in direct("clean-count").commits()] == [3]
    for k, fault in cases(len(requests), 5, 1):
        prefix, where = f"clean-{k}-{fault}", f"{fault} at {k}: {requests[k]}"
        store = prepared(direct, prefix, 1, 2, 3)
        proxy.arm(k, fault)
        forker.run(proxy, prefix=prefix, do="clean")
        restored = whole(direct(prefix), where)
        assert restored.ref.step == 3, where
        Cleaner(direct(prefix), Retention(latest=1)).run()
        left = {manifest.ref_of(stat.key) for stat in store.objects.list("")} - {None}
        assert left == {CommitRef(step=3, fence=1)}, where


def test_garbage_stays_bounded_over_100_kill_and_resume_cycles(place, tmp_path):
    forker = place[2]
    path = str(tmp_path / "run")
    store = Store.open(f"file://{path}")
    save(store, 0, fence=store.acquire(owner="first").fence, base=None)
    survived = most = 0
    for cycle in range(1, 101):
        restored, skipped = store.restore(rank=0)
        assert not skipped
        assert same(restored.state, restored.ref.step), cycle
        base = [restored.ref.step, restored.ref.fence]
        at = {"at": cycle * 7 % 41, "after": bool(cycle % 2)}
        code = forker.run(None, do="save", path=path, step=cycle, base=base, **at)
        assert code in {0, -9}, cycle
        survived += code == 0
        most = max(most, len({manifest.ref_of(stat.key) for stat in store.objects.list("")}))
    assert 0 < survived < 90
    # Two that are kept, what it resumed from, one that was being removed, and the unfinished ones
    # since the last commit, of which there are at most as many as kills in a row.
    assert most <= 25
    save(store, 500, fence=store.acquire(owner="last").fence, base=restored.ref, keep=2)
    groups = {manifest.ref_of(stat.key) for stat in store.objects.list("")} - {None}
    assert groups == set(store.listed())
    assert len(groups) <= 3
    assert len(store.objects.list("lease/")) <= 21


def test_a_zombie_that_is_let_go_after_its_successor_never_becomes_the_newest(place, direct):
    endpoint, proxy, forker = place
    store = prepared(direct, "zombie", 1)
    held, released = threading.Event(), threading.Event()

    def hold(line: str) -> None:
        if line.startswith("PUT") and f"/commit/{CommitRef(step=90, fence=1)}" in line:
            held.set()
            released.wait(60)

    proxy.arm(hold=hold)
    codes = []
    zombie = threading.Thread(
        target=lambda: codes.append(forker.run(proxy, prefix="zombie", do="save", step=90, fence=1))
    )
    zombie.start()
    assert held.wait(60), "its commit is on the way"
    fence = store.acquire(owner="successor").fence
    save(store, 2, fence=fence, base=CommitRef(step=1, fence=1))
    released.set()
    zombie.join(30)
    assert codes == [0], "it believes that it has committed"
    assert CommitRef(step=90, fence=1) in store.listed()
    assert [ref.step for ref in direct("zombie").commits()] == [2, 1]
    save(store, 3, fence=fence, base=CommitRef(step=1, fence=1), keep=2)
    assert same(direct("zombie").restore()[0].state, 3)
    assert CommitRef(step=90, fence=1) not in store.listed(), "off the line, it goes first"


def test_the_reduced_sweep_meets_every_fault_at_every_kind_of_request():
    for requests, salt, share in [(20, 0, 1), (7, 3, 3), (15, 5, 1)]:
        pairs = list(cases(requests, salt, share))
        assert {fault for _, fault in pairs} == set(FAULTS)
        assert {k for k, _ in pairs} == set(range(requests))
