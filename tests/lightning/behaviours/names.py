"""Where names are imported from."""

import importlib


def _module(pl, path):
    return importlib.import_module(f"{pl.__name__}.{path}")


def the_version_is_that_of_the_names(pl, folder):
    """`lightning.pytorch.__version__` is there to be compared."""
    return pl.__version__


def a_callback_is_one_class_on_all_paths(pl, folder):
    """A callback imported from its module is the one of the package."""
    paths = {
        "early_stopping": "EarlyStopping", "model_checkpoint": "ModelCheckpoint",
        "lr_monitor": "LearningRateMonitor", "progress.tqdm_progress": "TQDMProgressBar",
        "timer": "Timer", "device_stats_monitor": "DeviceStatsMonitor",
    }  # fmt: skip
    package = _module(pl, "callbacks")
    return [
        getattr(_module(pl, f"callbacks.{path}"), name) is getattr(package, name)
        for path, name in paths.items()
    ]


def a_logger_is_one_class_on_all_paths(pl, folder):
    """A logger imported from its module is the one of the package."""
    paths = {"csv_logs": "CSVLogger", "tensorboard": "TensorBoardLogger", "logger": "Logger"}
    package = _module(pl, "loggers")
    return [
        getattr(_module(pl, f"loggers.{path}"), name) is getattr(package, name)
        for path, name in paths.items()
    ]


def the_main_classes_have_their_own_modules(pl, folder):
    """Trainer, LightningModule and LightningDataModule are found in their modules too."""
    return (
        _module(pl, "trainer.trainer").Trainer is _module(pl, "trainer").Trainer is pl.Trainer,
        _module(pl, "core.module").LightningModule is pl.LightningModule,
        _module(pl, "core").LightningDataModule is pl.LightningDataModule,
        issubclass(pl.LightningModule, _module(pl, "core.mixins").HyperparametersMixin),
        _module(pl, "callbacks.callback").Callback is pl.Callback,
    )


def accelerators_are_asked_what_there_is(pl, folder):
    """Accelerators tell whether there are devices, how many, and their name."""
    found = _module(pl, "accelerators")
    kinds = (found.CPUAccelerator, found.CUDAAccelerator)
    try:
        found.find_usable_cuda_devices(3)
    except ValueError:
        none = "ValueError"
    return (
        [(kind.is_available(), kind.auto_device_count(), kind.name()) for kind in kinds],
        found.find_usable_cuda_devices(0), none,
    )  # fmt: skip


def an_accelerator_may_be_given_as_an_object(pl, folder):
    """`Trainer(accelerator=CPUAccelerator())` is its name."""
    from small import QUIET, loader, regression, weights

    accelerator = _module(pl, "accelerators").CPUAccelerator()
    flags = {**QUIET, "accelerator": accelerator}
    model = regression(pl)()
    pl.Trainer(max_epochs=1, default_root_dir=folder, **flags).fit(model, loader())
    return weights(model)


def a_star_import_gives_the_package_s_names(pl, folder):
    """``from lightning.pytorch.callbacks import *`` gives the callbacks."""
    found = {}
    exec(f"from {pl.__name__}.callbacks import *", found)
    return all(name in found for name in ("EarlyStopping", "ModelCheckpoint", "Timer"))


def names_that_are_not_used_do_no_harm(pl, folder):
    """A script may import what it does not use."""
    names = {
        "plugins": "CheckpointIO DoublePrecision", "plugins.environments": "SLURMEnvironment",
        "strategies": "ModelParallelStrategy SingleDeviceStrategy", "loops": "_FitLoop",
        "profilers": "XLAProfiler", "overrides.distributed": "UnrepeatedDistributedSampler",
    }  # fmt: skip
    found = [getattr(_module(pl, path), name) for path, n in names.items() for name in n.split()]
    return len(found), [isinstance(1, cls) for cls in found]


def a_precision_plugin_is_a_flag(pl, folder):
    """`DoublePrecision` as a plugin computes in float64."""
    plugin = _module(pl, "plugins").DoublePrecision()
    return pl.Trainer(plugins=plugin, accelerator="cpu", logger=False).precision


def a_cluster_environment_is_a_plugin(pl, folder):
    """`LightningEnvironment` as a plugin says how processes find each other."""
    environment = _module(pl, "plugins.environments").LightningEnvironment()
    return pl.Trainer(plugins=environment, accelerator="cpu", logger=False).world_size


def a_loop_may_be_derived_from(pl, folder):
    """Loops are classes of Lightning's inside."""
    return isinstance(type("Own", (_module(pl, "loops")._FitLoop,), {}), type)


REFUSED = {
    "a_precision_plugin_is_a_flag": r"DoublePrecision is not supported: write "
    r"Trainer\(precision='64-true'\)",
    "a_cluster_environment_is_a_plugin": "LightningEnvironment is not supported: .*torchrun",
    "a_loop_may_be_derived_from": "_FitLoop is not supported: .*automatic_optimization=False",
}
