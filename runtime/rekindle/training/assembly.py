"""From a script's call of `fit` to a `Run` that is ready for its first step.

The order matters. First who we are (process group), then the data and the model of the script, then
everything that may refuse: signatures, data, store, each shared with all ranks before anybody goes
on. Only then the checkpoint is read, because it decides the global batch and with it what each of
the processes has to do.
"""

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from rekindle import randomness
from rekindle.api import ENV_JOB
from rekindle.api import RestoredFrom as RestoredReport
from rekindle.checkpoint.resolving import locate, whole
from rekindle.console import Console
from rekindle.data.batches import size_of
from rekindle.data.iterated import Iterated
from rekindle.data.loader import Batches, LaneSampler, LoaderSource, build, fingerprint
from rekindle.data.sampling.order import ENDLESS, Cursor
from rekindle.data.sampling.samplers import Draw
from rekindle.data.sampling.tokens import samples_of
from rekindle.data.script_data import Evaluation
from rekindle.data.streams import ShardedStream, Streaming, refuse_loose, why_loose
from rekindle.errors.requirement import RequirementError
from rekindle.flags import Flags
from rekindle.loggers.journal import Journal
from rekindle.loggers.logger import Attempt
from rekindle.metrics.logged_values import Logs
from rekindle.metrics.prometheus import Meter
from rekindle.model import deferred, optimizers
from rekindle.model.module import Module
from rekindle.model.precision import autocast, convert, scaler_of
from rekindle.model.step_hooks import owned
from rekindle.model.transfer import transfer
from rekindle.persistence import policy, run_identity, run_selection
from rekindle.persistence.restore import Found
from rekindle.persistence.session import CheckpointSession
from rekindle.ranks.consensus import Consensus, StopNotice
from rekindle.ranks.control_page import ControlPage
from rekindle.ranks.deterministic_reduction import LaneSum
from rekindle.ranks.distributed import World
from rekindle.ranks.finite import Finite
from rekindle.ranks.gradients import broadcast
from rekindle.ranks.heartbeat import Heartbeat
from rekindle.strategies.statistics import synchronised
from rekindle.training import batches, state
from rekindle.training.evaluation import validate
from rekindle.training.hook_profiling import HookTimes
from rekindle.training.hooks import Hooks
from rekindle.training.run import BatchFeed, Run, batches_of, planned_steps
from rekindle.training.setup import batch_sharing, placement
from rekindle.training.setup.batch_size_probe import fitted
from rekindle.training.setup.preflight import (
    StepFunction,
    check_data,
    check_defined,
    check_example,
    check_same_data,
    check_same_program,
    same_data,
    step_function,
    summary,
)
from rekindle.training.sources import ask, dealt, load
from rekindle.training.step.uneven_inputs import Lockstep
from rekindle.training.update import Update

if TYPE_CHECKING:
    from rekindle.trainer.trainer import Trainer

_MEANING = {
    "approximate": "after an interruption the epoch is read again and what was used is passed "
    "over; if the data come in another order then, some of them repeat and others are missing",
    "relaxed": "after an interruption what the epoch had used is used again",
}
"""What it means for data whose position cannot be stored."""


