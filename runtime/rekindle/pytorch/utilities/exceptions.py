"""Errors that scripts raise and catch."""

from rekindle.errors import misconfiguration
from rekindle.errors.outcome import Preempted

MisconfigurationException = misconfiguration.MisconfigurationException
SIGTERMException = Preempted
"""What ends a run that was told to go: state is saved, and the process ends with exit code 75."""
