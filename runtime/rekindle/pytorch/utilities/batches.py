"""What is in a batch, and where it lies."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from rekindle.data import cpus
from rekindle.pytorch.utilities.exceptions import MisconfigurationException
from rekindle.pytorch.utilities.rank_zero import WarningCache

_said = WarningCache()


def extract_batch_size(batch: Any) -> int:
    """Samples in a batch: the length of the first tensor that is found in it.

    Warns where tensors differ in length. MisconfigurationException where there is no tensor.
    """
    found: int | None = None
    for size in _sizes(batch):
        if found is None:
            found = size
        elif size != found:
            _said.warn(
                f"the tensors of a batch differ in length ({found} and {size}); {found} is taken "
                f"for the batch size. Give it: self.log(..., batch_size=...)"
            )
            break
    if found is None:
        raise MisconfigurationException(
            "a batch without a tensor has no size: give it, self.log(..., batch_size=...)"
        )
    return found


def _sizes(batch: Any) -> Iterator[int | None]:
    if isinstance(batch, torch.Tensor):
        yield 1 if batch.dim() == 0 else batch.size(0)
    elif isinstance(batch, Mapping):
        yield from _sizes(list(batch.values()))
    elif isinstance(batch, Iterable) and not isinstance(batch, str):
        for item in batch:
            yield from _sizes(item)
    elif dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        for field in dataclasses.fields(batch):
            yield from _sizes(getattr(batch, field.name))
    else:
        yield None


def move_data_to_device(batch: Any, device: torch.device | str | int) -> Any:
    """The same collection, with everything that has a method ``to`` on the device."""
    target = torch.device(device)
    if isinstance(batch, torch.Tensor):
        # Copies to these must be waited for.
        return batch.to(target, non_blocking=target.type not in ("cpu", "mps"))
    if callable(getattr(batch, "to", None)):
        moved = batch.to(target)
        return batch if moved is None else moved
    if isinstance(batch, Mapping):
        items = {key: move_data_to_device(item, target) for key, item in batch.items()}
        return items if type(batch) is dict else type(batch)(items)  # type: ignore[call-arg]
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(move_data_to_device(item, target) for item in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(move_data_to_device(item, target) for item in batch)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        values = {
            field.name: move_data_to_device(getattr(batch, field.name), target)
            for field in dataclasses.fields(batch)
            if field.init
        }
        return dataclasses.replace(batch, **values)
    return batch


def suggested_max_num_workers(local_world_size: int) -> int:
    """Loader workers per process that the processors have room for, beside that many processes."""
    if local_world_size < 1:
        raise ValueError(
            f"suggested_max_num_workers({local_world_size!r}): give the number of processes on "
            f"this machine, at least 1"
        )
    return max(1, cpus.usable()[0] // local_world_size - 1)
