"""How often to save, when nobody says: from what a save costs and how often something fails.

A save that stalls the training for C seconds every T seconds costs the share C/T of it; a failure
every M seconds costs half an interval of lost work, T/2M. The sum is least at T = sqrt(2*C*M), the
interval of Young and Daly. Two more limits apply: the overhead C/T stays below a bound whatever M
is, and a save does not begin before the one before is durable.

The cost is measured, newest saves first; the time between failures is told by who has seen them
(the operator, from its incidents), or assumed. The first save comes early, because without one
there is no measurement.
"""

import math
import statistics
from collections import deque
from dataclasses import dataclass, field

OVERHEAD = 0.01
"""Share of the time that saves may take at most."""
ASSUMED_MTBF = 6 * 3600.0
"""Seconds between failures when nobody has counted them: spot capacity on a usual day."""
FIRST_SECONDS = 30.0
"""When the first save is due."""
_REMEMBERED = 5


def interval(
    cost: float, mtbf: float, *, overhead: float = OVERHEAD, durable: float = 0.0
) -> float:
    """Seconds from one save to the next.

    `cost` is how long a save stalls the training, `mtbf` the mean time between failures, `durable`
    how long it takes until a save is committed. Raises `ValueError` for what makes no sense.
    """
    if not (cost >= 0 and mtbf > 0 and 0 < overhead < 1 and durable >= 0):
        raise ValueError(
            f"cost {cost}, mtbf {mtbf}, overhead {overhead}, durable {durable}: need times of at "
            f"least 0 (mtbf above it) and a share between 0 and 1"
        )
    return max(math.sqrt(2 * cost * mtbf), cost / overhead, durable, 1.0)


@dataclass(kw_only=True)
class Pace:
    """The interval of one run, as far as it is known."""

    mtbf: float = ASSUMED_MTBF
    told: bool = False
    """Whether somebody has counted failures, or the value is assumed."""
    overhead: float = OVERHEAD
    _costs: deque[float] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))
    _durable: float = 0.0

    @property
    def seconds(self) -> float:
        """From one save to the next."""
        if not self._costs:
            return FIRST_SECONDS
        cost = statistics.median(self._costs)
        return interval(cost, self.mtbf, overhead=self.overhead, durable=self._durable)

    def stalled(self, seconds: float) -> None:
        """A save has held up the training for so long."""
        self._costs.append(seconds)

    def committed(self, seconds: float) -> None:
        """A save was durable so long after it was begun."""
        self._durable = seconds

    def reason(self) -> str:
        """Why the interval is what it is, in one line."""
        cost, seconds = statistics.median(self._costs), self.seconds
        source = "as counted" if self.told else "assumed"
        why = f"a save stalls {cost:.3g} s and a failure comes every {_span(self.mtbf)} ({source})"
        if seconds <= 1.0:
            bound = "at most every second"
        elif seconds == self._durable:
            bound = "as long as a save takes to be durable"
        elif seconds == cost / self.overhead:
            bound = f"at most {self.overhead:.0%} of the time"
        else:
            bound = f"{cost / seconds:.2%} of the time"
        return f"checkpoint every {_span(seconds)}: {why}; {bound}"


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"
