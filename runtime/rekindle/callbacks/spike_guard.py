"""`SpikeGuard`: when the loss jumps, go back and leave out the samples that did it.

A step whose loss lies far above those before it has usually done its damage already: the weights
it leaves are worse, and the optimizer's moments carry it on. So the run goes back to a checkpoint
from before that step and replays the data without the step's samples
(`Trainer.roll_back`, which also bounds how often).

No step waits for its loss. It is looked at one step later, when it has long been computed, and on
several ranks its sum travels meanwhile, so they learn of a spike two steps later, all in the same
step; only at the end of a run, wherever it is, the newest losses are waited for. "Far above" is
measured in median absolute deviations over the newest losses: unlike a mean and a variance, these
are not moved by the spike itself.
"""

import math
from collections import deque
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist

from rekindle.callback import Callback

if TYPE_CHECKING:
    from rekindle.model.module import Module
    from rekindle.trainer.trainer import Trainer

_SIGMAS = 1.4826
"""Standard deviations in one median absolute deviation, for normal noise."""


class SpikeGuard(Callback):
    """Roll back, stop or warn when the loss is `threshold` deviations above its recent median."""

    def __init__(
        self,
        threshold: float = 8.0,
        window: int = 64,
        warmup: int = 16,
        floor: float = 0.05,
        action: Literal["rollback", "stop", "warn"] = "rollback",
    ) -> None:
        """Check the arguments.

        Deviations are those of the newest `window` losses, and at least `floor` times their median,
        so that a loss that hardly moves does not make a spike of every tremor. The first `warmup`
        steps are only looked at.
        """
        if not threshold > 0 or not floor >= 0:
            raise ValueError(
                f"SpikeGuard(threshold={threshold!r}, floor={floor!r}): need > 0, >= 0"
            )
        if type(window) is not int or type(warmup) is not int or not 2 <= warmup <= window:
            raise ValueError(
                f"SpikeGuard(window={window!r}, warmup={warmup!r}): need counts of steps, "
                f"2 <= warmup <= window"
            )
        if action not in ("rollback", "stop", "warn"):
            raise ValueError(
                f"SpikeGuard(action={action!r}): allowed are 'rollback', 'stop' and 'warn'"
            )
        self.threshold, self.warmup, self.floor, self.action = threshold, warmup, floor, action
        self.spikes: list[int] = []
        """Steps whose loss was a spike; those that were rolled back are not in it any more."""
        self._recent: deque[float] = deque(maxlen=window)
        self._read: tuple[int, _Pair] | None = None
        """Step, and its weighted sum and weight on their way to the host."""
        self._sent: tuple[int, torch.Tensor, Any] | None = None
        """The same on its way between ranks."""
        self._going_back = False

    def on_fit_start(self, trainer: "Trainer", pl_module: "Module") -> None:
        """What is on its way from an earlier `fit` says nothing about this one."""
        if trainer.global_step == 0:
            self._read, self._sent, self._going_back = None, None, False
            self._recent.clear()

    def on_after_optimizer_step(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Take the loss of this step, and look at an earlier one."""
        run = trainer._run
        assert run is not None
        group, arrived = run.world.control, None
        if self._sent is not None:
            step, pair, work = self._sent
            if work is not None:
                work.wait()
            arrived, self._sent = (step, pair), None
        read, self._read = self._read, (run.step, _Pair(run.losses, run.world.device))
        if read is not None:
            step, pair = read[0], read[1].value()
            if group is None:
                arrived = step, pair
            else:
                self._sent = step, pair, dist.all_reduce(pair, group=group, async_op=True)
        if arrived is not None:
            self._look(trainer, *arrived)

    def settle(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Look at the last steps now, since no step follows them; collective."""
        run = trainer._run
        assert run is not None
        sent, self._sent = self._sent, None
        read, self._read = self._read, None
        if sent is not None:
            step, pair, work = sent
            if work is not None:
                work.wait()
            self._look(trainer, step, pair)
        if read is not None:
            pair = read[1].value()
            if run.world.control is not None:
                dist.all_reduce(pair, group=run.world.control)
            self._look(trainer, read[0], pair)

    def _look(self, trainer: "Trainer", step: int, pair: torch.Tensor) -> None:
        total, weight = pair.tolist()
        loss, recent = total / weight if weight else math.nan, self._recent
        middle, limit = math.nan, math.inf
        if len(recent) >= self.warmup:
            middle = median(recent)
            spread = _SIGMAS * median(abs(value - middle) for value in recent)
            limit = middle + self.threshold * max(spread, self.floor * abs(middle))
        # What is no number is not for this guard (see R20), and what follows a spike is its doing.
        if not math.isfinite(loss) or self._going_back:
            return
        if loss <= limit:
            recent.append(loss)
            return
        self.spikes.append(step)
        reason = f"loss {loss:.4g} is a spike, the median of {len(recent)} steps is {middle:.4g}"
        if self.action == "rollback":
            self._going_back = True
            trainer.roll_back(reason, step=step)
        elif self.action == "stop":
            trainer.stop(f"SpikeGuard: {reason}, in step {step + 1}")
        else:
            trainer.print(f"SpikeGuard at step {step + 1}: {reason}")

    def on_save_checkpoint(
        self, trainer: "Trainer", pl_module: "Module", checkpoint: dict[str, Any]
    ) -> None:
        """Add what is on its way, as all ranks will see it; collective."""
        coming: dict[str, Any] = {"sent": None, "read": None}
        if self._sent is not None:
            step, pair, work = self._sent
            if work is not None:
                work.wait()
            self._sent = step, pair, None
            coming["sent"] = [step, *pair.tolist()]
        if self._read is not None:
            pair = self._read[1].value().clone()
            if trainer.world is not None and trainer.world.control is not None:
                dist.all_reduce(pair, group=trainer.world.control)
            coming["read"] = [self._read[0], *pair.tolist()]
        checkpoint["callbacks"][self.state_key] |= coming

    def state_dict(self) -> dict[str, Any]:
        """The losses so far."""
        return {"recent": list(self._recent), "spikes": list(self.spikes)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self._recent.clear()
        self._recent.extend(state_dict["recent"])
        self.spikes = list(state_dict["spikes"])
        self._read, self._sent, self._going_back = None, None, False
        if (sent := state_dict.get("sent")) is not None:
            self._sent = sent[0], torch.tensor(sent[1:], dtype=torch.float64), None
        if (read := state_dict.get("read")) is not None:
            # Every rank sends the whole pair now, which leaves the quotient what it is.
            self._read = read[0], _Pair.of(torch.tensor(read[1:], dtype=torch.float64))


class _Pair:
    """A step's losses summed by weight, and the weights, on the way to the host."""

    def __init__(self, losses: list[tuple[torch.Tensor, int]], device: torch.device) -> None:
        self._ready: Any = None
        if not losses:
            self._pair = torch.zeros(2, dtype=torch.float64)
            return
        values = [loss.double().reshape(()) * size for loss, size in losses]
        total = sum(values[1:], values[0])
        self._pair = torch.stack([total, total.new_full((), sum(size for _, size in losses))])
        if device.type == "cuda":
            # Only memory that cannot be paged is written to without the host waiting.
            host = torch.empty(2, dtype=torch.float64, pin_memory=True)
            self._pair = host.copy_(self._pair, non_blocking=True)
            self._ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._ready.record()

    @classmethod
    def of(cls, pair: torch.Tensor) -> "_Pair":
        """A pair that is here."""
        made = cls([], pair.device)
        made._pair = pair
        return made

    def value(self) -> torch.Tensor:
        """The pair, once it has arrived."""
        if self._ready is not None:
            self._ready.synchronize()
        return self._pair
