"""Runs the tests' training program: here, or on ranks that are processes of their own.

Ranks come out of a forkserver that has imported torch and rekindle once; a fresh interpreter per
rank would spend two seconds on that.
"""

import importlib
import json
import multiprocessing
import os
import runpy
import sys
import threading
import time
import types
from pathlib import Path

import pytest
import torch

from rekindle_cli.local.stack import free_ports


class _Later(types.ModuleType):
    """Stands in for `scipy.signal`, until anybody wants more of it than torchmetrics does.

    That only asks on import whether the module has one old name: it takes most of a second.
    """

    hamming = None

    def __getattr__(self, name):
        if name.startswith("__"):  # whoever goes through all modules
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


sys.modules.setdefault("scipy.signal", _Later("scipy.signal"))

PROGRAM = Path(__file__).parent / "program"
DEADLINE = 200.0


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Small tensors on many threads are slow, and tests share the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", autouse=True)
def _no_seed_of_another_module():
    os.environ.pop("PL_GLOBAL_SEED", None)


@pytest.fixture(autouse=True)
def _each_fit_stands_for_a_start_of_its_script(request, monkeypatch):
    """Tests call `fit` again where a process would be started again; those of scripts do not."""
    from rekindle.persistence import run_identity

    run_identity.forget()
    if "one_script" not in request.keywords:

        def first(root):
            run_identity.forget()
            return 1

        monkeypatch.setattr(run_identity, "next_number", first)
    yield
    os.environ.pop("PL_GLOBAL_SEED", None)


@pytest.fixture(autouse=True)
def _no_lease_is_left():
    """However a run ends, it renews its lease no more: that would shut out everybody else."""
    before = set(threading.enumerate())
    yield
    for thread in threading.enumerate():
        if thread.name == "rekindle-lease" and thread not in before:
            thread.join(60)
            assert not thread.is_alive(), "the run's lease is still being renewed"


@pytest.fixture(scope="session")
def program():
    """The program's names, for tests in this process."""
    return runpy.run_path(str(PROGRAM / "program.py"))


@pytest.fixture
def fit(program, tmp_path):
    """Run one task in this process; its root is private to the test unless it names another."""

    def run(**task):
        root = task.pop("root", "run")
        return program["main"]({"root": str(tmp_path / root), **task})

    return run


@pytest.fixture(scope="session")
def _forkserver():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "rekindle.trainer.trainer",
            "torchmetrics.classification",
            # Imported by the first optimizer of every rank, and by sharded models.
            "torch._dynamo",
            "torch.distributed.fsdp",
            "torch.distributed.checkpoint.state_dict",
        ]
    )
    return context


@pytest.fixture
def ranks(_forkserver, tmp_path):
    """Run tasks, one after the other, on ranks of their own; gives [rank][task] results."""
    return _runner(_forkserver, tmp_path)


@pytest.fixture(scope="module")
def ranks_of_module(_forkserver, tmp_path_factory):
    """The same for several tests that look at results of one start."""
    return _runner(_forkserver, tmp_path_factory.mktemp("ranks"))


def _runner(_forkserver, tmp_path):
    def run(world_size, *tasks, fails=False):
        (port,) = free_ports(1)
        tasks = [{**task, "root": str(tmp_path / task.get("root", "run"))} for task in tasks]
        outs = [tmp_path / f"{port}-{rank}.json" for rank in range(world_size)]
        names = {"WORLD_SIZE": world_size, "PORT": port, "TASKS": tasks}
        started = [
            _forkserver.Process(
                target=runpy.run_path,
                args=(str(PROGRAM / "rank.py"),),
                kwargs={"init_globals": {**names, "RANK": rank, "OUT": str(out)}},
            )
            for rank, out in enumerate(outs)
        ]
        for process in started:
            process.start()
        limit = time.monotonic() + DEADLINE
        for process in started:
            process.join(max(0.1, limit - time.monotonic()))
        late = [process for process in started if process.is_alive()]
        for process in late:
            process.kill()
            process.join()
        assert not late, "ranks hang"
        codes = [process.exitcode for process in started]
        for process in started:
            process.close()
        assert fails or codes == [0] * world_size, codes
        return [json.loads(out.read_text()) for out in outs if out.exists()]

    return run


@pytest.fixture(scope="session")
def shares():
    """A torch that cuts models into shares; `FSDP2` refuses the others by name."""
    from torch.distributed.fsdp import FSDPModule

    if not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
        pytest.skip("needs a newer torch")
