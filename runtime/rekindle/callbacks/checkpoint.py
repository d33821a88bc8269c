"""`ModelCheckpoint`: which checkpoints stay, and names for them.

There is one kind of checkpoint here, the committed state of the run, and every one of them can be
resumed. So this callback writes nothing of its own: it asks the trainer to save after a validation
or an epoch, gives the store a retention rule (`Best`) and each checkpoint a readable alias, which
lives in the commit's meta. A file name with a metric in it would need a rename to change, and a
slash in a metric's name would make a folder; an alias has neither trouble, and
``<root>/<alias>.ckpt`` is accepted wherever a path is.
"""

import os
import re
import warnings
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import torch

from rekindle.callback import Callback
from rekindle.checkpoint.retention import Best, Retention
from rekindle.flags import Every
from rekindle.saving.policy import root as root_of

if TYPE_CHECKING:
    from rekindle.model.module import Module
    from rekindle.trainer import Trainer

_FIELD = re.compile(r"\{([^{}:]+)(:[^{}]*)?\}")
_ALL = 1 << 31
_COUNTERS = ("epoch", "step")


class ModelCheckpoint(Callback):
    """Keep the best `save_top_k` checkpoints of the run, by a logged metric."""

    # What it remembers is bookkeeping over checkpoints that exist anyway.
    optional = True

    def __init__(
        self,
        dirpath: "str | os.PathLike[str] | None" = None,
        filename: str | None = None,
        monitor: str | None = None,
        verbose: bool = False,
        save_last: "bool | Literal['link'] | None" = None,
        save_top_k: int = 1,
        save_on_exception: bool = False,
        save_weights_only: bool = False,
        mode: Literal["min", "max"] = "min",
        auto_insert_metric_name: bool = True,
        every_n_train_steps: int | None = None,
        train_time_interval: timedelta | None = None,
        every_n_epochs: int | None = None,
        save_on_train_epoch_end: bool | None = None,
    ) -> None:
        """Check the arguments.

        `save_top_k` is -1 for all and 0 for none; the newest checkpoints stay besides the best
        ones, as many as ``Trainer(keep_latest=...)`` says, and ``last.ckpt`` always means the
        newest good one, with or without `save_last`. `filename` may hold ``{epoch}``, ``{step}``
        and ``{name:format}`` of any logged metric. At most one of `every_n_train_steps`,
        `train_time_interval` and `every_n_epochs` may be given; the default is every epoch.
        `dirpath` is the run's root when the trainer names none, else a part of the alias.
        """
        if mode not in ("min", "max"):
            raise ValueError(f"ModelCheckpoint(mode={mode!r}): allowed are 'min' and 'max'")
        if type(save_top_k) is not int or save_top_k < -1:
            raise ValueError(
                f"ModelCheckpoint(save_top_k={save_top_k!r}): need -1 (all), 0 (none) or a count"
            )
        if monitor is None and save_top_k > 1:
            raise ValueError(
                f"ModelCheckpoint(save_top_k={save_top_k}) needs monitor= to know which ones are "
                f"best; to keep the newest ones use Trainer(keep_latest={save_top_k})"
            )
        given = [every_n_train_steps, train_time_interval, every_n_epochs]
        if sum(bool(one) for one in given) > 1:
            raise ValueError(
                "ModelCheckpoint: every_n_train_steps, train_time_interval and every_n_epochs "
                "exclude each other; give one of them"
            )
        for name, value in (
            ("every_n_train_steps", every_n_train_steps),
            ("every_n_epochs", every_n_epochs),
        ):
            if value is not None and (type(value) is not int or value < 0):
                raise ValueError(f"ModelCheckpoint({name}={value!r}): need an integer, 0 for never")
        self.dirpath = self.root = None if dirpath is None else os.fspath(dirpath)
        self.filename = filename or "{epoch}-{step}"
        self.monitor, self.mode, self.save_top_k = monitor, mode, save_top_k
        self.verbose, self.save_last = verbose, save_last
        self.auto_insert_metric_name = auto_insert_metric_name
        self.best_k_models: dict[str, torch.Tensor] = {}
        """Path -> score of the best ones so far."""
        self.best_model_path = ""
        self.best_model_score: torch.Tensor | None = None
        self.last_model_path = ""
        self._steps = every_n_train_steps or 0
        if not self._steps:
            self.idle = (ModelCheckpoint.on_before_zero_grad,)
        self._interval = train_time_interval
        self._epochs = 1 if given == [None] * 3 else every_n_epochs or 0
        self._at_epoch_end = save_on_train_epoch_end
        self._asked = (-1, 0)
        self._scored = -1
        self._validated = False
        self._notes = []
        if save_weights_only:
            self._notes.append("save_weights_only=True): the full state is saved, for resuming")
        if save_on_exception:
            self._notes.append(
                "save_on_exception=True): an error flushes the newest snapshot, as always"
            )
        metrics = [name for name, _ in _FIELD.findall(self.filename) if name not in _COUNTERS]
        if metrics:
            warnings.warn(
                f"ModelCheckpoint(filename={filename!r}): the text of {', '.join(metrics)} does "
                f"not enter the name of any object; it is an alias, and '<root>/<alias>.ckpt' is "
                f"accepted wherever a checkpoint's path is.",
                stacklevel=2,
            )

    @property
    def state_key(self) -> str:
        """Two of these may watch two metrics."""
        return f"{type(self).__qualname__}({self.monitor}, {self.mode}, {self.filename})"

    def keeps(self) -> Retention | None:
        """The rule for the store."""
        if not self.save_top_k:
            return None
        if self.monitor is None:
            return Retention(latest=1, every=1 if self.save_top_k < 0 else None)
        count = _ALL if self.save_top_k < 0 else self.save_top_k
        return Retention(latest=1, best=(Best(metric=self.monitor, mode=self.mode, count=count),))

    def on_fit_start(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Say what is done otherwise, and let a clock's wish go through the ranks' consensus."""
        for note in self._notes:
            trainer.print(f"ModelCheckpoint({note}")
        run = trainer._run
        if self._interval is None or run is None or run.session is None:
            return
        cadence, seconds = run.session.cadence, self._interval.total_seconds()
        every = cadence.every
        if every is None:
            cadence.every = Every(seconds=seconds)
        elif isinstance(every, Every):
            seconds = min(seconds, every.seconds or seconds)
            cadence.every = Every(steps=every.steps, seconds=seconds)
        else:
            trainer.print("ModelCheckpoint(train_time_interval=): checkpoint_every='auto' decides")

    def on_before_zero_grad(
        self, trainer: "Trainer", pl_module: "Module", optimizer: torch.optim.Optimizer
    ) -> None:
        """`every_n_train_steps`; the step that runs is not counted yet."""
        if self._steps and (trainer.global_step + 1) % self._steps == 0:
            self._asked = (trainer.global_step + 1, trainer.current_epoch)
            trainer.request_checkpoint()

    def on_validation_end(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Save what was just measured."""
        if trainer.sanity_checking:
            return
        self._validated = True
        if self._at_epoch_end is not True:
            self._ask(trainer)

    def on_train_epoch_end(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Save the epoch; raises ValueError when nobody logs the metric."""
        run = trainer._run
        measures = self._validated or run is None or run.validation is None
        if self.monitor is not None and measures and self.monitor not in trainer.callback_metrics:
            known = ", ".join(sorted(trainer.callback_metrics)) or "none"
            raise ValueError(
                f"ModelCheckpoint(monitor={self.monitor!r}): no such metric was logged; known are "
                f"{known}"
            )
        if self._at_epoch_end is not False:
            self._ask(trainer)

    def _ask(self, trainer: "Trainer") -> None:
        if self._epochs and (trainer.current_epoch + 1) % self._epochs == 0:
            self._asked = (trainer.global_step, trainer.current_epoch)
            trainer.request_checkpoint()

    def aliases(self, trainer: "Trainer") -> dict[str, dict[str, Any]]:
        """The rendered name, when this checkpoint is one that this callback has asked for."""
        step, epoch = self._asked
        if step != trainer.global_step or not step:
            return {}
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        try:
            name = self.format_checkpoint_name({**values, "epoch": epoch, "step": step})
        except KeyError:
            # Before the first validation there is no such value, and a wrong one would mislead.
            return {}
        where, _ = root_of(trainer.flags)
        if self.dirpath is not None and os.path.abspath(self.dirpath) != where:
            inside = os.path.relpath(os.path.abspath(self.dirpath), where)
            name = name if inside.startswith("..") else f"{inside}/{name}"
        path = f"{where.rstrip('/')}/{name}.ckpt"
        self.last_model_path = path
        self._score(path, values, trainer)
        if self.monitor not in values:
            return {name: {}}
        about = {"monitor": self.monitor, "mode": self.mode, "score": values[self.monitor]}
        return {name: about}

    def format_checkpoint_name(self, metrics: dict[str, Any]) -> str:
        """`filename` with the values in it; raises KeyError for a metric that is missing."""

        def value(found: "re.Match[str]") -> str:
            name, how = found[1], (found[2] or ":")[1:]
            text = format(metrics[name], how)
            return f"{name}={text}" if self.auto_insert_metric_name else text

        return _FIELD.sub(value, self.filename)

    def _score(self, path: str, values: dict[str, float], trainer: "Trainer") -> None:
        if self.monitor is None:
            self.best_model_path = path
            return
        measured = trainer.measured.get(self.monitor, -1)
        if self.monitor not in values or measured == self._scored:
            return
        self._scored = measured
        sign = 1.0 if self.mode == "min" else -1.0
        scores = {p: float(s) for p, s in self.best_k_models.items()} | {path: values[self.monitor]}
        # A value that is no number is never the best one.
        usable = [p for p in reversed(scores) if scores[p] == scores[p]]
        ranked = sorted(usable, key=lambda p: sign * scores[p])
        if self.save_top_k > 0:
            ranked = ranked[: self.save_top_k]
        self.best_k_models = {p: torch.tensor(scores[p]) for p in ranked}
        if ranked and ranked[0] != self.best_model_path:
            self.best_model_path = ranked[0]
            self.best_model_score = self.best_k_models[ranked[0]]
            if self.verbose:
                trainer.print(f"best {self.monitor} so far {scores[ranked[0]]:.5g}: {ranked[0]}")

    def state_dict(self) -> dict[str, Any]:
        """The best ones so far."""
        return {
            "best_k_models": {path: float(score) for path, score in self.best_k_models.items()},
            "best_model_path": self.best_model_path,
            "last_model_path": self.last_model_path,
            "asked": list(self._asked),
            "scored": self._scored,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        saved = state_dict["best_k_models"]
        self.best_k_models = {path: torch.tensor(score) for path, score in saved.items()}
        self.best_model_path = state_dict["best_model_path"]
        self.best_model_score = self.best_k_models.get(self.best_model_path)
        self.last_model_path = state_dict["last_model_path"]
        step, epoch = state_dict["asked"]
        self._asked, self._scored = (step, epoch), state_dict["scored"]
