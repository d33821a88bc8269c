"""Each member that Lightning's Trainer has, and each argument it takes, is here or says why not."""

import inspect
from datetime import timedelta

import pytest
import torch

import rekindle.pytorch as rk

lightning = pytest.importorskip("lightning.pytorch", reason="Lightning is not installed")

QUIET = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
LOOPS = {"fit_loop", "validate_loop", "test_loop", "predict_loop", "precision_plugin"}
"""Members of the trainer whose use says what to write instead."""

ARGUMENTS = {
    "accelerator": (["cpu", "auto"], {"tpu": "'tpu' is not supported", "hpu": "use 'cpu'"}),
    "strategy": (["auto", "ddp", "fsdp"], {"ddp_spawn": "use 'ddp'", "xla": "TPUs are not"}),
    "devices": ([1, "1", "auto", [0], "0,", -1], {0: "devices=0", "a": "a list of GPUs"}),
    "num_nodes": ([1], {0: "num_nodes=0"}),
    "precision": ([None, 32, "64-true", "bf16"], {"16-true": "use 'bf16-true'"}),
    "logger": ([None, True, False, []], {3: "logger="}),
    "callbacks": ([None, []], {}),
    "fast_dev_run": ([True, False, 3], {-1: "fast_dev_run=-1"}),
    "max_epochs": ([None, 3, -1], {-2: "max_epochs=-2"}),
    "min_epochs": ([None, 3], {-2: "min_epochs=-2"}),
    "max_steps": ([-1, 3], {-2: "max_steps=-2"}),
    "min_steps": ([None, 3], {-2: "min_steps=-2"}),
    "max_time": (["00:01:00:00", timedelta(hours=1)], {"soon": "max_time='soon'"}),
    "limit_train_batches": ([None, 0.5, 2, 2.0], {1.5: "limit_train_batches=1.5"}),
    "limit_val_batches": ([None, 0.5, 2, 2.0], {1.5: "limit_val_batches=1.5"}),
    "limit_test_batches": ([None, 0.5, 2, 2.0], {1.5: "limit_test_batches=1.5"}),
    "limit_predict_batches": ([None, 0.5, 2, 2.0], {1.5: "limit_predict_batches=1.5"}),
    "overfit_batches": ([0.0, 0.5, 2], {1.5: "overfit_batches=1.5"}),
    "val_check_interval": ([None, 0.5, 2], {"00:01:00:00": "cannot go by the clock"}),
    "check_val_every_n_epoch": ([1, 2], {0: "check_val_every_n_epoch=0"}),
    "num_sanity_val_steps": ([None, 0, -1, 2], {-2: "num_sanity_val_steps=-2"}),
    "log_every_n_steps": ([None, 0, 5], {-1: "log_every_n_steps=-1"}),
    "enable_checkpointing": ([None, False, True], {3: "True or False"}),
    "enable_progress_bar": ([None, False, True], {3: "True or False"}),
    "enable_model_summary": ([None, False, True], {3: "True or False"}),
    "accumulate_grad_batches": ([1, 4], {0: "accumulate_grad_batches=0"}),
    "gradient_clip_val": ([None, 0, 0.5], {"a": "must be a number"}),
    "gradient_clip_algorithm": ([None, "norm", "value"], {"max": "allowed are 'norm'"}),
    "deterministic": ([None, True, False, "warn"], {"a": "deterministic='a'"}),
    "benchmark": ([None, True, False], {"a": "benchmark='a'"}),
    "inference_mode": ([True, False], {3: "True or False"}),
    "use_distributed_sampler": ([True, False], {}),
    "profiler": ([None, "simple", "advanced"], {"xla": "profiler"}),
    "detect_anomaly": ([True, False], {3: "True or False"}),
    "barebones": ([False], {3: "True or False"}),
    "plugins": ([None, []], {"slurm": "plugins= is not supported"}),
    "sync_batchnorm": ([True, False], {3: "True or False"}),
    "reload_dataloaders_every_n_epochs": ([0, 2], {-1: "reload_dataloaders_every_n_epochs=-1"}),
    "default_root_dir": ([None, "./there"], {}),
    "enable_autolog_hparams": ([True, False], {3: "True or False"}),
    "model_registry": ([None], {"mine": "no registry of models"}),
}
"""Argument -> what is taken, and what is refused with which words."""


def public(owner, base=object):
    return [name for name in dir(owner) if not name.startswith("_") and not hasattr(base, name)]


def test_the_table_has_every_argument_of_the_trainer():
    assert set(inspect.signature(lightning.Trainer.__init__).parameters) - {"self"} == set(
        ARGUMENTS
    )


@pytest.mark.parametrize("name", ARGUMENTS)
def test_an_argument_is_taken_or_refused_with_words(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    taken, refused = ARGUMENTS[name]
    for value in taken:
        rk.Trainer(**{**QUIET, name: value})
    for value, words in refused.items():
        with pytest.raises((ValueError, TypeError), match=words):
            rk.Trainer(**{**QUIET, name: value})


def test_the_trainer_has_every_member():
    theirs, ours = lightning.Trainer(**QUIET), rk.Trainer(**QUIET)
    attributes = {name for name in vars(theirs) if not name.startswith("_")}
    missing = []
    for name in {*public(lightning.Trainer), *attributes} - LOOPS:
        try:
            getattr(ours, name)
        except AttributeError:
            missing.append(name)
        except rk.RequirementError:  # there is one, and it is asked for too early
            pass
    assert missing == []


@pytest.mark.parametrize("kind", ["LightningModule", "LightningDataModule"])
def test_models_and_data_modules_have_every_member(kind):
    theirs, ours = getattr(lightning, kind), getattr(rk, kind)
    names = public(theirs, torch.nn.Module if kind == "LightningModule" else object)
    made = ours()
    missing = []
    for name in names:
        try:
            getattr(made, name)
        except AttributeError:
            missing.append(name)
        except (RuntimeError, rk.RequirementError):  # asked for without a trainer
            pass
    assert missing == []
    constants = [name for name in names if name.isupper()]
    assert [getattr(ours, n) for n in constants] == [getattr(theirs, n) for n in constants]


def test_saved_arguments_are_taken_out_again():
    class Saved(rk.LightningModule):
        def __init__(self, width=3, depth=2):
            super().__init__()
            self.save_hyperparameters()
            self.remove_ignored_hparams(["depth", "unknown"])

    assert dict(Saved().hparams) == {"width": 3}


@pytest.mark.parametrize("name", sorted(LOOPS))
def test_a_member_without_a_counterpart_says_what_to_write(name):
    trainer = rk.Trainer(**QUIET)
    with pytest.raises(NotImplementedError, match=rf"Trainer\.{name} is not supported: .*use|is"):
        getattr(trainer, name)
    with pytest.raises(NotImplementedError, match="is not supported"):
        setattr(trainer, name, None)


@pytest.mark.parametrize("name", ["limit_val_batches", "gradient_clip_val", "min_epochs"])
def test_a_flag_is_fixed(name):
    with pytest.raises(AttributeError, match=rf"Trainer\({name}=3\)"):
        setattr(rk.Trainer(**QUIET), name, 3)


@pytest.mark.parametrize("call", ["fit", "validate", "test", "predict", "save_checkpoint"])
def test_calls_take_the_same_arguments_in_the_same_order(call):
    theirs = inspect.signature(getattr(lightning.Trainer, call)).parameters
    ours = inspect.signature(getattr(rk.Trainer, call)).parameters
    assert list(ours)[: len(theirs)] == list(theirs)
