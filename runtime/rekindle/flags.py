"""What `Trainer(...)` takes, checked once.

Every flag is validated when the trainer is made, with the flag, the value, what is allowed. A flag
that is unknown is refused together with the closest known name: a misspelt one that is silently
ignored costs a night of training.
"""

import difflib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from rekindle.checkpoint.interval import Pace
from rekindle.checkpoint.location import ADDRESSING
from rekindle.checkpoint.manifest import MODES
from rekindle.checkpoint.retention import Best, Retention
from rekindle.contract import (
    ENV_CHECKPOINT_ADDRESSING,
    ENV_CHECKPOINT_COMMIT,
    ENV_CHECKPOINT_ENDPOINT,
    ENV_CHECKPOINT_EVERY,
    ENV_CHECKPOINT_EVERY_SECONDS,
    ENV_CHECKPOINT_EVERY_STEPS,
    ENV_CHECKPOINT_KEEP,
    ENV_CHECKPOINT_REGION,
    ENV_MTBF,
)
from rekindle.precision import ALIASES, Precision

DEFAULT_ROOT = "./checkpoints"
"""Where checkpoints go when neither the script nor the job says."""
ENV_ACCELERATOR = "REKINDLE_ACCELERATOR"
"""Overrides `accelerator`, so that an unchanged script runs on another machine."""
ENV_DEVICES = "REKINDLE_DEVICES"
"""Overrides `devices`."""

STORE: Mapping[str, tuple[str, ...]] = {
    "endpoint_url": (),
    "region": (),
    "profile": (),
    "ca_bundle": (),
    "addressing": ADDRESSING,
    "commit": MODES,
}
"""The options of `rekindle.checkpoint.Store.open`, and what is allowed where not everything is."""

_JOBS_STORE = {
    "endpoint_url": ENV_CHECKPOINT_ENDPOINT,
    "region": ENV_CHECKPOINT_REGION,
    "addressing": ENV_CHECKPOINT_ADDRESSING,
    "commit": ENV_CHECKPOINT_COMMIT,
}
_URL = re.compile(r"^https?://[^/\s]+(/\S*)?$")
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
    store: Mapping[str, str] = field(default_factory=dict)
    """What the script says of the store, by the names in `STORE`."""
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
    values["store"] = _store(values["store"])
    callbacks = values["callbacks"]
    if callbacks is None:
        callbacks = []
    values["callbacks"] = list(callbacks) if isinstance(callbacks, list | tuple) else [callbacks]
    # Scripts for other trainers often say it in their ModelCheckpoint alone.
    places = [getattr(callback, "dirpath", None) for callback in values["callbacks"]]
    values["root"] = str(next((r for r in (root, alias, *places) if r is not None), DEFAULT_ROOT))
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
    """Which commits to keep: the job's wish before the flags, and what callbacks need as well."""
    told = os.environ.get(ENV_CHECKPOINT_KEEP)
    try:
        policy = Retention.from_json(json.loads(told)) if told else None
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{ENV_CHECKPOINT_KEEP}={told!r} is no retention: {error}") from None
    policy = policy or Retention(latest=flags.keep_latest)
    for callback in flags.callbacks:
        if (more := callback.keeps()) is not None:
            policy = policy.also(more)
    return policy


def best_rule(flags: Flags) -> Best | None:
    """What "best" means in this script: the first rule that a callback brings, if any does."""
    rules = [rule for c in flags.callbacks if (kept := c.keeps()) is not None for rule in kept.best]
    return rules[0] if rules else None


def store_options(flags: Flags) -> dict[str, str]:
    """How to open the store: the script's words, and the job's where the script says nothing.

    The endpoint is the other way round, as the root is: it belongs to the place that the job names.
    Raises ValueError naming the variable.
    """
    told = {
        option: os.environ[name] for option, name in _JOBS_STORE.items() if os.environ.get(name)
    }
    for option, value in told.items():
        _store_option(option, value, _JOBS_STORE[option])
    options = {**told, **flags.store}
    if "endpoint_url" in told:
        options["endpoint_url"] = told["endpoint_url"]
    return options


def _store(given: object) -> dict[str, str]:
    """Check `Trainer(store=...)`; no message shows a value that could be a secret."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise TypeError(
            f"store must be a mapping such as {{'endpoint_url': 'https://...'}}, not "
            f"{type(given).__name__}; where checkpoints go is root="
        )
    options = {}
    for name, value in given.items():
        if name not in STORE:
            close = difflib.get_close_matches(str(name), STORE, n=1)
            known = (
                f"known are {', '.join(STORE)}. Credentials are no options: they come from the "
                f"environment, a profile or the pod's identity"
            )
            hint = f"did you mean {close[0]!r}?" if close else known
            raise TypeError(f"store has no option {name!r}; {hint}")
        text = os.fspath(value) if isinstance(value, os.PathLike) else value
        if text is not None:
            _store_option(name, text, f"store[{name!r}]")
            options[name] = text
    return options


def _store_option(name: str, value: object, where: str) -> None:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{where} must be a text that is not empty, or be left out")
    allowed = STORE[name]
    if allowed and value not in allowed:
        raise ValueError(
            f"{where}={value!r} is not known; allowed are {', '.join(map(repr, allowed))}"
        )
    if name == "endpoint_url" and not _URL.match(value):
        # What is before an @ may be a password.
        raise ValueError(
            f"{where}={value.rpartition('@')[2]!r} must begin with http:// or https:// and name a "
            f"host, for example http://minio.storage:9000"
        )


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
