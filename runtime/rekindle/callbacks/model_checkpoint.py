"""`ModelCheckpoint`: which checkpoints stay, and the files that are made of them.

The state of a run is committed to its store, and every commit can be resumed. This callback asks
for commits, gives the store a retention rule (`Best`), and has `persistence.exported_files` write
each one that it keeps as a file that Lightning opens: `best_model_path`, `last_model_path`. A file
is there once its commit is, at the latest when `fit` returns; its name is also an alias of the
commit, which ``<root>/<alias>.ckpt`` finds where there are no files, below an ``s3://`` root.

Names are decided when a hook asks, and belong to the state: whichever files were there before the
run began, and those it has itself, have a say in ``-v1``, so a resume comes to the same ones.
"""

import copy
import os
import re
import time
import warnings
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from rekindle.callback import Callback
from rekindle.checkpoint.retention import Best, Retention
from rekindle.errors.misconfiguration import MisconfigurationException
from rekindle.flags import Every
from rekindle.loggers.logger import overrides
from rekindle.persistence.exported_files import FileJob
from rekindle.persistence.policy import root as root_of

if TYPE_CHECKING:
    from rekindle.model.module import Module
    from rekindle.trainer.trainer import Trainer

_FIELD = re.compile(r"\{([^{}:]*)(:[^{}]*)?\}")
_ALL = 1 << 31


class Checkpoint(Callback):
    """Base class of callbacks that save: `Trainer.checkpoint_callbacks` are these."""

    switch = "enable_checkpointing"


