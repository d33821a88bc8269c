"""The coordinator's certificates: who trusts them, where they are kept, how they are renewed."""

import asyncio
import contextlib
import os
import ssl
import stat
from datetime import UTC, datetime, timedelta

import pytest
from aiohttp import web

from rekindle_operator import certificates, connections, tls
from rekindle_operator.__main__ import parse
from rekindle_operator.cluster import ApiError

NOW = datetime.now(UTC)


@contextlib.asynccontextmanager
async def served(context):
    async def hello(_):
        return web.Response(text="hello\n")

    app = web.Application()
    app.router.add_get("/", hello)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    allowed = connections.Limits(total=8, strangers=8, per_peer=8)
    door = connections.Door(runner, "127.0.0.1", 0, allowed, context)
    door.open()
    try:
        yield door.port
    finally:
        await door.close()
        await runner.cleanup()


async def ask(port, trusted, host="127.0.0.1"):
    """The certificate that is shown, if a client that trusts these believes it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=trusted)
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=context, server_hostname=host
    )
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert b"hello" in await reader.read()
    found = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return found


@pytest.mark.servers
def test_pods_believe_their_operator_under_its_own_name_and_nobody_else(monkeypatch):
    monkeypatch.setattr(tls, "LOOK", 0.01)
    own, other = certificates.authority(NOW), certificates.authority(NOW)
    source = tls.Own(own, ["127.0.0.1", "rekindle.system.svc"])

    async def run():
        context, shown = await tls.context(source)
        async with served(context) as port:
            first = await ask(port, source.authority())
            assert await ask(port, source.authority(), "rekindle.system.svc") == first
            with pytest.raises(ssl.SSLCertVerificationError):
                await ask(port, other.certificate)
            with pytest.raises(ssl.SSLCertVerificationError):
                await ask(port, source.authority(), "elsewhere.svc")
            source._shown = certificates.issue(own, ["127.0.0.1"], NOW - timedelta(days=80))
            keeping = asyncio.create_task(tls.keep(context, source, shown))
            async with asyncio.timeout(10):
                while await ask(port, source.authority()) == first:
                    await asyncio.sleep(0.01)
            keeping.cancel()

    asyncio.run(run())


@pytest.mark.parametrize(("days", "due"), [(0, False), (59, False), (61, True), (100, True)])
def test_a_certificate_is_renewed_when_a_third_of_its_life_is_left(days, due):
    pair = certificates.issue(certificates.authority(NOW), ["a"], NOW)
    assert certificates.due(pair.certificate, NOW + timedelta(days=days)) is due


def test_an_authority_in_a_directory_stays_the_same_and_is_nobody_elses(tmp_path):
    folder = tmp_path / "tls"
    first = tls.in_directory(folder)
    assert tls.in_directory(folder) == first
    modes = [stat.S_IMODE(os.stat(path).st_mode) for path in (folder, *folder.iterdir())]
    assert modes == [0o700, 0o600]
    assert certificates.issue(first, ["a"], NOW)


class Secrets:
    """The API server, for one secret; ``raced``: what another operator has made meanwhile."""

    def __init__(self, raced=None):
        self.kept, self.raced = None, raced

    async def find(self, kind, namespace, name):
        return self.kept

    async def create(self, manifest):
        if self.raced:
            self.kept = self.raced
            raise ApiError(409, "AlreadyExists", "")
        self.kept = manifest
        return manifest


def test_an_authority_in_a_secret_is_made_once_whoever_comes_first():
    cluster = Secrets()
    first = asyncio.run(tls.in_secret(cluster, "ns", "ca"))
    assert asyncio.run(tls.in_secret(cluster, "ns", "ca")) == first
    assert asyncio.run(tls.in_secret(Secrets(raced=cluster.kept), "ns", "ca")) == first
    cluster.kept = {"data": {"tls.crt": "//8="}}
    with pytest.raises(ValueError, match=r"secret ns/ca must hold tls.crt and tls.key"):
        asyncio.run(tls.in_secret(cluster, "ns", "ca"))


def test_files_of_somebody_else_are_read_anew(tmp_path):
    pair = certificates.issue(certificates.authority(NOW), ["a"], NOW)
    (tmp_path / "tls.crt").write_text(pair.certificate)
    (tmp_path / "tls.key").write_text(pair.key)
    files = tls.Files(tmp_path / "tls.crt", tmp_path / "tls.key", None)
    assert asyncio.run(files.pair(NOW)) == pair
    assert files.authority() == ""
    (tmp_path / "tls.crt").write_text("another")
    assert asyncio.run(files.pair(NOW)).certificate == "another"


@pytest.mark.parametrize(
    "words",
    [
        ["https://a:1"],
        ["http://a:1", "--tls-directory", "d"],
        ["https://a:1", "--tls-secret", "name"],
        ["https://a:1", "--tls-secret", "a/b", "--tls-files", "d"],
    ],
)
def test_options_that_do_not_belong_together_are_refused(words, capsys):
    with pytest.raises(SystemExit):
        parse(["--coordinator-url", *words])
    assert "--tls" in capsys.readouterr().err
