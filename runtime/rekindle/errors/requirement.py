"""Checks have stable codes; this is the error that a failed check raises.

The message of every check starts with its code (``R7 micro_batch=64 ...``), so that people can
search for it and the operator can put it into a condition. The group in front of the slash
(``Topology/R13``) tells which part of a job has to be changed: the model, the data, the store, the
cluster.

A check that fails on one rank has to end every rank with the same message: `CheckFailure` is the
form in which it travels between ranks.
"""

import re
from dataclasses import dataclass

from rekindle.api import Cause

GROUPS = {
    "R1": "ModelContract",
    "R2": "ModelContract",
    "R3": "DataContract",
    "R4": "ModelContract",
    "R5": "Store",
    "R6": "DataContract",
    "R7": "ModelContract",
    "R8": "Progress",
    "R9": "DataContract",
    "R10": "Lifecycle",
    "R11": "Restore",
    "R12": "DataContract",
    "R12b": "DataContract",
    "R13": "Topology",
    "R14": "Topology",
    "R15": "Store",
    "R16": "Store",
    "R17": "Lifecycle",
    "R18": "Lifecycle",
    "R20": "Progress",
    "R21": "Store",
    "R23": "Restore",
    "R24": "Lifecycle",
    "R25": "Store",
}
"""Group of each code: the word before the slash in a condition's reason."""

_CONFIGURATION = {"R5", "R9", "R11", "R12", "R12b", "R13", "R14", "R21", "R23", "R25"}
_CODE = re.compile(r"^(R\d{1,2}b?)\b")


class RequirementError(Exception):
    """A check refused; the message begins with the check's code."""

    def __init__(self, message: str, *, transient: bool = False) -> None:
        super().__init__(message)
        self.code = code_of(message)
        self.transient = transient
        """Whether it may succeed later without anybody changing anything."""


@dataclass(frozen=True, kw_only=True)
class CheckFailure:
    """A failed check on its way to the other ranks."""

    rank: int
    message: str
    transient: bool = False


def passes(error: BaseException) -> bool:
    """Whether an error of ours comes from something that may be over at the next try.

    A store that gives no answer may be down, or slow; that it refuses is an answer.
    """
    current: BaseException | None = error
    while current is not None:
        ours = type(current).__module__.startswith("rekindle.")
        if ours and getattr(current, "transient", False):
            return True
        current = current.__cause__
    return False


def code_of(message: str) -> str | None:
    """The code that a message begins with, None for messages of no check."""
    match = _CODE.match(message)
    return match.group(1) if match and match.group(1) in GROUPS else None


def reason_of(code: str) -> str:
    """``Group/Code``, as conditions carry it."""
    return f"{GROUPS[code]}/{code}"


def cause_of(code: str) -> Cause:
    """Whose fault a failed check is."""
    if code == "R16":
        return Cause.INTEGRITY
    if code == "R15":
        # A writer that lost its lease was replaced; the replacement carries on, nothing is wrong.
        return Cause.PEER_LOST
    return Cause.CONFIGURATION if code in _CONFIGURATION else Cause.USER_ERROR
