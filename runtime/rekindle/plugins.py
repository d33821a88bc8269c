"""Extensions of other packages, by name: ``Trainer(logger="mine", callbacks=["mine"])``.

A package registers what it offers as entry points of the group ``rekindle.plugins``, each named
``kind.name``, where the kind is ``logger``, ``callback``, ``profiler`` or ``strategy``::

    [project.entry-points."rekindle.plugins"]
    "logger.mine" = "my_package.loggers:MyLogger"

The entry is a class or a function, called without arguments. Nothing is looked up before a script
uses a name that is not our own, and our own names always mean ours.
"""

from collections.abc import Container
from importlib.metadata import EntryPoint, entry_points
from typing import Any

GROUP = "rekindle.plugins"
KINDS = ("callback", "logger", "profiler", "strategy")


def named(kind: str, given: Any, own: Container[str] | None = None) -> Any:
    """What a flag was given, with the objects of plugins in place of their names.

    `own` are the names that the flag itself knows; names that neither it nor a plugin knows are
    left to the flag then. Without `own` they raise ValueError. RuntimeError when a plugin fails.
    """
    if isinstance(given, list | tuple):
        return [named(kind, each, own) for each in given]
    if not isinstance(given, str) or (own is not None and given in own):
        return given
    known = _known(kind)
    if given in known:
        return _made(known[given])
    if own is not None:
        return given
    raise ValueError(
        f"{kind} {given!r} is not known: no installed package has an entry point "
        f"'{kind}.{given}' in the group {GROUP!r}"
        + (f"; there are: {', '.join(sorted(known))}" if known else "")
    )


def _known(kind: str) -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP):
        before, _, name = point.name.partition(".")
        if before != kind or not name:
            continue
        if name in found and found[name].value != point.value:
            raise RuntimeError(
                f"two packages register {point.name!r} in the group {GROUP!r}: "
                f"{found[name].value} and {point.value}. Uninstall one, or give the object itself."
            )
        found[name] = point
    return found


def _made(point: EntryPoint) -> Any:
    try:
        return point.load()()
    except Exception as error:
        package = "" if point.dist is None else f" of {point.dist.name} {point.dist.version}"
        raise RuntimeError(
            f"plugin {point.name!r}{package} ({point.value}) failed: "
            f"{type(error).__name__}: {error}"
        ) from error
