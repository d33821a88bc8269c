"""`save_hyperparameters()`: the arguments that an object was made with.

They are read from the frames of the constructors that run: of the class and of its bases, whichever
of them asks. A value that was changed before is kept as it then is, an argument of a class wins
over the one of the same name that it passes to its base, and ``**kwargs`` count by their names.

`hparams` holds the values themselves. Into a checkpoint goes what `describing` makes of them, and
`arguments` turns that into the arguments of a constructor again.
"""

import contextlib
import copy
import csv
import inspect
import json
from argparse import Namespace
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextvars import ContextVar
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Self

from torch import nn

from rekindle.model.describing import describe, missing, recall

_GIVEN: ContextVar[dict[str, Any] | None] = ContextVar("given_hyperparameters", default=None)


class AttributeDict(dict[str, Any]):
    """A dict whose keys are attributes too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            known = ", ".join(map(str, self)) or "none"
            raise AttributeError(
                f"there is no hyperparameter {name!r}; known are {known}"
            ) from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        del self[name]

    def __repr__(self) -> str:
        width = max((len(str(key)) for key in self), default=0) + 3
        named = [(f'"{key}":', self[key]) for key in sorted(self)]
        return "\n".join(f"{name:{width}s} {value}" for name, value in named)


@contextlib.contextmanager
def given(values: Mapping[str, Any], **about: Any) -> Iterator[None]:
    """Objects that are made inside keep these as their arguments, whatever they are made with."""
    token = _GIVEN.set({**values, **about})
    try:
        yield
    finally:
        _GIVEN.reset(token)


class HyperparametersMixin:
    """Gives a class `save_hyperparameters` and `hparams`."""

    _hparams: Any
    _hparams_initial: Any
    _hparams_name: str | None = None
    _log_hyperparams: bool = True
    _constructor_arguments: dict[str, Any]
    """What the object was made with, saved or not: it tells one run from another."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Note the arguments, by name."""
        made = super().__new__(cls)
        # object.__setattr__: nn.Module's own refuses before its __init__ has run.
        object.__setattr__(made, "_constructor_arguments", _bound(cls, args, kwargs))
        return made

    def save_hyperparameters(
        self,
        *args: Any,
        ignore: Sequence[str] | str | None = None,
        frame: FrameType | None = None,
        logger: bool = True,
    ) -> None:
        """Keep the constructor's arguments as `hparams`: all, those named, or one mapping given.

        `ignore` leaves names out, also those that a base class has saved; `frame` is where to look
        for the arguments, by default the caller's. With `logger` False the loggers do not get them.
        Raises TypeError for a name that is no argument, and ValueError for a single value that is
        no mapping or Namespace.
        """
        self._log_hyperparams = logger
        if len(args) == 1 and not args[0]:
            return
        arguments = _GIVEN.get()
        if arguments is None:
            frame = frame or getattr(inspect.currentframe(), "f_back", None)
            arguments = _arguments(self, frame)
        left = [ignore] if isinstance(ignore, str) else list(ignore or ())
        arguments = {name: value for name, value in arguments.items() if name not in left}
        containers = [one for one in args if not isinstance(one, str)]
        if len(containers) == 1:
            chosen: Any = containers[0]
            self._hparams_name = next((n for n, v in arguments.items() if v is chosen), None)
        elif not args:
            chosen = arguments
            self._hparams_name = "kwargs" if arguments else None
        else:
            unknown = [one for one in args if one not in arguments]
            if unknown:
                raise TypeError(
                    f"save_hyperparameters({unknown[0]!r}): {type(self).__name__} takes no such "
                    f"argument; it has {', '.join(arguments) or 'none'}"
                )
            chosen = {name: arguments[name] for name in args}
            self._hparams_name = "kwargs"
        self._set_hparams(chosen)
        for name in left:
            self._hparams.pop(name, None)
        values = {name: _copied(value) for name, value in dict(self._hparams).items()}
        object.__setattr__(self, "_hparams_initial", AttributeDict(values))

    def remove_ignored_hparams(self, ignore_list: Sequence[str]) -> None:
        """Take saved arguments out again, such as those that a base class has saved."""
        for name in ignore_list:
            self.hparams.pop(name, None)

    def _set_hparams(self, chosen: Any) -> None:
        found = _container(chosen)
        if isinstance(found, AttributeDict) and isinstance(self.hparams, dict):
            self.hparams.update(found)
        else:
            object.__setattr__(self, "_hparams", found)

    @property
    def hparams(self) -> Any:
        """The saved arguments, to be read and changed; empty before `save_hyperparameters`."""
        if "_hparams" not in self.__dict__:
            object.__setattr__(self, "_hparams", AttributeDict())
        return self.__dict__["_hparams"]

    @property
    def hparams_initial(self) -> AttributeDict:
        """A copy of the arguments as they were when they were saved."""
        values = self.__dict__.get("_hparams_initial", {})
        return AttributeDict({name: _copied(value) for name, value in values.items()})


