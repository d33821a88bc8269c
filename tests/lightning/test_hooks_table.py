"""Every public hook of the installed Lightning is called by us, with its arguments, in its order.

The hooks are found by looking at Lightning's own classes, so one that a newer version brings shows
up here. All of them are overridden at once, in the module, a callback and the data module; what is
noted is compared with what Lightning does. Those of which the order is ours are named below.
"""

import importlib
import inspect

import pytest
import torch
from small import QUIET, loader, regression

lightning = pytest.importorskip("lightning.pytorch", reason="Lightning is not installed")
hooks = importlib.import_module("lightning.pytorch.core.hooks")

_PREFIXES = ("on_", "configure_", "optimizer_", "lr_scheduler_", "transfer_")
_NAMES = ("setup", "teardown", "prepare_data", "backward", "state_dict", "load_state_dict")
_LOADERS = ("_dataloader",)
_STEPS = ("training_step", "validation_step", "test_step", "predict_step")

NO_HOOKS = {"on_gpu", "configure_sharded_model"}
"""What only looks like a hook, and the older name of one, which has a behaviour of its own."""
OUR_ORDER = {
    "train_dataloader": "position and global batch have to be known before the optimizer is made",
    "val_dataloader": "the same",
    "test_dataloader": "asked with the data, before weights are loaded",
    "predict_dataloader": "the same",
    "state_dict": "saves are between steps, and once as a test before the first",
    "load_state_dict": "the optimizer is there when a checkpoint is read",
    "on_save_checkpoint": "as state_dict",
    "on_load_checkpoint": "as load_state_dict",
    "configure_model": "once for each module, whose layers are there then",
    "configure_callbacks": "asked before anything is set up",
}
"""Hooks that are called as Lightning's are, but at another place, and why."""


def found(*classes):
    names = set()
    for kind in classes:
        for name, _ in inspect.getmembers(kind, callable):
            hook = name.startswith(_PREFIXES) or name in _NAMES or name in _STEPS
            if (hook or name.endswith(_LOADERS)) and not name.startswith("__"):
                names.add(name)
    return names - NO_HOOKS


OF_MODULE = found(
    hooks.ModelHooks, hooks.DataHooks, hooks.CheckpointHooks, lightning.LightningModule
) - {"state_dict", "load_state_dict"}
OF_CALLBACK = found(lightning.Callback)
OF_DATA = found(lightning.LightningDataModule)


def told(value):
    """What is compared of an argument."""
    if isinstance(value, int | str | type(None)):
        return str(getattr(value, "value", value))
    if isinstance(value, torch.Tensor):
        return "tensor"
    if isinstance(value, dict):
        return "dict"
    if hasattr(value, "param_groups"):
        return "optimizer"
    if callable(getattr(value, "fit", None)):
        return "trainer"
    if isinstance(value, torch.nn.Module):
        return "module"
    return "closure" if inspect.isfunction(value) or inspect.ismethod(value) else "value"


_CLOSURES = {"_Closure", "Closure", "partial"}


def noting(base, names, seen, owner):
    def method(name):
        def noted(self, *arguments, **named):
            given = [
                "closure" if type(a).__name__ in _CLOSURES else told(a)
                for a in (*arguments, *named.values())
            ]
            seen.append((owner, name, given))
            return getattr(base, name)(self, *arguments, **named)

        return noted

    return type(f"Noting{owner}", (base,), {name: method(name) for name in names})


class Failure(Exception):
    pass


def script(package, folder):
    """All entry points, a restart, and an exception."""
    pl, seen = importlib.import_module(package), []

    class Data(pl.LightningDataModule):
        def train_dataloader(self):
            return loader(4)

        val_dataloader = test_dataloader = predict_dataloader = train_dataloader

        def state_dict(self):
            return {"kept": 1}

    class Model(regression(pl)):
        fails = False

        def training_step(self, batch, batch_idx):
            if self.fails:
                raise Failure
            return super().training_step(batch, batch_idx)

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), 0.1)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    class Watch(pl.Callback):
        def state_dict(self):
            return {"kept": 1}

    callbacks = importlib.import_module(pl.__name__ + ".callbacks")
    model = noting(Model, OF_MODULE, seen, "module")()
    data = noting(Data, OF_DATA, seen, "data")()

    def trainer(epochs, checkpoint=None):
        watch = noting(Watch, OF_CALLBACK, seen, "callback")()
        flags = QUIET | {"num_sanity_val_steps": 1, "enable_checkpointing": checkpoint is not None}
        own = [watch] if checkpoint is None else [watch, checkpoint]
        return pl.Trainer(max_epochs=epochs, callbacks=own, default_root_dir=folder, **flags)

    checkpoint = callbacks.ModelCheckpoint(dirpath=folder / "saved", save_last=True)
    trainer(1, checkpoint).fit(model, datamodule=data)
    seen.append(("script", "resumes", []))
    again = callbacks.ModelCheckpoint(dirpath=folder / "more")
    trainer(2, again).fit(model, datamodule=data, ckpt_path=checkpoint.last_model_path)
    seen.append(("script", "goes on", []))
    alone = trainer(1)
    alone.validate(model, datamodule=data, verbose=False)
    alone.test(model, datamodule=data, verbose=False)
    alone.predict(model, datamodule=data)
    model.fails = True
    with pytest.raises(Failure):
        trainer(1).fit(model, datamodule=data)
    return seen


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    import warnings

    runs = []
    for package in ("lightning.pytorch", "rekindle.pytorch"):
        torch.manual_seed(0)
        with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
            warnings.simplefilter("ignore")
            folder = tmp_path_factory.mktemp(package)
            patch.chdir(folder)
            runs.append(script(package, folder))
    return runs


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        *(("module", name) for name in sorted(OF_MODULE)),
        *(("callback", name) for name in sorted(OF_CALLBACK)),
        *(("data", name) for name in sorted(OF_DATA)),
    ],
)
def test_it_is_called_with_lightnings_arguments(both, owner, name):
    theirs, ours = (
        {tuple(given) for who, what, given in seen if (who, what) == (owner, name)} for seen in both
    )
    if theirs:
        assert ours == theirs


def ordered(seen):
    """All but what a resumed run calls, which does no sanity check here."""
    first, last = seen.index(("script", "resumes", [])), seen.index(("script", "goes on", []))
    return [one for one in seen[:first] + seen[last:] if one[1] not in OUR_ORDER]


def test_hooks_are_called_in_lightnings_order(both):
    theirs, ours = map(ordered, both)
    for number, (one, other) in enumerate(zip(ours, theirs, strict=False)):
        assert one == other, f"after {theirs[max(0, number - 5) : number]}"
    assert len(ours) == len(theirs)
