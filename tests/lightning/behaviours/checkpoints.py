"""`ModelCheckpoint`, the files it writes, and what hooks see of a checkpoint."""

import os
from datetime import timedelta

import torch
from small import QUIET, loader, regression, weights

REFUSED = {
    "fit_goes_on_from_a_file_of_lightnings": r"does not say which samples were used, so training",
    "loops_can_be_removed_before_a_resume": r"checkpoint\['loops'\], which says nothing here",
}


def _fit(pl, folder, *callbacks, model=None, epochs=2, val=True, ckpt_path=None, **flags):
    """A short training with these callbacks; the trainer."""
    model = model or regression(pl)()
    options = {**QUIET, "enable_checkpointing": True, "max_epochs": epochs, **flags}
    trainer = pl.Trainer(default_root_dir=folder, callbacks=list(callbacks), **options)
    loaders = [loader()] + ([loader(4)] if val else [])
    trainer.fit(model, *loaders, ckpt_path=ckpt_path)
    trainer.fitted = model
    return trainer


def _names(folder):
    """The checkpoints in a folder."""
    return sorted(name for name in os.listdir(folder) if name.endswith(".ckpt"))


def _scores(pl, *values):
    """A model whose validations score so."""

    class Scored(regression(pl)):
        def on_validation_epoch_end(self):
            self.log("score", values[self.current_epoch])

    return Scored()


def a_plain_callback_keeps_the_newest(pl, folder):
    """Without a metric the newest epoch stays, below `checkpoints`."""
    callback = pl.callbacks.ModelCheckpoint()
    _fit(pl, folder, callback)
    return _names(folder / "checkpoints"), os.path.relpath(callback.best_model_path, folder)


def dirpath_is_where_files_go(pl, folder):
    """`dirpath` is the folder of the files, wherever it is."""
    callback = pl.callbacks.ModelCheckpoint(dirpath=folder / "far" / "away")
    _fit(pl, folder / "root", callback)
    return _names(folder / "far" / "away"), callback.dirpath == str(folder / "far" / "away")


def a_file_holds_lightnings_keys(pl, folder):
    """A file is read with `weights_only=True` and holds state, epoch, step and so on."""
    callback = pl.callbacks.ModelCheckpoint(dirpath=folder / "files")
    _fit(pl, folder, callback)
    found = torch.load(callback.best_model_path, weights_only=True)
    keys = ("epoch", "global_step", "state_dict", "optimizer_states", "lr_schedulers")
    return (
        {key: found[key] for key in keys},
        isinstance(found["pytorch-lightning_version"], str),
        sorted(found["loops"]),
        sorted(found["callbacks"]),
    )


def optimizer_states_are_torchs(pl, folder):
    """`optimizer_states` are what the optimizer's own `state_dict` gives."""

    class Model(regression(pl)):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    callback = pl.callbacks.ModelCheckpoint(dirpath=folder / "files")
    _fit(pl, folder, callback, model=Model())
    found = torch.load(callback.best_model_path, weights_only=True)
    (state,) = found["optimizer_states"]
    return (
        state["state"],
        [g["params"] for g in state["param_groups"]],
        sorted(found["lr_schedulers"][0]),
    )


def the_best_are_kept(pl, folder):
    """`save_top_k` of the best by `monitor` stay, with their scores."""
    callback = pl.callbacks.ModelCheckpoint(
        dirpath=folder / "files", monitor="score", save_top_k=2, filename="{epoch}"
    )
    _fit(pl, folder, callback, model=_scores(pl, 3.0, 1.0, 2.0, 4.0), epochs=4)
    name = os.path.basename
    return (
        _names(folder / "files"),
        {name(path): score for path, score in callback.best_k_models.items()},
        name(callback.best_model_path),
        callback.best_model_score,
        name(callback.kth_best_model_path),
        callback.kth_value,
        callback.current_score,
    )


def mode_max_keeps_the_largest(pl, folder):
    """With `mode="max"` larger is better."""
    callback = pl.callbacks.ModelCheckpoint(
        dirpath=folder / "files", monitor="score", mode="max", filename="{epoch}-{score:.1f}"
    )
    _fit(pl, folder, callback, model=_scores(pl, 3.0, 5.0, 2.0), epochs=3)
    return _names(folder / "files"), callback.best_model_score


