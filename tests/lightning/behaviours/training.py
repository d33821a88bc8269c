"""What a plain `fit` does."""

import torch
from small import QUIET, loader, regression, weights


def fit_trains_the_same_weights(pl, folder):
    """`Trainer.fit` goes through the batches in order and steps the optimizer with each."""
    model = regression(pl)()
    trainer = pl.Trainer(max_epochs=2, default_root_dir=folder, **QUIET)
    trainer.fit(model, loader())
    return weights(model), trainer.global_step


def fit_ends_after_max_steps(pl, folder):
    """`max_steps` ends training within an epoch."""
    model = regression(pl)()
    trainer = pl.Trainer(max_steps=3, default_root_dir=folder, **QUIET)
    trainer.fit(model, loader())
    return weights(model), trainer.global_step


def a_trainer_that_is_at_its_limits_trains_nothing_more(pl, folder):
    """A second `fit` of one Trainer goes on counting: at `max_epochs` it trains nothing."""
    model = regression(pl)()
    trainer = pl.Trainer(max_epochs=2, default_root_dir=folder, **QUIET)
    trainer.fit(model, loader())
    first = weights(model)
    trainer.fit(model, loader())
    return weights(model) == first, trainer.global_step, trainer.current_epoch


def each_fit_of_a_sweep_trains_its_own_model(pl, folder):
    """A script may fit many models, each with a Trainer of its own, in one directory."""
    found = []
    for epochs in (1, 2, 3):
        model = regression(pl)()
        flags = {**QUIET, "enable_checkpointing": True}
        trainer = pl.Trainer(max_epochs=epochs, default_root_dir=folder, **flags)
        trainer.fit(model, loader())
        found.append((weights(model), trainer.global_step))
    return found


def a_second_stage_goes_on_with_the_weights_of_the_first(pl, folder):
    """A module that was trained before keeps its weights in the next `fit`; counters begin anew."""
    model = regression(pl)()
    flags = {**QUIET, "enable_checkpointing": True}
    pl.Trainer(max_epochs=1, default_root_dir=folder, **flags).fit(model, loader())
    model.layer.bias.requires_grad_(False)
    second = pl.Trainer(max_epochs=2, default_root_dir=folder, **flags)
    second.fit(model, loader())
    return weights(model), second.global_step, second.current_epoch


def the_same_script_run_again_begins_anew(pl, folder):
    """A finished run is not gone on from unless `ckpt_path` says so."""
    found = []
    for _ in range(2):
        model = regression(pl)()
        flags = {**QUIET, "enable_checkpointing": True}
        trainer = pl.Trainer(max_epochs=2, default_root_dir=folder, **flags)
        trainer.fit(model, loader())
        found.append((weights(model), trainer.global_step))
    return found


def seed_everything_decides_what_the_steps_draw(pl, folder):
    """Two scripts with one seed train alike, with another one differently: dropout, shuffling."""
    base = regression(pl)

    class Noisy(base):
        def loss(self, batch):
            return super().loss([torch.nn.functional.dropout(batch[0]), batch[1]])

    found = []
    for seed in (1, 1, 2):
        model = Noisy()
        pl.seed_everything(seed, verbose=False)
        trainer = pl.Trainer(max_epochs=1, default_root_dir=folder / str(len(found)), **QUIET)
        trainer.fit(model, loader(shuffle=True))
        found.append(weights(model))
    return found[0] == found[1], found[0] == found[2]
