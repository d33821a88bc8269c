"""What Lightning documents on its Trainer, LightningModule and LightningDataModule."""

import importlib
import math

import pytest
import torch
from small import QUIET, loader, regression, weights

NAMES = (
    "max_epochs",
    "min_epochs",
    "min_steps",
    "gradient_clip_val",
    "limit_train_batches",
    "limit_val_batches",
    "limit_test_batches",
    "limit_predict_batches",
    "check_val_every_n_epoch",
    "log_every_n_steps",
    "accumulate_grad_batches",
    "reload_dataloaders_every_n_epochs",
    "num_sanity_val_steps",
    "overfit_batches",
    "fast_dev_run",
    "barebones",
    "enable_autolog_hparams",
    "val_check_interval",
    "precision",
)


def _trainer(pl, folder, **options):
    return pl.Trainer(**{"max_epochs": 1, "default_root_dir": folder, **QUIET, **options})


def _looking(pl, look, hook="on_train_batch_end"):
    """A callback that notes what ``look(trainer)`` gives in a hook."""

    class Looking(pl.Callback):
        def __init__(self):
            self.seen = []

    def note(self, trainer, *rest):
        self.seen.append(look(trainer))

    setattr(Looking, hook, note)
    return Looking()


def _states(trainer):
    return (
        trainer.training,
        trainer.validating,
        trainer.testing,
        trainer.predicting,
        trainer.evaluating,
        trainer.sanity_checking,
        str(getattr(trainer.state.fn, "value", trainer.state.fn)),
        str(getattr(trainer.state.stage, "value", trainer.state.stage)),
        str(getattr(trainer.state.status, "value", trainer.state.status)),
    )


def stages_are_told_in_fit(pl, folder):
    """`training`, `validating` and so on say what is going on; so does `state`."""
    seen = []

    class Seen(pl.Callback):
        def on_train_batch_start(self, trainer, *rest):
            seen.append(_states(trainer))

        def on_validation_batch_start(self, trainer, *rest):
            seen.append(_states(trainer))

        def on_train_epoch_end(self, trainer, *rest):
            seen.append(_states(trainer))

    trainer = _trainer(pl, folder, callbacks=[Seen()], num_sanity_val_steps=1)
    trainer.fit(regression(pl)(), loader(4), loader(4))
    return seen, _states(trainer)


def stages_are_told_in_other_calls(pl, folder):
    """The same holds for `validate`, `test` and `predict`."""
    found = []
    for call in ("validate", "test", "predict"):
        look = _looking(pl, _states, f"on_{call.replace('date', 'dation')}_batch_start")
        trainer = _trainer(pl, folder / call, callbacks=[look])
        getattr(trainer, call)(regression(pl)(), loader(4))
        found.append((look.seen, _states(trainer)))
    return found


def a_new_trainer_has_done_nothing(pl, folder):
    """Before any call the state is that of a beginning."""
    trainer = _trainer(pl, folder)
    return _states(trainer), trainer.global_step, trainer.current_epoch, trainer.interrupted


def an_error_interrupts(pl, folder):
    """After an error `interrupted` is True."""

    class Failing(regression(pl)):
        def training_step(self, batch, batch_idx):
            raise ValueError("no")

    trainer = _trainer(pl, folder)
    with pytest.raises(ValueError, match="no"):
        trainer.fit(Failing(), loader())
    return trainer.interrupted, trainer.received_sigterm


def batches_are_counted_beforehand(pl, folder):
    """`num_training_batches`, `num_val_batches` and `num_sanity_val_batches` in a fit."""
    look = _looking(
        pl,
        lambda t: (t.num_training_batches, t.num_val_batches, t.num_sanity_val_batches),
        "on_train_start",
    )
    options = {"callbacks": [look], "num_sanity_val_steps": 2, "limit_val_batches": 3}
    _trainer(pl, folder, **options).fit(regression(pl)(), loader(10), loader(8))
    return look.seen


