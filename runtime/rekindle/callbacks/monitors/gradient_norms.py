"""`GradNorms`: gradient norms as metrics, without waiting for the device.

The norms of all parameters come out of one fused call, are combined on the device, and are read
together with every other logged value at the next report. They are taken after the sum over ranks
and after unscaling, before clipping: the gradient as it is. One ``.item()`` per parameter, as such
monitors are often written, waits for the device as many times as there are parameters.
"""

from typing import TYPE_CHECKING, Literal

import torch

from rekindle.callback import Callback

if TYPE_CHECKING:
    from rekindle.model.module import Module
    from rekindle.trainer.trainer import Trainer


class GradNorms(Callback):
    """Log ``grad_norm/total``, and one norm per top-level module or per parameter.

    `per` is ``module`` (``grad_norm/<module>``), ``parameter`` or ``total``; a step is looked at
    when its number is a multiple of `every`, and its values appear with the next report.
    """

    def __init__(
        self, every: int = 100, per: Literal["module", "parameter", "total"] = "module"
    ) -> None:
        if type(every) is not int or every < 1:
            raise ValueError(f"GradNorms(every={every!r}): need a number of steps, at least 1")
        if per not in ("module", "parameter", "total"):
            raise ValueError(
                f"GradNorms(per={per!r}): allowed are 'module', 'parameter' and 'total'"
            )
        self.every, self.per = every, per

    def on_before_optimizer_step(
        self, trainer: "Trainer", pl_module: "Module", optimizer: torch.optim.Optimizer
    ) -> None:
        """Log the norms of this step."""
        if (trainer.global_step + 1) % self.every:
            return
        for name, norm in self.norms(pl_module).items():
            pl_module.log(f"grad_norm/{name}", norm, on_step=True, on_epoch=False)

    def norms(self, module: torch.nn.Module) -> dict[str, torch.Tensor]:
        """The norms, still on the device."""
        named = [(name, p.grad) for name, p in module.named_parameters() if p.grad is not None]
        if not named:
            return {}
        fused = torch._foreach_norm([gradient for _, gradient in named])
        # A sharded gradient's norm is whole only after a sum over its shards.
        norms = [getattr(n, "full_tensor", lambda n=n: n)() for n in fused]
        groups: dict[str, list[torch.Tensor]] = {}
        for (name, _), norm in zip(named, norms, strict=True):
            if self.per != "total":
                groups.setdefault(
                    name if self.per == "parameter" else name.split(".")[0], []
                ).append(norm)
        found = {
            name: torch.linalg.vector_norm(torch.stack(parts)) for name, parts in groups.items()
        }
        found["total"] = torch.linalg.vector_norm(torch.stack(norms))
        return found
