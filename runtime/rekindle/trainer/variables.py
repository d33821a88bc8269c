"""Flags of the trainer from the environment: ``PL_TRAINER_MAX_EPOCHS=3``.

What a script gives wins; a variable takes the place of a default. A value is read as a Python
literal where it is one (``3``, ``0.5``, ``True``, ``[0, 1]``), and is a text otherwise. A subclass
has the variables of its own name, as in Lightning: ``PL_MYTRAINER_...`` for `MyTrainer`, if its
constructor names the flag.
"""

import functools
import inspect
import os
from ast import literal_eval
from collections.abc import Callable
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., None])


def from_environment(init: F) -> F:
    """Make a constructor that looks for what it is not given in the environment."""

    @functools.wraps(init)
    def constructor(self: object, *arguments: Any, **options: Any) -> None:
        init(self, *arguments, **{**_found(type(self)), **options})

    return cast("F", constructor)


def _found(cls: type) -> dict[str, Any]:
    prefix = f"PL_{cls.__name__.upper()}_"
    if not any(name.startswith(prefix) for name in os.environ):
        return {}
    names = {f"{prefix}{name.upper()}": name for name in inspect.signature(cls).parameters}
    return {names[k]: _value(v) for k, v in os.environ.items() if v and k in names}


def _value(text: str) -> Any:
    try:
        return literal_eval(text)
    except (ValueError, SyntaxError):
        return text
