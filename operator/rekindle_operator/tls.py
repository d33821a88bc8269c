"""What the coordinator proves itself with, and where that is kept.

By default the operator is its own authority: in a cluster its certificate and key are in a secret
of the operator's namespace, on a laptop in a directory, so that an operator which starts anew is
trusted by the pods that run. Who has an authority already names files instead; those are looked at
again now and then, since whoever renews them replaces them. Either way a change is taken over by
the next connection, and no connection that stands is closed for it.

The authority's certificate goes to the pods with their job's secret.
"""

import asyncio
import base64
import binascii
import contextlib
import logging
import os
import ssl
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from rekindle.contract import LABEL_MANAGED_BY
from rekindle_operator import certificates
from rekindle_operator.certificates import Pair
from rekindle_operator.cluster import ApiError, Cluster

logger = logging.getLogger(__name__)

LOOK = 60.0
"""Seconds between two looks at whether something else is to be shown."""
CERTIFICATE, KEY = "tls.crt", "tls.key"
"""Keys of the secret, as those of a secret of type kubernetes.io/tls."""


class Source(Protocol):
    """Where certificates come from."""

    async def pair(self, now: datetime) -> Pair:
        """What the coordinator shows; the same as long as nothing is to be changed."""

    def authority(self) -> str:
        """Who vouches for that, PEM; empty: somebody whom everybody trusts."""


class Files:
    """A certificate that somebody else has made."""

    def __init__(self, certificate: Path, key: Path, authority: Path | None) -> None:
        self._certificate, self._key, self._authority = certificate, key, authority

    async def pair(self, now: datetime) -> Pair:
        """Read it; raises OSError."""
        return Pair(certificate=self._certificate.read_text(), key=self._key.read_text())

    def authority(self) -> str:
        """Read it; raises OSError."""
        return self._authority.read_text() if self._authority else ""


class Own:
    """Certificates by an authority that the operator has made, once."""

    def __init__(self, by: Pair, hosts: Sequence[str]) -> None:
        self._by, self._hosts = by, hosts
        self._shown: Pair | None = None

    async def pair(self, now: datetime) -> Pair:
        """Make one, unless the last one is good for a while."""
        if self._shown is None or certificates.due(self._shown.certificate, now):
            self._shown = certificates.issue(self._by, self._hosts, now)
        return self._shown

    def authority(self) -> str:
        """The one that signs."""
        return self._by.certificate


async def in_secret(cluster: Cluster, namespace: str, name: str) -> Pair:
    """The authority in a secret, which is made if there is none; raises ApiError."""
    fresh = certificates.authority(datetime.now(UTC))
    manifest = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {"app.kubernetes.io/component": "authority", LABEL_MANAGED_BY: "rekindle"},
        },
        "type": "kubernetes.io/tls",
        "data": {CERTIFICATE: _encoded(fresh.certificate), KEY: _encoded(fresh.key)},
    }
    found = await cluster.find("Secret", namespace, name)
    if found is None:
        try:
            found = await cluster.create(manifest)
        except ApiError as error:
            found = await cluster.find("Secret", namespace, name)
            if error.status != 409 or found is None:
                raise
        else:
            logger.info("secret %s/%s holds a new authority", namespace, name)
    return _decoded(found, f"secret {namespace}/{name}")


def in_directory(directory: Path) -> Pair:
    """The authority in a directory, which is made if there is none; raises OSError."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    both = directory / "authority.pem"
    with contextlib.suppress(FileNotFoundError):
        certificate, _, key = both.read_text().partition("\n\n")
        return Pair(certificate=f"{certificate}\n", key=key)
    fresh = certificates.authority(datetime.now(UTC))
    descriptor, name = tempfile.mkstemp(dir=directory)  # 0600, and moved when it is whole
    with os.fdopen(descriptor, "w") as file:
        file.write(f"{fresh.certificate}\n{fresh.key}")
    os.replace(name, both)
    return fresh


async def context(source: Source) -> tuple[ssl.SSLContext, Pair]:
    """For a server that shows what the source has now; and that."""
    made, shown = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), await source.pair(datetime.now(UTC))
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    show(made, shown)
    return made, shown


def show(context: ssl.SSLContext, pair: Pair) -> None:
    """Show another certificate from the next connection on; raises OSError for what is none."""
    descriptor = os.memfd_create("rekindle-tls")  # a file that no disk has seen
    try:
        os.write(descriptor, f"{pair.certificate}\n{pair.key}".encode())
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


async def keep(context: ssl.SSLContext, source: Source, shown: Pair) -> None:
    """Show whatever the source has by now, for ever."""
    while True:
        await asyncio.sleep(LOOK)
        try:
            fresh = await source.pair(datetime.now(UTC))
            if fresh != shown:
                show(context, fresh)
                shown = fresh
                logger.info("the coordinator shows another certificate from now on")
        except (OSError, ValueError) as error:
            logger.warning("the coordinator's certificate cannot be renewed: %s", error)


def _encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _decoded(secret: Mapping[str, Any], called: str) -> Pair:
    data = secret.get("data") or {}
    try:
        certificate, key = (base64.b64decode(data[k]).decode() for k in (CERTIFICATE, KEY))
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        text = f"{called} must hold {CERTIFICATE} and {KEY}; delete it to have a new one made"
        raise ValueError(text) from error
    return Pair(certificate=certificate, key=key)
