"""One call of Lightning's `fit` on one rank: what it begins from, what is saved, how it ends.

Its parts are those of `rekindle.Trainer`: `persistence.Session` (what is saved, and when),
`StopNotice` and `Consensus` (who wants to stop, after which step), the control page and the meter.
The callback calls it at Lightning's hooks, and `StepwiseLoader` before each fetch of training data:
the one moment in which model, counters and generators belong together, so that is where state is
saved.

Lightning's own handler of SIGTERM broadcasts inside of the handler, which hangs when only one rank
was signalled; it is replaced for the time of the training. A notice that comes during a validation
is obeyed after it: Lightning cannot go back into one without losing its metrics.
"""

import os
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.exceptions import SIGTERMException

from rekindle import randomness
from rekindle.api import ExitCode
from rekindle.bridge import resuming, scope, state, tuned
from rekindle.bridge.data import StepwiseLoader, StepwiseSource
from rekindle.bridge.progress import FitProgress
from rekindle.checkpoint import SaveError
from rekindle.checkpoint.format.manifest import commit_key
from rekindle.console import Console
from rekindle.errors import error_report
from rekindle.errors.outcome import Preempted, classify
from rekindle.flags import Flags
from rekindle.metrics.prometheus import CHECKPOINT_ERRORS
from rekindle.persistence import run_identity, run_selection
from rekindle.persistence.policy import root
from rekindle.persistence.restore import Found
from rekindle.persistence.session import FLUSH_SECONDS, CheckpointSession
from rekindle.ranks.consensus import Consensus, StopNotice, obey
from rekindle.ranks.control_page import ControlPage

if TYPE_CHECKING:
    import lightning.pytorch as pl

_TRIES = 3


