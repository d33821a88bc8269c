"""Averages of the weights: `EMA` over steps, `SWA` over epochs.

`EMA` keeps a shadow of every floating-point parameter and moves it towards the parameter after each
optimizer step, in one fused call. For evaluation the two are exchanged in place, so the module, the
optimizer and everything that holds a reference see the same tensors as always. A validation may be
cut short by a preemption notice; the state that is saved then is the one that training goes on
with, so `state_dict` puts the weights back first.

`SWA` adds up the weights that each epoch of the last part of training begins with, with a learning
rate of its own, and puts the mean in their place when training ends. The rate is set right before
the optimizer steps, whatever the schedulers have said. Running statistics of BatchNorm layers are
those of other weights, so they are taken again in one pass over the training data, which is no
epoch: nothing is counted and no hook runs.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from rekindle.callback import Callback
from rekindle.data.loader import to_device
from rekindle.errors.misconfiguration import MisconfigurationException
from rekindle.randomness import seed_lane
from rekindle.strategies.sharding import like

if TYPE_CHECKING:
    from rekindle.model.module import Module
    from rekindle.trainer.trainer import Trainer


class EMA(Callback):
    """An exponential moving average of the weights: ``shadow = decay * shadow + (1-decay) * p``."""

    shares = ("shadow",)

    def __init__(
        self,
        decay: float = 0.999,
        every: int = 1,
        start_step: int = 0,
        warmup: bool = False,
        evaluate: bool = True,
    ) -> None:
        """Check the arguments.

        The average moves after every `every`-th step from `start_step` on, and equals the weights
        before; `warmup` begins with a smaller decay, ``(1 + n) / (10 + n)``. With `evaluate`,
        validation, test and prediction see the average.
        """
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"EMA(decay={decay!r}): need a number from 0 up to, not including, 1")
        if type(every) is not int or every < 1:
            raise ValueError(f"EMA(every={every!r}): need a number of steps, at least 1")
        self.decay, self.every, self.start_step, self.warmup = decay, every, start_step, warmup
        self.updates = 0
        self.shadow: dict[str, torch.Tensor] = {}
        """Name of the parameter -> its average."""
        self._pairs: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
        self._swapped = False
        self._step = -1
        if evaluate:
            for phase in ("validation", "test", "predict"):
                setattr(self, f"on_{phase}_start", self._enter)
                setattr(self, f"on_{phase}_end", self._exit)

    def on_fit_start(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Begin with the weights, or with what was restored."""
        self._bind(pl_module)

    def _bind(self, module: torch.nn.Module) -> None:
        named = {n: p.detach() for n, p in module.named_parameters() if p.is_floating_point()}
        saved, self.shadow = self.shadow, {}
        for name, parameter in named.items():
            shadow = saved.get(name)
            if shadow is None or shadow.shape != parameter.shape:
                shadow = parameter.clone()
            self.shadow[name] = _like(parameter, shadow)
        self._pairs = ([_here(s) for s in self.shadow.values()], [_here(p) for p in named.values()])

    def on_after_optimizer_step(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Move the average; the optimizer has just stepped."""
        step = trainer.global_step + 1
        if step == self._step or step % self.every:
            return
        self._step = step
        shadow, weights = self._pairs
        if step <= self.start_step:
            torch._foreach_copy_(shadow, weights)
            return
        decay = self.decay
        if self.warmup:
            decay = min(decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(shadow, weights, 1.0 - decay)
        self.updates += 1

    def _enter(self, trainer: "Trainer", module: torch.nn.Module) -> None:
        if self._pairs[0] and not self._swapped:
            self._swap()

    def _exit(self, trainer: "Trainer", module: torch.nn.Module) -> None:
        if self._swapped:
            self._swap()

    def on_exception(
        self, trainer: "Trainer", pl_module: "Module", exception: BaseException
    ) -> None:
        """Leave the module with its own weights."""
        if self._swapped:
            self._swap()

    def _swap(self) -> None:
        shadow, weights = self._pairs
        with torch.no_grad():
            kept = [weight.clone() for weight in weights]
            torch._foreach_copy_(weights, shadow)
            torch._foreach_copy_(shadow, kept)
        self._swapped = not self._swapped

    @contextmanager
    def averaged(self, module: torch.nn.Module) -> Iterator[None]:
        """Inside, the module has the average as its weights."""
        if self._swapped:
            yield
            return
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state_dict(self) -> dict[str, Any]:
        """The average. In a validation that is cut short, training's weights come back first."""
        if self._swapped:
            self._swap()
        return {"updates": self.updates, "shadow": dict(self.shadow)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.updates, self._step = state_dict["updates"], -1
        if not self._pairs[0]:
            self.shadow = dict(state_dict["shadow"])
            return
        # A run that goes back in its own process; what is bound stays bound.
        for name, saved in state_dict["shadow"].items():
            self.shadow[name].copy_(_like(self.shadow[name], saved))


def _here(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a sharded tensor, in the same memory; any other one as it is."""
    # By its method: importing the class of sharded tensors takes half a second.
    local: torch.Tensor = getattr(tensor, "to_local", lambda: tensor)()
    return local


def _like(parameter: torch.Tensor, saved: torch.Tensor) -> torch.Tensor:
    """A restored tensor where the parameter is, and sharded as it is."""
    saved = saved.to(device=parameter.device, dtype=parameter.dtype, copy=True)
    shared: torch.Tensor = like(saved, parameter)
    return shared


class SWA(Callback):
    """Stochastic weight averaging over the last epochs; needs ``Trainer(max_epochs=...)``."""

    shares = ("average",)

    def __init__(
        self,
        swa_lrs: float | Sequence[float],
        swa_epoch_start: int | float = 0.8,
        annealing_epochs: int = 10,
        annealing_strategy: Literal["cos", "linear"] = "cos",
        avg_fn: Callable[[torch.Tensor, torch.Tensor, Any], torch.Tensor] | None = None,
        device: "torch.device | str | None" = None,
    ) -> None:
        """Check the arguments.

        `swa_lrs` is the learning rate to move to, one for all parameter groups or one for each,
        within `annealing_epochs` epochs. `swa_epoch_start` is the first epoch, counted from 1, or a
        share of all epochs as float: from it on the weights that each epoch begins with are
        averaged. `avg_fn` makes the new average of the old one, the weights and how many are in it
        already; the default is the mean. The average lies where the weights are, whatever `device`
        says.
        """
        rates = [swa_lrs] if isinstance(swa_lrs, int | float) else list(swa_lrs)
        if not rates or not all(rate > 0 for rate in rates):
            raise MisconfigurationException(
                f"SWA(swa_lrs={swa_lrs!r}): need positive learning rates"
            )
        if isinstance(swa_epoch_start, float) and not 0 <= swa_epoch_start <= 1:
            raise MisconfigurationException(
                f"SWA(swa_epoch_start={swa_epoch_start!r}): a share is between 0.0 and 1.0; an "
                f"epoch's number is an integer"
            )
        if type(swa_epoch_start) is int and swa_epoch_start < 1:
            raise MisconfigurationException(
                f"SWA(swa_epoch_start={swa_epoch_start!r}): need an epoch from 1 on, or a share of "
                f"them all, such as 0.0"
            )
        if avg_fn is not None and not callable(avg_fn):
            raise MisconfigurationException(f"SWA(avg_fn={avg_fn!r}): give a function, or None")
        if annealing_strategy not in ("cos", "linear"):
            raise MisconfigurationException(
                f"SWA(annealing_strategy={annealing_strategy!r}): allowed are 'cos' and 'linear'"
            )
        self.rates, self.start = rates, swa_epoch_start
        self.annealing_epochs, self.strategy = annealing_epochs, annealing_strategy
        self.n_averaged = 0
        self.average: dict[str, torch.Tensor] = {}
        """Name of the parameter -> mean so far."""
        self._initial: list[float] = []
        self._combine = avg_fn or self.avg_fn
        self._latest = -1
        """The newest epoch that the mean has."""

    def _first(self, trainer: "Trainer") -> int:
        """The first epoch whose beginning counts, from 0."""
        if not isinstance(self.start, float):
            return max(self.start - 1, 0)
        if trainer.max_epochs < 0:
            raise MisconfigurationException(
                f"SWA(swa_epoch_start={self.start}) is a share of all epochs: give the number of "
                f"the first epoch, or Trainer(max_epochs=...)"
            )
        return max(int(trainer.max_epochs * self.start) - 1, 0)

    @staticmethod
    def pl_module_contains_batch_norm(pl_module: torch.nn.Module) -> bool:
        """Whether there are statistics to take anew."""
        return any(isinstance(module, _BatchNorm) for module in pl_module.modules())

    @staticmethod
    def avg_fn(average: torch.Tensor, weight: torch.Tensor, count: Any) -> torch.Tensor:
        """The mean so far, with one more."""
        mean: torch.Tensor = average + (weight - average) / (count + 1)
        return mean

    def on_fit_start(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Refuse what cannot work before the first step."""
        self._first(trainer)
        for what, count in (
            ("optimizers", len(trainer.optimizers)),
            ("lr schedulers", max(1, len(trainer.lr_scheduler_configs))),
        ):
            if count != 1:
                raise MisconfigurationException(
                    f"SWA needs one optimizer, with one lr scheduler at "
                    f"most; there are {count} {what}"
                )
        groups = len(trainer.optimizers[0].param_groups)
        if len(self.rates) not in (1, groups):
            raise ValueError(
                f"SWA(swa_lrs=...) has {len(self.rates)} learning rates, the optimizer has "
                f"{groups} parameter groups"
            )

    def on_train_epoch_start(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Take the weights that the epoch begins with into the mean, and set its rate."""
        epoch = trainer.current_epoch
        if epoch < self._first(trainer):
            return
        self._set_rates(trainer, trainer.optimizers[0])
        if epoch <= self._latest:
            return
        self._latest = epoch
        with torch.no_grad():
            for name, weight in pl_module.named_parameters():
                if not self.n_averaged or name not in self.average:
                    self.average[name] = weight.detach().clone()
                    continue
                old = _like(weight.detach(), self.average[name])
                count = torch.tensor(self.n_averaged, device=old.device)
                self.average[name] = self._combine(old, weight.detach(), count).clone()
        self.n_averaged += 1

    def on_before_optimizer_step(
        self, trainer: "Trainer", pl_module: "Module", optimizer: torch.optim.Optimizer
    ) -> None:
        """Set the learning rate of the averaging phase, whatever a scheduler has said."""
        if trainer.current_epoch >= self._first(trainer):
            self._set_rates(trainer, optimizer)

    def _set_rates(self, trainer: "Trainer", optimizer: torch.optim.Optimizer) -> None:
        after, groups = trainer.current_epoch - self._first(trainer), optimizer.param_groups
        if not self._initial:
            self._initial = [float(group["lr"]) for group in groups]
        part = min(1.0, after / self.annealing_epochs) if self.annealing_epochs > 0 else 1.0
        if self.strategy == "cos":
            part = (1.0 - math.cos(math.pi * part)) / 2
        rates = self.rates * len(groups) if len(self.rates) == 1 else self.rates
        for group, initial, rate in zip(groups, self._initial, rates, strict=True):
            group["lr"] = initial + (rate - initial) * part

    def on_train_end(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Put the mean in the place of the weights; not when training has ended early."""
        endless = trainer.max_epochs < 0
        if not self.n_averaged or not (endless or trainer.current_epoch == trainer.max_epochs):
            return
        with torch.no_grad():
            for name, weight in pl_module.named_parameters():
                weight.copy_(_like(weight.detach(), self.average[name]))
        if not endless:
            _renew_statistics(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """The mean so far."""
        return {
            "n_averaged": self.n_averaged,
            "average": dict(self.average),
            "initial": list(self._initial),
            "latest": self._latest,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.n_averaged, self._latest = state_dict["n_averaged"], state_dict["latest"]
        self.average, self._initial = dict(state_dict["average"]), list(state_dict["initial"])


StochasticWeightAveraging = SWA


def _renew_statistics(trainer: "Trainer", module: "Module") -> None:
    """Take the running statistics of BatchNorm layers again, over this rank's share of the data."""
    layers = [
        m for m in module.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None
    ]
    run = trainer._run
    if not layers or run is None:
        return
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        # None means a plain mean over all batches.
        layer.momentum = None
    cursor = run.cursor
    run.sampler.cursor = replace(cursor, sample=0)
    # Without a place to log to, this pass leaves no values behind.
    module.attach(trainer, None)
    module.train()
    try:
        with torch.no_grad():
            for index, (_, batch) in enumerate(run.loader):
                seed_lane(cursor.seed, run.step, index)
                if run.world.device.type != "cpu":
                    batch = to_device(batch, run.world.device)  # noqa: PLW2901
                with run.autocast or nullcontext():
                    run.training_step(batch, index)
    finally:
        module.attach(trainer, run.logs)
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