def batches_of_other_calls_are_counted(pl, folder):
    """`num_test_batches` and `num_predict_batches` are lists, one number for each loader."""
    trainer = _trainer(pl, folder, limit_predict_batches=2)
    trainer.test(regression(pl)(), loader(6), verbose=False)
    trainer.predict(regression(pl)(), loader(6))
    trainer.validate(regression(pl)(), loader(8), verbose=False)
    return trainer.num_test_batches, trainer.num_predict_batches, trainer.num_val_batches


def batches_are_unknown_before_fit(pl, folder):
    """Before `fit` nobody knows how many there are."""
    return math.isinf(_trainer(pl, folder).num_training_batches)


def the_last_batch_is_told(pl, folder):
    """`is_last_batch` in `training_step` and after the step."""
    seen = []

    class Seen(regression(pl)):
        def training_step(self, batch, batch_idx):
            seen.append(("step", batch_idx, self.trainer.is_last_batch))
            return self.loss(batch)

        def on_train_batch_end(self, outputs, batch, batch_idx):
            seen.append(("end", batch_idx, self.trainer.is_last_batch))

    _trainer(pl, folder, max_epochs=2).fit(Seen(), loader(6))
    return seen


def the_last_batch_of_an_accumulation_is_told(pl, folder):
    """`is_last_batch` is about batches, not about steps of the optimizer."""
    seen = []

    class Seen(regression(pl)):
        def training_step(self, batch, batch_idx):
            seen.append((batch_idx, self.trainer.is_last_batch))
            return self.loss(batch)

    _trainer(pl, folder, accumulate_grad_batches=2).fit(Seen(), loader(6))
    return seen


def loaders_can_be_asked_for(pl, folder):
    """`train_dataloader` and `val_dataloaders` are what `fit` was given."""
    train, val = loader(4), loader(6)
    look = _looking(
        pl, lambda t: (t.train_dataloader is train, t.val_dataloaders is val), "on_train_start"
    )
    trainer = _trainer(pl, folder, callbacks=[look])
    before = trainer.train_dataloader is None, trainer.val_dataloaders is None
    trainer.fit(regression(pl)(), train, val)
    return before, look.seen


def loaders_of_other_calls_can_be_asked_for(pl, folder):
    """`test_dataloaders` and `predict_dataloaders` are what these calls were given."""
    data = loader(4)
    looks = [
        _looking(pl, lambda t: t.test_dataloaders is data, "on_test_start"),
        _looking(pl, lambda t: len(t.predict_dataloaders) == len(data), "on_predict_start"),
    ]
    trainer = _trainer(pl, folder, callbacks=looks)
    trainer.test(regression(pl)(), data, verbose=False)
    trainer.predict(regression(pl)(), data)
    return [look.seen for look in looks]


def ranks_of_one_process(pl, folder):
    """One process has rank 0 everywhere, and a world of one."""
    trainer = _trainer(pl, folder)
    return (
        trainer.global_rank,
        trainer.local_rank,
        trainer.node_rank,
        trainer.world_size,
        trainer.num_nodes,
        trainer.num_devices,
        trainer.device_ids,
        trainer.is_global_zero,
        trainer.distributed_sampler_kwargs,
    )


def the_strategy_talks_to_peers(pl, folder):
    """`trainer.strategy` has `barrier`, `broadcast`, `reduce`, `all_gather` and `root_device`."""

    def look(trainer):
        strategy = trainer.strategy
        strategy.barrier("here")
        return (
            str(strategy.root_device),
            strategy.broadcast({"a": 1}),
            strategy.reduce(torch.tensor(3.0)),
            strategy.all_gather(torch.ones(2)),
            strategy.is_global_zero,
            strategy.reduce_boolean_decision(True),
        )

    look = _looking(pl, look, "on_train_start")
    _trainer(pl, folder, callbacks=[look]).fit(regression(pl)(), loader(2))
    return look.seen


def models_are_the_module_itself(pl, folder):
    """`trainer.model` and `trainer.lightning_module` are the module."""
    model = regression(pl)()
    look = _looking(pl, lambda t: (t.model is model, t.lightning_module is model))
    _trainer(pl, folder, callbacks=[look]).fit(model, loader(2))
    return look.seen


