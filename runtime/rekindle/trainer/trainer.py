"""`Trainer`: what a script talks to.

It holds the checked flags and a view of the run; the work is done by `training.assembly` (from the
script's objects to a run), `training.loop` (the run's steps) and `training.evaluation`. What this
module decides is how a run ends: complete, preempted (exit code 75 or 76), or with an error, which
is put into words for the pod's agent before it goes its way.
"""

import contextlib
import copy
import os
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import torch

from rekindle import flags as checked
from rekindle import randomness
from rekindle.api import Cause, ExitCode, Outcome
from rekindle.callback import Callback
from rekindle.callbacks.monitors.progress_bar import PassProgress
from rekindle.console import Console
from rekindle.data import worker_shutdown
from rekindle.data.loader import LoaderSource
from rekindle.datamodule import DataModule
from rekindle.errors import error_report
from rekindle.errors.outcome import Damaged, Preempted, classify
from rekindle.errors.requirement import RequirementError
from rekindle.flags import Every, Flags
from rekindle.loggers.dummy import DummyLogger
from rekindle.loggers.journal import Journal
from rekindle.loggers.journal import chosen as chosen_loggers
from rekindle.loggers.logger import Attempt
from rekindle.metrics.measures import Measures
from rekindle.model.module import Module
from rekindle.model.precision import MixedPrecision
from rekindle.persistence import policy, run_identity
from rekindle.persistence.session import FLUSH_SECONDS, CheckpointSession
from rekindle.profilers.profiler import Profiler
from rekindle.profilers.profiler import chosen as chosen_profiler
from rekindle.ranks.consensus import StopNotice
from rekindle.ranks.control_page import ControlPage, announce
from rekindle.ranks.distributed import World, join
from rekindle.strategies import Strategy
from rekindle.trainer.members import TrainerMembers
from rekindle.trainer.variables import from_environment
from rekindle.training import batches, save_file, state
from rekindle.training.assembly import assemble, sanity_check
from rekindle.training.hooks import Hooks, blamed, with_own
from rekindle.training.lifecycle import Lifecycle, State
from rekindle.training.loop import finish, leave, train
from rekindle.training.run import Back
from rekindle.training.setup.batch_size_probe import explained
from rekindle.training.setup.torch_settings import settings
from rekindle.training.sources import Stage
from rekindle.training.standalone import run_alone

if TYPE_CHECKING:
    from rekindle.loggers.logger import Logger
    from rekindle.training.run import Run

_MARGIN = 3.0
"""Seconds of what a notice leaves that loggers do not get."""


