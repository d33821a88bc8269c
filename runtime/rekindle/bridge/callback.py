"""`RekindleCallback`: what gives a Lightning `Trainer` the store, the consensus and the metrics.

Its parts are those of `rekindle.Trainer`: `persistence.Session` (which checkpoint, when to save),
`Notice` and `Consensus` (who wants to stop, after which step), the control page and the meter. This
module holds them against Lightning's hooks:

    setup                 world, store, newest good commit; its state is left where Lightning
                          restores from
    on_train_start        counters, metrics, what only this rank has; SIGTERM is taken over
    (before each fetch)   `_between`: progress, notice, save; see `rekindle.bridge.data`
    on_train_batch_end    the loss, by reference
    on_train_end          the last save, marked as finished
    on_exception          word for the agent; a save in flight may end

Lightning's own handler of SIGTERM broadcasts inside of the handler, which hangs when only one rank
was signalled; it is replaced for the time of the training. A notice that comes during a validation
is obeyed after it: Lightning cannot go back into one without losing its metrics.
"""

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, GradientAccumulationScheduler
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from lightning.pytorch.utilities import CombinedLoader, rank_zero_warn

from rekindle import randomness
from rekindle.bridge import state
from rekindle.bridge.data import Cut
from rekindle.checkpoint import IntegrityError, SaveError
from rekindle.checkpoint.manifest import commit_key
from rekindle.consensus import Consensus, Notice, obey
from rekindle.console import Console
from rekindle.contract import Restored as RestoredReport
from rekindle.control import ControlPage
from rekindle.distributed import TIMEOUT, World
from rekindle.flags import Every
from rekindle.outcome import Damaged, Preempted, classify, lost_peer
from rekindle.persistence import Found, Session, root
from rekindle.requirement import RequirementError
from rekindle.telemetry import CHECKPOINT_ERRORS, Meter
from rekindle.trainer import Trainer

if TYPE_CHECKING:
    import lightning.pytorch as pl

_FLUSH_SECONDS = 20.0
_PEER_SECONDS = 3.0
_TRIES = 3


