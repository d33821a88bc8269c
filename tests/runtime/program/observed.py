"""A small run with loggers, for processes of its own (see test_observed).

`TASK` says where it goes, where to end by SIGKILL and which rank dawdles; `OUT` gets what this rank
has seen.
"""

import json
import os
import signal
import time
import warnings
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

given = globals()  # RANK, WORLD_SIZE, PORT, TASK and OUT come from whoever runs this file
task = given["TASK"]
rank = given["RANK"]
os.environ.update(
    RANK=str(rank),
    LOCAL_RANK=str(rank),
    WORLD_SIZE=str(given["WORLD_SIZE"]),
    MASTER_ADDR="127.0.0.1",
    MASTER_PORT=str(given["PORT"]),
    MLFLOW_ALLOW_FILE_STORE="true",
)
torch.set_num_threads(1)
warnings.simplefilter("ignore")

import rekindle as rk  # noqa: E402
from rekindle import loggers  # noqa: E402

X = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))


class Net(rk.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(4, 1)

    def training_step(self, batch, batch_idx):
        self.log("first", batch[0][0, 0])
        return self.net(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


class Disturbing(rk.Callback):
    def on_before_backward(self, trainer, pl_module, loss):
        if rank == task.get("late"):
            time.sleep(task["seconds"])

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if trainer.global_step + 1 == task.get("kill_at"):
            os.kill(os.getpid(), signal.SIGKILL)


root = Path(task["root"])
made = [loggers.JSONLLogger(), loggers.CSVLogger(name="table")]
if task.get("services"):
    made += [
        loggers.TensorBoardLogger(),
        loggers.MLFlowLogger("observed", save_dir=root.parent / "mlruns"),
    ]
trainer = rk.Trainer(
    max_epochs=2,
    root=root,
    logger=made,
    callbacks=Disturbing(),
    log_every_n_steps=1,
    checkpoint_every=rk.Every(steps=3),
    enable_progress_bar=False,
)
trainer.fit(Net(), DataLoader(TensorDataset(X), 4, shuffle=False))
seen = {"phases": trainer.phases(), "log_dirs": [logger.log_dir for logger in made]}
Path(given["OUT"]).write_text(json.dumps(seen))
