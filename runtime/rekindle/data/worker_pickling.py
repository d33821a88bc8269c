"""What cannot be sent to loader workers that are not forked, by its place.

Workers that are spawned, or come from a fork server, get dataset, `collate_fn` and `worker_init_fn`
as pickles. Pickle says what it cannot do and not where it found it, so it is looked for here: down
to the innermost attribute, item or function that alone does not go.
"""

import functools
import pickle
from collections.abc import Iterator, Mapping
from multiprocessing.reduction import ForkingPickler
from typing import Any

_ERRORS = (AttributeError, TypeError, pickle.PicklingError)
_DEPTH = 8
_OURS = {
    "dataset._dataset": "dataset",
    "dataset._collate._collate": "collate_fn",
    "dataset._collate": "collate_fn",
    "worker_init_fn._then": "worker_init_fn",
}
"""What of a script's loader we have put into objects of our own."""


def goes(value: Any) -> bool:
    """Whether a value can be sent."""
    try:
        ForkingPickler.dumps(value)
    except _ERRORS:
        return False
    return True


def unsendable(named: Mapping[str, Any]) -> tuple[str, Any] | None:
    """Place and value of the innermost thing that cannot be sent; None when all of it can be."""
    for name, value in named.items():
        if value is not None and not goes(value):
            return _innermost(name, value, _DEPTH)
    return None


def _innermost(name: str, value: Any, depth: int) -> tuple[str, Any]:
    for place, part in _parts(name, value) if depth else ():
        if not goes(part):
            return _innermost(place, part, depth - 1)
    return name, value


def _parts(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from ((f"{name}[{key!r}]", item) for key, item in value.items())
    elif isinstance(value, list | tuple):
        yield from ((f"{name}[{index}]", item) for index, item in enumerate(value))
    elif isinstance(value, functools.partial):
        yield f"{name}.func", value.func
        yield from _parts(f"{name}.args", value.args)
        yield from _parts(f"{name}.keywords", value.keywords)
    elif hasattr(value, "__self__") and not isinstance(value, type):
        yield f"{name}.__self__", value.__self__
    elif not isinstance(value, type) and not hasattr(value, "__code__"):
        owned = getattr(value, "__dict__", {})
        yield from ((f"{name}.{key}", item) for key, item in owned.items())


def words(place: str, value: Any, start: str, error: BaseException) -> str:
    """What a script is told, and what it can write instead."""
    ours = next((one for one in _OURS if place.startswith(one)), None)
    place = place if ours is None else _OURS[ours] + place.removeprefix(ours)
    name = getattr(value, "__qualname__", "")
    kind = type(value).__name__
    if name.endswith("<lambda>"):
        what, instead = "a lambda", "Write it as a function (def) at the top of a module"
    elif "<locals>" in name:
        what = f"{name.rpartition('.')[2]}, which is defined within a function"
        instead = "Define it at the top of a module"
    elif "<locals>" in type(value).__qualname__:
        what = f"a {kind}, whose class is defined within a function"
        instead = "Define the class at the top of a module"
    else:
        what = f"a {kind} ({error})"
        instead = "Make it within __getitem__ or worker_init_fn, or leave it out in __getstate__"
    return (
        f"{place} is {what}, which cannot be sent to loader workers that are started by {start!r}. "
        f"{instead}, or use DataLoader(multiprocessing_context='fork') or num_workers=0."
    )
