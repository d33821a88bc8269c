"""`LightningCLI`: a script as a command with config files."""

import contextlib
import importlib
import io
import sys

import torch
import yaml
from small import QUIET, loader, regression, weights

TRAINER = [
    f"--trainer.{name}={str(value).lower()}" for name, value in {**QUIET, "max_epochs": 1}.items()
]


def _cli(pl):
    return importlib.import_module(pl.__name__ + ".cli")


def _short(pl):
    """The command with one subcommand: a parser for each of four takes a second."""

    class Short(_cli(pl).LightningCLI):
        @staticmethod
        def subcommands():
            return {"fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule"}}

    return Short


def _model(pl):
    class Model(regression(pl)):
        """A model to be configured."""

        def __init__(self, lr: float = 0.1, width: int = 1, names: list[str] | None = None):
            super().__init__()
            self.save_hyperparameters()
            self.calls = []

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)

    return _placed(Model)


def _data(pl):
    class Data(pl.LightningDataModule):
        """Data to be configured."""

        def __init__(self, batch_size: int = 2):
            super().__init__()
            self.batch_size = batch_size

        def train_dataloader(self):
            return loader(batch_size=self.batch_size)

        def val_dataloader(self):
            return loader(4)

        test_dataloader = predict_dataloader = val_dataloader

    return _placed(Data)


def _placed(cls):
    """The class where an import finds it, so that a file may name it."""
    cls.__qualname__ = cls.__name__
    cls.__module__ = __name__
    sys.modules.setdefault(__name__, type(sys)(__name__))
    setattr(sys.modules[__name__], cls.__name__, cls)
    return cls


def _make(pl, folder, args, model="own", data="own", kind=None, trainer=TRAINER, **options):
    """A command without `config.yaml`, unless asked for."""
    options.setdefault("save_config_callback", None)
    kind = kind or _short(pl)
    model = _model(pl) if model == "own" else model
    data = _data(pl) if data == "own" else data
    where = [f"--trainer.default_root_dir={folder}"]
    arguments = [*args[:1], *where, *trainer, *args[1:]] if isinstance(args, list) else args
    with contextlib.redirect_stdout(io.StringIO()):
        return kind(model, data, args=arguments, **options)


def _plain(pl, folder, args=(), **options):
    """A command that runs nothing."""
    options["run"] = False
    first = f"--trainer.default_root_dir={folder}"
    return _make(pl, folder, [first, *args], **options)


def fit_is_a_subcommand(pl, folder):
    """``fit`` trains the model with the data and the trainer's flags."""
    cli = _make(pl, folder, ["fit", "--model.lr=0.05", "--data.batch_size=4"])
    return weights(cli.model), cli.trainer.global_step, cli.subcommand


def there_are_four_subcommands(pl, folder):
    """``validate``, ``test`` and ``predict`` evaluate, without the arguments that are objects."""
    found, kind = [], _cli(pl).LightningCLI
    for name in ("validate", "predict"):
        cli = _make(pl, folder, [name], kind=kind, auto_configure_optimizers=False)
        found.append((cli.subcommand, dict(cli.trainer.callback_metrics)))
    return found, {name: sorted(skip) for name, skip in kind.subcommands().items()}


def without_run_nothing_runs(pl, folder):
    """With `run=False` everything is made, there is no subcommand and nothing runs."""
    cli = _plain(pl, folder, ["--model.width=3"])
    cli.trainer.fit(cli.model, cli.datamodule)
    return cli.model.hparams.width, cli.datamodule.batch_size, cli.subcommand, weights(cli.model)


def a_file_configures(pl, folder):
    """``--config`` reads a file; what comes later on the command line wins."""
    (folder / "c.yaml").write_text(yaml.safe_dump({
        "seed_everything": 3, "trainer": {"max_epochs": 4}, "model": {"lr": 0.5, "width": 7},
    }))  # fmt: skip
    cli = _plain(pl, folder, [f"--config={folder / 'c.yaml'}", "--model.width=8"])
    return (
        cli.config["seed_everything"], cli.trainer.max_epochs, cli.model.hparams.lr,
        cli.model.hparams.width,
    )  # fmt: skip


def a_file_configures_a_subcommand(pl, folder):
    """``fit --config`` reads a file of the subcommand's arguments."""
    (folder / "c.yaml").write_text(yaml.safe_dump({"trainer": {"max_steps": 3}}))
    cli = _make(pl, folder, ["fit", f"--config={folder / 'c.yaml'}"])
    return cli.trainer.global_step


