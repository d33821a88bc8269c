import pytest

from rekindle.callbacks import LambdaCallback, ModelCheckpoint

pytestmark = pytest.mark.processes


def test_functions_are_hooks(fit):
    steps = []
    callback = LambdaCallback(
        on_train_batch_end=lambda trainer, *_: steps.append(trainer.global_step),
        on_fit_end=lambda trainer, pl_module: steps.append("end"),
    )
    fit(callback, max_epochs=1)
    assert steps == [1, 2, 3, 4, 5, "end"]


def test_a_hook_that_does_not_exist_is_answered_with_the_closest_one():
    with pytest.raises(TypeError, match="no hook 'on_train_batch_ends'; did you mean 'on_train_ba"):
        LambdaCallback(on_train_batch_ends=print)
    with pytest.raises(TypeError, match="give a function"):
        LambdaCallback(on_fit_end=3)


def test_callbacks_are_found_by_name():
    import rekindle.callbacks

    for name in rekindle.callbacks.__all__:
        assert getattr(rekindle.callbacks, name).__name__
    with pytest.raises(AttributeError, match="has no attribute 'EarlyStoping'"):
        _ = rekindle.callbacks.EarlyStoping


def test_a_callback_has_no_hook_in_every_step_that_it_does_not_need():
    from rekindle import Module, callbacks
    from rekindle.training.hooks import Hooks

    epochwise = [
        callbacks.ModelCheckpoint(),
        callbacks.EarlyStopping("x"),
        callbacks.LearningRateMonitor("epoch"),
        callbacks.BatchSizeSchedule({0: 4}),
        callbacks.BackboneFinetuning(),
        callbacks.Timer(),
    ]
    hooks = Hooks(epochwise, Module())
    for name in ("batch_start", "batch_end"):
        assert getattr(hooks, f"on_train_{name}") == ()
    for name in ("before_backward", "after_backward", "before_optimizer_step"):
        assert getattr(hooks, f"on_{name}") == ()
    assert hooks.on_after_optimizer_step == ()
    stepwise = [callbacks.LearningRateMonitor(), callbacks.BatchSizeSchedule({9: 4}, "step")]
    hooks = Hooks([*stepwise, callbacks.ModelCheckpoint(every_n_train_steps=2)], Module())
    assert len(hooks.on_train_batch_start) == 1
    assert len(hooks.on_after_optimizer_step) == 1
    assert len(hooks.on_train_batch_end) == 1


def test_a_hook_that_a_subclass_has_overridden_runs_where_its_own_class_needs_none(fit):
    steps = []

    class Mine(ModelCheckpoint):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
            steps.append(trainer.global_step)

    fit(Mine(), max_epochs=1)
    assert steps == [1, 2, 3, 4, 5]
