"""The full state of a run as a tree, and back.

A checkpoint holds two trees. The *state* is the same on every rank: parameters and buffers,
optimizer state by parameter name, schedulers, counters, running epoch metrics, callbacks. The *rank
state* belongs to one rank: generators, its own share of the running metrics, its own buffers. On
the same world size a rank gets exactly its own back; on another one the merged values serve: the
first rank carries the sums so far, the others begin at zero.

Buffers (running statistics of BatchNorm) differ between ranks while training. The shared tree holds
rank 0's on every rank, because the store deals one tree out over all ranks.

What the store needs to know without reading tensors is in `meta`: position, ledger, metrics.
"""

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from rekindle import randomness
from rekindle.callback import Callback
from rekindle.checkpoint import CommitRef, Restored
from rekindle.checkpoint.format import encoding
from rekindle.checkpoint.format.manifest import TensorEntry
from rekindle.checkpoint.format.tensors import TORCH_DTYPES, flatten, rebuild
from rekindle.data.sampling.order import Cursor
from rekindle.errors.requirement import RequirementError
from rekindle.interop import lightning_file
from rekindle.metrics import logged_values
from rekindle.model import metrics, optimizers
from rekindle.model.hyperparameters import described, recalled
from rekindle.model.optimizers import plain
from rekindle.ranks.finite import Window
from rekindle.ranks.gradients import broadcast
from rekindle.strategies.sharding import empty, like, sharded
from rekindle.training.run import Run