def a_group_may_have_a_file_of_its_own(pl, folder):
    """``--model`` and ``--trainer`` may name a file."""
    (folder / "m.yaml").write_text(yaml.safe_dump({"lr": 0.25, "names": ["a", "b"]}))
    cli = _plain(pl, folder, [f"--model={folder / 'm.yaml'}"])
    return cli.model.hparams.lr, cli.model.hparams.names


def a_mapping_may_take_the_place_of_arguments(pl, folder):
    """`args` may be a mapping as in a file."""
    flags = {**QUIET, "max_epochs": 1, "default_root_dir": str(folder)}
    args = {"model": {"lr": 0.2}, "trainer": flags, "data": {"batch_size": 4}}
    cli = _make(pl, folder, args, run=False)
    return cli.model.hparams.lr, cli.trainer.max_epochs, cli.datamodule.batch_size


def print_config_prints_what_is_configured(pl, folder):
    """``--print_config`` prints the configuration and ends with 0."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            _cli(pl).LightningCLI(
                _model(pl), _data(pl), run=False, args=["--model.lr=0.5", "--print_config"]
            )
        except SystemExit as end:
            code = end.code
    found = yaml.safe_load(out.getvalue())
    return (
        code,
        found["model"],
        found["data"],
        found["seed_everything"],
        "max_epochs" in found["trainer"],
    )


def an_unknown_argument_is_refused(pl, folder):
    """What is no argument ends the command with 2."""
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            _plain(pl, folder, ["--model.nothing=1"])
        except SystemExit as end:
            return end.code


def a_value_of_another_type_is_refused(pl, folder):
    """A value that does not fit the annotation ends the command with 2, and is named."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            _plain(pl, folder, ["--model.width=wide"])
        except SystemExit as end:
            return end.code, "model.width" in said.getvalue()


def help_lists_the_arguments(pl, folder):
    """``--help`` of a subcommand lists model, data, trainer and optimizers."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            _cli(pl).LightningCLI(_model(pl), _data(pl), args=["fit", "--help"])
        except SystemExit as end:
            code = end.code
    wanted = ("--model.lr", "--data.batch_size", "--trainer.max_epochs", "--optimizer",
              "--ckpt_path", "--seed_everything")  # fmt: skip
    return code, [name in out.getvalue() for name in wanted]


def a_subclass_may_be_named(pl, folder):
    """With `subclass_mode_model` any subclass is named by `class_path` and `init_args`."""
    base = _model(pl)

    class Wider(base):
        def __init__(self, extra: int = 2, **options):
            super().__init__(**options)

    _placed(Wider)
    args = [f"--model={__name__}.Wider", "--model.extra=5", "--model.width=4"]
    cli = _plain(pl, folder, args, model=base, subclass_mode_model=True)
    return type(cli.model).__name__, cli.model.hparams.extra, cli.model.hparams.width


def any_model_may_be_named(pl, folder):
    """Without a model class, the file names one, and likewise the data."""
    model, data = _model(pl), _data(pl)
    config = {
        "model": {"class_path": f"{__name__}.{model.__name__}", "init_args": {"lr": 0.3}},
        "data": {"class_path": f"{__name__}.{data.__name__}", "init_args": {"batch_size": 4}},
        "trainer": {**QUIET, "default_root_dir": str(folder)},
    }
    cli = _make(pl, folder, config, model=None, data=None, run=False)
    return type(cli.model).__name__, cli.model.hparams.lr, cli.datamodule.batch_size


def a_model_may_come_from_a_function(pl, folder):
    """A function that is annotated to return a model configures it by its arguments."""
    model = _model(pl)

    def build(rate: float = 0.5) -> model:
        return model(lr=rate * 2)

    cli = _plain(pl, folder, ["--model.rate=0.2"], model=build)
    return cli.model.hparams.lr if "lr" in cli.model.hparams else None, type(cli.model).__name__


def callbacks_are_configured(pl, folder):
    """``--trainer.callbacks`` names callbacks and their arguments."""
    args = ["--trainer.callbacks=EarlyStopping", "--trainer.callbacks.monitor=val_loss",
            "--trainer.callbacks+=LearningRateMonitor"]  # fmt: skip
    cli = _plain(pl, folder, args, trainer=[*TRAINER, "--trainer.logger=true"])
    own = [
        c
        for c in cli.trainer.callbacks
        if type(c).__name__ in ("EarlyStopping", "LearningRateMonitor")
    ]
    return [type(c).__name__ for c in own], own[0].monitor


def callbacks_may_stand_in_a_file(pl, folder):
    """A file names callbacks by `class_path` and `init_args`."""
    path = f"{pl.__name__}.callbacks.EarlyStopping"
    entry = {"class_path": path, "init_args": {"monitor": "val_loss", "patience": 5}}
    (folder / "c.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [entry]}}))
    cli = _plain(pl, folder, [f"--config={folder / 'c.yaml'}"])
    found = [c for c in cli.trainer.callbacks if type(c).__name__ == "EarlyStopping"]
    return [(c.monitor, c.patience) for c in found]


def the_trainer_has_defaults(pl, folder):
    """`trainer_defaults` are flags that arguments win over, and callbacks that are always there."""

    class Always(pl.Callback):
        pass

    kept = Always()
    defaults = {"max_epochs": 7, "log_every_n_steps": 3, "callbacks": kept}
    quiet = [flag for flag in TRAINER if "max_epochs" not in flag]
    args = ["--trainer.log_every_n_steps=4"]
    cli = _plain(pl, folder, args, trainer=quiet, trainer_defaults=defaults)
    return cli.trainer.max_epochs, cli.trainer.log_every_n_steps, kept in cli.trainer.callbacks


def an_optimizer_is_named(pl, folder):
    """``--optimizer`` takes the place of the model's `configure_optimizers`."""
    args = ["fit", "--optimizer=Adam", "--optimizer.lr=0.02"]
    cli = _make(pl, folder, args)
    (optimizer,) = cli.trainer.optimizers
    return weights(cli.model), type(getattr(optimizer, "optimizer", optimizer)).__name__


