"""What `configure_optimizers` may return, and optimizer state by parameter name.

torch numbers an optimizer's parameters by position, so that two programs with one parameter more or
less exchange the state of their neighbours without noticing. Here the state is keyed by the
parameter's name, and a difference is an error with the names in it (R11).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from rekindle.module import Module
from rekindle.requirement import RequirementError

_FORMS = (
    "Return an optimizer, {'optimizer': o, 'lr_scheduler': s}, or ([o], [s]), where s is a "
    "scheduler or {'scheduler': s, 'interval': 'epoch' or 'step', 'frequency': 1, 'monitor': name}."
)


@dataclass(frozen=True, kw_only=True)
class SchedulerSpec:
    """When a learning-rate scheduler steps, and on what."""

    scheduler: Any
    interval: Literal["epoch", "step"] = "epoch"
    frequency: int = 1
    monitor: str | None = None
    """Metric that a `ReduceLROnPlateau` looks at."""
    name: str | None = None

    @property
    def plateau(self) -> bool:
        """Whether it steps on a metric."""
        return isinstance(self.scheduler, ReduceLROnPlateau)

    def step(self, count: int, metrics: Mapping[str, Any]) -> None:
        """Step if `count` (of epochs or steps done) is due; raises KeyError for a lost metric."""
        if count % self.frequency:
            return
        if not self.plateau:
            self.scheduler.step()
            return
        if self.monitor is None or self.monitor not in metrics:
            known = ", ".join(sorted(metrics)) or "none yet"
            raise KeyError(
                f"lr_scheduler monitors {self.monitor!r}, which was not logged; known are {known}"
            )
        self.scheduler.step(float(metrics[self.monitor]))


@dataclass(frozen=True, kw_only=True)
class Optimization:
    """The one optimizer and its schedulers."""

    optimizer: torch.optim.Optimizer
    schedulers: tuple[SchedulerSpec, ...] = ()

    @property
    def by_step(self) -> tuple[SchedulerSpec, ...]:
        """Schedulers that step with the optimizer."""
        return tuple(s for s in self.schedulers if s.interval == "step")

    @property
    def by_epoch(self) -> tuple[SchedulerSpec, ...]:
        """Schedulers that step at the end of an epoch."""
        return tuple(s for s in self.schedulers if s.interval == "epoch")


def configure(module: Module) -> Optimization:
    """Call `configure_optimizers` and understand what it returned; TypeError otherwise."""
    if not module.automatic_optimization:
        raise ValueError(
            f"{type(module).__name__}.automatic_optimization is False; this version trains with "
            f"automatic optimization only. Remove the assignment and return the loss."
        )
    found = module.configure_optimizers()
    name = f"{type(module).__name__}.configure_optimizers"
    schedulers: list[Any] = []
    if isinstance(found, Mapping):
        unknown = set(found) - {"optimizer", "lr_scheduler", "monitor"}
        if "optimizer" not in found or unknown:
            raise TypeError(f"{name} returned a mapping with keys {sorted(found)}. {_FORMS}")
        if found.get("lr_scheduler") is not None:
            scheduler = found["lr_scheduler"]
            if "monitor" in found and not isinstance(scheduler, Mapping):
                scheduler = {"scheduler": scheduler, "monitor": found["monitor"]}
            schedulers = [scheduler]
        found = found["optimizer"]
    elif isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], list | tuple):
        found, listed = found
        schedulers = list(listed) if isinstance(listed, list | tuple) else [listed]
    if isinstance(found, list | tuple) and len(found) == 1:
        found = found[0]
    if isinstance(found, list | tuple):
        raise TypeError(
            f"{name} returned {len(found)} optimizers; automatic optimization has one. Use "
            f"parameter groups: AdamW([{{'params': ..., 'lr': ...}}, ...])."
        )
    if not isinstance(found, torch.optim.Optimizer):
        raise TypeError(f"{name} returned {type(found).__name__}. {_FORMS}")
    _check_parameters(module, found, name)
    return Optimization(
        optimizer=found, schedulers=tuple(_spec(scheduler, name) for scheduler in schedulers)
    )


def _check_parameters(module: Module, optimizer: torch.optim.Optimizer, name: str) -> None:
    own = {id(parameter) for parameter in module.parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if id(parameter) not in own:
                raise ValueError(
                    f"{name}: the optimizer has a parameter of shape {list(parameter.shape)} that "
                    f"is not in the module. Register it (assign its module in __init__)."
                )


def _spec(given: Any, name: str) -> SchedulerSpec:
    if isinstance(given, Mapping):
        allowed = {"scheduler", "interval", "frequency", "monitor", "name", "reduce_on_plateau"}
        unknown = set(given) - allowed
        if unknown or "scheduler" not in given:
            raise TypeError(
                f"{name}: lr_scheduler has keys {sorted(given)}; allowed are {sorted(allowed)}"
            )
        values = {key: value for key, value in given.items() if key != "reduce_on_plateau"}
        spec = SchedulerSpec(**values)
    else:
        spec = SchedulerSpec(scheduler=given)
    if not isinstance(spec.scheduler, LRScheduler):
        raise TypeError(f"{name}: {type(spec.scheduler).__name__} is not an lr scheduler")
    if spec.interval not in ("epoch", "step") or type(spec.frequency) is not int:
        raise ValueError(
            f"{name}: interval={spec.interval!r}, frequency={spec.frequency!r}: interval is "
            f"'epoch' or 'step', frequency an integer"
        )
    if spec.frequency < 1:
        raise ValueError(f"{name}: frequency={spec.frequency} must be at least 1")
    if spec.plateau and spec.monitor is None:
        raise ValueError(f"{name}: ReduceLROnPlateau needs 'monitor': the name of a logged metric")
    return spec


def names(module: torch.nn.Module) -> dict[int, str]:
    """Identity of each parameter -> its name."""
    return {id(parameter): name for name, parameter in module.named_parameters()}


def nbytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the tensors that the optimizer keeps."""
    tensors = (value for s in optimizer.state.values() for value in s.values())
    return sum(value.nbytes for value in tensors if isinstance(value, torch.Tensor))


