"""What a plain `fit` does."""

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
