"""Hyperparameter search: report a metric while training, and stop when the search says so.

`Reporter` is the whole protocol: ``report(step, metric)`` returns whether to stop. Rank 0 talks to
the search, and its answer is shared, so no rank goes on alone. Training then ends as it always
does, with its state saved; the search's own exception comes afterwards, from `raise_if_pruned`,
because nothing may be raised through ranks that are in the middle of an epoch.

A step is reported once: the last one reported is part of the state, so a trial that is preempted
and resumed does not tell the search twice.
"""

from typing import TYPE_CHECKING, Any, Protocol

from rekindle.callback import Callback

if TYPE_CHECKING:
    from rekindle.model.module import Module
    from rekindle.trainer.trainer import Trainer


class Reporter(Protocol):
    """What a search has to offer."""

    def report(self, step: int, metric: float) -> bool:
        """Take note of a value; whether this trial should stop."""
        ...


class PruneCallback(Callback):
    """Report `monitor` after each validation that measured it, and stop when told to."""

    def __init__(self, reporter: Reporter | None, monitor: str) -> None:
        """Only rank 0 needs the reporter; on the others it may be None."""
        self.reporter, self.monitor = reporter, monitor
        self.pruned = False
        """Whether the search has stopped this trial."""
        self._reported = -1
        self._before: Any = None

    @property
    def state_key(self) -> str:
        """Two of these may report two metrics."""
        return f"PruneCallback({self.monitor})"

    def on_fit_start(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Raises ValueError when the rank that reports has nobody to report to."""
        if self.reporter is None and trainer.is_global_zero:
            raise ValueError(f"{type(self).__name__}: rank 0 needs a reporter, it has None")

    def on_validation_start(self, trainer: "Trainer", pl_module: "Module") -> None:
        """A validation that measures something replaces what is there."""
        self._before = trainer.callback_metrics.get(self.monitor)

    def on_validation_end(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Report what was measured; collective."""
        value, step = trainer.callback_metrics.get(self.monitor), trainer.global_step
        if value is None or value is self._before or step <= self._reported:
            return
        if trainer.sanity_checking or trainer.state.fn != "fit" or trainer.world is None:
            return
        self._reported = step
        stop, error = False, None
        if self.reporter is not None and trainer.is_global_zero:
            try:
                stop = bool(self.reporter.report(step, float(value)))
            except Exception as failure:
                error = failure
        trainer.world.agree(error)
        if trainer.world.share(stop):
            self.pruned = True
            trainer.stop(f"pruned by the search: {self.monitor} = {float(value):.5g}")

    def raise_if_pruned(self) -> None:
        """Tell the search in its own way; call it after `fit`."""
        tell = getattr(self.reporter, "raise_pruned", None)
        if self.pruned and tell is not None:
            tell()

    def state_dict(self) -> dict[str, Any]:
        """What was reported."""
        return {"reported": self._reported, "pruned": self.pruned}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        # A run that goes back in its own process does not tell a step twice either.
        self._reported = max(self._reported, state_dict["reported"])
        self.pruned = state_dict["pruned"]


class OptunaReporter:
    """The trial of an Optuna study."""

    def __init__(self, trial: Any) -> None:
        self._trial = trial

    def report(self, step: int, metric: float) -> bool:
        """Report and ask the study's pruner."""
        self._trial.report(metric, step)
        return bool(self._trial.should_prune())

    def raise_pruned(self) -> None:
        """Raise `optuna.TrialPruned`."""
        import optuna

        raise optuna.TrialPruned


class OptunaPruning(PruneCallback):
    """`PruneCallback` for an Optuna trial, which ranks other than 0 need not have."""

    def __init__(self, trial: Any, monitor: str) -> None:
        super().__init__(None if trial is None else OptunaReporter(trial), monitor)


class RayReporter:
    """The session of a Ray Tune trial; Ray itself ends a trial that its scheduler gives up."""

    def __init__(self, name: str = "metric") -> None:
        """`name` is the metric's name in Ray; ModuleNotFoundError without the package."""
        try:
            from ray import tune
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "RayReporter needs ray, which is not installed: pip install 'ray[tune]'",
                name="ray",
            ) from error
        self._report, self._name = tune.report, name

    def report(self, step: int, metric: float) -> bool:
        """Report; Ray answers by ending the process."""
        self._report({self._name: metric, "step": step})
        return False


class RayPruning(PruneCallback):
    """`PruneCallback` for a Ray Tune trial; the metric keeps its name."""

    def __init__(self, monitor: str) -> None:
        super().__init__(RayReporter(monitor), monitor)
