"""The coordinator's certificates: who trusts them, where they are kept, how they are renewed."""

import asyncio
import contextlib
import os
import ssl
import stat
import threading
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
from aiohttp import web
from kubernetes.aio import client

from rekindle_local.apiserver.http.server import ApiServer
from rekindle_operator import __main__ as main
from rekindle_operator.__main__ import parse
from rekindle_operator.coordinator import certificates, connections, tls
from rekindle_operator.kube.cluster import KubernetesApi, KubernetesError

NOW = datetime.now(UTC)
YEAR = timedelta(days=365)
HOST = "rekindle.system.svc"


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


def own(by, *hosts):
    """A source whose authority is this one."""

    async def load(_):
        return by

    return tls.Own(load, hosts)


@pytest.mark.servers
def test_pods_believe_their_operator_under_its_own_name_and_nobody_else(monkeypatch):
    monkeypatch.setattr(tls, "LOOK", 0.01)
    by, other = certificates.authority(NOW), certificates.authority(NOW)
    source = own(by, "127.0.0.1", HOST)

    async def run():
        context, shown = await tls.context(source)
        async with served(context) as port:
            first = await ask(port, source.authority())
            assert await ask(port, source.authority(), HOST) == first
            with pytest.raises(ssl.SSLCertVerificationError):
                await ask(port, other.certificate)
            with pytest.raises(ssl.SSLCertVerificationError):
                await ask(port, source.authority(), "elsewhere.svc")
            source._shown = certificates.issue(by, ["127.0.0.1"], NOW - timedelta(days=80))
            keeping = asyncio.create_task(tls.keep(context, source, shown, HOST, lambda: None))
            async with asyncio.timeout(10):
                while await ask(port, source.authority()) == first:
                    await asyncio.sleep(0.01)
            keeping.cancel()

    asyncio.run(run())


@pytest.mark.parametrize(("days", "due"), [(0, False), (59, False), (61, True), (100, True)])
def test_a_certificate_is_renewed_when_a_third_of_its_life_is_left(days, due):
    pair = certificates.issue(certificates.authority(NOW), ["a"], NOW)
    assert certificates.due(pair.certificate, NOW + timedelta(days=days)) is due


def shows(pair):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.show(context, pair)
    return context


def test_an_authority_that_is_renewed_is_believed_by_its_old_certificate_and_by_its_new_one():
    old = certificates.authority(NOW - 7 * YEAR)
    new = certificates.renewed(old, NOW)
    assert certificates.due(old.certificate, NOW)
    assert not certificates.due(new.certificate, NOW)
    for signs in (old, new):
        for trusted in (old, new):
            context = shows(certificates.issue(signs, [HOST], NOW))
            assert tls.doubt(context, trusted.certificate, HOST) is None


def test_why_pods_would_not_believe_a_certificate_is_known_beforehand():
    by, other = certificates.authority(NOW), certificates.authority(NOW)
    context = shows(certificates.issue(by, [HOST], NOW))
    assert tls.doubt(context, by.certificate, HOST) is None
    assert tls.doubt(context, "", HOST) is None, "nobody knows whom an image trusts"
    assert "elsewhere" in tls.doubt(context, by.certificate, "elsewhere")
    assert tls.doubt(context, other.certificate, HOST)
    assert tls.doubt(context, "nonsense", HOST)
    late = shows(certificates.issue(by, [HOST], NOW - YEAR))
    assert "expired" in tls.doubt(late, by.certificate, HOST)


def test_a_certificate_with_the_key_of_another_is_not_shown():
    by = certificates.authority(NOW)
    good, other = (certificates.issue(by, [HOST], NOW) for _ in range(2))
    context = shows(good)
    with pytest.raises(ValueError, match=r"tls.crt and tls.key are no certificate with its key"):
        tls.show(context, certificates.Pair(certificate=other.certificate, key=good.key))
    assert tls.doubt(context, by.certificate, HOST) is None, "the one before still is"


class Changing:
    """A source that the test changes and breaks."""

    broken = False

    def change(self):
        self.by = certificates.authority(NOW)
        self.shown = certificates.issue(self.by, [HOST], NOW)

    async def pair(self, now):
        if self.broken:
            raise RuntimeError("what nobody has thought of")
        return self.shown

    def authority(self):
        return self.by.certificate


def test_pods_are_told_of_another_authority_and_a_failed_look_is_not_the_last(monkeypatch, caplog):
    monkeypatch.setattr(tls, "LOOK", 0.001)
    source, doubts = Changing(), []
    source.change()

    async def run():
        context, shown = await tls.context(source)

        def changed():
            doubts.append(tls.doubt(context, source.authority(), HOST))

        source.broken = True
        keeping = asyncio.create_task(tls.keep(context, source, shown, HOST, changed))
        async with asyncio.timeout(10):
            while "cannot be renewed" not in caplog.text:
                await asyncio.sleep(0.001)
            source.broken = False
            source.change()
            while tls.doubt(context, source.authority(), HOST):
                await asyncio.sleep(0.001)
        assert not keeping.done()
        keeping.cancel()

    asyncio.run(run())
    assert len(doubts) == 1
    assert doubts[0], "they are told before it is shown"


