"""Public names of a package that load their modules when they are first used (PEP 562).

Importing a package that does so imports nothing else: ``rekindle.loggers`` costs no TensorBoard,
and the command, whose image holds no torch, can import ``rekindle.checkpoint``. Type checkers read
the package's own ``if TYPE_CHECKING`` block, which names the same things.
"""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module


def attributes(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package, from public name -> module that has it.

    A module within the package begins with a dot.
    """

    def get(name: str) -> object:
        if name not in homes:
            raise AttributeError(
                f"module {package!r} has no attribute {name!r}; it has {', '.join(sorted(homes))}"
            )
        return getattr(import_module(homes[name], package), name)

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return get, names