def assemble(
    trainer: "Trainer",
    module: Module,
    *,
    datamodule: Any,
    train: Any,
    validation: Any,
    world: World,
    page: ControlPage | None,
    notice: StopNotice,
    console: Console,
    start_from: str | None = None,
) -> Run:
    """Make the run, restored from its newest good checkpoint; collective."""
    flags = trainer.flags
    if not flags.limit_train_batches:
        flags = replace(flags, max_steps=0, limit_train_batches=1.0)
    if page is not None and world.local_rank == 0:
        page.attach()
    session = CheckpointSession(flags, world, page) if flags.enable_checkpointing else None
    if session is not None:
        trainer.save_by(session)
    hooks = Hooks(trainer.callbacks, module, flags.strategy)
    # Before anything else: callbacks may write to hyperparameters what they find.
    identity = trainer._identity = (
        None if session is None else run_identity.identity(module, datamodule)
    )
    shared: list[str] = []
    if not hooks.on_load_checkpoint:
        # Hooks may keep what they are shown, while the memory is written to again.
        named = (*module.named_parameters(), *module.named_buffers())
        shared = [f"model.{optimizers.plain(name)}" for name, _ in named]
    begun_from = start_from or flags.start
    found = None
    if session is not None:
        found = session.recall(flags.resume, begun_from, shared=set(shared))
    trainer._recalled = found is not None
    given = {"train": train, "evaluation": validation}
    trainer.train_source = None

    def ready() -> None:
        for hook in hooks.setup:
            hook(trainer, module, "fit")

    train_source, validation_source = load(module, datamodule, given, world, flags, "fit", ready)
    if train_source is None:
        raise ValueError(
            "fit() got no training data: give a DataModule, or fit(model, train_dataloaders=...), "
            "or define train_dataloader(self) in the module"
        )
    trainer.train_source = train_source
    flags = replace(flags, accumulate_grad_batches=trainer.flags.accumulate_grad_batches)
    trainer.loaders |= dict(zip(("train", "val"), given["found"], strict=True))
    for callback in trainer.callbacks:
        callback.data_found(trainer, module)
    deferred.configure(module, world.device)
    error: Exception | None = None
    try:
        check_example(module, train_source, flags.seed)
        several = validation_source is not None and validation_source.several
        check_defined(module, validation=validation_source is not None, several=several)
        _check_sizes(train_source, flags)
        state.keys(trainer.callbacks)
    except Exception as failure:
        error = failure
    world.agree(error)
    mark = _mark(train_source, flags, world, found)
    if session is not None and found is None:
        session.lease.take()
    if session is not None and identity is not None:
        identity = run_selection.identify(world, session.lease, flags, identity, found)
        _, notice_line = policy.root(flags)
        if notice_line is not None and flags.fit_number == 1:
            console.say(notice_line)
    copies = placement.copies(flags, world)
    told = any(callback.summarizes for callback in trainer.callbacks)
    if world.first and flags.enable_model_summary and not told:
        console.say(summary(module))
    module.to(world.device)
    convert(module, flags.precision, world.device, flags.fp8_skip)
    sharded = placement.shards(flags, world)
    if sharded:
        # First of all, so that each rank reads no more of a checkpoint than its share.
        placement.place(module, flags, world, console)
        if session is not None:
            session.into = lambda stored: state.shares(module, trainer.callbacks, stored)
    if session is not None and identity is not None:
        decision = run_selection.decide(session.candidates, identity, found, flags, begun_from)
        if decision is not None and decision.line is not None:
            console.say(decision.line)
        if decision is not None and decision.new_script:
            identity = run_selection.begin_anew(world, session.lease, flags, identity)
        if decision is not None and not decision.goes_on:
            found = Found()
        elif found is None:
            found = _find(session, flags, start_from, console, identity)
            if decision is not None:
                found = replace(found, again=decision.again)
    elif found is None:
        found = _find(session, flags, start_from, console, identity)
    _check_ours(found)
    loaded = _loaded(found, flags)
    if loaded:
        # The data of the epoch that goes on, which need not be those of the first one.
        trainer.loading = loaded
        train_source, validation_source = _again(module, datamodule, given, world, flags)
        trainer.train_source = train_source
        mark = _mark(train_source, flags, world, None)
    if not optimizers.automatic(module):
        _check_manual(flags)
    draw = _draw(train_source, flags, found)
    chosen = trainer.train_source.batch_size
    workers = batch_sharing.workers_of_the_job(world.size) * copies.size // world.size
    cursor = _cursor(train_source, chosen, draw, flags, mark, workers, found, console)
    if flags.max_tokens is not None:
        flags = _in_samples(flags.max_tokens, flags, train_source, cursor, draw)
    flags = _promised(train_source, flags, cursor, found, console)
    stream = _stream(train_source, flags, cursor, copies)
    start = Cursor.from_json({**cursor.to_json(), "epoch": 0, "sample": 0, "before": 0})
    trainer.plan(planned_steps(start, 0, flags))
    if _must_fit(flags, world, module, stream is not None):
        size = fitted(
            module,
            train_source,
            cursor,
            world=world,
            step=step_function(module, "training_step"),
            autocast=autocast(flags.precision, world.device),
            move=transfer(module, datamodule, flags.precision, world.device),
            automatic=flags.micro_batch == "auto",
        )
        if size != cursor.m:
            console.say(
                f"micro_batch='auto': {cursor.m} does not fit, {size} does; global batch stays "
                f"{cursor.G}, in {cursor.G // size} micro-batches"
            )
            cursor = replace(cursor, m=size)
    shares = batch_sharing.sharing(
        flags, module, streamed=stream is not None, sharded=sharded or copies.size < world.size
    )
    cursor = shares.cut(cursor, copies.size)
    if not sharded:
        placement.place(module, flags, world, console)
    optimization = optimizers.configure(module)
    if flags.preflight:
        schedulers = [spec.scheduler for spec in optimization.schedulers]
        check_same_program(module, optimization.optimizers, schedulers, flags, world)
    trainer.use(optimization.optimizers)
    bitwise = flags.data.guarantee == "bitwise"
    if bitwise and not optimizers.automatic(module):
        raise ValueError(
            "data['guarantee']='bitwise' needs automatic optimization: with manual optimization "
            "the script adds up gradients itself. Use 'order'."
        )
    if bitwise and (
        flags.sync_batchnorm
        or any(isinstance(each, torch.nn.SyncBatchNorm) for each in module.modules())
    ):
        raise ValueError(
            "data['guarantee']='bitwise' and SyncBatchNorm exclude each other: its sums depend on "
            "the number of processes. Use BatchNorm, whose statistics are merged in one order."
        )
    update = Update(
        optimization,
        automatic=optimizers.automatic(module),
        scaler=scaler_of(flags.precision, world.device),
        clip=flags.gradient_clip_val,
        algorithm=flags.gradient_clip_algorithm,
        owned=owned(module),
    )
    update.keeps_gradients = update.automatic and (
        bool(hooks.on_before_zero_grad)
        or update.owned.optimizer_zero_grad is not None
        or not update.has_optimizer
    )
    logs = Logs(module)
    sampler = LaneSampler(cursor, rank=copies.rank, world_size=copies.size, draw=draw)
    seeds = randomness.LaneSeeds(cursor.seed)
    finite = None
    if flags.nonfinite is not None and update.automatic and update.scaler is None:
        sparse = any(getattr(child, "sparse", False) for child in module.modules())
        finite = Finite(module.parameters(), world.device, sparse=sparse)
    run = Run(
        trainer=trainer,
        module=module,
        flags=flags,
        world=copies,
        workers=workers,
        sharing=shares,
        hooks=hooks,
        hook_times=HookTimes(hooks),
        logs=logs,
        console=console,
        meter=Meter(first=world.local_rank == 0),
        page=page,
        heart=Heartbeat.from_environment(),
        notice=notice,
        consensus=Consensus(
            world,
            notice,
            session.cadence.clock_due if session else _never,
            _never if flags.max_time is None else lambda: run.time_is_up,
            seeds,
            finite.late if finite is not None and not finite.here else lambda: None,
        ),
        session=session,
        optimization=optimization,
        update=update,
        seeds=seeds,
        finite=finite,
        move=transfer(module, datamodule, flags.precision, world.device),
        gradients=None,
        autocast=autocast(flags.precision, world.device),
        training_step=_counting(step_function(module, "training_step"), train_source, logs),
        validation_step=step_function(
            module,
            "validation_step",
            several=validation_source is not None and validation_source.several,
        ),
        cursor=cursor,
        sampler=sampler,
        loader=() if stream is not None else build(train_source, sampler, cursor.seed),
        validation=dealt(validation_source, flags.limit_val_batches, copies, cursor.seed),
        journal=Journal(trainer.loggers, world, console.say),
        identity=identity,
        datamodule=datamodule,
        feed=BatchFeed(
            stream=stream,
            sources=None
            if datamodule is None and train is not None
            else lambda: ask(module, datamodule, given, world, flags, "fit"),
            validation=lambda asked: (
                dealt(asked, flags.limit_val_batches, copies, cursor.seed),
                step_function(module, "validation_step", several=asked.several),
            ),
            batch_size=batches.batch_size_of(datamodule),
        ),
    )
    run.check_cadence()
    logs.alone = copies.size == 1
    trainer.measures.follow(logs)
    trainer.batches |= {
        "train": [batches_of(cursor, train_source, copies)],
        "val": [] if run.validation is None else run.validation.counts(copies.size),
    }
    module.attach(trainer, logs)
    module.own_update(update, tuple(spec.scheduler for spec in optimization.schedulers))
    trainer.watch(run)
    # Only a restart on other ranks needs numbers that no attempt before has drawn.
    attempt = 0 if session is None else found.attempt(session.lease.fence)
    randomness.seed_start(cursor.seed, world.rank, attempt)
    if found.restored is not None:
        state.apply(run, found.restored, again=found.again)
    batches.note(run)
    if found.restored is not None and not same_data(cursor, found.restored.meta):
        batches.turn(run, found.restored.meta)
    if session is not None:
        session.begin(found)
    even = sharded or (world.size > 1 and synchronised(module))
    if even:
        update.lockstep = Lockstep()
    if world.size > 1 and not sharded:
        if found.label is None:
            # What came from memory was verified to be the same on all ranks.
            broadcast(tensor for tensor in module.state_dict().values() if _sendable(tensor))
        if not bitwise:
            trainable = [p for p in module.parameters() if p.requires_grad]
            update.sum_over_ranks(trainable, first=world.first, overlap=not even)
    if bitwise:
        update.gradients = LaneSum(module, world_size=world.size, lanes=lambda: run.cursor.lanes)
    run.gradients = update.gradients
    _announce(run, found)
    if not run.done:
        _open_loggers(run, found)
    elif found.restored is not None:
        run.journal.recall(found.restored.meta.get("loggers", ()))
    for hook in hooks.on_fit_start:
        hook(trainer, module)
    if session is not None and found.label is None and not run.done:
        # A state that lies in memory has been encoded before.
        tree, rank_tree, _ = state.collect(run, finished=False)
        fresh = not any(optimizer.state for optimizer in optimization.optimizers)
        weigh = (lambda: sum(map(optimizers.nbytes, optimization.optimizers))) if fresh else None
        session.prepare(tree, rank_tree, weigh)
    return run


