"""Loggers: what they write, where, under which names and steps; and loggers of a script's own."""

import csv
import os
from pathlib import Path

import torch
from small import QUIET, loader, regression


def _with_hyperparameters(pl):
    """A class that saves its arguments."""

    class Known(regression(pl)):
        def __init__(self, width=3, rate=0.5):
            super().__init__()
            self.save_hyperparameters()

    return Known


def _fit(pl, folder, logger, model=None, **flags):
    given = {**QUIET, "logger": logger, "max_epochs": 2, "log_every_n_steps": 1, **flags}
    trainer = pl.Trainer(default_root_dir=folder, **given)
    trainer.fit(model or _with_hyperparameters(pl)(), loader(), loader(4))
    return trainer


def _rows(path):
    with open(path, newline="") as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


def _scalars(path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(path))
    events.Reload()
    tags = events.Tags()["scalars"]
    return {tag: [(each.step, each.value) for each in events.Scalars(tag)] for tag in tags}


def _files(folder):
    found = [path for path in folder.rglob("*") if path.is_file()]
    return sorted({str(p.relative_to(folder)).split(".tfevents")[0] for p in found})


def csv_has_a_row_per_record(pl, folder):
    """`CSVLogger` writes metrics.csv: steps from 0, the epoch, a column for each name."""
    trainer = _fit(pl, folder, pl.loggers.CSVLogger(folder / "logs"))
    trainer.test(trainer.lightning_module, loader(4), verbose=False)
    path = os.path.join(trainer.logger.log_dir, "metrics.csv")
    return open(path).readline(), _rows(path), _files(folder)


def hyperparameters_are_a_file_of_yaml(pl, folder):
    """Hyperparameters of module and data module lie beside the metrics in hparams.yaml."""

    class Data(pl.LightningDataModule):
        def __init__(self, batch_size=2):
            super().__init__()
            self.save_hyperparameters()

        def train_dataloader(self):
            return loader(batch_size=self.hparams.batch_size)

    flags = {**QUIET, "logger": pl.loggers.CSVLogger(folder / "logs"), "max_epochs": 1}
    trainer = pl.Trainer(default_root_dir=folder, **flags)
    trainer.fit(_with_hyperparameters(pl)(), datamodule=Data())
    return Path(trainer.logger.log_dir, "hparams.yaml").read_text()


def versions_are_counted(pl, folder):
    """Each logger takes the next free version; it may be asked for before there is a run."""
    found = []
    for options in ({}, {}, {"version": 7}, {}, {"version": "mine"}, {"name": None}, {"name": ""}):
        logger = pl.loggers.CSVLogger(folder / "logs", **options)
        seen = [logger.version, os.path.relpath(logger.log_dir, folder), logger.name]
        _fit(pl, folder, logger, max_epochs=1)
        same = seen == [logger.version, os.path.relpath(logger.log_dir, folder), logger.name]
        found.append([*seen, same, os.path.relpath(logger.root_dir, folder)])
    return found, _files(folder)


def a_prefix_is_joined_with_a_dash(pl, folder):
    """`prefix` comes before each name, with a dash."""
    trainer = _fit(pl, folder, pl.loggers.CSVLogger(folder / "logs", prefix="p"))
    return open(os.path.join(trainer.logger.log_dir, "metrics.csv")).readline()


def save_dir_is_what_was_given(pl, folder):
    """`save_dir` is the text that was given, and the trainer's `log_dir` is the logger's."""
    trainer = _fit(pl, folder, pl.loggers.CSVLogger("logs", "a"), max_epochs=1)
    return trainer.logger.save_dir, trainer.logger.log_dir, trainer.log_dir


def a_logger_writes_without_a_trainer(pl, folder):
    """Without a run a logger writes what it is given, at the latest with `save` or `finalize`."""
    logger = pl.loggers.CSVLogger(folder / "logs")
    logger.log_metrics({"a": 1.5}, step=3)
    logger.log_hyperparams({"b": 2})
    logger.save()
    logger.log_metrics({"a": torch.tensor(2.5)}, step=4)
    logger.finalize("success")
    return _rows(folder / "logs/lightning_logs/version_0/metrics.csv")


def a_logger_writes_after_fit(pl, folder):
    """After `fit` a script may go on logging to the same version."""
    trainer = _fit(pl, folder, pl.loggers.CSVLogger(folder / "logs"), max_epochs=1)
    trainer.logger.log_metrics({"final": 1.0}, step=99)
    trainer.logger.save()
    return _rows(folder / "logs/lightning_logs/version_0/metrics.csv"), _files(folder)


