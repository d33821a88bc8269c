"""Where a run keeps its checkpoints, as a type instead of a string.

A checkpoint location is a URL from the moment it is read until the moment a request is made.
Path libraries collapse the two slashes of `s3://bucket/x` into one, and the wreck `s3:/bucket/x`
is then a perfectly good *relative* path: training starts, writes to the pod's own disk and loses
everything. So nothing here ever goes through `pathlib`, and a URL with one slash is refused with
code R25 and not repaired.

Two schemes are known: `s3` and `file`. A bare absolute path means `file`.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote, unquote

ADDRESSING = ("auto", "path", "virtual")
"""How a bucket gets into URLs: as the first of the path, of the host, or as the endpoint is."""
OF_S3 = ("endpoint_url", "region", "profile", "ca_bundle", "addressing")
"""Options of a store that only S3 has a use for."""
_BUCKET = re.compile(r"^[a-z0-9][a-z0-9.\-]{1,61}[a-z0-9]$")
_ALLOWED = "Allowed are s3://bucket/prefix, file:///directory and an absolute path."
_INSTEAD = (
    "give them as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or the pod's own identity"
)


class InvalidLocation(ValueError):
    """The checkpoint URI cannot be used; the message says what is allowed instead."""


@dataclass(frozen=True, kw_only=True)
class Location:
    """A parsed checkpoint root: all keys of a run lie below it."""

    scheme: Literal["s3", "file"]
    bucket: str
    """The bucket of an `s3` location, empty for `file`."""
    path: str
    """Key prefix without slashes at its ends (`s3`), or an absolute directory (`file`)."""

    def __str__(self) -> str:
        if self.scheme == "file":
            return f"file://{quote(self.path)}"
        return f"s3://{self.bucket}/{self.path}" if self.path else f"s3://{self.bucket}"

    def uri(self, key: str) -> str:
        """The full URI of one object, for messages."""
        return f"{str(self).rstrip('/')}/{key}"


def parse(text: str | os.PathLike[str]) -> Location:
    """Parse a checkpoint URI; raises `InvalidLocation` (R25 for a URL with one slash)."""
    uri = os.fspath(text)
    if not isinstance(uri, str) or not uri:
        raise InvalidLocation(f"checkpoint URI is empty. {_ALLOWED}")
    if any(ord(c) < 32 or ord(c) == 127 for c in uri):
        raise InvalidLocation(f"checkpoint URI {uri!r} has control characters. {_ALLOWED}")
    if uri.startswith("/"):
        return _directory(uri, uri)
    scheme, colon, rest = uri.partition(":")
    if not colon:
        raise InvalidLocation(
            f"checkpoint URI {uri!r} is a relative path, which means another directory in every "
            f"pod. {_ALLOWED}"
        )
    if not rest.startswith("//"):
        if rest.startswith("/"):
            raise InvalidLocation(
                f"R25 root {uri!r} is not a URL (one slash). Did pathlib collapse it?"
            )
        raise InvalidLocation(f"checkpoint URI {uri!r} is not a URL. {_ALLOWED}")
    if scheme == "s3":
        return _bucket(uri, rest[2:])
    if scheme == "file":
        if not rest.startswith("///"):
            raise InvalidLocation(
                f"checkpoint URI {uri!r} names a host; a file URI has three slashes: "
                f"file:///directory."
            )
        return _directory(uri, unquote(rest[2:]))
    raise InvalidLocation(f"checkpoint URI {uri!r} has the unknown scheme {scheme!r}. {_ALLOWED}")


def _bucket(uri: str, rest: str) -> Location:
    bucket, _, prefix = rest.partition("/")
    if "@" in bucket:
        # Whatever stands before the @ may be a secret, so the message repeats nothing of it.
        raise InvalidLocation(f"checkpoint URI holds credentials; {_INSTEAD}.")
    if not _BUCKET.match(bucket):
        raise InvalidLocation(
            f"checkpoint URI {uri!r}: {bucket!r} is not a bucket name (3 to 63 lower-case letters, "
            f"digits, dots and hyphens). {_ALLOWED}"
        )
    if "?" in prefix or "#" in prefix:
        raise InvalidLocation(f"checkpoint URI {uri!r} has a query or a fragment. {_ALLOWED}")
    prefix = prefix.strip("/")
    if any(part in {"", ".", ".."} for part in prefix.split("/") if prefix):
        raise InvalidLocation(
            f"checkpoint URI {uri!r} has an empty, '.' or '..' segment. {_ALLOWED}"
        )
    return Location(scheme="s3", bucket=bucket, path=prefix)


def _directory(uri: str, path: str) -> Location:
    parts = [part for part in path.split("/") if part]
    if not parts:
        raise InvalidLocation(f"checkpoint URI {uri!r} is the root of the file system. {_ALLOWED}")
    if any(part in {".", ".."} for part in parts):
        raise InvalidLocation(f"checkpoint URI {uri!r} has a '.' or '..' segment. {_ALLOWED}")
    return Location(scheme="file", bucket="", path="/" + "/".join(parts))


def without_credentials(endpoint: str, called: str = "the endpoint URL") -> str:
    """The URL of an S3 server, unchanged; raises `InvalidLocation` when it holds credentials.

    An endpoint is no secret: it stands in process lists, in logs and in messages. So whoever reads
    one asks here first, and the refusal repeats nothing of it.
    """
    if "@" in endpoint:
        raise InvalidLocation(f"{called} holds credentials, before its @; {_INSTEAD}.")
    return endpoint


def check_options(uri: str, given: Mapping[str, str]) -> None:
    """Refuse options of S3 that come with a root on a file system; raises `InvalidLocation`.

    `given` says what the caller calls each option that it got. This is for the root that the
    options were given with: those of a job go along to whatever store its script looks into.
    """
    useless = [called for option, called in given.items() if option in OF_S3]
    if useless and parse(uri).scheme != "s3":
        raise InvalidLocation(
            f"{', '.join(useless)}: for s3:// only, and {uri} is on a file system. Leave out what "
            f"is for S3, or correct the URI."
        )
