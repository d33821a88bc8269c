"""How often something may happen: some times at once, then at a steady rate.

A bucket of tokens. What a pod, or anybody who can reach a port, can make happen here has one:
reports, lines of the log. Pure: who asks says what time it is.
"""

from dataclasses import dataclass


@dataclass
class Allowance:
    """May happen ``burst`` times at once, and ``rate`` times a second in the long run."""

    rate: float
    burst: float
    spent: float = 0.0
    at: float = 0.0
    """When ``spent`` was true."""

    def left(self, now: float) -> float:
        """How many times it may happen now."""
        return self.burst - max(0.0, self.spent - max(0.0, now - self.at) * self.rate)

    def take(self, now: float) -> bool:
        """Let it happen once, if it may."""
        left = self.left(now)
        if left < 1:
            return False
        self.spent, self.at = self.burst - left + 1, now
        return True
