"""What `Trainer(...)` takes, checked once.

Every flag is validated when the trainer is made, with the flag, the value, what is allowed. A flag
that is unknown is refused together with the closest known name: a misspelt one that is silently
ignored costs a night of training.
"""

import difflib
import json
import os
from dataclasses import dataclass, field
from typing import Any, Literal

from rekindle.checkpoint.interval import Pace
from rekindle.checkpoint.retention import Retention
from rekindle.contract import (
    ENV_CHECKPOINT_EVERY,
    ENV_CHECKPOINT_EVERY_SECONDS,
    ENV_CHECKPOINT_EVERY_STEPS,
    ENV_CHECKPOINT_KEEP,
    ENV_MTBF,
)
from rekindle.precision import ALIASES, Precision

DEFAULT_ROOT = "./checkpoints"
"""Where checkpoints go when neither the script nor the job says."""
ENV_ACCELERATOR = "REKINDLE_ACCELERATOR"
"""Overrides `accelerator`, so that an unchanged script runs on another machine."""
ENV_DEVICES = "REKINDLE_DEVICES"
"""Overrides `devices`."""

_ACCELERATORS = {"auto": "auto", "cpu": "cpu", "gpu": "gpu", "cuda": "gpu"}


@dataclass(frozen=True)
class Every:
    """A cadence: after so many optimizer steps, or so many seconds, or whichever comes first."""

    steps: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.steps is None and self.seconds is None:
            raise ValueError("Every() needs steps= or seconds=")
        if self.steps is not None and (type(self.steps) is not int or self.steps < 1):
            raise ValueError(f"Every(steps={self.steps!r}): must be an integer of at least 1")
        if self.seconds is not None and not self.seconds > 0:
            raise ValueError(f"Every(seconds={self.seconds!r}): must be more than 0")


@dataclass(frozen=True, kw_only=True)
class Flags:
    """The checked values of the trainer's flags; see `Trainer` for what each one does."""

    max_epochs: int | None = None
    max_steps: int | None = None
    global_batch_size: int | None = None
    accumulate_grad_batches: int = 1
    gradient_clip_val: float | None = None
    gradient_clip_algorithm: Literal["norm", "value"] = "norm"
    precision: Precision = "32-true"
    callbacks: list[Any] = field(default_factory=list)
    root: str = DEFAULT_ROOT
    resume: Literal["auto", "must", "never"] = "auto"
    seed: int = 0
    log_every_n_steps: int = 50
    check_val_every_n_epoch: int | None = 1
    val_check_interval: int | float | None = None
    num_sanity_val_steps: int = 2
    limit_train_batches: int | float = 1.0
    limit_val_batches: int | float = 1.0
    checkpoint_every: Every | Literal["auto"] | None = None
    keep_latest: int = 3
    enable_checkpointing: bool = True
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: int | Literal["auto"] = "auto"
    enable_progress_bar: bool = True


def parse(given: dict[str, Any], unknown: dict[str, Any]) -> Flags:
    """Check what a script passed; raises TypeError or ValueError naming the flag and the fix."""
    if unknown:
        name = next(iter(unknown))
        close = difflib.get_close_matches(name, given, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(given)}"
        raise TypeError(f"Trainer has no flag {name!r}{hint}")
    values = dict(given)
    root, alias = values.pop("root"), values.pop("default_root_dir")
    if root is not None and alias is not None and root != alias:
        raise ValueError(
            f"Trainer(root={root!r}, default_root_dir={alias!r}): both name the same thing, "
            f"give one of them"
        )
    for name in ("max_epochs", "max_steps"):
        # -1 is how scripts written for other trainers say "no limit".
        if values[name] == -1:
            values[name] = None
        _integer(values, name, minimum=0, optional=True)
    _integer(values, "global_batch_size", minimum=1, optional=True)
    _integer(values, "accumulate_grad_batches", minimum=1)
    _integer(values, "check_val_every_n_epoch", minimum=1, optional=True)
    _integer(values, "seed", minimum=None)
    for name in ("log_every_n_steps", "keep_latest"):
        _integer(values, name, minimum=1)
    _integer(values, "num_sanity_val_steps", minimum=-1)
    for name in ("limit_train_batches", "limit_val_batches"):
        _amount(values, name)
    if values["val_check_interval"] is not None:
        _amount(values, "val_check_interval", zero=False)
    clip = values["gradient_clip_val"]
    if clip is not None and not (isinstance(clip, int | float) and clip > 0):
        raise ValueError(f"gradient_clip_val={clip!r} must be a number above 0, or None")
    _choice(values, "gradient_clip_algorithm", {"norm": "norm", "value": "value"})
    _choice(values, "resume", {"auto": "auto", "must": "must", "never": "never"})
    _choice(values, "precision", ALIASES)
    values["accelerator"] = os.environ.get(ENV_ACCELERATOR) or values["accelerator"]
    _choice(values, "accelerator", _ACCELERATORS)
    devices = os.environ.get(ENV_DEVICES) or values["devices"]
    values["devices"] = int(devices) if str(devices).isdecimal() else devices
    if values["devices"] != "auto":
        _integer(values, "devices", minimum=1)
    every = values["checkpoint_every"]
    if every is not None and every != "auto" and not isinstance(every, Every):
        raise TypeError(
            f"checkpoint_every={every!r} must be 'auto', rekindle.Every(steps=...) or "
            f"Every(seconds=...)"
        )
    _strategy(values.pop("strategy"))
    callbacks = values["callbacks"]
    if callbacks is None:
        callbacks = []
    values["callbacks"] = list(callbacks) if isinstance(callbacks, list | tuple) else [callbacks]
    values["root"] = str(next((r for r in (root, alias) if r is not None), DEFAULT_ROOT))
    return Flags(**values)