def _loaded(found: Found, flags: Flags) -> int:
    """The epoch in which the loader of the run was asked for, by its checkpoint."""
    if found.restored is None or not flags.reload_dataloaders_every_n_epochs:
        return 0
    return Cursor.from_json(found.restored.meta["cursor"]).loaded


def _again(
    module: Module, datamodule: Any, given: dict[str, Any], world: World, flags: Flags
) -> tuple[LoaderSource, Evaluation | None]:
    """The loaders, asked for once more; collective."""
    error: Exception | None = None
    asked: tuple[LoaderSource | None, Evaluation | None] = (None, None)
    try:
        asked = ask(module, datamodule, given, world, flags, "fit")
        if asked[0] is None:
            raise ValueError("train_dataloader gave None when it was asked again")
    except Exception as failure:
        error = failure
    world.agree(error)
    assert asked[0] is not None
    return asked[0], asked[1]


def _mark(source: LoaderSource, flags: Flags, world: World, found: Found | None) -> str:
    """The fingerprint of the data, which is the same on all ranks (R9); collective.

    A pod that has the run's state in its memory has shown its data to be the run's before, and its
    workers take that as given. Newcomers show theirs; if they are others, all ranks look anew.
    """
    if found is not None and source.samples and not source.streamed:
        mark = str(found.restored.meta["cursor"]["fingerprint"]) if found.restored else ""
        if found.source != "memory":
            mark = fingerprint(source, flags.seed)
        views = world.gather((source.samples, mark))
        if len(set(views)) == 1:
            return mark
    if flags.preflight:
        return check_data(source, flags.seed, world)
    return fingerprint(source, flags.seed) if source.samples else ""


