"""`self.log`: values are noted now and looked at later.

Reading a scalar from a GPU makes the host wait for everything queued before it; logging five values
per step that way costs more than a small step itself. So `note` only keeps the detached scalar (a
list append) and its weight. Nothing is read until the log interval, and then all step values
together in one copy. Epoch values are folded into running sums 64 at a time: on a GPU into a
float64 scalar there, on a CPU one after the other into a Python float. That order does not depend
on where the folds fall, so a run that stopped for a checkpoint reports the same bits as one that
did not.

Each name becomes a *slot* when it is first seen: there, once, its key, shape and options are
checked (R6). Slots of training and of validation are kept apart.

Who asks for `on_step` in a validation or a test has each batch's value kept until the end of the
loader's pass, where it goes to all ranks along with the sums; nobody else pays for that.

Over ranks, every value is a part (sum, weight, reduction); parts are gathered as they are, so ranks
may know different names, and a rank without a share of the data simply adds nothing. With the
reductions ``sum``, ``max`` and ``min`` the first number is what they gave so far.
"""

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from rekindle.errors.requirement import RequirementError
from rekindle.model import metrics

Phase = Literal["train", "validation", "test", "predict"]
Reduction = Literal["mean", "sum", "max", "min"]
Part = tuple[float, float, Reduction]
"""What was reduced so far (the weighted sum, for a mean), its weight, and how to go on."""
Pairs = dict[str, Part]
StepPairs = dict[str, tuple[int, Part]]
"""Name -> step, and its part."""

BatchValues = dict[tuple[int, int], dict[str, float]]
"""Loader and number of a batch -> its values by name."""

RESERVED = frozenset({"epoch", "step", "time"})
"""Names that reports use themselves."""
_FORK = "\0"
"""Stands between a name and ``step`` or ``epoch`` where a value has both; no user can log it."""
SUFFIX = "/dataloader_idx_"
"""What stands between a name and the number of the loader that the values are of."""
_FOLD = 64
_REDUCTIONS: dict[str, Reduction] = {
    "mean": "mean",
    "avg": "mean",
    "sum": "sum",
    "max": "max",
    "min": "min",
}
_KNOWN = (torch.mean, torch.sum, torch.max, torch.min, sum, max, min)
# What is not a number stays one, as in torch.
_JOIN: dict[Reduction, Callable[[float, float], float]] = {
    "mean": operator.add,
    "sum": operator.add,
    "max": lambda one, other: one if math.isnan(one) or one >= other else other,
    "min": lambda one, other: one if math.isnan(one) or one <= other else other,
}


@dataclass(slots=True)
class LoggedValue:
    """One logged name."""

    name: str
    on_step: bool
    on_epoch: bool
    prog_bar: bool
    logger: bool
    """Whether loggers get it."""
    metric: str | None
    """Path of the torchmetrics object that is logged, when it is one."""
    reduce: Reduction = "mean"
    loader: int | None = None
    """Which of several loaders the values are of."""
    suffix: str = ""
    """Which of several loaders the values are of, in the reported names."""
    pending: list[torch.Tensor] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    total: float | torch.Tensor = 0.0
    weight: float = 0.0
    step: int = -1
    lane: int = -1
    """Which micro-batch of that step had one last."""
    recent: list[tuple[Any, float]] = field(default_factory=list)
    """Values of the newest step that had any, one for each micro-batch."""
    used: bool = False
    """Whether a metric was logged since the last reduction."""
    forked: bool = False
    """Whether it was logged per step and per epoch, which have names of their own then."""
    told: float = 0.0
    """How much of the weight is in a value that all ranks have already."""
    settled: float | None = None
    """What a metric gave, over all ranks, after the loader that it was logged with."""

    def fold(self) -> None:
        """Add what is pending to the running sum, in order."""
        if not self.pending:
            return
        stacked = torch.stack(self.pending).reshape(-1)
        if self.reduce != "mean":
            for value in stacked.tolist():
                self.add(value, 1.0)
        elif stacked.device.type == "cpu":
            for value, weight in zip(stacked.tolist(), self.weights, strict=True):
                self.total += value * weight
        else:
            weights = torch.tensor(self.weights, dtype=torch.float64, device=stacked.device)
            self.total = self.total + (stacked.double() * weights).sum()
        if self.reduce == "mean":
            self.weight += sum(self.weights)
        self.pending, self.weights = [], []

    def folded(self) -> bool:
        """Whether there is a value to report, with nothing pending any more."""
        self.fold()
        known = bool(self.weight) if self.metric is None else self.settled is not None
        return self.on_epoch and known

    def add(self, value: float, weight: float) -> None:
        """Take one more number into the running value."""
        part = (value * weight if self.reduce == "mean" else value, weight, self.reduce)
        self.total, self.weight, _ = joined(self.part, part)

    @property
    def part(self) -> Part:
        """The running value."""
        if self.settled is not None:
            # All ranks have the same, and of equal numbers the greatest is that number.
            return self.settled, 1.0, "max"
        return float(self.total), self.weight, self.reduce

    def named(self, ending: str) -> str:
        """The name of a value per step or epoch, for `plain` and `reported` to take apart."""
        forked = f"{_FORK}{ending}" if self.forked else ""
        return f"{self.name}{forked}{self.suffix}"