def described(owner: Any) -> dict[str, Any]:
    """What a checkpoint holds of an object's hyperparameters: plain values by name."""
    return {
        str(name): describe(value) for name, value in dict(getattr(owner, "hparams", {})).items()
    }


def recalled(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The hyperparameters that a checkpoint holds, with `Missing` for what it only describes."""
    return {name: recall(value) for name, value in stored.items()}


def arguments(
    cls: type, saved: Mapping[str, Any], name: str | None, override: Mapping[str, Any]
) -> dict[str, Any]:
    """What to make an object with, from the hyperparameters of a checkpoint and what is given.

    `name` is the argument that held all of them as one, if there was one. Raises TypeError naming
    the argument that the checkpoint could only describe.
    """
    parameters = inspect.signature(cls.__init__).parameters.values()  # type: ignore[misc]
    names = [
        p.name for p in list(parameters)[1:] if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    values = {**saved, **override}
    if name and name in names:
        values = {name: AttributeDict(values), **override}
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        values = {key: value for key, value in values.items() if key in names}
    for key, value in values.items():
        lost = missing(value)
        if lost is not None:
            raise TypeError(
                f"{cls.__name__}({key}=) was {lost!r}, which a checkpoint describes and cannot "
                f"hold; give it: {cls.__name__}.load_from_checkpoint(path, {key}=...)"
            )
    return values


def from_file(path: str) -> dict[str, Any]:
    """The hyperparameters in a file: ``.yaml``, ``.yml`` or a ``.csv`` of keys and values."""
    kind = Path(path).suffix.lower()
    if kind in (".yaml", ".yml"):
        import yaml

        return dict(yaml.safe_load(Path(path).read_text()) or {})
    if kind != ".csv":
        raise ValueError(f"hparams_file={path!r} must end with .yaml, .yml or .csv")
    with open(path, newline="") as file:
        rows = list(csv.reader(file))[1:]
    return {key: _value(text) for key, text in rows}


def _value(text: str) -> Any:
    if text in ("True", "False", "None"):
        return {"True": True, "False": False, "None": None}[text]
    try:
        return json.loads(text)
    except ValueError:
        return text


def _arguments(owner: Any, frame: FrameType | None) -> dict[str, Any]:
    """The arguments of the constructors of `owner` that run; those of the outermost one win."""
    if is_dataclass(owner):
        return {each.name: getattr(owner, each.name) for each in fields(owner) if each.init}
    found: list[dict[str, Any]] = []
    while frame is not None:
        info = inspect.getargvalues(frame)
        constructs = frame.f_code.co_name == "__init__" and bool(info.args)
        if constructs and info.locals.get(info.args[0]) is owner:
            named = {name: info.locals[name] for name in info.args[1:] if name in info.locals}
            if info.keywords:
                named |= info.locals.get(info.keywords, {})
            found.append(named)
        elif found:
            break
        frame = frame.f_back
    return {name: value for named in found for name, value in named.items()}


def _bound(cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    owner = next(base for base in cls.__mro__ if "__init__" in vars(base))
    signature = inspect.signature(vars(owner)["__init__"])
    try:
        bound = signature.bind(None, *args, **kwargs)
    except TypeError:
        # The constructor itself raises the better message a moment later; a copy gets its own.
        return {}
    bound.apply_defaults()
    named = dict(list(bound.arguments.items())[1:])
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            named.update(named.pop(name, {}))
        elif parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            named.pop(name, None)
    return named


def _container(chosen: Any) -> Any:
    if isinstance(chosen, Namespace):
        return AttributeDict(vars(chosen))
    if isinstance(chosen, dict):
        return AttributeDict(chosen)
    if isinstance(chosen, MutableMapping):
        return chosen
    advice = "give a dict, a Namespace, or names of arguments"
    if is_dataclass(chosen):
        advice = "give dataclasses.asdict(...), or no argument to keep it as one value"
    raise ValueError(f"save_hyperparameters got a {type(chosen).__name__}; {advice}")


def _copied(value: Any) -> Any:
    if isinstance(value, nn.Module):
        return value
    try:
        return copy.deepcopy(value)
    except Exception:
        # A lock, a generator: there is but one of it.
        return value
