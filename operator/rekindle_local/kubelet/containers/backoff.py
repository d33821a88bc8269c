"""How long a container waits before it is started again.

As in a real kubelet: the first restart is at once, the next ones wait `base`, twice that, and so
on up to `cap`; a run longer than twice the cap counts as health and starts the series anew.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Backoff:
    """The series of one container so far."""

    base: float
    """Seconds before the second restart."""
    cap: float
    """Seconds that no wait exceeds."""
    failures: int = 0

    def after_run(self, ran_seconds: float) -> "Backoff":
        """The series after one more run of that length."""
        healthy = ran_seconds > 2 * self.cap
        return Backoff(base=self.base, cap=self.cap, failures=1 if healthy else self.failures + 1)

    @property
    def delay(self) -> float:
        """Seconds to wait now."""
        if self.failures <= 1:
            return 0.0
        return float(min(self.base * 2 ** min(self.failures - 2, 30), self.cap))
