"""From signatures to dataclasses, and from trees of values to what their fields ask for.

`schema` makes a dataclass of a class's constructor (or of a function): a field per parameter, with
its annotation and default. `fill` reads a block of a tree into it: unknown keys are answered with
the nearest known one, missing ones are named, values are checked against the annotations. An object
inside of a block (a callback, a dataclass, a strategy) is written as a mapping with the key
``class``, or as its mere name; it becomes a `ConfigTarget`, which is made only when everything is
known to be right.

Types are strict in the way people expect: a whole number is a float too, nothing else changes kind.
Texts from the command line count as what they were meant to be. Annotations that say nothing a
value could be checked against (a type variable, a protocol) take anything.
"""

import dataclasses
import functools
import importlib
import importlib.util
import inspect
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Union

from rekindle.config.tree import CLASS, ConfigError, ConfigNode, hint

PACKAGES = (
    "rekindle.callbacks",
    "rekindle.loggers",
    "rekindle.profilers",
    "rekindle.strategies",
    "rekindle",
)
"""Where a class without a module is looked for."""

_SCALARS = (bool, int, float, str)
_PLURALS = (list, tuple, set, frozenset, Sequence, Iterable, AbstractSet)


@dataclass(frozen=True)
class ConfigTarget:
    """Something to be made: a class or function, with its arguments."""

    name: str
    """As the configuration names it; empty where the annotation says which class it is."""
    kind: Callable[..., Any]
    arguments: Mapping[str, Any]
    places: Mapping[str, str] = field(default_factory=dict)
    """Where each argument was given."""

    def make(self) -> Any:
        """Call it, arguments first."""
        return self.kind(**{key: made(value) for key, value in self.arguments.items()})


def made(value: Any) -> Any:
    """A value with every `ConfigTarget` inside of it made."""
    if isinstance(value, ConfigTarget):
        return value.make()
    if isinstance(value, list | tuple | set | frozenset):
        return type(value)(made(item) for item in value)
    if isinstance(value, dict):
        return {key: made(item) for key, item in value.items()}
    return value


@functools.lru_cache(maxsize=256)
def schema(kind: Callable[..., Any]) -> type[Any]:
    """A dataclass with a field per parameter; ``metadata["open"]`` in it tells of ``**kwargs``."""
    function = kind.__init__ if inspect.isclass(kind) else kind
    parameters = list(inspect.signature(function).parameters.values())
    if inspect.isclass(kind):
        parameters = parameters[1:]
    hints = _hints(kind, function)
    made_of: list[Any] = []
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        made_of.append(
            (
                parameter.name,
                hints.get(parameter.name, Any),
                field()
                if parameter.default is parameter.empty
                else field(default_factory=_Same(parameter.default)),
            )
        )
    name = getattr(kind, "__name__", "Block")
    found = dataclasses.make_dataclass(name, made_of, kw_only=True, frozen=True)
    found.__doc__ = inspect.getdoc(function) or inspect.getdoc(kind)
    return found


def _hints(kind: Callable[..., Any], function: Callable[..., Any]) -> dict[str, Any]:
    """Annotations by name; those that cannot be resolved here mean anything."""
    try:
        return typing.get_type_hints(function)
    except Exception:
        # Annotations are anybody's code, so this is any error; mostly a name that exists for type
        # checkers only, and it must not cost the others.
        found = {}
        module = sys.modules.get(kind.__module__)
        names = {**vars(typing), **(vars(module) if module else {})}
        for name, annotation in getattr(function, "__annotations__", {}).items():
            try:
                found[name] = eval(annotation, names) if isinstance(annotation, str) else annotation
            except Exception:  # as above
                found[name] = Any
        return found


@dataclass(frozen=True)
class _Same:
    """A factory, because a dataclass takes no list as a default."""

    value: Any

    def __call__(self) -> Any:
        return self.value


def default(one: "dataclasses.Field[Any]") -> Any:
    """A field's default; only for one that is not `required`."""
    assert isinstance(one.default_factory, _Same)
    return one.default_factory.value


def is_open(kind: Callable[..., Any]) -> bool:
    """Whether it takes arguments that its signature does not name."""
    function = kind.__init__ if inspect.isclass(kind) else kind
    parameters = inspect.signature(function).parameters.values()
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)


def required(one: "dataclasses.Field[Any]") -> bool:
    """Whether a field has no default."""
    return not isinstance(one.default_factory, _Same)