class ModelCheckpoint(Checkpoint):
    """Keep the best `save_top_k` checkpoints of the run, by a logged metric."""

    CHECKPOINT_JOIN_CHAR = "-"
    CHECKPOINT_EQUALS_CHAR = "="
    CHECKPOINT_NAME_LAST = "last"
    FILE_EXTENSION = ".ckpt"
    STARTING_VERSION = 1

    # What it remembers is bookkeeping over checkpoints that exist anyway.
    optional = True

    after_module = True

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
        enable_version_counter: bool = True,
    ) -> None:
        """Check the arguments.

        `save_top_k` is -1 for all and 0 for none; the newest commits stay besides the best ones, as
        many as ``Trainer(keep_latest=...)`` says. `filename` may hold ``{epoch}``, ``{step}`` and
        ``{name:format}`` of any logged metric. At most one of `every_n_train_steps`,
        `train_time_interval` and `every_n_epochs` may be given; the default is every epoch.
        Files go to `dirpath`, which is the run's root as well when the trainer names none; by
        default to ``checkpoints`` below the logger's folder or the root. `save_weights_only` is
        about the files: the run's own state is always whole.
        """
        if mode not in ("min", "max"):
            raise MisconfigurationException(
                f"ModelCheckpoint(mode={mode!r}): allowed are 'min' and 'max'"
            )
        if type(save_top_k) is not int or save_top_k < -1:
            raise MisconfigurationException(
                f"ModelCheckpoint(save_top_k={save_top_k!r}): need -1 (all), 0 (none) or a count"
            )
        if monitor is None and save_top_k > 1:
            raise MisconfigurationException(
                f"ModelCheckpoint(save_top_k={save_top_k}) needs monitor= to know which ones are "
                f"best; to keep the newest ones use Trainer(keep_latest={save_top_k})"
            )
        given = [every_n_train_steps, train_time_interval, every_n_epochs]
        if sum(bool(one) for one in given) > 1:
            raise MisconfigurationException(
                "ModelCheckpoint: every_n_train_steps, train_time_interval and every_n_epochs "
                "exclude each other; give one of them"
            )
        for name, value in (
            ("every_n_train_steps", every_n_train_steps),
            ("every_n_epochs", every_n_epochs),
        ):
            if value is not None and (type(value) is not int or value < 0):
                raise MisconfigurationException(
                    f"ModelCheckpoint({name}={value!r}): need an integer, 0 for never"
                )
        where = None if dirpath is None else os.fspath(dirpath)
        if where is not None and "://" not in where:
            where = os.path.realpath(os.path.expanduser(where))
        self.dirpath = self.root = where
        self.filename = filename
        self.monitor, self.mode, self.save_top_k = monitor, mode, save_top_k
        self.verbose, self.save_last = verbose, save_last
        self.save_on_exception, self.save_weights_only = save_on_exception, save_weights_only
        self.auto_insert_metric_name = auto_insert_metric_name
        self.current_score: torch.Tensor | None = None
        """Of the newest one that was kept."""
        self.best_k_models: dict[str, torch.Tensor] = {}
        """Path -> score of the best ones so far."""
        self.best_model_path = ""
        self.best_model_score: torch.Tensor | None = None
        self.kth_best_model_path = ""
        self.kth_value = torch.tensor(torch.inf if mode == "min" else -torch.inf)
        self.last_model_path = ""
        self._every_n_train_steps = every_n_train_steps or 0
        self._train_time_interval = train_time_interval
        self._every_n_epochs = 1 if given == [None] * 3 else every_n_epochs or 0
        self._save_on_train_epoch_end = save_on_train_epoch_end
        self._enable_version_counter = enable_version_counter
        if not self._every_n_train_steps:
            self.idle = (ModelCheckpoint.on_train_batch_end,)
        self._last_global_step_saved = 0
        self._last_checkpoint_saved = ""
        self._deferred = False
        """Whether a save waits for the validation that measures its metric."""
        self._validated = False
        self._saved_at = 0.0
        """Seconds of training at the newest save by the clock."""
        self._given_dirpath = where
        self._taken: list[str] | None = None
        """Files that were in the folder before the run began."""
        self._files: dict[str, int] = {}
        """Files of this run -> the step whose commit each is of."""
        self._gone: list[str] = []
        """Files that go with the next commit."""
        self._links: dict[str, str] = {}
        self._pending: dict[str, Any] = {}
        """Alias -> what is said of it, of the commit that was asked for."""

    @property
    def every_n_epochs(self) -> int | None:
        """How many epochs lie between two saves; 0 when epochs have no say."""
        return self._every_n_epochs

    @property
    def state_key(self) -> str:
        """Two of these may differ in what they watch and when they save."""
        named = {
            "monitor": self.monitor,
            "mode": self.mode,
            "every_n_train_steps": self._every_n_train_steps,
            "every_n_epochs": self._every_n_epochs,
            "train_time_interval": self._train_time_interval,
        }
        return f"{type(self).__qualname__}{named!r}"

    def keeps(self) -> Retention | None:
        """The rule for the store."""
        if not self.save_top_k:
            return None
        if self.monitor is None:
            return Retention(latest=1, every=1 if self.save_top_k < 0 else None)
        count = _ALL if self.save_top_k < 0 else self.save_top_k
        return Retention(latest=1, best=(Best(metric=self.monitor, mode=self.mode, count=count),))

    # When.

    def on_fit_start(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Find the folder, and make anew what an attempt before could not write."""
        run, world = trainer._run, trainer.world
        assert world is not None
        folder = self._given_dirpath or _folder(trainer)
        before = []
        if world.first and folder is not None and os.path.isdir(folder):
            before = [os.path.join(folder, name) for name in os.listdir(folder)]
        folder, before = world.share((folder, before))
        if self._taken is None:
            self.dirpath, self._taken = folder, before
        if run is None or run.session is None:
            return
        if world.first and self._files and self._has_files:
            by_step: dict[int, dict[str, bool]] = {}
            for path, step in self._files.items():
                by_step.setdefault(step, {})[path] = self.save_weights_only
            for step, paths in by_step.items():
                run.session.files.plan(FileJob(step=step, write=paths, repair=True))
            gone, links = tuple(self._gone), dict(self._links)
            run.session.files.plan(FileJob(step=-1, links=links, remove=gone, repair=True))
        self._by_clock(trainer)

    def _by_clock(self, trainer: "Trainer") -> None:
        """Let a clock's wish go through the ranks' consensus."""
        run = trainer._run
        if self._train_time_interval is None or run is None or run.session is None:
            return
        cadence, seconds = run.session.cadence, self._train_time_interval.total_seconds()
        every = cadence.every
        if every is None:
            cadence.every = Every(seconds=max(seconds, 1e-6))
        elif isinstance(every, Every):
            seconds = min(seconds, every.seconds or seconds)
            cadence.every = Every(steps=every.steps, seconds=max(seconds, 1e-6))
        else:
            trainer.print("ModelCheckpoint(train_time_interval=): checkpoint_every='auto' decides")

    def on_train_batch_end(
        self, trainer: "Trainer", pl_module: "Module", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """`every_n_train_steps`."""
        if not self._every_n_train_steps or trainer.global_step % self._every_n_train_steps:
            return
        if self._skips(trainer):
            return
        measured = self.monitor is None or self.monitor in trainer.callback_metrics
        run = trainer._run
        comes = run is not None and run.validation_due and not self._at_epoch_end(trainer)
        if not measured or (self.monitor is not None and comes):
            # What is there is of a validation before, or not there at all.
            self._deferred = True
            return
        self._save(trainer)

    def on_validation_end(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Save what was just measured."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self._validated = True
        if self._skips(trainer) or self._at_epoch_end(trainer):
            return
        if self._deferred:
            self._deferred = False
            self._save(trainer)
        else:
            self._save_epoch(trainer)

    def on_train_epoch_end(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Save the epoch; raises ValueError when a validation has run and not logged the metric."""
        if not self._skips(trainer) and self._at_epoch_end(trainer):
            self._save_epoch(trainer)

    def on_exception(
        self, trainer: "Trainer", pl_module: "Module", exception: BaseException
    ) -> None:
        """`save_on_exception`: a file of the state as it is; no other rank is asked."""
        if self.save_on_exception and trainer.is_global_zero and not self._skips(trainer):
            path = self._name(trainer, _values(trainer), self.filename, "")
            trainer.save_checkpoint(path, self.save_weights_only)

    def _save_epoch(self, trainer: "Trainer") -> None:
        if self._every_n_epochs and (trainer.current_epoch + 1) % self._every_n_epochs == 0:
            self._save_best(trainer)
        if self._last_global_step_saved == trainer.global_step:
            self._save_last(trainer)

    def _save(self, trainer: "Trainer") -> None:
        self._save_best(trainer)
        self._save_last(trainer)

    def _skips(self, trainer: "Trainer") -> bool:
        run = trainer._run
        return (
            run is None
            or run.session is None
            or trainer.sanity_checking
            or trainer.global_step == self._last_global_step_saved
        )

    def _at_epoch_end(self, trainer: "Trainer") -> bool:
        """Whether the end of an epoch saves, and not a validation."""
        if self._save_on_train_epoch_end is not None:
            return self._save_on_train_epoch_end
        flags, run = trainer.flags, trainer._run
        if flags.check_val_every_n_epoch != 1:
            return False
        if run is None or run.validation is None or not run.validation.batches:
            return True
        return flags.val_check_interval is None or flags.val_check_interval == 1.0

    # What.

    def _save_best(self, trainer: "Trainer") -> None:
        if not self.save_top_k:
            return
        values = _values(trainer)
        if self.monitor is None:
            previous = self.best_model_path
            path = self._name(trainer, values, self.filename, previous)
            self.best_model_path = path
            self._keep(trainer, path, values)
            if self.save_top_k == 1 and previous and previous != path:
                self._drop(previous)
            return
        if self.monitor not in values:
            known = ", ".join(sorted(trainer.callback_metrics)) or "none"
            text = (
                f"ModelCheckpoint(monitor={self.monitor!r}): no such metric was logged; known are "
                f"{known}"
            )
            if self._validated:
                raise MisconfigurationException(text)
            warnings.warn(text, stacklevel=2)
            return
        current = torch.as_tensor(values[self.monitor])
        if self.check_monitor_top_k(trainer, current):
            self._update(trainer, current, values)
        elif self.verbose:
            trainer.print(f"step {values['step']}: {self.monitor} was not in top {self.save_top_k}")

    def file_exists(self, filepath: "str | os.PathLike[str]", trainer: "Trainer") -> bool:
        """Whether rank 0 sees a file; every rank gets its answer."""
        found = os.path.exists(filepath)
        return found if trainer.world is None else bool(trainer.world.share(found))

    def check_monitor_top_k(self, trainer: "Trainer", current: torch.Tensor | None = None) -> bool:
        """Whether a value is one of the best `save_top_k` so far."""
        if current is None:
            return False
        if self.save_top_k < 0 or len(self.best_k_models) < self.save_top_k:
            return True
        kth = self.best_k_models[self.kth_best_model_path]
        return bool(current < kth if self.mode == "min" else current > kth)

    def _update(self, trainer: "Trainer", current: torch.Tensor, values: Mapping[str, Any]) -> None:
        k = len(self.best_k_models) + 1 if self.save_top_k < 0 else self.save_top_k
        out = ""
        if len(self.best_k_models) == k:
            out = self.kth_best_model_path
            self.best_k_models.pop(out)
        if torch.isnan(current):
            # A value that is no number is the worst one.
            current = torch.tensor(torch.inf if self.mode == "min" else -torch.inf)
        path = self._name(trainer, values, self.filename, out)
        self.current_score = self.best_k_models[path] = current
        self._rank(k)
        if self.verbose:
            trainer.print(f"{self.monitor} {float(current):.5g} is one of the best {k}: {path}")
        self._keep(trainer, path, values)
        if out and out != path:
            self._drop(out)

    def _rank(self, k: int) -> None:
        best, worst = (min, max) if self.mode == "min" else (max, min)
        score = {path: float(value) for path, value in self.best_k_models.items()}
        if len(score) == k:
            self.kth_best_model_path = worst(score, key=score.__getitem__)
            self.kth_value = self.best_k_models[self.kth_best_model_path]
        self.best_model_path = best(score, key=score.__getitem__)
        self.best_model_score = self.best_k_models[self.best_model_path]

    def _save_last(self, trainer: "Trainer") -> None:
        if not self.save_last:
            return
        values, previous = _values(trainer), self.last_model_path
        path = self._name(trainer, values, self.CHECKPOINT_NAME_LAST, previous)
        self.last_model_path = path
        target = self._last_checkpoint_saved
        if self.save_last == "link" and target and self.save_top_k and target != path:
            self._links[path] = target
            self._pending.setdefault(self._alias(trainer, path), {})
        else:
            self._keep(trainer, path, values)
        if previous and previous != path:
            self._links.pop(previous, None)
            self._drop(previous)

    def _keep(self, trainer: "Trainer", path: str, values: Mapping[str, Any]) -> None:
        about = {}
        if self.monitor in values:
            score = float(values[str(self.monitor)])
            about = {"monitor": self.monitor, "mode": self.mode, "score": score}
        self._pending[self._alias(trainer, path)] = about
        self._last_global_step_saved = trainer.global_step
        self._files[path] = _commit_step(trainer)
        if Path(path).stem.partition("-")[0] != self.CHECKPOINT_NAME_LAST:
            self._last_checkpoint_saved = path
        trainer.request_checkpoint()

    def _drop(self, path: str) -> None:
        self._files.pop(path, None)
        if self.dirpath is not None and Path(self.dirpath) in Path(path).parents:
            self._gone.append(path)

    def aliases(self, trainer: "Trainer") -> dict[str, dict[str, Any]]:
        """The names of the commit that is about to be saved, when it was asked for here."""
        run, interval = trainer._run, self._train_time_interval
        if interval is not None and run is not None and not self._skips(trainer):
            elapsed = run.world.share(run.elapsed + time.monotonic() - run.began)
            if elapsed - self._saved_at >= interval.total_seconds():
                self._saved_at = elapsed
                self._save(trainer)
        named, self._pending = self._pending, {}
        if named and run is not None and run.session is not None:
            self._plan(trainer, run.session.files)
        return named

    def _plan(self, trainer: "Trainer", files: Any) -> None:
        step = _commit_step(trainer)
        here = {p: self.save_weights_only for p, s in self._files.items() if s == step}
        links = {p: to for p, to in self._links.items() if self._files.get(to) == step}
        gone = tuple(p for p in self._gone if p not in here)
        if self._has_files and trainer.is_global_zero:
            told = [each for each in trainer.loggers if overrides(each, "after_save_checkpoint")]
            # As it is now: by the time that the file is there, there may be a better one to come.
            seen = copy.copy(self)
            seen.best_k_models = dict(self.best_k_models)

            def tell() -> None:
                for logger in told:
                    logger.after_save_checkpoint(seen)

            done = tell if told and here else None
            files.plan(FileJob(step=step, write=here, links=links, remove=gone, done=done))
        self._gone = list(gone)[-4:]

    # Names.

    @property
    def _has_files(self) -> bool:
        return self.dirpath is not None and "://" not in self.dirpath

    def format_checkpoint_name(
        self,
        metrics: Mapping[str, Any],
        filename: str | None = None,
        ver: int | None = None,
        prefix: str | None = None,
    ) -> str:
        """The path of a file; a metric that is missing counts as 0."""
        join = self.CHECKPOINT_JOIN_CHAR
        template = filename or self.filename or f"{{epoch}}{join}{{step}}"

        def value(found: "re.Match[str]") -> str:
            name, how = found[1], (found[2] or ":")[1:]
            text = format(_number(metrics.get(name, 0)), how)
            equals = self.CHECKPOINT_EQUALS_CHAR
            return f"{name}{equals}{text}" if self.auto_insert_metric_name else text

        name = _FIELD.sub(value, template)
        parts = [prefix, name, None if ver is None else f"v{ver}"]
        name = join.join(part for part in parts if part is not None) + self.FILE_EXTENSION
        return os.path.join(self.dirpath, name) if self.dirpath else name

    def _name(
        self, trainer: "Trainer", values: Mapping[str, Any], template: str | None, own: str
    ) -> str:
        path, version = self.format_checkpoint_name(values, template), self.STARTING_VERSION
        taken = set(self._taken or ())
        for other in trainer.callbacks:
            if isinstance(other, ModelCheckpoint):
                taken |= {*other._files, *other._links}
        while self._enable_version_counter and path in taken and path != own:
            path = self.format_checkpoint_name(values, template, ver=version)
            version += 1
        return path

    def _alias(self, trainer: "Trainer", path: str) -> str:
        where, _ = root_of(trainer.flags)
        inside = os.path.relpath(path, where) if "://" not in path else path.removeprefix(where)
        name = os.path.basename(path) if inside.startswith("..") else inside.lstrip("/")
        return name.removesuffix(self.FILE_EXTENSION)

    def to_yaml(self, filepath: "str | os.PathLike[str] | None" = None) -> None:
        """Write paths and scores of the best ones to a YAML file."""
        import yaml

        path = Path(filepath or os.path.join(self.dirpath or "", "best_k_models.yaml"))
        scores = {name: float(score) for name, score in self.best_k_models.items()}
        path.write_text(yaml.dump(scores))

    # State.

    def state_dict(self) -> dict[str, Any]:
        """The best ones so far, and the files that there are."""

        def number(score: torch.Tensor | None) -> float | None:
            return None if score is None else float(score)

        return {
            "monitor": self.monitor,
            "best_model_score": number(self.best_model_score),
            "best_model_path": self.best_model_path,
            "current_score": number(self.current_score),
            "dirpath": self.dirpath,
            "best_k_models": {path: float(score) for path, score in self.best_k_models.items()},
            "kth_best_model_path": self.kth_best_model_path,
            "kth_value": float(self.kth_value),
            "last_model_path": self.last_model_path,
            "saved": [self._last_global_step_saved, self._last_checkpoint_saved, self._saved_at],
            "deferred": self._deferred,
            "validated": self._validated,
            "files": dict(self._files),
            "links": dict(self._links),
            "gone": list(self._gone),
            "taken": self._taken,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""

        def tensor(score: float | None) -> torch.Tensor | None:
            return None if score is None else torch.as_tensor(score)

        self.best_model_path = state_dict["best_model_path"]
        moved = self._given_dirpath not in (None, state_dict["dirpath"])
        if moved or "files" not in state_dict:
            # Other files in another folder: what is best so far is all that holds there.
            return
        self.dirpath = state_dict["dirpath"]
        saved = state_dict["best_k_models"]
        self.best_k_models = {path: torch.as_tensor(score) for path, score in saved.items()}
        self.best_model_score = tensor(state_dict["best_model_score"])
        self.current_score = tensor(state_dict["current_score"])
        self.kth_best_model_path = state_dict["kth_best_model_path"]
        self.kth_value = torch.as_tensor(state_dict["kth_value"])
        self.last_model_path = state_dict["last_model_path"]
        step, path, seconds = state_dict["saved"]
        self._last_global_step_saved, self._last_checkpoint_saved = step, path
        self._saved_at = seconds
        self._deferred, self._validated = state_dict["deferred"], state_dict["validated"]
        # A run that goes back in its own process has files of steps that never were.
        stale = [path for path in self._files if path not in state_dict["files"]]
        self._files, self._links = dict(state_dict["files"]), dict(state_dict["links"])
        self._gone = [*state_dict["gone"], *stale]
        self._taken, self._pending = state_dict["taken"], {}


def _folder(trainer: "Trainer") -> str | None:
    """Where files go that are told no place; None when there is no folder for them."""
    for logger in trainer.loggers[:1]:
        if logger.log_dir and "://" not in logger.log_dir:
            return os.path.join(os.path.abspath(logger.log_dir), "checkpoints")
    root = trainer.default_root_dir
    return f"{root.rstrip('/')}/checkpoints"


def _commit_step(trainer: "Trainer") -> int:
    """What the commit of this moment is known by; `global_step` counts each optimizer's steps."""
    return 0 if trainer._run is None else trainer._run.step


def _values(trainer: "Trainer") -> dict[str, Any]:
    """What names may hold."""
    values: dict[str, Any] = dict(trainer.callback_metrics)
    run, epoch = trainer._run, trainer.current_epoch
    if run is not None and run.step and not run.cursor.sample:
        # Between two epochs: what there is belongs to the one that has ended.
        epoch -= 1
    for name, own in (("epoch", epoch), ("step", trainer.global_step)):
        values[name] = int(values[name]) if name in values else own
    return values


def _number(value: Any) -> Any:
    return value.item() if isinstance(value, torch.Tensor) else value
