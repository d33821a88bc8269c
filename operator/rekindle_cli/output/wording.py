"""How figures, times and names are said to people, in one place so that all output agrees.

Times are UTC and marked with a Z: logs of pods and of the operator are too, and an incident is
understood by laying them side by side.
"""

from collections.abc import Sequence
from datetime import UTC, datetime


def count(number: int, noun: str, plural: str | None = None) -> str:
    """``1 step``, ``2 steps``."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def seconds(value: float) -> str:
    """A duration as precise as people say it: ``0.4 s``, ``12 s``, ``2m 05s``, ``3h 10m``."""
    if value < 0:
        return f"-{seconds(-value)}"
    if value < 9.95:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}m {rest:02d}s"
    hours, minutes = divmod(round(value / 60), 60)
    if hours < 48:
        return f"{hours}h {minutes:02d}m"
    return f"{hours // 24}d {hours % 24}h"


def listed(names: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``; ``nobody`` for none."""
    if not names:
        return "nobody"
    if len(names) == 1:
        return names[0]
    return f"{', '.join(names[:-1])} and {names[-1]}"


def parse_time(text: object) -> datetime | None:
    """A Kubernetes timestamp as an aware datetime; None for anything that is none."""
    if not isinstance(text, str):
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def clock(moment: datetime) -> str:
    """``12:03:11``, in UTC."""
    return moment.astimezone(UTC).strftime("%H:%M:%S")


def date(moment: datetime) -> str:
    """``2026-11-20 12:03:11Z``."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def age(moment: datetime, now: datetime) -> str:
    """As kubectl has it: ``12s``, ``5m``, ``3h``, ``9d``."""
    total = max(0, int((now - moment).total_seconds()))
    if total < 120:
        return f"{total}s"
    if total < 2 * 3600:
        return f"{total // 60}m"
    if total < 48 * 3600:
        return f"{total // 3600}h"
    return f"{total // 86400}d"


def number(value: float) -> str:
    """A loss or metric: four significant digits, no exponent where none is needed."""
    return f"{value:.4g}"


def sentence(text: str) -> str:
    """With a full stop at the end, if it has no mark of its own; blanks and line breaks folded."""
    folded = " ".join(text.split())
    return folded if not folded or folded[-1] in ".!?:" else folded + "."
