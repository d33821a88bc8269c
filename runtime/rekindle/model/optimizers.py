"""What `configure_optimizers` may return, and optimizer state by parameter name.

With automatic optimization there is one optimizer, or with a warning none: `NoOptimizer` takes its
place, so that the loop need not ask. With manual optimization there is any number.

A scheduler is torch's, or any object with `state_dict`, `load_state_dict` and `optimizer`. How the
latter steps only the script can say, in `lr_scheduler_step`.

torch numbers an optimizer's parameters by position, so that two programs with one parameter more or
less exchange the state of their neighbours without noticing. Here the state is keyed by the
parameter's name, and a difference is an error with the names in it (R11).
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, ReduceLROnPlateau

from rekindle.errors.requirement import RequirementError
from rekindle.model.module import Module
from rekindle.model.step_hooks import overridden
from rekindle.strategies.sharding import like

_FORMS = (
    "Return an optimizer, {'optimizer': o, 'lr_scheduler': s}, or ([o], [s]), where s is a "
    "scheduler or {'scheduler': s, 'interval': 'epoch' or 'step', 'frequency': 1, 'monitor': name},"
    " or OptimizerConfig(optimizer=o, schedulers=[SchedulerSpec(scheduler=s)])."
)


@dataclass(frozen=True, kw_only=True)
class SchedulerSpec:
    """When a learning-rate scheduler steps, and on what.

    `frequency` counts epochs, or with ``interval="step"`` batches of the epoch after which an
    optimizer step comes.
    """

    scheduler: Any
    interval: Literal["epoch", "step"] = "epoch"
    frequency: int = 1
    monitor: str | None = None
    """Metric that a scheduler on a plateau looks at."""
    on_missing: Literal["error", "warn", "skip"] = "error"
    """What to do when the metric was not logged before the scheduler is due."""
    name: str | None = None
    reduce_on_plateau: bool | None = None
    """Whether it steps on the metric; None is for `ReduceLROnPlateau` only, and becomes a bool."""

    def __post_init__(self) -> None:
        if self.reduce_on_plateau is None:
            plateau = isinstance(self.scheduler, ReduceLROnPlateau)
            object.__setattr__(self, "reduce_on_plateau", plateau)

    @property
    def strict(self) -> bool:
        """Whether a metric that was not logged is an error."""
        return self.on_missing == "error"

    def step(
        self,
        count: int,
        metrics: Mapping[str, Any],
        call: Callable[[Any, Any], Any] | None = None,
    ) -> None:
        """Step if `count` (of epochs or steps done) is due; raises KeyError for a lost metric.

        `call` does it instead, with the scheduler and the metric: a module's `lr_scheduler_step`.
        """
        if count % self.frequency:
            return
        if not self.reduce_on_plateau:
            if call is None:
                self.scheduler.step()
            else:
                call(self.scheduler, None)
            return
        if self.monitor is not None and self.monitor in metrics:
            if call is None:
                self.scheduler.step(float(metrics[self.monitor]))
            else:
                call(self.scheduler, metrics[self.monitor])
            return
        known = ", ".join(sorted(metrics)) or "none yet"
        message = f"lr_scheduler monitors {self.monitor!r}, which was not logged; known are {known}"
        if self.on_missing == "error":
            raise KeyError(f"{message}. Log it, or set on_missing='skip'")
        if self.on_missing == "warn":
            warnings.warn(f"{message}; the scheduler was not stepped", stacklevel=2)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """What `configure_optimizers` may return: an optimizer, and schedulers with their cadence."""

    optimizer: torch.optim.Optimizer
    schedulers: Sequence[Any] = ()
    """Schedulers, or `SchedulerSpec`s where a cadence is to be named."""


@dataclass(frozen=True, kw_only=True)
class Optimization:
    """The optimizers of a run and their schedulers."""

    optimizers: tuple[torch.optim.Optimizer, ...]
    schedulers: tuple[SchedulerSpec, ...] = ()


class NoOptimizer(torch.optim.Optimizer):
    """Stands where `configure_optimizers` returned None: changes nothing."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__([{"params": list(module.parameters())}], {"lr": 0.0})

    def step(self, closure: Any = None) -> Any:
        """Evaluate the loss."""
        return None if closure is None else closure()


def automatic(module: Module) -> bool:
    """Whether the trainer owns backward pass and optimizer step."""
    return bool(module.automatic_optimization and module.automatic)


