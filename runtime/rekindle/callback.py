"""Callbacks, and the loop as pseudo-code with every hook at its place.

::

    prepare_data                         (rank 0 only)
    setup("fit")
    train_dataloader; val_dataloader
    configure_optimizers
    if there is a checkpoint:
        on_load_checkpoint; load_state_dict
    on_fit_start
    state_dict; on_save_checkpoint                           # only a test: can it be stored?
    if no step was done yet:
        on_sanity_check_start; a short validation; on_sanity_check_end
    on_train_start
    for epoch in epochs:
        on_train_epoch_start
        for step in steps of the epoch:
            for lane in this rank's share of the step:       # "batch" in the hooks' names
                on_train_batch_start
                training_step
                on_before_zero_grad                          # of the first lane
                on_before_backward; backward; on_after_backward
                on_train_batch_end                           # but for the last lane
            (gradients of all ranks are summed)
            on_before_optimizer_step
            clip gradients; optimizer step; lr schedulers per step
            on_after_optimizer_step; counters move on
            on_train_batch_end                               # of the last lane
            if validation is due:
                on_validation_start; on_validation_epoch_start
                for batch in this rank's share:
                    on_validation_batch_start; validation_step; on_validation_batch_end
                on_validation_epoch_end; on_validation_end
            if a checkpoint is due or the job is to be preempted:
                state_dict; on_save_checkpoint
        on_train_epoch_end; lr schedulers per epoch
    on_train_end
    on_fit_end
    teardown("fit")

``trainer.validate`` runs ``setup("validate")``, one validation as above and
``teardown("validate")``. ``trainer.test`` and ``trainer.predict`` do the same for ``"test"`` and
``"predict"``::

    setup("test")
    on_test_start; on_test_epoch_start
    for batch in this rank's share:
        on_test_batch_start; test_step; on_test_batch_end
    on_test_epoch_end; on_test_end
    teardown("test")

    setup("predict")
    on_predict_start; on_predict_epoch_start
    for batch in this rank's share:
        on_predict_batch_start; predict_step; on_predict_batch_end
    on_predict_epoch_end; on_predict_end
    teardown("predict")

A run that resumes in the middle of an epoch enters the epoch at the step after the saved one;
`on_train_start` runs in every process, `on_train_epoch_start` once per process and epoch.

A hook costs only those who define it: the trainer collects the methods that are overridden once,
before the loop, and calls nothing else. An exception that leaves a hook carries a note with the
name of the callback and of the hook.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from rekindle.checkpoint.retention import Retention
    from rekindle.model.module import Module
    from rekindle.trainer.trainer import Trainer


class Callback:
    """Extends the loop; override any hook. The module docstring shows when each one runs."""

    root: str | None = None
    """Where checkpoints go when the trainer's flags do not say."""
    max_seconds: float | None = None
    """Limit on the time that training may take, beside the trainer's `max_time`."""
    every_loader: bool = False
    """Whether `predicted` is asked for each of several loaders, too."""
    optional: bool = False
    """Whether the callback may be missing in a checkpoint that is resumed (else R23)."""
    switch: str | None = None
    """The trainer's flag that switches off what the callback is for: with False it is refused."""
    summarizes: bool = False
    """Whether it tells the model's size when `fit` begins, which the trainer leaves to it then."""
    shares: tuple[str, ...] = ()
    """Keys of `state_dict` under which lies a tensor like each parameter, by the parameter's name:
    with a sharded model `load_state_dict` gets this rank's shares of them, as `DTensor`s."""
    after_module: bool = False
    """Whether `on_train_epoch_end` comes after the module's, to see what that one logs."""
    idle: "tuple[Callable[..., None], ...]" = ()
    """Hooks of the class that this instance can do without: `fit` leaves them out, so that no step
    pays for them. They are functions, so what a subclass has overridden is not among them."""

    def log(self, name: str, value: Any, *arguments: Any, **options: Any) -> None:
        """Log as the module does, see `Module.log`; in a hook.

        The trainer puts the module's own method in this one's place.
        """
        raise RuntimeError(f"{type(self).__name__}.log({name!r}, ...): call it in a hook")

    def log_dict(self, dictionary: Any, *arguments: Any, **options: Any) -> None:
        """Log as the module does, see `Module.log_dict`; in a hook."""
        raise RuntimeError(f"{type(self).__name__}.log_dict(...): call it in a hook")

    @property
    def state_key(self) -> str:
        """Name of this callback's state in a checkpoint; unique among the trainer's callbacks."""
        return type(self).__qualname__

    def state_dict(self) -> dict[str, Any]:
        """State to save: plain values and tensors."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""

    def aliases(self, trainer: "Trainer") -> dict[str, dict[str, Any]]:
        """Names for the checkpoint that is about to be saved; ``<root>/<name>.ckpt`` finds it.

        Each comes with plain values about it, to be read without loading anything.
        """
        return {}

    def keeps(self) -> "Retention | None":
        """Which checkpoints have to stay, besides those that the trainer's flags name."""
        return None

    def predicted(self, batch_idx: int, ids: Any) -> tuple[Any] | None:
        """The output of a batch of `predict`, if it is known already; it is not computed then."""
        return None

    def data_found(self, trainer: "Trainer", pl_module: "Module") -> None:
        """`fit` has its training data, and nothing was made of them yet; collective.

        The last moment to change ``trainer.train_source``.
        """

    def settle(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Training has reached its end: the last moment for `Trainer.roll_back`.

        For what is found out later than in the step that it is about. Runs again when going back
        has led to the end once more; collective, on every rank alike.
        """

    def setup(self, trainer: "Trainer", pl_module: "Module", stage: str) -> None:
        """Before anything else; `stage` is ``fit``, ``validate``, ``test`` or ``predict``."""

    def teardown(self, trainer: "Trainer", pl_module: "Module", stage: str) -> None:
        """After everything else."""

    def on_fit_start(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Model, data and optimizers are ready."""

    def on_fit_end(self, trainer: "Trainer", pl_module: "Module") -> None:
        """The last checkpoint is committed."""

    def on_sanity_check_start(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Before the few validation batches that run before training."""

    def on_sanity_check_end(self, trainer: "Trainer", pl_module: "Module") -> None:
        """After them."""

    def on_train_start(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Before the first step of this process."""

    def on_train_end(self, trainer: "Trainer", pl_module: "Module") -> None:
        """After the last step of the run."""

    def on_train_epoch_start(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Before the first step of an epoch (or of what is left of it)."""

    def on_train_epoch_end(self, trainer: "Trainer", pl_module: "Module") -> None:
        """After the last step of an epoch and its validation."""

    def on_train_batch_start(
        self, trainer: "Trainer", pl_module: "Module", batch: Any, batch_idx: int
    ) -> None:
        """Before `training_step`."""

    def on_train_batch_end(
        self, trainer: "Trainer", pl_module: "Module", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After the batch; that of the last lane follows the optimizer step, with its gradients.

        `outputs` is what `training_step` returned, as a dictionary with the detached loss, or an
        empty one for None.
        """

    def on_before_backward(
        self, trainer: "Trainer", pl_module: "Module", loss: "torch.Tensor"
    ) -> None:
        """Between `training_step` and the backward pass."""

    def on_after_backward(self, trainer: "Trainer", pl_module: "Module") -> None:
        """After the backward pass of one batch; gradients of other ranks are not in yet."""

    def on_before_optimizer_step(
        self, trainer: "Trainer", pl_module: "Module", optimizer: "torch.optim.Optimizer"
    ) -> None:
        """Gradients are summed over all ranks, and not clipped yet."""

    def on_before_zero_grad(
        self, trainer: "Trainer", pl_module: "Module", optimizer: "torch.optim.Optimizer"
    ) -> None:
        """Before the gradients of the step before are cleared, after `training_step`."""

    def on_after_optimizer_step(self, trainer: "Trainer", pl_module: "Module") -> None:
        """The optimizer has stepped; `trainer.global_step` does not count the step yet."""

    def on_validation_start(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Before a validation."""

    def on_validation_end(self, trainer: "Trainer", pl_module: "Module") -> None:
        """After a validation; `trainer.callback_metrics` holds its metrics."""

    def on_validation_epoch_start(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Before the first validation batch."""

    def on_validation_epoch_end(self, trainer: "Trainer", pl_module: "Module") -> None:
        """After the last validation batch, before its metrics are reduced."""

    def on_validation_batch_start(
        self,
        trainer: "Trainer",
        pl_module: "Module",
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Before `validation_step`."""

    def on_validation_batch_end(
        self,
        trainer: "Trainer",
        pl_module: "Module",
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """After `validation_step`."""

    def on_test_start(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Before the first test batch; the module is in evaluation mode."""

    def on_test_end(self, trainer: "Trainer", pl_module: "Module") -> None:
        """After the last one; `trainer.callback_metrics` holds the metrics."""

    def on_test_epoch_start(self, trainer: "Trainer", pl_module: "Module") -> None:
        """After `on_test_start`; there is one epoch."""

    def on_test_epoch_end(self, trainer: "Trainer", pl_module: "Module") -> None:
        """After the last batch, before its metrics are reduced."""

    def on_test_batch_start(
        self,
        trainer: "Trainer",
        pl_module: "Module",
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Before `test_step`."""

    def on_test_batch_end(
        self,
        trainer: "Trainer",
        pl_module: "Module",
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """After `test_step`; `outputs` is what it returned."""

    def on_predict_start(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Before the first predict batch; the module is in evaluation mode."""

    def on_predict_end(self, trainer: "Trainer", pl_module: "Module") -> None:
        """After the last one."""

    def on_predict_epoch_start(self, trainer: "Trainer", pl_module: "Module") -> None:
        """After `on_predict_start`; there is one epoch."""

    def on_predict_epoch_end(self, trainer: "Trainer", pl_module: "Module") -> None:
        """After the last batch."""

    def on_predict_batch_start(
        self,
        trainer: "Trainer",
        pl_module: "Module",
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Before `predict_step`."""

    def on_predict_batch_end(
        self,
        trainer: "Trainer",
        pl_module: "Module",
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """After `predict_step`; `outputs` is what it returned."""

    def on_exception(
        self, trainer: "Trainer", pl_module: "Module", exception: BaseException
    ) -> None:
        """Something raised. No collective operation may run here: peers may be gone (R24)."""

    def on_save_checkpoint(
        self, trainer: "Trainer", pl_module: "Module", checkpoint: dict[str, Any]
    ) -> None:
        """Add to the state tree before it is saved; once also before training, as a test."""

    def on_load_checkpoint(
        self, trainer: "Trainer", pl_module: "Module", checkpoint: dict[str, Any]
    ) -> None:
        """Read the state tree before it is applied."""
