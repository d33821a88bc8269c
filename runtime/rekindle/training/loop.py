"""The loop. `train` is all of it; hooks and their places are in `rekindle.callback`.

Three frames lie between `Trainer.fit` and the user's `training_step`: `fit`, `train`, `take_step`.
Nothing in `take_step` waits for a device; what costs more than a few hundred nanoseconds happens at
the log interval (`report`), at a validation, or at a save.

State changes at one place only, `Run.advance`, right after the optimizer. Saves happen between
steps, where all of it belongs together; a step that was cut short by a crash never happened.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NoReturn

import torch

from rekindle.checkpoint import SaveError
from rekindle.data.loader import Batch
from rekindle.data.sampling.order import Step
from rekindle.metrics.logged_values import BatchValues, newest, reported
from rekindle.metrics.prometheus import CHECKPOINT_ERRORS
from rekindle.model import metrics
from rekindle.model.optimizers import SchedulerSpec
from rekindle.ranks.consensus import obey
from rekindle.ranks.heartbeat import Activity
from rekindle.training import batches as feeding
from rekindle.training import evaluation, state
from rekindle.training.evaluation import reduce
from rekindle.training.run import Run
from rekindle.training.step import owned_step
from rekindle.training.step.manual_step import ManualStep
from rekindle.training.step.rollback import go_back, late, pass_over, refuse
from rekindle.training.step.step_output import first, loss_in, outputs

_LOSS = "\0loss"
"""Key of the loss among gathered values; no user can log it."""
_NORM = "\0norm"
"""The same for the norm of the gradient before it was clipped."""
_TRIES = 3


def train(run: Run) -> None:
    """Run all steps that are left; returns when training is complete.

    Raises `Preempted` after an agreed save when something asked to stop.
    """
    trainer, module, hooks, session = run.trainer, run.module, run.hooks, run.session
    keeper = None if session is None else session.keeper
    cadence = None if session is None else session.cadence
    for hook in hooks.on_train_start:
        hook(trainer, module)
    run.seeds.start()
    run.heart.begin(run.step)
    take = stepping(run) if run.update.automatic else ManualStep(run)
    plateaus = [spec for spec in run.update.plateaus if spec.interval == "step"]
    if run.validating:
        validate(run)
        judge(run, plateaus)
        if run.done:
            leave_epoch(run)
    while not run.done:
        for hook in hooks.on_train_epoch_start:
            hook(trainer, module)
        feeding.follow(run)
        steps = feeding.steps(run)
        if run.update.lockstep is not None:
            steps = run.update.lockstep.even(run, steps)
        for step, batches in steps:
            run.seeds.note(run.step)
            if run.consensus.poll(run.step):
                leave(run)
            if run.consensus.end:
                run.expired = True
                if run.done:
                    break
            if run.consensus.back:
                run.back = late(run)
            if run.back is not None:
                go_back(run, run.back)
                break
            if cadence is not None and cadence.due(run.step, run.consensus.save):
                with run.heart.during(Activity.SAVING):
                    save(run)
            elif keeper is not None and run.step >= keeper.due_at:
                with run.heart.during(Activity.SAVING):
                    copy(run)
            done = run.step
            if run.hook_times.active:
                run.hooks = run.hook_times.of(done)
            if run.skipped and run.leaves_out(step):
                pass_over(run, step, batches)
            elif take(step, batches):
                break
            if run.step % run.flags.log_every_n_steps == 0:
                report(run)
            if run.validation_due and (run.step > done or run.flags.val_check_interval is None):
                validate(run)
            if plateaus and run.step > done:
                judge(run, plateaus)
            if run.done:
                break
        leave_epoch(run)
    report(run, last=True)
    for hook in hooks.on_train_end:
        hook(trainer, module)


def stepping(run: Run) -> Callable[[Step, Iterator[Batch]], bool | None]:
    """`take_step` for this run: whatever stays the same in all steps is looked up once."""
    if owned_step.needed(run):
        return owned_step.OwnedStep(run)
    clock, tensor = time.perf_counter, torch.Tensor
    trainer, module, meter, logs, ledger = run.trainer, run.module, run.meter, run.logs, run.ledger
    training_step, autocast, move, seeds = run.training_step, run.autocast, run.move, run.seeds
    update, rank, size_of_world = run.update, run.world.rank, run.world.size
    accumulated, even = run.flags.accumulate_grad_batches, update.lockstep is not None

    def take_step(step: Step, batches: Iterator[Batch]) -> None:
        """One optimizer step: this rank's lanes, the sum over all ranks, the optimizer."""
        began = now = clock()
        hooks, gradients, done, epoch = run.hooks, run.gradients, run.step, run.cursor.epoch
        samples = step.stop - step.start
        lanes = step.lanes_of(rank, size_of_world)
        ended: tuple[Any, Any, int] | None = None
        run.losses = losses = []
        logs.step = done
        for lane in lanes:
            ids, batch = next(batches)
            number, start, stop = lane
            seeds(done, number)
            if move is not None:
                before, now = now, clock()
                meter.data += now - before
                batch = move(batch)
                before, now = now, clock()
                meter.transfer += now - before
            before, now = now, clock()
            meter.data += now - before
            logs.batch_size = size = stop - start
            logs.lane = start
            index = start // step.micro
            if gradients is not None:
                gradients.begin(number // size_of_world, last=lane is lanes[-1])
            for hook in hooks.on_train_batch_start:
                hook(trainer, module, batch, index)
            if run.unchecked:
                run.unchecked = False
                output = first(training_step, autocast, module, batch, index)
            elif autocast is None:
                output = training_step(batch, index)
            else:
                with autocast:
                    output = training_step(batch, index)
            loss: torch.Tensor | None = output
            if type(output) is not tensor:
                loss = loss_in(output, module, logs, even=even)
            ledger.used(epoch, ids)
            if loss is not None:
                losses.append((loss.detach(), size))
                for hook in hooks.on_before_backward:
                    hook(trainer, module, loss if accumulated == 1 else loss / accumulated)
                before, now = now, clock()
                meter.forward += now - before
                update.add(loss, size, samples)
                for hook in hooks.on_after_backward:
                    hook(trainer, module)
                meter.samples += size
            if hooks.on_train_batch_end:
                if loss is not None:
                    loss = loss.detach() if accumulated == 1 else loss.detach() / accumulated
                ended = outputs(output, loss), batch, index
                if lane is not lanes[-1]:
                    for hook in hooks.on_train_batch_end:
                        hook(trainer, module, *ended)
            before, now = now, clock()
            meter.backward += now - before
        applied = update.finish(run)
        end = clock()
        meter.optimizer += end - now
        if not applied:
            update.clear()
            refuse(run, step)
            return
        meter.durations.append(end - began)
        run.advance(step, end - began)
        if ended is not None:
            for hook in hooks.on_train_batch_end:
                hook(trainer, module, *ended)
        update.clear()

    return take_step


def leave_epoch(run: Run) -> None:
    """After the steps of an epoch, all of them or those until training has ended."""
    trainer, module = run.trainer, run.module
    run.heart.enter(Activity.BETWEEN)
    if run.cursor.sample >= run.cursor.length:
        end_epoch(run)
    elif run.done and run.cursor.sample and not run.closed:
        if run.validation_due and run.validated != run.step:
            validate(run)
        # Who raises the limit goes on in this epoch, so nothing of it is lost by its end.
        logs, states = run.logs.state(), metrics.states(module)
        end_epoch(run)
        run.logs.restore(logs)
        metrics.restore(module, states)
    if run.done:
        for callback in trainer.callbacks:
            callback.settle(trainer, module)
        if run.back is not None:
            # What was wrong with the last steps is put right before they become the result.
            go_back(run, run.back)


def end_epoch(run: Run) -> None:
    """Reduce the epoch's metrics, step the schedulers that wait for them, and move on."""
    trainer, module, logs, hooks = run.trainer, run.module, run.logs, run.hooks
    run.look()
    logs.between = True
    for group in (hooks.on_train_epoch_end, hooks.judging):
        if group and run.world.size > 1:
            publish(run, reduce(module, logs, run.world, "train", keep=True))
        for hook in group:
            hook(trainer, module)
    values = reduce(module, logs, run.world, "train")
    logs.between, logs.begun = False, run.step
    publish(run, values)
    run.record(values)
    if run.cursor.sample < run.cursor.length:
        run.closed = True
        return
    for spec in run.update.plateaus:
        if spec.interval == "epoch":
            own = run.update.owned.lr_scheduler_step
            spec.step(run.cursor.epoch + 1, trainer.callback_metrics, own)
    run.cursor = run.cursor.next_epoch()


def judge(run: Run, plateaus: Sequence[SchedulerSpec]) -> None:
    """Step schedulers on a metric by steps: on what all ranks have, after the validation."""
    count = run.cursor.batches
    for spec in plateaus:
        if count % spec.frequency == 0:
            run.look()
            own = run.update.owned.lr_scheduler_step
            spec.step(count, run.trainer.measures.callback, own)


def validate(run: Run) -> None:
    """Validate after the newest step; a run that stops in here does it again when it resumes."""
    if run.validation is None:
        run.validating = False
        return
    run.validating = True
    run.look()
    evaluation.free_gradients(run)
    batches: BatchValues = {}
    values = evaluation.validate(run, run.validation, batches=batches)
    if values is None:
        leave(run)
    if batches:
        run.record_batches(batches)
    run.validating, run.validated = False, run.step
    if run.session is not None and run.session.keeper is not None:
        run.session.keeper.passed(run.validation.batches // run.world.size)
    publish(run, values)
    run.record(values)
    told = "  ".join(f"{reported(name)} {value:.4f}" for name, value in values.items())
    run.console.say(f"step {run.step}: {told}")


def publish(run: Run, values: dict[str, float]) -> None:
    """Make reduced values visible: to callbacks, to the agent, to Prometheus."""
    if not values:
        return
    measures = run.trainer.measures
    measures.take(values, run.step)
    run.meter.metrics({reported(name): value for name, value in values.items()})
    if run.page is not None and run.world.local_rank == 0:
        shown = {name: float(value) for name, value in measures.callback.items()}
        run.page.write_metrics(shown)


def report(run: Run, *, last: bool = False) -> None:
    """Read what was noted since the last report, the one wait for the device; collective."""
    if run.step == run.reported:
        return
    noted = [(_LOSS, loss, size) for loss, size in run.losses]
    if run.update.norm is not None:
        noted.append((_NORM, run.update.norm, 1))
    own = run.logs.take_steps(run.reported, noted)
    found = newest(run.world.gather(own))
    loss = found.pop(_LOSS, None)
    norm = found.pop(_NORM, None)
    if norm is not None:
        # Clipping has computed it anyway; a script's own value of this name is left alone.
        norm = found.setdefault("grad_norm", norm)
    now = time.perf_counter()
    rate = (run.step - run.reported) * run.cursor.G / max(1e-9, now - run.reported_at)
    run.reported, run.reported_at = run.step, now
    measures = run.trainer.measures
    # At the end of training, callbacks have seen the newest values in the end of the epoch.
    shown = {n: v for n, v in found.items() if not last or reported(n) not in measures.callback}
    if norm is not None:
        shown["grad_norm"] = norm
    measures.take(shown, run.step)
    run.heart.busy(run.meter.busy_seconds)
    line = run.hook_times.complaint(run.meter.step_seconds)
    if line is not None:
        run.console.say(line)
    run.meter.flush(step=run.step, epoch=run.cursor.epoch, loss=loss)
    run.meter.metrics({reported(name): value for name, value in found.items()})
    run.record(found)
    if run.page is not None and run.world.local_rank == 0:
        run.page.observe(loss=loss, samples_per_second=rate)
    bar = run.logs.prog_bar()
    shown = {name: v for key, v in found.items() if (name := reported(key)) in bar}
    seen = replace(run.progress(), rate=rate, loss=loss, values=shown)
    run.console.progress(seen, now, last=last)
    run.meter.phase("log", time.perf_counter() - now)


def save(
    run: Run,
    *,
    finished: bool = False,
    preempted: bool = False,
    wait: bool = False,
    deadline: float | None = None,
) -> str | None:
    """Save the state between two steps; collective. With `wait`, until it is committed.

    When workers end with the state in the memory of a pod that stays (`preempted`), that is enough:
    a commit that would take long goes on beside the next round, and one that fails loses nothing.
    Returns what became of it if it is not committed, for people.
    """
    if run.session is None:
        return None
    run.heart.enter(Activity.SAVING)
    began = time.perf_counter()
    tree, rank_tree, meta = state.collect(run, finished=finished, preempted=preempted)
    run.session.copy(run.step, tree, rank_tree, meta, began=began, must=True)
    beside = preempted and run.session.stays(run.step)
    where = None
    try:
        run.session.save(
            run.step,
            tree,
            rank_tree,
            meta,
            wait=wait,
            deadline=deadline,
            frozen=state.frozen(run),
            beside=beside,
        )
        if beside and run.session.in_flight is not None:
            where = "is in the pods' memory; its commit goes on beside the next round"
    except SaveError as error:
        if wait and not beside:
            raise
        # Training is worth more than one checkpoint; the next save is a new try.
        CHECKPOINT_ERRORS.inc()
        where = f"is in the pods' memory, but not committed: {error}"
        if not beside:
            run.console.say(f"checkpoint of step {run.step} was not saved: {error}")
    seconds = time.perf_counter() - began
    if not wait and (line := run.session.stalled(seconds)) is not None:
        run.console.say(line)
    run.stall += seconds
    run.meter.phase("checkpoint", seconds)
    return where


def copy(run: Run) -> None:
    """Copy the state into the pods' memory, between two steps; collective."""
    assert run.session is not None
    began = time.perf_counter()
    tree, rank_tree, meta = state.collect(run, finished=False, durable=False)
    run.session.copy(run.step, tree, rank_tree, meta, began=began)
    seconds = time.perf_counter() - began
    run.stall += seconds
    run.meter.phase("copy", seconds)


def finish(run: Run) -> None:
    """Save the end of the run; a store that fails for a moment is tried again."""
    for attempt in range(_TRIES):
        try:
            save(run, finished=True, wait=True)
        except SaveError as error:
            if attempt == _TRIES - 1:
                raise
            run.console.say(f"last checkpoint, step {run.step}: {error}")
        else:
            if run.session is not None:
                run.session.files.settle()
            return


def leave(run: Run) -> NoReturn:
    """Save at the agreed step and end this process with the code that asks for a restart."""

    def keep(deadline: float | None) -> str | None:
        return save(run, preempted=True, wait=True, deadline=deadline)

    obey(
        run.consensus,
        run.notice,
        run.world,
        run.console.say,
        step=run.step,
        save=None if run.session is None else keep,
    )
