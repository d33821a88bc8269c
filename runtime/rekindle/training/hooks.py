"""The hooks that somebody has defined, bound once before the loop.

Looking a method up by name, asking whether it exists and calling one that does nothing costs
microseconds per hook and step. So the methods of callbacks and module that are really overridden
are collected here into tuples of callables with one signature, and the loop walks over those:
an empty tuple costs some tens of nanoseconds.

Callbacks run before the module, in the order in which the trainer was given them, and the strategy
runs after it. `on_train_epoch_end` of callbacks that judge metrics follows the module's, where it
may log what they look at (`Hooks.judging`).
"""

from collections.abc import Callable, Iterable, Sequence
from inspect import Parameter, get_annotations, signature
from typing import Any

from rekindle.callback import Callback
from rekindle.model.module import Module
from rekindle.strategies import Strategy

Hook = Callable[..., Any]

STEP_HOOKS = (
    "on_train_batch_start",
    "on_train_batch_end",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_before_zero_grad",
    "on_after_optimizer_step",
)
"""Those that run in every step."""
_OF_LOADERS = {
    f"on_{stage}_batch_{place}": 2 + (place == "end")
    for stage in ("validation", "test", "predict")
    for place in ("start", "end")
}
"""Hooks that are told the loader's number where there are several -> their arguments without."""
_STATE = ("state_dict", "load_state_dict")


class Hooks:
    """A tuple of callables per hook name; each takes (trainer, module, *arguments of the hook).

    The attributes below are the one list of all hooks, `NAMES`.
    """

    setup: tuple[Hook, ...]
    teardown: tuple[Hook, ...]
    on_fit_start: tuple[Hook, ...]
    on_fit_end: tuple[Hook, ...]
    on_sanity_check_start: tuple[Hook, ...]
    on_sanity_check_end: tuple[Hook, ...]
    on_train_start: tuple[Hook, ...]
    on_train_end: tuple[Hook, ...]
    on_train_epoch_start: tuple[Hook, ...]
    on_train_epoch_end: tuple[Hook, ...]
    on_train_batch_start: tuple[Hook, ...]
    on_train_batch_end: tuple[Hook, ...]
    on_before_backward: tuple[Hook, ...]
    on_after_backward: tuple[Hook, ...]
    on_before_optimizer_step: tuple[Hook, ...]
    on_before_zero_grad: tuple[Hook, ...]
    on_after_optimizer_step: tuple[Hook, ...]
    on_validation_start: tuple[Hook, ...]
    on_validation_end: tuple[Hook, ...]
    on_validation_epoch_start: tuple[Hook, ...]
    on_validation_epoch_end: tuple[Hook, ...]
    on_validation_batch_start: tuple[Hook, ...]
    on_validation_batch_end: tuple[Hook, ...]
    on_test_start: tuple[Hook, ...]
    on_test_end: tuple[Hook, ...]
    on_test_epoch_start: tuple[Hook, ...]
    on_test_epoch_end: tuple[Hook, ...]
    on_test_batch_start: tuple[Hook, ...]
    on_test_batch_end: tuple[Hook, ...]
    on_predict_start: tuple[Hook, ...]
    on_predict_end: tuple[Hook, ...]
    on_predict_epoch_start: tuple[Hook, ...]
    on_predict_epoch_end: tuple[Hook, ...]
    on_predict_batch_start: tuple[Hook, ...]
    on_predict_batch_end: tuple[Hook, ...]
    on_exception: tuple[Hook, ...]
    on_save_checkpoint: tuple[Hook, ...]
    on_load_checkpoint: tuple[Hook, ...]

    def __init__(
        self, callbacks: Iterable[Callback], module: Module, strategy: Strategy | None = None
    ) -> None:
        callbacks = list(callbacks)
        self.judging: tuple[Hook, ...] = ()
        """`on_train_epoch_end` of the callbacks that come after the module."""
        self.answering: int | None = None
        """Place of the module's `on_train_batch_start`, whose answer counts."""
        for name in NAMES:
            owners = [c for c in callbacks if _overridden(c, Callback, name)]
            if name == "on_train_epoch_end":
                self.judging = tuple(c.on_train_epoch_end for c in owners if c.after_module)
                owners = [c for c in owners if not c.after_module]
            found = [_bound(c, name, 2) for c in owners]
            for owner, base in ((module, Module), (strategy, Strategy)):
                if owner is not None and hasattr(base, name) and _overridden(owner, base, name):
                    if name == "on_train_batch_start" and owner is module:
                        self.answering = len(found)
                    found.append(_without_owner(_bound(owner, name, 0)))
            setattr(self, name, tuple(found))

    def each(self, wrap: Callable[[str, Hook], Hook]) -> "Hooks":
        """The same with those of `STEP_HOOKS` wrapped, given ``Class.hook`` and the callable."""
        other = object.__new__(Hooks)
        other.__dict__.update(self.__dict__)
        for name in STEP_HOOKS:
            found = getattr(self, name)
            wrapped = [wrap(f"{_owner(hook)}.{name}", hook) for hook in found]
            setattr(other, name, tuple(wrapped))
        return other