def collect(
    run: Run, *, finished: bool, preempted: bool = False, durable: bool = True
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """State, rank state and meta at a step boundary; collective.

    Without `durable` it is for memory only, and nobody is told of a checkpoint.
    """
    world, module, measures = run.world, run.module, run.trainer.measures
    run.look()
    # First of all: what callbacks learn here belongs to the state that they save.
    told = run.trainer.callbacks if durable else ()
    named = [callback.aliases(run.trainer) for callback in told]
    aliases = {name: about for names in named for name, about in names.items()}
    own_logs, own_metrics = run.logs.state(), metrics.states(module)
    parts = world.gather((run.ledger.own(), own_logs, own_metrics, run.seeds.state(run.step)))
    model = {plain(name): value for name, value in module.state_dict().items()}
    rank_state: dict[str, Any] = {"rng": randomness.states()}
    if world.size > 1:
        rank_state |= {"logs": own_logs, "metrics": own_metrics}
        buffers = _saved_buffers(module, model)
        if buffers:
            rank_state["buffers"] = buffers
            shared = {name: tensor.detach().clone() for name, tensor in buffers.items()}
            broadcast(shared.values())
            model |= shared
    state: dict[str, Any] = {
        "model": model,
        "optimizers": [optimizers.state(o, module) for o in run.optimization.optimizers],
        "schedulers": [s.scheduler.state_dict() for s in run.optimization.schedulers],
        "loop": {
            "step": run.step,
            "productive_seconds": run.productive,
            "stall_seconds": run.stall,
            "elapsed_seconds": run.elapsed + time.monotonic() - run.began,
            "validating": run.validating,
            "stopped": run.stopped,
            "update": run.update.state(),
            "skipped": [window.to_json() for window in run.skipped],
            "drawn_since": [part[3] for part in parts],
        },
        "logs": logged_values.merged([part[1] for part in parts]),
        "metrics": metrics.merged(module, [part[2] for part in parts]),
        "callbacks": _callbacks(run.trainer.callbacks),
    }
    if run.datamodule is not None:
        state["datamodule"] = run.datamodule.state_dict()
    if run.feed.stream is not None:
        state["stream"] = run.feed.stream.saved()
    if run.update.keeps_gradients:
        state["gradients"] = run.update.gradients_of(module)
    elif not run.update.automatic:
        own_gradients, gradients = run.update.waiting(module, world)
        if gradients:
            state["gradients"] = gradients
        if own_gradients:
            rank_state["gradients"] = own_gradients
    meta = {
        "step": run.step,
        "manual_steps": None if run.update.automatic else run.optimizer_steps,
        "epoch": run.cursor.epoch,
        "cursor": run.cursor.to_json(),
        "ledger": run.ledger.totals(part[0] for part in parts),
        "world_size": world.size,
        "history": [dict(entry) for entry in run.feed.history],
        "guarantee": run.flags.data.guarantee,
        "metrics": {name: float(value) for name, value in measures.callback.items()},
        "measured": dict(measures.steps),
        "logged": sorted(measures.logged),
        "bar": sorted(measures.bar),
        "aliases": aliases,
        "total_steps": run.total_steps,
        "loggers": run.journal.state(),
        "finished": finished,
        "preempted": preempted,
        "started_from": None if run.session is None else run.session.origin,
        "run": None if run.identity is None else run.identity.to_json(),
        "save_seconds": None if run.session is None else run.session.save_seconds,
        "hyper_parameters": {
            "module": described(module),
            "datamodule": described(run.datamodule),
        },
        "hparams_names": {
            "module": module._hparams_name,
            "datamodule": getattr(run.datamodule, "_hparams_name", None),
        },
        "datamodule_class": type(run.datamodule).__qualname__,
    }
    if run.feed.stream is not None:
        meta["stream"] = run.feed.stream.account(state["stream"])
    if run.hooks.on_save_checkpoint:
        shown = lightning_file.view(state, meta, recalled)
        before = lightning_file.copied(shown)
        for hook in run.hooks.on_save_checkpoint:
            hook(run.trainer, module, shown)
        # What a hook says of callbacks is their state; weights stay whole, whatever it removes.
        state["callbacks"] = before["callbacks"] = shown.get("callbacks", {})
        if changed := lightning_file.changes(before, shown):
            state["hooks"] = changed
    return state, rank_state, meta


def frozen(run: Run) -> list[str]:
    """Tensors of the state that no step changes, as far as can be known beforehand."""
    return [
        f"model.{plain(name)}"
        for name, parameter in run.module.named_parameters()
        if not parameter.requires_grad
    ]


def apply(run: Run, restored: Restored, *, again: bool = False) -> None:
    """Bring a run back to a checkpoint; raises R11 or R23 when the program is another one.

    `again`: it is the end of another run, and that this one wished to stop does not count.
    """
    state, step = restored.state, int(restored.meta["step"])
    anew: dict[str, Any] = {}
    if run.hooks.on_load_checkpoint:
        state, anew = _shown(run, restored)
    same_size = restored.world_size == run.world.size
    own: dict[str, Any] | None = restored.rank_state if same_size else None
    load_model(run.module, state["model"], step)
    own_optimizers = run.optimization.optimizers
    if "optimizer_states" in anew:
        for optimizer, one in zip(own_optimizers, anew["optimizer_states"], strict=False):
            optimizer.load_state_dict(one)
    else:
        optimizers.restore_all(own_optimizers, run.module, state["optimizers"], step)
    run.update.restore(state["loop"]["update"], step)
    if run.update.keeps_gradients:
        run.update.kept = state.get("gradients", {})
    elif not run.update.automatic:
        of_all = state.get("gradients")
        ours = None if own is None or of_all is None else own.get("gradients", {})
        whole = run.world.size == 1 or sharded(run.module)
        run.update.bring_back(ours, of_all, world=run.world, whole=whole)
    schedulers = run.optimization.schedulers
    if len(state["schedulers"]) != len(schedulers):
        raise RequirementError(
            f"R11 checkpoint step {step} has {len(state['schedulers'])} lr schedulers, the script "
            f"has {len(schedulers)}. Use the same ones, or resume='never'."
        )
    for spec, saved in zip(schedulers, state["schedulers"], strict=True):
        spec.scheduler.load_state_dict(saved)
    loop = state["loop"]
    run.step = int(loop["step"])
    run.productive = float(loop["productive_seconds"])
    run.stall = float(loop["stall_seconds"])
    run.validating = bool(loop["validating"])
    run.stopped = bool(loop["stopped"]) and not again
    run.elapsed = float(loop.get("elapsed_seconds", 0.0))
    # What was saved is the same on all ranks, so they agree without a word.
    run.expired = run.flags.max_time is not None and run.elapsed >= run.flags.max_time
    saved_windows = [Window(**window) for window in loop.get("skipped", [])]
    # A run that goes back within this process does not forget why.
    run.skipped = saved_windows + [w for w in run.skipped if w not in saved_windows]
    run.seeds.restore(loop.get("drawn_since", []))
    run.reported = run.step
    run.ledger.restore(restored.meta["ledger"], first=run.world.first)
    if run.feed.stream is not None:
        run.feed.stream.restore(state["stream"])
    run.feed.history = [dict(entry) for entry in restored.meta.get("history", ())]
    if own is not None and run.world.size > 1:
        run.logs.restore(own["logs"])
        metrics.restore(run.module, own["metrics"])
        with torch.no_grad():
            named = {plain(name): buffer for name, buffer in run.module.named_buffers()}
            for name, saved in own.get("buffers", {}).items():
                named[name].copy_(saved)
    elif run.world.first:
        run.logs.restore(state["logs"])
        metrics.restore(run.module, state["metrics"])
    else:
        metrics.restore(run.module, {})
    if own is not None:
        randomness.restore(own["rng"])
    _restore_callbacks(run.trainer.callbacks, state["callbacks"], step)
    if run.datamodule is not None and "datamodule" in state:
        run.datamodule.load_state_dict(state["datamodule"])
    values = {name: torch.tensor(value) for name, value in restored.meta["metrics"].items()}
    measures = run.trainer.measures
    measures.callback.update(values)
    measures.logged.update({name: values[name] for name in restored.meta.get("logged", ())})
    measures.bar.update({name: float(values[name]) for name in restored.meta.get("bar", ())})
    measures.steps.update(restored.meta.get("measured", {}))
    run.logs.step = run.step - 1
    run.logs.begun = run.step - Cursor.from_json(restored.meta["cursor"]).steps
    run.looked, run.validated, run.closed = -1, -1, False


def _shown(run: Run, restored: Restored) -> tuple[dict[str, Any], dict[str, Any]]:
    """The state as hooks want it, and under Lightning's keys what they have put in its place.

    What a hook left out of the checkpoint when it was saved is in the state all the same.
    """
    shown = lightning_file.view(restored.state, restored.meta, recalled)
    before = lightning_file.copied(shown)
    for hook in run.hooks.on_load_checkpoint:
        hook(run.trainer, run.module, shown)
    changed = lightning_file.changes(before, shown)
    state = dict(restored.state)
    if not changed:
        return state, {}
    keys = {*changed.get("set", {}), *(path[0] for path in changed.get("removed", ()))}
    if "loops" in keys:
        raise ValueError(
            "on_load_checkpoint has changed checkpoint['loops'], which says nothing here: the "
            "place in training and data is exact. To begin anew with these weights, use "
            "load_from_checkpoint and fit without ckpt_path."
        )
    named = {
        "state_dict": dict(state["model"]),
        "callbacks": lightning_file.copied(state["callbacks"]),
    }
    data = restored.meta.get("datamodule_class", "")
    if "datamodule" in state:
        named[data] = lightning_file.copied(state["datamodule"])
    lightning_file.change(named, changed)
    state |= {"model": named["state_dict"], "callbacks": named.get("callbacks", {})}
    if data in keys:
        state["datamodule"] = named.get(data, {})
    if "lr_schedulers" in keys:
        fresh = [spec.scheduler.state_dict() for spec in run.optimization.schedulers]
        given = shown.get("lr_schedulers", [])
        state["schedulers"] = [*given, *fresh[len(given) :]]
    return state, {k: shown.get(k, []) for k in ("optimizer_states",) if k in keys}


def shares(
    module: nn.Module, callbacks: list[Callback], stored: Sequence[TensorEntry]
) -> dict[str, torch.Tensor]:
    """Room for this rank's share of what a checkpoint has in the shapes of a sharded model.

    By the names of the stored tensors, for `Store.load(into=)`: parameters, optimizer state, and
    what callbacks keep for each parameter. What is not in it is loaded whole.
    """
    parameters = {
        plain(name): parameter
        for name, parameter in module.named_parameters()
        if hasattr(parameter, "placements")
    }
    kept = [f"callbacks.{key}.{name}." for key, c in keys(callbacks).items() for name in c.shares]
    found: dict[str, torch.Tensor] = {}
    for entry in stored:
        head, _, name = entry.name.partition(".")
        if head == "optimizers":
            name = name.partition(".state.")[2].rpartition(".")[0]
        elif head == "callbacks":
            prefix = next((prefix for prefix in kept if entry.name.startswith(prefix)), None)
            name = "" if prefix is None else plain(entry.name.removeprefix(prefix))
        elif head != "model":
            continue
        parameter, dtype = parameters.get(name), TORCH_DTYPES.get(entry.dtype)
        if parameter is not None and dtype is not None and entry.shape == tuple(parameter.shape):
            found[entry.name] = empty(parameter, dtype)
    return found


def _saved_buffers(module: nn.Module, model: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return {
        plain(name): buffer
        for name, buffer in module.named_buffers()
        if plain(name) in model and buffer.numel()
    }


def load_model(module: nn.Module, saved: Mapping[str, Any], step: int) -> None:
    """Give a module the saved parameters and buffers; R11 when they are not its own."""
    original = {plain(name): name for name in module.state_dict()}
    mine = {plain(name): value for name, value in module.state_dict().items()}
    missing = sorted(set(mine) - set(saved))
    surplus = sorted(set(saved) - set(mine))
    if getattr(module, "strict_loading", True) is False:
        missing, surplus = [], []
        mine = {name: value for name, value in mine.items() if name in saved}
    if missing or surplus:
        parts = []
        if missing:
            parts.append(f"missing in checkpoint: {', '.join(missing[:5])}")
        if surplus:
            parts.append(f"unknown to the model: {', '.join(surplus[:5])}")
        raise RequirementError(
            f"R11 checkpoint step {step} has {len(saved)} parameters and buffers, the model has "
            f"{len(mine)}: {'; '.join(parts)}. Use the same model, or resume='never'."
        )
    for name, value in mine.items():
        if isinstance(value, torch.Tensor) and value.shape != saved[name].shape:
            raise RequirementError(
                f"R11 checkpoint step {step}: {name} has shape {list(saved[name].shape)}, the "
                f"model's has {list(value.shape)}. Use the same model, or resume='never'."
            )
    module.load_state_dict(
        {original[name]: like(saved[name], value) for name, value in mine.items()},
        strict=len(mine) == len(original),
    )


def rehearse(run: Run) -> None:
    """Save and restore the run in memory, and refuse (R23) what is not the same afterwards.

    For `fast_dev_run`: the first real restore would find it out after hours. Collective.
    """
    before, restored, rank_before = [], [], None
    tree, rank_tree, meta = collect(run, finished=False)
    for one in (tree, rank_tree):
        flat = flatten(one)
        if flat.boxes:
            # Shards are put together by the store, which is not used here.
            return
        kept = {name: tensor.detach().clone() for name, tensor in flat.tensors.items()}
        before.append((flat.tree, kept))
        restored.append(rebuild(json.loads(json.dumps(flat.tree)), dict(kept)))
    apply(
        run,
        Restored(
            ref=CommitRef(step=run.step, fence=0),
            state=restored[0],
            rank_state=restored[1],
            meta=encoding.decode(json.loads(json.dumps(encoding.encode(meta)))),
            world_size=run.world.size,
        ),
    )
    again, rank_before, _ = collect(run, finished=False)
    for (old, kept), one in zip(before, (again, rank_before), strict=True):
        new = flatten(one)
        name = _difference(old, new.tree, "") or _changed(kept, new.tensors)
        if name is not None:
            raise RequirementError(
                f"R23 state {name!r} is another one after a save and a restore (fast_dev_run has "
                f"tried it in memory). Let load_state_dict bring back all that state_dict gives."
            )


def _difference(old: Any, new: Any, path: str) -> str | None:
    """Path of the first difference between two stored trees."""
    if isinstance(old, dict) and isinstance(new, dict) and set(old) == set(new):
        parts = [(f"{path}.{key}".lstrip("."), old[key], new[key]) for key in old]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        parts = [(f"{path}[{n}]", *pair) for n, pair in enumerate(zip(old, new, strict=True))]
    else:
        return None if old == new or path == "loop.elapsed_seconds" else path or "state"
    return next((found for p, a, b in parts if (found := _difference(a, b, p))), None)


def _changed(old: Mapping[str, torch.Tensor], new: Mapping[str, torch.Tensor]) -> str | None:
    for name in old:
        one, other = old[name], new[name]
        if one.dtype != other.dtype or not torch.equal(one.nan_to_num(), other.nan_to_num()):
            return name
    return None


def keys(callbacks: list[Callback]) -> dict[str, Callback]:
    """State key -> callback; raises ValueError when two callbacks share one."""
    found: dict[str, Callback] = {}
    for callback in callbacks:
        if callback.state_key in found:
            if callback.state_dict() or found[callback.state_key].state_dict():
                raise ValueError(
                    f"two callbacks have the state key {callback.state_key!r}; override state_key "
                    f"in one of them, so that each gets its own state back"
                )
            continue
        found[callback.state_key] = callback
    return found


def _callbacks(callbacks: list[Callback]) -> dict[str, Any]:
    states = {key: callback.state_dict() for key, callback in keys(callbacks).items()}
    return {key: state for key, state in states.items() if state}


def _restore_callbacks(callbacks: list[Callback], saved: dict[str, Any], step: int) -> None:
    for key, callback in keys(callbacks).items():
        if key in saved:
            callback.load_state_dict(saved[key])
        elif callback.state_dict() and not callback.optional:
            raise RequirementError(
                f"R23 callback {key!r} has no state in step {step} (added later?). Set "
                f"optional=True on it, or resume='never'."
            )