class Logs:
    """What one rank has logged and not reported yet."""

    def __init__(self, module: torch.nn.Module) -> None:
        self._module = module
        self._by_phase: dict[Phase, dict[str, LoggedValue]] = {
            "train": {},
            "validation": {},
            "test": {},
            "predict": {},
        }
        self.phase: Phase = "train"
        self._slots = self._by_phase["train"]
        self.step = 0
        """The optimizer step that runs; set by the loop."""
        self.lane = 0
        """Where in the step the micro-batch begins that runs; set by the loop."""
        self.begun = 0
        """The first step of this epoch; set by the loop."""
        self.alone = True
        """Whether this rank's values are those of all ranks."""
        self.between = False
        """Whether hooks at the end of an epoch run, where values belong to the epoch."""
        self.batch_size = 1
        """Samples in the batch that runs; set by the loop."""
        self.loader: int | None = None
        """Which of several loaders the batch is of; None when there is one."""
        self.by_batch = False
        """Whether a value of an evaluation was logged with `on_step`."""
        self._batches: list[tuple[int, int, str, Any]] = []
        self.told_batches: BatchValues = {}
        """Step values of an evaluation that all ranks have, by loader and number of the batch."""

    def enter(self, phase: Phase) -> None:
        """From here on, values belong to `phase`."""
        self.phase = phase
        self._slots = self._by_phase[phase]

    def note(
        self,
        name: str,
        value: Any,
        prog_bar: bool,
        on_step: bool | None,
        on_epoch: bool | None,
        batch_size: int | None,
        logger: bool = True,
        reduce_fx: Any = "mean",
        each_loader: bool = True,
        metric_attribute: str | None = None,
    ) -> None:
        """Keep a value (hot path)."""
        key = name
        if self.loader is not None and each_loader:
            key = f"{name}{SUFFIX}{self.loader}"
        slot = self._slots.get(key)
        if slot is None:
            slot = self._admit(name, value, on_step, on_epoch, metric_attribute)
            slot.prog_bar, slot.logger = prog_bar, logger
            slot.reduce = reduction(name, reduce_fx)
            slot.suffix, slot.loader = key[len(name) :], self.loader
            self._slots[key] = slot
        weight = self.batch_size if batch_size is None else batch_size
        if slot.metric is not None:
            if slot.settled is not None:
                raise RequirementError(
                    f"R6 metric {name!r} is logged under one name with several loaders. Leave "
                    f"add_dataloader_idx=True, or give it a name for each loader."
                )
            slot.used = True
            if not slot.on_step:
                return
            value = value._forward_cache
            if value is None:
                return
        tensor = type(value) is torch.Tensor
        if tensor:
            value = value.detach()
        if slot.on_step:
            if slot.step != self.step:
                slot.recent = []
                slot.step = self.step
            elif slot.lane == self.lane and slot.recent:
                # Logged again for the same batch: the later value is the batch's.
                slot.recent.pop()
            slot.lane = self.lane
            slot.recent.append((value, weight))
        if slot.on_epoch and slot.metric is None:
            if tensor:
                slot.pending.append(value)
                slot.weights.append(weight)
                if len(slot.pending) >= _FOLD:
                    slot.fold()
            else:
                slot.fold()
                if slot.reduce == "mean":
                    slot.total += float(value) * weight
                    slot.weight += weight
                else:
                    slot.add(float(value), weight)

    def _admit(
        self,
        name: str,
        value: Any,
        on_step: bool | None,
        on_epoch: bool | None,
        metric_attribute: str | None,
    ) -> LoggedValue:
        check_key(name)
        path = None
        if metrics.is_metric(value):
            owned = metrics.owned(self._module)
            paths = [p for p, metric in owned.items() if metric is value]
            if metric_attribute in owned:
                paths = [metric_attribute]
            if not paths:
                raise RequirementError(
                    f"R6 metric {name!r} is a {type(value).__name__} that the module does not own; "
                    f"make it an attribute in __init__, so that its state is moved and saved."
                )
            path = paths[0]
        else:
            check_value(name, value)
        training = self.phase == "train" and not self.between
        # A torchmetrics object is a running value: reporting it per step is opt-in.
        step = (training and path is None) if on_step is None else on_step
        epoch = (not training or path is not None) if on_epoch is None else on_epoch
        if not step and not epoch:
            raise RequirementError(
                f"R6 metric {name!r} is logged with on_step=False and on_epoch=False: nothing "
                f"would be reported. Set one of them."
            )
        if step and self.between:
            raise RequirementError(
                f"R6 metric {name!r} is logged with on_step=True at the end of an epoch, where "
                f"there is no step. Leave on_step out."
            )
        forked = step and epoch
        if self.phase != "train" and step:
            self.by_batch = True
        return LoggedValue(
            name=name,
            on_step=step,
            on_epoch=epoch,
            prog_bar=False,
            logger=True,
            metric=path,
            forked=forked,
        )

    def end_batch(self, number: int, index: int) -> None:
        """A batch of an evaluation has ended that may have step values (see `by_batch`)."""
        for slot in self._slots.values():
            if slot.on_step and slot.recent:
                value, _ = slot.recent[-1]
                self._batches.append((number, index, slot.named("step"), value))
                slot.recent = []

    def batch_now(self) -> dict[str, float]:
        """What the batch of an evaluation that runs has logged with `on_step`, for loggers."""
        found = {
            reported(slot.named("step")): slot.recent[-1][0]
            for slot in self._slots.values()
            if self.phase != "train" and slot.on_step and slot.recent and slot.logger
        }
        return dict(zip(found, _read(list(found.values())), strict=True))

    def take_batches(self) -> "list[tuple[int, int, str, float]]":
        """This rank's step values of an evaluation since the last call; waits for the device."""
        noted, self._batches = self._batches, []
        numbers = _read([value for *_, value in noted])
        return [
            (number, index, name, value)
            for (number, index, name, _), value in zip(noted, numbers, strict=True)
        ]

    def tell_batches(self, parts: "Iterable[Sequence[tuple[int, int, str, float]]]") -> None:
        """Keep what `take_batches` gave on all ranks, for who reports it."""
        for number, index, name, value in sorted(one for part in parts for one in part):
            self.told_batches.setdefault((number, index), {})[name] = value

    def for_loggers(self, batches: BatchValues) -> BatchValues:
        """The step values of an evaluation that loggers get, by their reported names."""
        private = self.private() if batches else set()
        return {
            place: {reported(n): v for n, v in named.items() if reported(n) not in private}
            for place, named in batches.items()
        }

    def take_steps(self, since: int, more: Sequence[tuple[str, Any, float]] = ()) -> StepPairs:
        """The values of the newest step of each name that was logged in step `since` or later.

        The one place where a device is waited for: all values come over in one copy. `more` are
        values (name, value, weight) of the step that ran last.
        """
        found: list[tuple[str, int, Any, float, Reduction]] = [
            (name, self.step, value, weight, "mean") for name, value, weight in more
        ]
        for slot in self._by_phase["train"].values():
            if not slot.on_step or slot.step < since:
                continue
            name, how = slot.named("step"), slot.reduce
            found += [(name, slot.step, value, weight, how) for value, weight in slot.recent]
        numbers = _read([value for _, _, value, _, _ in found])
        pairs: StepPairs = {}
        for (name, step, _, weight, how), number in zip(found, numbers, strict=True):
            part: Part = (number * weight if how == "mean" else number, weight, how)
            pairs[name] = (step, joined(pairs[name][1], part) if name in pairs else part)
        return pairs

    def epoch_pairs(self, phase: Phase) -> Pairs:
        """The running sums of a phase's epoch values."""
        pairs: Pairs = {}
        for slot in self._by_phase[phase].values():
            if slot.folded():
                pairs[slot.named("epoch")] = slot.part
        return pairs

    def epoch_metrics(self, phase: Phase) -> dict[str, str]:
        """Name -> path of the torchmetrics objects that were logged in a phase."""
        return {
            slot.named("epoch"): slot.metric
            for slot in self._by_phase[phase].values()
            if slot.metric is not None and slot.on_epoch and slot.used
        }

    def now(self) -> dict[str, float]:
        """What can be read of the values that were noted; waits for the device, not for ranks.

        In training the newest step values of this epoch, as this rank has them. At the end of an
        epoch its values so far, where they are not those of many ranks.
        """
        if not self.between:
            return newest([self.take_steps(self.begun)]) if self.phase == "train" else {}
        slots = self._slots.values()
        pairs = {
            s.named("epoch"): s.part
            for s in slots
            if s.folded() and (s.weight != s.told or s.settled is not None)
        }
        values = means([pairs])
        if self.alone:
            owned = metrics.owned(self._module)
            for name, path in self.epoch_metrics(self.phase).items():
                if name not in values:
                    values[name] = metrics.value_of(owned[path])
        return values

    def settle(self, phase: Phase, values: dict[str, float]) -> None:
        """A loader has ended: what its metrics gave is their value, whatever is added later."""
        for slot in self._by_phase[phase].values():
            if slot.metric is not None and slot.used and slot.settled is None:
                slot.settled = values[slot.named("epoch")]

    def tell(self, phase: Phase) -> None:
        """All ranks have the values of a phase's epoch so far."""
        for slot in self._by_phase[phase].values():
            slot.told = slot.weight

    def about(self, name: str) -> tuple[bool, bool]:
        """Whether a plain name is for the progress bar, and whether it is for loggers."""
        slots = (self._slots, *self._by_phase.values())
        found = next((own[name] for own in slots if name in own), None)
        return (False, True) if found is None else (found.prog_bar, found.logger)

    def clear(self, phase: Phase) -> None:
        """Begin a new epoch of a phase."""
        for slot in self._by_phase[phase].values():
            slot.pending, slot.weights, slot.total, slot.weight = [], [], 0.0, 0.0
            slot.used, slot.told, slot.settled = False, 0.0, None
            if phase != "train":
                slot.recent = []
        if phase != "train":
            self._batches, self.told_batches = [], {}

    def loaders(self, phase: Phase) -> dict[str, int | None]:
        """Reported name -> which of several loaders its values are of."""
        slots = self._by_phase[phase].values()
        return {reported(slot.named("epoch")): slot.loader for slot in slots}

    def prog_bar(self) -> set[str]:
        """Reported names that were logged with `prog_bar`."""
        return self._reported(lambda slot: slot.prog_bar)

    def private(self) -> set[str]:
        """Reported names that were logged with `logger` False."""
        return self._reported(lambda slot: not slot.logger)

    def _reported(self, chosen: Callable[[LoggedValue], bool]) -> set[str]:
        return {
            name
            for slots in self._by_phase.values()
            for slot in slots.values()
            if chosen(slot)
            for ending in ("step", "epoch")
            for name in (slot.name + slot.suffix, reported(slot.named(ending)))
        }

    def state(self) -> dict[str, dict[str, Any]]:
        """The running epoch values of training and its newest step values, as plain values."""
        found: dict[str, dict[str, Any]] = {}
        for name, slot in self._by_phase["train"].items():
            slot.fold()
            running = slot.on_epoch and (slot.weight or slot.used)
            if not running and not slot.recent:
                continue
            found[name] = {
                "total": float(slot.total),
                "weight": float(slot.weight),
                "on_step": slot.on_step,
                "on_epoch": slot.on_epoch,
                "prog_bar": slot.prog_bar,
                "logger": slot.logger,
                "metric": slot.metric,
                "used": slot.used,
                "reduce": slot.reduce,
                "step": slot.step,
                "recent": [[value, weight] for value, weight in slot.recent],
            }
        noted = [pair for values in found.values() for pair in values["recent"]]
        for pair, number in zip(noted, _read([value for value, _ in noted]), strict=True):
            pair[0] = number
        return found

    def restore(self, saved: dict[str, dict[str, Any]]) -> None:
        """Go on from saved running values."""
        self._by_phase["train"].clear()
        for name, values in saved.items():
            on_step, on_epoch = values["on_step"], values.get("on_epoch", True)
            self._by_phase["train"][name] = LoggedValue(
                name=name,
                on_step=on_step,
                on_epoch=on_epoch,
                prog_bar=values["prog_bar"],
                logger=values.get("logger", True),
                metric=values["metric"],
                reduce=values.get("reduce", "mean"),
                total=values["total"],
                weight=values["weight"],
                used=values.get("used", values["metric"] is not None),
                forked=on_step and on_epoch,
                step=values.get("step", -1),
                recent=[(value, weight) for value, weight in values.get("recent", ())],
            )


