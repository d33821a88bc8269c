"""A run that stops between two steps goes on as if it had not, whoever does what of the step."""

import runpy
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import rekindle as rk

PROGRAM = Path(__file__).parents[1] / "program"


class Net(rk.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.layer = torch.nn.Linear(4, 1)
        self.drop = torch.nn.Dropout(0.3)

    def training_step(self, batch, batch_idx):
        return self.layer(self.drop(batch[0])).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)


class KeepsGradients(Net):
    def optimizer_zero_grad(self, epoch, batch_idx, optimizer):
        if batch_idx % 2 == 0:
            optimizer.zero_grad()


class LooksAtGradients(Net):
    """Its step depends on what `on_before_zero_grad` finds."""

    def on_before_zero_grad(self, optimizer):
        gradient = self.layer.weight.grad
        if gradient is not None:
            with torch.no_grad():
                self.layer.bias.add_(0.01 * gradient.sum())


class Augments(Net):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return [batch[0] + torch.randn_like(batch[0])]


class StepsSometimes(Net):
    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
        if batch_idx % 3:
            optimizer.step(closure=optimizer_closure)
        else:
            optimizer_closure()


class EndsEpochs(Net):
    def on_train_batch_start(self, batch, batch_idx):
        return -1 if batch_idx == 3 else None


class LeavesOut(Net):
    def training_step(self, batch, batch_idx):
        return None if batch_idx % 2 else super().training_step(batch, batch_idx)


def trained(root, kind, *limits):
    model = None
    for number, limit in enumerate(limits):
        model = kind()
        generator = torch.Generator().manual_seed(1)
        data = TensorDataset(torch.randn(10, 4, generator=generator))
        trainer = rk.Trainer(max_steps=limit, root=root, enable_progress_bar=False)
        trainer.fit(model, DataLoader(data, 2), ckpt_path="last" if number else None)
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.parametrize(
    "kind", [KeepsGradients, LooksAtGradients, Augments, StepsSometimes, EndsEpochs, LeavesOut]
)
def test_a_restart_does_not_show(tmp_path, kind):
    whole = trained(tmp_path / "whole", kind, 8)
    parts = trained(tmp_path / "parts", kind, 2, 3, 5, 8)
    assert all(torch.equal(one, other) for one, other in zip(whole, parts, strict=True))


@pytest.mark.processes
@pytest.mark.filterwarnings("ignore:Nothing.configure_optimizers returned None")
def test_ranks_take_such_steps_as_one_process_does(ranks, tmp_path):
    program = runpy.run_path(str(PROGRAM / "owned.py"))

    def task(kind, batch=4, **more):
        return {"program": "owned.py", "kind": kind, "root": kind, "batch_size": batch, **more}

    kinds = ("Steps", "Clears", "Nothing", "Ends")
    alone = {
        kind: program["main"](task(kind, 8) | {"root": str(tmp_path / f"alone-{kind}")})
        for kind in kinds[:3]
    }
    tasks = [task(kind) for kind in kinds]
    first, second = ranks(2, *tasks)
    for kind, *found in zip(kinds, first, second, strict=True):
        assert found[0]["parameters"] == found[1]["parameters"]
        if kind == "Ends":
            # Batches 4 and 5 of all are those of the third step; one rank's word is enough.
            assert (found[0]["step"], found[0]["epoch"]) == (2 + 4, 2)
            continue
        assert found[0]["step"] == alone[kind]["step"] == 8
        for ours, theirs in zip(found[0]["parameters"], alone[kind]["parameters"], strict=True):
            assert ours == pytest.approx(theirs, abs=1e-5)
    for ours, theirs in zip(first[2]["seen"], alone["Nothing"]["seen"], strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)
