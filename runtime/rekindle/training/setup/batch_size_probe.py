"""Does a micro-batch fit the device, and which one does? (R7)

One forward and backward pass at the real size, before training, tells in seconds what would
otherwise end the run in its first step. Whatever the passes change is put back: generators,
buffers, running metrics, gradients.

With `micro_batch="auto"` the size is halved until it fits on every rank. The global batch stays
what it is, so there are more micro-batches in a step, and the samples of a step are the same.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch

from rekindle import randomness
from rekindle.data.loader import LoaderSource, Reader, Share
from rekindle.data.sampling.order import Cursor
from rekindle.errors.requirement import RequirementError
from rekindle.model import metrics
from rekindle.model.module import Module
from rekindle.ranks.distributed import World
from rekindle.training.setup.preflight import StepFunction, loss_of

_GIB = 1 << 30


def fitted(
    module: Module,
    source: LoaderSource,
    cursor: Cursor,
    *,
    world: World,
    step: StepFunction,
    autocast: AbstractContextManager[object] | None,
    move: Callable[[Any], Any] | None,
    automatic: bool,
) -> int:
    """The micro-batch to train with: the cursor's, or with `automatic` the largest half that fits.

    Raises R7 when it does not fit and nothing may be changed. Collective.
    """
    size, peak = cursor.m, 0.0
    while True:
        fits, peak = _try(module, source, cursor, size, step, autocast, move)
        if all(world.gather(fits)):
            break
        if size % 2:
            raise RequirementError(
                f"R7 micro_batch={cursor.m} does not fit the device, and {size} does not either. "
                f"Use a smaller model, activation checkpointing or strategy='fsdp'."
            )
        size //= 2
    if size == cursor.m or automatic:
        return size
    raise RequirementError(
        f"R7 micro_batch={cursor.m} needs {_needs(cursor.m, size, peak, world)}; micro_batch={size}"
        f" fits; set micro_batch='auto' to keep global_batch={cursor.G} with accumulation."
    )


def _needs(wanted: int, size: int, peak: float, world: World) -> str:
    if not peak:
        return "more memory than the device has"
    total = torch.cuda.get_device_properties(world.device).total_memory
    return f"~{peak * wanted / size / _GIB:.0f} GiB, GPU has {total / _GIB:.0f} GiB"


def _try(
    module: Module,
    source: LoaderSource,
    cursor: Cursor,
    size: int,
    step: StepFunction,
    autocast: AbstractContextManager[object] | None,
    move: Callable[[Any], Any] | None,
) -> tuple[bool, float]:
    """Whether one pass fits, and the most memory it took (0 where nobody counts)."""
    device = module.device
    # Any samples will do; an order of the script's own is not asked for one.
    ids = np.arange(min(size, source.samples), dtype=np.int64)
    generators, states = randomness.states(), metrics.states(module)
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    batch: Any = None
    loss: torch.Tensor | None = None
    peak = 0.0
    try:
        batch = Reader(source, cursor.seed)[Share(0, ids)].data
        if move is not None:
            batch = move(batch)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        with autocast or nullcontext():
            loss = loss_of(step(batch, 0), module)
        torch.autograd.backward(loss)
        if device.type == "cuda":
            peak = float(torch.cuda.max_memory_allocated(device))
    except torch.OutOfMemoryError:
        return False, 0.0
    finally:
        batch = loss = None
        module.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, buffer in module.named_buffers():
                if name in buffers:
                    buffer.copy_(buffers[name])
        metrics.restore(module, states)
        randomness.restore(generators)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return True, peak


def explained(error: BaseException, cursor: Cursor) -> BaseException:
    """R7 for an out-of-memory error of a run; any other error as it is."""
    if not isinstance(error, torch.OutOfMemoryError):
        return error
    first = str(error).partition("\n")[0]
    half = f"; try micro_batch={cursor.micro // 2}, or" if cursor.micro > 1 else ";"
    return RequirementError(
        f"R7 micro_batch={cursor.micro} does not fit the device in this step{half} set "
        f"micro_batch='auto' to keep global_batch={cursor.G} with accumulation. {first}"
    )
