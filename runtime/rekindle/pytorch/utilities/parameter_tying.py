"""Parameters that several modules share."""

from functools import reduce

from torch import nn


def find_shared_parameters(module: nn.Module) -> list[list[str]]:
    """The names of each parameter that has more than one."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [found for found in names.values() if len(found) > 1]


def set_shared_parameters(module: nn.Module, shared_params: list[list[str]]) -> nn.Module:
    """Have each list of names mean the parameter that its first name means."""
    for first, *others in shared_params:
        parameter = reduce(getattr, first.split("."), module)
        for name in others:
            *path, last = name.split(".")
            setattr(reduce(getattr, path, module), last, parameter)
    return module