class RekindleCallback(Callback):
    """Saves, stops, resumes and reports for `lightning.pytorch.Trainer`; see `rekindle.bridge`."""

    def __init__(
        self,
        root: "str | os.PathLike[str] | None" = None,
        *,
        store: "Mapping[str, str | os.PathLike[str] | None] | None" = None,
        resume: Literal["auto", "must", "never"] = "auto",
        checkpoint_every: Every | Literal["auto"] | None = "auto",
        keep_latest: int = 3,
        _automatic: bool = False,
    ) -> None:
        """The arguments mean what they mean for `rekindle.Trainer`, and are checked as there.

        A job's environment has the last word on where and how often to save, as always.
        """
        self.flags = Trainer(
            root=root,
            store=store,
            resume=resume,
            checkpoint_every=checkpoint_every,
            keep_latest=keep_latest,
        ).flags
        self.last_commit: int | None = None
        """Step of the newest commit this process knows of, after `fit`."""
        self._automatic = _automatic
        self._fit: _Fit | None = None

    @property
    def state_key(self) -> str:
        """Differs for the one that the entry point adds, so that a script's own may stand by."""
        return f"RekindleCallback{'(entry point)' if self._automatic else ''}"

    def setup(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        """Open the store and find where to begin; collective."""
        self._fit = None
        if stage != "fit" or self._stands_by(trainer) or _of(trainer).fast_dev_run:
            return
        try:
            _check(trainer)
        except (TypeError, ValueError) as error:
            if not self._automatic:
                raise
            # Nobody asked for it, and the script may well look after itself.
            rank_zero_warn(f"checkpoints of the job are not used here: {error}")
            return
        page = ControlPage.from_environment()
        try:
            self._fit = _Fit(self, trainer, page)
        except BaseException as error:
            _leave_word(error, page, rank=trainer.global_rank, step=None, checkpoint=None)
            if isinstance(error, IntegrityError):
                traceback.print_exception(error)
                raise Damaged from error
            raise

    def _stands_by(self, trainer: "pl.Trainer") -> bool:
        """Whether the script has a callback of its own, which knows better."""
        others = [
            c for c in _of(trainer).callbacks if isinstance(c, RekindleCallback) and c is not self
        ]
        return self._automatic and bool(others)

    def on_sanity_check_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Take SIGTERM from Lightning."""
        if self._fit is not None:
            self._fit.listen()

    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Everything is restored but what Lightning does not know."""
        if self._fit is not None:
            self._fit.begin()

    def on_train_batch_end(
        self,
        trainer: "pl.Trainer",
        pl_module: "pl.LightningModule",
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Keep the loss."""
        if self._fit is not None:
            self._fit.batch_done(outputs)

    def on_validation_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Stop the clock of the steps."""
        if self._fit is not None:
            self._fit.validation(begins=True)

    def on_validation_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Tell what the validation has found."""
        if self._fit is not None:
            self._fit.validation(begins=False)

    def on_train_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Save the end of the run."""
        if self._fit is not None:
            self._fit.finish()
            self.last_commit = self._fit.session.last_commit

    def on_exception(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", exception: BaseException
    ) -> None:
        """Leave word for the agent, let a save in flight end, give SIGTERM back."""
        if self._fit is not None:
            self._fit.failed(exception)
            self.last_commit = self._fit.session.last_commit

    def on_fit_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """When nothing was left to train, the metrics are those of the finished run."""
        if self._fit is not None and not self._fit.begun:
            self._fit.show_metrics()

    def teardown(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        """End what `setup` began, also when there was nothing left to train."""
        if self._fit is not None and stage == "fit":
            self._fit.close(_FLUSH_SECONDS)
            self._fit = None


def _of(trainer: "pl.Trainer") -> Any:
    """The trainer with the attributes that Lightning sets from elsewhere."""
    return trainer


def _check(trainer: "pl.Trainer") -> None:
    """Refuse what the bridge would get wrong; raises TypeError or ValueError."""
    if type(trainer).__module__.startswith("pytorch_lightning"):
        raise TypeError(
            "this Trainer comes from `pytorch_lightning`; write `import lightning.pytorch as pl` "
            "for RekindleCallback (the two packages have different classes)"
        )
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started > trainer.world_size:
        raise ValueError(
            f"{started} processes were started, and the Trainer was made for {trainer.world_size}: "
            f"as under torchrun, give Trainer(num_nodes=, devices=, strategy='ddp') the numbers of "
            f"GROUP_WORLD_SIZE and LOCAL_WORLD_SIZE"
        )
    strategy = trainer.strategy
    name = type(strategy).__name__
    if not isinstance(strategy, DDPStrategy | SingleDeviceStrategy):
        raise ValueError(
            f"RekindleCallback serves one device and DDP, not {name}; for sharded models use "
            f"rekindle.Trainer(strategy='fsdp')"
        )
    if isinstance(strategy.launcher, _MultiProcessingLauncher):
        raise ValueError(
            f"RekindleCallback needs processes whose exit code counts, which {name} started by "
            f"{strategy.launcher._start_method!r} does not give; use strategy='ddp', torchrun or a "
            f"TrainingJob"
        )


class _Source:
    """Stands in for Lightning's data source and puts its loader into a `Cut`."""

    def __init__(self, inner: Any, make: Any) -> None:
        self._inner, self._make = inner, make

    def dataloader(self) -> Any:
        return self._make(self._inner.dataloader())

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_inner":
            raise AttributeError(name)
        return getattr(self._inner, name)


class _Fit:
    """One call of `fit` on one rank."""

    def __init__(
        self, callback: RekindleCallback, trainer: "pl.Trainer", page: ControlPage | None
    ) -> None:
        flags = callback.flags
        self.trainer, self.page = trainer, page
        self.loop = trainer.fit_loop
        self.world = _world(trainer)
        self.first = self.world.local_rank == 0
        self.console = Console(first=self.world.first, progress=False)
        if page is not None and self.first:
            page.attach()
        self.session = Session.open(flags, self.world, page)
        _, notice_line = root(flags)
        if notice_line is not None:
            self.console.say(notice_line)
        self.found: Found = self.session.find(flags.resume)
        self.meter = Meter(first=self.first)
        self.notice: Notice | None = None
        self.handler: Any = None
        """What `listen` has put in the place of Lightning's handler of SIGTERM."""
        self.consensus: Consensus | None = None
        self.cut: Cut | None = None
        self.running = self.begun = False
        self.productive = self.stall = 0.0
        self.samples = 0
        self.loss: Any = None
        self.pending: dict[str, list[torch.Tensor]] = {}
        self.step = 0
        """Optimizer steps, as of the last look."""
        self.batches = -1
        """Batches of the epoch, as of the last look."""
        self.marked = self.reported_at = 0.0
        self.reported = 0
        self.total: int | None = None
        """Optimizer steps of the whole run."""
        self._closed = False
        loop: Any = trainer.fit_loop
        loop._data_source = _Source(loop._data_source, self._make_cut)
        if self.found.restored is not None:
            self._restore(self.found.restored)

    # Beginning.

    def _make_cut(self, loaders: Any) -> Cut:
        if not isinstance(loaders, CombinedLoader):
            # As Lightning does when it gets no loader of loaders.
            loaders = CombinedLoader(loaders, "max_size_cycle")
        first = self.cut is None
        self.cut = Cut(loaders, self._between, self._epoch)
        if first and self.found.restored is not None:
            saved = self.found.restored.rank_state
            assert isinstance(saved, dict)
            self.cut.go_to(saved["data"], saved["rng"])
        return self.cut

    def _epoch(self) -> int:
        progress: Any = self.loop.epoch_progress.current
        return int(progress.processed)

    def _restore(self, restored: Any) -> None:
        """Leave the state where Lightning restores from, whatever ``ckpt_path`` says."""
        if "lightning" not in restored.state:
            raise RequirementError(
                f"R11 checkpoint step {restored.ref.step} in {self.session.uri} was written by "
                f"rekindle.Trainer. Give this script a root of its own."
            )
        if restored.world_size != self.world.size:
            raise RequirementError(
                f"R13 checkpoint step {restored.ref.step} was written by {restored.world_size} "
                f"processes, this attempt has {self.world.size}. Lightning fixes the batch per "
                f"process, so that would be another training: start as many as before (minPods "
                f"equal to pods), or use rekindle.Trainer."
            )
        connector: Any = self.trainer._checkpoint_connector
        loaded = state.checkpoint(restored.state)

        def resume_start(*_: Any, **__: Any) -> None:
            # A script's ckpt_path= is where the run began; after a restart the commit is newer.
            connector._loaded_checkpoint = loaded
            del connector.resume_start

        connector.resume_start = resume_start
        # `stopped`: EarlyStopping had ended the run; its decision stands.
        self.trainer.should_stop = bool(restored.meta["stopped"])
        self.loop.epoch_loop.on_run_start = self._resumed_run_start  # type: ignore[method-assign]
        # Lightning looks for state_dict() on the loader and knows nothing of `Cut`.
        warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before")

    def _resumed_run_start(self, data_fetcher: Any) -> None:
        """Counters were taken over by now; what else Lightning does when restarting is undone.

        It would go through the end of the newest step once more: skip a validation that was done,
        but step the plateau schedulers and count the batch again.
        """
        loop, restored = self.loop.epoch_loop, self.found.restored
        callbacks = _of(self.trainer).callbacks
        if restored and any(isinstance(c, GradientAccumulationScheduler) for c in callbacks):
            # It acts at the start of an epoch, which Lightning does not repeat.
            self.trainer.accumulate_grad_batches = restored.meta["accumulate_grad_batches"]
        del loop.on_run_start
        loop.on_run_start(data_fetcher)
        loop._restarting = False

    def show_metrics(self) -> None:
        """Schedulers and callbacks may look at a metric before it is logged again."""
        if self.found.restored is not None:
            saved = self.found.restored.meta["metrics"]
            values = {name: torch.tensor(value) for name, value in saved.items()}
            self.trainer._logger_connector._callback_metrics.update(values)

    def listen(self) -> None:
        """Take SIGTERM from Lightning; on_train_start and the sanity check may both come."""
        if self.notice is not None:
            return
        self.notice = Notice(self.page)
        if self.page is not None and threading.current_thread() is threading.main_thread():
            # The agent speaks through the page, and ends workers by SIGTERM when time is up.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self.handler = signal.getsignal(signal.SIGTERM)
        self.consensus = Consensus(self.world, self.notice, self.session.clock_due)

    def begin(self) -> None:
        """Lightning has restored its part."""
        restored, trainer = self.found.restored, self.trainer
        for line in self.found.skipped:
            self.console.say(line)
        if restored is not None:
            saved = restored.rank_state
            assert isinstance(saved, dict)
            state.restore_own(trainer, saved)
            self.pending = dict(saved["running"])
            meta = restored.meta
            self.productive, self.stall = meta["productive_seconds"], meta["stall_seconds"]
            self.samples = meta["samples"]
        self.show_metrics()
        self.listen()
        self.session.begin(self.found)
        self.begun = True
        self.step = self.reported = trainer.global_step
        # Asked once: it makes loaders when there are none, and refuses changing accumulation.
        with contextlib.suppress(MisconfigurationException):
            total = trainer.estimated_stepping_batches
            self.total = int(total) if 0 <= total < float("inf") else None
        tree, rank_tree, _ = self._collect(finished=False, tell=True)
        self.session.prepare(tree, rank_tree, None)
        self._announce()
        self.marked = self.reported_at = time.perf_counter()
        self.running = True

    def _announce(self) -> None:
        restored, source = self.found.restored, "scratch"
        if restored is not None:
            source = f"{self.session.uri.rstrip('/')}/{commit_key(restored.ref)}"
            self.console.say(
                f"resumed at step {self.step} (epoch {self._epoch()}) from {self.session.uri}"
            )
        if self.page is not None and self.first:
            self.page.begin(
                step=self.step,
                samples=self.samples,
                total_steps=self.total,
                epoch=self._epoch(),
                productive=self.productive,
                stall=self.stall,
            )
            self.page.write_restored(
                RestoredReport(step=self.step, source=source, skipped=self.found.skipped)
            )

    # Between two steps.

    def batch_done(self, outputs: Any) -> None:
        """After a batch."""
        self.loss = outputs.get("loss") if isinstance(outputs, Mapping) else None
        if self.pending:
            state.merge(self.trainer, self.pending)

    def _between(self) -> bool:
        """Called before every fetch of training data; whether training has begun."""
        if not self.running:
            return False
        assert self.consensus is not None
        now = time.perf_counter()
        step = self.trainer.global_step
        self._count(step, now)
        self.consensus.poll()
        # In the middle of an accumulation there are gradients, which no checkpoint has.
        if not self.loop._should_accumulate():
            if self.consensus.stop:
                self._leave()
            if self.session.due(step, self.consensus.save):
                self._save()
        self.marked = time.perf_counter()
        return True

    def _count(self, step: int, now: float) -> None:
        """Note the batch that has ended, if one has."""
        batches = self.loop.epoch_loop.batch_progress.total.completed
        if batches == self.batches:
            return
        if self.batches >= 0:
            self.samples += self._batch_size() * self.world.size
            self.meter.samples += self._batch_size()
        self.batches = batches
        if step == self.step:
            return
        self.step = step
        self.productive += now - self.marked
        self.meter.durations.append(now - self.marked)
        if self.page is not None and self.first:
            self.page.step_done(
                step=step,
                epoch=self._epoch(),
                samples=self.samples,
                productive=self.productive,
                stall=self.stall,
            )
        if step - self.reported >= max(1, _of(self.trainer).log_every_n_steps):
            self._report(now)

    def _batch_size(self) -> int:
        loaders = self.cut.flattened if self.cut is not None else []
        return max((getattr(loader, "batch_size", None) or 0 for loader in loaders), default=0)

    def _report(self, now: float) -> None:
        """Tell Prometheus and the agent; the one wait for the device."""
        loss = float(self.loss) if isinstance(self.loss, torch.Tensor) else None
        rate = (self.step - self.reported) / max(1e-9, now - self.reported_at)
        per_step = self._batch_size() * self.world.size * self.trainer.accumulate_grad_batches
        self.reported, self.reported_at = self.step, now
        self.meter.flush(step=self.step, epoch=self._epoch(), loss=loss)
        values = self._metrics()
        self.meter.metrics(values)
        if self.page is not None and self.first:
            self.page.observe(loss=loss, samples_per_second=rate * per_step if per_step else None)
            self.page.write_metrics(values)

    def validation(self, *, begins: bool) -> None:
        """Around a validation, whose seconds are no step's."""
        now = time.perf_counter()
        if not self.running:
            return
        if begins:
            self._count(self.trainer.global_step, now)
        else:
            self.meter.phase("validation", now - self.marked)
            values = self._metrics()
            self.meter.metrics(values)
            if self.page is not None and self.first:
                self.page.write_metrics(values)
        self.marked = now

    def _metrics(self) -> dict[str, float]:
        values = self.trainer.callback_metrics
        return {name: float(value) for name, value in values.items() if value.numel() == 1}

    # Saving.

    def _collect(
        self, *, finished: bool, tell: bool = False
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        trainer = self.trainer
        tree, dropped = state.collect(trainer, self.world)
        if dropped and tell:
            self.console.say(
                f"hyperparameters {', '.join(dropped)} are no plain values and are left out of "
                f"checkpoints; the script gives them again"
            )
        rank_tree = state.own(trainer, self.world)
        rank_tree["rng"] = randomness.states()
        assert self.cut is not None
        # With max_steps Lightning takes up the epoch in which it stopped, else it begins another.
        rank_tree["data"] = self.cut.position(
            self.loop.epoch_loop.batch_progress.current.completed,
            ended=finished and not self.loop._iteration_based_training(),
        )
        meta = {
            "step": trainer.global_step,
            "epoch": self._epoch(),
            "world_size": self.world.size,
            "metrics": self._metrics(),
            "total_steps": self.total,
            "finished": finished,
            "stopped": finished and trainer.should_stop,
            "samples": self.samples,
            "accumulate_grad_batches": trainer.accumulate_grad_batches,
            "productive_seconds": self.productive,
            "stall_seconds": self.stall,
        }
        return tree, rank_tree, meta

    def _save(
        self, *, finished: bool = False, wait: bool = False, deadline: float | None = None
    ) -> None:
        """Collective. Raises SaveError when `wait`, else training goes on without this one."""
        began = time.perf_counter()
        tree, rank_tree, meta = self._collect(finished=finished)
        try:
            self.session.save(meta["step"], tree, rank_tree, meta, wait=wait, deadline=deadline)
        except SaveError as error:
            if wait:
                raise
            CHECKPOINT_ERRORS.inc()
            self.console.say(f"checkpoint of step {meta['step']} was not saved: {error}")
        seconds = time.perf_counter() - began
        if not wait and (line := self.session.stalled(seconds)) is not None:
            self.console.say(line)
        self.stall += seconds
        self.meter.phase("checkpoint", seconds)

    def _leave(self) -> NoReturn:
        """Save at the agreed step, and end this process with the code that asks for a restart."""
        assert self.consensus is not None
        assert self.notice is not None

        def save(deadline: float | None) -> None:
            self._save(wait=True, deadline=deadline)

        obey(
            self.consensus,
            self.notice,
            self.world,
            self.console.say,
            step=self.trainer.global_step,
            save=save,
        )

    # Ending.

    def finish(self) -> None:
        """The regular end: the last step is always saved."""
        self._count(self.trainer.global_step, time.perf_counter())
        self.running = False
        if self.step > self.reported:
            self._report(time.perf_counter())
        for attempt in range(_TRIES):
            try:
                self._save(finished=True, wait=True)
            except SaveError as error:
                if attempt == _TRIES - 1:
                    raise
                self.console.say(f"last checkpoint, step {self.step}: {error}")
            else:
                break
        self.close(_FLUSH_SECONDS)

    def failed(self, error: BaseException) -> None:
        """An error, or `Preempted`; no collective, the peers may be gone (R24)."""
        self.running = False
        if isinstance(error, Preempted):
            self.close(_FLUSH_SECONDS if error.saved else 0.0)
            return
        _leave_word(
            error,
            self.page,
            rank=self.world.rank,
            step=self.step,
            checkpoint=self.session.last_commit,
        )
        if self.session.in_flight is not None:
            print(
                f"R24 rank {self.world.rank} failed in step {self.step + 1}: {error}. Flushing "
                f"the snapshot of step {self.session.in_flight} (already staged).",
                file=sys.stderr,
            )
        self.close(_PEER_SECONDS if lost_peer(error) else _FLUSH_SECONDS)

    def close(self, timeout: float) -> None:
        """Let the save in flight end, and put Lightning's handler of SIGTERM back."""
        if self._closed:
            return
        self._closed = True
        # When nothing was left to train, Lightning has put the script's own handler back already.
        if self.notice is not None and signal.getsignal(signal.SIGTERM) == self.handler:
            self.notice.close()
        self.session.close(timeout)


def _world(trainer: "pl.Trainer") -> World:
    """Lightning's processes, with a group of our own for control; collective."""
    group = None
    if trainer.world_size > 1:
        group = torch.distributed.new_group(backend="gloo", timeout=TIMEOUT)
    return World(
        rank=trainer.global_rank,
        size=trainer.world_size,
        local_rank=trainer.local_rank,
        device=trainer.strategy.root_device,
        control=group,
    )


def _leave_word(
    error: BaseException,
    page: ControlPage | None,
    *,
    rank: int,
    step: int | None,
    checkpoint: int | None,
) -> None:
    """Put an error into words for the agent, once."""
    if page is None or (isinstance(error, SystemExit) and not error.code):
        return
    if error.__dict__.get("_rekindle_recorded"):
        return
    outcome = classify(error, step=step, rank=rank, now=time.time(), checkpoint=checkpoint)
    # A full disk must not hide the error itself.
    with contextlib.suppress(OSError):
        page.write_outcome(outcome)
    error.__dict__["_rekindle_recorded"] = True