def _read(values: Sequence[Any]) -> list[float]:
    """Numbers, brought over from the device in one copy."""
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    read = iter(torch.stack([t.double().reshape(()) for t in tensors]).tolist() if tensors else ())
    return [next(read) if isinstance(v, torch.Tensor) else float(v) for v in values]


def plain(name: str) -> str:
    """The name that a value was logged under."""
    return name.replace(f"{_FORK}step", "").replace(f"{_FORK}epoch", "")


def reported(name: str) -> str:
    """The name that loggers get a value under, with ``_step`` or ``_epoch`` if it has both."""
    return name.replace(_FORK, "_")


def check_key(name: object) -> None:
    """R6: keys are strings, and not names that reports use themselves."""
    if not isinstance(name, str):
        raise RequirementError(f"R6 metric key {name!r} ({type(name).__name__}) is not a string")
    if not name or name in RESERVED:
        raise RequirementError(
            f"R6 metric key {name!r} is {'reserved' if name else 'empty'}; choose another name"
        )


def check_value(name: str, value: object) -> None:
    """R6: values are scalars."""
    if isinstance(value, torch.Tensor):
        if value.numel() == 1:
            return
        shape = "[" + ",".join(str(n) for n in value.shape) + "]"
        raise RequirementError(
            f"R6 metric {name!r} has shape {shape}; log a scalar or a torchmetrics.Metric."
        )
    try:
        float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise RequirementError(
            f"R6 metric {name!r} is a {type(value).__name__}; log a scalar or a "
            f"torchmetrics.Metric."
        ) from None


