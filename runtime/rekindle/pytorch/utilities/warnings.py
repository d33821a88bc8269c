"""Warnings that may be mistaken, and how to leave them out."""

import warnings


class PossibleUserWarning(UserWarning):
    """A warning about what may be meant so."""


def disable_possible_user_warnings(module: str = "") -> None:
    """Leave out `PossibleUserWarning`, of one module or of all."""
    warnings.filterwarnings("ignore", module=module, category=PossibleUserWarning)