def flags_can_be_read(pl, folder):
    """The trainer's arguments are attributes."""
    trainer = _trainer(
        pl,
        folder,
        min_epochs=1,
        min_steps=2,
        gradient_clip_val=0.5,
        gradient_clip_algorithm="norm",
        limit_train_batches=3,
        limit_val_batches=0.5,
        check_val_every_n_epoch=2,
        log_every_n_steps=7,
        accumulate_grad_batches=3,
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=-1,
    )
    return {name: getattr(trainer, name) for name in NAMES}


def callbacks_can_be_found(pl, folder):
    """`early_stopping_callback` and `checkpoint_callback` are the first of their kind, or None."""
    callbacks = importlib.import_module(pl.__name__ + ".callbacks")
    stops = [callbacks.EarlyStopping("loss"), callbacks.EarlyStopping("val_loss")]
    trainer = _trainer(pl, folder, callbacks=stops)
    bare = _trainer(pl, folder)
    return (
        trainer.early_stopping_callback is stops[0],
        trainer.early_stopping_callbacks == stops,
        bare.early_stopping_callback is None,
        bare.checkpoint_callback is None,
        bare.checkpoint_callbacks,
    )


def the_checkpoint_callback_can_be_found(pl, folder):
    """`checkpoint_callback` is the `ModelCheckpoint` that was given."""
    callbacks = importlib.import_module(pl.__name__ + ".callbacks")
    given = callbacks.ModelCheckpoint(folder)
    trainer = _trainer(pl, folder, callbacks=[given], enable_checkpointing=True)
    return trainer.checkpoint_callback is given, len(trainer.checkpoint_callbacks)


def a_checkpoint_can_be_saved_by_hand(pl, folder):
    """`save_checkpoint` writes a file with the weights and the counters, which torch opens."""
    trainer = _trainer(pl, folder)
    model = regression(pl)()
    trainer.fit(model, loader())
    trainer.save_checkpoint(folder / "by/hand.ckpt")
    found = torch.load(folder / "by/hand.ckpt", weights_only=True)
    return (
        found["global_step"],
        found["epoch"],
        found["state_dict"],
        "optimizer_states" in found,
        weights(model),
    )


def weights_can_be_saved_by_hand(pl, folder):
    """With `weights_only=True` the file has no optimizer."""
    trainer = _trainer(pl, folder)
    trainer.fit(regression(pl)(), loader())
    trainer.save_checkpoint(folder / "hand.ckpt", weights_only=True)
    found = torch.load(folder / "hand.ckpt", weights_only=True)
    return found["state_dict"], "optimizer_states" in found, "callbacks" in found


def nothing_can_be_saved_before(pl, folder):
    """`save_checkpoint` without a model is an error."""
    with pytest.raises(Exception, match=r"fit"):
        _trainer(pl, folder).save_checkpoint(folder / "x.ckpt")
    return True


def a_saved_file_can_be_loaded(pl, folder):
    """`load_from_checkpoint` reads what `save_checkpoint` wrote."""
    trainer = _trainer(pl, folder)
    model = regression(pl)()
    trainer.fit(model, loader())
    trainer.save_checkpoint(folder / "hand.ckpt")
    again = type(model).load_from_checkpoint(folder / "hand.ckpt")
    return weights(again), weights(model)


def print_takes_what_python_takes(pl, folder):
    """`trainer.print` passes its arguments on to `print`."""
    with open(folder / "out.txt", "w") as file:
        _trainer(pl, folder).print("a", 1, sep="-", end="!", file=file)
    return (folder / "out.txt").read_text()


def the_precision_of_new_tensors(pl, folder):
    """Inside `init_module` tensors are made in the trainer's dtype, and afterwards as before."""
    trainer = _trainer(pl, folder, precision="64-true")
    with trainer.init_module():
        layer = torch.nn.Linear(2, 2)
    return str(layer.weight.dtype), str(torch.nn.Linear(2, 2).weight.dtype)


