"""The processes that train together, and how they talk outside of the gradients.

torchrun's environment says who is who; without it there is one process and no process group at all.
Besides the default group (NCCL on GPUs, gloo on CPUs) there is a gloo group of our own for
everything that is not tensors of the model: agreeing on a step, gathering metrics, sharing the
failure of a check. It never queues behind a gradient and needs no GPU.

Objects travel between live ranks of one job as pickles. Checkpoints never do: they are read by
machines that did not write them. Most of what is said is a few words long, so a first message of
fixed size has room for them, and only what is longer takes a second one; torch's own object
collectives always take two, and a round that comes up says a dozen things.
"""

import os
import pickle
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist

from rekindle.errors.requirement import CheckFailure, RequirementError, code_of, passes
from rekindle.ranks.relaunch import by_hand, relaunch, startable

TIMEOUT = timedelta(minutes=10)
"""How long a collective waits for a silent peer that is alive; a dead one is noticed at once."""

_ROOM = 1024
"""Bytes of the first message; eight of them say how long the whole is."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among its peers."""

    rank: int
    size: int
    local_rank: int
    device: torch.device
    control: "dist.ProcessGroup | None"
    """gloo group for control; None in a world of one."""

    @property
    def first(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Every rank's value, by rank."""
        if self.control is None:
            return [value]
        data = pickle.dumps(value)
        heads = torch.empty(self.size, _ROOM, dtype=torch.uint8)
        dist.all_gather(list(heads), _head(data), group=self.control)
        found = [head.numpy().data for head in heads]
        sizes = [int.from_bytes(head[:8], "little") for head in found]
        if max(sizes) > _ROOM - 8:
            whole = torch.empty(self.size, max(sizes), dtype=torch.uint8)
            mine = torch.empty(max(sizes), dtype=torch.uint8)
            mine.numpy().data[: len(data)] = data
            dist.all_gather(list(whole), mine, group=self.control)
            return [
                pickle.loads(one.numpy().data[:size])
                for one, size in zip(whole, sizes, strict=True)
            ]
        return [pickle.loads(head[8 : 8 + n]) for head, n in zip(found, sizes, strict=True)]

    def share(self, value: T) -> T:
        """Rank 0's value."""
        if self.control is None:
            return value
        data = pickle.dumps(value) if self.first else b""
        head = _head(data)
        dist.broadcast(head, group_src=0, group=self.control)
        size = len(data) if self.first else int.from_bytes(head.numpy().data[:8], "little")
        if size > _ROOM - 8:
            whole = torch.empty(size, dtype=torch.uint8)
            whole.numpy().data[: len(data)] = data
            dist.broadcast(whole, group_src=0, group=self.control)
            data = whole.numpy().tobytes()
        elif not self.first:
            data = head.numpy()[8 : 8 + size].tobytes()
        return value if self.first else cast(T, pickle.loads(data))

    def agree(self, error: Exception | None) -> None:
        """Raise on every rank if any rank failed; collective.

        The rank that failed raises its own error, the others the same message (R-code included).
        """
        mine = None
        if error is not None:
            headline, transient = _headline(error), passes(error)
            mine = CheckFailure(rank=self.rank, message=headline, transient=transient)
        failures = [failure for failure in self.gather(mine) if failure is not None]
        if error is not None:
            raise error
        if failures:
            raise RequirementError(failures[0].message, transient=failures[0].transient)

    def of_copies(self, parts: int) -> "World":
        """This process among those that see other data, when `parts` neighbours see the same.

        Collective over all processes.
        """
        if parts == 1:
            return self
        groups = [
            dist.new_group(list(range(part, self.size, parts)), backend="gloo", timeout=TIMEOUT)
            for part in range(parts)
        ]
        size = self.size // parts
        own = groups[self.rank % parts] if size > 1 else None
        return replace(self, rank=self.rank // parts, size=size, control=own)

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.control is not None:
            dist.barrier(group=self.control)


def _head(data: bytes) -> torch.Tensor:
    """The first message: how long the whole is, and the whole if there is room for it."""
    head = torch.zeros(_ROOM, dtype=torch.uint8)
    memory = head.numpy().data
    memory[:8] = len(data).to_bytes(8, "little")
    if len(data) <= _ROOM - 8:
        memory[8 : 8 + len(data)] = data
    return head


def _headline(error: Exception) -> str:
    text = str(error)
    return text if code_of(text) else f"{type(error).__name__}: {text}"


def join(
    accelerator: str,
    devices: int | str,
    num_nodes: int = 1,
    device_ids: "Sequence[int] | None" = None,
) -> World:
    """Join the process group that the environment describes; idempotent within a process.

    A script that was started alone and asks for several processes is started anew in all of them.
    Raises ValueError when that is not possible; ``"auto"`` is one process then. `device_ids` are
    the GPUs to use, one for each process of this machine.
    """
    by_hand(devices, num_nodes)
    size = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    alone = "WORLD_SIZE" not in os.environ
    if alone and num_nodes > 1:
        raise ValueError(
            f"num_nodes={num_nodes}, but this process was started alone. Start the script on every "
            f"node with `torchrun --nnodes {num_nodes} ... script.py`, or as a TrainingJob."
        )
    if alone and devices in ("all", "auto"):
        devices = _gpus(accelerator, must=devices == "all")
    if alone and isinstance(devices, int) and devices > 1:
        relaunch(accelerator, devices)
    if device_ids is not None and local_rank < len(device_ids):
        device = device_of(accelerator, device_ids[local_rank])
    else:
        device = device_of(accelerator, local_rank)
    if "WORLD_SIZE" not in os.environ or size == 1:
        return World(rank=0, size=1, local_rank=local_rank, device=device, control=None)
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=TIMEOUT)
    return World(
        rank=rank,
        size=size,
        local_rank=local_rank,
        device=device,
        control=dist.new_group(backend="gloo", timeout=TIMEOUT),
    )


def _gpus(accelerator: str, *, must: bool) -> int:
    """How many processes make use of all GPUs; one where this program cannot be started again."""
    if accelerator not in ("auto", "gpu") or not torch.cuda.is_available():
        return 1
    count = torch.cuda.device_count()
    return count if must or startable() else min(count, 1)


def device_of(accelerator: str, index: int) -> torch.device:
    """The device of a kind with a number; ValueError where there is none."""
    with warnings.catch_warnings():
        # On a machine without a driver, asking is answered with a warning.
        warnings.simplefilter("ignore")
        available = torch.cuda.is_available()
    if accelerator == "gpu" and not available:
        raise ValueError(
            "accelerator='gpu', but torch sees no GPU here. Use accelerator='auto', or set "
            "REKINDLE_ACCELERATOR=cpu for this machine."
        )
    if accelerator == "mps":
        if not torch.backends.mps.is_available():
            raise ValueError(
                "accelerator='mps', but torch sees no Apple GPU here. Use accelerator='auto'."
            )
        return torch.device("mps")
    if accelerator == "cpu" or not available:
        return torch.device("cpu")
    if index >= torch.cuda.device_count():
        raise ValueError(
            f"GPU {index} is asked for, but torch sees {torch.cuda.device_count()} here. Change "
            f"devices=."
        )
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device


def leave() -> None:
    """Close the process group after a regular end; never after an error."""
    if dist.is_initialized():
        dist.destroy_process_group()
