"""What metrics know survives a resume, declared as a state or not."""

import os
import signal

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import rekindle as rk
from rekindle.errors.requirement import RequirementError
from rekindle.model import metrics

torchmetrics = pytest.importorskip("torchmetrics")

X = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
DATA = TensorDataset(X, (X.sum(1) > 0).long())


class Net(rk.Module):
    def __init__(self, make):
        super().__init__()
        torch.manual_seed(3)
        self.layer = torch.nn.Linear(3, 1)
        self.metric = make()
        self.seen = []

    def training_step(self, batch, batch_idx):
        logits = self.layer(batch[0]).squeeze(1)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, batch[1].float())
        self.metric.update(torch.tensor(9.0 if batch_idx == 1 else float(batch_idx)))
        if isinstance(self.metric, torchmetrics.MinMaxMetric):
            self.metric.compute()
        return loss

    def on_train_epoch_end(self):
        self.seen.append({name: float(v) for name, v in self.metric.compute().items()})

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.5)


def extremes():
    return torchmetrics.MinMaxMetric(torchmetrics.MeanMetric())


def group():
    # They share a state that each update replaces, so the second one's lies behind.
    return torchmetrics.MetricCollection(
        {"a": torchmetrics.MaxMetric(), "b": torchmetrics.MaxMetric()}
    )


@pytest.mark.parametrize("make", [extremes, group])
@pytest.mark.parametrize("stop", [3, 6, 8])
def test_what_a_metric_knows_survives_a_resume(tmp_path, make, stop):
    def fit(root, **flags):
        net = Net(make)
        trainer = rk.Trainer(root=tmp_path / root, enable_progress_bar=False, **flags)
        trainer.fit(net, DataLoader(DATA, 4), ckpt_path="last")
        return net.seen

    whole = fit("whole", max_epochs=3)
    fit("cut", max_epochs=3, max_steps=stop)
    resumed = fit("cut", max_epochs=3)
    assert resumed == whole[-len(resumed) :]
    assert len(resumed) == 3 - stop // 5


class Tracking(Net):
    """A metric for each epoch."""

    def training_step(self, batch, batch_idx):
        if batch_idx == 0:
            self.metric.increment()
        return super().training_step(batch, batch_idx)

    def on_train_epoch_end(self):
        self.seen.append(self.metric.compute_all().tolist())


@pytest.mark.parametrize("stop", [3, 8])
def test_a_tracker_has_the_metrics_of_all_epochs_after_a_resume(tmp_path, stop):
    def fit(root, **flags):
        net = Tracking(lambda: torchmetrics.MetricTracker(torchmetrics.MeanMetric(), maximize=True))
        trainer = rk.Trainer(root=tmp_path / root, enable_progress_bar=False, **flags)
        trainer.fit(net, DataLoader(DATA, 4), ckpt_path="last")
        return net.seen

    whole = fit("whole", max_epochs=3)
    fit("cut", max_epochs=3, max_steps=stop)
    resumed = fit("cut", max_epochs=3)
    assert resumed == whole[-len(resumed) :]
    assert len(whole[-1]) == 3


def test_a_tracker_goes_back_to_fewer_metrics():
    net = Net(lambda: torchmetrics.MetricTracker(torchmetrics.MeanMetric(), maximize=True))
    empty = metrics.states(net)
    net.metric.increment()
    net.metric.update(2.0)
    one = metrics.states(net)
    net.metric.increment()
    metrics.restore(net, one)
    assert net.metric.n_steps == 1
    assert net.metric.compute() == 2.0
    metrics.restore(net, empty)
    assert net.metric.n_steps == 0
    assert list(metrics.owned(net)) == ["metric._base_metric"]


def test_a_metric_that_the_model_has_no_more_is_refused():
    net = Net(torchmetrics.MeanMetric)
    net.metric.update(1.0)
    saved = metrics.states(net)
    with pytest.raises(RequirementError, match="R11.*running values of the metric 'metric'"):
        metrics.restore(torch.nn.Linear(1, 1), saved)


class Shared(Net):
    """One object for training and validation."""

    def training_step(self, batch, batch_idx):
        self.log("mean", self.metric, on_step=False, on_epoch=True)
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        self.metric.update(100.0)
        self.log("val_mean", self.metric)

    def on_validation_end(self):
        self.seen.append(float(self.trainer.callback_metrics["val_mean"]))

    def on_train_epoch_end(self):
        self.seen.append(self.metric.update_count)


class StopInValidation(rk.Callback):
    def on_validation_batch_end(
        self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0
    ):
        if trainer.global_step == 3 and batch_idx == 1:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_validation_that_is_cut_short_leaves_a_shared_metric_as_it_was(tmp_path):
    def fit(root, *callbacks):
        net = Shared(torchmetrics.MeanMetric)
        flags = {"enable_progress_bar": False, "num_sanity_val_steps": 0, "max_epochs": 2}
        trainer = rk.Trainer(
            root=tmp_path / root, callbacks=list(callbacks), val_check_interval=3, **flags
        )
        trainer.fit(net, DataLoader(DATA, 4), DataLoader(DATA, 4), ckpt_path="last")
        return net.seen

    whole = fit("whole")
    with pytest.raises(rk.Preempted):
        fit("cut", StopInValidation())
    assert fit("cut") == whole
    # The validation counts training's three batches before it, and empties the metric.
    assert whole == [pytest.approx((0 + 9 + 2 + 500) / 8), 2] * 2
