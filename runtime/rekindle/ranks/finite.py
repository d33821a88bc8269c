"""R20: is every gradient finite? Known without waiting for a device.

One operation per step looks at all gradients and raises a flag that lies where they lie. In host
memory the flag can be looked at right away, before the optimizer has done any harm. On a GPU, where
looking would make the host wait, it travels to pinned memory behind the step and is looked at one
or more steps later; then all ranks agree on it like on a wish to stop (see `consensus`), and what
the bad step has done is undone by going back to a checkpoint.

Gradients are judged after their sum over all ranks, which is the same everywhere: so all ranks
decide alike. A loss that is not finite is made to show in its gradients.

What is left out is a *window*: the samples of one optimizer step. A run that has left out a window
has the weights of a run whose data never had it: no step is counted, no scheduler moves, and the
next step draws the numbers that this one would have drawn.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

import torch
import torch.distributed as dist

Policy = Literal["stop", "skip", "rollback"]

ALLOWED = 3
"""Windows that a run may leave out; more of them have a cause that skipping does not cure."""
_RING = 64


@dataclass(frozen=True, kw_only=True)
class Window:
    """The samples of one optimizer step."""

    step: int
    """Steps that were done before it."""
    epoch: int
    start: int
    stop: int
    """Positions ``[start, stop)`` in the epoch."""
    first: int
    """Number of its first sample, counted from the start of the run."""

    def holds(self, epoch: int, start: int, stop: int) -> bool:
        """Whether it shares a position with another step."""
        return epoch == self.epoch and start < self.stop and self.start < stop

    def __str__(self) -> str:
        last = self.first + self.stop - self.start - 1
        return f"step {self.step + 1} (samples {self.first}..{last})"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class Finite:
    """Looks at the gradients of each step."""

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter],
        device: torch.device,
        *,
        sparse: bool = False,
    ) -> None:
        groups: dict[torch.dtype, list[torch.nn.Parameter]] = {}
        for parameter in parameters:
            if parameter.requires_grad:
                groups.setdefault(parameter.dtype, []).append(parameter)
        self._complex = [p for kind, group in groups.items() if kind.is_complex for p in group]
        self._groups = [group for kind, group in groups.items() if not kind.is_complex]
        self._found = torch.zeros(1, device=device)
        self._one = torch.ones(1, device=device)
        trained = [parameter for group in groups.values() for parameter in group]
        # Of a sharded gradient each rank sees its own share only, so ranks have to ask each other.
        self._sharded = any(hasattr(parameter, "to_local") for parameter in trained)
        self._plain = not sparse and not self._sharded
        self.here = device.type == "cpu"
        """Whether the flag can be looked at right away."""
        self._flag = memoryview(cast(Any, self._found.numpy())) if self.here else None
        self._sent: deque[tuple[int, Any]] = deque()
        self._arrived = None if self.here else torch.zeros(_RING).pin_memory()

    def good(self, step: int) -> bool:
        """Whether all gradients are finite, as far as can be told without waiting (hot path)."""
        for group in self._groups:
            gradients = [g for p in group if (g := p.grad) is not None]
            if gradients:
                self._look(gradients)
        for parameter in self._complex:
            if parameter.grad is not None:
                self._look([torch.view_as_real(parameter.grad)])
        if self._flag is not None:
            if self._sharded:
                dist.all_reduce(self._found, dist.ReduceOp.MAX)
            if self._flag[0] == 0.0:
                return True
            self._found.zero_()
            return False
        self._send(step)
        return True

    def _look(self, gradients: list[torch.Tensor]) -> None:
        if not self._plain:
            gradients = [_dense(gradient) for gradient in gradients]
        # Multiplies by one, which changes no bit of a finite number; what a loss scaler uses.
        torch._amp_foreach_non_finite_check_and_unscale_(gradients, self._found, self._one)

    def _send(self, step: int) -> None:
        assert self._arrived is not None
        if len(self._sent) == _RING:
            self._sent.popleft()
        self._arrived[step % _RING].copy_(self._found[0], non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        self._sent.append((step, event))

    def late(self) -> int | None:
        """A step that was done and turned out bad since, None if none has; waits for nothing."""
        while self._sent and self._sent[0][1].query():
            step, _ = self._sent.popleft()
            assert self._arrived is not None
            if self._arrived[step % _RING] != 0.0:
                return int(step)
        return None

    def reset(self) -> None:
        """Forget what is on its way: the run has gone back."""
        self._sent.clear()
        self._found.zero_()


def _dense(gradient: torch.Tensor) -> torch.Tensor:
    local = getattr(gradient, "to_local", None)
    if local is not None:
        gradient = local()
    return gradient.coalesce().values() if gradient.is_sparse else gradient
