"""`SpikeDetection`: end training with an error when the loss jumps, and note which batches did it.

The loss of each batch is looked at as soon as it is there, which waits for the device; the ranks
agree, so all of them end in the same batch. `SpikeGuard` costs no wait, and goes back by itself.
"""

import json
import math
import os
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch

from rekindle.callback import Callback

if TYPE_CHECKING:
    from rekindle.model.module import Module
    from rekindle.trainer.trainer import Trainer


class TrainingSpikeException(RuntimeError):
    """The loss has jumped in a batch."""

    def __init__(self, batch_idx: int, *arguments: Any) -> None:
        super().__init__(f"Training spike detected in batch {batch_idx}", *arguments)


class SpikeDetection(Callback):
    """Raise `TrainingSpikeException` when a loss is far from the mean of those before it.

    It is no better than the one before, and differs from the mean of the newest `window` by `atol`
    and by `rtol` times the mean (None leaves one out); with `finite_only` one that is no finite
    number is a spike as well. The batch and the one before are added to ``skip_batches.json`` in
    `exclude_batches_path`, by default in the trainer's root. The first `warmup` batches of an epoch
    are not looked at.
    """

    def __init__(
        self,
        mode: Literal["min", "max"] = "min",
        window: int = 10,
        warmup: int = 1,
        atol: float | None = None,
        rtol: float | None = 2.0,
        exclude_batches_path: "str | os.PathLike[str] | None" = None,
        finite_only: bool = True,
    ) -> None:
        if mode not in ("min", "max"):
            raise ValueError(f"SpikeDetection(mode={mode!r}): allowed are 'min' and 'max'")
        self.mode, self.warmup, self.atol, self.rtol = mode, warmup, atol, rtol
        self.exclude_batches_path, self.finite_only = exclude_batches_path, finite_only
        self.last_val = 0.0
        self.bad_batches: list[int] = []
        """The batches to leave out."""
        self._recent: deque[float] = deque(maxlen=window)

    def on_train_batch_end(
        self, trainer: "Trainer", pl_module: "Module", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the loss; collective."""
        given = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if not isinstance(given, torch.Tensor):
            raise TypeError(
                f"SpikeDetection needs the loss that training_step returns, which is "
                f"{type(given).__name__} in batch {batch_idx}"
            )
        loss = float(given.detach())
        spike, finite = batch_idx >= self.warmup and self._is_spike(loss), math.isfinite(loss)
        if trainer.world is not None and trainer.world.size > 1:
            seen = trainer.world.gather((spike, finite))
            spike, finite = any(one for one, _ in seen), all(one for _, one in seen)
        if spike:
            self._end(trainer, batch_idx)
        if self.finite_only or finite:
            self._recent.append(loss)
            self.last_val = loss

    def _is_spike(self, loss: float) -> bool:
        if self.finite_only and not math.isfinite(loss):
            return True
        change = loss - self.last_val
        if change <= 0.0 if self.mode == "min" else change >= 0.0:
            return False
        mean = sum(self._recent) / len(self._recent) if self._recent else math.nan
        away = abs(loss - mean)
        return (self.atol is None or away >= abs(self.atol)) and (
            self.rtol is None or away >= abs(self.rtol * mean)
        )

    def _end(self, trainer: "Trainer", batch_idx: int) -> None:
        self.bad_batches += [batch_idx - 1, batch_idx]
        path = os.fspath(self.exclude_batches_path or trainer.default_root_dir)
        if not path.endswith(".json"):
            path = os.path.join(path, "skip_batches.json")
        self.exclude_batches_path = path
        if trainer.is_global_zero and "://" not in path:
            os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
            with open(path, "w", encoding="utf-8") as file:
                json.dump(self.bad_batches, file, indent=4)
        raise TrainingSpikeException(batch_idx)

    def state_dict(self) -> dict[str, Any]:
        """The newest losses, and the batches to leave out."""
        return {
            "last_val": self.last_val,
            "bad_batches": list(self.bad_batches),
            "recent": list(self._recent),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.last_val, self.bad_batches = state_dict["last_val"], list(state_dict["bad_batches"])
        self._recent.clear()
        self._recent.extend(state_dict["recent"])
