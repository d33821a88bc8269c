import sys
import types

import pytest

from rekindle import Callback
from rekindle.callbacks import OptunaPruning, PruneCallback, RayPruning

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def optuna():
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


class Curve(Callback):
    """A learning curve of our choice."""

    def __init__(self, start):
        self.start = start

    def on_validation_epoch_end(self, trainer, pl_module):
        pl_module.log("score", self.start - trainer.current_epoch)


def test_optuna_prunes_the_trials_that_do_worse(fit, optuna):
    steps = []

    def objective(trial):
        start = trial.suggest_float("start", 0, 100)
        prune = OptunaPruning(trial, "score")
        trainer = fit(Curve(start), prune, root=f"trial{trial.number}")
        steps.append(trainer.global_step)
        prune.raise_if_pruned()
        return float(trainer.callback_metrics["score"])

    pruner = optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=6)
    study = optuna.create_study(direction="minimize", pruner=pruner)
    for start in (3, 4, 50, 1):
        study.enqueue_trial({"start": start})
    study.optimize(objective, n_trials=4)
    assert [trial.state.name for trial in study.trials] == [
        "COMPLETE",
        "COMPLETE",
        "PRUNED",
        "COMPLETE",
    ]
    assert steps == [15, 15, 10, 15]
    assert study.best_params == {"start": 1}
    assert study.trials[2].intermediate_values == {5: 50, 10: 49}


class Recorder:
    """A study that stops a trial at some step."""

    def __init__(self, stop_at=None):
        self.told, self.stop_at = [], stop_at

    def report(self, step, metric):
        self.told.append((step, metric))
        return step == self.stop_at


def test_each_step_is_reported_once_over_a_resume(fit, capsys):
    first, second = Recorder(), Recorder(stop_at=10)
    fit(Curve(9), PruneCallback(first, "score"), stop=6)
    prune = PruneCallback(second, "score")
    assert fit(Curve(9), prune).global_step == 10
    assert first.told + second.told == [(5, 9), (10, 8)]
    prune.raise_if_pruned()
    assert "pruned by the search: score = 8; training ends at step 10" in capsys.readouterr().out
    again = PruneCallback(second, "score")
    fit(Curve(9), again)
    assert again.pruned
    assert len(second.told) == 1


def test_a_study_that_fails_is_an_error_of_the_run(fit):
    class Broken:
        def report(self, step, metric):
            raise ConnectionError("the study's storage is gone")

    with pytest.raises(ConnectionError, match="storage is gone"):
        fit(Curve(1), PruneCallback(Broken(), "score"))
    with pytest.raises(ValueError, match="rank 0 needs a reporter"):
        fit(OptunaPruning(None, "score"), root="b")


def test_ray_tune_gets_the_same_reports(fit, monkeypatch):
    told = []
    tune = types.ModuleType("ray.tune")
    tune.report = told.append
    ray = types.ModuleType("ray")
    ray.tune = tune
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.tune", tune)
    fit(Curve(4), RayPruning("score"), max_epochs=2)
    assert told == [{"score": 4, "step": 5}, {"score": 3, "step": 10}]


def test_ray_is_asked_for_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'ray\[tune\]'"):
        RayPruning("score")
