"""`LambdaCallback`: hooks from functions."""

import difflib
from collections.abc import Callable
from typing import Any

from rekindle.callback import Callback
from rekindle.training.hooks import NAMES


class LambdaCallback(Callback):
    """A callback whose hooks are given as functions, by the hooks' names.

    A function takes what the hook takes, beginning with trainer and module; TypeError names the
    closest hook when there is none of that name.
    """

    # It holds nothing, so there is nothing to find in a checkpoint.
    optional = True

    def __init__(self, **hooks: Callable[..., Any]) -> None:
        for name, function in hooks.items():
            if name not in NAMES:
                close = difflib.get_close_matches(name, NAMES, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise TypeError(f"LambdaCallback: there is no hook {name!r}{hint}")
            if not callable(function):
                raise TypeError(f"LambdaCallback({name}={function!r}): give a function")
            setattr(self, name, function)
