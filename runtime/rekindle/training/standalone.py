"""`validate`, `test` and `predict`: one pass over data outside of training.

They share all of it with a validation within `fit` but where data and steps come from, and that
nothing is saved: there is no consensus to take part in, since a pass that is cut short is simply
run again.
"""

from typing import TYPE_CHECKING, Any

from rekindle.callback import Callback
from rekindle.checkpoint import Store
from rekindle.checkpoint.resolving import choose, first_good, locate, whole
from rekindle.data.combined import CombinedLoader
from rekindle.data.script_data import Evaluation
from rekindle.interop.lightning_file import read, view
from rekindle.loggers.journal import Journal
from rekindle.metrics.logged_values import BatchValues, Logs, by_loader, reported
from rekindle.metrics.prometheus import Meter
from rekindle.model import deferred
from rekindle.model.hyperparameters import recalled
from rekindle.model.module import Module
from rekindle.model.precision import autocast, convert
from rekindle.persistence.policy import base, best_rule, store_options
from rekindle.persistence.run_selection import newest_place
from rekindle.ranks.distributed import World
from rekindle.training.evaluation import evaluate, predict
from rekindle.training.hooks import Hooks
from rekindle.training.run import Validation
from rekindle.training.setup.placement import copies
from rekindle.training.setup.preflight import check_removed, check_told, step_function
from rekindle.training.sources import Stage, dealt, load, needed, step_name
from rekindle.training.state import load_model

if TYPE_CHECKING:
    from rekindle.trainer.trainer import Trainer


def run_alone(
    trainer: "Trainer",
    module: Module,
    stage: Stage,
    *,
    datamodule: Any,
    loaders: Any,
    world: World,
    hooks: Hooks,
    ckpt_path: str | None = None,
    journal: Journal,
    collect: bool = True,
) -> Any:
    """Metrics by name for each loader, or for ``predict`` what it gave (None unless `collect`).

    Metrics that were logged with ``logger=False`` are left to callbacks. Collective.
    """
    check_removed(module)
    flags, logs = trainer.flags, Logs(module)
    world = copies(flags, world)

    def ready() -> None:
        for hook in hooks.setup:
            hook(trainer, module, stage)

    given = {"evaluation": loaders}
    _, source = load(module, datamodule, given, world, flags, stage, ready)
    limits = {
        "validate": flags.limit_val_batches,
        "test": flags.limit_test_batches,
        "predict": flags.limit_predict_batches,
    }
    data = needed(dealt(source, limits[stage], world, flags.seed), stage)
    name = "val" if stage == "validate" else stage
    trainer.loaders[name] = given["found"][1]
    trainer.batches[name] = data.counts(world.size)
    if stage == "predict":
        _check_predicting(trainer, source, data)
    step = step_function(module, step_name(module, stage, world), several=data.several)
    check_told(module, "validation" if stage == "validate" else stage, several=data.several)
    deferred.configure(module, world.device)
    module.to(world.device)
    convert(module, flags.precision, world.device)
    logs.alone = world.size == 1
    trainer.measures.clear()
    trainer.measures.follow(logs)
    module.attach(trainer, logs)
    if ckpt_path is not None:
        _load_weights(trainer, module, ckpt_path, world, hooks)
    found: Any
    if stage == "predict":
        found = predict(
            trainer=trainer,
            module=module,
            hooks=hooks,
            logs=logs,
            world=world,
            data=data,
            step=step,
            autocast=autocast(flags.precision, world.device),
            seed=flags.seed,
            collect=collect,
            inference=flags.inference_mode,
        )
    else:
        batches: BatchValues = {}
        values = evaluate(
            trainer=trainer,
            module=module,
            hooks=hooks,
            logs=logs,
            world=world,
            meter=Meter(first=world.local_rank == 0),
            validation=data,
            validation_step=step,
            autocast=autocast(flags.precision, world.device),
            seed=flags.seed,
            step=trainer.global_step,
            poll=lambda: False,
            stage="test" if stage == "test" else "validation",
            inference=flags.inference_mode,
            batches=batches,
        )
        private = logs.private()
        batches = logs.for_loggers(batches)
        trainer.measures.log(journal.record_batches(batches, counted=False))
        named = {reported(name): value for name, value in (values or {}).items()}
        shown = {name: value for name, value in named.items() if name not in private}
        found = [shown]
        if data.several:
            known = world.gather(logs.loaders("test" if stage == "test" else "validation"))
            loaders = {name: owner for part in known for name, owner in part.items()}
            found = by_loader(shown, loaders, len(data.parts))
    if datamodule is not None:
        datamodule.teardown(stage)
    for hook in hooks.teardown:
        hook(trainer, module, stage)
    return found


def _check_predicting(trainer: "Trainer", source: Evaluation | None, data: Validation) -> None:
    """Refuse what predictions have no order for."""
    given = None if source is None else source.given
    if isinstance(given, CombinedLoader) and given.mode != "sequential":
        raise ValueError(
            f"predict() takes CombinedLoader(mode='sequential') only, not {given.mode!r}: one "
            f"loader after the other"
        )
    for callback in trainer.callbacks if data.several else ():
        if type(callback).predicted is not Callback.predicted and not callback.every_loader:
            raise ValueError(
                f"{type(callback).__name__} writes the batches of one loader; call predict() once "
                f"for each"
            )


def _load_weights(
    trainer: "Trainer", module: Module, ckpt_path: str, world: World, hooks: Hooks
) -> None:
    """Give the module the weights that a `ckpt_path` means; collective."""
    flags = trainer.flags
    options = store_options(flags)
    uri, _ = base(flags)
    error: Exception | None = None
    refs, where = [], uri
    if world.first:
        try:
            if ckpt_path in ("last", "best", "hpc"):
                uri = newest_place(uri, flags.fit_number, options)
            target = locate(ckpt_path, root=uri, script_root=whole(flags.root), options=options)
            where = target.name if target.kind == "file" else whole(target.uri)
            if target.kind != "file":
                refs = choose(Store.open(where, **options), target, best_rule(flags))
            if not refs and target.kind != "file":
                raise FileNotFoundError(f"ckpt_path={ckpt_path!r}: no checkpoint in {where}")
        except Exception as failure:
            error = failure
    world.agree(error)
    refs, where = world.share((refs, where))
    try:
        if refs:
            restored = first_good(Store.open(where, **options), refs, trainer.print)
            found = view(restored.state, restored.meta, recalled)
        else:
            found = read(where)
        for hook in hooks.on_load_checkpoint:
            hook(trainer, module, found)
        step = found.get("global_step", 0)
        load_model(module, found["state_dict"], step)
        trainer.print(f"weights of step {step} from {where}")
    except Exception as failure:
        error = failure
    world.agree(error)
