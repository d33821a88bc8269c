"""What the coordinator proves itself with, and where that is kept.

By default the operator is its own authority: in a cluster its certificate and key are in a secret
of the operator's namespace, on a laptop in a directory, so that an operator which starts anew is
trusted by the pods that run. Whoever makes it first has made it for all. It is renewed long before
its end, with the same key, so that pods trust what it signs by the old certificate and by the new
one. Who has an authority already names files instead; those are looked at again now and then,
since whoever renews them replaces them. Either way a change is taken over by the next connection,
and no connection that stands is closed for it.

The authority's certificate goes to the pods with their job's secret. Whether they would believe
what is shown to them is tried here first, at each look: no pod can tell its operator that it does
not trust it.
"""

import asyncio
import base64
import binascii
import contextlib
import logging
import os
import ssl
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from rekindle.api import LABEL_MANAGED_BY
from rekindle_operator.coordinator import certificates
from rekindle_operator.coordinator.certificates import Pair
from rekindle_operator.kube.cluster import TROUBLE, KubernetesApi, KubernetesError

logger = logging.getLogger(__name__)

LOOK = 60.0
"""Seconds between two looks at whether something else is to be shown."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0
"""Seconds before the API server is asked again for the authority; doubling from the first."""
CERTIFICATE, KEY = "tls.crt", "tls.key"
"""Keys of the secret, as those of a secret of type kubernetes.io/tls."""
AUTHORITY = "ca.crt"
"""Beside them in somebody else's: whom pods are to trust."""


class CertificateSource(Protocol):
    """Where certificates come from."""

    async def pair(self, now: datetime) -> Pair:
        """What the coordinator shows; the same as long as nothing is to be changed."""

    def authority(self) -> str:
        """Who vouches for what was given last, PEM; empty: whom the image of a pod trusts."""


class CertificateFiles:
    """A certificate that somebody else has made, in a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._authority = ""

    async def pair(self, now: datetime) -> Pair:
        """Read it; raises OSError and ValueError."""
        # A volume's files change all at once, when this link turns to another directory.
        place = Path(os.path.realpath(self._directory / "..data"))
        place = place if place.is_dir() else self._directory
        pair = Pair(certificate=(place / CERTIFICATE).read_text(), key=(place / KEY).read_text())
        authority = place / AUTHORITY
        self._authority = authority.read_text() if authority.exists() else ""
        return pair

    def authority(self) -> str:
        """Give what was beside it."""
        return self._authority


class Own:
    """Certificates by an authority that the operator has made, once."""

    def __init__(self, load: Callable[[datetime], Awaitable[Pair]], hosts: Sequence[str]) -> None:
        """``load`` gives the authority from where it is kept."""
        self._load, self._hosts = load, hosts
        self._by: Pair | None = None
        self._shown: Pair | None = None

    async def pair(self, now: datetime) -> Pair:
        """Make one, unless the last one is good for a while."""
        if self._shown is None or certificates.due(self._shown.certificate, now):
            self._by = await self._load(now)
            self._shown = certificates.issue(self._by, self._hosts, now)
        return self._shown

    def authority(self) -> str:
        """The one that signs."""
        return self._by.certificate if self._by else ""


async def in_secret(cluster: KubernetesApi, namespace: str, name: str, now: datetime) -> Pair:
    """The authority in a secret, which is made if there is none; waits for the API server."""
    pause = FIRST_PAUSE
    while True:
        try:
            return await _in_secret(cluster, namespace, name, now)
        except TROUBLE as error:
            text = "the coordinator's authority, secret %s/%s, cannot be had: %s; again in %.1f s"
            words = f"{type(error).__name__}: {error}".removesuffix(": ")
            logger.warning(text, namespace, name, words, pause)
        await asyncio.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


async def _in_secret(cluster: KubernetesApi, namespace: str, name: str, now: datetime) -> Pair:
    called = f"secret {namespace}/{name}"
    found = await cluster.find("Secret", namespace, name)
    if found is None:
        try:
            found = await cluster.create(_manifest(namespace, name, certificates.authority(now)))
        except KubernetesError as error:
            # Another operator may have been faster.
            found = await cluster.find("Secret", namespace, name)
            if error.status != 409 or found is None:
                raise
        else:
            logger.info("%s holds a new authority", called)
    pair = _decoded(found, called)
    if not certificates.due(pair.certificate, now):
        return pair
    renewed = certificates.renewed(pair, now)
    # Of what was read, and nothing else: the certificate must not get beside another key.
    guard = {key: found["metadata"][key] for key in ("uid", "resourceVersion")}
    data = {CERTIFICATE: _encoded(renewed.certificate)}
    await cluster.patch("Secret", namespace, name, {"metadata": guard, "data": data})
    logger.info("the authority in %s is renewed", called)
    return renewed


def _manifest(namespace: str, name: str, pair: Pair) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {"app.kubernetes.io/component": "authority", LABEL_MANAGED_BY: "rekindle"},
        },
        "type": "kubernetes.io/tls",
        "data": {CERTIFICATE: _encoded(pair.certificate), KEY: _encoded(pair.key)},
    }


async def in_directory(directory: Path, now: datetime) -> Pair:
    """The authority in a directory, which is made if there is none; raises OSError."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    both = directory / "authority.pem"
    if not both.exists():
        # Whoever is second, of two that start at once, finds the name taken.
        with contextlib.suppress(FileExistsError):
            _put(both, certificates.authority(now), os.link)
    certificate, _, key = both.read_text().partition("\n\n")
    pair = Pair(certificate=f"{certificate}\n", key=key)
    certificates.check(pair, str(both))
    if certificates.due(pair.certificate, now):
        pair = certificates.renewed(pair, now)
        _put(both, pair, os.replace)
    return pair


