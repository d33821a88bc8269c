"""What a step must not do: wait for a device, or hide the user's code under frames."""

import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

import rekindle as rk

WAITS = {
    "_local_scalar_dense",
    "item",
    "nonzero",
    "equal",
    "is_nonzero",
    "masked_select",
    "unique2",
}


class Detector(TorchDispatchMode):
    """Notes every operation that would make the host wait for the device."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        copies = name in ("_to_copy", "copy_") and not (kwargs or {}).get("non_blocking")
        devices = {a.device for a in args if isinstance(a, torch.Tensor)}
        elsewhere = (kwargs or {}).get("device") not in (None, *devices) or len(devices) > 1
        if name in WAITS or (copies and elsewhere):
            self.found.append(name)
        return function(*args, **(kwargs or {}))


class Net(rk.Module):
    """Counts what is found in the steps, without the first one, where values may be read."""

    def __init__(self, reads=False):
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)
        self.reads = reads
        self.frames = []

    def training_step(self, batch, batch_idx):
        loss = self.layer(batch[0]).square().mean()
        for name in "abc":
            self.log(name, loss, on_step=True, on_epoch=True)
        if self.reads and batch_idx == 5:
            float(loss.detach())
        if batch_idx == 4:  # the first batch of a process is checked, one frame deeper
            frame = sys._getframe()
            while frame is not None:
                self.frames.append(frame.f_code.co_name)
                frame = frame.f_back
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


class Detected(rk.Callback):
    """Has the detector on from the second step of an interval between reports to its end."""

    def __init__(self):
        self.detector = Detector()
        self.on = False

    def switch(self, on):
        if on != self.on:
            (self.detector.__enter__ if on else lambda: self.detector.__exit__(None, None, None))()
            self.on = on

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.switch(1 <= trainer.global_step < 19)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.switch(1 <= trainer.global_step < 19)


def detected(tmp_path, model, **flags):
    watching = Detected()
    trainer = rk.Trainer(
        max_steps=20,
        root=tmp_path,
        enable_progress_bar=False,
        enable_checkpointing=False,
        log_every_n_steps=20,
        accumulate_grad_batches=2,
        callbacks=[watching],
        **flags,
    )
    trainer.fit(model, DataLoader(TensorDataset(torch.randn(200, 3)), 2, shuffle=True))
    assert trainer.global_step == 20
    return watching.detector.found


@pytest.mark.parametrize(
    "flags", [{}, {"nonfinite": "skip"}, {"gradient_clip_val": 0.1, "precision": "bf16-mixed"}]
)
def test_no_step_between_two_reports_waits_for_a_device(tmp_path, flags):
    assert detected(tmp_path, Net(), **flags) == []


def test_the_detector_sees_a_step_that_waits(tmp_path):
    assert detected(tmp_path, Net(reads=True)) == ["_local_scalar_dense"]


def test_three_frames_lie_between_the_script_and_its_training_step(tmp_path):
    model = Net()
    detected(tmp_path, model)
    assert model.frames[:4] == ["training_step", "take_step", "train", "fit"]
