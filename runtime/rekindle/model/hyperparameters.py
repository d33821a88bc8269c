"""`save_hyperparameters()`: the arguments that an object was made with.

The metaclass binds the arguments before ``__init__`` runs, so nothing has to look into stack
frames. Only values that JSON can hold are kept: they are written into checkpoints and read back by
machines that do not have the script's classes.
"""

import inspect
from collections.abc import Iterator, MutableMapping
from typing import Any


class Recorded(type):
    """Metaclass that keeps the arguments of the constructor call."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        """Make an instance, noting the arguments by name first."""
        instance: Any = object.__new__(cls)  # type: ignore[arg-type]
        # Not setattr(): nn.Module's own refuses before its __init__ has run.
        object.__setattr__(instance, "_constructor_arguments", _bind(cls, args, kwargs))
        instance.__init__(*args, **kwargs)
        return instance


def _bind(cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    signature = inspect.signature(vars(_owner(cls))["__init__"])
    try:
        bound = signature.bind(None, *args, **kwargs)
    except TypeError:
        # The constructor itself raises the better message a moment later.
        return {}
    bound.apply_defaults()
    named = dict(list(bound.arguments.items())[1:])
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            named.update(named.pop(name, {}))
        elif parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            named.pop(name, None)
    return named


def _owner(cls: type) -> type:
    return next(base for base in cls.__mro__ if "__init__" in vars(base))


class Hyperparameters(MutableMapping[str, Any]):
    """Arguments by name: a mapping whose keys are attributes too."""

    def __init__(self, values: dict[str, Any]) -> None:
        object.__setattr__(self, "_values", dict(values))

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._values[key] = value

    def __delitem__(self, key: str) -> None:
        del self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __getattr__(self, name: str) -> Any:
        values = self.__dict__.get("_values", {})
        if name in values:
            return values[name]
        raise AttributeError(
            f"there is no hyperparameter {name!r}; known are {', '.join(values) or 'none'}"
        )

    def __setattr__(self, name: str, value: Any) -> None:
        self._values[name] = value

    def __repr__(self) -> str:
        return f"Hyperparameters({self._values!r})"


class HyperparametersMixin:
    """Gives a class `save_hyperparameters` and `hparams`."""

    _constructor_arguments: dict[str, Any]

    def save_hyperparameters(self, *names: str, ignore: tuple[str, ...] | list[str] = ()) -> None:
        """Keep the constructor's arguments (all, or those named) as `hparams`.

        Raises TypeError naming the argument that a checkpoint cannot hold.
        """
        arguments = self.__dict__.get("_constructor_arguments", {})
        missing = [name for name in names if name not in arguments]
        if missing:
            raise TypeError(
                f"save_hyperparameters({missing[0]!r}): {type(self).__name__} takes no such "
                f"argument; it has {', '.join(arguments)}"
            )
        chosen = {
            name: value
            for name, value in arguments.items()
            if (not names or name in names) and name not in ignore
        }
        for name, value in chosen.items():
            _check(value, f"{type(self).__name__}({name}=)")
        object.__setattr__(self, "_hparams", Hyperparameters(chosen))

    @property
    def hparams(self) -> Hyperparameters:
        """The saved arguments; empty before `save_hyperparameters`."""
        if "_hparams" not in self.__dict__:
            object.__setattr__(self, "_hparams", Hyperparameters({}))
        found: Hyperparameters = self.__dict__["_hparams"]
        return found


def _check(value: object, name: str) -> None:
    if value is None or isinstance(value, bool | int | float | str):
        return
    if isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check(item, f"{name}[{index}]")
        return
    if isinstance(value, dict):
        for key, item in value.items():
            _check(item, f"{name}[{key!r}]")
        return
    raise TypeError(
        f"hyperparameter {name} is a {type(value).__name__}, which JSON cannot hold; leave it out: "
        f"save_hyperparameters(ignore=[...])"
    )
