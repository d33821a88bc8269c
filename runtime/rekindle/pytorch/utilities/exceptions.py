"""Errors that scripts raise and catch."""

from rekindle.outcome import Preempted

SIGTERMException = Preempted
"""What ends a run that was told to go: state is saved, and the process ends with exit code 75."""


class MisconfigurationException(Exception):
    """Something is put together wrongly. For scripts that raise it.

    Errors of ours about flags are ValueError and TypeError, those of checks `RequirementError`.
    """