class Trainer(TrainerMembers):
    """Trains and validates modules; preemption, resume and data order are its business."""

    @from_environment
    def __init__(
        self,
        *,
        max_epochs: int | None = None,
        max_steps: int | None = None,
        max_samples: int | None = None,
        max_tokens: int | None = None,
        max_time: "str | timedelta | Mapping[str, float] | None" = None,
        min_epochs: int | None = None,
        min_steps: int | None = None,
        micro_batch: int | Literal["auto"] | None = None,
        global_batch_size: int | None = None,
        accumulate_grad_batches: int = 1,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
        nonfinite: Literal["stop", "skip", "rollback"] | None = "stop",
        precision: "str | int | MixedPrecision | None" = None,
        callbacks: "list[Callback | str] | Callback | str | None" = None,
        logger: "bool | Logger | Sequence[Logger | str] | str | None" = None,
        profiler: "Profiler | str | None" = None,
        root: "str | os.PathLike[str] | None" = None,
        default_root_dir: "str | os.PathLike[str] | None" = None,
        store: "Mapping[str, str | os.PathLike[str] | None] | None" = None,
        data: "Mapping[str, str] | None" = None,
        reload_dataloaders_every_n_epochs: int = 0,
        resume: Literal["auto", "must", "never"] = "auto",
        seed: int | None = None,
        log_every_n_steps: int | None = None,
        log_every: int | None = None,
        check_val_every_n_epoch: int | None = 1,
        val_check_interval: int | float | None = None,
        val_every: Every | None = None,
        num_sanity_val_steps: int | None = None,
        limit_train_batches: int | float | None = None,
        limit_val_batches: int | float | None = None,
        limit_test_batches: int | float | None = None,
        limit_predict_batches: int | float | None = None,
        fast_dev_run: bool | int = False,
        overfit_batches: int | float = 0.0,
        overfit: int | float | None = None,
        preflight: bool = True,
        checkpoint_every: Every | Literal["auto"] | None = None,
        keep_latest: int = 3,
        enable_checkpointing: bool | None = None,
        accelerator: str = "auto",
        device: str | None = None,
        devices: "int | Sequence[int] | str" = "auto",
        num_nodes: int = 1,
        strategy: "str | Strategy" = "auto",
        mesh: "Mapping[str, int] | None" = None,
        compile: "bool | Mapping[str, Any]" = False,
        fp8_skip: "Sequence[str]" = (),
        sync_batchnorm: bool = False,
        use_distributed_sampler: bool = True,
        deterministic: 'bool | Literal["warn"] | None' = None,
        benchmark: bool | None = None,
        detect_anomaly: bool = False,
        inference_mode: bool = True,
        plugins: "MixedPrecision | Sequence[MixedPrecision] | None" = None,
        barebones: bool = False,
        enable_model_summary: bool | None = None,
        enable_progress_bar: bool | None = None,
        enable_autolog_hparams: bool = True,
        model_registry: str | None = None,
        **unknown: Any,
    ) -> None:
        """Check the flags; nothing is started yet. ``PL_TRAINER_<FLAG>`` gives one in their place.

        Counts of samples: a micro-batch is the loader's `batch_size`; `global_batch_size` is what
        one optimizer step sees over all processes, by default micro-batch times
        `accumulate_grad_batches` times processes: in a job those that it wants (`spec.replicas`
        times workers per pod), however many are there. The first checkpoint fixes it. Fewer
        processes do more micro-batches each; for more of them micro-batches are cut where nothing
        forbids it (see `training.setup.batch_sharing`).

        `val_check_interval` counts training batches within the epoch (a share of them as float), or
        over all epochs with `check_val_every_n_epoch=None`; a batch is one on each process that the
        job wants. What falls between two optimizer steps comes after the first of them.
        `val_every=Every(steps=...)` counts optimizer steps.
        `nonfinite` says what happens when a gradient is not finite (R20): ``stop`` with an error
        before the optimizer uses it, ``skip`` the samples of that step, ``rollback`` to the newest
        checkpoint and skip them, None to let it pass; see `ranks.finite`. With 16-bit precision
        the loss scaler skips such steps in any case.

        Limits count batches of the whole dataset, whatever the number of processes.

        `devices` is a number of processes on this machine, a list of GPUs (``[0, 1]`` or
        ``"0,1"``), or -1 for all of them; ``"auto"`` is all of them where a script was started
        alone that can be started again, one otherwise. A launcher's or a job's number always wins.

        What is None has the default that Lightning documents: 32-bit precision, a line every 50
        steps (0: none before the end), two batches of a sanity check, checkpoints, a summary and a
        progress bar. Only `logger` is none: a job shows its metrics without. `barebones` leaves out
        all of these and `self.log`, and refuses a flag that asks for one. A `gradient_clip_val` of
        0 clips nothing. With `enable_autolog_hparams=False` loggers get no hyperparameters.

        Training ends at the first of `max_epochs`, `max_steps`, `max_samples` or `max_tokens` (at
        the end of the step that reaches it; the dataset's attribute `tokens` says how many a sample
        has, one number or one for each) and `max_time` (wall time in `fit`, over all attempts);
        without any of them after 1000 epochs, with ``max_epochs=-1`` never. `max_time` and
        `should_stop` are heeded once `min_epochs` and `min_steps` are reached. An epoch that is
        ended early has its hooks, and counts. `micro_batch` is what one pass takes, by default the
        loader's `batch_size`; ``"auto"`` halves it until it fits the device.

        `fast_dev_run` goes through one batch (or so many) of each loop and stores nothing;
        `overfit_batches` trains on the same first batches, unshuffled; `preflight=False` leaves
        out the checks of data and programs before training. `deterministic`, `benchmark` and
        `detect_anomaly` are torch's switches of these names. `inference_mode` is for `validate`,
        `test` and `predict`; within `fit` a validation runs without gradients only, because
        tensors made in inference mode cannot be trained with.

        `seed` is that of the data's order and of what the steps draw, by default the one that
        `seed_everything` was given, else 0; the first checkpoint fixes it.

        `root` (or `default_root_dir`) is a directory or an ``s3://`` URL; `resume` is ``auto`` (go
        on with what was interrupted, begin anew after what has ended), ``must`` (go on, whatever
        has changed) or ``never``. `checkpoint_every` is an `Every`, or
        ``"auto"``: as often as the measured cost of a save and the rate of failures suggest, at
        most 1 % of the time. The last step is always saved.

        `logger` is a `rekindle.loggers.Logger`, several, or True for JSON lines under a local root;
        they are fed by threads of their own and can neither slow training down nor end it.
        Loggers, callbacks, profilers and strategies of other packages may be given by the names
        that those have registered; see `rekindle.plugins`.

        `profiler` is ``"simple"`` (a table of phases at the end), ``"advanced"`` (cProfile),
        ``"pytorch"`` (traces, by schedule and on SIGUSR2), or an object of `rekindle.profilers`.

        `store` says how an ``s3://`` root is reached, in a mapping: ``endpoint_url``, ``region``,
        ``profile`` and ``ca_bundle`` as AWS means them, ``addressing`` (``auto``, ``path`` or
        ``virtual``) and, for every root, ``commit``: ``conditional``, or ``lease`` for a server
        that ignores conditional writes (weaker: see `rekindle.checkpoint.objects.guarded`). What is
        left out is as the job says (``spec.checkpoint``), else as the AWS environment says. An
        endpoint that the job names wins, as its root does. For a root of files there is ``commit``
        only; the others are refused there, unless the root is the job's.

        `data` says what is promised about the samples, in a mapping: ``guarantee`` is ``order``
        (default), ``bitwise`` (weights bit-equal on any number of processes) or ``relaxed``;
        ``on_change`` is ``fail`` or ``restart-epoch`` for a dataset that is another one than the
        checkpoint's: see `data.determinism`. With `reload_dataloaders_every_n_epochs` the
        DataModule is asked again for its training loader, which has to read the same dataset.
        """
        given = {k: v for k, v in locals().items() if k not in ("self", "unknown")}
        self.flags: Flags = checked.parse(given, unknown)
        self.callbacks: list[Callback] = self.flags.callbacks
        self.loggers: list[Logger] = [] if barebones else chosen_loggers(logger)
        """Where metrics go; in a trial run to one that takes all and writes nothing."""
        if self.flags.fast_dev_run and self.loggers:
            self.loggers = [DummyLogger()]
        for each in self.loggers:
            each.place(policy.base(self.flags)[0])
        self.profiler: Profiler = chosen_profiler(profiler)
        if profiler is not None:
            self.callbacks = [*self.callbacks, self.profiler]
        self.measures = Measures()
        """What was logged, as callbacks, loggers and bars see it."""
        self.datamodule: Any = None
        self.loading = 0
        """Epoch that loaders are asked for while a run is being made."""
        self.module: Module | None = None
        announce()
        self._stopping: str | None = None
        self.train_source: LoaderSource | None = None
        """The training data as `fit` has found it, from `setup` on."""
        self.lifecycle = Lifecycle()
        self.loaders, self.batches = {}, {}
        self.world: World | None = None
        self._optimizers: list[torch.optim.Optimizer] | None = None
        self._run: Run | None = None
        self._planned: int | None = None
        self._session: CheckpointSession | None = None
        self._identity: run_identity.Identity | None = None
        """What the fit that begins is known by; None for one that saves nothing."""
        self._recalled = False
        """Whether the run that begins has been found in the memory of its pods."""
        self._logged: list[dict[str, Any]] = []
        self._console = Console(first=True, progress=self.flags.enable_progress_bar)

    def fit(
        self,
        model: Module,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: DataModule | None = None,
        ckpt_path: "str | os.PathLike[str] | None" = None,
        weights_only: bool | None = None,
    ) -> None:
        """Train until `max_epochs` or `max_steps`; a run that was interrupted goes on.

        A script may call this many times, with one trainer or with several: the n-th call with one
        root has its checkpoints in ``<root>/fits/<n>``, the first in the root itself, and each goes
        on from its own when the script is started again; see `rekindle.persistence.run_identity`.

        `ckpt_path` says where to begin instead: ``"last"``, ``"best"`` (of the first
        `ModelCheckpoint`), ``"hpc"`` (the newest one saved because of a preemption), the URI or
        directory of a run, one of its commit objects, or ``<run>/<alias>.ckpt``. A run that has
        been begun so goes on from its own newest checkpoint when the same call is made again.
        `weights_only` changes nothing, here and below: no checkpoint is ever read as a program.

        A run that was complete before is left as it is, and so is what this trainer has trained up
        to its limits before: each fit needs a trainer, or a `ckpt_path`. Raises `Preempted` (a
        `SystemExit`) once state is saved because the job has to move, `Damaged` when no checkpoint
        is usable.
        """
        datamodule, train_data = _separate(train_dataloaders, datamodule)
        ckpt_path = self._chosen(ckpt_path)
        self.lifecycle.begin("fit")
        if ckpt_path is None and self._run is not None and self._run.step:
            self.lifecycle.move("done")
            limits = copy.copy(self._run)
            limits.stopped = False
            self._console.say(run_identity.again(limits.step, at_limit=limits.done))
            return
        self._take_callbacks_of(model)
        if self.flags.enable_checkpointing:
            number = run_identity.next_number(policy.base(self.flags)[0])
            self.flags = replace(self.flags, fit_number=number)
        page = ControlPage.from_environment()
        error_report.watch(page, self._outcome)
        self._notice = notice = StopNotice(page)
        # Ended last: a snapshot that an error finds on its way has the time that is left first.
        reading = contextlib.ExitStack()
        reading.enter_context(worker_shutdown.ended())
        try:
            with settings(self.flags), self.profiler.around(self, "fit"):
                self._optimizers, self._run, self._planned, self.loading = None, None, None, 0
                self._stopping = self._session = None
                run = assemble(
                    self,
                    model,
                    datamodule=datamodule,
                    train=train_data,
                    validation=val_dataloaders,
                    world=self._begin(model, datamodule),
                    page=page,
                    notice=notice,
                    console=self._console,
                    start_from=None if ckpt_path is None else os.fspath(ckpt_path),
                )
                if run.done and not run.validating:
                    self._console.say(
                        f"training is complete already: step {run.step} of "
                        f"{policy.root(self.flags)[0]} is the result of this fit"
                    )
                    run.closed = 0 < run.cursor.sample < run.cursor.length
                    if run.session is not None and run.session.lease.pending:
                        # It is in memory, and nobody knows yet whether it was committed.
                        finish(run)
                else:
                    if run.step == 0 and not sanity_check(run):
                        leave(run)
                    self.lifecycle.move("training")
                    self._console.follow(run.progress)
                    train(run)
                    if self.flags.fast_dev_run:
                        state.rehearse(run)
                    finish(run)
                self._end(run)
        except BaseException as found:
            error = found if self._run is None else explained(found, self._run.cursor)
            self._fail(error, page)
            if error is not found:
                raise error from found
            raise
        finally:
            if self._session is not None:
                # However a fit ends, before its first step or in a hook that was to tell of it.
                self._session.lease.leave()
            self._console.close()
            self._close_loggers(notice.seconds_left, sys.exc_info()[1])
            if self._run is not None:
                worker_shutdown.close(self._run.loader)
                if self._run.validation is not None:
                    self._run.validation.close()
            reading.close()
            notice.close()
            model.attach(self, None)
            model.own_update(None)

    def validate(
        self,
        model: Module | None = None,
        dataloaders: Any = None,
        ckpt_path: "str | os.PathLike[str] | None" = None,
        verbose: bool = True,
        datamodule: DataModule | None = None,
        weights_only: bool | None = None,
    ) -> list[dict[str, float]]:
        """Run the validation loop once; one mapping of metrics for each loader.

        They are reduced over all processes. With a `ckpt_path` (see `fit`) the model gets that
        checkpoint's weights first. With `verbose` they are also printed.
        """
        return self._measure("validate", model, dataloaders, datamodule, ckpt_path, verbose)

    def test(
        self,
        model: Module | None = None,
        dataloaders: Any = None,
        ckpt_path: "str | os.PathLike[str] | None" = None,
        verbose: bool = True,
        datamodule: DataModule | None = None,
        weights_only: bool | None = None,
    ) -> list[dict[str, float]]:
        """Run the test loop once; one mapping of metrics for each loader, as `validate` has it.

        Every sample counts once on any number of processes. Without `test_step` or test data,
        those of the validation serve, with a warning.
        """
        return self._measure("test", model, dataloaders, datamodule, ckpt_path, verbose)

    def predict(
        self,
        model: Module | None = None,
        dataloaders: Any = None,
        datamodule: DataModule | None = None,
        return_predictions: bool | None = None,
        ckpt_path: "str | os.PathLike[str] | None" = None,
        weights_only: bool | None = None,
    ) -> list[Any] | None:
        """What `predict_step` returns for each batch, in the order of the data, on the CPU.

        Every process gets all of it; with `return_predictions=False` nothing is kept, and
        callbacks see each batch's output on the process that made it.
        """
        collect = return_predictions is not False
        found = self._alone("predict", model, dataloaders, datamodule, ckpt_path, collect=collect)
        return None if found is None else list(found)

    def _measure(
        self,
        stage: Stage,
        model: Module | None,
        loaders: Any,
        datamodule: DataModule | None,
        ckpt_path: "str | os.PathLike[str] | None",
        verbose: bool,
    ) -> list[dict[str, float]]:
        found: list[dict[str, float]] = self._alone(stage, model, loaders, datamodule, ckpt_path)
        for values in found if verbose else ():
            self._console.say(f"{stage}: " + "  ".join(f"{n} {v:.4f}" for n, v in values.items()))
        return found

    def _alone(
        self,
        stage: Stage,
        model: Module | None,
        loaders: Any,
        datamodule: DataModule | None,
        ckpt_path: "str | os.PathLike[str] | None",
        *,
        collect: bool = True,
    ) -> Any:
        datamodule, loaders = _separate(loaders, datamodule)
        ckpt_path = self._chosen(ckpt_path)
        if model is None and ckpt_path is None and policy.best_rule(self.flags) is not None:
            # What a fit has left in the module are its last weights, not its best ones.
            ckpt_path = "best"
        model = model or self.module
        if model is None:
            raise ValueError(f"{stage}() got no model and there was no fit(): give one")
        if datamodule is None and loaders is None:
            datamodule = self.datamodule
        if self._run is None and self.flags.enable_checkpointing:
            # A word means the newest fit, which another trainer has made.
            number = run_identity.number_of(policy.base(self.flags)[0])
            self.flags = replace(self.flags, fit_number=number)
        self.lifecycle.begin(stage)
        self._take_callbacks_of(model)
        page = ControlPage.from_environment()
        hooks = Hooks([*self.callbacks, PassProgress()], model, self.flags.strategy)
        try:
            with settings(self.flags), self.profiler.around(self, stage), worker_shutdown.ended():
                world = self._begin(model, datamodule)
                journal = Journal(self.loggers, world, self._console.say)
                with journal.briefly(self._after(), self._logged):
                    found = run_alone(
                        self,
                        model,
                        stage,
                        datamodule=datamodule,
                        loaders=loaders,
                        world=world,
                        hooks=hooks,
                        ckpt_path=None if ckpt_path is None else os.fspath(ckpt_path),
                        collect=collect,
                        journal=journal,
                    )
                    if stage != "predict":
                        values = {name: v for each in found for name, v in each.items()}
                        journal.record(values, step=self._batches_done, epoch=self.current_epoch)
                self._logged = journal.state()
            self.lifecycle.move("done")
        except BaseException as error:
            self._tell_exception(hooks, model, datamodule, error)
            self._record(error, page)
            raise
        finally:
            self._console.close()
            model.attach(self, None)
        return found

    @property
    def phase(self) -> State:
        """What the trainer is doing; `lifecycle.trace` holds how it came there."""
        return self.lifecycle.state

    def during(self, state: State) -> "contextlib.AbstractContextManager[None]":
        """Be in another state for a while (called by evaluations)."""
        return self.lifecycle.during(state)

    def _begin(self, model: Module, datamodule: Any) -> World:
        self.module, self.datamodule = model, datamodule
        if datamodule is not None:
            datamodule.trainer = self
        flags = self.flags
        self.world = join(flags.accelerator, flags.devices, flags.num_nodes, flags.device_ids)
        self._console = Console(first=self.world.first, progress=flags.enable_progress_bar)
        asked = flags.devices if isinstance(flags.devices, int) else None
        if asked is not None and asked * flags.num_nodes != self.world.size:
            self._console.say(
                f"devices={asked}, num_nodes={flags.num_nodes}: the launcher has started "
                f"{self.world.size} processes, and that is what counts"
            )
        if not flags.seeded:
            # Scripts may seed each rank's own draws; the order of the data is one for all.
            seed = self.world.share(randomness.global_seed())
            self.flags = replace(self.flags, seed=seed)
        model.attach(self, None)
        for callback in self.callbacks:
            vars(callback).update(log=model.log, log_dict=model.log_dict)
        return self.world

    def _end(self, run: "Run") -> None:
        """A regular end, on every rank."""
        for hook in run.hooks.on_fit_end:
            hook(self, run.module)
        if self.datamodule is not None:
            self.datamodule.teardown("fit")
        for hook in run.hooks.teardown:
            hook(self, run.module, "fit")
        if run.session is not None:
            run.session.end(FLUSH_SECONDS)
        run.update.close()
        run.world.barrier()
        if self._stopping is not None and run.page is not None and run.world.local_rank == 0:
            run.page.write_outcome(
                Outcome(
                    cause=Cause.COMPLETED,
                    code=ExitCode.DONE,
                    message=f"training is complete: {self._stopping}",
                    step=run.step,
                    rank=run.world.rank,
                    at=time.time(),
                )
            )
        if run.page is not None:
            run.page.fit_ended()
        self.lifecycle.move("done")

    def _fail(self, error: BaseException, page: ControlPage | None) -> None:
        """Leave word of the error, and let a save in flight end; no collective (R24)."""
        run = self._run
        if isinstance(error, Preempted):
            run_identity.failed()
            self.lifecycle.move("failed")
            if run is not None and run.session is not None:
                run.session.failed(error, run.step)
            return
        if isinstance(error, SystemExit) and not error.code:
            return
        outcome = self._record(error, page)
        if self.module is not None:
            known = run and run.hooks
            hooks = known or Hooks(self.callbacks, self.module, self.flags.strategy)
            self._tell_exception(hooks, self.module, self.datamodule, error)
        if run is not None and run.session is not None:
            run.session.failed(error, run.step)
        if outcome.cause == Cause.INTEGRITY:
            traceback.print_exception(error)
            raise Damaged from error

    def _take_callbacks_of(self, model: Module) -> None:
        """Take what `configure_callbacks` gives, for this call and those that follow."""
        callbacks = with_own(self.callbacks, model)
        if callbacks == self.callbacks:
            return
        limits = [self.flags.max_time, *(callback.max_seconds for callback in callbacks)]
        self.callbacks = callbacks
        self.flags = replace(
            self.flags,
            callbacks=[callback for callback in callbacks if callback is not self.profiler],
            max_time=min((one for one in limits if one is not None), default=None),
        )

    def _tell_exception(
        self, hooks: Hooks, model: Module, datamodule: Any, error: BaseException
    ) -> None:
        """`on_exception` of callbacks, then of the data module, then of the strategy."""
        for hook in hooks.on_exception:
            hook(self, model, error)
        if isinstance(datamodule, DataModule):
            datamodule.on_exception(error)

    def _after(self) -> Attempt:
        """What loggers are told when a pass follows a fit, or stands alone."""
        return Attempt(
            root=policy.root(self.flags)[0],
            step=self._batches_done,
            resumed=bool(self._logged),
            repeats=False,
            now=lambda: self._batches_done,
        )

    def _close_loggers(self, seconds: float, error: BaseException | None) -> None:
        """Write out what loggers still have, in the time that is left."""
        if self._run is None:
            return
        status = "preempted" if isinstance(error, Preempted) else "failed" if error else "finished"
        self._run.journal.close(status, min(FLUSH_SECONDS, max(0.0, seconds - _MARGIN)))
        self._logged = self._run.journal.state()

    def _record(self, error: BaseException, page: ControlPage | None) -> Outcome:
        """Leave word of an error for people and for the agent."""
        self.lifecycle.move("failed")
        if (where := blamed(error)) is not None:
            error.add_note(f"raised in callback {where}")
        outcome = self._outcome(error)
        error_report.leave(error, page, outcome)
        return outcome

    def _outcome(self, error: BaseException) -> Outcome:
        run = self._run
        return classify(
            error,
            step=None if run is None else run.step,
            rank=0 if self.world is None else self.world.rank,
            now=time.time(),
            checkpoint=None if run is None or run.session is None else run.session.last_commit,
        )

    def watch(self, run: "Run") -> None:
        """Let the trainer's properties show this run (called while it is being made)."""
        self._run = run

    def save_by(self, session: CheckpointSession) -> None:
        """Take note of what holds the store (called before a run is made, which may be refused)."""
        self._session = session

    def plan(self, steps: int | None) -> None:
        """Take note of how many steps the whole run has (called while a run is being made)."""
        self._planned = steps

    def use(self, optimizers: "Sequence[torch.optim.Optimizer]") -> None:
        """Take note of the optimizers (called while a run is being made)."""
        self._optimizers = list(optimizers)

    def set_batch_size(
        self, *, global_batch_size: int | None = None, micro_batch: int | None = None
    ) -> None:
        """Change the sizes of the batches; in a hook of training, on every rank alike.

        In force from the next step on (in `on_train_epoch_start`: in that epoch) and after every
        resume. `micro_batch` alone keeps the number of micro-batches, so the global batch grows
        with it, unless the flag `global_batch_size` was given. Raises ValueError when one is not a
        multiple of the other.
        """
        if self._run is None:
            raise RequirementError(
                f"R10 Trainer.set_batch_size used outside of fit (phase={self.phase.upper()}). "
                f"Call it in a hook of training."
            )
        batches.resize(self._run, global_batch=global_batch_size, micro=micro_batch)

    @property
    def accumulate_grad_batches(self) -> int:
        """Batches of an optimizer step, now."""
        run = self._run
        return self.flags.accumulate_grad_batches if run is None else run.cursor.accumulate

    @accumulate_grad_batches.setter
    def accumulate_grad_batches(self, count: int) -> None:
        """Set it as `set_batch_size` is called; it is kept after every resume."""
        if type(count) is not int or count < 1:
            raise ValueError(
                f"Trainer.accumulate_grad_batches={count!r} must be an integer of at least 1"
            )
        if self._run is None:
            self.flags = replace(self.flags, accumulate_grad_batches=count)
            return
        cursor = self._run.cursor
        self.set_batch_size(global_batch_size=cursor.G // cursor.accumulate * count)

    @property
    def console(self) -> Console:
        """Rank 0's voice, and its progress bar."""
        return self._console

    @property
    def logger(self) -> "Logger | None":
        """The first logger."""
        return self.loggers[0] if self.loggers else None

    @logger.setter
    def logger(self, logger: "Logger | None") -> None:
        """Log there from the next call on."""
        self.loggers = [] if logger is None else chosen_loggers(logger)
        for each in self.loggers:
            each.place(policy.base(self.flags)[0])

    @property
    def log_dir(self) -> str | None:
        """Directory of the first logger that has one, else the root if it is a directory."""
        found = next((logger.log_dir for logger in self.loggers if logger.log_dir), None)
        root = self.default_root_dir
        return found or (None if "://" in root else root)

    @property
    def default_root_dir(self) -> str:
        """The root of the script's runs: an absolute path or an ``s3://`` URL."""
        return policy.base(self.flags)[0]

    @property
    def log_every_n_steps(self) -> int:
        """The flag."""
        every = self.flags.log_every_n_steps
        return 0 if every == checked.NEVER else every

    @property
    def samples(self) -> int:
        """Samples used in the surviving timeline, over all ranks."""
        return 0 if self._run is None else self._run.samples

    @property
    def productive_seconds(self) -> float:
        """Seconds spent on steps of the surviving timeline, over all attempts."""
        return 0.0 if self._run is None else self._run.productive

    def phases(self) -> dict[str, tuple[float, int]]:
        """Phase -> (seconds, how often), of this process's last `fit`."""
        return {} if self._run is None else self._run.meter.phases()

    @property
    def global_step(self) -> int:
        """Optimizer steps done in the surviving timeline, those of all optimizers."""
        return 0 if self._run is None else self._run.optimizer_steps

    @property
    def _batches_done(self) -> int:
        """What loggers number by: steps of training, however many optimizers each has stepped."""
        return 0 if self._run is None else self._run.step

    @property
    def current_epoch(self) -> int:
        """Epoch that is running, 0-based; at the end of training the number of epochs."""
        run = self._run
        return self.loading if run is None else run.cursor.epoch + run.closed

    @property
    def max_epochs(self) -> int:
        """The flag; -1 without a limit."""
        return -1 if self.flags.max_epochs is None else self.flags.max_epochs

    @property
    def max_steps(self) -> int:
        """The flag; -1 without a limit."""
        return -1 if self.flags.max_steps is None else self.flags.max_steps

    @property
    def estimated_stepping_batches(self) -> int | None:
        """Optimizer steps of the whole run, for schedulers; None before `configure_optimizers`."""
        return self._planned

    @property
    def global_rank(self) -> int:
        """Rank of this process."""
        return int(os.environ.get("RANK", "0")) if self.world is None else self.world.rank

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return int(os.environ.get("WORLD_SIZE", "1")) if self.world is None else self.world.size

    @property
    def is_global_zero(self) -> bool:
        """Whether this is rank 0."""
        return self.global_rank == 0

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """The optimizers; R10 before `configure_optimizers` has run."""
        if self._optimizers is None:
            raise RequirementError(
                f"R10 Trainer.optimizers used before configure_optimizers "
                f"(phase={self.phase.upper()}). Move this to on_fit_start."
            )
        return list(self._optimizers)

    @property
    def optimizer_steps(self) -> int:
        """Steps that optimizers really did: all but those that loss scaling skipped."""
        return 0 if self._run is None else self._run.update.optimizer_steps

    @property
    def should_stop(self) -> bool:
        """Set it to end training after the step that runs; set it on every rank alike."""
        return self._run is not None and self._run.stopped

    @should_stop.setter
    def should_stop(self, value: bool) -> None:
        if self._run is None:
            raise RequirementError(
                f"R10 Trainer.should_stop set outside of fit (phase={self.phase.upper()}). Set it "
                f"in a hook."
            )
        self._run.stopped = value

    def stop(self, reason: str) -> None:
        """End training as `should_stop` does, and say why, to people and in the job's status."""
        self.should_stop = True
        self._stopping = reason
        self._console.say(f"{reason}; training ends at step {self.global_step}")

    @property
    def callback_metrics(self) -> dict[str, torch.Tensor]:
        """Newest value of every logged name, by the name itself and with its suffixes.

        Values that were noted since the last report are read now, which waits for the device; with
        several processes they are this one's own until they are reported.
        """
        return self.measures.read().callback

    @property
    def logged_metrics(self) -> dict[str, torch.Tensor]:
        """Newest value of every name that loggers get; see `callback_metrics`."""
        return self.measures.read().logged

    @property
    def progress_bar_metrics(self) -> dict[str, float]:
        """Newest value of every name that was logged with ``prog_bar=True``."""
        return self.measures.read().bar

    @property
    def measured(self) -> "Mapping[str, int]":
        """The step at which each value in `callback_metrics` was taken."""
        return self.measures.steps

    def save_checkpoint(
        self,
        filepath: "str | os.PathLike[str]",
        weights_only: bool | None = None,
        storage_options: Any = None,
    ) -> None:
        """Write a file of the state as it is, which Lightning opens; call it on every rank.

        After `fit` it holds all that `fit(ckpt_path=...)` needs to go on from it; within a hook
        only weights, optimizers, schedulers and callbacks. See `request_checkpoint` for a commit.
        """
        if storage_options is not None:
            raise ValueError(
                "save_checkpoint(storage_options=...) is not supported: it writes a local file. "
                "For an s3:// URL use Module.export, or the run's own checkpoints"
            )
        save_file.save(self, filepath, weights_only)

    def request_checkpoint(self) -> None:
        """Save before the next step, or at the end; ask on every rank alike, in a hook."""
        if self._run is not None and self._run.session is not None:
            self._run.session.cadence.wanted = True

    def roll_back(self, reason: str, *, step: int | None = None) -> None:
        """Go back to the newest checkpoint before a step, and leave that step's samples out.

        For callbacks that find out late that a step has done harm; call it on every rank in the
        same step. `step` is the number of steps that were done before the bad one (by default it is
        the newest one). Happens before the next step; `reason` begins the line that people see.
        Raises ValueError for a step that was not one of the last 64.
        """
        run = self._run
        if run is None:
            raise RequirementError(
                f"R10 Trainer.roll_back called outside of fit (phase={self.phase.upper()}). Call "
                f"it in a hook."
            )
        window = run.window_of(run.step - 1 if step is None else step)
        run.back = Back(reason=reason, window=window)

    def print(self, *values: object, sep: str | None = " ", **options: Any) -> None:
        """Print once, on rank 0; takes what Python's `print` takes."""
        if options and self.is_global_zero:
            print(*values, sep=sep, **options)
        elif not options:
            self._console.say((" " if sep is None else sep).join(map(str, values)))


def _separate(loaders: Any, datamodule: DataModule | None) -> tuple[Any, Any]:
    """The second positional argument may be a DataModule or loaders."""
    if not isinstance(loaders, DataModule):
        if loaders is not None and datamodule is not None:
            raise ValueError("give a DataModule or loaders, not both")
        return datamodule, loaders
    if datamodule is not None:
        raise ValueError("the DataModule is given twice")
    return loaders, None
