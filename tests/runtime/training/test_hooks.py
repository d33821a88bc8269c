import re
import time

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import rekindle as rk
from rekindle.training.hook_profiling import HookTimes
from rekindle.training.hooks import NAMES, Hooks

GOLDEN = """
setup
on_fit_start
on_save_checkpoint
on_sanity_check_start
on_validation_start on_validation_epoch_start
on_validation_batch_start on_validation_batch_end
on_validation_epoch_end on_validation_end
on_sanity_check_end
on_train_start
on_train_epoch_start
on_train_batch_start on_before_zero_grad on_before_backward on_after_backward
on_train_batch_end
on_train_batch_start on_before_backward on_after_backward
on_before_optimizer_step on_after_optimizer_step
on_train_batch_end
on_train_batch_start on_before_zero_grad on_before_backward on_after_backward
on_before_optimizer_step on_after_optimizer_step
on_train_batch_end
on_validation_start on_validation_epoch_start
on_validation_batch_start on_validation_batch_end
on_validation_epoch_end on_validation_end
on_train_epoch_end
on_train_end
on_save_checkpoint
on_fit_end
teardown
"""


class Net(rk.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch[0]).mean()

    def validation_step(self, batch, batch_idx):
        return {"loss": 1.0}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def recorder(base, seen):
    """A subclass of `base` that writes down each hook's name."""

    def method(name):
        return lambda self, *arguments: seen.append(name)

    hooks = [name for name in NAMES if hasattr(base, name)]
    return type("Recorder", (base,), {name: method(name) for name in hooks})


def fit(tmp_path, model, *callbacks, **flags):
    data = TensorDataset(torch.ones(6, 1))
    trainer = rk.Trainer(
        max_epochs=1,
        root=tmp_path / "run",
        accumulate_grad_batches=2,
        callbacks=list(callbacks),
        enable_progress_bar=False,
        **flags,
    )
    trainer.fit(model, DataLoader(data, 2), DataLoader(data, 8))
    return trainer


def test_hooks_run_in_the_documented_order(tmp_path):
    seen = []
    fit(tmp_path, Net(), recorder(rk.Callback, seen)())
    assert seen == GOLDEN.split()


def test_a_module_has_the_same_hooks_in_the_same_order(tmp_path):
    seen = []
    fit(tmp_path, recorder(Net, seen)())
    own = [name for name in GOLDEN.split() if hasattr(rk.Module, name)]
    assert seen == own


def test_the_list_of_hooks_is_that_of_the_callbacks():
    defined = [name for name in vars(rk.Callback) if name.startswith("on_")]
    assert sorted(NAMES) == sorted([*defined, "setup", "teardown"])


def test_an_exception_of_the_module_is_blamed_on_no_callback(tmp_path):
    class Failing(Net):
        def training_step(self, batch, batch_idx):
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine") as raised:
        fit(tmp_path, Failing(), recorder(rk.Callback, [])())
    assert not hasattr(raised.value, "__notes__")


def test_callbacks_run_in_the_given_order_and_before_the_module(tmp_path):
    order = []

    class Named(rk.Callback):
        def __init__(self, name):
            self.name = name

        def on_train_start(self, trainer, pl_module):
            order.append(self.name)

    class Last(Net):
        def on_train_start(self):
            order.append("module")

    fit(tmp_path, Last(), Named("a"), Named("b"))
    assert order == ["a", "b", "module"]


def test_hooks_that_nobody_defines_are_not_called():
    hooks = Hooks([rk.Callback()], Net())
    assert all(getattr(hooks, name) == () for name in NAMES)


def test_the_documented_order_names_every_hook():
    text = __import__("rekindle.callback", fromlist=["x"]).__doc__
    missing = [name for name in NAMES if name not in text and name != "on_exception"]
    assert missing == []


def test_callbacks_get_their_state_back(tmp_path):
    class Counter(rk.Callback):
        steps = 0

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.steps += 1

        def state_dict(self):
            return {"steps": self.steps}

        def load_state_dict(self, state_dict):
            self.steps = state_dict["steps"]

    fit(tmp_path, Net(), Counter(), max_steps=1)
    second = Counter()
    fit(tmp_path, Net(), second)
    assert second.steps == 3


def test_a_callback_without_saved_state_is_named(tmp_path):
    class Late(rk.Callback):
        def state_dict(self):
            return {"value": 1}

    fit(tmp_path, Net(), max_steps=1)
    with pytest.raises(rk.RequirementError, match="R23 callback .*Late' has no state in step 1"):
        fit(tmp_path, Net(), Late())
    Late.optional = True
    fit(tmp_path, Net(), Late())


def test_an_exception_is_shown_to_callbacks(tmp_path):
    seen = []

    class Failing(rk.Callback):
        def on_train_start(self, trainer, pl_module):
            raise ValueError("stop here")

        def on_exception(self, trainer, pl_module, exception):
            seen.append(str(exception))

    with pytest.raises(ValueError, match="stop here") as raised:
        fit(tmp_path, Net(), Failing())
    assert seen == ["stop here"]
    assert raised.value.__notes__ == ["raised in callback Failing.on_train_start"]


class Slow(rk.Callback):
    def on_after_backward(self, trainer, pl_module):
        if pl_module.layer.weight.grad.norm().item() >= 0:
            time.sleep(0.002)


def test_a_slow_callback_is_named_with_what_it_costs(tmp_path, capsys):
    data = DataLoader(TensorDataset(torch.ones(24, 1)), 1)
    flags = {"enable_progress_bar": False, "enable_checkpointing": False, "log_every_n_steps": 4}
    rk.Trainer(max_epochs=1, callbacks=[Slow()], root=tmp_path, **flags).fit(Net(), data)
    lines = [line for line in capsys.readouterr().out.splitlines() if "R26" in line]
    assert len(lines) == 1
    told = r"R26 callbacks use \d+% of step time: Slow.on_after_backward (\d+\.\d) ms/step"
    assert float(re.search(told, lines[0])[1]) >= 2.0
    assert lines[0].endswith("Use every=100.")


class Clocked(rk.Callback):
    """Takes as long as it is told to, on a clock that nothing else moves."""

    def __init__(self, seconds):
        self.seconds, self.now = seconds, 0.0

    def on_after_backward(self, trainer, pl_module):
        self.now += self.seconds
        pl_module.layer.weight.grad.norm().item()


def complaint_about(callback):
    times = HookTimes(Hooks([callback], Net()), clock=lambda: callback.now)
    module = Net()
    module.layer(torch.ones(1, 1)).backward()
    for step in range(16):
        for hook in times.of(step).on_after_backward:
            hook(None, module)
    return times.complaint(0.004), times.complaint(0.004)


def test_hooks_that_wait_for_the_device_are_said_to():
    told, again = complaint_about(Clocked(0.002))
    assert "R26 callbacks use 50% of step time: Clocked.on_after_backward 2.0 ms/step" in told
    assert told.endswith(" ms/step (host syncs). Use every=100.")
    assert again is None, "once is enough"


def test_hooks_that_cost_little_are_not_mentioned():
    assert complaint_about(Clocked(0.00009)) == (None, None)
    assert complaint_about(Clocked(0.0005))[0] is not None