NAMES = tuple(get_annotations(Hooks))
"""Every hook of `Callback`; a module has most of them."""


def _owner(hook: Hook) -> str:
    owner = getattr(hook, "__self__", None)
    return type(owner).__name__ if owner is not None else getattr(hook, "__qualname__", "?")


def _overridden(instance: object, base: type, name: str) -> bool:
    own = getattr(type(instance), name, None)
    if name in vars(instance):
        return True
    return own is not getattr(base, name) and own not in getattr(instance, "idle", ())


def _without_owner(method: Hook) -> Hook:
    """A module's hook has no trainer and module arguments."""

    def call(_trainer: object, _module: object, *arguments: Any) -> Any:
        return method(*arguments)

    call.__qualname__ = _owner(method)
    return call


def _bound(owner: object, name: str, before: int) -> Hook:
    """A hook that takes `before` arguments ahead of its own; a loader's number is optional."""
    hook: Hook = getattr(owner, name)
    if name not in _OF_LOADERS:
        return hook
    count = before + _OF_LOADERS[name]
    kinds = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    parameters = signature(hook).parameters.values()
    if any(p.kind is Parameter.VAR_POSITIONAL for p in parameters):
        return hook
    positional = [p for p in parameters if p.kind in kinds]
    if len(positional) <= count:
        return lambda *arguments: hook(*arguments[:count])
    if positional[count].default is Parameter.empty:
        return lambda *arguments: hook(*arguments, *[0] * (count + 1 - len(arguments)))
    return hook


def with_own(callbacks: Sequence[Callback], module: Module) -> list[Callback]:
    """A trainer's callbacks and those of the module's `configure_callbacks`.

    A callback of the module takes the place of the trainer's of its class, or of a class that its
    own is derived from. Callbacks that rule which checkpoints stay come last.
    """
    given = module.configure_callbacks()
    own = [given] if isinstance(given, Callback) else list(given or ())
    for callback in own:
        if not isinstance(callback, Callback):
            raise TypeError(
                f"{type(module).__name__}.configure_callbacks returned a "
                f"{type(callback).__name__}; return a callback, or a list of them"
            )
    if not own:
        return list(callbacks)
    replaced = {
        type(old)
        for old in callbacks
        if type(old) is not Callback and any(issubclass(type(new), type(old)) for new in own)
    }
    merged = [*(c for c in callbacks if type(c) not in replaced), *own]
    return sorted(merged, key=lambda c: type(c).keeps is not Callback.keeps)


def blamed(error: BaseException) -> str | None:
    """``Callback.hook`` that an exception came out of, found in its traceback.

    So that naming the callback costs nothing while all is well.
    """
    where = error.__traceback__
    while where is not None:
        code, frame = where.tb_frame.f_code, where.tb_frame
        if code.co_argcount and (code.co_name in NAMES or code.co_name in _STATE):
            owner = frame.f_locals.get(code.co_varnames[0])
            if isinstance(owner, Callback):
                return f"{type(owner).__name__}.{code.co_name}"
        where = where.tb_next
    return None