def all_are_kept(pl, folder):
    """`save_top_k=-1` keeps every one."""
    callback = pl.callbacks.ModelCheckpoint(dirpath=folder / "files", save_top_k=-1)
    _fit(pl, folder, callback, epochs=3)
    return _names(folder / "files"), os.path.basename(callback.best_model_path)


def none_are_kept(pl, folder):
    """`save_top_k=0` writes nothing."""
    callback = pl.callbacks.ModelCheckpoint(dirpath=folder / "files", save_top_k=0)
    _fit(pl, folder, callback)
    return callback.best_model_path, (folder / "files").exists() and _names(folder / "files")


def nan_is_the_worst(pl, folder):
    """A score that is no number counts as the worst."""
    callback = pl.callbacks.ModelCheckpoint(
        dirpath=folder / "files", monitor="score", save_top_k=2, filename="{epoch}"
    )
    _fit(pl, folder, callback, model=_scores(pl, float("nan"), 1.0, 2.0), epochs=3)
    return _names(folder / "files"), sorted(callback.best_k_models.values())


def names_hold_metrics(pl, folder):
    """A name may hold formatted metrics, with or without their names."""
    one = pl.callbacks.ModelCheckpoint(
        dirpath=folder / "one", filename="{epoch:02d}-{step}-{val_loss:.2f}"
    )
    two = pl.callbacks.ModelCheckpoint(
        dirpath=folder / "two",
        filename="e{epoch}-l{val_loss:.3f}",
        auto_insert_metric_name=False,
        every_n_epochs=2,
    )
    _fit(pl, folder, one, two)
    return _names(folder / "one"), _names(folder / "two")


def format_checkpoint_name_fills_a_template(pl, folder):
    """`format_checkpoint_name` puts values into the template; a missing one is 0."""
    kind = pl.callbacks.ModelCheckpoint
    return [
        os.path.basename(kind(dirpath=folder, filename=name, **more).format_checkpoint_name(values))
        for name, values, more in (
            ("{epoch}", {"epoch": 0}, {}),
            ("{epoch:03d}", {"epoch": 5}, {}),
            ("{epoch}-{val_loss:.2f}", {"epoch": 2, "val_loss": 0.123456}, {}),
            ("{missing:d}", {}, {}),
            ("e={epoch}-{a/b:.1f}", {"epoch": 2, "a/b": 1}, {"auto_insert_metric_name": False}),
            (None, {"epoch": 1, "step": 2}, {}),
        )
    ], kind(filename="{epoch}").format_checkpoint_name({"epoch": 1}, ver=3, prefix="test")


def last_is_a_file_of_its_own(pl, folder):
    """`save_last=True` writes `last.ckpt` beside the best one."""
    callback = pl.callbacks.ModelCheckpoint(
        dirpath=folder / "files", monitor="score", save_last=True, filename="{epoch}"
    )
    _fit(pl, folder, callback, model=_scores(pl, 1.0, 2.0), epochs=2)
    last = torch.load(callback.last_model_path, weights_only=True)
    return _names(folder / "files"), last["epoch"], os.path.basename(callback.last_model_path)


def last_may_be_a_link(pl, folder):
    """`save_last="link"` makes `last.ckpt` a link to the newest file."""
    callback = pl.callbacks.ModelCheckpoint(dirpath=folder / "files", save_last="link")
    _fit(pl, folder, callback)
    path = callback.last_model_path
    return os.path.islink(path), os.readlink(path), torch.load(path, weights_only=True)["epoch"]


def without_save_last_there_is_no_last(pl, folder):
    """`last_model_path` is empty unless `save_last` is set."""
    callback = pl.callbacks.ModelCheckpoint(dirpath=folder / "files")
    _fit(pl, folder, callback)
    return callback.last_model_path, callback.CHECKPOINT_NAME_LAST


def another_name_for_last(pl, folder):
    """`CHECKPOINT_NAME_LAST` is a template too."""
    callback = pl.callbacks.ModelCheckpoint(dirpath=folder / "files", save_last=True)
    callback.CHECKPOINT_NAME_LAST = "{epoch}-last"
    _fit(pl, folder, callback)
    return _names(folder / "files"), os.path.basename(callback.last_model_path)


