"""What `Trainer(...)` takes, checked once.

Every flag is validated when the trainer is made, with the flag, the value, what is allowed. A flag
that is unknown is refused together with the closest known name: a misspelt one that is silently
ignored costs a night of training.
"""

import difflib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal

from rekindle import strategies
from rekindle.checkpoint.format.manifest import MODES
from rekindle.checkpoint.objects.location import ADDRESSING, without_credentials
from rekindle.data.determinism import DataOptions
from rekindle.data.determinism import parse as data_options
from rekindle.errors.misconfiguration import MisconfigurationException
from rekindle.model import precision as dtypes
from rekindle.plugins import named

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

_URL = re.compile(r"^https?://[^/\s]+(/\S*)?$")
_ACCELERATORS = {"auto": "auto", "cpu": "cpu", "gpu": "gpu", "cuda": "gpu", "mps": "mps"}
_DEFAULTS: Mapping[str, Any] = {
    "precision": "32-true",
    "gradient_clip_algorithm": "norm",
    "limit_train_batches": 1.0,
    "limit_val_batches": 1.0,
    "limit_test_batches": 1.0,
    "limit_predict_batches": 1.0,
    "log_every_n_steps": 50,
    "num_sanity_val_steps": 2,
    "enable_checkpointing": True,
    "enable_model_summary": True,
    "enable_progress_bar": True,
}
"""What None means, for flags of which it is no value of their own."""
_BAREBONES: Mapping[str, Any] = {
    "enable_checkpointing": False,
    "enable_model_summary": False,
    "enable_progress_bar": False,
    "logger": False,
    "log_every_n_steps": 0,
    "num_sanity_val_steps": 0,
    "fast_dev_run": False,
    "detect_anomaly": False,
    "profiler": None,
}
"""What `barebones` makes of flags that cost time."""
NEVER = sys.maxsize
"""As many steps as no run has."""
_EPOCHS = 1000
"""How many there are when nothing says when training ends."""
_SWITCHES = (
    "enable_autolog_hparams",
    "preflight",
    "sync_batchnorm",
    "detect_anomaly",
    "inference_mode",
    "use_distributed_sampler",
    "barebones",
    "enable_checkpointing",
    "enable_model_summary",
    "enable_progress_bar",
)
_RENAMED = {
    "gpus": "devices= and accelerator='gpu'",
    "num_processes": "devices=",
    "tpu_cores": "accelerator='cpu' or 'gpu': TPUs are not supported",
    "ipus": "accelerator='cpu' or 'gpu': IPUs are not supported",
    "auto_select_gpus": "devices=",
    "resume_from_checkpoint": "fit(model, ckpt_path=...)",
    "checkpoint_callback": "enable_checkpointing=",
    "weights_save_path": "root=",
    "weights_summary": "enable_model_summary=",
    "progress_bar_refresh_rate": "log_every_n_steps=",
    "terminate_on_nan": "detect_anomaly= to find the operation; non-finite losses are caught (R20)",
    "replace_sampler_ddp": "no flag: the trainer deals out the data itself",
    "auto_lr_find": "the callback rekindle.callbacks.LearningRateFinder",
    "auto_scale_batch_size": "micro_batch='auto'",
    "amp_backend": "precision=",
    "move_metrics_to_cpu": "no flag: metrics are read at the log interval only",
}
"""What became of flags of other trainers, and of older ones."""


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
    max_samples: int | None = None
    max_tokens: int | None = None
    max_time: float | None = None
    """Seconds."""
    min_epochs: int | None = None
    min_steps: int | None = None
    global_batch_size: int | None = None
    micro_batch: int | Literal["auto"] | None = None
    accumulate_grad_batches: int = 1
    gradient_clip_val: float | None = None
    gradient_clip_algorithm: Literal["norm", "value"] = "norm"
    nonfinite: Literal["stop", "skip", "rollback"] | None = "stop"
    precision: dtypes.Precision | dtypes.MixedPrecision = "32-true"
    callbacks: list[Any] = field(default_factory=list)
    logger: Any = None
    """As given; see `rekindle.loggers.journal.chosen`."""
    profiler: Any = None
    """As given; see `rekindle.profilers.profiler.chosen`."""
    root: str = DEFAULT_ROOT
    fit_number: int = 1
    """Which call of `fit` with this root it is; see `persistence.run_identity`."""
    store: Mapping[str, str] = field(default_factory=dict)
    """What the script says of the store, by the names in `STORE`."""
    data: DataOptions = field(default_factory=DataOptions)
    reload_dataloaders_every_n_epochs: int = 0
    resume: Literal["auto", "must", "never"] = "auto"
    start: str | None = None
    """A path or URI that was given as `resume`: what `fit` begins from without a `ckpt_path`."""
    seed: int = 0
    seeded: bool = True
    """Whether the script gave the seed; else it is that of `seed_everything`, once `fit` begins."""
    log_every_n_steps: int = 50
    check_val_every_n_epoch: int | None = 1
    val_check_interval: int | float | None = None
    """Batches, or a share of an epoch's."""
    val_every_steps: int | None = None
    """Optimizer steps between two validations, over all epochs; None: the flags above say."""
    num_sanity_val_steps: int = 2
    limit_train_batches: int | float = 1.0
    limit_val_batches: int | float = 1.0
    limit_test_batches: int | float = 1.0
    limit_predict_batches: int | float = 1.0
    fast_dev_run: int = 0
    """Batches of each loop; 0 is no trial run."""
    overfit: bool = False
    """Whether training sees the same few batches, unshuffled, in each epoch."""
    preflight: bool = True
    checkpoint_every: Every | Literal["auto"] | None = None
    keep_latest: int = 3
    enable_checkpointing: bool = True
    accelerator: Literal["auto", "cpu", "gpu", "mps"] = "auto"
    devices: int | Literal["auto", "all"] = "auto"
    device_ids: tuple[int, ...] | None = None
    """Which GPUs, where they were listed."""
    num_nodes: int = 1
    sync_batchnorm: bool = False
    deterministic: bool | Literal["warn"] | None = None
    """None leaves torch's own settings as they are, as do the next two."""
    benchmark: bool | None = None
    detect_anomaly: bool = False
    strategy: strategies.Strategy = field(default_factory=strategies.Strategy)
    mesh: strategies.Mesh | None = None
    compile: Mapping[str, Any] | None = None
    """Options of `torch.compile`; None: do not compile."""
    fp8_skip: tuple[str, ...] = ()
    inference_mode: bool = True
    use_distributed_sampler: bool = True
    """False is refused where there are processes to deal out to."""
    enable_model_summary: bool = True
    enable_progress_bar: bool = True
    enable_autolog_hparams: bool = True
    barebones: bool = False


