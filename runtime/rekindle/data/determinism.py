"""What `Trainer(data={...})` says: how much is guaranteed, and what a changed dataset means.

``guarantee``

- ``order`` (default): the same samples in the same step on any number of processes and of loader
  workers, over any number of restarts; weights bit-equal as long as the number of processes stays.
- ``bitwise``: weights bit-equal on any number of processes too. Gradients are kept per micro-batch
  and added in one fixed order, which costs memory and traffic (see
  `rekindle.ranks.deterministic_reduction`).
- ``approximate``: also data whose position cannot be stored (iterables and streams without a
  state, samplers that give another order each time). After an interruption the epoch is read again
  from its start and what was used is passed over: exact if the data come in the same order again;
  if not, some samples of that epoch repeat and others are missing.
- ``relaxed``: such data are not read twice. What an epoch had used before a stop is used again, so
  every sample is used at least once.

Who says nothing gets ``order``, and outside of a job ``approximate`` for data that can do no
better, with a line that says so. In a job, whose interruptions are certain, that has to be asked
for.

``on_change`` says what to do when the dataset is another one than the checkpoint's (R12): ``fail``
(default), or ``restart-epoch``: the epoch that was interrupted begins anew on the new data, which
the audit shows.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Guarantee = Literal["order", "bitwise", "approximate", "relaxed"]
OnChange = Literal["fail", "restart-epoch"]

_ALLOWED: Mapping[str, tuple[str, ...]] = {
    "guarantee": ("order", "bitwise", "approximate", "relaxed"),
    "on_change": ("fail", "restart-epoch"),
}


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """The checked form of `Trainer(data=...)`."""

    guarantee: Guarantee = "order"
    on_change: OnChange = "fail"
    said: bool = True
    """Whether the script has named the guarantee."""

    def of(self, loose: str | None, *, in_job: bool) -> Guarantee | None:
        """The guarantee for data that are `loose` for this reason; None: refuse them."""
        if loose is None or self.guarantee in ("approximate", "relaxed"):
            return self.guarantee
        return None if self.said or in_job else "approximate"


def parse(given: object) -> DataOptions:
    """Check the flag; raises TypeError or ValueError naming the option and what is allowed."""
    if given is None:
        return DataOptions(said=False)
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
    return DataOptions(**given, said="guarantee" in given)
