"""`validate`, `test` and `predict`, and what a trainer says when it is called at the wrong time."""

import logging

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset, random_split

import rekindle as rk
from rekindle.training.lifecycle import TRANSITIONS, Lifecycle

DATA = TensorDataset(torch.arange(10.0)[:, None], torch.arange(10))


class Net(rk.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(1, 1)

    def forward(self, x):
        return self.linear(x)

    def training_step(self, batch, batch_idx):
        return self(batch[0]).square().mean()

    def validation_step(self, batch, batch_idx):
        self.log("mean", batch[0].mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-3)


class Proven(Net):
    def test_step(self, batch, batch_idx):
        self.log("mean", batch[0].mean() * 2)


class Data(rk.DataModule):
    def setup(self, stage):
        self.stages = [*getattr(self, "stages", []), stage]

    def train_dataloader(self):
        return DataLoader(DATA, 4)

    def val_dataloader(self):
        return DataLoader(DATA, 4)


def trainer(tmp_path, **flags):
    return rk.Trainer(
        **{"max_steps": 1, "root": tmp_path / "run", "enable_progress_bar": False, **flags}
    )


def test_test_counts_every_sample_once(tmp_path):
    (values,) = trainer(tmp_path).test(Proven(), DataLoader(DATA, 4))
    assert values == {"mean": pytest.approx(9.0)}


def test_a_limit_of_test_batches_is_kept(tmp_path):
    (values,) = trainer(tmp_path, limit_test_batches=1).test(Proven(), DataLoader(DATA, 4))
    assert values == {"mean": pytest.approx(3.0)}


def test_validation_stands_in_for_a_test_and_says_so(tmp_path):
    with pytest.warns(UserWarning, match="uses val") as said:
        (values,) = trainer(tmp_path).test(Net(), Data())
    assert values == {"mean": pytest.approx(4.5)}
    first, second = sorted(str(one.message) for one in said)
    assert "Data has no test_dataloader: test() uses val_dataloader, so the numbers are" in first
    assert "Net has no test_step: test() uses validation_step" in second


def test_predictions_are_forward_of_each_batch_in_order(tmp_path):
    model = Net()
    found = trainer(tmp_path).predict(model, DataLoader(DATA, 4))
    assert [len(part) for part in found] == [4, 4, 2]
    with torch.no_grad():
        assert torch.equal(torch.cat(found), model(DATA.tensors[0]))
    assert not found[0].requires_grad


def test_predict_takes_validation_data_when_there_is_nothing_else(tmp_path):
    with pytest.warns(UserWarning, match="Data has no predict_dataloader: predict"):
        found = trainer(tmp_path, limit_predict_batches=2).predict(Net(), Data())
    assert len(found) == 2


def test_callbacks_see_predictions_that_are_not_kept(tmp_path):
    class Writer(rk.Callback):
        def __init__(self):
            self.seen = []

        def on_predict_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.seen.append((trainer.phase, batch_idx, len(outputs)))

    writer = Writer()
    found = trainer(tmp_path, callbacks=[writer]).predict(
        Net(), DataLoader(DATA, 4), return_predictions=False
    )
    assert found is None
    assert writer.seen == [("predicting", 0, 4), ("predicting", 1, 4), ("predicting", 2, 2)]


@pytest.mark.parametrize("inference", [True, False])
def test_inference_mode_is_for_evaluations_alone(tmp_path, inference):
    modes = []

    class Probe(Proven):
        def validation_step(self, batch, batch_idx):
            modes.append(torch.is_inference_mode_enabled())

        def test_step(self, batch, batch_idx):
            modes.append(torch.is_inference_mode_enabled())
            assert not torch.is_grad_enabled()

    model, runner = Probe(), trainer(tmp_path, inference_mode=inference)
    runner.fit(model, DataLoader(DATA, 4), DataLoader(DATA, 10))
    assert not any(modes)
    runner.test(model, DataLoader(DATA, 10))
    assert modes[-1] is inference


def test_a_fit_without_arguments_given_again_is_evaluated_as_it_was(tmp_path):
    data, runner = Data(), trainer(tmp_path)
    runner.fit(Proven(), data)
    with pytest.warns(UserWarning, match="no test_dataloader"):
        assert runner.test() == [{"mean": pytest.approx(9.0)}]
    assert data.stages == ["fit", "test"]


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_without_data_a_stage_says_what_to_give(tmp_path, stage):
    class Nothing(rk.DataModule):
        pass

    with pytest.raises(rk.RequirementError, match=rf"R9 {stage}\(\) got no data: give a loader"):
        getattr(trainer(tmp_path), stage)(Proven(), Nothing())


def test_the_states_of_a_run_are_events(tmp_path, caplog):
    runner = trainer(tmp_path, max_steps=3)
    with caplog.at_level(logging.DEBUG, "rekindle"):
        runner.fit(Net(), Data())
    expected = ["setup", "validating", "setup", "training", "validating", "training", "done"]
    assert [to for _, to in runner.lifecycle.trace] == expected
    said = [r.message for r in caplog.records if r.message.startswith("phase")]
    assert said[0] == "phase idle -> setup"
    assert len(said) == len(expected)


def test_every_illegal_transition_is_refused_with_those_that_are_legal():
    for before, allowed in TRANSITIONS.items():
        for to in set(TRANSITIONS) - set(allowed):
            lifecycle = Lifecycle()
            lifecycle.state = before
            message = f"R10 the trainer cannot go from {before} to {to}; after {before} follow "
            with pytest.raises(rk.RequirementError, match=message + ", ".join(allowed)):
                lifecycle.move(to)


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_a_call_inside_of_a_hook_is_refused(tmp_path, stage):
    class Nested(rk.Callback):
        def on_train_start(self, trainer, pl_module):
            getattr(trainer, stage)(pl_module, DataLoader(DATA, 4))

    runner = trainer(tmp_path, callbacks=[Nested()])
    message = rf"R10 Trainer.{stage} called while the trainer is busy \(phase=TRAINING\). Call it"
    with pytest.raises(rk.RequirementError, match=message):
        runner.fit(Net(), DataLoader(DATA, 4))
    assert runner.phase == "failed"
    runner.callbacks.clear()
    runner.fit(Net(), DataLoader(DATA, 4))
    assert runner.phase == "done"


class Pictures(Dataset):
    """As an image folder: one object, one transform."""

    transform = None

    def __len__(self):
        return 10

    def __getitem__(self, index):
        x = torch.full((1,), float(index))
        return self.transform(x) if self.transform else x, index


def test_splits_that_share_a_transform_are_told(tmp_path):
    train, val = random_split(Pictures(), [8, 2], torch.Generator().manual_seed(0))
    val.dataset.transform = torch.neg
    message = r"share one Pictures object, so both are read with its transform=neg, the one that"
    with pytest.warns(UserWarning, match=message):
        trainer(tmp_path).fit(Net(), DataLoader(train, 4), DataLoader(val, 2))


def test_preparations_run_once_and_before_setup(tmp_path):
    calls = []

    class Prepared(Data):
        def prepare_data(self):
            calls.append("data")

        def prepare(self):
            calls.append("data too")

        def setup(self, stage):
            calls.append(stage)

    class Downloading(Net):
        def prepare(self):
            calls.append("model")

    trainer(tmp_path).fit(Downloading(), Prepared())
    assert calls == ["data", "data too", "model", "fit"]


def test_a_loader_before_setup_says_what_comes_first():
    class Late(rk.DataModule):
        def setup(self, stage):
            self.samples = DATA

        def train_dataloader(self):
            return DataLoader(self.samples, 4)

    data = Late()
    message = r"R10 Late has no attribute 'samples': datasets are made in setup\(stage\)"
    with pytest.raises(AttributeError, match=message):
        data.train_dataloader()
    assert not hasattr(data, "samples")
    with pytest.raises(AttributeError, match=r"no attribute 'sample'. Assign it in __init__, or"):
        _ = data.sample
    data.setup("fit")
    assert len(data.train_dataloader()) == 3


def test_a_data_module_says_which_method_assigns_what_is_missing():
    class Late(rk.DataModule):
        def prepare_data(self):
            self.path = "there"

        def split(self):
            self.parts = 3

    for name, message in [
        ("path", "prepare_data runs on one process only: assign it in setup"),
        ("parts", "It is assigned in split, which has not done so"),
    ]:
        with pytest.raises(AttributeError, match=rf"R10 Late has no attribute '{name}'. {message}"):
            getattr(Late(), name)


def test_a_model_works_without_a_trainer_and_can_be_exported(tmp_path):
    from safetensors.torch import load_file

    model = Net().eval()
    with torch.no_grad():
        expected = model(DATA.tensors[0])
    model.export(tmp_path / "model.safetensors")
    other = nn.Linear(1, 1)
    found = load_file(tmp_path / "model.safetensors")
    other.load_state_dict({name.removeprefix("linear."): t for name, t in found.items()})
    assert torch.equal(other(DATA.tensors[0]), expected)
    with pytest.raises(ValueError, match=r"export\(format='onnx'\): allowed is 'safetensors'"):
        model.export(tmp_path / "model.onnx", format="onnx")