def parse(given: dict[str, Any], unknown: dict[str, Any]) -> Flags:
    """Check what a script passed; raises TypeError or ValueError naming the flag and the fix."""
    if unknown:
        name = next(iter(unknown))
        if name in _RENAMED:
            raise TypeError(f"Trainer has no flag {name!r}; use {_RENAMED[name]}")
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
    ends = ("max_epochs", "max_steps", "max_samples", "max_tokens", "max_time")
    if values["max_steps"] == -1:
        values["max_steps"] = None
    # A callback may hold a limit of its own, so this is decided when those are known.
    endless = all(values[name] is None for name in ends)
    for name in (*ends[:-1], "min_epochs", "min_steps"):
        # -1 is how scripts written for other trainers say "no limit".
        if values[name] == -1:
            values[name] = None
        _integer(values, name, minimum=0, optional=True)
    values["max_time"] = seconds_of(values["max_time"])
    _synonyms(values)
    _barebones(values)
    values |= {name: default for name, default in _DEFAULTS.items() if values[name] is None}
    _plugins(values)
    _refuse(values)
    asked = {name: values[name] for name in _SWITCHES}
    for name in _SWITCHES:
        if type(values[name]) is not bool:
            raise ValueError(f"{name}={values[name]!r} must be True or False")
    _trial(values)
    _integer(values, "global_batch_size", minimum=1, optional=True)
    _integer(values, "accumulate_grad_batches", minimum=1)
    _integer(values, "check_val_every_n_epoch", minimum=1, optional=True)
    values["seeded"] = values["seed"] is not None
    values["seed"] = values["seed"] if values["seeded"] else 0
    _integer(values, "seed", minimum=None)
    _integer(values, "log_every_n_steps", minimum=0)
    values["log_every_n_steps"] = values["log_every_n_steps"] or NEVER
    _integer(values, "keep_latest", minimum=1)
    _integer(values, "num_sanity_val_steps", minimum=-1)
    for stage in ("train", "val", "test", "predict"):
        _amount(values, f"limit_{stage}_batches")
    _integer(values, "num_nodes", minimum=1)
    if values["micro_batch"] != "auto":
        _integer(values, "micro_batch", minimum=1, optional=True)
    if values["deterministic"] not in (None, True, False, "warn"):
        raise ValueError(
            f"deterministic={values['deterministic']!r} must be True, False, 'warn' or None"
        )
    if values["benchmark"] not in (None, True, False):
        raise ValueError(f"benchmark={values['benchmark']!r} must be True, False or None")
    _interval(values)
    _clipping(values)
    policies = {name: name for name in ("stop", "skip", "rollback")}
    _choice(values, "nonfinite", {**policies, None: None})
    if isinstance(values["resume"], str | os.PathLike) and "/" in str(values["resume"]):
        values["start"], values["resume"] = os.fspath(values["resume"]), "auto"
    _choice(values, "resume", {"auto": "auto", "must": "must", "never": "never"})
    values["precision"] = dtypes.parse(values["precision"])
    named_by = getattr(values["accelerator"], "name", None)
    if callable(named_by):
        values["accelerator"] = named_by()
    values["accelerator"] = os.environ.get(ENV_ACCELERATOR) or values["accelerator"]
    if values["accelerator"] in ("tpu", "ipu", "hpu"):
        raise ValueError(
            f"accelerator={values['accelerator']!r} is not supported; use 'cpu', 'gpu' (CUDA and "
            f"ROCm) or 'mps'"
        )
    _choice(values, "accelerator", _ACCELERATORS)
    values["devices"], values["device_ids"] = _devices(
        os.environ.get(ENV_DEVICES) or values["devices"]
    )
    every = values["checkpoint_every"]
    if every is not None and every != "auto" and not isinstance(every, Every):
        raise TypeError(
            f"checkpoint_every={every!r} must be 'auto', rekindle.Every(steps=...) or "
            f"Every(seconds=...)"
        )
    values["strategy"] = strategies.parse(values["strategy"])
    if getattr(values["strategy"], "mp", None) == "bf16":
        if values["precision"] not in ("32-true", "bf16-mixed"):
            raise ValueError(
                f"FSDP2(mp='bf16') and precision={values['precision']!r} exclude each other; leave "
                f"one of them out"
            )
        values["precision"] = "bf16-mixed"
    values["mesh"] = strategies.parse_mesh(values["mesh"])
    _compile(values)
    skip = values["fp8_skip"]
    if isinstance(skip, str) or not all(isinstance(name, str) for name in skip):
        raise ValueError(f"fp8_skip={skip!r} must be a list of layers' names")
    values["fp8_skip"] = tuple(skip)
    _integer(values, "reload_dataloaders_every_n_epochs", minimum=0)
    values["data"] = data_options(values["data"])
    if values["data"].guarantee == "bitwise" and values["deterministic"] is None:
        values["deterministic"] = True
    values["store"] = _store(values["store"])
    callbacks = values["callbacks"]
    if callbacks is None:
        callbacks = []
    callbacks = named("callback", callbacks)
    values["callbacks"] = list(callbacks) if isinstance(callbacks, list | tuple) else [callbacks]
    _agree(asked, values["callbacks"])
    # Scripts for other trainers often say it in their ModelCheckpoint alone.
    places = [callback.root for callback in values["callbacks"]]
    limits = [values["max_time"], *(callback.max_seconds for callback in values["callbacks"])]
    values["max_time"] = min((one for one in limits if one is not None), default=None)
    if endless and values["max_time"] is None and values["max_epochs"] is None:
        values["max_epochs"] = _EPOCHS
    values["root"] = str(next((r for r in (root, alias, *places) if r is not None), DEFAULT_ROOT))
    return Flags(**values)


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
            check_store_option(name, text, f"store[{name!r}]")
            options[name] = text
    return options


