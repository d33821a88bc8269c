"""What all tests share: temporary folders in memory where there is room.

The file store flushes every object to the disk, as it must. Thousands of tests that wait for a disk
would be slow without proving more.
"""

import os
import shutil
from pathlib import Path

SHM = Path("/dev/shm")
ROOM = 2 << 30
"""Bytes that have to be free; containers often have no more than 64 MiB there."""


def pytest_configure(config):
    if SHM.is_dir() and os.access(SHM, os.W_OK) and shutil.disk_usage(SHM).free > ROOM:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(SHM))