def two_fits_share_a_logger(pl, folder):
    """A second `fit` with the same logger goes on with its version and keeps the rows."""
    logger = pl.loggers.CSVLogger(folder / "logs")
    for _ in range(2):
        _fit(pl, folder, logger, max_epochs=1)
    return [row["step"] for row in _rows(folder / "logs/lightning_logs/version_0/metrics.csv")]


def a_module_logs_to_its_logger(pl, folder):
    """`self.logger.log_metrics` takes a step of the script's own."""

    class Logs(_with_hyperparameters(pl)):
        def on_train_epoch_end(self):
            self.logger.log_metrics({"own": self.current_epoch * 1.0}, step=self.global_step)
            self.logger.log_hyperparams({"more": 1})

    trainer = _fit(pl, folder, pl.loggers.CSVLogger(folder / "logs"), Logs())
    rows = _rows(folder / "logs/lightning_logs/version_0/metrics.csv")
    hparams = Path(trainer.logger.log_dir, "hparams.yaml").read_text()
    return [row for row in rows if "own" in row], hparams


def several_loggers_get_the_same(pl, folder):
    """With several loggers `trainer.logger` is the first, and all get the metrics."""
    both = [pl.loggers.CSVLogger(folder / "a"), pl.loggers.CSVLogger(folder / "b")]
    trainer = _fit(pl, folder, both, max_epochs=1)
    return trainer.logger is both[0], len(trainer.loggers), _files(folder)


def tensorboard_has_the_scalars(pl, folder):
    """`TensorBoardLogger` writes scalars by step, hp_metric and hparams.yaml."""
    trainer = _fit(pl, folder, pl.loggers.TensorBoardLogger(folder / "logs", "exp"))
    return _scalars(trainer.logger.log_dir), _files(folder)


def tensorboard_without_the_default_metric(pl, folder):
    """`default_hp_metric=False` writes no hp_metric, and `sub_dir` is below the version."""
    options = {"default_hp_metric": False, "sub_dir": "part", "prefix": "p"}
    logger = pl.loggers.TensorBoardLogger(folder / "logs", "exp", **options)
    _fit(pl, folder, logger, max_epochs=1)
    return _scalars(logger.log_dir), _files(folder), logger.sub_dir


def tensorboard_shows_metrics_with_hyperparameters(pl, folder):
    """`log_hyperparams` takes metrics, as a mapping or as one number."""
    logger = pl.loggers.TensorBoardLogger(folder / "logs")
    logger.log_hyperparams({"a": 1, "b": {"c": "x"}}, {"score": 0.5})
    logger.finalize("success")
    other = pl.loggers.TensorBoardLogger(folder / "logs")
    other.log_hyperparams({"a": 1}, 2.5)
    other.finalize("success")
    return _scalars(logger.log_dir), _scalars(other.log_dir), _files(folder)


def tensorboards_writer_is_the_experiment(pl, folder):
    """`experiment` is the SummaryWriter: before, within and after `fit`."""
    logger = pl.loggers.TensorBoardLogger(folder / "logs")
    logger.experiment.add_scalar("before", 1.0, 0)

    class Writes(_with_hyperparameters(pl)):
        def on_train_epoch_end(self):
            self.logger.experiment.add_scalar("within", 2.0, self.current_epoch)

    _fit(pl, folder, logger, Writes(), max_epochs=1)
    logger.experiment.add_scalar("after", 3.0, 5)
    logger.finalize("success")
    found = _scalars(logger.log_dir)
    return {name: found[name] for name in ("before", "within", "after", "loss")}, logger.version


def tensorboard_shows_the_graph(pl, folder):
    """`log_graph=True` traces the module with its `example_input_array`."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = []
    for example in (torch.ones(2, 4), None):
        model = _with_hyperparameters(pl)()
        model.example_input_array = example
        logger = pl.loggers.TensorBoardLogger(folder / "logs", log_graph=True)
        _fit(pl, folder, logger, model, max_epochs=1)
        events = EventAccumulator(logger.log_dir)
        events.Reload()
        found.append((events.Tags()["graph"], model.training))
    return found


def mlflow_has_the_metrics(pl, folder):
    """`MLFlowLogger` writes to an experiment's run; name and version are their ids."""
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    import mlflow

    made = pl.loggers.MLFlowLogger("exp", "run", tags={"t": "1"}, save_dir=str(folder / "ml"))
    _fit(pl, folder, made)
    client = mlflow.MlflowClient(f"file:{folder}/ml")
    run = client.get_run(made.run_id)
    steps = [(e.step, e.value) for e in client.get_metric_history(made.run_id, "val_loss")]
    return (
        made.version == made.run_id,
        made.name == made.experiment_id == run.info.experiment_id,
        made.save_dir == str(folder / "ml"),
        run.info.status,
        run.data.params,
        run.data.tags["t"],
        run.info.run_name,
        steps,
    )


