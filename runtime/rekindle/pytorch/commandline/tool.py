"""`LightningCLI`: a training script as a command with subcommands and config files."""

import functools
import sys
from collections.abc import Callable, Mapping
from inspect import isclass
from pathlib import Path
from types import MethodType
from typing import Any, cast

import torch
from jsonargparse import ActionConfigFile, Namespace  # type: ignore[attr-defined]
from jsonargparse.typing import class_from_function
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from rekindle import callbacks as own_callbacks
from rekindle import loggers as own_loggers
from rekindle import profilers as own_profilers
from rekindle.callback import Callback
from rekindle.datamodule import DataModule
from rekindle.model.module import Module
from rekindle.pytorch.commandline import building
from rekindle.pytorch.commandline.parser import (
    AUTOMATIC,
    ArgsType,
    LightningArgumentParser,
    LRSchedulerTypeTuple,
    ReduceLROnPlateau,
)
from rekindle.pytorch.commandline.saving import SaveConfigCallback
from rekindle.pytorch.utilities.exceptions import MisconfigurationException
from rekindle.pytorch.utilities.model_helpers import is_overridden
from rekindle.pytorch.utilities.rank_zero import rank_zero_warn
from rekindle.randomness import seed_everything
from rekindle.trainer.trainer import Trainer


