"""How a model is spread over processes: what `Trainer(strategy=)` and `mesh=` take.

``auto`` and ``ddp`` keep the whole model on each process. `FSDP2` gives each process a share of
every parameter, gradient and optimizer state, and gathers a layer's parameters while they are
needed. With ``mesh={"dp": 2, "tp": 2}`` layers are also cut across processes, by a plan that the
module names (`tensor_parallel_plan`). The names that scripts for Lightning use are mapped onto
these; what has no counterpart is refused with the name to use instead.

Checkpoints do not know any of this: a run may change its strategy between two attempts.
"""

from rekindle.strategies.kinds import (
    FSDP2,
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    Mesh,
    Strategy,
    parse,
    parse_mesh,
)

__all__ = [
    "FSDP2",
    "DDPStrategy",
    "DeepSpeedStrategy",
    "FSDPStrategy",
    "Mesh",
    "Strategy",
    "parse",
    "parse_mesh",
]