def every_n_train_steps_saves_within_epochs(pl, folder):
    """`every_n_train_steps` counts optimizer steps."""
    callback = pl.callbacks.ModelCheckpoint(
        dirpath=folder / "files", every_n_train_steps=3, save_top_k=-1
    )
    _fit(pl, folder, callback)
    steps = [
        torch.load(folder / "files" / name, weights_only=True)["global_step"]
        for name in _names(folder / "files")
    ]
    return _names(folder / "files"), steps


def every_n_epochs_leaves_epochs_out(pl, folder):
    """`every_n_epochs` saves every so many epochs."""
    callback = pl.callbacks.ModelCheckpoint(
        dirpath=folder / "files", every_n_epochs=2, save_top_k=-1
    )
    _fit(pl, folder, callback, epochs=5)
    return _names(folder / "files"), callback.every_n_epochs


def a_clock_saves(pl, folder):
    """`train_time_interval` saves when so much time has passed."""
    callback = pl.callbacks.ModelCheckpoint(
        dirpath=folder / "files", train_time_interval=timedelta(0), save_top_k=1
    )
    _fit(pl, folder, callback)
    return _names(folder / "files")


def the_version_counter_spares_what_is_there(pl, folder):
    """A file that is there already is not written over: the name gets `-v1`."""
    (folder / "files").mkdir()
    (folder / "files" / "epoch=0.ckpt").write_text("mine")
    for _ in range(2):
        callback = pl.callbacks.ModelCheckpoint(dirpath=folder / "files", filename="{epoch}")
        _fit(pl, folder, callback, epochs=1)
    return _names(folder / "files"), (folder / "files" / "epoch=0.ckpt").read_text()


def without_the_version_counter_files_are_written_over(pl, folder):
    """`enable_version_counter=False` writes over what has the name."""
    (folder / "files").mkdir()
    (folder / "files" / "epoch=0.ckpt").write_text("mine")
    callback = pl.callbacks.ModelCheckpoint(
        dirpath=folder / "files", filename="{epoch}", enable_version_counter=False
    )
    _fit(pl, folder, callback, epochs=1)
    return _names(folder / "files"), torch.load(callback.best_model_path, weights_only=True)[
        "epoch"
    ]


def weights_only_leaves_the_rest_out(pl, folder):
    """`save_weights_only=True` writes no optimizers and callbacks."""
    callback = pl.callbacks.ModelCheckpoint(dirpath=folder / "files", save_weights_only=True)
    _fit(pl, folder, callback)
    found = torch.load(callback.best_model_path, weights_only=True)
    return [key in found for key in ("state_dict", "optimizer_states", "callbacks", "loops")]


def two_callbacks_have_keys_of_their_own(pl, folder):
    """Two of these may differ in what they watch; their state keys say so."""
    kind = pl.callbacks.ModelCheckpoint
    one = kind(dirpath=folder / "one", filename="{epoch}")
    two = kind(dirpath=folder / "two", monitor="val_loss", every_n_epochs=2)
    _fit(pl, folder, one, two)
    return (
        one.state_key,
        two.state_key,
        sorted(torch.load(one.best_model_path, weights_only=True)["callbacks"]),
    )


def two_callbacks_of_one_key_are_refused(pl, folder):
    """Two callbacks with state and one state key are an error."""
    kind = pl.callbacks.ModelCheckpoint
    try:
        _fit(pl, folder, kind(dirpath=folder / "one"), kind(dirpath=folder / "two"))
    except Exception as error:
        return "state_key" in str(error)
    return False


def a_metric_that_is_never_logged_is_an_error(pl, folder):
    """After a validation `monitor` must have been logged."""
    try:
        _fit(pl, folder, pl.callbacks.ModelCheckpoint(dirpath=folder, monitor="nothing"))
    except Exception as error:
        return "nothing" in str(error)
    return False


