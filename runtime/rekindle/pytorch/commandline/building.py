"""From a configuration to objects.

A model and a data module that the command line builds keep as hyperparameters what was written
there, not the objects that were made of it: ``class_path`` and ``init_args`` fit into any
checkpoint, and `instantiate_module` makes the same objects of them again.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from inspect import isclass, signature
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from rekindle.model.hyperparameters import given

INSTANTIATOR = "rekindle.pytorch.cli.instantiate_module"


def with_class_path(cls: type, init_args: Namespace | Mapping[str, Any] | None) -> dict[str, Any]:
    """The pair of ``class_path`` and ``init_args``."""
    values = init_args.as_dict() if isinstance(init_args, Namespace) else dict(init_args or {})
    return {"class_path": f"{cls.__module__}.{cls.__qualname__}", "init_args": values}


def instantiate_class(args: Any, init: Mapping[str, Any]) -> Any:
    """An object of such a pair; `args`, one or a tuple, come first."""
    module, _, name = init["class_path"].rpartition(".")
    first = args if isinstance(args, tuple) else (args,)
    return getattr(import_module(module), name)(*first, **init.get("init_args", {}))


def instantiate_module(class_type: type, config: Mapping[str, Any]) -> Any:
    """A model or data module from the hyperparameters that the command line has given it."""
    parser = ArgumentParser(exit_on_error=False)
    values = {key: value for key, value in config.items() if key != "_class_path"}
    if "_class_path" in config:
        parser.add_subclass_arguments(class_type, "module", fail_untyped=False)
        values = {"class_path": config["_class_path"], "dict_kwargs": values}
    else:
        parser.add_class_arguments(class_type, "module", fail_untyped=False)
    return parser.instantiate(parser.parse_object({"module": values})).module


def returned(value: Any) -> Any:
    """The class, or the class that a function is annotated to return."""
    return value if isclass(value) else signature(value).return_annotation


class Recording:
    """Makes objects below a key, which keep what was written there as hyperparameters."""

    def __init__(self, written: Callable[[], Mapping[str, Any]], key: str) -> None:
        self._written = written
        self._key = key

    def __call__(
        self,
        class_type: type,
        *args: Any,
        applied_instantiation_links: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Make one."""
        values = dict(self._written().get(self._key) or {})
        if "class_path" in values:
            inner = {**values.get("init_args", {}), **values.get("dict_kwargs", {})}
            values = {"_class_path": values["class_path"], **inner}
        for link, value in (applied_instantiation_links or {}).items():
            prefix, _, path = link.partition(".")
            if prefix == self._key:
                _put(values, path.removeprefix("init_args."), value)
        with given(values, _instantiator=INSTANTIATOR):
            return class_type(*args, **kwargs)


def _put(values: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for parent in parents:
        values = values[parent]
    values[last] = value