def _own(pl, calls):
    """A logger of a script's own that notes what it is told."""

    class Own(pl.loggers.Logger):
        @property
        def name(self):
            return "own"

        @property
        def version(self):
            return "1"

        def log_hyperparams(self, params, *args, **kwargs):
            calls.append(("hyperparameters", dict(params)))

        def log_metrics(self, metrics, step):
            calls.append(("metrics", dict(metrics), step))

        def log_graph(self, model, input_array=None):
            calls.append(("graph", type(model).__name__))

        def after_save_checkpoint(self, checkpoint_callback):
            path = checkpoint_callback.best_model_path
            calls.append(("checkpoint", os.path.basename(path), os.path.exists(path)))

        def save(self):
            calls.append(("save",))

        def finalize(self, status):
            calls.append(("finalize", status))

    return Own()


def a_logger_of_ones_own_is_told(pl, folder):
    """A logger of a script's own gets hyperparameters, graph, metrics, save and finalize."""
    calls = []
    _fit(pl, folder, _own(pl, calls), max_epochs=1)
    ordered = [call for call in calls if call[0] != "save"]
    return ordered, [calls[i + 1][0] for i, call in enumerate(calls) if call[0] == "metrics"]


def a_logger_is_told_of_a_failure(pl, folder):
    """After an error `finalize` gets "failed"."""
    calls = []

    class Fails(_with_hyperparameters(pl)):
        def training_step(self, batch, batch_idx):
            raise ArithmeticError

    try:
        _fit(pl, folder, _own(pl, calls), Fails())
    except ArithmeticError:
        return [call for call in calls if call[0] == "finalize"]


def a_logger_is_told_of_checkpoints(pl, folder):
    """`after_save_checkpoint` is called once a file is there."""
    calls = []
    callback = pl.callbacks.ModelCheckpoint(folder / "kept")
    flags = {"enable_checkpointing": True, "callbacks": [callback]}
    _fit(pl, folder, _own(pl, calls), **flags)
    told = [call for call in calls if call[0] == "checkpoint"]
    return told[-1], all(there for *_, there in told)


def a_trial_run_has_a_dummy_logger(pl, folder):
    """In `fast_dev_run` a logger takes any call and writes nothing."""
    for logger in (pl.loggers.CSVLogger(folder / "logs"), True, [_own(pl, [])], False):
        flags = {**QUIET, "logger": logger, "fast_dev_run": True}
        trainer = pl.Trainer(default_root_dir=folder / "root", **flags)
        kinds = [type(each).__name__ for each in trainer.loggers]
        if trainer.logger is not None:
            trainer.logger.experiment.add_scalar("a", 1, 0)
            trainer.logger.log_metrics({"a": 1})
            kinds += [trainer.logger.name, trainer.logger.version, trainer.logger.anything(1)]
        trainer.fit(regression(pl)(), loader(), loader(4))
    return [str(kind) for kind in kinds], _files(folder)


def a_logger_can_be_set(pl, folder):
    """`trainer.logger` and `trainer.loggers` may be set before a call."""
    trainer = pl.Trainer(default_root_dir=folder, **{**QUIET, "max_epochs": 1})
    trainer.logger = pl.loggers.CSVLogger(folder / "logs")
    trainer.fit(regression(pl)(), loader(), loader(4))
    first = len(trainer.loggers)
    trainer.loggers = []
    return first, trainer.logger is None, _files(folder)


def mlflow_gets_the_models(pl, folder):
    """`MLFlowLogger(log_model=True)` uploads checkpoints as artifacts."""
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    made = pl.loggers.MLFlowLogger("exp", save_dir=str(folder / "ml"), log_model=True)
    _fit(pl, folder, made, max_epochs=1, enable_checkpointing=True)
    return made.version is not None


REFUSED = {
    "mlflow_gets_the_models": r"MLFlowLogger\(log_model=True\) is not supported: checkpoints"
}
