"""The update rule: what happens between the last backward pass of a step and the next step.

In the automatic form the loop hands over here once per step (`finish`): gradients of all ranks are
complete, are unscaled, shown to the hooks, clipped; the optimizer steps, then the schedulers that
count steps. The order is what makes the parts exact: a norm is that of the true gradient, clipping
follows unscaling, and a scheduler sees the step that was just done. Gradients are there for the
hooks of the step, and cleared at its end, so that nothing of them is part of a checkpoint; where a
module decides itself when they are cleared (`keeps_gradients`) they are.

In the manual form `training_step` does this itself, through `model.manual`, with any number of
optimizers. Each optimizer then has a gradient sum of its own, which runs when the optimizer steps:
between backward pass and step, gradients are those of this rank alone. Gradients that have been
summed and are not cleared before the next backward pass stay on the first rank only, so that the
next sum counts them once.

With a loss scaler, a step whose gradients overflowed changes nothing but the scale. It still counts
as a step of the run, because its samples are consumed; `optimizer_steps` counts the others. Skipped
steps are counted on the device, and read when somebody asks.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist

from rekindle.errors.requirement import RequirementError
from rekindle.model.optimizers import NoOptimizer, Optimization, plain
from rekindle.model.step_hooks import Owned
from rekindle.ranks.deterministic_reduction import LaneSum
from rekindle.ranks.distributed import World
from rekindle.ranks.gradients import GradientSum
from rekindle.strategies.sharding import like

if TYPE_CHECKING:
    from rekindle.training.run import Run
    from rekindle.training.step.uneven_inputs import Lockstep

Clip = Literal["norm", "value"]

_run_backward: Any = getattr(torch.autograd.graph, "_engine_run_backward", None)
"""What `torch.autograd.backward` ends in; 20 µs of a step go into what it does before, for lists of
tensors, subclasses and gradients that are not given. None where torch has it under another name."""
_ACCUMULATING = {"allow_unreachable": True, "accumulate_grad": True}


class Update:
    """Optimizers, scaler and gradient sums of a run, and the order in which they act."""

    def __init__(
        self,
        optimization: Optimization,
        *,
        automatic: bool = True,
        scaler: torch.amp.GradScaler | None = None,
        clip: float | None = None,
        algorithm: Clip = "norm",
        owned: Owned | None = None,
    ) -> None:
        self.owned = owned or Owned()
        """What the module does itself."""
        self.keeps_gradients = False
        """Whether gradients may outlive their step, and belong to a checkpoint (automatic form)."""
        self.kept: Mapping[str, torch.Tensor] | None = None
        """Gradients of a checkpoint that wait for the next step."""
        self.optimizers = optimization.optimizers
        self.schedulers = optimization.schedulers
        self.automatic = automatic
        self.scaler = scaler
        self.norm: torch.Tensor | None = None
        """Norm of the newest step's gradient before clipping, when it is clipped by norm."""
        self.attempts = [0] * len(self.optimizers)
        """Steps of each optimizer, including those that the scaler skipped."""
        self.size, self.samples = 1, 1
        """Samples of the batch that runs, and of the step over all ranks (manual form)."""
        self._skipped: list[int | torch.Tensor] = [0] * len(self.optimizers)
        self._clip, self._algorithm = clip, algorithm
        self._clipped_by = self.owned.configure_gradient_clipping
        self._optimizer = self.optimizers[0] if self.optimizers else None
        self._plain = self._optimizer is not None and _clears_as_torch(self._optimizer)
        """Whether to clear gradients is only to drop them."""
        self.has_optimizer = not isinstance(self._optimizer, NoOptimizer)
        self._one: torch.Tensor | None = None
        """Gradient of a loss with respect to itself, made once."""
        steps = optimization.schedulers if automatic else ()
        self.plateaus = tuple(spec for spec in steps if spec.reduce_on_plateau)
        """Schedulers that step on a metric, which the loop has later."""
        self._scheduled = tuple(spec for spec in steps if not spec.reduce_on_plateau)
        self.gradients: GradientSum | LaneSum | None = None
        """The gradient sum of the automatic form; None in a world of one that needs none."""
        self._sums: tuple[GradientSum, ...] = ()
        """One for each optimizer, in the manual form."""
        self._keeps = True
        self._ready = [False] * len(self.optimizers)
        """Which optimizers' gradients are summed and unscaled (manual form)."""
        self._scaled = [False] * len(self.optimizers)
        """Which optimizers have stepped since the scale was adapted (manual form)."""
        self._fresh = [False] * len(self.optimizers)
        """Which gradients were cleared in this `training_step` before a step (manual form)."""
        self._stepped = [False] * len(self.optimizers)
        """Which optimizers have stepped in this `training_step` (manual form)."""
        self._carries: list[bool | None] = [None] * len(self.optimizers)
        """Whether steps use gradients of before their `training_step`; None until there was one."""
        self.lockstep: Lockstep | None = None
        """Set when all ranks must make equally many forward passes."""
        self._run: Run | None = None

    def sum_over_ranks(
        self, parameters: Sequence[torch.nn.Parameter], *, first: bool, overlap: bool = True
    ) -> None:
        """Sum gradients over all ranks from here on; `parameters` are the module's trainable ones.

        Raises ValueError when two optimizers share a parameter.
        """
        self._keeps = first
        if self.automatic:
            self.gradients = GradientSum(parameters, overlap=overlap)
            return
        seen: set[int] = set()
        groups = []
        for optimizer in self.optimizers:
            own = [p for p in _parameters(optimizer) if p.requires_grad]
            if seen & {id(p) for p in own}:
                raise ValueError(
                    "two optimizers share a parameter; with several processes each parameter "
                    "belongs to one optimizer"
                )
            seen |= {id(p) for p in own}
            groups.append(own)
        self._sums = tuple(GradientSum(own) for own in groups)

    def close(self) -> None:
        """Give the parameters their gradients back."""
        for each in (self.gradients, *self._sums):
            if each is not None:
                each.close()

    def share(self, loss: torch.Tensor, size: int, samples: int) -> torch.Tensor:
        """A micro-batch's part of the step's loss, scaled if there is a scaler (hot path)."""
        if size != samples:
            loss = loss * (size / samples)
        return loss if self.scaler is None else self.scaler.scale(loss)

    def add(self, loss: torch.Tensor, size: int, samples: int) -> None:
        """Add the gradients of a micro-batch's part of the step's loss (hot path).

        The part is given to autograd as the gradient to begin with, so a plain loss needs neither
        a multiplication nor a new tensor with a one in it.
        """
        one, plain = self._one, type(loss) is torch.Tensor and self.scaler is None
        if plain and one is not None and loss.dtype is one.dtype and loss.dim() == one.dim():
            part = one if size == samples else one * (size / samples)
            _run_backward((loss,), (part,), False, False, (), **_ACCUMULATING)
            return
        torch.autograd.backward(self.share(loss, size, samples))
        if plain and _run_backward is not None:
            self._one = torch.ones_like(loss.detach())

    def finish(self, run: "Run") -> bool:
        """End an automatic step: sum, unscale, clip, step, schedule (hot path).

        Returns whether the optimizer was stepped; what the scaler decides is not waited for.
        """
        optimizer = self._optimizer
        assert optimizer is not None
        if self.gradients is not None or self.lockstep is not None:
            self.sum_up(run)
        if not self.usable(run):
            return False
        self.prepare(run)
        if self.scaler is None:
            optimizer.step()
            self.attempts[0] += 1
        else:
            self.step_scaled()
        self.move_on(run)
        return True

    def schedule(self, run: "Run") -> None:
        """The schedulers after a step: those by steps, and with the last one those by epochs.

        As Lightning has it, a `frequency` of steps counts batches of the epoch.
        """
        cursor, own = run.cursor, self.owned.lr_scheduler_step
        for spec in self._scheduled:
            if spec.interval == "step":
                spec.step(cursor.next_batches, {}, own)
            elif cursor.sample + cursor.G >= cursor.length:
                spec.step(cursor.epoch + 1, {}, own)

    def left_out(self, run: "Run") -> None:
        """A step is passed over: an epoch has an end for schedulers all the same."""
        cursor, own = run.cursor, self.owned.lr_scheduler_step
        if cursor.sample + cursor.G >= cursor.length:
            for spec in self._scheduled:
                if spec.interval == "epoch":
                    spec.step(cursor.epoch + 1, {}, own)

    def sum_up(self, run: "Run") -> None:
        """Make this rank's gradients those of all ranks; collective."""
        if self.lockstep is not None:
            self.lockstep.complete(run)
        if self.gradients is not None:
            began = time.perf_counter()
            self.gradients.finish()
            run.meter.comm_wait += time.perf_counter() - began

    def usable(self, run: "Run") -> bool:
        """Unscale, and say whether the optimizer may use the gradients, as far as is known."""
        if self.scaler is not None:
            self._unscale(0)
            return True
        return run.finite is None or run.finite.good(run.step)

    def prepare(self, run: "Run") -> None:
        """Show the gradients to the hooks, and clip them."""
        optimizer = self._optimizer
        for hook in run.hooks.on_before_optimizer_step:
            hook(run.trainer, run.module, optimizer)
        if self._clipped_by is not None:
            algorithm = None if self._clip is None else self._algorithm
            self._clipped_by(
                optimizer, gradient_clip_val=self._clip, gradient_clip_algorithm=algorithm
            )
        elif self._clip is not None:
            # The parameters of the optimizer are clipped, as in Lightning, not those beside it.
            own = _parameters(optimizer) if optimizer and self.has_optimizer else []
            self.norm = clip_gradients(own, self._clip, self._algorithm)

    def step_scaled(self, closure: Any = None) -> Any:
        """Step with the scaler, and adapt the scale to what was found."""
        assert self.scaler is not None
        assert self._optimizer is not None
        looked = bool(self.scaler._found_inf_per_device(self._optimizer))
        result = self._scaled_step(0, closure)
        if looked:
            self.scaler.update()
        return result

    def move_on(self, run: "Run") -> None:
        """The optimizer has stepped: schedulers, and the hooks that follow it."""
        if self._scheduled:
            self.schedule(run)
        for hook in run.hooks.on_after_optimizer_step:
            hook(run.trainer, run.module)

    def clear(self) -> None:
        """Drop the gradients of the step (hot path)."""
        optimizer, gradients = self._optimizer, self.gradients
        if gradients is not None:
            gradients.clear()
        elif optimizer is not None and self._plain:
            # What zero_grad() does, without the 10 µs for an entry in a profiler's trace.
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None
        elif optimizer is not None:
            optimizer.zero_grad()

    def gradients_of(self, module: torch.nn.Module) -> dict[str, torch.Tensor]:
        """The gradients that a checkpoint holds, by parameter."""
        if self.kept is not None:
            return dict(self.kept)
        named = module.named_parameters()
        return {plain(name): p.grad for name, p in named if p.grad is not None}

    def waiting(
        self, module: torch.nn.Module, world: World
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Gradients that wait for a step over the end of `training_step` (manual form).

        Those of this rank where the ranks have different ones, and those of all ranks together;
        what a script clears before it steps is none of them. Collective.
        """
        own = self._waiting_here(module) if self.kept is None else dict(self.kept)
        if not self._sums:
            return {}, own
        named = {plain(name): parameter for name, parameter in module.named_parameters()}
        found: dict[str, torch.Tensor] = {}
        for name in sorted(set().union(*world.gather(sorted(own)))):
            mine = own.get(name)
            found[name] = torch.zeros_like(named[name]) if mine is None else mine.detach().clone()
            dist.all_reduce(found[name])
        return own, found

    def _waiting_here(self, module: torch.nn.Module) -> dict[str, torch.Tensor]:
        chosen: set[int] = set()
        for index, optimizer in enumerate(self.optimizers):
            if self._carries[index] is False and self._stepped[index]:
                continue
            if not self._sums:
                chosen |= {id(parameter) for parameter in _parameters(optimizer)}
            elif self._keeps or not self._ready[index]:
                chosen |= self._sums[index].used(summed=self._ready[index])
        return {
            plain(name): parameter.grad
            for name, parameter in module.named_parameters()
            if parameter.grad is not None and id(parameter) in chosen
        }

    def bring_back(self, ours: Any, of_all: Any, *, world: World, whole: bool) -> None:
        """Have the next step begin with what `waiting` gave; `ours` is None in another world.

        With `whole` each rank has those of all. Otherwise the first rank has them if there is no
        `ours`, and the next sum counts them once.
        """
        chosen = of_all if whole or (ours is None and world.first) else ours
        self.kept = chosen or {}
        self._carries = [None] * len(self.optimizers)

    def release(self, module: torch.nn.Module) -> None:
        """Drop all gradients of a module, in the automatic form those that are not dropped yet."""
        self.kept = None
        if not self.automatic:
            for index in range(len(self.optimizers)):
                self.zero_grad(index)
        elif self.keeps_gradients:
            self.clear()
        owned = {id(p) for optimizer in self.optimizers for p in _parameters(optimizer)}
        for parameter in module.parameters():
            if id(parameter) not in owned and self.gradients is None:
                parameter.grad = None

    def take_back(self, module: torch.nn.Module) -> None:
        """Give the parameters the gradients of a checkpoint, before the first step after it."""
        kept, self.kept = self.kept, None
        if kept is None:
            return
        if self.automatic:
            self.clear()
        for index in range(len(self.optimizers) if not self.automatic else 0):
            self.zero_grad(index)
        for name, parameter in module.named_parameters():
            saved = kept.get(plain(name))
            if saved is None:
                continue
            for each in self._sums:
                each.use(parameter)
            if parameter.grad is None:
                parameter.grad = like(saved, parameter).detach().clone()
            else:
                parameter.grad.copy_(saved)

    def cleared(self, by: Callable[[], Any]) -> None:
        """Have the script clear gradients in its way, which may be not to."""
        by()
        if isinstance(self.gradients, GradientSum):
            # A sum that stays is counted once in the next one: by the first rank.
            self.gradients.cleared(keep=self._keeps)

    def _unscale(self, index: int) -> None:
        optimizer = self.optimizers[index]
        if self.scaler is not None and any(p.grad is not None for p in _parameters(optimizer)):
            self.scaler.unscale_(optimizer)

    def _scaled_step(self, index: int, closure: Any = None) -> Any:
        """Step unless gradients overflowed; the scaler reads that from the device."""
        optimizer, scaler = self.optimizers[index], self.scaler
        assert scaler is not None
        self.attempts[index] += 1
        # A schedule follows the samples, so it also moves on when the very first step is skipped,
        # which torch would take for a mistake in the order of calls.
        optimizer._opt_called = True  # type: ignore[attr-defined]
        found = scaler._found_inf_per_device(optimizer)
        if not found:  # no parameter has a gradient
            return optimizer.step() if closure is None else optimizer.step(closure)
        overflow: torch.Tensor | int = sum(found.values())
        self._skipped[index] = self._skipped[index] + torch.as_tensor(overflow).clamp(max=1.0)
        return scaler.step(optimizer) if closure is None else scaler.step(optimizer, closure)

    # The manual form.

    def begin(self, run: "Run", size: int, samples: int) -> None:
        """The next `training_step` works on `size` of the `samples` of a step."""
        self._run, self.size, self.samples = run, size, samples
        self._fresh = [False] * len(self.optimizers)
        self._stepped = [False] * len(self.optimizers)

    def backward(self, loss: torch.Tensor, *arguments: Any, **options: Any) -> None:
        """Add this rank's gradients of a loss that is a mean over the batch."""
        run = self._run
        if run is None:
            raise RuntimeError("manual_backward() is for training_step, during fit()")
        for index, each in enumerate(self._sums):
            each.reopen(keep=self._keeps or not self._ready[index])
        self._ready = [False] * len(self._ready)
        for hook in run.hooks.on_before_backward:
            hook(run.trainer, run.module, loss)
        share, own = self.share(loss, self.size, self.samples), self.owned.backward
        (torch.autograd.backward if own is None else own)(share, *arguments, **options)
        for hook in run.hooks.on_after_backward:
            hook(run.trainer, run.module)

    def complete(self, index: int) -> None:
        """Make the gradients of one optimizer those of all ranks, unscaled; idempotent."""
        if self._ready[index]:
            return
        if self.scaler is not None and self._scaled[index]:
            self._adapt()
        if self._sums:
            self._sums[index].finish()
        self._unscale(index)
        self._ready[index] = True

    def step(self, index: int, closure: Any = None) -> Any:
        """Step one optimizer on the gradients of all ranks."""
        run, optimizer = self._run, self.optimizers[index]
        if self.automatic:
            raise RuntimeError(
                "the trainer steps this optimizer itself. Set self.automatic_optimization = False "
                "in __init__ to do it in training_step, or only return the loss."
            )
        if run is None:
            raise RuntimeError("an optimizer's step() is for training_step, during fit()")
        if not self._stepped[index]:
            self._carries[index] = self._carries[index] or not self._fresh[index]
            self._stepped[index] = True
        if closure is not None:
            return self._evaluated_step(run, index, closure)
        self.complete(index)
        for hook in run.hooks.on_before_optimizer_step:
            hook(run.trainer, run.module, optimizer)
        if self.scaler is None:
            self.attempts[index] += 1
            return optimizer.step()
        result = self._scaled_step(index)
        self._scaled[index] = True
        return result

    def _evaluated_step(self, run: "Run", index: int, closure: Any) -> Any:
        """A step that evaluates the loss itself, maybe several times (LBFGS)."""
        if run.world.size > 1 or self.scaler is not None:
            raise ValueError(
                "optimizer.step(closure) works on one process without loss scaling only: the "
                "closure's loss is that of one rank. Call self.manual_backward(loss) and then "
                "step() without a closure."
            )
        self.attempts[index] += 1
        return self.optimizers[index].step(closure)

    def zero_grad(self, index: int, set_to_none: bool = True) -> None:
        """Clear the gradients of one optimizer."""
        optimizer = self.optimizers[index]
        self._ready[index] = False
        self._fresh[index] = self._fresh[index] or not self._stepped[index]
        if self._sums:
            self._sums[index].clear()
        else:
            optimizer.zero_grad(set_to_none=set_to_none)

    def clip(self, index: int, value: float, algorithm: Clip) -> None:
        """Clip the gradients of one optimizer, as they are over all ranks."""
        if not self.automatic:
            self.complete(index)
        self.norm = clip_gradients(_parameters(self.optimizers[index]), value, algorithm)

    def end(self) -> None:
        """The manual step is done; adapt the scale to what was found in it."""
        if any(self._scaled):
            self._adapt()

    def _adapt(self) -> None:
        assert self.scaler is not None
        self.scaler.update()
        self._scaled = [False] * len(self._scaled)

    # State.

    @property
    def optimizer_steps(self) -> int:
        """Steps that optimizers really did; reads a counter from the device."""
        return sum(self.attempts) - sum(int(skipped) for skipped in self._skipped)

    def state(self) -> dict[str, Any]:
        """Counters and scale, as plain values."""
        return {
            "attempts": list(self.attempts),
            "skipped": [int(skipped) for skipped in self._skipped],
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
        }

    def restore(self, saved: dict[str, Any], step: int) -> None:
        """Bring counters and scale back; raises R11 when only one side has a scaler."""
        if (saved["scaler"] is None) != (self.scaler is None):
            there, here = ("with", "without") if self.scaler is None else ("without", "with")
            raise RequirementError(
                f"R11 checkpoint step {step} was trained {there} a loss scaler, the script runs "
                f"{here} one. Use the same precision, or resume='never'."
            )
        self.attempts = list(saved["attempts"])
        self._skipped = list(saved["skipped"])
        if self.scaler is not None:
            self.scaler.load_state_dict(saved["scaler"])


def _clears_as_torch(optimizer: torch.optim.Optimizer) -> bool:
    own = type(optimizer).zero_grad is not torch.optim.Optimizer.zero_grad
    return not own and "zero_grad" not in vars(optimizer)


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def clip_gradients(parameters: Any, value: float, algorithm: Clip) -> torch.Tensor | None:
    """Clip gradients in place, sharded ones too; the norm before, if it was needed."""
    parameters = [p for p in parameters if p.grad is not None]
    if algorithm == "value":
        torch.nn.utils.clip_grad_value_(parameters, value)
        return None
    gradients = [p.grad for p in parameters]
    meshes = {getattr(gradient, "device_mesh", None) for gradient in gradients}
    if len(meshes) > 1:
        return _clip_on_meshes(gradients, value)
    norm = torch.nn.utils.get_total_norm(gradients)
    whole = getattr(norm, "full_tensor", None)
    if whole is not None:  # of shards
        norm = whole()
    torch.nn.utils.clip_grads_with_norm_(parameters, value, norm)
    return norm


def _clip_on_meshes(gradients: list[Any], value: float) -> torch.Tensor:
    """Clip by norm where torch's batched operations do not go: shares on different meshes."""
    norms = [torch.linalg.vector_norm(gradient) for gradient in gradients]
    norm: torch.Tensor = torch.linalg.vector_norm(
        torch.stack([getattr(each, "full_tensor", lambda each=each: each)() for each in norms])
    )
    factor = (value / (norm + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        getattr(gradient, "to_local", lambda gradient=gradient: gradient)().mul_(factor)
    return norm