def state(optimizer: torch.optim.Optimizer, module: torch.nn.Module) -> dict[str, Any]:
    """The optimizer's state, keyed by parameter name."""
    named = names(module)
    groups = []
    for group in optimizer.param_groups:
        values = {key: value for key, value in group.items() if key != "params"}
        values["params"] = [named[id(parameter)] for parameter in group["params"]]
        groups.append(values)
    return {
        "class": type(optimizer).__name__,
        "groups": groups,
        "state": {named[id(parameter)]: dict(s) for parameter, s in optimizer.state.items()},
    }


def restore(
    optimizer: torch.optim.Optimizer, module: torch.nn.Module, saved: dict[str, Any], step: int
) -> None:
    """Bring the optimizer back; raises R11 when it is another one."""
    named = names(module)
    if saved["class"] != type(optimizer).__name__:
        raise RequirementError(
            f"R11 checkpoint step {step} was trained with {saved['class']}, the script has "
            f"{type(optimizer).__name__}. Use the same optimizer, or resume='never'."
        )
    mine = [[named[id(p)] for p in group["params"]] for group in optimizer.param_groups]
    theirs = [group["params"] for group in saved["groups"]]
    if mine != theirs:
        raise RequirementError(
            f"R11 checkpoint step {step}: the optimizer's parameter groups have changed "
            f"({[len(g) for g in theirs]} parameters in the checkpoint, {[len(g) for g in mine]} "
            f"in the script). Use the same groups, or resume='never'."
        )
    index, groups = 0, []
    positions: dict[str, int] = {}
    for group in saved["groups"]:
        values = {key: value for key, value in group.items() if key != "params"}
        values["params"] = list(range(index, index + len(group["params"])))
        positions |= {name: index + offset for offset, name in enumerate(group["params"])}
        index += len(group["params"])
        groups.append(values)
    optimizer.load_state_dict(
        {
            "state": {positions[name]: dict(value) for name, value in saved["state"].items()},
            "param_groups": groups,
        }
    )
