"""What `training_step` has returned: a loss, a dictionary with one, or nothing.

None leaves the batch out: it adds nothing to the gradient of the step, whose other micro-batches
keep their weights. If all ranks return None, no parameter has a gradient and the optimizer leaves
all of them alone; the sum over ranks finds that out by itself, so nobody has to ask.

Hooks at the end of a batch get a dictionary with the detached loss and whatever else was returned.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from rekindle.errors.requirement import RequirementError
from rekindle.metrics.logged_values import Logs, flattened
from rekindle.model.module import Module, StepOutput
from rekindle.training.setup.preflight import check_loss, explaining, loss_of


def loss_in(output: Any, module: Module, logs: Logs, *, even: bool = False) -> torch.Tensor | None:
    """The loss in what is no plain loss, or None; metrics of a `StepOutput` are logged.

    With `even` all ranks make the same passes, so that none may be left out.
    """
    if type(output) is StepOutput:
        for name, value in flattened(output.metrics).items():
            logs.note(name, value, False, None, None, None)
    elif output is None:
        if even:
            raise RequirementError(
                f"R1 {type(module).__name__}.training_step returned None, but all processes of a "
                f"sharded model must do the same passes. Return the loss times zero to leave a "
                f"batch out."
            )
        return None
    return loss_of(output, module)


def first(
    step: Callable[[Any, int], Any],
    autocast: AbstractContextManager[object] | None,
    module: Module,
    batch: Any,
    index: int,
) -> Any:
    """The first batch of a process, with what is too expensive for every one (R1, R2)."""
    with explaining(module, batch), autocast or nullcontext():
        output = step(batch, index)
    if output is not None:
        check_loss(loss_of(output, module), module)
    return output


def outputs(output: Any, loss: torch.Tensor | None) -> dict[str, Any]:
    """What hooks at the end of a batch are told."""
    if loss is None:
        return {}
    told = {"loss": loss}
    if isinstance(output, Mapping):
        told |= {name: value for name, value in output.items() if name != "loss"}
    return told
