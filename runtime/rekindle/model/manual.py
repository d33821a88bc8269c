"""Manual optimization: a module that owns its update rule.

With ``automatic_optimization = False`` (or ``automatic = False``) `training_step` calls the
optimizers itself::

    def training_step(self, batch, batch_idx):
        critic, generator = self.optimizers()
        self.step(critic, self.critic_loss(batch))
        self.step(generator, self.generator_loss(batch))

What `self.optimizers()` gives looks like the optimizer and steps through the trainer, which sums
gradients over all ranks, unscales them and counts. All ranks make the same calls in the same order;
a rank that has no batch left at the end of an epoch repeats one with weight zero.

One batch on each process is one step of the run, so the global batch is the loader's batch size
times the number of processes, or `global_batch_size`. It stays as it is on fewer processes: a step
then takes several calls of `training_step` on each, each with an update of its own.

Gradients that are added up over several batches are part of a checkpoint made meanwhile. Those that
a script clears before it steps are not, so that its checkpoints are no larger for them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, Protocol

import torch


class Updating(Protocol):
    """What a module's manual methods need of the trainer; `training.update.Update` has it."""

    optimizers: tuple[torch.optim.Optimizer, ...]

    def backward(self, loss: torch.Tensor, *arguments: Any, **options: Any) -> None:
        """Add this rank's gradients."""

    def step(self, index: int, closure: Any = None) -> Any:
        """Step an optimizer on the gradients of all ranks."""

    def zero_grad(self, index: int, set_to_none: bool = True) -> None:
        """Clear an optimizer's gradients."""

    def clip(self, index: int, value: float, algorithm: Literal["norm", "value"]) -> None:
        """Clip an optimizer's gradients."""


class ManualOptimizer:
    """An optimizer as `training_step` sees it; everything not defined here is the optimizer's."""

    def __init__(self, optimizer: torch.optim.Optimizer, updating: Updating, index: int) -> None:
        self.optimizer = optimizer
        self._updating = updating
        self._index = index
        self._before: list[tuple[torch.nn.Parameter, bool]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.optimizer, name)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step on the gradients of all ranks; see `training.update` for what that includes."""
        return self._updating.step(self._index, closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of this optimizer's parameters."""
        self._updating.zero_grad(self._index, set_to_none)

    def clip(self, value: float, algorithm: Literal["norm", "value"] = "norm") -> None:
        """Clip this optimizer's gradients, as they are over all ranks."""
        self._updating.clip(self._index, value, algorithm)

    def toggle(self) -> None:
        """Let only this optimizer's parameters require gradients, until `untoggle`."""
        own = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        for optimizer in self._updating.optimizers:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    if id(parameter) not in own:
                        self._before.append((parameter, parameter.requires_grad))
                        parameter.requires_grad = False

    def untoggle(self) -> None:
        """Give the other optimizers' parameters their gradients back."""
        while self._before:
            parameter, before = self._before.pop()
            parameter.requires_grad = before

    @contextmanager
    def toggle_model(self) -> Iterator[None]:
        """`toggle` inside, `untoggle` afterwards."""
        self.toggle()
        try:
            yield
        finally:
            self.untoggle()

    def __repr__(self) -> str:
        return f"ManualOptimizer({self.optimizer!r})"


