"""What `Trainer(data={...})` says: how much is guaranteed, and what a changed dataset means.

``guarantee``

- ``order`` (default): the same samples in the same step on any number of processes and of loader
  workers, over any number of restarts; weights bit-equal as long as the number of processes stays.
- ``bitwise``: weights bit-equal on any number of processes too. Gradients are kept per micro-batch
  and added in one fixed order, which costs memory and traffic (see `rekindle.ranks.lanesum`).
- ``relaxed``: also data whose position cannot be stored: what an epoch had read before a stop is
  read again, so every sample is used at least once.

``on_change`` says what to do when the dataset is another one than the checkpoint's (R12): ``fail``
(default), or ``restart-epoch``: the epoch that was interrupted begins anew on the new data, which
the audit shows.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Guarantee = Literal["order", "bitwise", "relaxed"]
OnChange = Literal["fail", "restart-epoch"]

_ALLOWED: Mapping[str, tuple[str, ...]] = {
    "guarantee": ("order", "bitwise", "relaxed"),
    "on_change": ("fail", "restart-epoch"),
}


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """The checked form of `Trainer(data=...)`."""

    guarantee: Guarantee = "order"
    on_change: OnChange = "fail"


def parse(given: object) -> DataOptions:
    """Check the flag; raises TypeError or ValueError naming the option and what is allowed."""
    if given is None:
        return DataOptions()
    if isinstance(given, DataOptions):
        return given
    if not isinstance(given, Mapping):
        raise TypeError(
            f"data must be a mapping such as {{'guarantee': 'bitwise'}}, not "
            f"{type(given).__name__}; the data itself is given to fit()"
        )
    for name, value in given.items():
        if name not in _ALLOWED:
            close = difflib.get_close_matches(str(name), _ALLOWED, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(_ALLOWED)}"
            raise TypeError(f"data has no option {name!r}; {hint}")
        if value not in _ALLOWED[name]:
            allowed = ", ".join(map(repr, _ALLOWED[name]))
            raise ValueError(f"data[{name!r}]={value!r} is not known; allowed are {allowed}")
    return DataOptions(**given)
