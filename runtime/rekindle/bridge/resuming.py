"""Lightning's own restoring, with our commit in the place of its file.

Lightning restores from whatever ``ckpt_path`` names, at a moment and in an order of its own, and a
callback comes too late to take part. So the checkpoint is put where Lightning's connector would
have read it to. A script's ``ckpt_path`` is where the run once began; after a restart the commit is
newer and wins.
"""

import os
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.loops.loop import _Loop

from rekindle.api import ENV_WORKERS
from rekindle.api import RestoredFrom as RestoredReport
from rekindle.bridge import state
from rekindle.checkpoint import Restored
from rekindle.errors.outcome import Preempted
from rekindle.errors.requirement import RequirementError
from rekindle.ranks.control_page import ControlPage
from rekindle.ranks.distributed import World

if TYPE_CHECKING:
    import lightning.pytorch as pl


def check(restored: Restored, world: World, uri: str, page: ControlPage | None) -> None:
    """Refuse a checkpoint that this run cannot go on from; raises RequirementError (R11, R13).

    An operator can make a round of as many workers as the checkpoint is of, if it is told so: then
    these end as if they had saved, since nothing is lost.
    """
    if not isinstance(restored.state, dict) or "lightning" not in restored.state:
        raise RequirementError(
            f"R11 checkpoint step {restored.ref.step} in {uri} was written by rekindle.Trainer. "
            f"Give this script a root of its own."
        )
    if restored.world_size != world.size:
        if page is not None and os.environ.get(ENV_WORKERS):
            if world.local_rank == 0:
                page.use(restored.world_size, least=restored.world_size)
                page.write_restored(RestoredReport(step=restored.ref.step, source=uri))
            raise Preempted(restored.ref.step, saved=True)
        raise RequirementError(
            f"R13 checkpoint step {restored.ref.step} was written by {restored.world_size} "
            f"processes, this attempt has {world.size}. Lightning fixes the batch per process, so "
            f"that would be another training: start as many as before (minReplicas equal to "
            f"replicas), or use rekindle.Trainer."
        )


def other_data(restored: Restored, now: Mapping[str, Any]) -> RequirementError | None:
    """R12, when the training data are not those that the checkpoint was made with."""
    before = restored.meta.get("data")
    if before is None or before == now:
        return None
    return RequirementError(
        f"R12 step {restored.ref.step} was saved with training data of {_words(before)}; now they "
        f"are of {_words(now)}. To go on, give the same data; to begin anew, resume='never' or "
        f"another root."
    )


def _words(data: Mapping[str, Any]) -> str:
    parts = [
        f"{size if size is not None else 'unknown'} samples in batches of {batch}"
        if batch is not None
        else f"{size if size is not None else 'unknown'} batches"
        for size, batch in zip(data["sizes"], data["batch_sizes"], strict=True)
    ]
    return " and ".join(parts)


def hand_over(trainer: "pl.Trainer", restored: Restored, *, again: bool = False) -> None:
    """Leave the state where Lightning restores from, whatever ``ckpt_path`` says.

    `again`: it is the end of another run, and that this one wished to stop does not count.
    """
    connector: Any = trainer._checkpoint_connector
    assert isinstance(restored.state, dict), "checked above"
    loaded = state.checkpoint(restored.state)

    def resume_start(*_: Any, **__: Any) -> None:
        connector._loaded_checkpoint = loaded
        del connector.resume_start

    connector.resume_start = resume_start
    # `stopped`: EarlyStopping had ended the run; its decision stands.
    trainer.should_stop = bool(restored.meta["stopped"]) and not again
    loop: Any = trainer.fit_loop.epoch_loop

    def on_run_start(data_fetcher: Any) -> None:
        _run_start(trainer, restored, data_fetcher)

    loop.on_run_start = on_run_start
    # Lightning looks for state_dict() on the loader and knows nothing of `Cut`.
    warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before")


def _run_start(trainer: Any, restored: Restored, data_fetcher: Any) -> None:
    """Counters were taken over by now; what else Lightning does when restarting is undone.

    It would go through the end of the newest step once more: skip a validation that was done, but
    step the plateau schedulers and count the batch again.
    """
    loop = trainer.fit_loop.epoch_loop
    if any(isinstance(c, GradientAccumulationScheduler) for c in trainer.callbacks):
        # It acts at the start of an epoch, which Lightning does not repeat.
        trainer.accumulate_grad_batches = restored.meta["accumulate_grad_batches"]
    del loop.on_run_start
    loop.on_run_start(data_fetcher)
    loop._restarting = False


def settle(trainer: "pl.Trainer") -> None:
    """Leave the loops as they are after a training, where Lightning had none to do.

    It would take the next call of `fit` for a restart in the middle.
    """
    loops: list[Any] = [trainer.fit_loop]
    while loops:
        loop = loops.pop()
        loop._restarting = loop._loaded_from_state_dict = loop._resuming_from_checkpoint = False
        loops += [each for each in vars(loop).values() if isinstance(each, _Loop)]


_SHOWN = ("_callback_metrics", "_logged_metrics", "_progress_bar_metrics")


def shown(trainer: "pl.Trainer") -> dict[str, dict[str, Any]]:
    """The metrics that a script can read from its trainer; each rank has its own."""
    _ = trainer.callback_metrics, trainer.logged_metrics, trainer.progress_bar_metrics
    connector = trainer._logger_connector
    found = {name: dict(getattr(connector, name)) for name in _SHOWN}
    return {
        name: {
            key: value.detach().clone() if isinstance(value, torch.Tensor) else float(value)
            for key, value in values.items()
            if isinstance(value, torch.Tensor | int | float)
        }
        for name, values in found.items()
    }


def show_metrics(trainer: "pl.Trainer", restored: Restored) -> None:
    """Schedulers, callbacks and the script may look at a metric before it is logged again."""
    connector, saved = trainer._logger_connector, restored.rank_state
    assert isinstance(saved, dict)
    values = {name: torch.tensor(value) for name, value in restored.meta["metrics"].items()}
    connector._callback_metrics.update(values)
    for name, metrics in saved.get("shown", {}).items():
        getattr(connector, name).update(metrics)
