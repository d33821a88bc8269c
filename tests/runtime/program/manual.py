"""A module with two optimizers that updates itself, for tests on several ranks."""

import os

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import rekindle as rk


class Pair(rk.Module):
    def __init__(self, sharded=False, toggling=False, adding=False):
        super().__init__()
        self.automatic_optimization = False
        self.first = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
        self.second = nn.Linear(3, 1)
        # A parameter that no submodule has cannot be in shares.
        self.unused = nn.ParameterList() if sharded else nn.Parameter(torch.ones(2))
        self.calls, self.toggling, self.adding = 0, toggling, adding

    def training_step(self, batch, batch_idx):
        self.calls += 1
        if self.adding:
            self.adding_up(batch, batch_idx)
            return
        if self.toggling:
            self.with_toggles(batch)
            return
        first, second = self.optimizers()
        x, y = batch
        self.step(first, nn.functional.mse_loss(self.first(x) + self.second(x), y), clip=0.5)
        # Twice backward, one step: gradients add up.
        second.zero_grad()
        self.manual_backward(nn.functional.mse_loss(self.second(x), y))
        self.manual_backward(0.1 * self.second(x).square().mean())
        second.step()
        # Not cleared in between: what was summed already counts once.
        self.manual_backward(0.1 * self.second(x).square().mean())
        second.step()
        self.log("loss", nn.functional.mse_loss(self.second(x), y).detach(), on_epoch=True)

    def adding_up(self, batch, batch_idx):
        """Steps on what several batches have added up, cleared after it, or never (`second`)."""
        first, second = self.optimizers()
        x, y = batch
        self.manual_backward(nn.functional.mse_loss(self.first(x) + self.second(x), y) / 3)
        if batch_idx % 2 == 0:
            second.step()
        if batch_idx % 3 == 2:
            first.step()
            first.zero_grad()

    def with_toggles(self, batch):
        """One optimizer after the other; each network is also called between its two steps."""
        x, y = batch
        for optimizer in self.optimizers():
            with optimizer.toggle_model():
                loss = nn.functional.mse_loss(self.first(x) + self.second(x), y)
                self.manual_backward(loss)
                with torch.no_grad():
                    self.first(x)
                optimizer.step()
                optimizer.zero_grad()
        self.log("loss", loss.detach(), on_epoch=True)

    def validation_step(self, batch, batch_idx):
        self.log("val", nn.functional.mse_loss(self.first(batch[0]), batch[1]))

    def configure_optimizers(self):
        first = [p for name, p in self.named_parameters() if not name.startswith("second")]
        return [
            torch.optim.AdamW(first, lr=0.01, weight_decay=0.1),
            torch.optim.SGD(self.second.parameters(), lr=0.05, momentum=0.9),
        ]


def main(task):
    rk.seed_everything(1 + int(os.environ.get("RANK", "0")))
    strategy = task.get("strategy", "auto")
    ways = {name: task.get(name, False) for name in ("toggling", "adding")}
    model = Pair(task.get("sharded", strategy != "auto"), **ways)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(35, 3, generator=generator)
    trainer = rk.Trainer(
        **{"max_epochs": 3, "enable_progress_bar": False, "root": task["root"]}
        | task.get("flags", {}),
        strategy=strategy,
    )
    data = TensorDataset(x, x.sum(1, keepdim=True))
    loader = DataLoader(data, task["batch_size"], shuffle=True)
    trainer.fit(model, loader, DataLoader(data, 10) if task.get("validate") else None)
    whole = [getattr(p.detach(), "full_tensor", p.detach)() for p in model.parameters()]
    return {
        "step": trainer.global_step,
        "updates": trainer.optimizer_steps,
        "calls": model.calls,
        "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
        "own": sum(getattr(p, "to_local", lambda p=p: p)().numel() for p in model.parameters()),
        "parameters": [p.flatten().tolist() for p in whole],
    }
