"""How the coordinator is reached: its address, the job's token, and who vouches for it.

The three are files of a secret that is mounted into the pod, and may change under it: an operator
that was installed anew in another namespace has another address and another authority, and a token
may be replaced at any time. So whoever connects reads them anew, just before. A pod whose secret
the kubelet has not refreshed yet is refused, and tries again.

A program that is started by hand may have the address and the token in its environment instead.

The kubelet changes all files of a volume at once, by turning the link ``..data`` to another
directory: that is followed once, so that no two of them are of different times.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from rekindle.api import (
    ACCESS_CA,
    ACCESS_TOKEN,
    ACCESS_URL,
    ENV_ACCESS,
    ENV_COORDINATOR,
    ENV_TOKEN,
)

if TYPE_CHECKING:
    import ssl


@dataclass(frozen=True, kw_only=True)
class CoordinatorAccess:
    """How the coordinator is reached at the moment."""

    url: str
    """Without a slash at its end."""
    token: str
    authority: str = ""
    """Certificates (PEM) of those who vouch for it; empty: those that this system trusts."""

    def context(self) -> "ssl.SSLContext":
        """What a connection is checked by; raises OSError for an authority that is none."""
        import ssl  # not for a pod that talks in the clear: it is large

        if not self.authority:
            return ssl.create_default_context()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_verify_locations(cadata=self.authority)
        return context


@dataclass(frozen=True)
class AccessFiles:
    """Where it is written."""

    directory: Path | None = None
    given: CoordinatorAccess | None = None
    """What the environment has said, where there is no directory."""

    def read(self) -> CoordinatorAccess:
        """Read it; raises OSError or ValueError, which say what is wrong with which file."""
        if self.directory is None:
            if self.given is None:
                raise ValueError(f"neither {ENV_ACCESS} nor {ENV_COORDINATOR} is set")
            return self.given
        now = self.directory / "..data"
        place = Path(os.path.realpath(now)) if now.exists() else self.directory
        url, token = ((place / name).read_text().strip() for name in (ACCESS_URL, ACCESS_TOKEN))
        authority = place / ACCESS_CA
        return CoordinatorAccess(
            url=checked(url, str(self.directory / ACCESS_URL)),
            token=token,
            authority=authority.read_text() if authority.exists() else "",
        )


def access_to(environment: Mapping[str, str]) -> AccessFiles | None:
    """Find out where it is written; None without an operator. Raises ValueError for a bad URL."""
    directory = environment.get(ENV_ACCESS)
    if directory:
        return AccessFiles(directory=Path(directory))
    url = environment.get(ENV_COORDINATOR)
    if not url:
        return None
    token = environment.get(ENV_TOKEN, "")
    return AccessFiles(given=CoordinatorAccess(url=checked(url, ENV_COORDINATOR), token=token))


def checked(url: str, called: str) -> str:
    """A URL of the coordinator; raises ValueError saying what it must be, and no secret in it."""
    if "@" in url:
        raise ValueError(f"{called} holds credentials, before its @: the token is the credential")
    if not url.startswith(("http://", "https://")) or not urlsplit(url).hostname:
        raise ValueError(
            f"{called} is {url!r}, must begin with http:// or https:// and name a host"
        )
    return url.rstrip("/")
