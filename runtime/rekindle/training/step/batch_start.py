"""The start of a batch: whether the module's hook may end the epoch there, and whether it does.

Only what the module's `on_train_batch_start` returns counts. Whether it returns anything is read
off its code once, so that ranks ask each other only where there is something to ask about.
"""

import dis
import inspect
from typing import Any

from rekindle.model.module import Module
from rekindle.training.hooks import Hooks
from rekindle.training.run import Run


def answers(module: Module, hooks: Hooks) -> bool:
    """Whether the module's `on_train_batch_start` returns anything."""
    if hooks.answering is None:
        return False
    code = getattr(inspect.unwrap(module.on_train_batch_start), "__code__", None)
    if code is None:
        return True
    before: Any = None
    for each in dis.get_instructions(code):
        if each.opname == "RETURN_CONST" and each.argval is not None:
            return True
        nothing = before is not None and before.opname == "LOAD_CONST" and before.argval is None
        if each.opname == "RETURN_VALUE" and (each.is_jump_target or not nothing):
            return True
        before = each
    return False


def begin_batch(run: Run, batch: Any, index: int) -> bool:
    """Call the hooks; whether the module has returned -1."""
    answer = None
    for number, hook in enumerate(run.hooks.on_train_batch_start):
        found = hook(run.trainer, run.module, batch, index)
        if number == run.hooks.answering:
            answer = found
    return type(answer) is int and answer == -1