def a_scheduler_is_named(pl, folder):
    """``--lr_scheduler`` goes with the optimizer."""
    args = ["fit", "--optimizer=SGD", "--optimizer.lr=0.1", "--lr_scheduler=ExponentialLR",
            "--lr_scheduler.gamma=0.5", "--trainer.max_epochs=2"]  # fmt: skip
    cli = _make(pl, folder, args)
    return weights(cli.model)


def a_plateau_scheduler_names_its_metric(pl, folder):
    """The scheduler ReduceLROnPlateau of `cli` takes `monitor`."""
    args = [
        "fit",
        "--optimizer=SGD",
        "--optimizer.lr=0.1",
        f"--lr_scheduler={pl.__name__}.cli.ReduceLROnPlateau",
        "--lr_scheduler.monitor=val_loss",
        "--lr_scheduler.patience=0",
        "--lr_scheduler.mode=max",
        "--trainer.max_epochs=3",
    ]
    cli = _make(pl, folder, args)
    return weights(cli.model), cli.trainer.optimizers[0].param_groups[0]["lr"]


def one_optimizer_may_be_fixed(pl, folder):
    """`add_optimizer_args` of one class makes its arguments a group; the class is fixed."""

    class Own(_short(pl)):
        def add_arguments_to_parser(self, parser):
            parser.add_optimizer_args(torch.optim.SGD)
            parser.add_lr_scheduler_args(torch.optim.lr_scheduler.ExponentialLR)
            parser.set_defaults({"optimizer.lr": 0.02})

    cli = _make(pl, folder, ["fit", "--lr_scheduler.gamma=0.1"], kind=Own)
    return weights(cli.model)


def configure_optimizers_may_be_changed(pl, folder):
    """`LightningCLI.configure_optimizers` says what the model's returns."""

    class Own(_short(pl)):
        @staticmethod
        def configure_optimizers(lightning_module, optimizer, lr_scheduler=None):
            lightning_module.seen = type(optimizer).__name__, lr_scheduler is None
            return optimizer

    cli = _make(pl, folder, ["fit", "--optimizer=SGD", "--optimizer.lr=0.1"], kind=Own)
    return cli.model.seen, weights(cli.model)


def an_optimizer_may_go_to_the_model(pl, folder):
    """With `link_to`, an optimizer's class and arguments go to an argument of the model."""
    base = regression(pl)
    module = _cli(pl)

    class Linked(base):
        def __init__(self, init: dict):
            super().__init__()
            self.init = init

        def configure_optimizers(self):
            return module.instantiate_class(self.parameters(), self.init)

    class Own(_short(pl)):
        def add_arguments_to_parser(self, parser):
            parser.add_optimizer_args(torch.optim.SGD, "own", link_to="model.init")

    args = ["fit", "--own.lr=0.03"]
    cli = _make(pl, folder, args, model=_placed(Linked), kind=Own)
    return weights(cli.model), cli.model.init["class_path"].split(".")[-1]