def flattened(values: object, prefix: str = "") -> dict[str, Any]:
    """A returned mapping as flat names joined by ``/``; R6 for keys that are no strings."""
    if not isinstance(values, dict):
        return {}
    flat: dict[str, Any] = {}
    for key, value in values.items():
        check_key(key)
        if isinstance(value, dict):
            flat |= flattened(value, f"{prefix}{key}/")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def reduction(name: str, given: object) -> Reduction:
    """What `log(reduce_fx=)` means: a name, or a function that is known by one."""
    text = given if isinstance(given, str) else getattr(given, "__name__", "")
    chosen = _REDUCTIONS.get(text.lower())
    if chosen is None or not (isinstance(given, str) or given in _KNOWN):
        raise RequirementError(
            f"R6 metric {name!r}: reduce_fx={given!r} is not known; allowed are 'mean', 'sum', "
            f"'max' and 'min', and torch's functions of these names. For another reduction log a "
            f"torchmetrics.Metric."
        )
    return chosen


def joined(one: Part, other: Part) -> Part:
    """Two parts of one value together."""
    if not one[1]:
        return other
    if not other[1]:
        return one
    join = _JOIN[other[2]]
    return join(one[0], other[0]), one[1] + other[1], other[2]


def means(parts: Sequence[Pairs]) -> dict[str, float]:
    """The values over all ranks' parts, names in order of first appearance."""
    totals: Pairs = {}
    for part in parts:
        for name, own in part.items():
            totals[name] = joined(totals[name], own) if name in totals else own
    return {
        name: total / weight if how == "mean" else total
        for name, (total, weight, how) in totals.items()
        if weight
    }


