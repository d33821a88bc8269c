"""Scripts with several fits, as people write them; `TASK` says which one, where, and who is told.

What a script has found is written to ``result.json`` when it comes to its end.
"""

import copy
import json
import os
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

import rekindle as rk
from rekindle.trainer.tuner import Tuner


class Net(rk.Module):
    def __init__(self, width=8, lr=0.05):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(4, width), nn.Dropout(0.2), nn.Linear(width, 1))

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = nn.functional.mse_loss(self.net(x), y)
        self.log("loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_loss", nn.functional.mse_loss(self.net(x), y))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)


def data():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(96, 4, generator=generator)
    return TensorDataset(x, x.prod(1, keepdim=True))


def loader(keep=None):
    whole = data()
    return DataLoader(whole if keep is None else Subset(whole, keep), batch_size=8, shuffle=True)


def trainer(root, **flags):
    stopping = rk.callbacks.EarlyStopping("val_loss", patience=2)
    best = rk.callbacks.ModelCheckpoint(monitor="val_loss")
    return rk.Trainer(
        root=root,
        max_epochs=5,
        callbacks=[best, stopping],
        checkpoint_every=rk.Every(steps=7),
        enable_progress_bar=False,
        enable_model_summary=False,
        **flags,
    )


def seen(fitted, model):
    values = {name: float(value) for name, value in fitted.callback_metrics.items()}
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    return [weights.tolist(), values, fitted.global_step, torch.rand(()).item()]


def sweep(root):
    found = {}
    for lr in (0.1, 0.03, 0.01):
        model = Net(lr=lr)
        fitted = trainer(root)
        fitted.fit(model, loader(), loader(range(16)))
        found[lr] = seen(fitted, model)
    best = min(found, key=lambda lr: found[lr][1]["val_loss"])
    return [best, found]


def folds(root):
    found, first = [], copy.deepcopy(Net().state_dict())
    for fold in range(3):
        model = Net()
        model.load_state_dict(first)
        kept = [n for n in range(96) if n % 3 != fold]
        fitted = trainer(root)
        fitted.fit(model, loader(kept), loader([n for n in range(96) if n % 3 == fold]))
        found.append(seen(fitted, model))
    return found


def stages(root):
    model = Net()
    first = trainer(root)
    first.fit(model, loader(), loader(range(16)))
    for parameter in model.net[0].parameters():
        parameter.requires_grad_(False)
    second = trainer(root)
    second.fit(model, loader(), loader(range(16)))
    return [seen(second, model), first.global_step]


def tuned(root):
    model = Net()
    fitted = trainer(root)
    Tuner(fitted).lr_find(model, loader(), num_training=20)
    lr = model.hparams.lr
    fitted.fit(model, loader(), loader(range(16)))
    return [lr, seen(fitted, model)]


SCRIPTS = {"sweep": sweep, "folds": folds, "stages": stages, "tuned": tuned}


def main(task):
    os.environ.update(task.get("environment", {}))
    torch.set_num_threads(1)
    rk.seed_everything(11)
    folder = Path(task["root"])
    folder.mkdir(exist_ok=True)
    found = SCRIPTS[task["script"]](str(folder / "run"))
    (folder / "result.tmp").write_text(json.dumps(found))
    (folder / "result.tmp").rename(folder / "result.json")


if __name__ == "__main__":
    main(globals().get("TASK") or json.loads(os.environ["TASK"]))