def configure(module: Module) -> Optimization:
    """Call `configure_optimizers` and understand what it returned; TypeError otherwise."""
    manual = not automatic(module)
    name = f"{type(module).__name__}.configure_optimizers"
    try:
        found = module.configure_optimizers()
    except ValueError as error:
        # What torch says of the parameters that require a gradient, when none does.
        if "empty parameter list" not in str(error) or not frozen(module):
            raise
        raise ValueError(f"{name}: {error}: {frozen(module)}") from error
    if found is None and not manual:
        warnings.warn(
            f"{name} returned None: training runs without an optimizer. Gradients are computed and "
            f"add up until a validation clears them, and nothing changes the parameters.",
            stacklevel=2,
        )
        found = NoOptimizer(module)
    optimizers, schedulers = _taken_apart(found, name)
    if not manual and len(optimizers) > 1:
        raise TypeError(
            f"{name} returned {len(optimizers)} optimizers; automatic optimization has one. Use "
            f"parameter groups: AdamW([{{'params': ..., 'lr': ...}}, ...]), or set "
            f"automatic_optimization = False and step them in training_step."
        )
    if not manual and not optimizers:
        raise TypeError(f"{name} returned {type(found).__name__} without an optimizer. {_FORMS}")
    for optimizer in optimizers:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"{name} returned {type(optimizer).__name__}. {_FORMS}")
        _check_parameters(module, optimizer, name)
        if not manual and any(hasattr(p, "placements") for p in module.parameters()):
            _one_by_one(module, optimizer)
    specs = tuple(_spec(scheduler, name, module, manual=manual) for scheduler in schedulers)
    for spec in specs:
        if getattr(spec.scheduler, "optimizer", None) not in optimizers:
            raise ValueError(
                f"{name}: {type(spec.scheduler).__name__} belongs to an optimizer that was not "
                f"returned. Return the optimizer that it was made with."
            )
    return Optimization(optimizers=tuple(optimizers), schedulers=specs)


def frozen(module: torch.nn.Module) -> str | None:
    """Why nothing can be trained, for people; None when a parameter requires a gradient."""
    parameters = list(module.parameters())
    if any(parameter.requires_grad for parameter in parameters):
        return None
    if not parameters:
        return f"{type(module).__name__} has no parameters. Assign its layers in __init__."
    return (
        f"none of the {len(parameters)} parameters of {type(module).__name__} requires one. Set "
        f"requires_grad = True for those to be trained (unfreeze() does it for all)."
    )


def _taken_apart(found: Any, name: str) -> tuple[list[Any], list[Any]]:
    """Optimizers and schedulers of any allowed form."""
    if found is None:
        return [], []
    if isinstance(found, OptimizerConfig):
        return [found.optimizer], list(found.schedulers)
    if isinstance(found, Mapping):
        unknown = set(found) - {"optimizer", "lr_scheduler", "monitor"}
        if unknown:
            _ignored(f"{name} returned", unknown)
        if "optimizer" not in found:
            raise TypeError(f"{name} returned a mapping with keys {sorted(found)}. {_FORMS}")
        scheduler = found.get("lr_scheduler")
        if scheduler is None:
            return [found["optimizer"]], []
        if "monitor" in found and not isinstance(scheduler, Mapping | SchedulerSpec):
            scheduler = {"scheduler": scheduler, "monitor": found["monitor"]}
        return [found["optimizer"]], [scheduler]
    if isinstance(found, list | tuple):
        if len(found) == 2 and isinstance(found[0], list | tuple):
            second = found[1]
            return list(found[0]), list(second) if isinstance(second, list | tuple) else [second]
        if all(isinstance(one, Mapping | OptimizerConfig) for one in found):
            parts = [_taken_apart(one, name) for one in found]
            return [o for own, _ in parts for o in own], [s for _, own in parts for s in own]
        return list(found), []
    return [found], []


def _one_by_one(module: Module, optimizer: torch.optim.Optimizer) -> None:
    """Have no batched operations over shares on different meshes: torch has none for them."""
    if len({getattr(parameter, "device_mesh", None) for parameter in module.parameters()}) > 1:
        for group in optimizer.param_groups:
            if "foreach" in group:
                group["foreach"] = False


