"""What a decision about a job answers with: values that the shell applies, in their order.

Nothing here does anything. The order is part of the promise: see ``reconcile`` for why each step
may be the last one that this operator takes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rekindle.api import Directive, Round
from rekindle_operator.incidents.incidents import Incident


@dataclass(frozen=True, kw_only=True)
class Deletion:
    """A pod to delete; the uid makes sure that it is still the one that was meant."""

    name: str
    uid: str
    force: bool = False


@dataclass(frozen=True, kw_only=True)
class Event:
    """A Kubernetes event about the job."""

    kind: str
    """Normal or Warning."""
    reason: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to do, in this order."""

    create: tuple[dict[str, Any], ...] = ()
    delete: tuple[Deletion, ...] = ()
    end: tuple[Deletion, ...] = ()
    """Pods that are through but for a sidecar: that is ended, the pod and its logs stay."""
    status: Mapping[str, Any] = field(default_factory=dict)
    publish: Round | None = None
    forget_round: bool = False
    directives: Mapping[str, Directive] = field(default_factory=dict)
    """By uid of the pod; complete: an agent that is not named is asked nothing."""
    events: tuple[Event, ...] = ()
    remove_job: bool = False
    requeue: float | None = None
    """Call again after this many seconds even if nothing happens."""
    incidents: tuple[Incident, ...] = ()
    """Incidents that are new in this plan, for the metrics."""
    resolved: tuple[Incident, ...] = ()
    """Incidents that this plan closes, for the metrics."""
    measured: tuple[Incident, ...] = ()
    """Incidents of which all members have now told where the time went, for the metrics."""
