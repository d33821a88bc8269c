"""Whose an object is that has the name of a child, and what of a child has been changed by others.

A job's children have names that follow from it, so an object may be there before the job wants it:
left over when an earlier job of that name was deleted without them (``--cascade=orphan``), on its
way out with that job, or somebody else's. And what is there may be edited. What was ours is taken
over or put right; what is somebody else's is waited for, and never touched.
"""

import re
from collections.abc import Mapping
from enum import StrEnum, auto
from typing import Any

from rekindle.api import KIND, LABEL_GENERATION, LABEL_INDEX
from rekindle_operator.merge_patch import merge_patch
from rekindle_operator.observed.observations import LABEL_TEMPLATE
from rekindle_operator.pods.manifests import selector

_NUMBERS = re.compile(r"(?P<job>.+)-(?P<index>\d+)(?:r(?P<generation>\d+))?")
"""The name of a pod; see resources.pod_name."""


class Claim(StrEnum):
    """Whose an object of a child's name is."""

    OURS = auto()
    ORPHAN = auto()
    """It was a child of a job of this name, and belongs to nobody now."""
    GOING = auto()
    """It is being deleted, or belongs to an earlier job of this name and will be."""
    TAKEN = auto()
    """Somebody else's."""


def claim(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> Claim:
    """Whose ``found`` is, which has the name that the child ``wanted`` is to have."""
    meta, owner = found["metadata"], wanted["metadata"]["ownerReferences"][0]
    owners = meta.get("ownerReferences") or ()
    if any(other.get("uid") == owner["uid"] for other in owners):
        return Claim.OURS
    if meta.get("deletionTimestamp"):
        return Claim.GOING
    if any((other.get("kind"), other.get("name")) == (KIND, owner["name"]) for other in owners):
        return Claim.GOING
    labels = meta.get("labels") or {}
    return Claim.ORPHAN if not owners and _carries(labels, owner["name"]) else Claim.TAKEN


def _carries(labels: Mapping[str, Any], job: str) -> bool:
    return selector(job).items() <= labels.items()


def mend(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The merge patch that makes a secret or service what it should be; empty if it is."""
    patch = _mend_owner(found["metadata"], wanted["metadata"]["ownerReferences"][0])
    labels = found["metadata"].get("labels") or {}
    missing = {k: v for k, v in wanted["metadata"]["labels"].items() if labels.get(k) != v}
    if missing:
        patch["labels"] = missing
    whole: dict[str, Any] = {"metadata": patch} if patch else {}
    if wanted["kind"] == "Secret":
        data = merge_patch(found.get("data") or {}, wanted["data"])
        whole |= {"data": data} if data else {}
    if wanted["kind"] == "Service":
        spec = _mend_service(found.get("spec") or {}, wanted["spec"])
        whole |= {"spec": spec} if spec else {}
    return whole


def _mend_owner(meta: Mapping[str, Any], owner: Mapping[str, Any]) -> dict[str, Any]:
    owners = list(meta.get("ownerReferences") or ())
    if any(other.get("uid") == owner["uid"] for other in owners):
        return {}
    return {"ownerReferences": [*owners, dict(owner)]}


def _mend_service(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Its address cannot be changed; all else that matters can."""
    patch: dict[str, Any] = {}
    selects = merge_patch(found.get("selector") or {}, wanted["selector"])
    if selects:
        patch["selector"] = selects
    ports = found.get("ports") or ()
    same = len(ports) == len(wanted["ports"]) and all(
        port.items() <= other.items() for port, other in zip(wanted["ports"], ports, strict=True)
    )
    if not same:
        patch["ports"] = wanted["ports"]
    key = "publishNotReadyAddresses"
    if found.get(key) != wanted[key]:
        patch[key] = wanted[key]
    return patch


def as_made(
    body: Mapping[str, Any], known: Mapping[str, Any] | None, owner: Mapping[str, Any]
) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """A pod of ours with the labels and the owner that it was made with, and the patch for that.

    ``known`` is the pod as it was when last seen. Without it, its name tells index and generation.
    """
    meta = body["metadata"]
    labels = meta.get("labels") or {}
    wanted = {**selector(owner["name"])}
    numbers = _NUMBERS.fullmatch(meta["name"])
    if numbers and numbers["job"] == owner["name"]:
        wanted[LABEL_INDEX] = numbers["index"]
        wanted[LABEL_GENERATION] = numbers["generation"] or "0"
    before = (known or {}).get("metadata", {}).get("labels") or {}
    if LABEL_TEMPLATE in before:
        wanted[LABEL_TEMPLATE] = before[LABEL_TEMPLATE]
    patch = _mend_owner(meta, owner)
    missing = {key: value for key, value in wanted.items() if labels.get(key) != value}
    if missing:
        patch["labels"] = missing
    if not patch:
        return body, {}
    right = {**meta, **patch, "labels": {**labels, **missing}}
    return {**body, "metadata": right}, {"metadata": patch}
