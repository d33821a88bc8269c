"""Modules that take parts of their step over, for tests on several ranks."""

import torch
from torch.utils.data import DataLoader, TensorDataset

import rekindle as rk


class Plain(rk.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.layer = torch.nn.Linear(4, 1)
        self.seen = []

    def training_step(self, batch, batch_idx):
        x, y = batch
        return torch.nn.functional.mse_loss(self.layer(x), y)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        gradient = self.layer.weight.grad
        self.seen.append(None if gradient is None else gradient.flatten().tolist())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)


class Steps(Plain):
    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
        optimizer.step(closure=optimizer_closure)


class Clears(Plain):
    def optimizer_zero_grad(self, epoch, batch_idx, optimizer):
        if epoch:
            optimizer.zero_grad()


class Ends(Plain):
    def on_train_batch_start(self, batch, batch_idx):
        return -1 if self.current_epoch == 0 and batch_idx >= 4 else None


class Nothing(Plain):
    def configure_optimizers(self):
        return None


def main(task):
    model = globals()[task["kind"]]()
    x = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(x, x.sum(1, keepdim=True))
    flags = {"max_epochs": 2, "log_every_n_steps": 1, "seed": 5, **task.get("flags", {})}
    trainer = rk.Trainer(root=task["root"], enable_progress_bar=False, **flags)
    trainer.fit(model, DataLoader(data, task["batch_size"], shuffle=True))
    return {
        "step": trainer.global_step,
        "epoch": trainer.current_epoch,
        "parameters": [p.flatten().tolist() for p in model.parameters()],
        "seen": model.seen,
    }