def _put(path: Path, pair: Pair, place: Callable[[str, Path], None]) -> None:
    """Write a pair beside its place, for its owner alone, and put it there when it is whole."""
    descriptor, name = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(f"{pair.certificate}\n{pair.key}")
            file.flush()
            os.fsync(descriptor)
        place(name, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


async def context(source: CertificateSource) -> tuple[ssl.SSLContext, Pair]:
    """For a server that shows what the source has now; and that. Raises OSError, ValueError."""
    made, shown = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), await source.pair(datetime.now(UTC))
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.num_tickets = 0  # no client comes back with one, and who does not read them is cut off
    show(made, shown)
    return made, shown


def show(context: ssl.SSLContext, pair: Pair) -> None:
    """Show another certificate from the next connection on; raises ValueError for what is none."""
    descriptor = os.memfd_create("rekindle-tls")  # a file that no disk has seen
    path = f"/proc/self/fd/{descriptor}"
    try:
        os.write(descriptor, f"{pair.certificate}\n{pair.key}".encode())
        # A context that takes a certificate and then refuses its key has neither.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(path)
        context.load_cert_chain(path)
    except ssl.SSLError as error:
        text = f"{CERTIFICATE} and {KEY} are no certificate with its key: {error}"
        raise ValueError(text) from error
    finally:
        os.close(descriptor)


def doubt(context: ssl.SSLContext, authority: str, host: str) -> str | None:
    """Why pods that reach a server as ``host`` would not believe it, in words; None if they do.

    Where there is no authority they trust whom their image does, and nothing is known of that.
    """
    if not authority:
        return None
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    try:
        client.load_verify_locations(cadata=authority)
        ends = (
            client.wrap_bio(back, there, server_hostname=host),
            context.wrap_bio(there, back, server_side=True),
        )
        for end in (*ends, *ends):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
    except ssl.SSLCertVerificationError as error:
        return str(error.verify_message)
    except (OSError, ValueError) as error:
        return str(error)
    return None


async def keep(
    context: ssl.SSLContext,
    source: CertificateSource,
    shown: Pair,
    host: str,
    changed: Callable[[], None],
) -> None:
    """Show whatever the source has by now, for ever; ``changed``: somebody else vouches for it."""
    told = source.authority()
    while True:
        try:
            fresh = await source.pair(datetime.now(UTC))
            if source.authority() != told:
                told = source.authority()
                changed()
            if fresh != shown:
                show(context, fresh)
                shown = fresh
                logger.info("the coordinator shows another certificate from now on")
        except (OSError, ValueError) as error:
            logger.warning("the coordinator's certificate cannot be renewed: %s", error)
        except Exception:
            # Whatever is wrong with one look, nobody would notice that there are no more.
            logger.exception("the coordinator's certificate cannot be renewed")
        if why := doubt(context, told, host):
            text = "pods will not believe the coordinator's certificate as that of %s: %s"
            logger.error(text, host, why)
        await asyncio.sleep(LOOK)


def _encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _decoded(secret: Mapping[str, Any], called: str) -> Pair:
    data = secret.get("data") or {}
    try:
        certificate, key = (base64.b64decode(data[k]).decode() for k in (CERTIFICATE, KEY))
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        text = f"{called} must hold {CERTIFICATE} and {KEY}; delete it to have a new one made"
        raise ValueError(text) from error
    pair = Pair(certificate=certificate, key=key)
    certificates.check(pair, called)
    return pair
