"""`LightningArgumentParser`: arguments of models, data, trainers and optimizers.

jsonargparse reads signatures: a class becomes a group of arguments, and with any subclass allowed a
pair of ``class_path`` and ``init_args``. This adds what is particular to training: optimizers and
schedulers get their parameters and optimizer later, from the model.
"""

from collections.abc import Callable, Iterable
from inspect import isclass
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.lr_scheduler import ReduceLROnPlateau as Plateau

from rekindle.callback import Callback
from rekindle.datamodule import DataModule
from rekindle.model.module import Module
from rekindle.pytorch.utilities.exceptions import MisconfigurationException
from rekindle.trainer.trainer import Trainer

try:
    import jsonargparse
    from jsonargparse import ArgumentParser, Namespace
    from jsonargparse.typing import class_from_function
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "LightningCLI needs jsonargparse, which is not installed: "
        "pip install 'jsonargparse[signatures]'",
        name=error.name,
    ) from error

jsonargparse.register_unresolvable_import_paths(torch)

AUTOMATIC = "AUTOMATIC"
"""The link of an optimizer or scheduler that goes into the model's `configure_optimizers`."""


class ReduceLROnPlateau(Plateau):
    """torch's scheduler of this name, with the metric that it follows."""

    def __init__(self, optimizer: Optimizer, monitor: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(optimizer, *args, **kwargs)
        self.monitor = monitor


LRSchedulerTypeTuple = (LRScheduler, ReduceLROnPlateau)
LRSchedulerTypeUnion = LRScheduler | ReduceLROnPlateau
LRSchedulerType = type[LRScheduler] | type[ReduceLROnPlateau]
ArgsType = list[str] | dict[str, Any] | Namespace | None
OptimizerCallable = Callable[[Iterable[Any]], Optimizer]
LRSchedulerCallable = Callable[[Optimizer], LRScheduler | ReduceLROnPlateau]

_PARTS = (Trainer, Module, DataModule, Callback)
_Registered = dict[str, tuple[type | tuple[type, ...], str]]
"""Key of a group -> the class, or the bases of the classes, that it takes, and its link."""


class LightningArgumentParser(ArgumentParser):
    """A parser that reads config files, and knows what a training is made of."""

    def __init__(
        self,
        *args: Any,
        description: str = "Lightning Trainer command line tool",
        env_prefix: str = "PL",
        default_env: bool = False,
        **kwargs: Any,
    ) -> None:
        """With `default_env`, ``PL_TRAINER__MAX_EPOCHS`` and the like are read too."""
        super().__init__(
            *args, description=description, env_prefix=env_prefix, default_env=default_env, **kwargs
        )
        self.callback_keys: list[str] = []
        self._optimizers: _Registered = {}
        self._lr_schedulers: _Registered = {}

    def add_lightning_class_args(
        self,
        lightning_class: Callable[..., Any],
        nested_key: str,
        subclass_mode: bool = False,
        required: bool = True,
    ) -> Any:
        """Add the arguments of a trainer, model, data module or callback below a key.

        A function that returns one will do. With `subclass_mode` any subclass may be named; a
        callback that is added goes to the trainer. Raises MisconfigurationException for others.
        """
        given: Any = lightning_class
        if callable(given) and not isclass(given):
            given = class_from_function(given)
        if not isclass(given) or not issubclass(given, _PARTS):
            raise MisconfigurationException(
                f"add_lightning_class_args({lightning_class!r}): give a Trainer, LightningModule, "
                f"LightningDataModule or Callback, or a function that is annotated to return one"
            )
        if issubclass(given, Callback):
            self.callback_keys.append(nested_key)
        if subclass_mode:
            return self.add_subclass_arguments(
                given, nested_key, fail_untyped=False, required=required
            )
        return self.add_class_arguments(
            given,
            nested_key,
            fail_untyped=False,
            instantiate=not issubclass(given, Trainer),
            sub_configs=True,
        )

    def add_optimizer_args(
        self,
        optimizer_class: type[Optimizer] | tuple[type[Optimizer], ...] = (Optimizer,),
        nested_key: str = "optimizer",
        link_to: str = AUTOMATIC,
    ) -> None:
        """Add the arguments of an optimizer; a tuple allows all subclasses of what is in it.

        `link_to` is the key of an argument of the model that takes it; by default it goes into the
        model's `configure_optimizers`.
        """
        self._add(self._optimizers, optimizer_class, (Optimizer,), nested_key, link_to, "params")

    def add_lr_scheduler_args(
        self,
        lr_scheduler_class: LRSchedulerType | tuple[LRSchedulerType, ...] = LRSchedulerTypeTuple,
        nested_key: str = "lr_scheduler",
        link_to: str = AUTOMATIC,
    ) -> None:
        """Add the arguments of a scheduler; as for optimizers."""
        kinds = LRSchedulerTypeTuple
        self._add(self._lr_schedulers, lr_scheduler_class, kinds, nested_key, link_to, "optimizer")

    def _add(
        self,
        registered: _Registered,
        given: Any,
        kinds: tuple[type, ...],
        key: str,
        link_to: str,
        later: str,
    ) -> None:
        several = isinstance(given, tuple)
        for each in given if several else (given,):
            if not issubclass(each, kinds):
                allowed = " or ".join(kind.__name__ for kind in kinds)
                raise TypeError(f"{key}: {each.__name__} is no subclass of {allowed}")
        options: dict[str, Any] = {"instantiate": False, "fail_untyped": False, "skip": {later}}
        if several:
            self.add_subclass_arguments(given, key, **options)
        else:
            self.add_class_arguments(given, key, sub_configs=True, **options)
        registered[key] = (given, link_to)
