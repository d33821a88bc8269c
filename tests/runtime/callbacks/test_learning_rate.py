import csv

import pytest
import torch

from rekindle import Callback
from rekindle.callbacks import LearningRateMonitor
from rekindle.loggers import CSVLogger

pytestmark = pytest.mark.processes


class Trace(Callback):
    """The learning rates that were used and the ones that were reported, by step."""

    def __init__(self):
        self.used, self.seen = {}, {}

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.used[trainer.global_step + 1] = [g["lr"] for g in optimizer.param_groups]
        self.seen[trainer.global_step] = [float(trainer.callback_metrics["lr-SGD"])]


@pytest.fixture
def scheduled(net):
    class Scheduled(net):
        interval = "step"

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), 0.1)
            scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 0.9**n)
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": scheduler, "interval": self.interval},
            }

    return Scheduled


def test_logged_values_are_the_schedulers_trace_across_a_resume(fit, scheduled):
    whole, first, second = Trace(), Trace(), Trace()
    fit(LearningRateMonitor("step"), whole, model=scheduled, root="whole")
    fit(LearningRateMonitor("step"), first, model=scheduled, stop=8)
    fit(LearningRateMonitor("step"), second, model=scheduled)
    seen = first.seen | second.seen
    # Whoever comes after the monitor sees the rates that the step is about to use.
    assert {step - 1: pytest.approx(used) for step, used in whole.used.items()} == seen
    assert whole.used[15] == [pytest.approx(0.1 * 0.9**14)]


def test_an_epochs_rate_is_that_of_its_first_step(fit, scheduled):
    scheduled.interval = "epoch"
    trainer = fit(LearningRateMonitor("epoch"), model=scheduled)
    assert float(trainer.callback_metrics["lr-SGD"]) == pytest.approx(0.1 * 0.9**2)


def test_groups_and_more_have_names_of_their_own(fit, net):
    class Groups(net):
        def configure_optimizers(self):
            head = {"params": self.head.parameters(), "name": "head", "lr": 0.5}
            return torch.optim.AdamW([{"params": self.backbone.parameters()}, head], lr=0.25)

    monitor = LearningRateMonitor(log_momentum=True, log_weight_decay=True)
    metrics = fit(monitor, model=Groups, max_epochs=1).callback_metrics
    found = {name: float(value) for name, value in metrics.items() if name.startswith("lr-")}
    assert found == {
        "lr-AdamW/pg1": 0.25,
        "lr-AdamW/head": 0.5,
        "lr-AdamW/pg1-momentum": pytest.approx(0.9),
        "lr-AdamW/head-momentum": pytest.approx(0.9),
        "lr-AdamW/pg1-weight_decay": pytest.approx(0.01),
        "lr-AdamW/head-weight_decay": pytest.approx(0.01),
    }


def test_rates_are_in_the_file_once_over_a_stop_and_a_resume(fit, scheduled, tmp_path):
    def rows(root, **options):
        logger = CSVLogger(tmp_path / "logs", name=root)
        fit(
            LearningRateMonitor("step"), model=scheduled, root=root, logger=logger,
            log_every_n_steps=1, **options,
        )  # fmt: skip
        with open(f"{logger.log_dir}/metrics.csv", newline="") as file:
            found = [row for row in csv.DictReader(file) if row["lr-SGD"]]
        return [(int(row["step"]), float(row["lr-SGD"])) for row in found]

    whole = rows("whole")
    assert [step for step, _ in whole] == list(range(15))
    assert len(rows("cut", stop=8)) >= 8
    assert rows("cut") == whole


def test_an_unknown_interval_is_refused():
    with pytest.raises(ValueError, match="allowed are 'step', 'epoch' and None"):
        LearningRateMonitor("batch")
