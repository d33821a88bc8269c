import math

import pytest

from rekindle import Callback
from rekindle.callbacks import EarlyStopping

pytestmark = pytest.mark.processes


class Values(Callback):
    """Logs values of our choice, one per validation."""

    def __init__(self, *values):
        self.values = values

    def on_validation_epoch_end(self, trainer, pl_module):
        pl_module.log("v", self.values[trainer.current_epoch])


def stopped_after(fit, values, callback, **more):
    return fit(Values(*values), callback, max_epochs=len(values), **more).global_step // 5


@pytest.mark.parametrize(
    ("values", "arguments", "epochs", "reason"),
    [
        ([3, 2, 2, 2, 1], {"patience": 2}, 4, "v did not improve on 2 2 times in a row"),
        ([1, 2, 2, 2, 2], {"patience": 2, "mode": "max"}, 4, "did not improve on 2"),
        ([3, 2.95, 2.92, 1], {"patience": 2, "min_delta": 0.1}, 3, "did not improve on 3"),
        ([3, math.nan, 1], {}, 2, "v = nan is not finite"),
        ([3, math.inf, 1], {"check_finite": False, "patience": 9}, 3, None),
        ([3, 0.5, 0.4], {"stopping_threshold": 0.5}, 3, "has reached the threshold 0.5"),
        ([3, 9, 0.1], {"divergence_threshold": 8}, 2, "has diverged beyond 8"),
        ([3, 2, 1], {"patience": 1}, 3, None),
    ],
)
def test_training_ends_for_a_reason_that_is_said(fit, capsys, values, arguments, epochs, reason):
    callback = EarlyStopping("v", **arguments)
    assert stopped_after(fit, values, callback) == epochs
    if reason is None:
        assert (callback.stopping_reason, callback.stopping_reason_message) == (0, None)
    else:
        assert reason in callback.stopping_reason_message
        assert callback.stopped_epoch == epochs - 1
        said = capsys.readouterr().out
        assert f"EarlyStopping: {callback.stopping_reason_message}; training ends at step" in said


def test_the_reason_reaches_the_jobs_status_and_prometheus(fit, tmp_path, monkeypatch):
    from prometheus_client import REGISTRY

    from rekindle.ranks.control_page import ControlPage

    agent = ControlPage(tmp_path, create=True)
    monkeypatch.setenv("REKINDLE_RUN_DIR", str(tmp_path))
    fit(Values(1, 2, 3), EarlyStopping("v", patience=2))
    (outcome,) = agent.outcomes()
    assert (outcome.cause, outcome.code, outcome.step) == ("Completed", 0, 15)
    assert outcome.message.startswith("training is complete: EarlyStopping: v did not improve on 1")
    name = {"name": "early_stopping/v/wait"}
    assert REGISTRY.get_sample_value("rekindle_metric", name) == 2


def test_patience_survives_a_resume(fit):
    values = [3, 2, 2, 2, 2, 2]
    fit(Values(*values), EarlyStopping("v"), max_epochs=6, stop=18)
    callback = EarlyStopping("v")
    assert stopped_after(fit, values, callback) == 5
    assert (callback.wait_count, float(callback.best_score)) == (3, 2)


def test_a_run_that_was_stopped_stays_complete(fit):
    for _ in range(2):
        assert stopped_after(fit, [1, 1, 1], EarlyStopping("v", patience=1)) == 2


def test_a_metric_of_training_is_judged_at_the_end_of_the_epoch(fit):
    class Train(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            pl_module.log("t", 1.0, on_step=False, on_epoch=True)

    # The hooks see the values of the epoch that has just ended.
    assert fit(Train(), EarlyStopping("t", patience=1), max_epochs=5).current_epoch == 2


def test_a_metric_that_nobody_logs_is_an_error_unless_told_otherwise(fit):
    with pytest.raises(RuntimeError, match=r"monitor='x'\): no such metric was logged; known are"):
        fit(EarlyStopping("x"))
    assert fit(EarlyStopping("x", strict=False), root="b").global_step == 15


@pytest.mark.parametrize(("bad", "message"), [({"mode": "x"}, "mode"), ({"patience": -1}, "need")])
def test_bad_arguments_are_named(bad, message):
    with pytest.raises(ValueError, match=message):
        EarlyStopping("v", **bad)
