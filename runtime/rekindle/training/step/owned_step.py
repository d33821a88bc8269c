"""The step of a run whose module, optimizer or hooks take parts of it over.

`optimizer_step` gets a closure that runs `training_step`, clears the gradients of the step before,
and does the backward pass and the sum over all ranks; so do optimizers that evaluate the loss
themselves (LBFGS, SAM). With several micro-batches the closure stands for this rank's last one, the
others have run before. A rank without a micro-batch gets a closure that only takes part in the sum:
the calls that `optimizer_step` makes have to be the same on every rank, and its `batch_idx` is.

`on_train_batch_start` of the module may end the epoch by returning -1. That leaves out the rest of
the epoch's samples: the cursor moves to its end, the step is not counted, nothing of it is used.
On several ranks one answer is enough; they ask each other, which only those pay whose hook returns
something at all.

Gradients live until they are cleared here if somebody looks at that or decides it
(`on_before_zero_grad`, `optimizer_zero_grad`), so they are part of the checkpoint then.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from rekindle.data.loader import Batch
from rekindle.data.sampling.order import Lane, Step
from rekindle.errors.requirement import RequirementError
from rekindle.model.manual import ManualOptimizer
from rekindle.ranks.deterministic_reduction import LaneSum
from rekindle.training.run import Run
from rekindle.training.step.batch_start import answers, begin_batch
from rekindle.training.step.rollback import end_epoch_here, refuse
from rekindle.training.step.step_output import first, loss_in, outputs


def needed(run: Run) -> bool:
    """Whether anybody takes a part of the step over."""
    owned = run.update.owned
    return (
        run.update.keeps_gradients
        or owned.optimizer_step is not None
        or owned.backward is not None
        or evaluates(run.update.optimizers[0])
        or answers(run.module, run.hooks)
    )


def evaluates(optimizer: torch.optim.Optimizer) -> bool:
    """Whether an optimizer wants the closure: LBFGS, and those that are not torch's own."""
    own = type(optimizer).__module__.startswith("torch.optim.")
    return isinstance(optimizer, torch.optim.LBFGS) or not own


@dataclass(frozen=True, kw_only=True)
class _Part:
    """A micro-batch of this rank."""

    lane: Lane
    position: int
    """Among this rank's micro-batches."""
    batch: Any
    ids: Any
    index: int
    """`batch_idx` of the hooks and of `training_step`."""
    last: bool


class _Refused(Exception):
    """The gradients are not to be used; gets out of an optimizer that evaluates the loss."""