def optimizers_and_schedules_can_be_found(pl, folder):
    """`trainer.optimizers` and `lr_scheduler_configs` are those of `configure_optimizers`."""

    class Scheduled(regression(pl)):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
            options = {"scheduler": schedule, "interval": "step", "frequency": 2, "name": "mine"}
            return {"optimizer": optimizer, "lr_scheduler": options}

    look = _looking(
        pl,
        lambda t: (
            [type(each).__name__ for each in t.optimizers],
            [
                (type(c.scheduler).__name__, c.interval, c.frequency, c.name, c.monitor)
                for c in t.lr_scheduler_configs
            ],
        ),
        "on_train_start",
    )
    _trainer(pl, folder, callbacks=[look]).fit(Scheduled(), loader(2))
    return look.seen


def whether_it_validates(pl, folder):
    """`enable_validation` is True in a fit with validation data and a step for them."""
    found = []
    for data in (loader(2), None):
        look = _looking(pl, lambda t: t.enable_validation, "on_train_start")
        _trainer(pl, folder / str(len(found)), callbacks=[look]).fit(
            regression(pl)(), loader(2), data
        )
        found += look.seen
    return found


def metrics_for_the_progress_bar(pl, folder):
    """`progress_bar_metrics` holds what was logged with `prog_bar=True`, as numbers."""

    class Shown(regression(pl)):
        def validation_step(self, batch, batch_idx):
            self.log("shown", float(batch_idx), prog_bar=True)
            self.log("hidden", 1.0)

    look = _looking(pl, lambda t: dict(t.progress_bar_metrics), "on_validation_end")
    _trainer(pl, folder, callbacks=[look]).fit(Shown(), loader(2), loader(4))
    return look.seen


def metrics_for_loggers(pl, folder):
    """`logged_metrics` holds what was not logged with `logger=False`."""

    class Shown(regression(pl)):
        def validation_step(self, batch, batch_idx):
            self.log("shown", float(batch_idx))
            self.log("hidden", 1.0, logger=False)

        def training_step(self, batch, batch_idx):
            return self.loss(batch)

    trainer = _trainer(pl, folder)
    trainer.fit(Shown(), loader(2), loader(4))
    return trainer.logged_metrics


def a_module_can_be_frozen(pl, folder):
    """`freeze` takes gradients away and evaluates; `unfreeze` gives them back and trains."""
    model = regression(pl)()
    model.freeze()
    frozen = [p.requires_grad for p in model.parameters()], model.training
    model.unfreeze()
    return frozen, [p.requires_grad for p in model.parameters()], model.training


def a_module_knows_device_and_dtype(pl, folder):
    """`device`, `dtype` and `on_gpu` say where the parameters are."""
    model = regression(pl)()
    before = str(model.dtype)
    return str(model.device), before, str(model.double().dtype), model.on_gpu


def a_module_without_a_trainer_has_counters(pl, folder):
    """Without a trainer counters and ranks are 0."""
    model = regression(pl)()
    return model.global_step, model.current_epoch, model.global_rank, model.local_rank


def a_module_without_a_trainer_says_so(pl, folder):
    """`module.trainer` without one is an error."""
    with pytest.raises(RuntimeError, match="attached to a"):
        _ = regression(pl)().trainer
    return True


def a_module_keeps_its_trainer_after_fit(pl, folder):
    """After `fit` the module's trainer, counters and metrics can still be asked for."""
    model, trainer = regression(pl)(), _trainer(pl, folder)
    trainer.fit(model, loader())
    return model.trainer is trainer, model.global_step, model.current_epoch


def a_module_prints_once(pl, folder):
    """`module.print` takes what Python's `print` takes."""

    class Printing(regression(pl)):
        def on_train_start(self):
            with open("said.txt", "w") as file:
                self.print("a", 1, sep="-", file=file)

    _trainer(pl, folder).fit(Printing(), loader(2))
    return (folder / "said.txt").read_text()


def a_module_gathers_from_all_processes(pl, folder):
    """`all_gather` makes tensors of numbers, keeps collections, adds nothing in a world of one."""
    seen = []

    class Gathering(regression(pl)):
        def on_train_start(self):
            found = self.all_gather({"a": 1.5, "b": [torch.ones(2), 3]})
            seen.append((sorted(found), found["a"], found["b"][0], found["b"][1]))

    _trainer(pl, folder).fit(Gathering(), loader(2))
    return seen