def _find(
    session: CheckpointSession | None,
    flags: Flags,
    start_from: str | None,
    console: Console,
    identity: run_identity.Identity | None,
) -> Found:
    """What to begin from; collective."""
    start_from = start_from or flags.start
    if session is None:
        if start_from is not None:
            raise ValueError(
                f"ckpt_path={start_from!r} cannot be resumed with enable_checkpointing=False (or "
                f"fast_dev_run, barebones); remove one of them, or start from the weights with "
                f"Model.load_from_checkpoint"
            )
        return Found()
    if start_from is None:
        return session.candidates.newest(flags.resume)
    if flags.resume == "never":
        raise ValueError(f"ckpt_path={start_from!r} and resume='never' exclude each other")
    target = locate(
        start_from,
        root=run_selection.place_of(session.candidates.world, session.lease, flags, start_from),
        script_root=whole(flags.root),
        options=session.lease.options,
    )
    found = session.candidates.named(flags.resume, target, policy.best_rule(flags), identity)
    if found.restored is None:
        console.say(
            f"ckpt_path={start_from!r}: there is no checkpoint in {session.lease.uri} yet, "
            f"training starts from step 0 (resume='must' makes this an error)"
        )
    return found


def _must_fit(flags: Flags, world: World, module: Module, streamed: bool) -> bool:
    """Whether to try the micro-batch on the device before training (R7)."""
    reasons = {
        "manual optimization": not optimizers.automatic(module),
        "a sharded model": flags.strategy.shards or flags.mesh is not None,
        "a stream": streamed,
    }
    if found := [name for name, true in reasons.items() if true]:
        if flags.micro_batch == "auto":
            raise ValueError(
                f"micro_batch='auto' is not supported with {found[0]}, of which no batch can be "
                f"tried before training; give a number"
            )
        return False
    return flags.micro_batch == "auto" or (flags.preflight and world.device.type == "cuda")


