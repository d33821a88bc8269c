"""Every entry point of the trainer on a rank, with what the tests compare."""

import contextlib
import io
import os
import time
import warnings

import torch
from torch.utils.data import DataLoader, TensorDataset

import rekindle as rk
from rekindle.training import sources

DATA = TensorDataset(torch.arange(10.0)[:, None], torch.arange(10))


class Net(rk.Module):
    def __init__(self, calls):
        super().__init__()
        self.calls = calls
        self.linear = torch.nn.Linear(1, 1)
        with torch.no_grad():
            self.linear.weight.fill_(2.0)
            self.linear.bias.zero_()
        from torchmetrics import MeanSquaredError

        self.error = MeanSquaredError()

    def prepare(self):
        self.calls.append("module")

    def forward(self, x):
        return self.linear(x)

    def training_step(self, batch, batch_idx):
        return self(batch[0] / 10).square().mean()

    def validation_step(self, batch, batch_idx):
        pass

    def test_step(self, batch, batch_idx):
        self.error(self(batch[0]), batch[0])
        self.log("error", self.error)
        self.log("mean", batch[0].mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.lr)


class Data(rk.DataModule):
    def __init__(self, calls, task):
        self.calls, self.task = calls, task

    def prepare_data(self):
        self.calls.append("data")
        if "slow" in self.task:
            time.sleep(self.task["slow"])
        if self.task.get("broken"):
            raise OSError("no space left")

    def train_dataloader(self):
        return DataLoader(DATA, 2)

    def test_dataloader(self):
        return DataLoader(DATA, 2)

    predict_dataloader = test_dataloader


def main(task):
    rank, calls, result = int(os.environ.get("RANK", "0")), [], {"error": None}
    sources.SIGN_OF_LIFE = 0.02
    model, data = Net(calls), Data(calls, task)
    model.lr = 0.1 * (1 + (rank == task.get("odd", -1)))
    data.prepare_data_per_node = task.get("each_node", False)
    trainer = rk.Trainer(
        root=task["root"],
        **{"max_steps": 3, "enable_progress_bar": False, **task.get("flags", {})},
    )
    if task.get("late"):

        class Late(rk.Callback):
            def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
                if trainer.global_rank == 0 and trainer.global_step == task["late"]:
                    trainer._run.began -= 1000

        trainer.callbacks.append(Late())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            (result["test"],) = trainer.test(model, data)
            found = trainer.predict(model, data)
            result["predictions"] = torch.cat(found).flatten().tolist()
            if task.get("fit"):
                calls.clear()
                trainer.fit(model, data)
    except Exception as error:
        result["error"] = f"{type(error).__name__}: {error}"
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        trainer.print("said once")
    return {
        **result,
        "said": said.getvalue(),
        "calls": calls,
        "step": trainer.global_step,
        "phase": trainer.phase,
    }