def fill(
    kind: Callable[..., Any], block: ConfigNode, where: str, name: str, *, closed: bool = False
) -> ConfigTarget:
    """Read a block into the schema of what it is for; raises ConfigError."""
    if block.value is None:
        block = ConfigNode({}, block.place)
    if not isinstance(block.value, dict):
        raise ConfigError(f"{block.place}: {where} must have keys, not just a value")
    fields = {one.name: one for one in dataclasses.fields(schema(kind))}
    arguments: dict[str, Any] = {}
    places = {}
    for key, node in block.value.items():
        if key == CLASS:
            continue
        path = f"{where}.{key}"
        if key not in fields:
            if closed or not is_open(kind):
                of = "" if closed else f" ({name})"
                raise ConfigError(
                    f"{node.place}: {where}{of} has no key {key!r}; {hint(key, fields)}"
                )
            arguments[key] = convert(node, Any, path)
        else:
            arguments[key] = convert(node, _sharpened(fields[key]), path)
        places[key] = node.place
    missing = [one for one in fields.values() if required(one) and one.name not in arguments]
    if missing:
        raise ConfigError(
            f"{block.place}: {where} ({name}) needs {missing[0].name!r} "
            f"({described(missing[0].type)}), which nobody gives; write it under {where}:, or give "
            f"--{where}.{missing[0].name}"
        )
    return ConfigTarget(name, kind, arguments, places)


def _sharpened(one: "dataclasses.Field[Any]") -> Any:
    """The annotation; without one, a float as default says that ``1e-3`` is a number."""
    if one.type is Any and not required(one) and type(default(one)) is float:
        return Union[float, Any]  # noqa: UP007 - `float | Any` is no type at run time
    return one.type


def convert(node: ConfigNode, annotation: Any, where: str) -> Any:
    """The value as its annotation wants it; raises ConfigError."""
    found = _converted(node, annotation, where)
    if found is _NO:
        shown = repr(node.plain())
        raise ConfigError(
            f"{node.place}: {where} is {shown if len(shown) < 80 else shown[:77] + '...'}, must be "
            f"{described(annotation)}"
        )
    return found


_NO: Any = object()
"""A value does not fit."""


def _converted(node: ConfigNode, annotation: Any, where: str) -> Any:
    origin, value = typing.get_origin(annotation), node.value
    arguments = typing.get_args(annotation)
    if origin in (Union, types.UnionType):
        return _one_of(node, arguments, where)
    if origin is Literal:
        return _literal(node, arguments)
    if annotation in (None, type(None)):
        return None if value is None else _NO
    if annotation in _SCALARS:
        return _scalar(node, annotation)
    kind = origin or annotation
    if kind in _PLURALS:
        return _several(node, kind, arguments, where)
    if kind in (dict, Mapping):
        if not isinstance(value, dict):
            return _NO
        item = arguments[1] if len(arguments) == 2 else Any
        return {key: convert(child, item, f"{where}.{key}") for key, child in value.items()}
    if kind in (type, Callable) and isinstance(value, str):
        return named(value, node.place, where)
    if inspect.isclass(kind) and issubclass(kind, os.PathLike):
        return Path(value) if isinstance(value, str) else _NO
    return _object(node, kind, where)


def _one_of(node: ConfigNode, options: Sequence[Any], where: str) -> Any:
    """The first that the value is exactly, else the first that it can be."""
    errors = []
    exact = [option for option in options if option is type(node.value)]
    if isinstance(node.value, str) and _names_a_class(node.value):
        # Also where a text is allowed: `callbacks: [EMA]` means the class.
        exact = [option for option in options if _is_made(option)] + exact
    for option in [*exact, *(option for option in options if option not in exact)]:
        try:
            found = _converted(node, option, where)
        except ConfigError as error:
            errors.append(error)
            continue
        if found is not _NO:
            return found
    if errors:
        # It has the form of one of them, whose complaint tells more than a list of types.
        raise errors[0]
    return _NO


_CLASS_NAME = re.compile(r"^([A-Za-z_][\w.]*|\S+\.py):[A-Za-z_][\w.]*$")


def _names_a_class(text: str) -> bool:
    return bool(_CLASS_NAME.match(text)) or any(text in _own_names(one) for one in PACKAGES)


def _is_made(option: Any) -> bool:
    """Whether values of a type are objects that a configuration names by their class."""
    return (
        inspect.isclass(option)
        and option not in (*_SCALARS, type(None), Any, object)
        and option.__module__.partition(".")[0] not in sys.stdlib_module_names
    )


def _literal(node: ConfigNode, allowed: Sequence[Any]) -> Any:
    for one in allowed:
        if type(one) is type(node.value) and one == node.value:
            return one
        if node.text is not None and one == node.text:
            return one
    return _NO


def _scalar(node: ConfigNode, kind: type) -> Any:
    value = node.value
    if type(value) is kind:
        return value
    if kind is float and type(value) is int:
        return float(value)
    if kind is float and isinstance(value, str):
        # YAML takes 1e-3 for a text, since it has no dot.
        try:
            return float(value)
        except ValueError:
            return _NO
    if kind is str and node.text is not None:
        return node.text
    return _NO


def _several(node: ConfigNode, kind: Any, arguments: Sequence[Any], where: str) -> Any:
    if not isinstance(node.value, list):
        return _NO
    if kind is tuple and arguments and arguments[-1] is not Ellipsis:
        if len(arguments) != len(node.value):
            return _NO
        each = arguments
    else:
        each = [arguments[0] if arguments else Any] * len(node.value)
    items = [
        convert(child, item, f"{where}[{index}]")
        for index, (child, item) in enumerate(zip(node.value, each, strict=True))
    ]
    return kind(items) if kind in (list, tuple, set, frozenset) else items


