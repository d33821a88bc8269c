"""From a script's call of `fit` to a `Run` that is ready for its first step.

The order matters. First who we are (process group), then the data and the model of the script, then
everything that may refuse: signatures, data, store, each shared with all ranks before anybody goes
on. Only then the checkpoint is read, because it decides the global batch and with it whether this
world size is usable at all.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import torch

from rekindle import feeding, optimizers, persistence, randomness, state
from rekindle.checkpoint.manifest import commit_key
from rekindle.consensus import Consensus, Notice
from rekindle.console import Console
from rekindle.contract import Restored as RestoredReport
from rekindle.control import ControlPage
from rekindle.distributed import World
from rekindle.evaluation import evaluate
from rekindle.flags import Flags
from rekindle.gradients import GradientSum, broadcast
from rekindle.hooks import Hooks
from rekindle.loader import BatchSampler, LaneSampler, Source, build, limited, take_apart
from rekindle.logs import Logs
from rekindle.module import Module
from rekindle.order import Cursor
from rekindle.persistence import Found, Session
from rekindle.precision import autocast
from rekindle.preflight import (
    check_data,
    check_defined,
    check_same_data,
    check_world,
    step_function,
)
from rekindle.run import Run, Validation, planned_steps
from rekindle.telemetry import Meter

if TYPE_CHECKING:
    from rekindle.trainer import Trainer


def load_sources(
    datamodule: Any, train: Any, validation: Any, world: World, stage: Literal["fit", "validate"]
) -> tuple[Source | None, Source | None]:
    """Prepare and set up the data, and take its loaders apart; collective."""
    error: Exception | None = None
    if datamodule is not None and world.first:
        try:
            datamodule.prepare_data()
        except Exception as failure:
            error = failure
    world.agree(error)
    sources: tuple[Source | None, Source | None] = (None, None)
    try:
        if datamodule is not None:
            datamodule.setup(stage)
            train = datamodule.train_dataloader() if stage == "fit" else None
            validation = datamodule.val_dataloader()
        sources = (
            None if train is None else take_apart(train, "train"),
            None if validation is None else take_apart(validation, "validation"),
        )
    except Exception as failure:
        error = failure
    world.agree(error)
    return sources


def validation_of(
    source: Source | None, flags: Flags, world: World, seed: int
) -> Validation | None:
    """The validation data, dealt out over the ranks."""
    if source is None or not source.samples:
        return None
    batches = limited(flags.limit_val_batches, source.batches)
    if not batches:
        return None
    sampler = BatchSampler(
        source.samples, source.batch_size, batches, rank=world.rank, world_size=world.size
    )
    return Validation(loader=build(source, sampler, seed), batches=batches)


def assemble(
    trainer: "Trainer",
    module: Module,
    *,
    datamodule: Any,
    train: Any,
    validation: Any,
    world: World,
    page: ControlPage | None,
    notice: Notice,
    console: Console,
) -> Run:
    """Make the run, restored from its newest good checkpoint; collective."""
    flags = trainer.flags
    if flags.max_epochs is None and flags.max_steps is None:
        raise ValueError("Trainer needs max_epochs= or max_steps= to know when fit() is done")
    if page is not None and world.local_rank == 0:
        page.attach()
    train_source, validation_source = load_sources(datamodule, train, validation, world, "fit")
    if train_source is None:
        raise ValueError(
            "fit() got no training data: give a DataModule, or fit(model, train_dataloaders=...)"
        )
    hooks = Hooks(trainer.callbacks, module)
    for hook in hooks.setup:
        hook(trainer, module, "fit")
    error: Exception | None = None
    try:
        check_defined(module, validation=validation_source is not None)
        state.keys(trainer.callbacks)
    except Exception as failure:
        error = failure
    world.agree(error)
    mark = check_data(train_source, flags.seed, world)
    session = Session.open(flags, world, page) if flags.enable_checkpointing else None
    if session is not None and world.first:
        _, notice_line = persistence.root(flags)
        if notice_line is not None:
            console.say(notice_line)
    found = session.find(flags.resume) if session is not None else Found(restored=None, skipped=())
    cursor = _cursor(train_source, flags, mark, world, found, console)
    start = Cursor.from_json({**cursor.to_json(), "epoch": 0, "sample": 0})
    trainer.plan(planned_steps(start, 0, flags))
    module.to(world.device)
    optimization = optimizers.configure(module)
    trainer.use(optimization.optimizer)
    logs = Logs(module)
    sampler = LaneSampler(cursor, rank=world.rank, world_size=world.size)
    run = Run(
        trainer=trainer,
        module=module,
        flags=flags,
        world=world,
        hooks=hooks,
        logs=logs,
        console=console,
        meter=Meter(first=world.local_rank == 0),
        page=page,
        notice=notice,
        consensus=Consensus(world, notice, session.clock_due if session else _never),
        session=session,
        optimization=optimization,
        gradients=None,
        autocast=autocast(flags.precision, world.device),
        training_step=step_function(module, "training_step"),
        validation_step=step_function(module, "validation_step"),
        cursor=cursor,
        sampler=sampler,
        loader=build(train_source, sampler, cursor.seed),
        validation=validation_of(validation_source, flags, world, cursor.seed),
        datamodule=datamodule,
        feed=feeding.feed_of(datamodule),
    )
    module.attach(trainer, logs)
    trainer.watch(run)
    # Only a restart on other ranks needs numbers that no attempt before has drawn.
    attempt = session.fence if session is not None and found.restored is not None else 0
    randomness.seed_start(cursor.seed, world.rank, attempt)
    if found.restored is not None:
        state.apply(run, found.restored)
    feeding.note(run)
    if session is not None:
        session.begin(found)
    if world.size > 1:
        broadcast(tensor for tensor in module.state_dict().values() if _sendable(tensor))
        run.gradients = GradientSum(p for p in module.parameters() if p.requires_grad)
    _announce(run, found)
    for hook in hooks.on_fit_start:
        hook(trainer, module)
    if session is not None and not run.done:
        tree, rank_tree, _ = state.collect(run, finished=False)
        fresh = not run.optimization.optimizer.state
        weigh = (lambda: optimizers.nbytes(run.optimization.optimizer)) if fresh else None
        session.prepare(tree, rank_tree, weigh)
    return run


def _sendable(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.numel() > 0


def _never() -> bool:
    return False


def _cursor(
    source: Source, flags: Flags, mark: str, world: World, found: Found, console: Console
) -> Cursor:
    """Where to begin, in an order that the first attempt has fixed."""
    micro = source.batch_size
    asked = flags.global_batch_size
    batch = asked or micro * flags.accumulate_grad_batches * world.size
    length = min(source.samples, limited(flags.limit_train_batches, source.batches) * micro)
    if not length:
        raise ValueError(
            f"limit_train_batches={flags.limit_train_batches!r} or drop_last leaves no batch of "
            f"{source.batches}"
        )
    fresh = Cursor(
        epoch=0,
        sample=0,
        G=batch,
        m=micro,
        seed=flags.seed,
        N=source.samples,
        length=length,
        order="shuffle" if source.shuffle else "sequential",
        fingerprint=mark,
        script_m=micro,
        script_G=asked,
    )
    if found.restored is None:
        check_world(fresh, world.size)
        return fresh
    step = int(found.restored.meta["step"])
    saved = Cursor.from_json(found.restored.meta["cursor"])
    check_same_data(saved, fresh, step)
    # What a schedule has made of the sizes stays, unless the script itself has changed.
    kept = saved.G if asked == saved.script_G else asked or saved.G
    if kept != saved.G:
        console.say(f"global_batch_size changes from {saved.G} to {kept} at step {step}")
    size = saved.m if micro == saved.script_m else micro
    cursor = replace(saved, G=kept, m=size, script_m=micro, script_G=asked)
    if flags.seed != saved.seed:
        console.say(f"seed stays {saved.seed}, as the checkpoint of step {step} has it")
    check_world(cursor, world.size)
    return cursor


def _announce(run: Run, found: Found) -> None:
    """Tell people and the agent where this attempt begins."""
    restored, session = found.restored, run.session
    for line in found.skipped:
        run.console.say(line)
    source = "scratch"
    if restored is not None and session is not None:
        source = f"{session.uri.rstrip('/')}/{commit_key(restored.ref)}"
        run.console.say(
            f"resumed at step {run.step} (epoch {run.cursor.epoch}) from {session.uri}, saved by "
            f"{restored.world_size} and now on {run.world.size} processes"
        )
    if run.page is not None and run.world.local_rank == 0:
        run.page.begin(
            step=run.step,
            samples=run.samples,
            total_steps=run.total_steps,
            epoch=run.cursor.epoch,
            productive=run.productive,
            stall=run.stall,
        )
        if run.trainer.callback_metrics:
            metrics = run.trainer.callback_metrics
            run.page.write_metrics({name: float(value) for name, value in metrics.items()})
        run.page.write_restored(RestoredReport(step=run.step, source=source, skipped=found.skipped))


def sanity_check(run: Run) -> bool:
    """A few validation batches before training; whether all of them ran. Collective."""
    if run.validation is None or not run.flags.num_sanity_val_steps:
        return True
    limit = run.flags.num_sanity_val_steps
    for hook in run.hooks.on_sanity_check_start:
        hook(run.trainer, run.module)
    values = evaluate(
        trainer=run.trainer,
        module=run.module,
        hooks=run.hooks,
        logs=run.logs,
        world=run.world,
        meter=run.meter,
        validation=run.validation,
        validation_step=run.validation_step,
        autocast=run.autocast,
        seed=run.cursor.seed,
        step=run.step,
        poll=run.consensus.poll,
        limit=None if limit < 0 else limit,
    )
    run.trainer.callback_metrics.clear()
    for hook in run.hooks.on_sanity_check_end:
        hook(run.trainer, run.module)
    return values is not None