def a_module_becomes_torchscript(pl, folder):
    """`to_torchscript` gives a program with the same outputs, and saves it to a path."""

    class Network(regression(pl)):
        def forward(self, x):
            return self.layer(x)

    model = Network()
    script = model.to_torchscript(folder / "model.pt")
    x = torch.ones(1, 4)
    same = torch.equal(script(x), model(x))
    return (
        same,
        script.training,
        model.training,
        torch.equal(torch.jit.load(folder / "model.pt")(x), model(x)),
    )


def a_module_is_traced(pl, folder):
    """`to_torchscript(method="trace")` follows an input, given or `example_input_array`."""
    model = regression(pl)()
    with pytest.raises(ValueError, match="example_input"):
        model.to_torchscript(method="trace")
    model.example_input_array = torch.ones(1, 4)
    traced = model.to_torchscript(method="trace")
    other = model.to_torchscript(method="trace", example_inputs=torch.ones(2, 4))
    x = torch.full((3, 4), 2.0)
    return torch.equal(traced(x), model(x)), torch.equal(other(x), model(x))


def other_programs_are_refused(pl, folder):
    """Methods are script and trace."""
    with pytest.raises(ValueError, match="method' parameter"):
        regression(pl)().to_torchscript(method="temp")
    return True


def onnx_asks_for_its_package(pl, folder):
    """Without the package onnx, `to_onnx` says that it is missing."""
    if importlib.util.find_spec("onnx"):
        pytest.skip("onnx is installed")
    with pytest.raises(ModuleNotFoundError, match="requires `onnx` to be installed"):
        regression(pl)().to_onnx(folder / "x.onnx", torch.ones(1, 4))
    return True


def optimizers_are_torchs_own_when_asked(pl, folder):
    """`optimizers(use_pl_optimizer=False)` gives the optimizer itself."""
    seen = []

    class Manual(regression(pl)):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            plain, wrapped = self.optimizers(use_pl_optimizer=False), self.optimizers()
            wrapped.zero_grad()
            self.manual_backward(self.loss(batch))
            wrapped.step()
            seen.append((type(plain).__name__, wrapped.optimizer is plain))

    model = Manual()
    _trainer(pl, folder).fit(model, loader(4))
    return seen, weights(model)


def an_optimizer_is_toggled(pl, folder):
    """`toggled_optimizer` lets only its parameters require gradients, inside."""
    seen = []

    class Two(regression(pl)):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.other = torch.nn.Linear(1, 1)

        def training_step(self, batch, batch_idx):
            first, second = self.optimizers()
            with self.toggled_optimizer(first):
                seen.append((self.layer.weight.requires_grad, self.other.weight.requires_grad))
            self.toggle_optimizer(second)
            seen.append((self.layer.weight.requires_grad, self.other.weight.requires_grad))
            self.untoggle_optimizer(second)
            seen.append((self.layer.weight.requires_grad, self.other.weight.requires_grad))

        def configure_optimizers(self):
            return [torch.optim.SGD(m.parameters(), 0.1) for m in (self.layer, self.other)]

    _trainer(pl, folder).fit(Two(), loader(2))
    return seen


def training_goes_on_from_a_saved_file(pl, folder):
    """`fit(ckpt_path=file)` goes on where `save_checkpoint` was called."""
    first = _trainer(pl, folder / "a")
    first.fit(regression(pl)(), loader())
    first.save_checkpoint(folder / "hand.ckpt")
    options = {"max_epochs": 2, "enable_checkpointing": True}
    second, model = _trainer(pl, folder / "b", **options), regression(pl)()
    second.fit(model, loader(), ckpt_path=folder / "hand.ckpt")
    return second.global_step, second.current_epoch, weights(model)


def the_path_that_was_loaded_can_be_read(pl, folder):
    """`trainer.ckpt_path` is None until a call was given one."""
    trainer = _trainer(pl, folder)
    trainer.fit(regression(pl)(), loader())
    before = trainer.ckpt_path is None
    trainer.save_checkpoint(folder / "x.ckpt")
    trainer.test(regression(pl)(), loader(), ckpt_path=str(folder / "x.ckpt"), verbose=False)
    return before, trainer.ckpt_path == str(folder / "x.ckpt")
