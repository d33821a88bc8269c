"""What metrics know survives a resume, declared as a state or not."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import rekindle as rk

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
