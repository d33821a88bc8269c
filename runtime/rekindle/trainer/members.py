"""What Lightning documents on its Trainer beside the calls: what it does, with what, how far it is.

None of it holds state of its own: each member is a look at the flags, at the run or at the data. A
flag is fixed once the trainer is made, so setting one is refused. What has no counterpart is an
entry that says what to write instead.
"""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from rekindle.callbacks.early_stopping import EarlyStopping
from rekindle.callbacks.model_checkpoint import ModelCheckpoint
from rekindle.callbacks.monitors.progress_bar import ProgressBar
from rekindle.model.precision import MixedPrecision
from rekindle.stages import RunningStage, TrainerState, TrainerStatus, state_of
from rekindle.strategies.accelerators import (
    Accelerator,
    CPUAccelerator,
    CUDAAccelerator,
    MPSAccelerator,
)
from rekindle.trainer.running_strategy import RunningStrategy

if TYPE_CHECKING:
    from rekindle.callback import Callback
    from rekindle.flags import Flags
    from rekindle.model.module import Module
    from rekindle.model.optimizers import SchedulerSpec
    from rekindle.ranks.consensus import StopNotice
    from rekindle.ranks.distributed import World
    from rekindle.training.lifecycle import Lifecycle
    from rekindle.training.run import Run


class Flag:
    """A flag by its own name; fixed when the trainer is made."""

    def __init__(self, name: str | None = None) -> None:
        self._flag = name

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name
        self.__doc__ = "The flag."

    def __get__(self, trainer: Any, owner: type) -> Any:
        return self if trainer is None else getattr(trainer.flags, self._flag or self._name)

    def __set__(self, trainer: Any, value: object) -> NoReturn:
        raise AttributeError(
            f"Trainer.{self._name} is fixed when the trainer is made, so that every attempt of a "
            f"run does the same: give Trainer({self._name}={value!r})"
        )


class Instead:
    """A member that is refused: its use says what to write instead."""

    def __init__(self, words: str) -> None:
        self.__doc__ = self._words = words

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = f"{owner.__name__.removesuffix('Members')}.{name}"

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self
        raise NotImplementedError(f"{self._name} is not supported: {self._words}")

    def __set__(self, instance: Any, value: object) -> NoReturn:
        raise NotImplementedError(f"{self._name} is not supported: {self._words}")