def _object(node: ConfigNode, kind: Any, where: str) -> Any:
    """An object that is written as a mapping with ``class``, or by name alone."""
    value = node.value
    # `Any` is a class as well, since Python 3.11.
    wanted = kind if inspect.isclass(kind) and kind not in (object, Any) else None
    if isinstance(value, dict) and CLASS in value:
        name = value[CLASS].value
        if not isinstance(name, str):
            raise ConfigError(f"{value[CLASS].place}: {where}.{CLASS} must be a name")
        found = named(name, value[CLASS].place, where)
        _check_kind(found, wanted, value[CLASS].place, where)
        return fill(found, node, where, name)
    if wanted is None:
        if isinstance(value, dict):
            return {key: convert(child, Any, f"{where}.{key}") for key, child in value.items()}
        if isinstance(value, list):
            return [convert(child, Any, f"{where}[{i}]") for i, child in enumerate(value)]
        return value
    if isinstance(value, dict) and dataclasses.is_dataclass(wanted):
        # It needs no name, here as little as in the file.
        return dataclasses.replace(fill(wanted, node, where, wanted.__name__), name="")
    if isinstance(value, str) and wanted.__module__ != "builtins":
        found = named(value, node.place, where)
        _check_kind(found, wanted, node.place, where)
        return fill(found, ConfigNode({}, node.place), where, value)
    if getattr(wanted, "_is_protocol", False):
        return value
    return value if wanted.__module__ == "builtins" and isinstance(value, wanted) else _NO


def _check_kind(found: Any, wanted: type | None, place: str, where: str) -> None:
    if wanted is None or not inspect.isclass(found) or getattr(wanted, "_is_protocol", False):
        return
    if not issubclass(found, wanted):
        raise ConfigError(
            f"{place}: {where} must be a {wanted.__name__}, and {found.__name__} is none"
        )


def named(name: str, place: str, where: str) -> Any:
    """What ``module:Class``, ``folder/file.py:Class`` or a class of Rekindle's own name means."""
    module, _, attribute = name.rpartition(":")
    if not module:
        return _own(name, place, where)
    try:
        loaded = _from_path(Path(module)) if module.endswith(".py") else _import(module)
    except _Absent as error:
        raise ConfigError(f"{place}: {where}: {error}") from error
    found: Any = loaded
    for part in attribute.split("."):
        if not hasattr(found, part):
            classes = [key for key, value in vars(found).items() if inspect.isclass(value)]
            raise ConfigError(f"{place}: {where}: {module} has no {part!r}; {hint(part, classes)}")
        found = getattr(found, part)
    if not callable(found):
        raise ConfigError(f"{place}: {where}: {name} is a {type(found).__name__}, not a class")
    return found


class _Absent(Exception):
    pass


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        # The module itself, and not one that it imports: that is the program's own error.
        if error.name is not None and f"{module}.".startswith(f"{error.name}."):
            raise _Absent(
                f"there is no module {error.name!r}; it is looked for in {Path.cwd()} and among "
                f"the installed packages, a file is named as folder/file.py:Class"
            ) from error
        raise


def _from_path(path: Path) -> Any:
    name = f"rekindle_program_{path.stem}"
    if name in sys.modules:
        return sys.modules[name]
    if not path.is_file():
        raise _Absent(f"there is no file {str(path)!r} in {Path.cwd()}")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Its neighbours can be imported, and loader workers find its classes again.
    sys.path.insert(0, str(path.parent.absolute()))
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _own(name: str, place: str, where: str) -> Any:
    for package in PACKAGES:
        if name in _own_names(package):
            return getattr(importlib.import_module(package), name)
    known = [one for package in PACKAGES for one in _own_names(package)]
    raise ConfigError(
        f"{place}: {where}: Rekindle has no class {name!r} (one of yours is written module:Class); "
        f"{hint(name, known)}"
    )


def _own_names(package: str) -> list[str]:
    if importlib.util.find_spec(package) is None:
        return []
    return list(getattr(importlib.import_module(package), "__all__", []))


def _alternatives(annotation: Any) -> list[str]:
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is Literal:
        return [repr(one) for one in arguments]
    if typing.get_origin(annotation) in (Union, types.UnionType):
        return [word for one in arguments for word in _alternatives(one)]
    return [described(annotation)]


def described(annotation: Any) -> str:
    """A type in words: ``int or None``."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (Union, types.UnionType, Literal):
        words = list(dict.fromkeys(_alternatives(annotation)))
        return ", ".join(words[:-1]) + f" or {words[-1]}" if len(words) > 1 else words[0]
    if annotation in (None, type(None)):
        return "None"
    if annotation is Any:
        return "anything"
    if origin in (list, Sequence, Iterable):
        return f"a list of {described(arguments[0])}" if arguments else "a list"
    if origin in (dict, Mapping) or annotation in (dict, Mapping):
        return "a mapping"
    if inspect.isclass(origin or annotation) and issubclass(origin or annotation, os.PathLike):
        return "a path"
    return getattr(annotation, "__name__", None) or str(annotation)
