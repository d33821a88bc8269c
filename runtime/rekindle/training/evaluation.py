"""Validation, test and prediction: exact over any number of ranks.

Batch b belongs to rank b mod W; nothing is padded and nothing counted twice, since values are
summed with their true weights. All ranks go through the same number of rounds and poll for a
preemption in each, whether or not they have a batch in it: a long validation must not make a pod
miss its notice.

Several loaders are read one after the other, each dealt out for itself; what is logged then carries
the number of the loader in its name. A torchmetrics object is computed after each loader that it
was logged with and emptied at the end, so it goes on over the loaders.

A validation that is cut short leaves nothing behind: metrics get back what they held before it, for
one object may serve training too, and it is run again from its start on resume.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist

from rekindle.data.batches import size_of
from rekindle.data.loader import to_device
from rekindle.errors.requirement import RequirementError
from rekindle.metrics.logged_values import (
    BatchValues,
    Logs,
    Phase,
    check_value,
    flattened,
    means,
    reported,
)
from rekindle.metrics.prometheus import Meter
from rekindle.model import metrics
from rekindle.model.module import Module, StepOutput
from rekindle.model.step_hooks import overridden
from rekindle.model.transfer import transfer
from rekindle.randomness import seed_validation
from rekindle.ranks.distributed import World
from rekindle.ranks.gradients import broadcast
from rekindle.ranks.heartbeat import Activity
from rekindle.strategies.sharding import sharded
from rekindle.training.hooks import Hooks
from rekindle.training.lifecycle import State
from rekindle.training.run import EvaluationPart, Run, Validation
from rekindle.training.setup.preflight import StepFunction

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from rekindle.trainer.trainer import Trainer

_CPU = torch.device("cpu")
_CUT = object()
_LOADER = 40
"""Bits for the number of a batch, where seeds are made of those of loader and batch."""
_PLACES = ("start", "end", "epoch_start", "epoch_end", "batch_start", "batch_end")
_DURING: dict[str, State] = {
    "validation": "validating",
    "test": "testing",
    "predict": "predicting",
}


def evaluate(
    *,
    trainer: "Trainer",
    module: Module,
    hooks: Hooks,
    logs: Logs,
    world: World,
    meter: Meter,
    validation: Validation,
    validation_step: StepFunction,
    autocast: "AbstractContextManager[object] | None",
    seed: int,
    step: int,
    poll: Callable[[], bool],
    limit: int | None = None,
    stage: Literal["validation", "test"] = "validation",
    inference: bool = False,
    batches: BatchValues | None = None,
) -> dict[str, float] | None:
    """Run a validation and reduce its metrics; None when it was cut short. Collective.

    With `inference`, steps run in torch's inference mode; what they make cannot be trained with.
    Step values of all batches of all ranks are put into `batches`.
    """
    began = time.perf_counter()
    move = transfer(module, trainer.datamodule, trainer.flags.precision, world.device)
    if world.size > 1:
        broadcast(buffer for buffer in module.buffers() if buffer.numel())
    around = {place: getattr(hooks, f"on_{stage}_{place}") for place in _PLACES}
    logs.told_batches = {} if batches is None else batches
    before = metrics.states(module)
    with _evaluating(trainer, module, logs, stage), torch.no_grad():
        for place in ("start", "epoch_start"):
            for hook in around[place]:
                hook(trainer, module)
        with torch.inference_mode() if inference else torch.no_grad():
            for number, part in enumerate(validation.parts):
                told = (number,) if validation.several else ()
                logs.loader = number if validation.several else None
                for index, ids, read in _share(part, world, limit, poll, module):
                    if read is _CUT:
                        # Half of a validation must not find its way into the next one.
                        metrics.restore(module, before)
                        return None
                    seed_validation(seed, step, number << _LOADER | index)
                    data = read if move is None else move(read, number)
                    if not len(ids):
                        _untraced(trainer, module, logs, validation_step, data, told, autocast)
                        continue
                    logs.batch_size = size_of(data) if part.whole else len(ids)
                    for hook in around["batch_start"]:
                        hook(trainer, module, data, index, *told)
                    output = _called(validation_step, data, index, told, autocast)
                    if isinstance(output, StepOutput):
                        for name, value in flattened(output.metrics).items():
                            check_value(name, value)
                            logs.note(name, value, False, False, True, None)
                    for hook in around["batch_end"]:
                        hook(trainer, module, output, data, index, *told)
                    if logs.by_batch:
                        logs.end_batch(number, index)
                if validation.several:
                    found, _ = _reduced(module, logs, world, stage, keep=True)
                    logs.settle(stage, found)
                    trainer.measures.take(found, step)
            logs.loader = None
        logs.between = True
        if around["epoch_end"]:
            if world.size > 1:
                trainer.measures.take(reduce(module, logs, world, stage, keep=True), step)
            for hook in around["epoch_end"]:
                hook(trainer, module)
        values = reduce(module, logs, world, stage)
        logs.between = False
        trainer.measures.take(values, step)
        for hook in around["end"]:
            hook(trainer, module)
    meter.phase(stage, time.perf_counter() - began)
    return values


def free_gradients(run: Run) -> None:
    """Before a validation within training, as in Lightning: drop all gradients, or have the module

    do it; also those that wait for a step in manual optimization.
    """
    own, update = overridden(run.module, "on_validation_model_zero_grad"), run.update
    if own is not None:
        update.cleared(own)
    else:
        update.release(run.module)


def validate(
    run: Run,
    data: Validation,
    *,
    limit: int | None = None,
    batches: BatchValues | None = None,
) -> dict[str, float] | None:
    """`evaluate` between two steps of a run, or before its first one; collective."""

    def poll() -> bool:
        run.heart.beat()
        return run.consensus.poll(run.step, acts=False)

    with run.heart.during(Activity.VALIDATING):
        return evaluate(
            trainer=run.trainer,
            module=run.module,
            hooks=run.hooks,
            logs=run.logs,
            world=run.world,
            meter=run.meter,
            validation=data,
            validation_step=run.validation_step,
            autocast=run.autocast,
            seed=run.cursor.seed,
            step=run.step,
            poll=poll,
            limit=limit,
            batches=batches,
        )


def predict(
    *,
    trainer: "Trainer",
    module: Module,
    hooks: Hooks,
    logs: Logs,
    world: World,
    data: Validation,
    step: StepFunction,
    autocast: "AbstractContextManager[object] | None",
    seed: int,
    collect: bool,
    inference: bool,
) -> list[Any] | None:
    """What `predict_step` gives for each batch, in the order of the data; collective.

    Of several loaders a list for each. Every rank gets all of it, on the CPU. Without `collect`
    nothing is kept: hooks have seen it.
    """
    move = transfer(module, trainer.datamodule, trainer.flags.precision, world.device)
    found: list[tuple[int, int, Any]] = []
    here = world.device.type == "cpu"
    with _evaluating(trainer, module, logs, "predict"), torch.no_grad():
        for hook in (*hooks.on_predict_start, *hooks.on_predict_epoch_start):
            hook(trainer, module)
        with torch.inference_mode() if inference else torch.no_grad():
            for number, part in enumerate(data.parts):
                told = (number,) if data.several else ()
                for index, ids, read in _share(part, world, None, lambda: False, module):
                    seed_validation(seed, trainer.global_step, number << _LOADER | index)
                    batch = read if move is None else move(read, number)
                    if not len(ids):
                        _untraced(trainer, module, logs, step, batch, told, autocast)
                        continue
                    kept = [one for c in trainer.callbacks if (one := c.predicted(index, ids))]
                    if kept:
                        if collect:
                            found.append((number, index, kept[0][0]))
                        continue
                    logs.batch_size = size_of(batch) if part.whole else len(ids)
                    for hook in hooks.on_predict_batch_start:
                        hook(trainer, module, batch, index, *told)
                    output = _called(step, batch, index, told, autocast)
                    for hook in hooks.on_predict_batch_end:
                        hook(trainer, module, output, batch, index, *told)
                    if collect:
                        output = output if here else to_device(output, _CPU)
                        found.append((number, index, output))
        for hook in (*hooks.on_predict_epoch_end, *hooks.on_predict_end):
            hook(trainer, module)
    if not collect:
        return None
    ordered = sorted(sum(world.gather(found), []), key=lambda one: one[:2])
    if not data.several:
        return [output for *_, output in ordered]
    return [[out for place, _, out in ordered if place == n] for n in range(len(data.parts))]


def _share(
    part: EvaluationPart,
    world: World,
    limit: int | None,
    poll: Callable[[], bool],
    module: Module,
) -> Iterator[tuple[int, Any, Any]]:
    """This rank's batches (number, ids, data); the last one is cut short when a poll says so.

    Ranks of a sharded module make equally many forward passes: one that has no batch in the last
    round gets one without ids, its own last one or rank 0's.
    """
    if part.batches is None:
        yield from _share_of_stream(part, world, limit, poll, module)
        return
    batches = part.batches if limit is None else min(limit, part.batches)
    shares = iter(part.loader)
    even, last = sharded(module), None
    if even and batches < world.size:
        own = [next(shares)] if world.rank < batches else []
        shares = iter(own)
        last = world.share(own[0][1] if world.first else None)
    for index in range(world.rank, _rounds(batches, world.size) + world.rank, world.size):
        if poll():
            yield index, None, _CUT
            return
        if index < batches:
            ids, last = next(shares)
            yield index, ids, last
        elif even:
            yield index, (), last


def _share_of_stream(
    part: EvaluationPart, world: World, limit: int | None, poll: Callable[[], bool], module: Module
) -> Iterator[tuple[int, Any, Any]]:
    """The same where nobody knows how many batches there are: every rank reads all of them.

    A round is as many batches as there are ranks. They agree on whether one of them has a batch in
    it, because what they read may be of different length, whatever it should be.
    """
    limits = [one for one in (part.most, limit) if one is not None]
    shares, even = islice(part.loader, min(limits, default=None)), sharded(module)
    first = 0
    while True:
        if poll():
            yield first, None, _CUT
            return
        found = list(islice(shares, world.size))
        mine = found[world.rank] if world.rank < len(found) else None
        if not (any(world.gather(mine is not None)) if world.size > 1 else found):
            return
        if mine is not None:
            yield first + world.rank, mine.ids, mine.data
        elif even and found:
            yield first + world.rank, (), found[0].data
        first += world.size


def _called(
    step: StepFunction,
    batch: Any,
    index: int,
    told: tuple[int, ...],
    autocast: "AbstractContextManager[object] | None",
) -> Any:
    if autocast is None:
        return step(batch, index, *told)
    with autocast:
        return step(batch, index, *told)


def _untraced(
    trainer: "Trainer",
    module: Module,
    logs: Logs,
    step: StepFunction,
    batch: Any,
    told: tuple[int, ...],
    autocast: "AbstractContextManager[object] | None",
) -> None:
    """Run a step for the sake of other ranks: nothing that it logs or counts is kept."""
    kept = metrics.states(module)
    module.attach(trainer, None)
    _called(step, batch, 0, told, autocast)
    module.attach(trainer, logs)
    metrics.restore(module, kept)


def _rounds(batches: int, world_size: int) -> int:
    """Positions that all ranks walk over, so that each has equally many rounds."""
    return -(-batches // world_size) * world_size


@contextmanager
def _evaluating(
    trainer: "Trainer", module: Module, logs: Logs, stage: Literal["validation", "test", "predict"]
) -> Iterator[None]:
    """Evaluation mode inside, every submodule's own mode back afterwards.

    A module may do either itself, in `on_validation_model_eval` and its like.
    """
    modes = [(child, child.training) for child in module.modules()]
    before = logs.phase
    getattr(module, f"on_{stage}_model_eval")()
    back = None if stage == "predict" else overridden(module, f"on_{stage}_model_train")
    logs.enter(stage)
    try:
        with trainer.during(_DURING[stage]):
            yield
        if back is not None:
            back()
            modes = []
    finally:
        for child, mode in modes:
            child.training = mode
        logs.loader = None
        logs.clear(stage)
        logs.enter(before)


def reduce(
    module: Module, logs: Logs, world: World, phase: Phase, *, keep: bool = False
) -> dict[str, float]:
    """The epoch values of a phase over all ranks; empties sums unless `keep`. Collective."""
    values, paths = _reduced(module, logs, world, phase, keep=keep)
    if keep:
        logs.tell(phase)
        return values
    metrics.reset(module, paths)
    logs.clear(phase)
    return values


def _reduced(
    module: Module, logs: Logs, world: World, phase: Phase, *, keep: bool
) -> tuple[dict[str, float], set[str]]:
    """The same, and the paths of the metrics that were logged, which are not emptied yet."""
    own: tuple[Any, dict[str, str], Any]
    own = (logs.epoch_pairs(phase), logs.epoch_metrics(phase), logs.take_batches())
    parts = world.gather(own)
    values = means([pairs for pairs, *_ in parts])
    paths: dict[str, str] = {}
    for _, named, _ in parts:
        paths |= named
    logs.tell_batches(batches for *_, batches in parts)
    # What was computed after its loader stays what it was then.
    due = {name: path for name, path in paths.items() if name not in values}
    owned = metrics.owned(module) if due else {}
    summed: set[int] = set()
    logged = [owned[path] for path in sorted(set(due.values()))]
    kept = metrics.held(logged) if keep else ()
    if world.size > 1 and due:
        # A hook may have looked at them on one rank only.
        metrics.forget(logged)
        summed = metrics.sum_over_ranks(logged, dist.all_reduce)
    for name, path in due.items():
        try:
            values[name] = metrics.value_of(owned[path], summed=id(owned[path]) in summed)
        except ValueError as error:
            raise RequirementError(f"R6 metric {reported(name)!r}: {error}.") from error
    metrics.put_back(kept)
    return values, set(paths.values())
