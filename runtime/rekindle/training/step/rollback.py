"""Leaving a window of samples out, with or without going back for it (R20, loss spikes).

Two ways lead here. A gradient that is not finite and known in time is refused before the optimizer
sees it. One that was found late, or a spike that a callback has seen, has done its harm: then the
newest checkpoint before it is restored within the process, and the window is passed over when
training comes to it again. What was saved in between is no part of the run any more.

Windows that were left out are part of the state, so a restart leaves out the same ones. Their
samples count as used: the ledger says what was read, `skipped` in the state what was not learnt.
"""

import time
from collections.abc import Iterator
from dataclasses import replace

import torch

from rekindle.api import RestoredFrom, Rollback
from rekindle.data.loader import Batch
from rekindle.data.sampling.order import Cursor, Step
from rekindle.errors.requirement import RequirementError
from rekindle.ranks.finite import ALLOWED, Window
from rekindle.training import state
from rekindle.training.run import Back, Run


def refuse(run: Run, step: Step) -> None:
    """R20: the gradient of a step is not finite, known before the optimizer could use it."""
    what = "gradient" if all([bool(torch.isfinite(loss)) for loss, _ in run.losses]) else "loss"
    window = run.window(step)
    reason = f"R20 non-finite {what} at {window}"
    if run.flags.nonfinite == "rollback":
        run.back = Back(reason=reason, window=window)
        return
    if run.flags.nonfinite == "stop":
        raise RequirementError(
            f"{reason}. Lower the learning rate or look at these samples; nonfinite='skip' leaves "
            f"such a window out, nonfinite='rollback' also goes back to the last checkpoint."
        )
    _leave_out(run, window, reason)
    _move_past(run, step)
    allowed = f"({len(run.skipped)} of {ALLOWED} allowed)"
    run.console.say(f"{reason}; skipped that window {allowed}.")


def late(run: Run) -> Back:
    """R20: gradients of a step that is done were not finite, as some rank has found since."""
    run.consensus.settle()
    found = [step for step in run.world.gather(run.consensus.bad) if step is not None]
    run.consensus.bad, run.consensus.back = None, False
    window = run.window_of(min(found))
    reason = f"R20 non-finite gradient at {window}"
    if run.flags.nonfinite == "stop":
        raise RequirementError(
            f"{reason}. Lower the learning rate or look at these samples; nonfinite='rollback' "
            f"goes back to the last checkpoint and leaves the window out."
        )
    return Back(reason=reason, window=window)


def go_back(run: Run, back: Back) -> None:
    """Return to the newest checkpoint before a window, which is left out from then on; collective.

    Raises R20 when there is none, or when too many windows were left out already.
    """
    run.back = None
    if run.feed.stream is not None:
        raise RequirementError(
            f"{back.reason}. Iterable data cannot go back: use nonfinite='skip'."
        )
    _leave_out(run, back.window, back.reason)
    found = None if run.session is None else run.session.back(back.window.step)
    if found is None or found.restored is None:
        raise RequirementError(
            f"{back.reason}. There is no checkpoint before it to go back to: save more often "
            f"(checkpoint_every), or use nonfinite='skip'."
        )
    left = run.step
    state.apply(run, found.restored)
    if run.page is not None and run.world.local_rank == 0:
        told = Rollback(at_step=left, to_step=run.step, reason=back.reason, at=time.time())
        run.page.write_rollback(told)
        if found.skipped:
            where = RestoredFrom(step=run.step, source=found.source, skipped=found.skipped)
            run.page.write_restored(where)
    for line in found.skipped:
        run.console.say(line)
    saved = Cursor.from_json(found.restored.meta["cursor"])
    run.cursor = run.sharing.cut(saved, run.world.size)
    if run.gradients is not None:
        run.gradients.clear()
    if run.finite is not None:
        run.finite.reset()
    run.recent.clear()
    run.losses = []
    run.journal.rewind(run.step, found.restored.meta.get("loggers", ()))
    allowed = f"({len(run.skipped)} of {ALLOWED} allowed)"
    run.console.say(f"{back.reason}; rolled back to {run.step} and skipped that window {allowed}.")


def _leave_out(run: Run, window: Window, reason: str) -> None:
    if len(run.skipped) == ALLOWED:
        raise RequirementError(
            f"{reason}. {ALLOWED} windows were skipped before, which is all that is allowed: "
            f"lower the learning rate, or look for bad samples."
        )
    run.skipped.append(window)


def pass_over(run: Run, step: Step, batches: Iterator[Batch]) -> None:
    """Read a window that is left out, and do nothing with it."""
    for _ in step.lanes_of(run.world.rank, run.world.size):
        run.ledger.used(run.cursor.epoch, next(batches).ids)
    _move_past(run, step)


def end_epoch_here(run: Run) -> bool:
    """Leave out what is left of the epoch, as `on_train_batch_start` wished; returns True.

    It is neither used nor covered: the step that had begun is not counted, and the next epoch
    begins at its start. All ranks do it before the same step.
    """
    if run.feed.stream is not None:
        raise RequirementError(
            f"R1 {type(run.module).__name__}.on_train_batch_start returned -1, but the rest of "
            f"iterable data cannot be left out exactly. Use limit_train_batches, or end the stream "
            f"itself."
        )
    run.update.clear()
    run.losses = []
    run.cursor = replace(run.cursor, sample=run.cursor.length)
    run.update.left_out(run)
    if run.session is not None:
        run.session.renew(run.step)
    return True


def _move_past(run: Run, step: Step) -> None:
    if run.session is not None:
        run.session.renew(run.step)
    run.leave_out(step)
