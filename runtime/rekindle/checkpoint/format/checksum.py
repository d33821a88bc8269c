"""The checksum of a chunk: CRC64NVME where `awscrt` is installed, else CRC32 from zlib.

CRC64NVME is what S3 itself computes and the fastest one measured (31 GB per CPU second; zlib's
CRC32 6.6, SHA-256 1.9). Which one was used is recorded with every object, so ranks and readers with
different installations mix. A chunk CRC finds damage; it is not a protection against an attacker,
who could write a whole checkpoint anyway.
"""

import zlib
from collections.abc import Callable

CRC64NVME = "crc64nvme"
CRC32 = "crc32"

Crc = Callable[[memoryview], int]


class ChecksumUnavailable(Exception):
    """The checkpoint uses an algorithm that this installation cannot compute."""


def _crc32(view: memoryview) -> int:
    return zlib.crc32(view)


_KNOWN: dict[str, Crc] = {CRC32: _crc32}

try:
    from awscrt.checksums import crc64nvme as _awscrt
except ImportError:
    pass
else:

    def _crc64(view: memoryview) -> int:
        return int(_awscrt(view))

    _KNOWN[CRC64NVME] = _crc64

NAMES = (CRC64NVME, CRC32)
"""Every algorithm that a manifest may name."""
AVAILABLE = frozenset(_KNOWN)
"""What this installation can compute."""
DEFAULT = CRC64NVME if CRC64NVME in _KNOWN else CRC32
"""What this installation writes."""


def crc(name: str) -> Crc:
    """The function for a recorded name; raises `ChecksumUnavailable` if a package is missing."""
    try:
        return _KNOWN[name]
    except KeyError:
        raise ChecksumUnavailable(
            f"this checkpoint is checksummed with {name}, which needs the package 'awscrt': "
            f"pip install awscrt"
        ) from None
