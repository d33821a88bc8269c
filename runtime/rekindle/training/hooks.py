"""The hooks that somebody has defined, bound once before the loop.

Looking a method up by name, asking whether it exists and calling one that does nothing costs
microseconds per hook and step. So the methods of callbacks and module that are really overridden
are collected here into tuples of callables with one signature, and the loop walks over those:
an empty tuple costs some tens of nanoseconds.

Callbacks run before the module, in the order in which the trainer was given them.
"""

from collections.abc import Callable, Iterable
from inspect import get_annotations
from typing import Any

from rekindle.callback import Callback
from rekindle.model.module import Module

Hook = Callable[..., None]

STEP_HOOKS = (
    "on_train_batch_start",
    "on_train_batch_end",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_before_zero_grad",
)
"""Those that run in every step."""
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

    def __init__(self, callbacks: Iterable[Callback], module: Module) -> None:
        callbacks = list(callbacks)
        for name in NAMES:
            found: list[Hook] = [
                getattr(c, name) for c in callbacks if _overridden(c, Callback, name)
            ]
            if hasattr(Module, name) and _overridden(module, Module, name):
                found.append(_without_owner(getattr(module, name)))
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

    def call(_trainer: object, _module: object, *arguments: Any) -> None:
        method(*arguments)

    call.__qualname__ = _owner(method)
    return call


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
