"""What callbacks cost, measured in a few steps only (R26).

Timing every hook of every step would cost what it is to prevent. So the loop hands one step in
`PERIOD` the hooks in a form that is timed, and another one a form that watches for operations that
make the host wait for a device; all other steps get the plain ones. At a report the mean is held
against the mean duration of a step.
"""

import time
from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from rekindle.training.hooks import STEP_HOOKS, Hook, Hooks

PERIOD = 16
_TIMED, _WATCHED = 3, 11
_SHARE = 0.1
"""Share of the step time that all callbacks together may use without a word."""
_SECONDS = 1e-4
"""What they may use per step in any case."""
_WAITS = frozenset({"_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero"})


class _Waits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes whether something made the host wait."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found = False

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function.overloadpacket.__name__ in _WAITS:
            self.found = True
        return function(*args, **(kwargs or {}))


class HookTimes:
    """Seconds per hook that somebody defines, and which of them wait for a device."""

    def __init__(self, hooks: Hooks, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self.active = any(getattr(hooks, name) for name in STEP_HOOKS)
        self._plain = hooks
        self._seconds: dict[str, float] = {}
        self._waits: set[str] = set()
        self._timed = hooks.each(self._time) if self.active else hooks
        self._watched = hooks.each(self._watch) if self.active else hooks
        self._samples = 0
        self._told = False

    def of(self, step: int) -> Hooks:
        """The hooks for a step (hot path)."""
        place = step % PERIOD
        if place == _TIMED:
            self._samples += 1
            return self._timed
        return self._watched if place == _WATCHED else self._plain

    def _time(self, label: str, hook: Hook) -> Hook:
        def timed(*arguments: Any) -> Any:
            began = self._clock()
            answer = hook(*arguments)
            took = self._clock() - began
            self._seconds[label] = self._seconds.get(label, 0.0) + took
            return answer

        return timed

    def _watch(self, label: str, hook: Hook) -> Hook:
        def watched(*arguments: Any) -> Any:
            with _Waits() as waits:
                answer = hook(*arguments)
            if waits.found:
                self._waits.add(label)
            return answer

        return watched

    def complaint(self, step_seconds: float) -> str | None:
        """R26, once, when callbacks use too much of a step that takes so long on average."""
        if self._told or not self._samples or step_seconds <= 0.0:
            return None
        per_step = {label: seconds / self._samples for label, seconds in self._seconds.items()}
        total = sum(per_step.values())
        if total < _SECONDS or total / step_seconds < _SHARE:
            return None
        self._told = True
        worst = sorted(per_step, key=lambda label: -per_step[label])
        parts = [
            f"{label} {per_step[label] * 1e3:.1f} ms/step"
            + (" (host syncs)" if label in self._waits else "")
            for label in worst[:3]
            if per_step[label] > 0.2 * total
        ]
        share = min(1.0, total / step_seconds)
        return f"R26 callbacks use {share:.0%} of step time: {', '.join(parts)}. Use every=100."
