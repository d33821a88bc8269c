"""The declared weaker mode for stores that ignore conditions: `Store.open(uri, commit="lease")`.

Of a trainer it is `Trainer(store={"commit": "lease"})`, of a job `spec.checkpoint.commit: lease`.

Some S3 servers accept `If-None-Match` and do not look at it. On them a condition is done by hand:
look whether the object is there, write it plainly, read it back and compare. Together with the
lease list, which a saver reads before each commit, this stops an attempt that *knows* of a newer
one, and every writer that is beaten before it reads back.

What it does not give: two writers of one key that both look before either writes can both believe
that they won. For commits that takes two processes with the same fence at the same moment; taking a
lease therefore waits and reads again (`Store.acquire`). The reader's rule about zombies (`lineage`)
needs no conditions and holds in full. Every commit records the mode under which it was written.
"""

from collections.abc import Callable, Iterable

from rekindle.checkpoint.objects.interface import Body, NotFound, Objects, PreconditionFailed, Stat

SETTLE_SECONDS = 1.0
"""How long a lease must stand before it is believed: longer than between look and write."""


class GuardedObjects:
    """A store whose conditions are checked by looking instead of by the server."""

    def __init__(self, inner: Objects) -> None:
        self._inner = inner
        self.uri = inner.uri
        self.endpoint = inner.endpoint

    def put(
        self, key: str, body: Body, *, if_none_match: bool = False, if_match: str | None = None
    ) -> str:
        """Look, write, and read back what was written under a condition."""
        if if_none_match and self._etag(key) is not None:
            raise PreconditionFailed(f"create {self.uri}/{key}: it exists already")
        if if_match is not None and self._etag(key) != if_match:
            raise PreconditionFailed(f"replace {self.uri}/{key}: the object has changed or is gone")
        etag = self._inner.put(key, body)
        if if_none_match and not self.holds(key, body):
            raise PreconditionFailed(f"create {self.uri}/{key}: another writer was faster")
        return etag

    def holds(self, key: str, body: Body) -> bool:
        """Whether the object is there with exactly this content."""
        view = memoryview(body).cast("B")
        try:
            return self._inner.get(key, 0, len(view) + 1) == view
        except NotFound:
            return False

    def _etag(self, key: str) -> str | None:
        try:
            return self._inner.head(key).etag
        except NotFound:
            return None

    def get(
        self,
        key: str,
        start: int | None = None,
        stop: int | None = None,
        *,
        limit: int | None = None,
    ) -> bytes:
        """As the store itself."""
        return self._inner.get(key, start, stop, limit=limit)

    def get_into(self, key: str, buffer: memoryview, start: int = 0) -> int:
        """As the store itself."""
        return self._inner.get_into(key, buffer, start)

    def head(self, key: str) -> Stat:
        """As the store itself."""
        return self._inner.head(key)

    def list(self, prefix: str) -> list[Stat]:
        """As the store itself."""
        return self._inner.list(prefix)

    def delete(self, key: str, *, if_match: str | None = None) -> None:
        """Look, then delete."""
        if if_match is not None and self._etag(key) != if_match:
            raise PreconditionFailed(f"delete {self.uri}/{key}: the object has changed or is gone")
        self._inner.delete(key)

    def delete_many(self, keys: Iterable[str]) -> None:
        """As the store itself."""
        self._inner.delete_many(keys)

    def try_upload(self, key: str) -> None:
        """As the store itself."""
        self._inner.try_upload(key)

    def abandon_uploads(
        self, prefix: str, *, older_than: float, only: Callable[[str], bool] | None = None
    ) -> int:
        """As the store itself."""
        return self._inner.abandon_uploads(prefix, older_than=older_than, only=only)

    def impatient(self) -> "GuardedObjects":
        """The same guard over the impatient store."""
        return GuardedObjects(self._inner.impatient())
