"""One rank of a group, started by the tests in a process of its own (see conftest)."""

import json
import os
import runpy
from pathlib import Path

import torch

RANK: int
WORLD_SIZE: int
PORT: int
TASKS: list
OUT: str

os.environ.update(
    RANK=str(RANK),
    LOCAL_RANK=str(RANK),
    WORLD_SIZE=str(WORLD_SIZE),
    MASTER_ADDR="127.0.0.1",
    MASTER_PORT=str(PORT),
)
torch.set_num_threads(1)
program = runpy.run_path(str(Path(__file__).with_name("program.py")))
results = [program["main"](task) for task in TASKS]
Path(OUT).write_text(json.dumps(results))
