"""`Trainer.save_checkpoint`: a file of the state as it is at this moment.

Once a fit has ended, the file holds the whole state, and `fit` goes on from it. Within a hook the
state is between two places, so the file holds what Lightning's keys say: weights, optimizers,
schedulers, callbacks. To go on exactly from a moment of training, its commit is what serves.
"""

import os
from typing import TYPE_CHECKING, Any

from rekindle.checkpoint import CommitRef, Restored
from rekindle.interop import lightning_file
from rekindle.model import optimizers
from rekindle.model.hyperparameters import described, recalled
from rekindle.training import state

if TYPE_CHECKING:
    from rekindle.trainer.trainer import Trainer


def save(
    trainer: "Trainer", filepath: "str | os.PathLike[str]", weights_only: bool | None = None
) -> None:
    """Write the file on rank 0; on every rank alike, except in `on_exception`.

    Raises RuntimeError before anything was attached to the trainer.
    """
    if trainer.module is None:
        raise RuntimeError(
            "save_checkpoint() has nothing to save: call fit(), validate(), test() or predict() "
            "first, which attach a model to the trainer"
        )
    path, weights = os.path.abspath(os.fspath(filepath)), bool(weights_only)
    whole: Restored | None = None
    run = trainer._run
    if run is not None and trainer.phase == "done" and not weights:
        tree, rank_tree, meta = state.collect(run, finished=False, durable=False)
        own = rank_tree if run.world.size == 1 else None
        whole = Restored(
            ref=CommitRef(step=run.step, fence=0),
            state=tree,
            rank_state=own,
            meta=meta,
            world_size=run.world.size,
        )
    else:
        tree, meta = _here(trainer)
    if not trainer.is_global_zero:
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    content = lightning_file.view(tree, meta, recalled, weights_only=weights)
    content["epoch"] = trainer.current_epoch
    lightning_file.write(path, content, meta=meta, state=whole)


def _here(trainer: "Trainer") -> tuple[dict[str, Any], dict[str, Any]]:
    """What a rank knows by itself, as `state.collect` has it."""
    run, module, datamodule = trainer._run, trainer.module, trainer.datamodule
    assert module is not None
    optimization = None if run is None else run.optimization
    tree: dict[str, Any] = {
        "model": {optimizers.plain(name): value for name, value in module.state_dict().items()},
        "optimizers": [optimizers.state(o, module) for o in optimization.optimizers]
        if optimization
        else [],
        "schedulers": [s.scheduler.state_dict() for s in optimization.schedulers]
        if optimization
        else [],
        "callbacks": {
            key: saved
            for key, callback in state.keys(trainer.callbacks).items()
            if (saved := callback.state_dict())
        },
    }
    if datamodule is not None:
        tree["datamodule"] = datamodule.state_dict()
    sample, micro = (0, 1) if run is None else (run.cursor.sample, run.cursor.m)
    meta: dict[str, Any] = {
        "step": 0 if run is None else run.step,
        "manual_steps": None if run is None or run.update.automatic else run.optimizer_steps,
        "cursor": {"epoch": trainer.current_epoch, "sample": sample, "m": micro},
        "hyper_parameters": {"module": described(module), "datamodule": described(datamodule)},
        "hparams_names": {
            "module": module._hparams_name,
            "datamodule": getattr(datamodule, "_hparams_name", None),
        },
        "datamodule_class": type(datamodule).__qualname__,
    }
    if run is not None and run.hooks.on_save_checkpoint:
        shown = lightning_file.view(tree, meta, recalled)
        before = lightning_file.copied(shown)
        for hook in run.hooks.on_save_checkpoint:
            hook(trainer, module, shown)
        tree["hooks"] = lightning_file.changes(before, shown)
    return tree, meta
