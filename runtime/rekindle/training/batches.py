"""Steps and their batches, from the cursor to the end of the epoch; sizes may change in between.

The position counts samples, so the global batch and the micro-batch may change at any step
boundary: what was read ahead is dropped and reading begins anew at the position, with lanes of the
new size. A change is decided by the script (`Trainer.set_batch_size`, or a DataModule's
``hparams.batch_size``), takes effect on every rank at the same step because every rank runs the
same hooks, and is part of the cursor: a restart goes on with it. A list of all changes, world sizes
included, travels with the checkpoints for `rekindle audit`.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from rekindle.checkpoint.objects.interface import PreconditionFailed, StoreError
from rekindle.data.loader import Batch, LoaderSource, build, fingerprint, limited
from rekindle.data.sampling.order import ENDLESS, Cursor, Kind, Step
from rekindle.data.sampling.samplers import Draw, marked
from rekindle.data.script_data import Evaluation
from rekindle.data.streams import Streaming
from rekindle.errors.requirement import RequirementError
from rekindle.flags import Flags
from rekindle.model import metrics
from rekindle.training.run import Run


def steps(run: Run) -> Iterator[tuple[Step, Iterator[Batch]]]:
    """The steps that are left in this epoch, each with this rank's batches in the order of lanes.

    Batches are read where the loop asks for the next one.
    """
    if run.feed.stream is not None:
        yield from _streamed(run, run.feed.stream)
        return
    record(run)
    while run.cursor.sample < run.cursor.length:
        plan = run.sampler.cursor = run.cursor
        batches = iter(run.loader)
        for step in plan.remaining():
            yield step, batches
            if run.cursor.G != plan.G or run.cursor.micro != plan.micro:
                break


def _streamed(run: Run, stream: Streaming) -> Iterator[tuple[Step, Iterator[Batch]]]:
    """The same for iterable data, whose end shows only when it is reached.

    So one step is read ahead: validation at the end of an epoch is due with its last step.
    """
    stream.begin(run.cursor.epoch)
    while run.cursor.sample < run.cursor.length:
        plan = run.cursor
        ahead = stream.read(plan.sample)
        if ahead is None:
            if not plan.sample:
                raise ValueError(
                    f"{type(stream.source.dataset).__name__} gave no samples for a step of epoch "
                    f"{plan.epoch}"
                )
            run.cursor = replace(plan, length=plan.sample)
        while ahead is not None:
            step = ahead
            enough = (run.cursor.steps + 1) * plan.lanes >= stream.limit
            ahead = None if enough else stream.read(step.stop)
            if ahead is None:
                run.cursor = replace(run.cursor, length=step.stop)
            yield step, iter(step.batches)
            if run.cursor.m != plan.m:
                stream.rewind(run.cursor.m)
                break
    if stream.dropped:
        run.console.say(
            f"epoch {run.cursor.epoch} ended with its first lane (exhaustion='min'): "
            f"{stream.dropped} samples of other lanes were read and not used"
        )


def record(run: Run) -> None:
    """Before an epoch of weights or of the script's own order: the same on all ranks, as before?

    Rank 0 writes it beside the checkpoints for the audit. Collective; does nothing for orders that
    follow from numbers.
    """
    draw, epoch = run.sampler.draw, run.cursor.epoch
    if draw is None:
        return
    error: Exception | None = None
    mark = ""
    try:
        name, contents = draw.record(run.cursor.seed, epoch)
        mark = marked(contents)
        if run.world.first and run.session is not None and name not in run.feed.recorded:
            if not _written(run, name, contents):
                raise RequirementError(
                    f"R12 the order function gives other samples for epoch {epoch} than it gave "
                    f"before step {run.step}. Exactly-once cannot hold. It must depend on its "
                    f"arguments (seed, epoch) alone."
                )
            run.feed.recorded.add(name)
    except Exception as failure:
        error = failure
    run.world.agree(error)
    if len(set(run.world.gather(mark))) > 1:
        raise RequirementError(
            f"R9 the order of epoch {epoch} differs between ranks. It must depend on (seed, epoch) "
            f"alone, or on weights that are the same everywhere."
        )


def _written(run: Run, name: str, contents: bytes) -> bool:
    """Whether what is under this name are these contents, written now if need be."""
    assert run.session is not None
    objects = run.session.lease.store.objects
    try:
        objects.put(name, contents, if_none_match=True)
    except PreconditionFailed:
        return objects.get(name, limit=len(contents) + 1) == contents
    except StoreError as error:
        # Training does not need it.
        run.console.say(f"the order of the data cannot be recorded for an audit: {error}")
    return True


def resize(run: Run, *, global_batch: int | None = None, micro: int | None = None) -> None:
    """Change sizes from the next step on; same call on every rank.

    A micro-batch alone keeps the number of lanes, so the global batch grows with it, unless the
    script has fixed the global batch by a flag. Raises ValueError for sizes that do not fit
    together.
    """
    before = run.cursor
    micro = micro or before.m
    kept = before.G if run.flags.global_batch_size else before.G // before.m * micro
    cursor = before.resized(G=global_batch or kept, m=micro)
    if (cursor.G, cursor.m) == (before.G, before.m):
        return
    cursor = run.sharing.cut(cursor, run.world.size)
    if run.feed.stream is not None and cursor.lanes != before.lanes:
        raise ValueError(
            f"a stream is read in {before.lanes} micro-batches per step, each with a position of "
            f"its own; change micro_batch (or hparams.batch_size), which keeps their number"
        )
    run.cursor = cursor
    run.trainer.plan(run.total_steps)
    run.console.say(
        f"batch size changes at step {run.step}: global {before.G} -> {cursor.G}, micro-batch "
        f"{before.m} -> {cursor.m}"
    )
    note(run)
    tell(run)


def follow(run: Run) -> None:
    """Before the first batch of an epoch: are the loaders to be asked for again?

    They are when a hook has changed the DataModule's batch size, and every so many epochs by
    `reload_dataloaders_every_n_epochs`. Collective.
    """
    every, sources = run.flags.reload_dataloaders_every_n_epochs, run.feed.sources
    if sources is None:
        return
    asked, cursor = batch_size_of(run.datamodule), run.cursor
    anew = bool(every) and cursor.epoch % every == 0 and cursor.epoch != cursor.loaded
    if asked == run.feed.batch_size and not anew:
        return
    error: Exception | None = None
    source: LoaderSource | None = None
    evaluation: Evaluation | None = None
    mark = cursor.fingerprint
    try:
        source, evaluation = sources()
        if source is None or source.streamed != (run.feed.stream is not None):
            raise ValueError(
                f"the training loader made anew for epoch {cursor.epoch} is of another kind than "
                f"the one before it; both have to be streams, or both have to have a length"
            )
        mark = fingerprint(source, cursor.seed)
    except Exception as failure:
        error = failure
    run.world.agree(error)
    assert source is not None
    if anew:
        if len(set(run.world.gather(mark))) > 1:
            raise RequirementError(
                f"R9 the training data that were loaded for epoch {cursor.epoch} differ between "
                f"ranks. They may depend on the epoch, not on the process."
            )
        _changed(run, source, mark)
        if evaluation is not None and run.feed.validation is not None:
            run.validation, run.validation_step = run.feed.validation(evaluation)
    if run.feed.stream is not None:
        run.feed.stream.source = source
    else:
        run.loader = build(source, run.sampler, cursor.seed)
    run.trainer.train_source = source
    size = source.batch_size
    if asked != run.feed.batch_size:
        run.feed.batch_size = asked
        resize(run, micro=size)
    elif size != (cursor.script_m or size):
        # A resume asks for this loader, so its size is the script's own.
        resize(run, micro=size)
        run.cursor = replace(run.cursor, script_m=size)


def _changed(run: Run, source: LoaderSource, mark: str) -> None:
    """Go on with what was loaded for this epoch; collective.

    It may be another dataset: a resume asks for the loader as of the same epoch, and so gets it
    again. Positions then mean something else, so the ledger begins a chapter.
    """
    draw = None if source.draw is None else source.draw(run.cursor.seed)
    length, kind = length_of(source, draw, run.flags), kind_of(source, draw, run.flags)
    cursor = replace(
        run.cursor,
        N=source.samples,
        length=length,
        order=kind,
        draw="" if draw is None else draw.mark,
        fingerprint=mark,
        loaded=run.cursor.epoch,
    )
    names = ("N", "length", "order", "draw", "fingerprint")
    if any(getattr(cursor, name) != getattr(run.cursor, name) for name in names):
        run.ledger.turn(run.ledger.totals(run.world.gather(run.ledger.own())), run.cursor)
    run.cursor, run.sampler.draw = cursor, draw
    run.trainer.plan(run.total_steps)


def length_of(source: LoaderSource, draw: Draw | None, flags: Flags) -> int:
    """Positions of an epoch; 0 when limits leave no batch."""
    if source.streamed:
        return ENDLESS
    positions = draw.length if draw is not None else source.positions or source.samples
    batches = limited(flags.limit_train_batches, source.batches_of(positions))
    return min(positions, batches * source.batch_size)


def kind_of(source: LoaderSource, draw: Draw | None, flags: Flags) -> Kind:
    """The order of an epoch."""
    if source.streamed:
        return "stream"
    if draw is not None:
        return draw.kind
    return "shuffle" if source.shuffle and not flags.overfit else "sequential"


def turn(run: Run, meta: dict[str, Any]) -> None:
    """The dataset has changed and the script accepts it: the epoch begins anew on the new one.

    What was used of the old one is closed in the ledger, and the epoch's metrics begin at zero.
    """
    saved = Cursor.from_json(meta["cursor"])
    whole = saved.sample >= saved.length
    run.ledger.turn(meta["ledger"], saved.next_epoch() if whole else saved)
    run.logs.clear("train")
    metrics.restore(run.module, {})


def batch_size_of(datamodule: object) -> object:
    """``hparams.batch_size``, which scripts change while training; None without one."""
    hparams = getattr(datamodule, "hparams", None)
    return None if hparams is None else hparams.get("batch_size")


def tell(run: Run) -> None:
    """Tell people and the agent for how many processes a step is work."""
    line = run.sharing.told(run.cursor, run.world.size)
    if line is not None and not run.done:
        run.console.say(line)
    if run.page is not None and run.world.local_rank == 0:
        run.page.use(run.sharing.useful(run.cursor))


def note(run: Run) -> None:
    """Add today's sizes to the history, if they are others than before."""
    sizes = {"G": run.cursor.G, "m": run.cursor.micro, "world_size": run.world.size}
    history = run.feed.history
    if history and {name: history[-1][name] for name in sizes} == sizes:
        return
    place = {"step": run.step, "epoch": run.cursor.epoch, "sample": run.cursor.sample}
    if history and history[-1]["step"] == run.step:
        history.pop()
    history.append(place | sizes)
