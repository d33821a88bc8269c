"""Refusals that come from below the trainer, as a user of the trainer sees them, word for word."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import rekindle as rk
from rekindle.checkpoint import LeaseLost
from rekindle.checkpoint.format import manifest

DATA = TensorDataset(torch.ones(8, 2))


class Net(rk.Module):
    def __init__(self, logged=None, returned=None):
        super().__init__()
        self.fc = nn.Linear(2, 1)
        self.logged, self.returned = logged or {}, returned

    def training_step(self, batch, batch_idx):
        for name, value in self.logged.items():
            self.log(name, value)
        return self.fc(batch[0]).mean()

    def validation_step(self, batch, batch_idx):
        return self.returned

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(root, net=None, *callbacks, **flags):
    trainer = rk.Trainer(
        root=root,
        callbacks=list(callbacks),
        **{"max_steps": 4, "max_epochs": 9, "enable_progress_bar": False, **flags},
    )
    trainer.fit(net or Net(), DataLoader(DATA, 4), DataLoader(DATA, 4))
    return trainer


def refused(kind, *given, **flags):
    with pytest.raises(kind) as caught:
        fit(*given, **flags)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (3, 1.0, "R6 metric key 3 (int) is not a string"),
        ("step", 1.0, "R6 metric key 'step' is reserved; choose another name"),
        (
            "val/conf",
            torch.zeros(10, 10),
            "R6 metric 'val/conf' has shape [10,10]; log a scalar or a torchmetrics.Metric.",
        ),
        ("s", "x", "R6 metric 's' is a str; log a scalar or a torchmetrics.Metric."),
    ],
)
def test_r6_names_a_bad_metric(tmp_path, name, value, message):
    assert refused(rk.RequirementError, tmp_path, Net({name: value})) == message


def test_r6_looks_into_what_validation_step_returns(tmp_path):
    output = rk.StepOutput(metrics={"a": {3: 1.0}})
    message = refused(rk.RequirementError, tmp_path, Net(returned=output))
    assert message == "R6 metric key 3 (int) is not a string"
    trainer = fit(tmp_path, Net(returned=rk.StepOutput(metrics={"a": {"b": 1.0}})))
    assert trainer.callback_metrics["a/b"] == 1.0


def test_r15_stops_an_attempt_that_has_been_replaced(tmp_path):
    class Replaced(rk.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 2:
                rk.Store.open(str(tmp_path)).acquire(owner="job-w-1")

    message = refused(LeaseLost, tmp_path, None, Replaced(), checkpoint_every=rk.Every(steps=2))
    assert message == (
        "R15 attempt 1 lost the writer lease to attempt 2 (this process was declared dead but "
        "lives). This process stops; no data was overwritten."
    )
    assert rk.Store.open(str(tmp_path)).commits() == []


def test_r21_refuses_what_a_newer_image_has_written(tmp_path, monkeypatch):
    with monkeypatch.context() as newer:
        newer.setattr(manifest, "VERSION", manifest.VERSION + 1)
        fit(tmp_path)
    assert refused(Exception, tmp_path, max_steps=6) == (
        f"R21 manifest version {manifest.VERSION + 1} is newer than this trainer "
        f"({manifest.VERSION}). Upgrade the image."
    )
    assert not list(tmp_path.glob("bad/*"))


def test_r23_names_a_callback_that_the_checkpoint_does_not_know(tmp_path):
    class Late(rk.Callback):
        state_key = "ema"

        def state_dict(self):
            return {"value": 1}

    fit(tmp_path)
    assert refused(rk.RequirementError, tmp_path, None, Late(), max_steps=6) == (
        "R23 callback 'ema' has no state in step 4 (added later?). Set optional=True on it, or "
        "resume='never'."
    )


def test_a_callback_may_be_left_out_later(tmp_path):
    class Early(rk.Callback):
        def state_dict(self):
            return {"value": 1}

    fit(tmp_path, None, Early())
    assert fit(tmp_path, max_steps=6).global_step == 6


@pytest.mark.parametrize("root", [Path("s3://bucket/x"), "s3:/bucket/x"])
def test_r25_says_what_has_damaged_a_url(root):
    assert refused(Exception, root) == (
        "R25 root 's3:/bucket/x' is not a URL (one slash). Did pathlib collapse it?"
    )


def test_r5_says_that_training_was_not_started():
    message = refused(Exception, "/proc/nowhere")
    assert message.startswith("R5 cannot write checkpoints to file:///proc/nowhere: ")
    assert message.endswith(" Training was not started.")
