"""Questions about methods and models."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, cast
from unittest.mock import Mock

from torch import nn

from rekindle.callback import Callback
from rekindle.datamodule import DataModule
from rekindle.model.module import Module


def is_overridden(
    method_name: str, instance: object | None = None, parent: type | None = None
) -> bool:
    """Whether an object has a method of its own in place of its base class's.

    `parent` is by default whichever of LightningModule, LightningDataModule and Callback the object
    belongs to; ValueError when that is none, or has no such method.
    """
    if instance is None:
        return False
    if parent is None:
        bases = (Module, DataModule, Callback)
        parent = next((base for base in bases if isinstance(instance, base)), None)
        if parent is None:
            raise ValueError(
                f"is_overridden({method_name!r}): {type(instance).__name__} is neither a "
                f"LightningModule, nor a LightningDataModule, nor a Callback; give parent="
            )
    method, original = (getattr(owner, method_name, None) for owner in (instance, parent))
    if method is None:
        return False
    if original is None:
        raise ValueError(f"is_overridden({method_name!r}): {parent.__name__} has no such method")
    return _code(method) is not _code(original)


def _code(method: Any) -> Any:
    """What runs when a method is called, without decorators and partials around it."""
    if isinstance(method, functools.partial):
        return _code(method.func)
    if isinstance(method, Mock):
        return _code(method._mock_wraps) if method._mock_wraps is not None else method
    method = getattr(method, "__func__", method)
    method = getattr(method, "__wrapped__", method)
    return getattr(method, "__code__", method)


def is_param_in_hook_signature(
    hook_fx: Callable[..., Any], param: str, explicit: bool = False, min_args: int | None = None
) -> bool:
    """Whether a hook takes the parameter by name, or, unless `explicit`, by ``*args``.

    `min_args` is a number of parameters with which it is taken for granted.
    """
    found = inspect.getfullargspec(getattr(hook_fx, "__wrapped__", hook_fx))
    names = found.args[1:]
    by_star = not explicit and found.varargs is not None
    return param in names or by_star or (min_args is not None and len(names) >= min_args)


def get_torchvision_model(model_name: str, **kwargs: Any) -> nn.Module:
    """A model of torchvision by its name; ModuleNotFoundError without the package."""
    from importlib import import_module

    try:
        models = import_module("torchvision.models")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "get_torchvision_model needs torchvision, which is not installed: "
            "pip install torchvision",
            name=error.name,
        ) from error
    return cast("nn.Module", models.get_model(model_name, **kwargs))


def from_compiled(model: nn.Module) -> nn.Module:
    """The LightningModule within a module that `torch.compile` has made.

    For `Trainer(compile=True)`, which compiles it where the strategy wants it.
    """
    original = getattr(model, "_orig_mod", None)
    if not isinstance(original, Module):
        raise ValueError(
            f"from_compiled got a {type(model).__name__}; give what torch.compile(LightningModule) "
            f"returned"
        )
    return original


def to_uncompiled(model: nn.Module) -> nn.Module:
    """The module that was compiled; ValueError for one that was not."""
    original = getattr(model, "_orig_mod", None)
    if not isinstance(original, nn.Module):
        raise ValueError(f"to_uncompiled got a {type(model).__name__}, which is not compiled")
    return original
