"""Modules below `rekindle.pytorch` that have no file of their own: they are made from a table.

Lightning has about 150 modules, and scripts import from any of them. Most of their names live
elsewhere here, or have no place here at all. `names.NAMES` says for each module where its names
live; a finder on `sys.meta_path` makes the module when a script imports it, and a name is resolved
when it is first asked for (PEP 562), so an import costs what it uses. Where a module has a file,
that file is the module.

A name with no counterpart resolves to a class that can be imported, named in annotations and asked
for with `isinstance`, so that a script that does not use it runs. Calling it, deriving from it or
asking it for an attribute raises `NotSupported` with what to write instead.
"""

import sys
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from rekindle.pytorch.names import NAMES
from rekindle.pytorch.refusals import INSTEAD

ROOT = "rekindle.pytorch"
_FOLDER = Path(__file__).parent


class NotSupported(NotImplementedError, AttributeError):
    """A name of Lightning's that has no counterpart was used; the message says what to write."""


class RefusedName(type):
    """The class of names that are refused when they are used."""

    def __instancecheck__(cls, instance: object) -> bool:
        """Whether it is what Lightning calls so: only a trainer's strategy is ever asked."""
        found = getattr(type(instance), "strategy_names", None)
        return found is not None and cls.__name__ in found.fget(instance)

    def _refuse(cls) -> NoReturn:
        raise NotSupported(f"{cls.__name__} is not supported: {cls.__doc__}")

    def __call__(cls, *arguments: Any, **options: Any) -> Any:
        """Refused."""
        cls._refuse()

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        cls._refuse()


def _derived(cls: type[Any], /, **options: Any) -> NoReturn:
    base = cls.__mro__[1]
    raise NotSupported(f"{base.__name__} is not supported: {base.__doc__}")


@cache
def refused(name: str, module: str) -> RefusedName:
    """The class that stands for a name, which tells what to write instead."""
    words = INSTEAD.get(f"{module}.{name}") or INSTEAD[name]
    members = {
        "__doc__": words,
        "__module__": f"{ROOT}.{module}".rstrip("."),
        "__init_subclass__": classmethod(_derived),
    }
    return RefusedName(name, (), members)


@cache
def homes(module: str) -> dict[str, tuple[str, str]]:
    """Name -> (module, attribute) of a module in the table; ("", name) is one that is refused."""
    found: dict[str, tuple[str, str]] = {}
    for home, names in NAMES[module].items():
        for entry in names.split():
            name, _, attribute = entry.partition("=")
            listed = import_module(home).__all__ if name == "*" else (name,)
            found |= {each: (home, attribute or each) for each in listed}
    return found


def attributes(
    module: str,
) -> tuple[list[str], Callable[[str], object], Callable[[], list[str]]]:
    """``__all__``, ``__getattr__`` and ``__dir__`` of a module below `rekindle.pytorch`."""
    path = module.removeprefix(ROOT).lstrip(".")

    def get(name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        table = homes(path)
        if name not in table:
            inner = f"{path}.{name}".lstrip(".")
            if inner in NAMES or _file(inner) is not None:
                return import_module(f"{ROOT}.{inner}")
            raise AttributeError(
                f"module {module!r} has no attribute {name!r}; it has {', '.join(sorted(table))}"
            )
        home, attribute = table[name]
        found = refused(attribute, path) if not home else getattr(import_module(home), attribute)
        setattr(sys.modules[module], name, found)
        return found

    def names() -> list[str]:
        return sorted({*vars(sys.modules[module]), *homes(path)})

    return [name for name in homes(path) if not name.startswith("_")], get, names


def _file(path: str) -> Path | None:
    """The file of a module that has one."""
    place = _FOLDER.joinpath(*path.split("."))
    for file in (place.with_suffix(".py"), place / "__init__.py"):
        if file.is_file():
            return file
    return None


class _Made(Loader):
    """Makes a module of the table."""

    def create_module(self, spec: ModuleSpec) -> None:
        """The usual one."""

    def exec_module(self, module: ModuleType) -> None:
        """Give it its names; none is resolved yet."""
        listed, get, names = attributes(module.__name__)
        path = module.__name__.removeprefix(f"{ROOT}.")
        module.__doc__ = f"Lightning's names of `{path}`; see `{ROOT}.names`."
        vars(module).update(__all__=listed, __getattr__=get, __dir__=names)


class Finder(MetaPathFinder):
    """Knows the modules of the table."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """A module of the table that has no file."""
        prefix, _, inner = fullname.partition(f"{ROOT}.")
        if prefix or inner not in NAMES or _file(inner) is not None:
            return None
        package = any(other.startswith(f"{inner}.") for other in NAMES)
        return ModuleSpec(fullname, _Made(), is_package=package)


def install() -> None:
    """Have the table's modules found, before any that lies in a folder."""
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, Finder())
