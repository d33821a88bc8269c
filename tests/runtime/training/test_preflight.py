"""Each refusal, provoked through the public API, with the words that a user sees."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import rekindle as rk

DATA = TensorDataset(torch.randn(12, 6), torch.zeros(12, dtype=torch.int64))


class Net(rk.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(6, 2)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.fc1(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(model=None, data=DATA, **flags):
    trainer = rk.Trainer(
        **{"max_steps": 2, "enable_checkpointing": False, "enable_progress_bar": False, **flags}
    )
    loader = data if isinstance(data, DataLoader) else DataLoader(data, 4, shuffle=True)
    trainer.fit(model or Net(), loader)
    return trainer


def returning(make):
    class Returns(Net):
        def training_step(self, batch, batch_idx):
            return make(super().training_step(batch, batch_idx))

    return Returns()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda loss: {"acc": loss}, r"returned dict with keys \['acc'\]. Add 'loss' or return"),
        (lambda loss: "loss", "returned str. Return the loss"),
        (lambda loss: loss.expand(3), r"tensor of shape \[3\]. Reduce it"),
        (lambda loss: (loss * 0).long(), "dtype torch.int64"),
        (lambda loss: loss.detach(), "without a gradient"),
        (lambda loss: loss * float("nan"), "nan on the first batch"),
    ],
)
def test_r1_names_what_training_step_returned(make, message):
    with pytest.raises(rk.RequirementError, match=f"R1 training_step must return.*{message}"):
        fit(returning(make))


def test_a_model_that_is_frozen_as_a_whole_is_named():
    net = Net()
    net.freeze()
    message = "none of the 2 parameters of Net requires one. Set requires_grad = True"
    with pytest.raises(rk.RequirementError, match=f"R1 .*without a gradient: {message}"):
        fit(net)

    class Trained(Net):
        def configure_optimizers(self):
            return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], 0.1)

    net = Trained()
    net.freeze()
    with pytest.raises(ValueError, match=f"Trained.configure_optimizers: .*{message[:24]}"):
        fit(net)


@pytest.mark.parametrize(
    ("parts", "message"), [(1, "too many values to unpack"), (3, "not enough values to unpack")]
)
def test_r2_names_a_batch_of_other_parts(parts, message):
    class Unpacks(Net):
        def training_step(self, batch, batch_idx):
            if parts == 1:
                (x,) = batch
            else:
                x, _labels, _weights = batch
            return x.mean()

    with pytest.raises(
        rk.RequirementError, match=rf"R2 .*{message}.*in training_step .* = batch. Batch: .*float32"
    ):
        fit(Unpacks())


@pytest.mark.parametrize(
    "make", [lambda x: x, lambda x: {"loss": x}, lambda x: rk.StepOutput(loss=x)]
)
def test_the_allowed_forms_train(make):
    assert fit(returning(make)).global_step == 2


def test_step_output_logs_its_metrics():
    trainer = fit(
        returning(lambda loss: rk.StepOutput(loss=loss, metrics={"twice": loss * 2})),
        log_every_n_steps=1,
    )
    assert "twice" in trainer.callback_metrics


def test_r1_names_a_missing_method():
    class Empty(rk.Module):
        pass

    with pytest.raises(rk.RequirementError, match="R1 Empty has no training_step"):
        fit(Empty())


def test_r1_names_wrong_arguments():
    class Odd(Net):
        def training_step(self, batch, batch_idx, extra):
            return None

    with pytest.raises(
        rk.RequirementError, match=r"R1 Odd.training_step takes \(batch, batch_idx,"
    ):
        fit(Odd())


def test_training_step_may_leave_out_the_batch_number():
    class Short(Net):
        def training_step(self, batch):
            return super().training_step(batch, 0)

    assert fit(Short()).global_step == 2


def test_r2_names_the_layer_and_the_shapes():
    wide = TensorDataset(torch.randn(12, 7), torch.zeros(12, dtype=torch.int64))
    expected = (
        r"R2 the first training batch does not fit the model: layer 'fc1' \(Linear 6->2\) got "
        r"input float32\[4,7\]. Batch: \(float32\[4,7\], int64\[4\]\)"
    )
    with pytest.raises(rk.RequirementError, match=expected):
        fit(data=wide)


def test_an_error_in_the_users_own_code_stays_what_it_is():
    class Faulty(Net):
        def training_step(self, batch, batch_idx):
            raise RuntimeError("my own mistake")

    with pytest.raises(RuntimeError, match="^my own mistake$"):
        fit(Faulty())


class Clock(Dataset):
    """Gives other values each time."""

    reads = 0

    def __len__(self):
        return 8

    def __getitem__(self, index):
        Clock.reads += 1
        return torch.zeros(6), Clock.reads


def test_r9_refuses_samples_that_change_from_read_to_read():
    with pytest.raises(rk.RequirementError, match="R9 the training dataset is not deterministic"):
        fit(data=Clock())


def test_r9_refuses_an_empty_dataset():
    empty = TensorDataset(torch.zeros(0, 6), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(rk.RequirementError, match="R9 the training dataset is empty"):
        fit(data=DataLoader(empty, 4))


def test_r10_names_the_phase():
    class Early(rk.Callback):
        def setup(self, trainer, pl_module, stage):
            trainer.optimizers[0].zero_grad()

    with pytest.raises(
        rk.RequirementError,
        match=r"R10 Trainer.optimizers used before configure_optimizers \(phase=SETUP\)",
    ):
        fit(callbacks=[Early()])


@pytest.mark.parametrize(
    ("flags", "data", "message"),
    [
        ({}, TensorDataset(torch.randn(13, 6), torch.zeros(13).long()), r"\(12 -> 13 samples\)"),
        ({}, TensorDataset(DATA.tensors[0] + 1, DATA.tensors[1]), "same length, other contents"),
        ({}, DataLoader(DATA, 4), r"order shuffle -> sequential"),
        ({"limit_train_batches": 2}, DATA, r"12 -> 8 samples used per epoch"),
    ],
)
def test_r12_refuses_another_dataset_on_resume(tmp_path, flags, data, message):
    stored = {"enable_checkpointing": True, "root": tmp_path / "run"}
    fit(**stored)
    with pytest.raises(rk.RequirementError, match=f"R12 dataset changed since step 2.*{message}"):
        fit(data=data, max_steps=4, **stored, **flags)


def test_r11_refuses_another_model_on_resume(tmp_path):
    class Bigger(Net):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(2, 2)

    stored = {"enable_checkpointing": True, "root": tmp_path / "run"}
    fit(**stored)
    with pytest.raises(rk.RequirementError, match="R11 .* missing in checkpoint: head.bias, head"):
        fit(Bigger(), max_steps=4, resume="must", **stored)


@pytest.mark.parametrize(
    ("root", "message"),
    [
        ("/proc/nowhere", "R5 cannot write checkpoints to file:///proc/nowhere"),
        ("s3:/bucket/x", r"R25 root 's3:/bucket/x' is not a URL \(one slash\)"),
        ("ftp://host/x", "R5 cannot write checkpoints to ftp://host/x"),
    ],
)
def test_a_store_that_cannot_be_used_stops_before_training(root, message):
    with pytest.raises(Exception, match=message):
        fit(enable_checkpointing=True, root=root)


def test_several_devices_need_a_launcher():
    with pytest.raises(ValueError, match="torchrun --nproc-per-node 2"):
        fit(devices=2)


def test_r23_what_cannot_be_saved_is_named_before_training(tmp_path):
    class Schedule(rk.Callback):
        def state_dict(self):
            return {"schedule": lambda step: step}

    net = Net()
    net.training_step = lambda *_: pytest.fail("training has begun")
    with pytest.raises(
        rk.RequirementError,
        match=r"R23 callbacks\.\S+\.schedule: function cannot be stored .* was not started",
    ):
        fit(net, callbacks=[Schedule()], enable_checkpointing=True, root=tmp_path / "run")
