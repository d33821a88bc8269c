"""Attributes and arguments that are looked for in several places."""

import inspect
import pickle
from collections.abc import MutableMapping
from typing import Any

from rekindle.model.hyperparameters import AttributeDict
from rekindle.pytorch.namespace import attributes
from rekindle.pytorch.utilities.rank_zero import rank_zero_warn

__all__ = [
    "AttributeDict",
    "clean_namespace",
    "is_picklable",
    "lightning_getattr",
    "lightning_hasattr",
    "lightning_setattr",
    "parse_class_init_keys",
]
_, __getattr__, __dir__ = attributes(__name__)


def is_picklable(obj: object) -> bool:
    """Whether pickle can write it."""
    try:
        pickle.dumps(obj)
    except (pickle.PickleError, AttributeError, RuntimeError, TypeError):
        return False
    return True


def clean_namespace(hparams: MutableMapping[str, Any]) -> None:
    """Remove what pickle cannot write, with a warning each."""
    for name in [name for name, value in hparams.items() if not is_picklable(value)]:
        rank_zero_warn(
            f"hyperparameter {name!r} is left out: it cannot be pickled. To leave it out without "
            f"this warning: save_hyperparameters(ignore=[{name!r}])"
        )
        del hparams[name]


def parse_class_init_keys(cls: type) -> tuple[str, str | None, str | None]:
    """What a constructor calls ``self``, ``*args`` and ``**kwargs``."""
    parameters = list(inspect.signature(vars_of(cls)).parameters.values())
    kinds = {parameter.kind: parameter.name for parameter in parameters[1:]}
    return (
        parameters[0].name,
        kinds.get(inspect.Parameter.VAR_POSITIONAL),
        kinds.get(inspect.Parameter.VAR_KEYWORD),
    )


def vars_of(cls: type) -> Any:
    """The constructor of a class, as a function."""
    return next(vars(base)["__init__"] for base in cls.__mro__ if "__init__" in vars(base))


def _holders(model: Any, attribute: str) -> list[Any]:
    """What has the attribute or key: the model, its hyperparameters, and the data module's."""
    trainer = vars(model).get("_trainer")
    datamodule = getattr(trainer, "datamodule", None)
    found = []
    for owner in (model, datamodule):
        if owner is None:
            continue
        if hasattr(owner, attribute):
            found.append(owner)
        hparams = getattr(owner, "hparams", None)
        if hparams is not None and attribute in hparams:
            found.append(hparams)
    return found


def lightning_hasattr(model: Any, attribute: str) -> bool:
    """Whether the model, its hyperparameters or the data module have it."""
    return bool(_holders(model, attribute))


def lightning_getattr(model: Any, attribute: str) -> Any:
    """The value in the last of the places that have it; AttributeError when none has."""
    holder = _some(model, attribute)[-1]
    return holder[attribute] if isinstance(holder, MutableMapping) else getattr(holder, attribute)


def lightning_setattr(model: Any, attribute: str, value: Any) -> None:
    """Set it in all places that have it; AttributeError when none has."""
    for holder in _some(model, attribute):
        if isinstance(holder, MutableMapping):
            holder[attribute] = value
        else:
            setattr(holder, attribute, value)


def _some(model: Any, attribute: str) -> list[Any]:
    found = _holders(model, attribute)
    if not found:
        raise AttributeError(
            f"neither the model, nor its hparams, nor the data module has {attribute!r}"
        )
    return found