class LightningCLI:
    """Reads arguments and config files, makes model, data and trainer, and runs a subcommand."""

    parser: LightningArgumentParser
    config: Any
    config_init: Any
    model: Any
    datamodule: Any
    trainer: Trainer

    def __init__(
        self,
        model_class: Callable[..., Module] | None = None,
        datamodule_class: Callable[..., DataModule] | None = None,
        save_config_callback: type[SaveConfigCallback] | None = SaveConfigCallback,
        save_config_kwargs: dict[str, Any] | None = None,
        trainer_class: Callable[..., Trainer] = Trainer,
        trainer_defaults: dict[str, Any] | None = None,
        seed_everything_default: bool | int = True,
        parser_kwargs: dict[str, Any] | None = None,
        parser_class: type[LightningArgumentParser] = LightningArgumentParser,
        subclass_mode_model: bool = False,
        subclass_mode_data: bool = False,
        args: ArgsType = None,
        run: bool = True,
        auto_configure_optimizers: bool = True,
        load_from_checkpoint_support: bool = True,
    ) -> None:
        """Everything happens here.

        Without a model class, or with `subclass_mode_model`, the command line names one
        (``--model=Name``, or ``class_path`` and ``init_args`` in a file); likewise for data.
        `args` take the place of the command's own: a list as it would be written, or a mapping as
        in a file. Without `run` there are no subcommands, and nothing is run.

        `trainer_defaults` are flags of the trainer, and callbacks that are always there. The seed
        of `seed_everything_default` is set before anything is made (True: see `seed_everything`,
        False: none). `parser_kwargs` go to the parser, or by subcommand to its parser. With
        `auto_configure_optimizers`, ``--optimizer`` and ``--lr_scheduler`` take the place of the
        model's `configure_optimizers`. With `load_from_checkpoint_support`, hyperparameters are
        saved as they were written, so that `load_from_checkpoint` can make nested objects again.
        """
        self.save_config_callback = save_config_callback
        self.save_config_kwargs = save_config_kwargs or {}
        self.trainer_class = trainer_class
        self.trainer_defaults = trainer_defaults or {}
        self.seed_everything_default = seed_everything_default
        self.parser_kwargs = parser_kwargs or {}
        self.parser_class = parser_class
        self.auto_configure_optimizers = auto_configure_optimizers
        self.model_class = model_class
        self.datamodule_class = datamodule_class
        self.subclass_mode_model = model_class is None or subclass_mode_model
        self.subclass_mode_data = datamodule_class is None or subclass_mode_data
        self._model_class: Any = model_class or Module
        self._datamodule_class: Any = datamodule_class or DataModule
        self._objects: dict[str, Any] = {}
        """Flags of `trainer_defaults` that are objects, such as a profiler."""
        self._subcommand_parsers: dict[str, LightningArgumentParser] = {}
        self._subcommand_method_arguments: dict[str, list[str]] = {}

        _know_our_own()
        names = self.subcommands()
        for_all = {k: v for k, v in self.parser_kwargs.items() if k not in names}
        for_each = {k: v for k, v in self.parser_kwargs.items() if k in names}
        self.setup_parser(run, for_all, for_each)
        self.parse_arguments(self.parser, args)
        self._take_hyperparameters_of_checkpoint()
        self.subcommand: str | None = self.config["subcommand"] if run else None
        self._set_seed()
        if load_from_checkpoint_support:
            self._record_what_is_written()
        self.before_instantiate_classes()
        self.instantiate_classes()
        self.after_instantiate_classes()
        if self.subcommand is not None:
            self._run_subcommand(self.subcommand)

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Make a parser."""
        parser = self.parser_class(**kwargs)
        parser.add_argument(
            "-c", "--config", action=ActionConfigFile, help="A configuration file, YAML or JSON."
        )
        return parser

    def setup_parser(
        self, add_subcommands: bool, main_kwargs: dict[str, Any], subparser_kwargs: dict[str, Any]
    ) -> None:
        """Make the parsers, with all arguments."""
        self.parser = self.init_parser(**main_kwargs)
        if not add_subcommands:
            self._add_arguments(self.parser)
            return
        subcommands = self.parser.add_subcommands()
        trainer = self.trainer_class
        trainer_class: Any = trainer if isclass(trainer) else class_from_function(trainer)
        for name, skip in self.subcommands().items():
            method = getattr(trainer_class, name)
            about = (method.__doc__ or "").strip().partition("\n")[0]
            options = {"description": about, **subparser_kwargs.get(name, {})}
            parser = self.init_parser(**options)
            self._add_arguments(parser)
            added = parser.add_method_arguments(trainer_class, name, skip=set(skip))
            self._subcommand_method_arguments[name] = added
            self._subcommand_parsers[name] = parser
            subcommands.add_subcommand(name, parser, help=about)

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The seed."""
        parser.add_argument(
            "--seed_everything",
            type=bool | int,
            default=self.seed_everything_default,
            help="The seed that is set before anything is made; false: none is set.",
        )

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The trainer, the model and the data."""
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        for flag, value in self.trainer_defaults.items():
            if flag != "callbacks":
                self._set_default(parser, flag, value)
        parser.add_lightning_class_args(
            self._model_class, "model", subclass_mode=self.subclass_mode_model
        )
        parser.add_lightning_class_args(
            self._datamodule_class,
            "data",
            subclass_mode=self.subclass_mode_data,
            # The model may have loaders of its own.
            required=self.datamodule_class is not None,
        )

    def _set_default(self, parser: LightningArgumentParser, flag: str, value: Any) -> None:
        """The default of a flag; an object that cannot be written goes to the trainer as it is."""
        try:
            parser.set_defaults({f"trainer.{flag}": value})
        except ValueError:
            if value is None or isinstance(value, bool | int | float | str | list | tuple | dict):
                raise
            self._objects[flag] = value

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Define it to add arguments, or to link them: `parser.link_arguments`."""

    def _add_arguments(self, parser: LightningArgumentParser) -> None:
        self.add_default_arguments_to_parser(parser)
        self.add_core_arguments_to_parser(parser)
        self.add_arguments_to_parser(parser)
        if self.auto_configure_optimizers:
            if not parser._optimizers:
                parser.add_optimizer_args((Optimizer,))
            if not parser._lr_schedulers:
                parser.add_lr_scheduler_args(LRSchedulerTypeTuple)
        self.link_optimizers_and_lr_schedulers(parser)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The subcommands, and what of their methods is no argument."""
        loaders = {"model", "dataloaders", "datamodule"}
        return {
            "fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule"},
            "validate": loaders,
            "test": loaders,
            "predict": loaders,
        }

    @staticmethod
    def link_optimizers_and_lr_schedulers(parser: LightningArgumentParser) -> None:
        """Link optimizers and schedulers that go to an argument of the model."""
        for key, (kind, link_to) in {**parser._optimizers, **parser._lr_schedulers}.items():
            if link_to == AUTOMATIC:
                continue
            if isinstance(kind, tuple):
                parser.link_arguments(key, link_to)
            else:
                pair = functools.partial(building.with_class_path, kind)
                parser.link_arguments(key, link_to, compute_fn=pair)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse into `config`."""
        if args is not None and len(sys.argv) > 1:
            rank_zero_warn(
                f"LightningCLI(args=...) takes the place of the command's own arguments, which are "
                f"not read: {sys.argv[1:]}"
            )
        if isinstance(args, dict | Namespace):
            self.config = parser.parse_object(args)
        else:
            self.config = parser.parse_args(args)

    def _take_hyperparameters_of_checkpoint(self) -> None:
        """With ``--ckpt_path``, a file, the model is made as it was made then."""
        subcommand = self.config.get("subcommand")
        path = self.config[subcommand].get("ckpt_path") if subcommand else None
        if not path or not Path(path).is_file():
            return
        stored = torch.load(path, weights_only=True, map_location="cpu")
        values = dict(stored.get("hyper_parameters", {}))
        values.pop("_instantiator", None)
        if not values:
            return
        if "_class_path" in values:
            values = {"class_path": values.pop("_class_path"), "dict_kwargs": values}
        try:
            self.config = self.parser.parse_object({subcommand: {"model": values}}, self.config)
        except SystemExit:
            sys.stderr.write(f"the hyperparameters in {path} do not fit the model\n")
            raise

    def _set_seed(self) -> None:
        seed = self._get(self.config, "seed_everything")
        if seed is False:
            return
        used = seed_everything(None if seed is True else seed, workers=True)
        place = self.config[self.subcommand] if self.subcommand else self.config
        place["seed_everything"] = used

    def _record_what_is_written(self) -> None:
        @functools.cache
        def written() -> Mapping[str, Any]:
            import yaml

            text = self.parser.dump(self.config, skip_link_targets=False, skip_none=False)
            values = yaml.safe_load(text)
            return cast("Mapping[str, Any]", values.get(self.config.get("subcommand"), values))

        for key, kind, subclasses in (
            ("model", self._model_class, self.subclass_mode_model),
            ("data", self._datamodule_class, self.subclass_mode_data),
        ):
            self.parser.add_instantiator(
                building.Recording(written, key), building.returned(kind), subclasses=subclasses
            )

    def before_instantiate_classes(self) -> None:
        """Define it to do something before anything is made."""

    def instantiate_classes(self) -> None:
        """Make `datamodule`, `model` and `trainer`."""
        self.config_init = self.parser.instantiate(self.config)
        self.datamodule = self._get(self.config_init, "data")
        self.model = self._get(self.config_init, "model")
        self._put_optimizers_into_model()
        self.trainer = self.instantiate_trainer()

    def after_instantiate_classes(self) -> None:
        """Define it to do something once everything is made."""

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the trainer; what is given here wins over the configuration."""
        parser = self._parser()
        flags = dict(self._get(self.config_init, "trainer", {}))
        for flag, value in self._objects.items():
            if flags.get(flag) == parser.get_default(f"trainer.{flag}"):
                flags[flag] = value
        flags.update(kwargs)
        if "callbacks" not in flags:
            rank_zero_warn(
                f"{self.trainer_class.__name__} takes no callbacks, so none is added to it"
            )
            return self.trainer_class(**flags)
        flags["callbacks"] = [
            *_listed(flags["callbacks"]),
            *(self._get(self.config_init, key) for key in parser.callback_keys),
            *_listed(self.trainer_defaults.get("callbacks")),
        ]
        if self.save_config_callback is not None and not flags.get("fast_dev_run"):
            config = self.config[self.subcommand] if self.subcommand else self.config
            saving = self.save_config_callback(parser, config, **self.save_config_kwargs)
            flags["callbacks"].append(saving)
        return self.trainer_class(**flags)

    @staticmethod
    def configure_optimizers(
        lightning_module: Module,
        optimizer: Optimizer,
        lr_scheduler: LRScheduler | ReduceLROnPlateau | None = None,
    ) -> Any:
        """What the model's `configure_optimizers` returns; define it to return something else."""
        if lr_scheduler is None:
            return optimizer
        if isinstance(lr_scheduler, ReduceLROnPlateau):
            following = {"scheduler": lr_scheduler, "monitor": lr_scheduler.monitor}
            return {"optimizer": optimizer, "lr_scheduler": following}
        return [optimizer], [lr_scheduler]

    def _put_optimizers_into_model(self) -> None:
        if not self.auto_configure_optimizers:
            return
        parser = self._parser()
        optimizers = [k for k, (_, link) in parser._optimizers.items() if link == AUTOMATIC]
        schedulers = [k for k, (_, link) in parser._lr_schedulers.items() if link == AUTOMATIC]
        if not optimizers:
            return
        if len(optimizers) > 1 or len(schedulers) > 1:
            raise MisconfigurationException(
                f"one optimizer and one scheduler can go into configure_optimizers by themselves, "
                f"there are {', '.join(optimizers + schedulers)}: give link_to= and define the "
                f"model's configure_optimizers"
            )
        optimizer = self._written(parser._optimizers, optimizers[0])
        if not optimizer:
            return
        scheduler = self._written(parser._lr_schedulers, schedulers[0]) if schedulers else None
        if is_overridden("configure_optimizers", self.model):
            rank_zero_warn(
                f"{type(self.model).__name__}.configure_optimizers is not used: the command line "
                f"names an optimizer"
            )
        self.model.configure_optimizers = MethodType(
            functools.partial(_configure, self.configure_optimizers, optimizer, scheduler),
            self.model,
        )

    def _written(self, registered: Mapping[str, Any], key: str) -> dict[str, Any] | None:
        """The pair of class and arguments of an optimizer or scheduler; None when there is none."""
        kind, given = registered[key][0], self._get(self.config_init, key)
        if not isinstance(kind, tuple):
            return building.with_class_path(kind, given)
        return given.as_dict() if given else None

    def _parser(self) -> LightningArgumentParser:
        return self._subcommand_parsers[self.subcommand] if self.subcommand else self.parser

    def _get(self, config: Any, key: str, default: Any = None) -> Any:
        place = config.get(self.subcommand) if self.subcommand else config
        return place.get(key, default)

    def _run_subcommand(self, subcommand: str) -> None:
        before: Any = getattr(self, f"before_{subcommand}", None)
        if callable(before):
            before()
        arguments = {
            name: value
            for name, value in self.config_init[subcommand].items()
            if name in self._subcommand_method_arguments[subcommand]
        }
        arguments["model"] = self.model
        if self.datamodule is not None:
            arguments["datamodule"] = self.datamodule
        run: Any = getattr(self, subcommand, None) or getattr(self.trainer, subcommand)
        run(**arguments)
        after: Any = getattr(self, f"after_{subcommand}", None)
        if callable(after):
            after()


def _configure(
    configure: Callable[..., Any],
    optimizer: Mapping[str, Any],
    scheduler: Mapping[str, Any] | None,
    model: Module,
) -> Any:
    """`configure_optimizers` of a model, called anew for each `fit`."""
    made = building.instantiate_class((model.parameters(),), optimizer)
    following = None if scheduler is None else building.instantiate_class(made, scheduler)
    return configure(model, optimizer=made, lr_scheduler=following)


def _listed(given: Any) -> list[Callback]:
    return [] if given is None else list(given) if isinstance(given, list | tuple) else [given]


def _know_our_own() -> None:
    """Load what may be named without its module: a class is found once it has been loaded."""
    for package in (own_callbacks, own_loggers, own_profilers):
        for name in package.__all__:
            try:
                getattr(package, name)
            except ImportError:
                # It needs a package that is not installed, and can be named by its path.
                continue
