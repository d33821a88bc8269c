"""What the checkpoint protocol asks of an object store, and how a store may fail.

The whole safety of a checkpoint rests on four properties, so they are a protocol with one contract
suite that every implementation passes: an object appears at once and whole; `put` with
`if_none_match` lets exactly one of many writers win; `get` after `put` sees the object; `list`
after `put` contains it. S3 has had all four since 2024, a POSIX file system has them through
temporary file, `fsync` and `link`.

Errors are typed where they are understood, because callers decide by type:

    StoreError
    ├── NotFound              no such object
    ├── PreconditionFailed    if_none_match or if_match did not hold: somebody else was there
    ├── Conflict              two conditional writes at the same moment; try again   (transient)
    ├── AccessDenied          known identity, missing permission
    ├── InvalidCredentials    unknown, wrong or expired identity
    ├── NoSuchBucket          the bucket (or its region) is wrong
    ├── NoSpace               disk or quota full
    ├── Unreachable           no answer after bounded retries, or 5xx                (transient)
    └── Refused               any other answer; the message quotes it

`transient` says whether the same call may succeed later without anybody changing anything.
Messages name the operation, the URI and the next action, and never a credential.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar, Protocol

Body = bytes | bytearray | memoryview
"""What `put` takes as a body: any contiguous buffer, sent without a copy."""


class StoreError(Exception):
    """A call to the object store failed; `transient` says whether waiting can help."""

    transient: ClassVar[bool] = False


class NotFound(StoreError):
    """There is no object under this key."""


class PreconditionFailed(StoreError):
    """The object exists already (`if_none_match`) or is another one (`if_match`)."""


class Conflict(StoreError):
    """Another conditional write of the same key was under way; neither outcome is known."""

    transient = True


class AccessDenied(StoreError):
    """The identity is known and lacks the permission."""


class InvalidCredentials(StoreError):
    """The identity is missing, unknown, wrong or expired."""


class NoSuchBucket(StoreError):
    """The bucket does not exist at this endpoint."""


class NoSpace(StoreError):
    """The disk or the quota is full."""


class Unreachable(StoreError):
    """No usable answer after bounded retries with backoff."""

    transient = True


class RequestRefused(StoreError):
    """The store answered with an error that none of the other classes covers."""


@dataclass(frozen=True, kw_only=True)
class Stat:
    """One object as listings show it."""

    key: str
    size: int
    etag: str
    """Changes whenever the object is overwritten; opaque otherwise."""


class Objects(Protocol):
    """The object store below one checkpoint root. Keys are relative to the root.

    All calls may be made from several threads at once. All raise `StoreError` and nothing else.
    """

    uri: str
    """The root, for messages."""
    endpoint: str
    """Who answers, for messages: an endpoint URL or `the file system`."""

    def put(
        self, key: str, body: Body, *, if_none_match: bool = False, if_match: str | None = None
    ) -> str:
        """Store the object, whole or not at all, and return its etag.

        Large bodies are sent in parts; a failure leaves no unfinished upload behind where the
        store can still be reached. Raises `PreconditionFailed` when `if_none_match` and the key
        exists, or when `if_match` is given and the object is another one or gone.
        """
        ...

    def get(
        self,
        key: str,
        start: int | None = None,
        stop: int | None = None,
        *,
        limit: int | None = None,
    ) -> bytes:
        """Bytes `start` to `stop` (clipped to the object), refused before reading past `limit`."""
        ...

    def get_into(self, key: str, buffer: memoryview, start: int = 0) -> int:
        """Fill `buffer` from offset `start`; returns the count, short only at the object's end."""
        ...

    def head(self, key: str) -> Stat:
        """Size and etag of one object."""
        ...

    def list(self, prefix: str) -> list[Stat]:
        """Every object whose key starts with `prefix`, sorted by key."""
        ...

    def delete(self, key: str, *, if_match: str | None = None) -> None:
        """Remove an object; a missing one is no error unless `if_match` is given.

        With `if_match` raises `PreconditionFailed` when the object is another one or gone.
        """
        ...

    def delete_many(self, keys: Iterable[str]) -> None:
        """Remove objects in batches; missing ones are no error."""
        ...

    def try_upload(self, key: str) -> None:
        """Begin an upload in parts and abandon it: proof that large shards could be written."""
        ...

    def abandon_uploads(
        self, prefix: str, *, older_than: float, only: Callable[[str], bool] | None = None
    ) -> int:
        """Drop unfinished uploads that are older than so many seconds; returns how many.

        `only` is asked about the key, where the store knows it: a server's clock may be wrong.
        """
        ...

    def impatient(self) -> "Objects":
        """The same store with short timeouts and few retries, for checks before training."""
        ...


def check_key(key: str) -> str:
    """Return the key if it is safe on every store; raises `ValueError` otherwise.

    Keys also come out of manifests, which are not trusted: a key must not climb out of the root.
    """
    if not key or len(key) > 512 or not key.isascii() or not key.isprintable():
        raise ValueError(f"object key {key[:80]!r} is empty, too long or not printable ASCII")
    if "\\" in key or any(part in {"", ".", ".."} for part in key.split("/")):
        raise ValueError(f"object key {key[:80]!r} has an empty, '.' or '..' segment")
    return key