class OwnedStep:
    """Takes steps; what `self.optimizers` of a step is driven by (`model.manual.Updating`)."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.optimizers = run.update.optimizers
        self._evaluates = evaluates(self.optimizers[0])
        self._asks = answers(run.module, run.hooks)
        self._optimizer = ManualOptimizer(self.optimizers[0], self, 0)
        self._accumulated = run.flags.accumulate_grad_batches
        self._begin(None)

    def _begin(self, step: Step | None) -> None:
        self._step = step
        self._evaluations = 0
        self._cleared = False
        self._refused = False
        self._result: Any = None
        self._loss: torch.Tensor | None = None

    def __call__(self, step: Step, batches: Iterator[Batch]) -> bool:
        """Take one step; whether the epoch is to end without it."""
        run, update = self._run, self._run.update
        began, before = time.perf_counter(), run.meter.before_optimizer
        run.losses, run.logs.step = [], run.step
        update.take_back(run.module)
        self._begin(step)
        closing: _Part | None = None
        done: list[_Part] = []
        for part in self._parts(step, batches):
            if self._ended(part):
                return end_epoch_here(run)
            if part is None:
                continue
            done.append(part)
            if part.last:
                closing = part
            else:
                output, loss = self._evaluate(part)
                self._tell(part, output, loss)
        closure = self._closing(closing, done)
        own = update.owned.optimizer_step
        if own is None:
            self._optimizer.step(closure)
        else:
            own(run.cursor.epoch, self._batch(step), self._optimizer, closure)
        if not self._evaluations:
            raise RequirementError(
                f"R1 {type(run.module).__name__}.optimizer_step did not run its closure, which "
                f"does training_step and the backward pass. Call "
                f"optimizer.step(closure=optimizer_closure), or optimizer_closure() itself."
            )
        for part in done:
            run.ledger.used(run.cursor.epoch, part.ids)
        if self._refused:
            update.clear()
            refuse(run, step)
            return False
        update.move_on(run)
        took = time.perf_counter() - began
        run.meter.optimizer += max(0.0, took - (run.meter.before_optimizer - before))
        run.meter.durations.append(took)
        run.advance(step, took)
        if closing is not None:
            self._tell(closing, self._result, self._loss)
        if not update.keeps_gradients:
            update.clear()
        self._begin(None)
        return False

    def _parts(self, step: Step, batches: Iterator[Batch]) -> Iterator[_Part | None]:
        """This rank's micro-batches, each as it is begun; None for a round without one."""
        run, world = self._run, self._run.world
        lanes = step.lanes_of(world.rank, world.size)
        for position, lane in enumerate(lanes):
            run.logs.batch_size, run.logs.lane = lane.stop - lane.start, lane.start
            before = time.perf_counter()
            ids, batch = next(batches)
            read = time.perf_counter()
            run.meter.data += read - before
            run.seeds(run.step, lane.index)
            if run.move is not None:
                batch = run.move(batch)
                run.meter.transfer += time.perf_counter() - read
            yield _Part(
                lane=lane,
                position=position,
                batch=batch,
                ids=ids,
                index=lane.start // step.micro,
                last=lane is lanes[-1],
            )
        if self._asks and world.size > 1:
            for _ in range(len(lanes), -(-step.lanes // world.size)):
                yield None

    def _ended(self, part: _Part | None) -> bool:
        """Call the hooks at the start of a batch; whether the module wants the epoch to end."""
        ended = part is not None and begin_batch(self._run, part.batch, part.index)
        if self._asks and self._run.world.size > 1:
            return any(self._run.world.gather(ended))
        return ended

    def _closing(self, part: _Part | None, done: list[_Part]) -> Callable[[], torch.Tensor | None]:
        """The closure of the step: this rank's last micro-batch, and the sum over all ranks."""
        run, step = self._run, self._step
        assert step is not None

        def closure() -> torch.Tensor | None:
            if self._step is not step:
                raise RuntimeError("the closure of a step was called after the step")
            if self._evaluations and step.lanes > run.world.size:
                raise RequirementError(
                    f"R1 {type(self.optimizers[0]).__name__} evaluates the loss again, but of the "
                    f"step's {step.lanes} micro-batches only the last one could be. Set "
                    f"accumulate_grad_batches=1 and a larger batch_size."
                )
            with torch.enable_grad():
                if part is not None:
                    if self._evaluations:
                        run.losses.pop() if self._loss is not None else None
                        self._cleared = False
                    self._result, self._loss = self._evaluate(part)
                elif not self._cleared:
                    self._clear()
                run.update.sum_up(run)
            self._evaluations += 1
            return self._loss

        return closure

    def _evaluate(self, part: _Part) -> tuple[Any, torch.Tensor | None]:
        """Forward and backward pass; what was returned, and the loss without its graph."""
        run, update, module = self._run, self._run.update, self._run.module
        sums, step = update.gradients, self._step
        assert step is not None
        before = time.perf_counter()
        # Rows take the gradient's place before the forward pass already, buckets only with it.
        rows = isinstance(sums, LaneSum)
        number = part.lane.index // run.world.size
        if isinstance(sums, LaneSum):
            if not self._cleared:
                self._clear()
            sums.begin(number, last=part.last)
        if run.unchecked:
            run.unchecked = False
            output = first(run.training_step, run.autocast, module, part.batch, part.index)
        elif run.autocast is None:
            output = run.training_step(part.batch, part.index)
        else:
            with run.autocast:
                output = run.training_step(part.batch, part.index)
        loss = output
        if type(output) is not torch.Tensor:
            even = update.lockstep is not None and run.world.size > 1
            loss = loss_in(output, module, run.logs, even=even)
        if not rows:
            if not self._cleared:
                self._clear()
            if sums is not None:
                sums.begin(number, last=part.last)
        now = time.perf_counter()
        run.meter.forward += now - before
        if loss is None:
            return output, None
        size, samples = part.lane.stop - part.lane.start, step.stop - step.start
        kept = loss.detach()
        run.losses.append((kept, size))
        shown = loss if self._accumulated == 1 else loss / self._accumulated
        for hook in run.hooks.on_before_backward:
            hook(run.trainer, module, shown)
        if update.owned.backward is None:
            update.add(loss, size, samples)
        else:
            update.owned.backward(update.share(loss, size, samples))
        for hook in run.hooks.on_after_backward:
            hook(run.trainer, module)
        run.meter.samples += size
        run.meter.backward += time.perf_counter() - now
        return output, kept

    def _clear(self) -> None:
        """Clear what the step before has left, at the place that hooks know."""
        run, step = self._run, self._step
        assert step is not None
        self._cleared = True
        optimizer = self.optimizers[0]
        for hook in run.hooks.on_before_zero_grad:
            hook(run.trainer, run.module, optimizer)
        own = run.update.owned.optimizer_zero_grad
        if own is None and not run.update.has_optimizer:
            # Nobody clears them but a validation, as in Lightning.
            run.update.cleared(lambda: None)
            return
        if own is None:
            run.update.clear()
            return
        first_of_step = run.cursor.steps * self._accumulated
        run.update.cleared(partial(own, run.cursor.epoch, first_of_step, optimizer))

    def _tell(self, part: _Part, output: Any, loss: torch.Tensor | None) -> None:
        run = self._run
        if loss is not None and self._accumulated != 1:
            loss = loss / self._accumulated
        for hook in run.hooks.on_train_batch_end:
            hook(run.trainer, run.module, outputs(output, loss), part.batch, part.index)

    def _batch(self, step: Step) -> int:
        """The script's number of the batch that completes a step; the same on all ranks."""
        cursor = self._run.cursor
        workers = max(1, cursor.G // (cursor.m * self._accumulated))
        rounds = -(-(step.stop - step.start) // (cursor.m * workers))
        return cursor.steps * self._accumulated + rounds - 1

    # What `self._optimizer` does in `optimizer_step`.

    def step(self, index: int, closure: Callable[[], Any] | None = None) -> Any:
        """Step the optimizer on the gradients of all ranks, which the closure makes."""
        run, update, optimizer = self._run, self._run.update, self.optimizers[index]
        if self._step is None:
            raise RuntimeError("an optimizer's step() is for optimizer_step, during fit()")
        if self._evaluates:
            return self._evaluated(optimizer, closure)
        loss = None if closure is None else closure()
        if not update.usable(run):
            self._refused = True
            return loss
        update.prepare(run)
        if update.scaler is not None:
            update.step_scaled()
        else:
            optimizer.step()
            update.attempts[0] += 1
        return loss

    def _evaluated(
        self, optimizer: torch.optim.Optimizer, closure: Callable[[], Any] | None
    ) -> Any:
        """A step that evaluates the loss itself, maybe several times."""
        run, update = self._run, self._run.update

        def evaluated() -> Any:
            loss = None if closure is None else closure()
            # Once it has begun to change weights, the optimizer has to cope by itself.
            if not update.usable(run) and self._evaluations <= 1:
                raise _Refused
            update.prepare(run)
            return loss

        try:
            answer = optimizer.step(evaluated)
        except _Refused:
            self._refused = True
            return None
        update.attempts[0] += 1
        return answer

    def zero_grad(self, index: int, set_to_none: bool = True) -> None:
        """Clear the gradients now."""
        self._run.update.cleared(partial(self.optimizers[index].zero_grad, set_to_none))

    def clip(self, index: int, value: float, algorithm: Any) -> None:
        """Clip the gradients, which are those of all ranks once the closure has run."""
        self._run.update.clip(index, value, algorithm)

    def backward(self, loss: torch.Tensor, *arguments: Any, **options: Any) -> None:
        """Automatic optimization does the backward pass in the closure."""
        raise RuntimeError("manual_backward() is for manual optimization; return the loss")


def check(run: Run) -> None:
    """Refuse what cannot be had with an optimizer or a module that takes a part over."""
    optimizer, update = run.update.optimizers[0], run.update
    name = type(optimizer).__name__
    if evaluates(optimizer) and update.scaler is not None:
        raise ValueError(
            f"{name} evaluates the loss itself, which loss scaling does not allow: use "
            f"precision='bf16-mixed' or '32-true'."
        )
    if isinstance(optimizer, torch.optim.LBFGS) and (
        run.world.size > 1 or run.cursor.lanes > 1 or isinstance(update.gradients, LaneSum)
    ):
        raise ValueError(
            "LBFGS evaluates the loss as often as it likes, and looks at its value, which is that "
            "of one micro-batch of one process: it works on one process, with "
            "accumulate_grad_batches=1 and the guarantee 'order'."
        )
    if update.owned.optimizer_zero_grad is not None and isinstance(update.gradients, LaneSum):
        raise ValueError(
            f"{type(run.module).__name__}.optimizer_zero_grad and data['guarantee']='bitwise' "
            f"exclude each other: gradients of each micro-batch are kept apart. Use 'order', or "
            f"leave the method out."
        )