def _check_parameters(module: Module, optimizer: torch.optim.Optimizer, name: str) -> None:
    own = {id(parameter) for parameter in module.parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if id(parameter) not in own:
                raise ValueError(
                    f"{name}: the optimizer has a parameter of shape {list(parameter.shape)} that "
                    f"is not in the module. Register it (assign its module in __init__)."
                )


def _ignored(where: str, keys: set[Any], why: str = "they are ignored; remove them") -> None:
    told = ", ".join(sorted(map(repr, keys)))
    warnings.warn(f"{where} a mapping with the keys {told}: {why}.", RuntimeWarning, stacklevel=2)


def _spec(given: Any, name: str, module: Module, *, manual: bool) -> SchedulerSpec:
    spec = _understood(given, f"{name}: lr_scheduler is", manual=manual)
    kind = type(spec.scheduler).__name__
    if not isinstance(spec.scheduler, LRScheduler):
        lacks = [
            each
            for each in ("state_dict", "load_state_dict", "optimizer")
            if not hasattr(spec.scheduler, each)
        ]
        if lacks:
            raise TypeError(
                f"{name}: {kind} is not an lr scheduler: it has no {', '.join(lacks)}. Use one of "
                f"torch.optim.lr_scheduler, or give the class what is missing."
            )
        if not manual and not _steps_itself(module):
            raise TypeError(
                f"{name}: {kind} is no LRScheduler of torch, so how it steps must be said: "
                f"override lr_scheduler_step(self, scheduler, metric) in {type(module).__name__}."
            )
    if spec.interval not in ("epoch", "step") or type(spec.frequency) is not int:
        raise ValueError(
            f"{name}: interval={spec.interval!r}, frequency={spec.frequency!r}: interval is "
            f"'epoch' or 'step', frequency an integer"
        )
    if spec.on_missing not in ("error", "warn", "skip"):
        raise ValueError(
            f"{name}: on_missing={spec.on_missing!r}; allowed are 'error', 'warn', 'skip'"
        )
    if spec.frequency < 1:
        raise ValueError(f"{name}: frequency={spec.frequency} must be at least 1")
    if not manual:
        _check_cadence(spec, name, module)
    return spec


def _understood(given: Any, where: str, *, manual: bool) -> SchedulerSpec:
    """A scheduler of any allowed form."""
    if isinstance(given, SchedulerSpec):
        return given
    if not isinstance(given, Mapping):
        return SchedulerSpec(scheduler=given)
    allowed = {*(field.name for field in fields(SchedulerSpec)), "strict"}
    if "scheduler" not in given:
        raise TypeError(
            f"{where} a mapping without 'scheduler'; allowed keys are {sorted(allowed)}"
        )
    unknown, unused = set(given) - allowed, set(given) & {"reduce_on_plateau", "monitor", "strict"}
    if unknown:
        _ignored(where, unknown)
    if manual and unused:
        _ignored(where, unused, "they are ignored with manual optimization; call step() yourself")
    values = {key: value for key, value in given.items() if key in allowed - {"strict"}}
    if not given.get("strict", True):
        values.setdefault("on_missing", "warn")
    return SchedulerSpec(**values)


def _check_cadence(spec: SchedulerSpec, name: str, module: Module) -> None:
    """What only matters where the trainer steps the scheduler."""
    kind = type(spec.scheduler).__name__
    if spec.reduce_on_plateau and spec.monitor is None:
        raise ValueError(
            f"{name}: {kind} steps on a metric and needs 'monitor': the name of a logged one"
        )
    plateau = isinstance(spec.scheduler, ReduceLROnPlateau)
    if plateau and not spec.reduce_on_plateau and not _steps_itself(module):
        raise ValueError(
            f"{name}: {kind} with reduce_on_plateau=False would be stepped without a metric. Leave "
            f"reduce_on_plateau out, or override lr_scheduler_step."
        )
    if isinstance(spec.scheduler, OneCycleLR) and spec.interval == "epoch":
        warnings.warn(
            f"{name}: OneCycleLR steps by epochs; 'interval': 'step' is what it is made for.",
            RuntimeWarning,
            stacklevel=2,
        )


def _steps_itself(module: Module) -> bool:
    return overridden(module, "lr_scheduler_step") is not None


def names(module: torch.nn.Module) -> dict[int, str]:
    """Identity of each parameter -> its name."""
    return {id(parameter): plain(name) for name, parameter in module.named_parameters()}


def plain(name: str) -> str:
    """A parameter's name without what `torch.compile` puts into it."""
    return name.replace("_orig_mod.", "")


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


def restore_all(
    optimizers: Sequence[torch.optim.Optimizer],
    module: torch.nn.Module,
    saved: Sequence[dict[str, Any]],
    step: int,
) -> None:
    """Bring all optimizers back; raises R11 when they are other ones."""
    if len(saved) != len(optimizers):
        raise RequirementError(
            f"R11 checkpoint step {step} has {len(saved)} optimizers, the script has "
            f"{len(optimizers)}. Return the same ones, or resume='never'."
        )
    for optimizer, own in zip(optimizers, saved, strict=True):
        restore(optimizer, module, own, step)


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
    parameters = {named[id(p)]: p for group in optimizer.param_groups for p in group["params"]}
    optimizer.load_state_dict(
        {
            "state": {
                positions[name]: {key: like(v, parameters[name]) for key, v in values.items()}
                for name, values in saved["state"].items()
            },
            "param_groups": groups,
        }
    )