def test_an_authority_in_a_directory_stays_the_same_and_is_nobody_elses(tmp_path):
    folder = tmp_path / "tls"
    first = asyncio.run(tls.in_directory(folder, NOW))
    assert asyncio.run(tls.in_directory(folder, NOW)) == first
    modes = [stat.S_IMODE(os.stat(path).st_mode) for path in (folder, *folder.iterdir())]
    assert modes == [0o700, 0o600]
    late = asyncio.run(tls.in_directory(folder, NOW + 8 * YEAR))
    assert (late.key, late.certificate != first.certificate) == (first.key, True)
    assert asyncio.run(tls.in_directory(folder, NOW)) == late, "what is renewed is kept"
    assert len([*folder.iterdir()]) == 1


def test_of_two_operators_that_begin_at_once_in_a_directory_both_have_the_first_ones(
    tmp_path, monkeypatch
):
    both, made = threading.Barrier(2), certificates.authority

    def at_once(now):
        both.wait(60)
        return made(now)

    monkeypatch.setattr(certificates, "authority", at_once)
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(asyncio.run(tls.in_directory(tmp_path, NOW))))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [asyncio.run(tls.in_directory(tmp_path, NOW))] * 2


@pytest.mark.parametrize("text", ["", "nonsense\n\nmore", None])
def test_a_file_that_holds_no_authority_is_named(tmp_path, text):
    one, other = certificates.authority(NOW), certificates.authority(NOW)
    whole = f"{one.certificate}\n{other.key}" if text is None else text
    (tmp_path / "authority.pem").write_text(whole)
    with pytest.raises(ValueError, match=r"authority.pem holds no authority .*; delete it"):
        asyncio.run(tls.in_directory(tmp_path, NOW))


@pytest.mark.servers
def test_an_authority_in_a_secret_is_made_once_however_many_begin_at_once():
    async def run():
        server = ApiServer()
        await server.start()
        configuration = client.Configuration()
        configuration.host = server.url
        cluster = KubernetesApi(client.ApiClient(configuration))
        load = partial(tls.in_secret, cluster, "default", "ca")
        try:
            first, *others = await asyncio.gather(*(load(NOW) for _ in range(5)))
            assert others == [first] * 4
            late = await asyncio.gather(*(load(NOW + 8 * YEAR) for _ in range(3)))
            assert {pair.key for pair in late} == {first.key}
            assert await load(NOW + 8 * YEAR) in late
            assert first not in late
        finally:
            await cluster.close()
            await server.stop()

    asyncio.run(asyncio.wait_for(run(), 60))


class Away:
    """An API server that fails before it answers."""

    def __init__(self, *failures, kept=None):
        self.failures, self.kept = list(failures), kept

    async def find(self, kind, namespace, name):
        if self.failures:
            raise self.failures.pop(0)
        return self.kept

    async def create(self, manifest):
        return manifest

    async def close(self):
        pass


def test_an_api_server_that_is_away_is_waited_for(monkeypatch, caplog):
    monkeypatch.setattr(tls, "FIRST_PAUSE", 0.001)
    failures = (
        OSError("no route"),
        KubernetesError(500, "", "not now"),
        KubernetesError(403, "", "no rights"),
    )
    assert asyncio.run(tls.in_secret(Away(*failures), "ns", "ca", NOW)).key
    assert [f"{error}" in caplog.text for error in failures] == [True] * 3


@pytest.mark.parametrize("data", [{"tls.crt": "//8="}, {"tls.crt": "eA==", "tls.key": "eA=="}])
def test_a_secret_that_holds_no_authority_is_named(data):
    with pytest.raises(ValueError, match=r"secret ns/ca .*; delete it"):
        asyncio.run(tls.in_secret(Away(kept={"data": data}), "ns", "ca", NOW))


def test_files_of_somebody_else_are_read_anew_and_all_of_one_moment(tmp_path):
    first, second = tmp_path / "..1", tmp_path / "..2"
    for place in (first, second):
        place.mkdir()
        (place / "tls.crt").write_text(f"certificate {place.name}")
        (place / "tls.key").write_text(f"key {place.name}")
    (second / "ca.crt").write_text("authority")
    link = tmp_path / "..data"
    files = tls.CertificateFiles(tmp_path)
    for place, authority in ((first, ""), (second, "authority"), (first, "")):
        link.unlink(missing_ok=True)
        link.symlink_to(place.name)
        pair = asyncio.run(files.pair(NOW))
        assert pair == certificates.Pair(f"certificate {place.name}", f"key {place.name}")
        assert files.authority() == authority


@pytest.mark.servers
@pytest.mark.parametrize("files", [{}, {"tls.crt": "nonsense", "tls.key": "nonsense"}])
def test_an_operator_with_nothing_to_show_says_so_and_ends(files, tmp_path, monkeypatch):
    async def connect():
        return Away()

    monkeypatch.setattr(main.KubernetesApi, "connect", connect)
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    ports = ["--host", "127.0.0.1", "--port", "0", "--metrics-port", "0"]
    options = parse(["--coordinator-url", "https://a:1", "--tls-files", str(tmp_path), *ports])
    with pytest.raises(SystemExit, match=r"nothing to prove itself with: .*tls.crt"):
        asyncio.run(main.run(options))


@pytest.mark.parametrize(
    "words",
    [
        ["https://a:1"],
        ["http://a:1", "--tls-directory", "d"],
        ["https://a:1", "--tls-secret", "name"],
        ["https://a:1", "--tls-secret", "a/b", "--tls-files", "d"],
        ["https://:1", "--tls-directory", "d"],
    ],
)
def test_options_that_do_not_belong_together_are_refused(words, capsys):
    with pytest.raises(SystemExit):
        parse(["--coordinator-url", *words])
    assert "--tls" in capsys.readouterr().err
