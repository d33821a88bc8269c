"""TLS of the API server: known by its authority, and done at once with clients that say nothing."""

import asyncio
import gc
import socket
import ssl
import warnings

import pytest

from rekindle_local.apiserver.http.server import ApiServer
from rekindle_local.network import certificates

pytestmark = pytest.mark.servers


def test_a_client_that_says_no_goodbye_keeps_no_connection_open(tmp_path):
    async def scenario():
        tls, authority = certificates.serve(["127.0.0.1"], tmp_path)
        server = ApiServer(token="t", tls=tls)
        port = int((await server.start()).rsplit(":", 1)[1])

        def watch():
            trusted = ssl.create_default_context(cadata=authority)
            plain = socket.create_connection(("127.0.0.1", port), 10)
            client = trusted.wrap_socket(plain, server_hostname="127.0.0.1")
            head = b"GET /api/v1/pods?watch=true HTTP/1.1\r\nHost: x\r\n"
            client.sendall(head + b"Authorization: Bearer t\r\n\r\n")
            return client, client.recv(200)

        client, answer = await asyncio.to_thread(watch)
        await server.stop()
        return client, answer

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", ResourceWarning)
        client, answer = asyncio.run(scenario())
        gc.collect()
    client.close()
    assert answer.startswith(b"HTTP/1.1 200")
    assert not [str(one.message) for one in told]
    assert not list(tmp_path.iterdir()), "the key is on no disk"


@pytest.mark.parametrize("encrypted", [True, False])
@pytest.mark.parametrize("turns", range(8))
def test_no_connection_outlives_a_server_that_stops_while_it_is_made(tmp_path, turns, encrypted):
    """At whatever turn of its loop that happens."""

    async def scenario():
        tls, authority = certificates.serve(["127.0.0.1"], tmp_path)
        server = ApiServer(token="t", tls=tls if encrypted else None)
        port = int((await server.start()).rsplit(":", 1)[1])
        trusted = ssl.create_default_context(cadata=authority) if encrypted else None
        silent = socket.create_connection(("127.0.0.1", port), 10)
        clients = [
            asyncio.create_task(asyncio.open_connection("127.0.0.1", port, ssl=trusted))
            for _ in range(3)
        ]
        for _ in range(turns):
            await asyncio.sleep(0)
        await server.stop()
        for made in await asyncio.gather(*clients, return_exceptions=True):
            if not isinstance(made, BaseException):
                made[1].transport.abort()
        silent.close()
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", ResourceWarning)
        asyncio.run(scenario())
        gc.collect()
    assert not [str(one.message) for one in told]
