"""A status that fits: below 64 KiB, whatever has happened to a job and whatever its pods have said.

An object of Kubernetes is kept, sent and watched as a whole, so a status has a size that it may
have. What people look at first keeps its words: the phase, the conditions, the newest incident.
When all of it is too much, incidents say less, the oldest first: the story of an old one is told
by its cause, its cost and the pods it names first. Pods of the newest incidents stay named for as
long as there is room, since a pod that an incident names is not charged once more.
"""

import json
from collections.abc import Mapping
from typing import Any

MOST = 56 * 1024
"""Bytes; what a fault of the operator adds afterwards (condition Reconciled) has room, too."""
MESSAGE = 2000
"""Bytes of a condition's message, and of the one sentence."""
FEW = 5
"""Pods that an incident names when there is no room for more."""
_BRIEF = {"evidence": 300, "action": 150}
_LISTS = ("victims", "collateral", "restored")


def size(value: Any) -> int:
    """Bytes of a value as the API server may keep it: every odd character escaped."""
    text = json.dumps(value)
    return len(text) + 5 * sum(map(text.count, "<>&"))


def cut(text: str, most: int) -> str:
    """A text that takes no more bytes than this."""
    if size(text) <= most:
        return text
    kept = text[:most]
    while kept and size(kept) > most - 5:
        # Each character takes one byte at least and twelve at most.
        kept = kept[: len(kept) - min(max((size(kept) - most + 5) // 12, 1), len(kept))]
    return kept + "..."


def fit(status: dict[str, Any], most: int = MOST) -> dict[str, Any]:
    """The status, with less in it where it is too large."""
    status = _shortened(status)
    incidents = list(status.get("incidents") or ())
    excess = size(status) - most
    for shorter in (_without_details, _brief):
        for index in range(len(incidents) - 1):
            if excess <= 0:
                break
            incidents[index], saved = _replaced(incidents[index], shorter(incidents[index]))
            excess -= saved
    while excess > 0 and len(incidents) > 1:
        excess -= size(incidents.pop(0)) + 2
    for shorter in (_without_details, _brief):
        if excess > 0 and incidents:
            incidents[-1], saved = _replaced(incidents[-1], shorter(incidents[-1]))
            excess -= saved
    if "incidents" in status:
        status = {**status, "incidents": incidents}
    if excess > 0:
        status = _shortened(status, 300)
    return status


def _replaced(old: Mapping[str, Any], new: dict[str, Any]) -> tuple[dict[str, Any], int]:
    return new, size(old) - size(new)


def _shortened(status: dict[str, Any], most: int = MESSAGE) -> dict[str, Any]:
    """With sentences of a bounded length."""
    result = dict(status)
    if isinstance(result.get("message"), str):
        result["message"] = cut(result["message"], most)
    if "conditions" in result:
        result["conditions"] = [
            {**c, "message": cut(c["message"], most)} if "message" in c else c
            for c in result["conditions"]
        ]
    return result


def _without_details(incident: Mapping[str, Any]) -> dict[str, Any]:
    """Without what explains how it went: stacks, and where each pod's state came from."""
    told = {key: value for key, value in incident.items() if key != "stacks"}
    if "restored" in told:
        told["restored"] = [
            {**one, "source": cut(one.get("source", ""), 200)} for one in told["restored"][:FEW]
        ]
    return told


def _brief(incident: Mapping[str, Any]) -> dict[str, Any]:
    """With what must be known of it."""
    told = {key: value for key, value in incident.items() if key not in {"stacks", "restored"}}
    for key in _LISTS:
        if key in told:
            told[key] = told[key][:FEW]
    return told | {k: cut(told[k], limit) for k, limit in _BRIEF.items() if k in told}
