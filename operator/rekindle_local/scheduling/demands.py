"""What a pod takes: the requests and limits of its containers, added up as Kubernetes adds them.

An init container runs beside the sidecars before it, the regular containers beside all of them; a
pod takes the largest of these moments. The scheduler and the API server's quotas count alike.
"""

from collections import defaultdict
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from rekindle_local.quantity import parse_quantity

Json = dict[str, Any]
Amounts = dict[str, Fraction]


def requested(container: Json) -> Amounts:
    """What a container asks for; where it names only a limit, that."""
    resources = container.get("resources") or {}
    merged = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
    return {name: parse_quantity(text) for name, text in merged.items()}


def limited(container: Json) -> Amounts:
    """What a container may take at most, as far as it says so."""
    limits = (container.get("resources") or {}).get("limits") or {}
    return {name: parse_quantity(text) for name, text in limits.items()}


def total(spec: Json, of: Callable[[Json], Amounts]) -> Amounts:
    """The amounts of a whole pod spec, its overhead included."""
    whole: dict[str, Fraction] = defaultdict(Fraction)
    beside: dict[str, Fraction] = defaultdict(Fraction)
    peak: dict[str, Fraction] = defaultdict(Fraction)
    for container in spec.get("containers") or ():
        for name, amount in of(container).items():
            whole[name] += amount
    for container in spec.get("initContainers") or ():
        sidecar = container.get("restartPolicy") == "Always"
        for name, amount in of(container).items():
            if sidecar:
                beside[name] += amount
            peak[name] = max(peak[name], beside[name] + (0 if sidecar else amount))
    for name in {*beside, *peak}:
        whole[name] = max(whole[name] + beside[name], peak[name])
    for name, text in (spec.get("overhead") or {}).items():
        whole[name] += parse_quantity(text)
    return dict(whole)
