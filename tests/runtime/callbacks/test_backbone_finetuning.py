import pytest
import torch

from rekindle import Callback
from rekindle.callbacks import BackboneFinetuning, BaseFinetuning

pytestmark = pytest.mark.processes


class Watch(Callback):
    """The backbone's weights and all rates, per epoch."""

    def __init__(self):
        self.backbone, self.rates = {}, {}

    def on_train_epoch_end(self, trainer, pl_module):
        self.backbone[trainer.current_epoch] = pl_module.backbone.weight.detach().clone()
        groups = trainer.optimizers[0].param_groups
        self.rates[trainer.current_epoch] = [group["lr"] for group in groups]


def test_the_backbone_stands_still_and_then_follows(fit):
    watch = Watch()
    callback = BackboneFinetuning(2, lambda epoch: 5.0)
    fit(callback, watch, max_epochs=5)
    assert torch.equal(watch.backbone[0], watch.backbone[1])
    assert not torch.equal(watch.backbone[1], watch.backbone[2])
    assert watch.rates == {
        0: [0.05],
        1: [0.05],
        2: [0.05, pytest.approx(0.005)],
        3: [0.05, pytest.approx(0.025)],
        4: [0.05, 0.05],
    }


@pytest.mark.parametrize("schedule", ["lambda", "step", "plateau", None])
@pytest.mark.parametrize("stop", [3, 8, 12])
def test_it_resumes_bit_equal_before_and_after(fit, same, net, schedule, stop):
    lr = torch.optim.lr_scheduler

    class Scheduled(net):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            if schedule is None:
                return optimizer
            made = {
                "lambda": lambda: lr.LambdaLR(optimizer, lambda n: 0.9**n),
                "step": lambda: lr.StepLR(optimizer, 1, 0.5),
                "plateau": lambda: lr.ReduceLROnPlateau(optimizer, patience=0),
            }[schedule]()
            return {"optimizer": optimizer, "lr_scheduler": made, "monitor": "val/loss"}

    expected = fit(BackboneFinetuning(1), model=Scheduled, root="whole")
    fit(BackboneFinetuning(1), model=Scheduled, stop=stop)
    trainer = fit(BackboneFinetuning(1), model=Scheduled)
    assert same(trainer, expected)
    rates = [[g["lr"] for g in t.optimizers[0].param_groups] for t in (trainer, expected)]
    assert rates[0] == rates[1]


def test_a_module_without_a_backbone_is_told_so(fit):
    with pytest.raises(ValueError, match="Net has no submodule 'encoder'"):
        fit(BackboneFinetuning(backbone="encoder"))
    with pytest.raises(ValueError, match="need an epoch from 0 on"):
        BackboneFinetuning(-1)


class Unfreezes(BaseFinetuning):
    """Trains the backbone from the second epoch on."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.backbone)

    def finetune_function(self, pl_module, epoch, optimizer):
        self.asked.append(epoch)
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.backbone, optimizer)


@pytest.mark.parametrize(("stop", "asked"), [(3, [1, 2]), (5, [1, 2]), (8, [2]), (12, [])])
def test_a_scripts_own_finetuning_resumes_exactly(fit, same, stop, asked):
    whole = fit(Unfreezes(), root="whole")
    fit(Unfreezes(), stop=stop)
    again = Unfreezes()
    found = fit(again)
    assert same(whole, found)
    assert again.asked == [
        epoch for epoch in range(3) if epoch > (stop - 1) // 5 or stop == 5 * epoch
    ]
    groups = [[len(g["params"]) for g in t.optimizers[0].param_groups] for t in (whole, found)]
    assert groups[0] == groups[1] == [2, 2]