def check_store_option(name: str, value: object, where: str) -> None:
    """Refuse a value that an option of the store cannot have; ValueError naming `where`."""
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
    if name == "endpoint_url":
        without_credentials(value, where)


def _compile(values: dict[str, Any]) -> None:
    """`compile=True`, or the options of `torch.compile` in a mapping."""
    given = values["compile"]
    if given is False:
        values["compile"] = None
    elif given is True:
        values["compile"] = {}
    elif given is not None and not isinstance(given, Mapping):
        raise ValueError(
            f"compile={given!r} must be True, False or a mapping of torch.compile's options, such "
            f"as {{'mode': 'max-autotune'}}"
        )


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


def _amount(
    values: dict[str, Any], name: str, *, zero: bool = True, called: str | None = None
) -> None:
    """A count of batches (int) or a share of them (float)."""
    value = values[name]
    if type(value) is int and value >= (0 if zero else 1):
        return
    if type(value) is float and 0.0 <= value <= 1.0 and (zero or value > 0):
        return
    if type(value) is float and value > 1 and value.is_integer():
        values[name] = int(value)
        return
    raise ValueError(
        f"{called or name}={value!r} must be a number of batches (integer) or a share of them "
        f"(float from 0.0 to 1.0)"
    )


def _interval(values: dict[str, Any]) -> None:
    """`val_check_interval`: batches or a share of them, not a time."""
    interval = values["val_check_interval"]
    if interval is None:
        return
    if isinstance(interval, str | timedelta | Mapping):
        raise ValueError(
            f"val_check_interval={interval!r}: validations fall on the same steps however often a "
            f"run is interrupted, so they cannot go by the clock; give a number of batches, or a "
            f"share of the epoch's"
        )
    _amount(values, "val_check_interval", zero=False)
    if values["check_val_every_n_epoch"] is None and isinstance(interval, float):
        raise ValueError(
            f"val_check_interval={interval} is a share of an epoch, and "
            f"check_val_every_n_epoch=None counts batches over all epochs; give an integer"
        )


