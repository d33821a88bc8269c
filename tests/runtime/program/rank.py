"""One rank of a group, started by the tests in a process of its own (see conftest)."""

import json
import os
import runpy
from pathlib import Path

import torch

from rekindle.persistence import run_identity

given = globals()  # RANK, WORLD_SIZE, PORT, TASKS and OUT come from whoever runs this file
os.environ.update(
    RANK=str(given["RANK"]),
    LOCAL_RANK=str(given["RANK"]),
    WORLD_SIZE=str(given["WORLD_SIZE"]),
    MASTER_ADDR="127.0.0.1",
    MASTER_PORT=str(given["PORT"]),
)
torch.set_num_threads(1)
programs = {
    name: runpy.run_path(str(Path(__file__).with_name(name)))
    for name in {task.get("program", "program.py") for task in given["TASKS"]}
}
results = []
for task in given["TASKS"]:
    # Each task stands for a process that is started.
    run_identity.forget()
    results.append(programs[task.get("program", "program.py")]["main"](task))
Path(given["OUT"]).write_text(json.dumps(results))