def two_optimizers_need_a_link(pl, folder):
    """Two optimizers without a link are refused."""

    class Own(_short(pl)):
        def add_arguments_to_parser(self, parser):
            parser.add_optimizer_args(torch.optim.SGD, "one")
            parser.add_optimizer_args(torch.optim.SGD, "two")

    try:
        _plain(pl, folder, ["--one.lr=0.1", "--two.lr=0.1"], kind=Own)
    except Exception as error:
        return type(error).__name__


def arguments_are_linked(pl, folder):
    """`link_arguments` gives one argument's value to another."""

    class Own(_short(pl)):
        def add_arguments_to_parser(self, parser):
            parser.link_arguments("data.batch_size", "model.width", compute_fn=lambda n: 2 * n)

    cli = _plain(pl, folder, ["--data.batch_size=3"], kind=Own)
    return cli.model.hparams.width


def arguments_are_linked_after_they_are_made(pl, folder):
    """A link may be applied when its source has been made."""

    class Own(_short(pl)):
        def add_arguments_to_parser(self, parser):
            parser.link_arguments(
                "data", "model.width", compute_fn=lambda d: d.batch_size + 1, apply_on="instantiate"
            )

    cli = _plain(pl, folder, ["--data.batch_size=3"], kind=Own)
    return cli.model.hparams.width


def arguments_of_one_s_own_are_added(pl, folder):
    """`add_arguments_to_parser` adds arguments that the command reads, and callbacks."""

    class Watch(pl.Callback):
        def __init__(self, mark: int = 1):
            self.mark = mark

    _placed(Watch)

    class Own(_short(pl)):
        def add_arguments_to_parser(self, parser):
            parser.add_argument("--note", default="none")
            parser.add_lightning_class_args(Watch, "watch")
            parser.set_defaults({"watch.mark": 5})

    cli = _plain(pl, folder, ["--note=hello"], kind=Own)
    marks = [c.mark for c in cli.trainer.callbacks if type(c).__name__ == "Watch"]
    return cli.config["note"], marks


def hooks_of_the_command_run_in_order(pl, folder):
    """The command calls its hooks around making things and around the subcommand."""
    calls = []

    class Own(_short(pl)):
        def before_instantiate_classes(self):
            calls.append(("before", hasattr(self, "model")))

        def after_instantiate_classes(self):
            calls.append(("after", hasattr(self, "trainer")))

        def before_fit(self):
            calls.append(("before_fit", self.trainer.global_step))

        def after_fit(self):
            calls.append(("after_fit", self.trainer.global_step))

    _make(pl, folder, ["fit"], kind=Own)
    return calls


def a_subcommand_may_be_changed(pl, folder):
    """A method of the subcommand's name takes the place of the trainer's."""

    class Own(_short(pl)):
        def fit(self, model, **options):
            self.seen = sorted(options)
            self.trainer.fit(model, datamodule=options["datamodule"])

    cli = _make(pl, folder, ["fit"], kind=Own)
    return [
        name for name in cli.seen if name in ("ckpt_path", "datamodule")
    ], cli.trainer.global_step


def the_seed_is_set_before_anything_is_made(pl, folder):
    """``--seed_everything`` seeds; the default is `seed_everything_default`, false is none."""
    found = []
    for options in ({"seed_everything_default": 5}, {"seed_everything_default": False}, {}):
        torch.manual_seed(99)
        cli = _plain(pl, folder, model=_model(pl), **options)
        found.append(cli.config["seed_everything"])
    cli = _plain(pl, folder, ["--seed_everything=12"])
    return found, cli.config["seed_everything"]


def a_trainer_of_one_s_own_is_used(pl, folder):
    """`trainer_class` is a subclass or a function that makes the trainer."""

    class Own(pl.Trainer):
        def __init__(self, mark: int = 1, **options):
            super().__init__(**options)
            self.mark = mark

    cli = _plain(pl, folder, ["--trainer.mark=4"], trainer_class=_placed(Own))
    return type(cli.trainer).__name__, cli.trainer.mark