class Fit:
    """Holds the store, the consensus and the counters against Lightning's loop."""

    def __init__(
        self, flags: Flags, trainer: "pl.Trainer", page: ControlPage | None, mine: Any
    ) -> None:
        """`mine` is the callback that this belongs to."""
        self._trainer, self._page, self._mine = trainer, page, mine
        self._loop: Any = trainer.fit_loop
        self._world = scope.world(trainer)
        # Lightning's own launcher ends rank 0 by SIGKILL when it finds that a child has failed.
        self._child = os.getppid() in self._world.gather(os.getpid())
        self._console = Console(first=self._world.first, progress=False)
        if page is not None and self._world.local_rank == 0:
            page.attach()
        self.session = CheckpointSession(flags, self._world, page)
        try:
            self.session.lease.take()
            self._prepare(flags)
        except BaseException:
            self.session.lease.leave()  # nobody else will: there is no fit
            raise

    def _prepare(self, flags: Flags) -> None:
        """Find what to go on from, and see whether that can be done."""
        trainer, page, self._resume = self._trainer, self._page, flags.resume
        _, notice_line = root(flags)
        own_root = not self._mine._automatic  # else the script has named none
        if notice_line is not None and flags.fit_number == 1 and own_root:
            self._console.say(notice_line)
        self._found: Found = self._find(flags)
        self._notice: StopNotice | None = None
        self._handler: Any = None
        """What `listen` has put in the place of Lightning's handler of SIGTERM."""
        self._consensus: Consensus | None = None
        self._cut: StepwiseLoader | None = None
        self._progress = FitProgress(trainer, self._world, page, self._batch_size)
        self._running = self._closed = False
        self._generators: dict[str, Any] | None = None
        """What the next lines of the script draw from, where a fit was repeated."""
        self.begun = False
        """Whether there was anything left to train."""
        self._pending: dict[str, list[torch.Tensor]] = {}
        """Running metrics of before a restart that wait for their objects; see `state.merge`."""
        source: Any = StepwiseSource(self._loop._data_source, self._make_cut)
        self._loop._data_source = source
        self._sanity: Any = None
        """The script's `num_sanity_val_steps`, while there are none."""
        self._callbacks: Any = None
        """The script's callbacks, while some of them are left out."""
        if self._found.restored is not None:
            restored = self._found.restored
            resuming.check(restored, self._world, self.session.lease.uri, page)
            resuming.hand_over(trainer, restored, again=self._found.again)
            for line in tuned.bring_back(trainer.lightning_module, restored.meta.get("tuned", {})):
                self._console.say(line)
            # It was done when the run began.
            self._sanity, trainer.num_sanity_val_steps = trainer.num_sanity_val_steps, 0
            if tuned.finders(trainer):
                self._callbacks = tuned.without_finders(trainer)

    # Beginning.

    def _find(self, flags: Flags) -> Found:
        """Which run this is, and what to begin from; collective."""
        trainer, lease = self._trainer, self.session.lease
        candidates, module = self.session.candidates, trainer.lightning_module
        own = run_identity.identity(module, trainer.datamodule)  # type: ignore[attr-defined]
        # What the tuner finds may differ from start to start, and is brought back.
        searched = {f"{prefix}{name}" for name in tuned.names(module) for prefix in ("", "data.")}
        kept = {n: value for n, value in own.hyperparameters.items() if n not in searched}
        own = replace(own, hyperparameters=kept)
        own = run_selection.identify(self._world, lease, flags, own, None)
        decision = run_selection.decide(candidates, own, None, flags, None)
        assert decision is not None, "no ckpt_path was named"
        if decision.line is not None:
            self._console.say(decision.line)
        if decision.new_script:
            own = run_selection.begin_anew(self._world, lease, flags, own)
        self._own = own
        if not decision.goes_on:
            return Found()
        return replace(candidates.newest(flags.resume), again=decision.again)

    def _make_cut(self, loaders: Any) -> StepwiseLoader:
        if not isinstance(loaders, CombinedLoader):
            # As Lightning does when it gets no loader of loaders.
            loaders = CombinedLoader(loaders, "max_size_cycle")
        first = self._cut is None
        self._cut = StepwiseLoader(loaders, self._between, lambda: self._progress.epoch)
        if first and self._found.restored is not None:
            saved = self._found.restored.rank_state
            assert isinstance(saved, dict)
            self._cut.go_to(saved["data"], saved["rng"])
        return self._cut

    def _batch_size(self) -> int:
        loaders = self._cut.flattened if self._cut is not None else []
        return max((getattr(loader, "batch_size", None) or 0 for loader in loaders), default=0)

    def _check_data(self) -> None:
        """Refuse data that are not those of the checkpoint, on all ranks; raises R12."""
        restored, error = self._found.restored, None
        reloading = self._trainer.reload_dataloaders_every_n_epochs  # type: ignore[attr-defined]
        if restored is not None and self._cut is not None and not reloading:
            error = resuming.other_data(restored, self._cut.described())
        if error is not None and self._resume == "must":
            self._console.say(f"{error} Goes on all the same (resume='must').")
            error = None
        self._world.agree(error)

    @property
    def last_commit(self) -> int | None:
        """Step of the newest commit that this process knows of."""
        restored = self._found.restored
        return self.session.last_commit or (None if restored is None else restored.ref.step)

    def repeat(self) -> None:
        """Nothing was left to train: what the script sees is what it saw when this fit had ended.

        Lightning has loaded its part. The generators are put back last (`close`), so that whatever
        comes after this call of `fit` draws what it drew then.
        """
        restored = self._found.restored
        if restored is None:
            return
        saved = restored.rank_state
        assert isinstance(saved, dict)
        self._check_data()
        state.restore_own(self._trainer, saved)
        resuming.settle(self._trainer)
        resuming.show_metrics(self._trainer, restored)
        self._generators = saved["rng"]
        if self._cut is not None:
            self._cut.ended_as(saved["data"])
        self._progress.restore(restored.meta)
        self._progress.repeated()
        if self._page is not None:
            self._page.fit_ended()
        self._console.say(
            f"training is complete already: step {restored.ref.step} of {self.session.lease.uri} "
            f"is the result of this fit"
        )

    def listen(self) -> None:
        """Take SIGTERM from Lightning; on_train_start and the sanity check may both come."""
        if self._notice is not None:
            return
        self._notice = StopNotice(self._page)
        if self._page is not None and threading.current_thread() is threading.main_thread():
            # The agent speaks through the page, and ends workers by SIGTERM when time is up.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._handler = signal.getsignal(signal.SIGTERM)
        self._consensus = Consensus(self._world, self._notice, self.session.cadence.clock_due)
        connector: Any = self._trainer._signal_connector
        if connector.received_sigterm:
            # It came right before, and Lightning would end without saving.
            connector.received_sigterm = False
            os.kill(os.getpid(), signal.SIGTERM)

    def begin(self) -> None:
        """Lightning has restored its part."""
        restored = self._found.restored
        for line in self._found.skipped:
            self._console.say(line)
        if restored is not None:
            saved = restored.rank_state
            assert isinstance(saved, dict)
            state.restore_own(self._trainer, saved)
            self._pending = dict(saved["running"])
            self._check_data()
            self._progress.restore(restored.meta)
            resuming.show_metrics(self._trainer, restored)
        self.listen()
        self.session.begin(self._found)
        self.begun = True
        self._progress.begin()
        tree, rank_tree, _ = self._collect(finished=False, tell=True)
        self.session.prepare(tree, rank_tree, None)
        source, uri = "scratch", self.session.lease.uri
        if restored is not None:
            source = f"{uri.rstrip('/')}/{commit_key(restored.ref)}"
            step, epoch = self._progress.step, self._progress.epoch
            self._console.say(f"resumed at step {step} (epoch {epoch}) from {uri}")
        self._progress.announce(source, self._found.skipped)
        self._progress.start_clock()
        self._running = True

    # Between two steps.

    def batch_done(self, outputs: Any) -> None:
        """After a batch."""
        self._progress.loss = outputs.get("loss") if isinstance(outputs, Mapping) else None
        if self._pending:
            state.merge(self._trainer, self._pending)

    def _between(self) -> bool:
        """Called before every fetch of training data; whether training has begun."""
        callbacks: Any = self._trainer.callbacks  # type: ignore[attr-defined]
        if not self._running or self._mine not in callbacks:
            # The second: a finder searches in the middle of it, with callbacks of its own.
            return False
        assert self._consensus is not None
        self._progress.count()
        # In the middle of an accumulation there are gradients, which no checkpoint has.
        whole = not self._loop._should_accumulate()
        self._consensus.poll(self._trainer.global_step, acts=whole)
        if whole:
            if self._consensus.stop:
                self._leave()
            if self.session.cadence.due(self._trainer.global_step, self._consensus.save):
                self._save()
        self._progress.mark()
        return True

    def validation(self, *, begins: bool) -> None:
        """Around a validation, whose seconds are no step's."""
        if not self._running:
            return
        if begins:
            self._progress.count()
        else:
            self._progress.validated()
        self._progress.mark()

    # Saving.

    def _collect(
        self, *, finished: bool, tell: bool = False
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        trainer, progress = self._trainer, self._progress
        tree, dropped = state.collect(trainer, self._world)
        if dropped and tell:
            self._console.say(
                f"hyperparameters {', '.join(dropped)} are no plain values and are left out of "
                f"checkpoints; the script gives them again"
            )
        rank_tree = state.own(trainer, self._world)
        assert self._cut is not None
        rank_tree["rng"] = self._cut.generators
        rank_tree["shown"] = resuming.shown(trainer)
        # With max_steps Lightning takes up the epoch in which it stopped, else it begins another.
        rank_tree["data"] = self._cut.position(
            self._loop.epoch_loop.batch_progress.current.completed,
            ended=finished and not self._loop._iteration_based_training(),
        )
        meta = {
            "step": trainer.global_step,
            "epoch": progress.epoch,
            "world_size": self._world.size,
            "metrics": progress.metrics(),
            "total_steps": progress.total,
            "finished": finished,
            "stopped": finished and trainer.should_stop,
            "samples": progress.samples,
            "accumulate_grad_batches": trainer.accumulate_grad_batches,
            "productive_seconds": progress.productive,
            "stall_seconds": progress.stall,
            "run": self._own.to_json(),
            "tuned": tuned.values(trainer.lightning_module),
            "data": self._cut.described(),
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
            self._console.say(f"checkpoint of step {meta['step']} was not saved: {error}")
        seconds = time.perf_counter() - began
        if not wait and (line := self.session.stalled(seconds)) is not None:
            self._console.say(line)
        self._progress.saved(seconds)

    def _leave(self) -> NoReturn:
        """Save at the agreed step, and end this process with the code that asks for a restart."""
        assert self._consensus is not None
        assert self._notice is not None

        def save(deadline: float | None) -> None:
            self._save(wait=True, deadline=deadline)

        obey(
            self._consensus,
            self._notice,
            self._world,
            self._console.say,
            step=self._trainer.global_step,
            save=save,
        )

    # Ending.

    def finish(self) -> None:
        """The regular end: the last step is always saved."""
        self._progress.count()
        self._running = False
        self._progress.report()
        for attempt in range(_TRIES):
            try:
                self._save(finished=True, wait=True)
            except SaveError as error:
                if attempt == _TRIES - 1:
                    raise
                self._console.say(f"last checkpoint, step {self._progress.step}: {error}")
            else:
                break
        if self._page is not None:
            self._page.fit_ended()
        self.close()

    def failed(self, error: BaseException) -> None:
        """An error, or `Preempted`; no collective, the peers may be gone (R24)."""
        self._running = False
        rank, step = self._world.rank, self._progress.own_step
        if isinstance(error, Preempted | KeyboardInterrupt):
            # Lightning turns the latter into a regular end of the process.
            run_identity.failed()
        if isinstance(error, Preempted) and self._child:
            error.code = 0  # rank 0 tells it
        if not isinstance(error, Preempted):
            last = self.session.last_commit
            leave_word(error, self._page, rank=rank, step=step, checkpoint=last)
        if isinstance(error, SIGTERMException):
            # Lightning's own, which would be told as a regular end.
            run_identity.failed()
            error.code = int(ExitCode.PREEMPTED)
        self._give_back()
        if not self._closed:
            self._stop_listening()
            self.session.failed(error, step)

    def close(self) -> None:
        """Let the save in flight end, give the run up, and put Lightning's handler back."""
        self._give_back()
        if not self._closed:
            self._stop_listening()
            self.session.end(FLUSH_SECONDS)

    def _give_back(self) -> None:
        """What was left out of the trainer, and generators, as the script expects them."""
        trainer: Any = self._trainer
        if self._callbacks is not None:
            trainer.callbacks, self._callbacks = self._callbacks, None
        if self._sanity is not None:
            trainer.num_sanity_val_steps, self._sanity = self._sanity, None
        if self._generators is not None:
            randomness.restore(self._generators)
            self._generators = None

    def _stop_listening(self) -> None:
        self._closed = True
        # When nothing was left to train, Lightning has put the script's own handler back already.
        if self._notice is not None and signal.getsignal(signal.SIGTERM) == self._handler:
            self._notice.close()


def leave_word(
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
    if error_report.left(error):
        return
    outcome = classify(error, step=step, rank=rank, now=time.time(), checkpoint=checkpoint)
    error_report.leave(error, page, outcome)
