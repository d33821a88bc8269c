"""Which of Lightning's trainers the bridge serves, and their processes as a `World`.

One device and DDP, in processes whose exit codes reach whoever started them. Strategies that cut a
model across processes keep state in forms of their own, which `state` would store wrongly, and the
children of a notebook's or ``spawn`` launcher end without anybody seeing exit code 75. Whatever is
not served is refused before a store is opened, with what to use instead. That the number of
processes is as before is known only with a checkpoint at hand: see `resuming`.
"""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from lightning.pytorch.utilities import CombinedLoader

from rekindle.ranks.distributed import TIMEOUT, World

if TYPE_CHECKING:
    import lightning.pytorch as pl


def check(trainer: "pl.Trainer") -> None:
    """Refuse what the bridge would get wrong; raises TypeError or ValueError."""
    if type(trainer).__module__.startswith("pytorch_lightning"):
        raise TypeError(
            "this Trainer comes from `pytorch_lightning`; write `import lightning.pytorch as pl` "
            "for RekindleCallback (the two packages have different classes)"
        )
    source = trainer.fit_loop._data_source
    given = None if source.is_module() else source.instance
    loaders = given if isinstance(given, CombinedLoader) else CombinedLoader(given)
    for given in (each for each in loaders.flattened if isinstance(each, Iterator)):
        raise ValueError(
            f"fit() got a {type(given).__name__} as training data, which can be read only once: "
            f"after a restart, or in another fit, what is left of it would be other batches. Give "
            f"a list, a DataLoader, or an IterableDataset whose __iter__ begins anew"
        )
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started > trainer.world_size:
        raise ValueError(
            f"{started} processes were started, and the Trainer was made for {trainer.world_size}: "
            f"as under torchrun, give Trainer(num_nodes=, devices=, strategy='ddp') the numbers of "
            f"GROUP_WORLD_SIZE and LOCAL_WORLD_SIZE"
        )
    strategy = trainer.strategy
    name = type(strategy).__name__
    if not isinstance(strategy, DDPStrategy | SingleDeviceStrategy):
        raise ValueError(
            f"RekindleCallback serves one device and DDP, not {name}; for sharded models use "
            f"rekindle.Trainer(strategy='fsdp')"
        )
    if isinstance(strategy.launcher, _MultiProcessingLauncher):
        raise ValueError(
            f"RekindleCallback needs processes whose exit code counts, which {name} started by "
            f"{strategy.launcher._start_method!r} does not give; use strategy='ddp', torchrun or a "
            f"TrainingJob"
        )


def world(trainer: "pl.Trainer") -> World:
    """Lightning's processes, with a group of our own for control; collective."""
    group = None
    if trainer.world_size > 1:
        group = torch.distributed.new_group(backend="gloo", timeout=TIMEOUT)
    return World(
        rank=trainer.global_rank,
        size=trainer.world_size,
        local_rank=trainer.local_rank,
        device=trainer.strategy.root_device,
        control=group,
    )
