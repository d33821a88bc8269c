"""R18: whether a save fits into the time that a preemption notice leaves.

What a save takes is measured; what a notice leaves is told by the environment. A save that begins
at the notice may have to wait for the one before it, so twice its time should fit. Where it does
not, the last steps survive in the memory of nodes only, which is worth a word while there is time
to raise the grace period: once, and from the start if an earlier attempt has measured it.
"""

import math
import os
from dataclasses import dataclass

from rekindle.api import ENV_GRACE


def period() -> float | None:
    """Seconds between a notice and the end, as far as the environment tells."""
    told = os.environ.get(ENV_GRACE)
    if told:
        return float(told)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return float(os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT") or 30)
    return None


def warning(step: int, *, save: float, grace: float | None) -> str | None:
    """R18 when a save of so many seconds is too long for the grace period; `step` is durable."""
    if grace is None or 2 * save <= grace:
        return None
    advice = math.ceil(4 * save / 30) * 30
    return (
        f"R18 emergency save needs ~{2 * save:.3g} s but the grace is {grace:g} s; what is "
        f"not committed by then stays in the memory of its node only, the last durable step is "
        f"{step}. Raise terminationGracePeriodSeconds to {advice}."
    )


@dataclass
class Grace:
    """Keeps the warning until somebody reads it, and gives it once."""

    _line: str | None = None
    _told: bool = False

    def weigh(self, step: int, save: float) -> None:
        """A save of so many seconds has made a step durable; from the saver's thread too."""
        if self._told:
            return
        self._line = warning(step, save=save, grace=period())
        self._told = self._line is not None

    def take(self) -> str | None:
        """R18, if it is new."""
        line, self._line = self._line, None
        return line