def _sendable(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.numel() > 0


def _never() -> bool:
    return False


def _check_manual(flags: Flags) -> None:
    """Refuse what a module that updates itself has to do itself."""
    who = "with manual optimization"
    if flags.gradient_clip_val is not None:
        raise ValueError(
            f"gradient_clip_val={flags.gradient_clip_val} {who} would clip nothing: call "
            f"self.clip_gradients(optimizer, gradient_clip_val=...) before the optimizer's step"
        )
    if flags.accumulate_grad_batches > 1:
        raise ValueError(
            f"accumulate_grad_batches={flags.accumulate_grad_batches} {who} would accumulate "
            f"nothing: call the optimizer's step() and zero_grad() every so many batches"
        )


def _check_ours(found: Found) -> None:
    """Refuse what has no place in the data, which only this trainer's checkpoints have."""
    restored = found.restored
    if restored is not None and "cursor" not in restored.meta:
        by = "was imported from another tool"
        if "lightning" in restored.state:
            by = "belongs to a script of Lightning (rekindle.bridge)"
        raise RequirementError(
            f"R11 checkpoint step {restored.ref.step} {by} and tells no place in the data to go on "
            f"from. Give this run a root of its own, or resume='never'."
        )


def _draw(source: LoaderSource, flags: Flags, found: Found) -> Draw | None:
    """The order where numbers are not enough; in the seed of the run's first attempt."""
    if source.draw is None or flags.overfit:
        return None
    if found.restored is None:
        return source.draw(flags.seed)
    return source.draw(Cursor.from_json(found.restored.meta["cursor"]).seed)


def _in_samples(
    tokens: int, flags: Flags, source: LoaderSource, cursor: Cursor, draw: Draw | None
) -> Flags:
    """The flags with `max_tokens` as a number of samples."""
    samples = samples_of(tokens, source.dataset, cursor, draw, epochs=flags.max_epochs)
    found = [limit for limit in (flags.max_samples, samples) if limit is not None]
    return replace(flags, max_samples=min(found, default=None))


def _promised(
    source: LoaderSource, flags: Flags, cursor: Cursor, found: Found, console: Console
) -> Flags:
    """The flags with the guarantee that holds; R12b if the data cannot keep what was asked for."""
    loose = why_loose(source)
    guarantee = flags.data.of(loose, in_job=bool(os.environ.get(ENV_JOB)))
    if guarantee is None:
        assert loose is not None
        done = found.restored
        seconds = 0.0 if done is None else float(done.state["loop"]["productive_seconds"])
        raise refuse_loose(loose, items=cursor.sample, seconds=seconds)
    if loose is not None and flags.enable_checkpointing:
        console.say(f"{loose}: {_MEANING[guarantee]} (data['guarantee']={guarantee!r})")
    return replace(flags, data=replace(flags.data, guarantee=guarantee))


def _counting(step: StepFunction, source: LoaderSource, logs: Logs) -> StepFunction:
    """The step; where data come in whole batches, what it logs weighs as much as the batch has."""
    if not source.whole:
        return step

    def counted(batch: Any, index: int) -> Any:
        logs.batch_size = size_of(batch)
        return step(batch, index)

    return counted


def _check_sizes(source: LoaderSource, flags: Flags) -> None:
    """Refuse numbers of samples for data that come in whole batches of any size."""
    ours = isinstance(source.dataset, Batches | Iterated)
    if ours and (flags.global_batch_size is not None or flags.micro_batch is not None):
        raise ValueError(
            "global_batch_size= and micro_batch= count samples; these training data come in whole "
            "batches, which the trainer does not cut. Use accumulate_grad_batches= for steps of "
            "several batches."
        )


def _stream(source: LoaderSource, flags: Flags, cursor: Cursor, world: World) -> Streaming | None:
    """The stream that iterable data is read by."""
    if not source.streamed:
        return None
    ends = flags.max_steps or flags.max_samples or flags.max_time
    if getattr(source.dataset, "exhaustion", None) == "repeat" and not ends:
        raise ValueError(
            f"{type(source.dataset).__name__}.exhaustion='repeat' never ends an epoch: give "
            f"max_steps= (or max_samples=, max_time=)"
        )
    if flags.micro_batch == "auto" or flags.overfit:
        raise ValueError(
            f"micro_batch='auto' and overfit_batches need a dataset with a length; "
            f"{type(source.dataset).__name__} is a stream. Remove them."
        )
    limit = flags.limit_train_batches
    if isinstance(limit, float) and limit < 1.0:
        raise ValueError(
            f"limit_train_batches={limit} is a share of a length that a stream does not have; give "
            f"a number of batches"
        )
    return Streaming(
        source,
        world,
        seed=cursor.seed,
        lanes=cursor.lanes,
        micro=cursor.m,
        limit=limit if isinstance(limit, int) else ENDLESS,
        passes_over=flags.data.guarantee == "approximate",
    )


def _cursor(
    source: LoaderSource,
    chosen: int,
    draw: Draw | None,
    flags: Flags,
    mark: str,
    workers: int,
    found: Found,
    console: Console,
) -> Cursor:
    """Where to begin, in an order and with a global batch that the first attempt has fixed.

    `chosen` is the micro-batch of a run that begins, the script's own unless a callback knows a
    better one. `workers` are those that the job wants, however many of them are there.
    """
    micro, asked = source.batch_size, flags.global_batch_size
    if isinstance(source.dataset, ShardedStream):
        # Each micro-batch has shards of its own; of more processes some are of no use.
        most = source.dataset.num_shards // flags.accumulate_grad_batches
        workers = max(1, min(workers, most))
    batch = asked or chosen * flags.accumulate_grad_batches * workers
    length = batches.length_of(source, draw, flags)
    if not length:
        raise ValueError(
            f"limit_train_batches={flags.limit_train_batches!r} or drop_last leaves no batch of "
            f"{source.batches}"
        )
    fresh = Cursor(
        epoch=0,
        sample=0,
        G=batch,
        m=chosen,
        seed=flags.seed,
        N=source.samples,
        length=length,
        order=batches.kind_of(source, draw, flags),
        fingerprint=mark,
        draw="" if draw is None else draw.mark,
        script_m=micro,
        script_G=asked,
        accumulate=max(1, batch // (chosen * workers)),
    )
    if found.restored is None:
        return fresh
    step = int(found.restored.meta["step"])
    saved = Cursor.from_json(found.restored.meta["cursor"])
    try:
        check_same_data(saved, fresh, step)
    except RequirementError as changed:
        if flags.data.on_change == "fail":
            raise
        console.say(f"{changed} The epoch begins anew.")
        begun = saved.epoch + (saved.sample >= saved.length)
        saved = replace(
            fresh,
            epoch=begun,
            before=saved.before + saved.sample,
            seed=saved.seed,
            G=saved.G,
            m=saved.m,
            script_m=saved.script_m,
            script_G=saved.script_G,
            accumulate=saved.accumulate,
            batches_before=saved.batches_before + saved.batches,
        )
    # What a schedule has made of the sizes stays, unless the script itself has changed.
    kept = saved.G if asked == saved.script_G else asked or saved.G
    if kept != saved.G:
        console.say(f"global_batch_size changes from {saved.G} to {kept} at step {step}")
    size = saved.m if micro == saved.script_m else micro
    first = next((int(entry["G"]) for entry in found.restored.meta.get("history", ())), kept)
    if asked is None and kept % size:
        raise ValueError(
            f"the run has a global batch of {kept}, made of batch_size={saved.script_m}, and is at "
            f"step {step}; batch_size={micro} does not divide it. Write batch_size="
            f"{saved.script_m} again, or "
            f"Trainer(global_batch_size={batch}) to go on with a global batch of {batch}."
        )
    if asked is None and batch not in (kept, first):
        console.say(
            f"the global batch stays {kept}, as the checkpoint of step {step} has it; by this "
            f"script it would be {batch}. Write Trainer(global_batch_size={batch}) to change it."
        )
    cursor = replace(saved.resized(G=kept, m=size), script_m=micro, script_G=asked)
    if flags.seed != saved.seed:
        console.say(f"seed stays {saved.seed}, as the checkpoint of step {step} has it")
    return cursor


def _announce(run: Run, found: Found) -> None:
    """Tell people and the agent where this attempt begins."""
    restored, session = found.restored, run.session
    for line in found.skipped:
        run.console.say(line)
    if restored is not None and session is not None:
        where = session.lease.uri if found.label is None else found.source
        run.console.say(
            f"resumed at step {run.step} (epoch {run.cursor.epoch}) from {where}, saved by "
            f"{restored.world_size} and now on {run.trainer.world_size} processes"
        )
        due = run.next_validation()
        if due is not None and not run.done:
            step, cadence = due
            run.console.say(
                f"R8 resumed at step {run.step}; next validation at step {step} ({cadence})."
            )
        if not run.done and (tight := session.tight()) is not None:
            run.console.say(tight)
    batches.tell(run)
    if run.page is not None and run.world.local_rank == 0:
        run.page.begin(
            step=run.step,
            samples=run.samples,
            total_steps=run.total_steps,
            epoch=run.cursor.epoch,
            productive=run.productive,
            stall=run.stall,
        )
        if metrics := run.trainer.measures.callback:
            run.page.write_metrics({name: float(value) for name, value in metrics.items()})
        run.page.write_restored(
            RestoredReport(step=run.step, source=found.source, skipped=found.skipped)
        )


def _open_loggers(run: Run, found: Found) -> None:
    """Have loggers go on where the checkpoint was; collective."""
    restored = found.restored
    run.journal.begin(
        Attempt(
            root=policy.root(run.flags)[0],
            step=run.step,
            resumed=restored is not None,
            now=lambda: run.step,
        ),
        () if restored is None else restored.meta.get("loggers", ()),
    )
    told: dict[str, Any] = {}
    for owner in (run.datamodule, run.module):
        if getattr(owner, "_log_hyperparams", False):
            told |= owner.hparams
    if run.flags.enable_autolog_hparams:
        run.journal.describe(told)
    run.journal.graph(run.module)


def sanity_check(run: Run) -> bool:
    """A few validation batches before training; whether all of them ran. Collective."""
    if run.validation is None or not run.flags.num_sanity_val_steps:
        return True
    limit = run.flags.num_sanity_val_steps
    for hook in run.hooks.on_sanity_check_start:
        hook(run.trainer, run.module)
    values = validate(run, run.validation, limit=None if limit < 0 else limit)
    run.trainer.measures.clear()
    for hook in run.hooks.on_sanity_check_end:
        hook(run.trainer, run.module)
    return values is not None