def the_configuration_is_saved(pl, folder):
    """`SaveConfigCallback` writes config.yaml to the trainer's `log_dir` when training starts."""
    kind = _cli(pl).SaveConfigCallback
    cli = _make(pl, folder, ["fit", "--model.lr=0.05"], save_config_callback=kind)
    found = yaml.safe_load((folder / "config.yaml").read_text())
    return found["model"], found["data"], found["trainer"]["max_epochs"], cli.trainer.global_step


def a_saved_configuration_runs_again(pl, folder):
    """The saved file is a configuration for ``--config``."""
    kind = _cli(pl).SaveConfigCallback
    first = _make(pl, folder, ["fit", "--model.lr=0.05"], save_config_callback=kind)
    path = folder / "config.yaml"
    other = folder / "other"
    second = _make(pl, other, ["fit", f"--config={path}", f"--trainer.default_root_dir={other}"])
    return weights(first.model) == weights(second.model), second.model.hparams.lr


def another_run_s_configuration_is_not_overwritten(pl, folder):
    """A file of another run is not overwritten, unless `save_config_kwargs` say so."""
    kind = _cli(pl).SaveConfigCallback
    _make(pl, folder, ["fit", "--model.lr=0.05"], save_config_callback=kind)
    try:
        _make(pl, folder, ["fit", "--model.lr=0.06"], save_config_callback=kind)
    except RuntimeError:
        second = "RuntimeError"
    _make(pl, folder, ["fit", "--model.lr=0.07"], save_config_callback=kind,
          save_config_kwargs={"overwrite": True})  # fmt: skip
    return second, yaml.safe_load((folder / "config.yaml").read_text())["model"]["lr"]


def the_configuration_may_be_saved_elsewhere(pl, folder):
    """`save_config` of a class derived from SaveConfigCallback saves it elsewhere as well."""

    class Own(_cli(pl).SaveConfigCallback):
        def save_config(self, trainer, pl_module, stage):
            text = self.parser.dump(self.config, skip_none=False)
            (folder / "own.yaml").write_text(text)

    _make(pl, folder, ["fit"], save_config_callback=Own,
          save_config_kwargs={"save_to_log_dir": False})  # fmt: skip
    try:
        _cli(pl).SaveConfigCallback(None, None, save_to_log_dir=False)
    except ValueError:
        alone = "ValueError"
    return sorted(path.name for path in folder.glob("*.yaml")), alone


def a_trial_run_saves_no_configuration(pl, folder):
    """With `fast_dev_run` the configuration is not saved."""
    kind = _cli(pl).SaveConfigCallback
    _make(pl, folder, ["fit", "--trainer.fast_dev_run=true"], save_config_callback=kind)
    return (folder / "config.yaml").exists()


def hyperparameters_are_what_was_written(pl, folder):
    """The model's hyperparameters are the configuration's, and name what makes it again."""
    cli = _plain(pl, folder, ["--model.lr=0.5"])
    found = dict(cli.model.hparams)
    return found.pop("_instantiator").split(".", 1)[1], found


def a_class_is_made_of_its_path(pl, folder):
    """`instantiate_class` makes an object of `class_path`, `init_args` and what comes first."""
    layer = torch.nn.Linear(2, 1)
    init = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.25}}
    made = _cli(pl).instantiate_class(layer.parameters(), init)
    init = {"class_path": "torch.optim.lr_scheduler.StepLR", "init_args": {"step_size": 3}}
    return made.param_groups[0]["lr"], _cli(pl).instantiate_class(made, init).step_size


def the_environment_configures(pl, folder):
    """With ``default_env`` variables such as PL_MODEL__LR are read."""
    import os

    os.environ["PL_MODEL__LR"] = "0.75"
    cli = _plain(pl, folder, parser_kwargs={"default_env": True})
    return cli.model.hparams.lr


def each_subcommand_may_have_its_parser(pl, folder):
    """`parser_kwargs` by subcommand go to its parser."""
    (folder / "default.yaml").write_text(yaml.safe_dump({"model": {"lr": 0.04}}))
    files = {"default_config_files": [str(folder / "default.yaml")]}
    cli = _make(pl, folder, ["fit"], parser_kwargs={"fit": files})
    return cli.model.hparams.lr


def a_loader_of_the_model_needs_no_data(pl, folder):
    """Without a data module the model's own loaders are used."""

    class Model(_model(pl)):
        def train_dataloader(self):
            return loader()

    cli = _make(pl, folder, ["fit"], model=_placed(Model), data=None)
    return cli.datamodule, weights(cli.model)