def _synonyms(values: dict[str, Any]) -> None:
    """Shorter names; giving both is refused."""
    for short, name, default in (
        ("device", "accelerator", "auto"),
        ("overfit", "overfit_batches", 0.0),
        ("log_every", "log_every_n_steps", None),
    ):
        value = values.pop(short)
        if value is None:
            continue
        if values[name] != default:
            raise ValueError(
                f"Trainer({short}={value!r}, {name}={values[name]!r}): both name the same thing, "
                f"give one of them"
            )
        values[name] = value
    every = values.pop("val_every")
    values["val_every_steps"] = None
    if every is None:
        return
    if not isinstance(every, Every) or every.steps is None or every.seconds is not None:
        raise TypeError(
            f"val_every={every!r} must be rekindle.Every(steps=...): validations fall on the same "
            f"steps however often a run is interrupted, so they cannot go by the clock"
        )
    if values["val_check_interval"] is not None:
        raise ValueError("give val_every= or val_check_interval=, not both")
    values["val_every_steps"] = every.steps


def _plugins(values: dict[str, Any]) -> None:
    """A `MixedPrecision` among the plugins is the precision; others are refused after this."""
    given = values["plugins"]
    listed = list(given) if isinstance(given, list | tuple) else [given]
    found = [each for each in listed if isinstance(each, dtypes.MixedPrecision)]
    if not found:
        return
    if len(found) > 1 or values["precision"] not in ("32-true", found[0].precision):
        raise ValueError(
            f"plugins={found!r} and precision={values['precision']!r} both name a precision; give "
            f"one of them"
        )
    values["precision"] = found[0]
    values["plugins"] = [each for each in listed if each is not found[0]]


def _refuse(values: dict[str, Any]) -> None:
    """Flags of other trainers that have one meaning here; anything else is no longer needed."""
    answers = {
        "plugins": "the strategy is strategy=, the dtype policy precision=, and the cluster is "
        "whatever started the processes",
        "model_registry": "there is no registry of models; upload what Module.export or "
        "Trainer.save_checkpoint writes",
    }
    for name, answer in answers.items():
        if values.pop(name) not in (None, [], ()):
            raise ValueError(f"{name}= is not supported: {answer}. Remove the flag.")


def _barebones(values: dict[str, Any]) -> None:
    """Leave out what costs time; ValueError for a flag that asks for it."""
    if values["barebones"] is not True:
        return
    for name, without in _BAREBONES.items():
        if values[name] not in (None, without, False, 0):
            raise ValueError(
                f"Trainer(barebones=True, {name}={values[name]!r}): it costs time, and barebones "
                f"leaves it out. Remove one of them."
            )
        values[name] = without