def cadence(flags: Flags) -> Every | Pace | None:
    """How often to save: the job's wish (environment) before the script's; None: at the end."""
    steps = os.environ.get(ENV_CHECKPOINT_EVERY_STEPS)
    seconds = os.environ.get(ENV_CHECKPOINT_EVERY_SECONDS)
    if not steps and not seconds:
        every = os.environ.get(ENV_CHECKPOINT_EVERY) or flags.checkpoint_every
        return _pace(every) if isinstance(every, str) else every
    return Every(steps=int(steps) if steps else None, seconds=float(seconds) if seconds else None)


def _pace(every: str) -> Pace:
    if every != "auto":
        raise ValueError(
            f"{ENV_CHECKPOINT_EVERY}={every!r} is not known; allowed is 'auto', and a number in "
            f"{ENV_CHECKPOINT_EVERY_STEPS} or {ENV_CHECKPOINT_EVERY_SECONDS}"
        )
    told = os.environ.get(ENV_MTBF)
    if not told:
        return Pace()
    try:
        seconds = float(told)
        if not 0 < seconds < float("inf"):
            raise ValueError
    except ValueError:
        raise ValueError(f"{ENV_MTBF}={told!r} must be a number of seconds above 0") from None
    return Pace(mtbf=seconds, told=True)


def retention(flags: Flags) -> Retention:
    """Which commits to keep: the job's wish before the script's."""
    told = os.environ.get(ENV_CHECKPOINT_KEEP)
    if not told:
        return Retention(latest=flags.keep_latest)
    try:
        return Retention.from_json(json.loads(told))
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{ENV_CHECKPOINT_KEEP}={told!r} is no retention: {error}") from None


def _strategy(value: object) -> None:
    if value in ("auto", "ddp"):
        return
    if value in ("horovod", "colossalai"):
        raise ValueError(f"strategy={value!r} is not supported; use 'ddp'")
    raise ValueError(f"strategy={value!r} is unknown; allowed are 'auto' and 'ddp'")


def _choice(values: dict[str, Any], name: str, allowed: dict[Any, Any]) -> None:
    value = values[name]
    if not isinstance(value, str | int) or value not in allowed:
        names = ", ".join(repr(key) for key in allowed)
        raise ValueError(f"{name}={value!r} is not known; allowed are {names}")
    values[name] = allowed[value]


def _integer(
    values: dict[str, Any], name: str, *, minimum: int | None, optional: bool = False
) -> None:
    value = values[name]
    if optional and value is None:
        return
    if type(value) is not int or (minimum is not None and value < minimum):
        least = "" if minimum is None else f" of at least {minimum}"
        raise ValueError(
            f"{name}={value!r} must be an integer{least}{', or None' if optional else ''}"
        )


def _amount(values: dict[str, Any], name: str, *, zero: bool = True) -> None:
    """A count of batches (int) or a share of them (float)."""
    value = values[name]
    if type(value) is int and value >= (0 if zero else 1):
        return
    if type(value) is float and 0.0 <= value <= 1.0 and (zero or value > 0):
        return
    raise ValueError(
        f"{name}={value!r} must be a number of batches (integer) or a share of them "
        f"(float from 0.0 to 1.0)"
    )
