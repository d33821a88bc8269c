"""`RekindleCallback`: what gives a Lightning `Trainer` the store, the consensus and the metrics.

Here is what it hears from Lightning, and the script's side of it; each hook is a line of `Fit`:

    setup                 which run it is, world, store, newest good commit; its state is left
                          where Lightning restores from (`resuming`)
    on_train_start        counters, metrics, what only this rank has; SIGTERM is taken over
    (before each fetch)   progress, notice, save (`data.Cut`)
    on_train_batch_end    the loss, by reference
    on_train_end          the last save, marked as finished
    on_fit_end            where nothing was left to train: what it had come to
    on_exception          word for the agent; a save in flight may end

The callback that the entry point adds stands back where the script brings one of its own, and where
the bridge does not serve the script's trainer (`scope`): nobody asked for it there.
"""

import os
import traceback
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn

from rekindle.bridge import scope, tuned
from rekindle.bridge.fit import Fit, leave_word
from rekindle.checkpoint import IntegrityError
from rekindle.errors.outcome import Damaged
from rekindle.flags import Every
from rekindle.persistence import policy, run_identity
from rekindle.ranks.control_page import ControlPage
from rekindle.trainer.trainer import Trainer

if TYPE_CHECKING:
    import lightning.pytorch as pl


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
        self._fit: Fit | None = None

    @property
    def state_key(self) -> str:
        """Differs for the one that the entry point adds, so that a script's own may stand by."""
        return f"RekindleCallback{'(entry point)' if self._automatic else ''}"

    def setup(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        """Open the store and find where to begin; collective."""
        self._fit = None
        tuned.note(trainer, pl_module)
        if stage != "fit" or self._stands_by(trainer) or _of(trainer).fast_dev_run:
            return
        if tuned.searching(trainer):
            return
        try:
            scope.check(trainer)
        except (TypeError, ValueError) as error:
            if not self._automatic:
                raise
            # Nobody asked for it, and the script may well look after itself.
            rank_zero_warn(f"checkpoints of the job are not used here: {error}")
            return
        page = ControlPage.from_environment()
        number = run_identity.next_number(policy.base(self.flags)[0])
        try:
            self._fit = Fit(replace(self.flags, fit_number=number), trainer, page, self)
        except BaseException as error:
            # `on_exception` has no fit to speak for yet, and a job's agent is to know why its
            # worker ended, whatever it was; it is raised again.
            leave_word(error, page, rank=trainer.global_rank, step=None, checkpoint=None)
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
            self.last_commit = self._fit.last_commit

    def on_exception(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", exception: BaseException
    ) -> None:
        """Leave word for the agent, let a save in flight end, give SIGTERM back."""
        if self._fit is not None:
            self._fit.failed(exception)
            self.last_commit = self._fit.last_commit

    def on_fit_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """When nothing was left to train, the script sees what it saw when that was done."""
        if self._fit is not None and not self._fit.begun:
            self._fit.repeat()
            self.last_commit = self._fit.last_commit

    def teardown(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        """End what `setup` began, also when there was nothing left to train."""
        if self._fit is not None and stage == "fit":
            self._fit.close()
            self._fit = None


def _of(trainer: "pl.Trainer") -> Any:
    """The trainer with the attributes that Lightning sets from elsewhere."""
    return trainer
