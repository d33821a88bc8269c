"""When a change of a job's spec takes effect: one row for each field.

What can be told of a change: the operator acts by the newest spec, so what it decides by
itself holds at once. What workers go by reaches them with the environment of their next round,
which any stop brings. What a pod is made of needs another pod, and the old one saves first; what
is not worth that holds for the pods that come by themselves.

The schema says the same words in the description of each field, so that ``kubectl explain`` tells
them. A field of the schema that is in no row here is a mistake, and a test finds it.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any


class Effect(StrEnum):
    """When a change takes effect, in the words that the schema uses."""

    AT_ONCE = "A change takes effect at once"
    NEXT_ROUND = "A change takes effect with the next round"
    LATER_PODS = "A change holds for pods that are created from then on"
    NEW_PODS = "A change replaces the pods, after a save"
    NEVER = "It cannot be changed"


EFFECTS: Mapping[str, Effect] = {
    "replicas": Effect.AT_ONCE,
    "elastic.minReplicas": Effect.AT_ONCE,
    "elastic.maxReplicas": Effect.AT_ONCE,
    "elastic.spares": Effect.AT_ONCE,
    "procPerNode": Effect.NEW_PODS,
    "template": Effect.NEW_PODS,
    "progress": Effect.LATER_PODS,
    "launcher": Effect.NEW_PODS,
    "checkpoint.uri": Effect.NEVER,
    "checkpoint.secretRef": Effect.NEW_PODS,
    "checkpoint.endpointUrl": Effect.NEW_PODS,
    "checkpoint.region": Effect.NEW_PODS,
    "checkpoint.addressing": Effect.NEW_PODS,
    "checkpoint.commit": Effect.NEW_PODS,
    "checkpoint.every": Effect.NEXT_ROUND,
    "checkpoint.keep": Effect.NEXT_ROUND,
    "restart": Effect.AT_ONCE,
    "capacity.slowNodes": Effect.AT_ONCE,
    "capacity.notices": Effect.AT_ONCE,
    "hang.timeout": Effect.NEXT_ROUND,
    "deadlines": Effect.AT_ONCE,
    "suspend": Effect.AT_ONCE,
    "ttlSecondsAfterFinished": Effect.AT_ONCE,
    "cleanPods": Effect.AT_ONCE,
}
"""Path below ``spec`` -> when a change of it, or of anything below it, takes effect."""


def between(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Effect]:
    """The rows in which two specs differ."""
    return {
        path: effect for path, effect in EFFECTS.items() if _value(old, path) != _value(new, path)
    }


def told(found: Mapping[str, Effect]) -> str:
    """What has changed and when that takes effect, in words; empty for no change."""
    parts = []
    for effect in Effect:
        paths = [f"spec.{path}" for path, its in found.items() if its is effect]
        if paths:
            parts.append(f"{', '.join(paths)}: {effect[0].lower()}{effect[1:]}")
    return "; ".join(parts)


def _value(spec: Mapping[str, Any], path: str) -> Any:
    value: Any = spec
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