def newest(parts: Sequence[StepPairs]) -> dict[str, float]:
    """Weighted means over the ranks that took part in each name's newest step."""
    last: dict[str, int] = {}
    for part in parts:
        for name, (step, _) in part.items():
            last[name] = max(step, last.get(name, step))
    return means([{n: p for n, (step, p) in part.items() if step == last[n]} for part in parts])


def merged(parts: Sequence[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """The state as if one rank had logged everything, given each rank's own `Logs.state`."""
    found: dict[str, dict[str, Any]] = {}
    for part in parts:
        for name, values in part.items():
            if name not in found:
                found[name] = dict(values)
                continue
            both: list[Part] = [
                (each["total"], each["weight"], each.get("reduce", "mean"))
                for each in (found[name], values)
            ]
            found[name]["total"], found[name]["weight"], _ = joined(*both)
            found[name]["used"] = found[name].get("used") or values.get("used", False)
            ours, theirs = (each.get("step", -1) for each in (found[name], values))
            if theirs > ours:
                found[name]["step"], found[name]["recent"] = theirs, values["recent"]
            elif theirs == ours:
                recent = [*found[name].get("recent", ()), *values.get("recent", ())]
                found[name]["recent"] = recent
    return found


def by_loader(
    values: dict[str, float], loaders: dict[str, int | None], count: int
) -> list[dict[str, float]]:
    """The values of each of several loaders, with those that belong to none in all of them."""
    return [
        {name: v for name, v in values.items() if loaders.get(name) in (None, n)}
        for n in range(count)
    ]
