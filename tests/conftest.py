"""What all tests share, all of it for their speed.

Temporary folders are in memory where there is room: the file store flushes every object to the
disk, as it must, and thousands of tests that wait for a disk would be slow without proving more.

Bytecode is kept in pytest's own cache where the environment forbids it beside the sources: each
process of a run would else compile the same files again. What a process has imported by the time
its tests begin stays, so the garbage collector need not look at it again and again. Torch keeps to
one thread: the workers share the cores. And what processes import late is in `startup`.

The scenarios on a cluster come first, in two rows by two workers of pytest-xdist: each mostly waits
for pods, which need a core when they start, and a cluster with an operator is made for a row
instead of with each file. Then come the files that start processes. What is quick fills up the end.

No test is judged by the clock, hypothesis' included: it would find fault with a machine that is
busy.

And one thing for their truth: a run of the whole suite fails when a test that `checklist.md` names
did not run, or did not pass.
"""

import gc
import logging
import os
import re
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadFileScheduling

gc.disable()  # until all is imported and collected: what comes in stays

SHM = Path("/dev/shm")
ROOM = 2 << 30
"""Bytes that have to be free; containers often have no more than 64 MiB there."""

SCENARIOS = "tests/e2e/"
FIRST_ROW = ("test_losses", "test_who", "test_storms", "test_the_cause")
"""Which of them go together; the others take as long."""
LONG = "test_ranks.py"
"""Its processes keep a core busy for minutes, so nobody waits for it at the end."""

PASSED: set[str] = set()
"""The tests that ran and passed in any case of theirs, as `file::function`."""

os.environ.setdefault("OMP_NUM_THREADS", "1")
paths = [str(Path(__file__).with_name("startup")), os.environ.get("PYTHONPATH", "")]
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

if sys.dont_write_bytecode:
    cache = Path(__file__).parent.parent / ".pytest_cache" / "bytecode"
    sys.dont_write_bytecode = False
    sys.pycache_prefix = os.environ["PYTHONPYCACHEPREFIX"] = str(cache)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def pytest_configure(config):
    if "not processes" in config.option.markexpr and config.option.dist == "loadfile":
        config.option.dist = "worksteal"  # nothing is dear to set up: no worker need be idle
    if SHM.is_dir() and os.access(SHM, os.W_OK) and shutil.disk_usage(SHM).free > ROOM:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(SHM))


class FewClusters(LoadFileScheduling):
    """Files are given out in the order of their collection; the scenarios are two of them."""

    def _split_scope(self, nodeid):
        if not nodeid.startswith(SCENARIOS):
            return super()._split_scope(nodeid)
        name = nodeid.removeprefix(SCENARIOS)
        return f"first={name.startswith(FIRST_ROW)}"


def pytest_xdist_make_scheduler(config, log):
    if config.option.dist == "loadfile":
        config.option.loadscopereorder = False
        return FewClusters(config, log)
    return None


def pytest_collection_modifyitems(items):
    slow = {item.path for item in items if item.get_closest_marker("processes")}

    def late(item):
        first = item.nodeid.startswith(SCENARIOS), item.path.name == LONG, item.path in slow
        return [not it for it in first]

    items.sort(key=late)


def pytest_collection_finish():
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    gc.enable()


class Caught(logging.Handler):
    """All records that reach the root logger in one test."""

    def __init__(self):
        super().__init__()
        self.records = []
        self._levels = {}

    def emit(self, record):
        record.message = record.getMessage()
        self.records.append(record)

    @property
    def text(self):
        return "".join(f"{r.levelname} {r.name} {self.format(r)}\n" for r in self.records)

    def set_level(self, level, logger=None):
        """Until the end of the test."""
        chosen = logging.getLogger(logger)
        self._levels.setdefault(chosen, chosen.level)
        chosen.setLevel(level)

    @contextmanager
    def at_level(self, level, logger=None):
        chosen = logging.getLogger(logger)
        before = chosen.level
        chosen.setLevel(level)
        try:
            yield self
        finally:
            chosen.setLevel(before)

    def restore(self):
        for logger, level in self._levels.items():
            logger.setLevel(level)


@pytest.fixture
def caplog():
    """What is logged; in place of pytest's own, whose plugin costs each test a millisecond."""
    caught = Caught()
    logging.getLogger().addHandler(caught)
    yield caught
    logging.getLogger().removeHandler(caught)
    caught.restore()


def pytest_runtest_logreport(report):
    if report.when == "call" and report.passed:
        PASSED.add(report.nodeid.partition("[")[0])


def pytest_sessionfinish(session):
    config = session.config
    chosen = config.option.keyword or config.option.markexpr or config.option.collectonly
    if hasattr(config, "workerinput") or chosen or config.args != config.getini("testpaths"):
        return
    checklist = Path(__file__).with_name("checklist.md").read_text()
    named = set(re.findall(r"`(tests/[\w/.]+::\w+)`", checklist))
    if missing := sorted(named - PASSED):
        print("\nchecklist.md names tests that did not run and pass:", *missing, sep="\n  ")
        session.exitstatus = 1
