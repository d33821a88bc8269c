import pytest

from rekindle.callbacks import LambdaCallback

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