def _agree(asked: Mapping[str, bool], callbacks: Sequence[Any]) -> None:
    """Refuse callbacks beside a flag that switches off what they are for, and two of one kind."""
    for callback in callbacks:
        if not asked.get(callback.switch or "", True):
            raise MisconfigurationException(
                f"Trainer({callback.switch}=False) and callbacks=[{type(callback).__name__}(...)] "
                f"exclude each other: remove the callback, or the flag (barebones=True sets it too)"
            )
    bars = [type(each).__name__ for each in callbacks if each.switch == "enable_progress_bar"]
    if len(bars) > 1:
        raise MisconfigurationException(
            f"callbacks= has several progress bars, {' and '.join(bars)}: there is one, keep one"
        )


def _clipping(values: dict[str, Any]) -> None:
    """`gradient_clip_val` and its algorithm; nothing is clipped to 0 or less."""
    clip, algorithm = values["gradient_clip_val"], values["gradient_clip_algorithm"]
    if clip is not None and (isinstance(clip, bool) or not isinstance(clip, int | float)):
        raise TypeError(f"gradient_clip_val={clip!r} must be a number, or None")
    values["gradient_clip_val"] = clip if clip is not None and clip > 0 else None
    name = getattr(algorithm, "value", algorithm)
    values["gradient_clip_algorithm"] = name.lower() if isinstance(name, str) else name
    _choice(values, "gradient_clip_algorithm", {"norm": "norm", "value": "value"})


def _devices(given: object) -> tuple[Any, tuple[int, ...] | None]:
    """How many devices, and which ones if they are listed; ValueError for anything else."""
    listed = given
    if isinstance(given, str):
        text = given.strip()
        if text in ("auto", "-1"):
            return ("auto" if text == "auto" else "all"), None
        parts = [part.strip() for part in text.split(",") if part.strip()]
        if parts and all(part.isdecimal() for part in parts):
            listed = [int(part) for part in parts] if "," in text else int(text)
    if type(listed) is int and (listed == -1 or listed >= 1):
        return ("all" if listed == -1 else listed), None
    if isinstance(listed, list | tuple | range):
        ids = tuple(listed)
        if ids and len(set(ids)) == len(ids) and all(type(n) is int and n >= 0 for n in ids):
            return len(ids), ids
    raise ValueError(
        f"devices={given!r} must be a number of devices (integer of at least 1), a list of GPUs "
        f"such as [0, 1] or '0,1', -1 for all, or 'auto'"
    )


def _trial(values: dict[str, Any]) -> None:
    """`fast_dev_run`, `overfit_batches` and `barebones`, put into the flags they stand for."""
    overfit = values.pop("overfit_batches")
    values["overfit"] = bool(overfit)
    if overfit:
        values["limit_train_batches"] = values["limit_val_batches"] = overfit
        _amount(values, "limit_train_batches", called="overfit_batches")
    batches = values["fast_dev_run"]
    if type(batches) is not bool:
        _integer(values, "fast_dev_run", minimum=0)
    values["fast_dev_run"] = batches = int(batches)
    if batches:
        for stage in ("train", "val", "test", "predict"):
            values[f"limit_{stage}_batches"] = batches
        values |= {
            "max_epochs": 1,
            "max_steps": batches,
            "max_samples": None,
            "max_tokens": None,
            "max_time": None,
            "min_epochs": None,
            "min_steps": None,
            "global_batch_size": None,
            "val_check_interval": None,
            "val_every_steps": None,
            "check_val_every_n_epoch": 1,
            "num_sanity_val_steps": 0,
            "enable_checkpointing": False,
            "log_every_n_steps": 1,
        }


def seconds_of(value: object, name: str = "max_time") -> float | None:
    """A duration in seconds, None for None; ValueError naming the argument."""
    seconds: float | None = None
    if value is None:
        return None
    if isinstance(value, timedelta):
        seconds = value.total_seconds()
    elif isinstance(value, Mapping):
        try:
            seconds = timedelta(**value).total_seconds()
        except TypeError:
            seconds = None
    elif isinstance(value, str) and re.fullmatch(r"\d+(:\d{1,2}){3}", value):
        days, hours, minutes, rest = map(int, value.split(":"))
        seconds = timedelta(days=days, hours=hours, minutes=minutes, seconds=rest).total_seconds()
    if seconds is None or seconds <= 0:
        raise ValueError(
            f"{name}={value!r} must be 'DD:HH:MM:SS', a timedelta or a mapping such as "
            f"{{'hours': 12}}, and more than nothing"
        )
    return seconds
