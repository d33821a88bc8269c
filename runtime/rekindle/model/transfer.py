"""The way of a batch to the device, and the hooks of module and data module along it.

Without an overridden hook a batch is moved in one go, or not at all where it is right as it comes.
With one, the batch is brought into the run's dtype first; then come `on_before_batch_transfer`,
`transfer_batch_to_device` and `on_after_batch_transfer`, each of the data module if that overrides
it, else of the module. The numbers that these hooks draw are those of the batch's place in the run,
as in the step itself, so augmentation on the device is the same after a restart.
"""

from collections.abc import Callable
from typing import Any

import torch

from rekindle.model.precision import MixedPrecision, Precision, dtype_of, moved, mover

Move = Callable[..., Any]
"""Called with a batch, and the number of its loader where there are several."""


class TransferHooks:
    """The hooks that `rekindle.Module` and `rekindle.DataModule` share."""

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Change a batch before it is moved; return it."""
        return batch

    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        """Move a batch of a type that the trainer does not know; return it."""
        return moved(batch, device, None)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Change a batch that is on the device, by augmentation for example; return it."""
        return batch


def transfer(
    module: object,
    datamodule: object,
    precision: Precision | MixedPrecision,
    device: torch.device,
) -> Move | None:
    """What brings a batch to the device; None when it is right as it comes."""
    before, move, after = (
        _chosen(name, module, datamodule)
        for name in (
            "on_before_batch_transfer",
            "transfer_batch_to_device",
            "on_after_batch_transfer",
        )
    )
    if before is None and move is None and after is None:
        return mover(precision, device)
    dtype = dtype_of(precision, device)

    def transferred(batch: Any, dataloader_idx: int = 0) -> Any:
        if dtype is not None:
            batch = moved(batch, None, dtype)
        if before is not None:
            batch = before(batch, dataloader_idx)
        if move is not None:
            batch = move(batch, device, dataloader_idx)
        elif device.type != "cpu":
            batch = moved(batch, device, None)
        return batch if after is None else after(batch, dataloader_idx)

    return transferred


def _chosen(name: str, module: object, datamodule: object) -> Callable[..., Any] | None:
    """The data module's hook, else the module's; None when nobody overrides it."""
    for owner in (datamodule, module):
        found = getattr(owner, name, None)
        own = getattr(type(owner), name, None) is not getattr(TransferHooks, name)
        if found is not None and (own or name in vars(owner)):
            return found  # type: ignore[no-any-return]
    return None
