"""The dtype policy: what `precision=` means.

``32-true`` computes in the parameters' own dtype. ``bf16-mixed`` keeps parameters, gradients and
optimizer state in float32 and runs `training_step` under autocast to bfloat16, which has float32's
range and therefore needs no loss scaling.
"""

from contextlib import AbstractContextManager
from typing import Literal

import torch

Precision = Literal["32-true", "bf16-mixed"]

ALIASES: dict[object, Precision] = {
    "32-true": "32-true",
    "32": "32-true",
    32: "32-true",
    "bf16-mixed": "bf16-mixed",
    "bf16": "bf16-mixed",
}
"""What `Trainer(precision=)` accepts, and what it means."""


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object] | None:
    """The context to run steps in, or None when there is none to enter.

    The context is reusable: entering the same object again is cheaper than making a new one.
    """
    if precision == "32-true":
        return None
    return torch.autocast(device.type, dtype=torch.bfloat16)