class Manual:
    """The part of `rekindle.Module` that is for manual optimization."""

    automatic_optimization: bool = True
    """Whether the trainer owns backward pass and optimizer step; set it to False in `__init__`."""
    automatic: bool = True
    """A shorter name of the same; either one can say False."""

    _updating: "Updating | None" = None
    _schedulers: tuple[Any, ...] = ()
    _wrapped: tuple[ManualOptimizer, ...] = ()

    def own_update(self, updating: "Updating | None", schedulers: tuple[Any, ...] = ()) -> None:
        """Connect with the optimizers of a run, or with none (called by the trainer)."""
        wrapped = (
            ()
            if updating is None
            else tuple(ManualOptimizer(o, updating, i) for i, o in enumerate(updating.optimizers))
        )
        # object.__setattr__: nn.Module's own walks over parameters and modules first.
        object.__setattr__(self, "_updating", updating)
        object.__setattr__(self, "_schedulers", schedulers)
        object.__setattr__(self, "_wrapped", wrapped)

    def _connected(self, call: str, *, reading: bool = False) -> Updating:
        if self._updating is None:
            raise RuntimeError(
                f"R10 {type(self).__name__}.{call}() used outside of fit(). Call it in "
                f"training_step, or in a hook after on_fit_start."
            )
        if not reading and self.automatic_optimization and self.automatic:
            raise RuntimeError(
                f"{type(self).__name__}.{call}() is for manual optimization. Set "
                f"self.automatic_optimization = False in __init__, or return the loss."
            )
        return self._updating

    def optimizers(self, use_pl_optimizer: bool = True) -> Any:
        """The optimizer, or all of them in a list when there are several.

        With automatic optimization they are there to be looked at: they refuse to step. With
        `use_pl_optimizer` False they are torch's own, without the sum over ranks.
        """
        updating = self._connected("optimizers", reading=True)
        if not use_pl_optimizer:
            own = list(updating.optimizers)
            return own[0] if len(own) == 1 else own
        return self._wrapped[0] if len(self._wrapped) == 1 else list(self._wrapped)

    def lr_schedulers(self) -> Any:
        """The scheduler, a list of several, or None; in the manual form you step them yourself."""
        self._connected("lr_schedulers", reading=True)
        found = list(self._schedulers)
        return (found[0] if len(found) == 1 else found) if found else None

    def manual_backward(self, loss: torch.Tensor, *arguments: Any, **options: Any) -> None:
        """Add the gradients of a loss, the mean over the batch; takes what `backward` takes."""
        self._connected("manual_backward").backward(loss, *arguments, **options)

    def step(
        self,
        optimizer: "ManualOptimizer | torch.optim.Optimizer",
        loss: torch.Tensor,
        *,
        clip: float | None = None,
    ) -> None:
        """One whole update: clear gradients, backward, clip to norm `clip`, step."""
        chosen = self._of(optimizer, "step")
        chosen.zero_grad()
        self.manual_backward(loss)
        if clip is not None:
            chosen.clip(clip)
        chosen.step()

    def clip_gradients(
        self,
        optimizer: "ManualOptimizer | torch.optim.Optimizer",
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: Literal["norm", "value"] | None = None,
    ) -> None:
        """Clip the gradients of one optimizer, between backward pass and its step.

        What is left out is as the trainer's flags say; 0 clips nothing. Raises ValueError for a
        value beside the trainer's own.
        """
        chosen = self._of(optimizer, "clip_gradients", reading=True)
        flags = self.trainer.flags  # type: ignore[attr-defined]
        for name, given, default in (
            ("gradient_clip_val", gradient_clip_val, None),
            ("gradient_clip_algorithm", gradient_clip_algorithm, "norm"),
        ):
            flag = getattr(flags, name)
            if given is not None and flag not in (default, given):
                raise ValueError(
                    f"{type(self).__name__}.clip_gradients({name}={given!r}) beside "
                    f"Trainer({name}={flag!r}): use one of them"
                )
        value = flags.gradient_clip_val if gradient_clip_val is None else gradient_clip_val
        if value:
            chosen.clip(value, gradient_clip_algorithm or flags.gradient_clip_algorithm)

    def toggle_optimizer(self, optimizer: "ManualOptimizer | torch.optim.Optimizer") -> None:
        """Let only this optimizer's parameters require gradients."""
        self._of(optimizer, "toggle_optimizer").toggle()

    def untoggle_optimizer(self, optimizer: "ManualOptimizer | torch.optim.Optimizer") -> None:
        """Undo `toggle_optimizer`."""
        self._of(optimizer, "untoggle_optimizer").untoggle()

    @contextmanager
    def toggled_optimizer(
        self, optimizer: "ManualOptimizer | torch.optim.Optimizer"
    ) -> Iterator[None]:
        """`toggle_optimizer` inside, `untoggle_optimizer` afterwards."""
        with self._of(optimizer, "toggled_optimizer").toggle_model():
            yield

    def _of(
        self,
        optimizer: "ManualOptimizer | torch.optim.Optimizer",
        call: str,
        *,
        reading: bool = False,
    ) -> ManualOptimizer:
        self._connected(call, reading=reading)
        for wrapped in self._wrapped:
            if optimizer is wrapped or optimizer is wrapped.optimizer:
                return wrapped
        name = type(optimizer).__name__
        raise ValueError(
            f"{type(self).__name__}.{call}() got a {name} that configure_optimizers did not "
            f"return; use one of self.optimizers()"
        )
