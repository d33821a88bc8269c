"""Lightning's tuner under the bridge: its own fits are none of the script's, its findings stay.

``Tuner(trainer).lr_find(module)`` and ``scale_batch_size`` call `fit` with a finder among the
callbacks, which searches and leaves before the training begins. Such a call saves nothing and is
not counted: `searching`. A finder that the script has put among its callbacks searches at the start
of every `fit`, and loads its own checkpoint over the one that is being resumed from.

A restart would search again, and on another machine or in another order of sums it may find
something else. So what was found when the run began is in its checkpoints (`values`), is given back
(`bring_back`) before loaders and optimizers are made of it, and is left out of the fingerprint of
the run; and finders among the callbacks are not asked a second time.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.utilities.parsing import (
    lightning_getattr,
    lightning_hasattr,
    lightning_setattr,
)

if TYPE_CHECKING:
    import lightning.pytorch as pl

_tuned: "WeakKeyDictionary[pl.LightningModule, set[str]]" = WeakKeyDictionary()
"""Names of what a finder has set, or may have."""


def finders(trainer: "pl.Trainer") -> list[Any]:
    """The finders among the callbacks, the tuner's own included."""
    callbacks: Any = trainer.callbacks  # type: ignore[attr-defined]
    return [each for each in callbacks if isinstance(each, LearningRateFinder | BatchSizeFinder)]


def searching(trainer: "pl.Trainer") -> bool:
    """Whether this is a call of the tuner's, which trains nothing."""
    return any(each._early_exit for each in finders(trainer))


def note(trainer: "pl.Trainer", module: "pl.LightningModule") -> None:
    """Remember the names of what this call's finders may set."""
    for each in finders(trainer):
        if isinstance(each, BatchSizeFinder):
            names = [each._batch_arg_name]
        elif not each._update_attr:
            continue
        else:
            names = [each._attr_name] if each._attr_name else ["lr", "learning_rate"]
        found = next((name for name in names if lightning_hasattr(module, name)), None)
        if found is not None:
            _tuned.setdefault(module, set()).add(found)


def names(module: "pl.LightningModule") -> set[str]:
    """What has been tuned for this module."""
    return _tuned.get(module, set())


def values(module: "pl.LightningModule") -> dict[str, Any]:
    """The same with the values, where they are plain."""
    found = {name: lightning_getattr(module, name) for name in sorted(names(module))}
    return {name: value for name, value in found.items() if type(value) in {int, float}}


def bring_back(module: "pl.LightningModule", saved: Mapping[str, Any]) -> list[str]:
    """Set what was found when the run began; lines about what this start has found instead."""
    lines = []
    for name, value in saved.items():
        _tuned.setdefault(module, set()).add(name)
        if lightning_hasattr(module, name):
            now = lightning_getattr(module, name)
            if now != value:
                lines.append(f"{name}={value}, as found when this run began, and not {now}")
                lightning_setattr(module, name, value)
    return lines


def without_finders(trainer: "pl.Trainer") -> Iterable[Any]:
    """Take the finders out of the callbacks; gives the list as it was."""
    holder: Any = trainer
    before = holder.callbacks
    found = finders(trainer)
    holder.callbacks = [each for each in before if each not in found]
    return list(before)
