"""A module with two optimizers that updates itself, for tests on several ranks."""

import os

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import rekindle as rk


class Pair(rk.Module):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.first = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
        self.second = nn.Linear(3, 1)
        self.unused = nn.Parameter(torch.ones(2))
        self.calls = 0

    def training_step(self, batch, batch_idx):
        self.calls += 1
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

    def configure_optimizers(self):
        first = [*self.first.parameters(), self.unused]
        return [
            torch.optim.AdamW(first, lr=0.01, weight_decay=0.1),
            torch.optim.SGD(self.second.parameters(), lr=0.05, momentum=0.9),
        ]


def main(task):
    rk.seed_everything(1 + int(os.environ.get("RANK", "0")))
    model = Pair()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(35, 3, generator=generator)
    trainer = rk.Trainer(
        **{"max_epochs": 3, "enable_progress_bar": False, "root": task["root"]}
        | task.get("flags", {})
    )
    data = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), task["batch_size"], shuffle=True)
    trainer.fit(model, data)
    return {
        "step": trainer.global_step,
        "updates": trainer.optimizer_steps,
        "calls": model.calls,
        "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
        "parameters": [p.detach().flatten().tolist() for p in model.parameters()],
    }
