"""A snapshot in shared memory: one slot, which outlives the process that fills it.

A slot is a memory file without a name (`memfd`), mapped by the trainer, which copies the state into
it, and by the process that uploads it. It lives as long as either of them, so a trainer that is
killed in the next instruction leaves a snapshot that can still be stored, and when both are gone
nothing is left behind. It does not depend on the size of /dev/shm, which is 64 MiB in a container.

    | header, one page | shard objects, one after the other | ticket |

The ticket says what the bytes are. The header says where it is and, in a number that is written
last, which save the slot holds; the number is zero while the copy goes on. So a reader either finds
a whole snapshot or none.

The pages are there before the first copy: writing into fresh ones is nine times slower, because the
kernel has to clear them first.
"""

import ctypes
import mmap
import os
import struct
import tempfile
import zlib
from typing import Self

_MAGIC = b"rekindl1"
_HEADER = struct.Struct("<8sQQQ")  # magic, bytes of shards, bytes and CRC-32 of the ticket
_NUMBER = struct.Struct("<Q")
_NUMBER_AT = 256
_PAGE = 4096
_POPULATE = getattr(mmap, "MAP_POPULATE", 0)


class SnapshotMemory:
    """One slot, on the side that made it or on the side that got its descriptor."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._size = 0
        self._map: mmap.mmap | None = None

    @classmethod
    def create(cls) -> Self:
        """An empty slot; raises OSError where the system has no shared memory."""
        if hasattr(os, "memfd_create"):
            return cls(os.memfd_create("rekindle-snapshot", os.MFD_CLOEXEC))
        with tempfile.TemporaryFile() as file:
            return cls(os.dup(file.fileno()))

    @property
    def capacity(self) -> int:
        """Bytes that shards and ticket may take without growing."""
        return max(0, self._size - _PAGE)

    def reserve(self, capacity: int) -> None:
        """Make room and touch every page of it; raises OSError when there is no memory."""
        if capacity <= self.capacity:
            return
        size = -(-(capacity + _PAGE) // _PAGE) * _PAGE
        # Somebody who had the slot before may have made it larger; what it holds stays.
        size = max(size, os.fstat(self.descriptor).st_size)
        os.ftruncate(self.descriptor, size)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self.descriptor, 0, size)
        # Only now: without more memory, the slot remains what it is.
        self._map = mmap.mmap(self.descriptor, size, flags=mmap.MAP_SHARED | _POPULATE)
        self._size = size

    def memory(self, size: int) -> memoryview:
        """The first `size` bytes after the header, writable; the slot counts as empty now."""
        assert self._map is not None
        assert size <= self.capacity
        _NUMBER.pack_into(self._map, _NUMBER_AT, 0)
        return memoryview(self._map)[_PAGE : _PAGE + size]

    def complete(self, number: int, size: int, ticket: bytes) -> None:
        """Declare the bytes to be a snapshot; `number` counts saves and is never zero."""
        assert self._map is not None
        begin = _PAGE + size
        self._map[begin : begin + len(ticket)] = ticket
        _HEADER.pack_into(self._map, 0, _MAGIC, size, len(ticket), zlib.crc32(ticket))
        _NUMBER.pack_into(self._map, _NUMBER_AT, number)

    def read(self, *, private: bool = False) -> tuple[int, bytes, memoryview] | None:
        """Number, ticket and shard bytes of what the slot holds; None while it holds nothing.

        With `private` the bytes may be written to, which is seen by nobody else.
        """
        size = os.fstat(self.descriptor).st_size
        if size < _PAGE:
            return None
        if size != self._size:
            self._size = size
            flags, allowed = mmap.MAP_SHARED, mmap.PROT_READ
            if private:
                flags, allowed = mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE
            self._map = mmap.mmap(self.descriptor, size, flags, allowed)
        assert self._map is not None
        (number,) = _NUMBER.unpack_from(self._map, _NUMBER_AT)
        magic, length, long, crc = _HEADER.unpack_from(self._map, 0)
        if not number or magic != _MAGIC or length + long > size - _PAGE:
            return None
        ticket = self._map[_PAGE + length : _PAGE + length + long]
        if zlib.crc32(ticket) != crc:
            return None
        return number, ticket, memoryview(self._map)[_PAGE : _PAGE + length]

    def close(self) -> None:
        """Give the memory back, as far as this process goes."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
        self._map, self._size = None, 0


def address(memory: memoryview) -> int:
    """Where writable memory begins, for those who register it with a device."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))
