"""`ModelCheckpoint`, `EarlyStopping` and schedulers on values that training logs by steps."""

from pathlib import Path

import torch
from small import QUIET, loader, regression


def checkpoint_on_a_training_value(pl, folder):
    """`ModelCheckpoint` may monitor what training logs by steps: it has the newest value."""
    keeping = pl.callbacks.ModelCheckpoint(folder / "best", monitor="loss", save_top_k=2)
    flags = {**QUIET, "enable_checkpointing": True, "callbacks": [keeping]}
    trainer = pl.Trainer(max_epochs=3, default_root_dir=folder, **flags)
    trainer.fit(regression(pl)(), loader(), loader(4))
    names = sorted(Path(path).name for path in keeping.best_k_models)
    return names, float(keeping.best_model_score)


def checkpoint_on_a_training_value_without_validation(pl, folder):
    """The same without validation data, where it is asked at the end of the epoch."""
    keeping = pl.callbacks.ModelCheckpoint(folder / "best", monitor="loss", save_top_k=2)
    flags = {**QUIET, "enable_checkpointing": True, "callbacks": [keeping]}
    trainer = pl.Trainer(max_epochs=3, default_root_dir=folder, **flags)
    trainer.fit(regression(pl)(), loader())
    names = sorted(Path(path).name for path in keeping.best_k_models)
    return names, float(keeping.best_model_score)


def checkpoint_on_a_training_value_by_steps(pl, folder):
    """With `every_n_train_steps` it is the value of that step."""
    keeping = pl.callbacks.ModelCheckpoint(
        folder / "best", monitor="loss", save_top_k=2, every_n_train_steps=3
    )
    flags = {**QUIET, "enable_checkpointing": True, "callbacks": [keeping]}
    trainer = pl.Trainer(max_epochs=3, default_root_dir=folder, **flags)
    trainer.fit(regression(pl)(), loader())
    names = sorted(Path(path).name for path in keeping.best_k_models)
    return names, float(keeping.best_model_score)


def early_stopping_on_a_training_value(pl, folder):
    """`EarlyStopping` may monitor what training logs by steps."""
    stopping = pl.callbacks.EarlyStopping("loss", patience=1, min_delta=0.05)
    trainer = pl.Trainer(max_epochs=9, default_root_dir=folder, callbacks=[stopping], **QUIET)
    trainer.fit(regression(pl)(), loader(), loader(4))
    return trainer.current_epoch, float(stopping.best_score), stopping.wait_count


def early_stopping_on_a_training_value_without_validation(pl, folder):
    """The same without validation data."""
    stopping = pl.callbacks.EarlyStopping("loss", patience=1, min_delta=0.05)
    trainer = pl.Trainer(max_epochs=9, default_root_dir=folder, callbacks=[stopping], **QUIET)
    trainer.fit(regression(pl)(), loader())
    return trainer.current_epoch, float(stopping.best_score), stopping.wait_count


def a_plateau_on_a_training_value(pl, folder):
    """`ReduceLROnPlateau` may monitor what training logs by steps."""
    seen = []

    class Falling(regression(pl)):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
                optimizer, patience=0, threshold=0.5, factor=0.5
            )
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": scheduler, "monitor": "loss"},
            }

        def on_train_epoch_start(self):
            seen.append(self.optimizers().param_groups[0]["lr"])

    trainer = pl.Trainer(max_epochs=5, default_root_dir=folder, **QUIET)
    trainer.fit(Falling(), loader(), loader(4))
    return seen