def bad_arguments_are_refused(pl, folder):
    """Arguments that exclude each other or mean nothing are errors."""
    refused = []
    for arguments in (
        {"mode": "most"},
        {"save_top_k": -2},
        {"save_top_k": 3},
        {"every_n_train_steps": 1, "every_n_epochs": 1},
        {"every_n_train_steps": -1},
    ):
        try:
            pl.callbacks.ModelCheckpoint(**arguments)
        except Exception:
            refused.append(True)
    return refused


def a_file_gives_its_weights(pl, folder):
    """`load_from_checkpoint` takes the file of the best epoch."""
    callback = pl.callbacks.ModelCheckpoint(
        dirpath=folder / "files", monitor="score", filename="{epoch}"
    )
    kept = []

    class Kept(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            kept.append(weights(pl_module))

    _fit(pl, folder, Kept(), callback, model=_scores(pl, 2.0, 1.0, 3.0), epochs=3)
    found = regression(pl).load_from_checkpoint(callback.best_model_path)
    return weights(found) == kept[1], weights(found)


def fit_goes_on_from_a_file(pl, folder):
    """`fit(ckpt_path=file)` goes on where the file was written."""
    first = pl.callbacks.ModelCheckpoint(dirpath=folder / "files")
    _fit(pl, folder / "one", first, epochs=1)
    seen = []

    class Seen(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            seen.append((trainer.current_epoch, trainer.global_step))

    trainer = _fit(pl, folder / "two", Seen(), epochs=3, ckpt_path=first.best_model_path)
    return seen, trainer.global_step, weights(trainer.fitted)


def validate_takes_a_file(pl, folder):
    """`validate(ckpt_path=file)` measures the file's weights."""
    callback = pl.callbacks.ModelCheckpoint(dirpath=folder / "files")
    trainer = _fit(pl, folder, callback, epochs=1)
    return trainer.validate(regression(pl)(), loader(), ckpt_path=callback.best_model_path)


def save_checkpoint_writes_a_file(pl, folder):
    """`Trainer.save_checkpoint` writes the state as it is, and fit goes on from it."""
    trainer = _fit(pl, folder, epochs=1)
    trainer.save_checkpoint(folder / "deep" / "mine.ckpt")
    found = torch.load(folder / "deep" / "mine.ckpt", weights_only=True)
    again = _fit(pl, folder / "two", epochs=2, ckpt_path=str(folder / "deep" / "mine.ckpt"))
    return found["global_step"], found["state_dict"], again.global_step, weights(again.fitted)


def save_checkpoint_of_weights(pl, folder):
    """`save_checkpoint(weights_only=True)` leaves optimizers out."""
    trainer = _fit(pl, folder, epochs=1)
    trainer.save_checkpoint(folder / "mine.ckpt", weights_only=True)
    found = torch.load(folder / "mine.ckpt", weights_only=True)
    return "optimizer_states" in found, found["state_dict"]


def save_checkpoint_within_a_hook(pl, folder):
    """A hook may save a file, too."""

    class Saves(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 1:
                trainer.save_checkpoint(folder / "here.ckpt")

    _fit(pl, folder, Saves(), epochs=1)
    found = torch.load(folder / "here.ckpt", weights_only=True)
    return found["epoch"], found["global_step"], found["state_dict"]


def hooks_see_lightnings_keys(pl, folder):
    """`on_save_checkpoint` sees the checkpoint under its documented keys."""
    seen = []

    class Model(regression(pl)):
        def on_save_checkpoint(self, checkpoint):
            keys = ("epoch", "global_step", "state_dict", "optimizer_states", "lr_schedulers")
            seen.append([key in checkpoint for key in (*keys, "callbacks", "loops")])
            seen.append(sorted(checkpoint["state_dict"]))

    _fit(pl, folder, pl.callbacks.ModelCheckpoint(dirpath=folder), model=Model(), epochs=1)
    return seen[-2:]


def a_hook_adds_a_key(pl, folder):
    """What `on_save_checkpoint` adds is in the file, and `on_load_checkpoint` sees it."""
    seen = []

    class Model(regression(pl)):
        def on_save_checkpoint(self, checkpoint):
            checkpoint["mine"] = {"a": [1, 2], "tensor": torch.ones(2)}

        def on_load_checkpoint(self, checkpoint):
            seen.append(checkpoint["mine"])

    callback = pl.callbacks.ModelCheckpoint(dirpath=folder / "files")
    _fit(pl, folder / "one", callback, model=Model(), epochs=1)
    found = torch.load(callback.best_model_path, weights_only=True)["mine"]
    Model.load_from_checkpoint(callback.best_model_path)
    _fit(pl, folder / "two", model=Model(), epochs=2, ckpt_path=callback.best_model_path)
    return found, seen


def a_hook_removes_weights(pl, folder):
    """A hook may take weights out of the checkpoint, and put them back on loading."""

    class Model(regression(pl)):
        def on_save_checkpoint(self, checkpoint):
            del checkpoint["state_dict"]["layer.bias"]

        def on_load_checkpoint(self, checkpoint):
            checkpoint["state_dict"]["layer.bias"] = torch.zeros(1)

    callback = pl.callbacks.ModelCheckpoint(dirpath=folder / "files")
    _fit(pl, folder / "one", callback, model=Model(), epochs=1)
    found = sorted(torch.load(callback.best_model_path, weights_only=True)["state_dict"])
    return found, weights(Model.load_from_checkpoint(callback.best_model_path))


def a_callback_adds_and_finds_a_key(pl, folder):
    """Callbacks have the same hooks."""
    seen = []

    class Own(pl.Callback):
        def on_save_checkpoint(self, trainer, pl_module, checkpoint):
            checkpoint["own"] = trainer.global_step

        def on_load_checkpoint(self, trainer, pl_module, checkpoint):
            seen.append((checkpoint["own"], checkpoint["epoch"], checkpoint["global_step"]))

    callback = pl.callbacks.ModelCheckpoint(dirpath=folder / "files")
    _fit(pl, folder / "one", callback, Own(), epochs=1)
    _fit(pl, folder / "two", Own(), epochs=2, ckpt_path=callback.best_model_path)
    return seen


def a_hook_resets_the_optimizer(pl, folder):
    """A hook may put other optimizer states in place of the saved ones."""

    class Model(regression(pl)):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)

        def on_load_checkpoint(self, checkpoint):
            checkpoint["optimizer_states"][0]["state"] = {}

    callback = pl.callbacks.ModelCheckpoint(dirpath=folder / "files")
    _fit(pl, folder / "one", callback, model=Model(), epochs=1)
    trainer = _fit(pl, folder / "two", model=Model(), epochs=2, ckpt_path=callback.best_model_path)
    return weights(trainer.fitted)


def callbacks_keep_state(pl, folder):
    """`state_dict` of a callback is saved under its state key and given back."""
    seen = []

    class Counter(pl.Callback):
        def __init__(self):
            self.count = 0

        def on_train_batch_end(self, *arguments):
            self.count += 1

        def state_dict(self):
            return {"count": self.count}

        def load_state_dict(self, state):
            seen.append(state)

    callback = pl.callbacks.ModelCheckpoint(dirpath=folder / "files")
    _fit(pl, folder / "one", Counter(), callback, epochs=1)
    found = torch.load(callback.best_model_path, weights_only=True)["callbacks"]
    _fit(pl, folder / "two", Counter(), epochs=2, ckpt_path=callback.best_model_path)
    key = next(key for key in found if "Counter" in key)
    return key == Counter().state_key, found[key], seen


def on_exception_a_file_is_written(pl, folder):
    """`save_on_exception=True` writes a file when training raises."""

    class Fails(regression(pl)):
        def training_step(self, batch, batch_idx):
            if self.trainer.global_step == 3:
                raise ArithmeticError("stop")
            return super().training_step(batch, batch_idx)

    callback = pl.callbacks.ModelCheckpoint(dirpath=folder / "files", save_on_exception=True)
    try:
        _fit(pl, folder, callback, model=Fails())
    except ArithmeticError:
        found = torch.load(folder / "files" / _names(folder / "files")[0], weights_only=True)
        return _names(folder / "files"), found["global_step"], found["state_dict"]


def lightning_goes_on_from_the_file(pl, folder):
    """Lightning itself loads the file and goes on from it."""
    import lightning.pytorch as reference

    callback = pl.callbacks.ModelCheckpoint(dirpath=folder / "files")
    _fit(pl, folder / "one", callback, epochs=1)
    path = callback.best_model_path
    found = regression(reference).load_from_checkpoint(path)
    trainer = _fit(reference, folder / "two", epochs=3, ckpt_path=path)
    return weights(found), trainer.global_step, trainer.current_epoch, weights(trainer.fitted)


def _of_lightnings(folder):
    """A file that Lightning wrote."""
    import lightning.pytorch as reference

    callback = reference.callbacks.ModelCheckpoint(dirpath=folder / "theirs")
    _fit(reference, folder / "theirs", callback, epochs=1)
    return callback.best_model_path


def a_file_of_lightnings_gives_its_weights(pl, folder):
    """A file that Lightning wrote is loaded, and validated with."""
    path = _of_lightnings(folder)
    trainer = pl.Trainer(default_root_dir=folder, **QUIET)
    found = regression(pl).load_from_checkpoint(path)
    return weights(found), trainer.validate(regression(pl)(), loader(), ckpt_path=path)


def fit_goes_on_from_a_file_of_lightnings(pl, folder):
    """Lightning goes on from its own file; it does not say which samples were used."""
    return _fit(pl, folder, epochs=2, ckpt_path=_of_lightnings(folder)).global_step


def loops_can_be_removed_before_a_resume(pl, folder):
    """A hook may remove the progress of the loops from the checkpoint."""

    class Model(regression(pl)):
        def on_load_checkpoint(self, checkpoint):
            del checkpoint["loops"]

    callback = pl.callbacks.ModelCheckpoint(dirpath=folder / "files")
    _fit(pl, folder / "one", callback, epochs=1)
    path = callback.best_model_path
    return _fit(pl, folder / "two", model=Model(), epochs=2, ckpt_path=path).global_step


class _Taught:
    """Two optimizers that a module steps itself."""

    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(torch.nn.functional.mse_loss(self(batch[0]), batch[1]))
            optimizer.step()

    def configure_optimizers(self):
        first, second = list(self.parameters())[:1], list(self.parameters())[1:]
        return torch.optim.SGD(first, 0.1), torch.optim.SGD(second, 0.1)


def files_of_several_optimizers_are_of_their_step(pl, folder):
    """`global_step` counts each optimizer's steps, and a file holds what there was at that step."""
    model = type("Taught", (_Taught, regression(pl)), {"automatic_optimization": False})()
    callback = pl.callbacks.ModelCheckpoint(dirpath=folder / "f", save_top_k=-1, save_last=True)
    trainer = _fit(pl, folder, callback, model=model)
    found = torch.load(callback.last_model_path, weights_only=True)
    manual = found["loops"]["fit_loop"]["epoch_loop.manual_optimization.optim_step_progress"]
    same = all(torch.equal(v, found["state_dict"][k]) for k, v in model.state_dict().items())
    return _names(folder / "f"), trainer.global_step, found["global_step"], manual["total"], same


def a_file_of_several_optimizers_may_be_written_at_any_moment(pl, folder):
    """`save_checkpoint` within training holds the same count."""

    class Saves(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            if trainer.global_step == 4:
                trainer.save_checkpoint(folder / "here.ckpt")

    model = type("Taught", (_Taught, regression(pl)), {"automatic_optimization": False})()
    _fit(pl, folder, Saves(), model=model)
    return torch.load(folder / "here.ckpt", weights_only=True)["global_step"]


def loggers_count_batches_where_optimizers_are_several(pl, folder):
    """Loggers number values by the batches of training, also after it."""

    class Logs(_Taught, regression(pl)):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            super().training_step(batch, batch_idx)
            self.log("seen", float(batch_idx))

        def test_step(self, batch, batch_idx):
            self.log("tested", 1.0)

    logger = pl.loggers.CSVLogger(folder)
    trainer = pl.Trainer(**{**QUIET, "logger": logger, "max_epochs": 1, "log_every_n_steps": 1})
    model = Logs()
    trainer.fit(model, loader())
    trainer.test(model, loader())
    text = (folder / "lightning_logs" / "version_0" / "metrics.csv").read_text()
    names, *rows = (line.split(",") for line in text.splitlines())
    return sorted(row[names.index("step")] for row in rows)
