"""A worker of one pod of a round, with the pod's memory and control page (see test_memory)."""

import json
import os
import runpy
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from rekindle.checkpoint.saving import saver
from rekindle.peer_memory import restore, schedule, store

given = globals()  # ENVIRONMENT, MEMORY, TASK and OUT come from whoever runs this file
task = given["TASK"]
os.environ.update(given["ENVIRONMENT"])
if given["MEMORY"]:
    # As the launcher's children inherit them.
    descriptors = [os.open(path, os.O_RDWR) for path in given["MEMORY"]]
    os.environ["REKINDLE_MEMORY"] = ",".join(map(str, descriptors))
torch.set_num_threads(1)
# Line by line: this process may be killed.
sys.stdout = Path(given["OUT"]).with_suffix(".txt").open("w", buffering=1)
if task.get("copies", "every step") == "every step":
    schedule.LEAST_SECONDS, schedule.SHARE = 0.0, 1e9
    write = store.HostMemory.write
    # Whoever dies in a step has the copy from before it, however late a thread would have made it.
    store.HostMemory.write = lambda *args, later: write(*args, later=False)
if task.get("by_process"):
    saver.PROCESS_BYTES = 0
restore.PIECE = task.get("piece", restore.PIECE)


def dying(function, left):
    """The function, whose call after so many others is the end of the process."""

    def call(*args, **kwargs):
        nonlocal left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    return call


rank = int(os.environ["RANK"])
if (place := task.get("die", {}).get(str(rank))) is not None:
    what, calls = place
    if what == "copy":
        store.HostMemory._complete = dying(store.HostMemory._complete, calls)
    elif what == "give":
        dist.send = dying(dist.send, calls)
    elif what == "take":
        dist.recv = dying(dist.recv, calls)
    elif what == "save":
        saver.Saver.save = dying(saver.Saver.save, calls)
    elif what == "recalled":
        restore.Recall.release = dying(restore.Recall.release, calls)
result = runpy.run_path(str(Path(__file__).with_name("program.py")))["main"](task)
Path(given["OUT"]).write_text(json.dumps(result))