class TrainerMembers:
    """The part of `rekindle.Trainer` that only looks."""

    flags: "Flags"
    callbacks: "list[Callback]"
    lifecycle: "Lifecycle"
    world: "World | None"
    module: "Module | None"
    _run: "Run | None"
    _notice: "StopNotice | None" = None
    _loaded: "str | os.PathLike[str] | None" = None
    _managed: "str | os.PathLike[str] | None" = None
    loaders: dict[str, Any]
    """The script's loaders, as they were given: ``train``, ``val``, ``test`` and ``predict``."""
    batches: dict[str, list[int | float]]
    """How many batches each loader of a stage has for this process, by the same names."""

    barebones = Flag()
    check_val_every_n_epoch = Flag()
    enable_autolog_hparams = Flag()
    gradient_clip_algorithm = Flag()
    gradient_clip_val = Flag()
    limit_predict_batches = Flag()
    limit_test_batches = Flag()
    limit_train_batches = Flag()
    limit_val_batches = Flag()
    min_epochs = Flag()
    min_steps = Flag()
    num_nodes = Flag()
    reload_dataloaders_every_n_epochs = Flag()

    fit_loop = Instead(
        "how long to train is max_epochs= and max_steps= of the Trainer; how far it is, "
        "trainer.current_epoch, global_step and num_training_batches"
    )
    validate_loop = Instead("use trainer.validate, num_val_batches and val_dataloaders")
    test_loop = Instead("use trainer.test, num_test_batches and test_dataloaders")
    predict_loop = Instead("use trainer.predict, num_predict_batches and predict_dataloaders")
    precision_plugin = Instead("use trainer.precision, trainer.scaler and torch.autocast")

    @property
    def overfit_batches(self) -> int | float:
        """The flag; 0 trains on all batches."""
        return self.flags.limit_train_batches if self.flags.overfit else 0.0

    @property
    def fast_dev_run(self) -> int:
        """Batches of each loop in a trial run: a number, True for one, False for no trial."""
        batches = self.flags.fast_dev_run
        return batches if batches > 1 else bool(batches)

    @property
    def num_sanity_val_steps(self) -> int | float:
        """Batches of the validation before training; infinite for all."""
        steps = self.flags.num_sanity_val_steps
        return math.inf if steps == -1 else steps

    @property
    def val_check_interval(self) -> int | float:
        """The flag; by default once an epoch."""
        interval = self.flags.val_check_interval
        return 1.0 if interval is None else interval

    @property
    def val_check_batch(self) -> int | float | None:
        """After how many training batches a validation comes; None before `fit`."""
        if self._run is None:
            return None
        interval = self.val_check_interval
        if isinstance(interval, int):
            return interval
        batches = self.num_training_batches
        return math.inf if math.isinf(batches) else max(1, int(batches * interval))

    @property
    def precision(self) -> str:
        """The precision's name."""
        found = self.flags.precision
        return str(found.precision if isinstance(found, MixedPrecision) else found)

    # What it does.

    @property
    def sanity_checking(self) -> bool:
        """Whether the validation that runs is the one before training."""
        trace = self.lifecycle.trace
        before = bool(trace) and trace[-1] == ("setup", "validating")
        return before and self.lifecycle.call == "fit"

    @property
    def state(self) -> TrainerState:
        """Which call runs or ran, at what it is, and how it ended."""
        life = self.lifecycle
        return state_of(life.state, life.call, sanity=self.sanity_checking)

    @property
    def training(self) -> bool:
        """Whether `fit` trains, and does not validate just now."""
        return self.state.stage == RunningStage.TRAINING

    @property
    def validating(self) -> bool:
        """Whether a validation runs, in `fit` or by itself."""
        return self.state.stage == RunningStage.VALIDATING

    @property
    def testing(self) -> bool:
        """Whether `test` runs."""
        return self.state.stage == RunningStage.TESTING

    @property
    def predicting(self) -> bool:
        """Whether `predict` runs."""
        return self.state.stage == RunningStage.PREDICTING

    @property
    def evaluating(self) -> bool:
        """Whether something is measured: a validation, a test or the check before training."""
        stage = self.state.stage
        return stage is not None and stage.evaluating

    @property
    def interrupted(self) -> bool:
        """Whether the last call ended with an error, or to be moved."""
        return self.state.status == TrainerStatus.INTERRUPTED

    @property
    def received_sigterm(self) -> bool:
        """Whether this process was told that it has to go."""
        return self._notice is not None and self._notice.given

    # With what.

    @property
    def model(self) -> "Module | None":
        """The module of the newest call."""
        return self.module

    @property
    def lightning_module(self) -> "Module | None":
        """The same; the trainer does not wrap it."""
        return self.module

    @property
    def strategy(self) -> RunningStrategy:
        """The processes of the run: `barrier`, `broadcast`, `reduce`, `root_device`."""
        return RunningStrategy(self)  # type: ignore[arg-type]

    @property
    def accelerator(self) -> Accelerator:
        """The kind of device."""
        kinds = {"cuda": CUDAAccelerator, "mps": MPSAccelerator}
        return kinds.get(self.strategy.root_device.type, CPUAccelerator)()

    @property
    def scaler(self) -> "torch.amp.GradScaler | None":
        """The loss scaler of 16-bit precision."""
        return None if self._run is None else self._run.update.scaler

    @property
    def lr_scheduler_configs(self) -> "list[SchedulerSpec]":
        """The learning-rate schedulers, each with when it steps."""
        return [] if self._run is None else list(self._run.optimization.schedulers)

    @property
    def local_rank(self) -> int:
        """This process's number on its machine."""
        if self.world is None:
            return int(os.environ.get("LOCAL_RANK", "0"))
        return self.world.local_rank

    @property
    def node_rank(self) -> int:
        """The machine's number."""
        return int(os.environ.get("GROUP_RANK", os.environ.get("NODE_RANK", "0")))

    @property
    def num_devices(self) -> int:
        """How many processes there are on this machine, each with its device."""
        return len(self.device_ids)

    @property
    def device_ids(self) -> list[int]:
        """The numbers of this machine's devices."""
        if self.flags.device_ids is not None:
            return list(self.flags.device_ids)
        asked = self.flags.devices if isinstance(self.flags.devices, int) else 1
        return list(range(int(os.environ.get("LOCAL_WORLD_SIZE", asked))))

    @property
    def distributed_sampler_kwargs(self) -> dict[str, int] | None:
        """What a `DistributedSampler` would be made with; None in a world of one."""
        if self.world is None or self.world.size == 1:
            return None
        return {"num_replicas": self.world.size, "rank": self.world.rank}

    @property
    def early_stopping_callbacks(self) -> list[EarlyStopping]:
        """All callbacks of this kind."""
        return [each for each in self.callbacks if isinstance(each, EarlyStopping)]

    @property
    def early_stopping_callback(self) -> EarlyStopping | None:
        """The first of them."""
        return next(iter(self.early_stopping_callbacks), None)

    @property
    def checkpoint_callbacks(self) -> list[ModelCheckpoint]:
        """All callbacks of this kind."""
        return [each for each in self.callbacks if isinstance(each, ModelCheckpoint)]

    @property
    def checkpoint_callback(self) -> ModelCheckpoint | None:
        """The first of them; checkpoints of the run are kept with and without one."""
        return next(iter(self.checkpoint_callbacks), None)

    @property
    def progress_bar_callback(self) -> ProgressBar | None:
        """The callback that draws, if the script gave one."""
        return next((each for each in self.callbacks if isinstance(each, ProgressBar)), None)

    @property
    def ckpt_path(self) -> "str | os.PathLike[str] | None":
        """What the newest call was given to load.

        When it is set, calls without a `ckpt_path` of their own take it, until it is set to None.
        """
        return self._loaded if self._managed is None else self._managed

    @ckpt_path.setter
    def ckpt_path(self, value: "str | os.PathLike[str] | None") -> None:
        self._managed = self._loaded = value

    def _chosen(self, given: "str | os.PathLike[str] | None") -> "str | os.PathLike[str] | None":
        """What a call loads, given its own argument."""
        self._loaded = self._managed if given is None else given
        return self._loaded

    # The data, and how far it is.

    @property
    def train_dataloader(self) -> Any:
        """What `fit` was given to train with; None before."""
        return self.loaders.get("train")

    @property
    def val_dataloaders(self) -> Any:
        """What is validated with; None before."""
        return self.loaders.get("val")

    @property
    def test_dataloaders(self) -> Any:
        """What is tested with; None before."""
        return self.loaders.get("test")

    @property
    def predict_dataloaders(self) -> Any:
        """What is predicted; None before."""
        return self.loaders.get("predict")

    @property
    def num_training_batches(self) -> int | float:
        """Batches of an epoch for this process; infinite before `fit` and for endless data."""
        return self.batches.get("train", [math.inf])[0]

    @property
    def num_val_batches(self) -> list[int | float]:
        """Batches of each loader that is validated with, for this process."""
        return list(self.batches.get("val", []))

    @property
    def num_sanity_val_batches(self) -> list[int | float]:
        """The same for the validation before training."""
        return [min(self.num_sanity_val_steps, count) for count in self.num_val_batches]

    @property
    def num_test_batches(self) -> list[int | float]:
        """Batches of each loader that is tested with, for this process."""
        return list(self.batches.get("test", []))

    @property
    def num_predict_batches(self) -> list[int | float]:
        """Batches of each loader that is predicted, for this process."""
        return list(self.batches.get("predict", []))

    @property
    def enable_validation(self) -> bool:
        """Whether `fit` validates."""
        return self._run is not None and self._run.validation is not None

    @property
    def is_last_batch(self) -> bool:
        """Whether the training batch that runs is the last one of its epoch for this process."""
        run = self._run
        if run is None or self.lifecycle.call != "fit":
            return False
        left = run.cursor.length - run.cursor.sample
        if run.logs.step != run.step:
            return left <= 0
        lanes = -(-min(left, run.cursor.G) // run.cursor.m)
        return left <= run.cursor.G and (len(run.losses) + 1) * run.world.size >= lanes

    # What it can be asked for.

    @contextmanager
    def init_module(self, empty_init: bool | None = None) -> Iterator[None]:
        """Make tensors in here on the trainer's device, and in its dtype."""
        if empty_init:
            raise ValueError(
                "init_module(empty_init=True) is not supported: build the layers in "
                "configure_model, where they take no memory until they get their values"
            )
        dtypes = {"64-true": torch.float64, "bf16-true": torch.bfloat16}
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtypes.get(self.precision, before))
        try:
            with self.strategy.root_device:
                yield
        finally:
            torch.set_default_dtype(before)
