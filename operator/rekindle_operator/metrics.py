"""Every metric that the operator exports.

Job names are no labels: a cluster sees any number of jobs in its life, and a series for each would
stay for ever. What is true of one job is in its status; here is what is true of all.
"""

import collections
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from rekindle_operator.status import fleet, status

REGISTRY = CollectorRegistry()

RECONCILE_SECONDS = Histogram(
    "rekindle_reconcile_seconds",
    "Time of one reconcile of one job, with its calls to the API server",
    buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10),
    registry=REGISTRY,
)
RECONCILE_ERRORS = Counter(
    "rekindle_reconcile_errors_total",
    "Reconciles that failed and were tried again",
    registry=REGISTRY,
)
EVENT_ERRORS = Counter(
    "rekindle_event_errors_total",
    "Events of watches that could not be understood",
    registry=REGISTRY,
)
EVENTS_LOST = Counter(
    "rekindle_events_lost_total",
    "Kubernetes events that could not be posted",
    registry=REGISTRY,
)
INCIDENTS = Counter("rekindle_incidents_total", "Incidents by cause", ["cause"], registry=REGISTRY)
RECOVERY_SECONDS = Histogram(
    "rekindle_recovery_seconds",
    "From an incident to the next completed step",
    buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800),
    registry=REGISTRY,
)
RECOVERY_PHASE_SECONDS = Histogram(
    "rekindle_recovery_phase_seconds",
    "Parts of a recovery, from the first sign of trouble to the first step",
    ["phase"],
    buckets=(0.01, 0.03, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800),
    registry=REGISTRY,
)
LOST_SECONDS = Counter(
    "rekindle_lost_seconds_total",
    "Seconds lost to incidents, by class",
    ["class"],
    registry=REGISTRY,
)
ROUNDS = Counter("rekindle_rounds_total", "Rounds published", registry=REGISTRY)
AGENTS = Gauge(
    "rekindle_agents", "Agents that have reported and whose pod lives", registry=REGISTRY
)
REFUSED = Counter(
    "rekindle_agent_requests_refused_total",
    "Requests of agents that were refused, by status code",
    ["code"],
    registry=REGISTRY,
)
DROPPED = Counter(
    "rekindle_connections_dropped_total",
    "Connections that were closed because there were too many of their kind",
    registry=REGISTRY,
)


class FleetCollector(Collector):
    """What is true of all jobs at the moment of a scrape (see rekindle_operator.status.fleet)."""

    def __init__(self) -> None:
        self.jobs: Callable[[], Iterable[tuple[Mapping[str, Any], Mapping[str, Any]]]] = tuple
        """Gives the spec and the status of each job."""
        self.troubled: Callable[[], int] = int
        """Gives the number of jobs whose condition Reconciled is False."""

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Look at all jobs now."""
        described = tuple(self.jobs())
        seen = fleet.look(described, time.time())
        phases = collections.Counter(known.get("phase") or status.PENDING for _, known in described)
        jobs = GaugeMetricFamily("rekindle_jobs", "TrainingJobs by phase", labels=["phase"])
        for phase, number in phases.items():
            jobs.add_metric([phase], number)
        waiting = GaugeMetricFamily(
            "rekindle_job_waiting_seconds_max",
            "Seconds for which the job that waits longest has waited, by where it is",
            labels=["phase"],
        )
        for phase, seconds in seen.waiting.items():
            waiting.add_metric([phase], seconds)
        degraded = GaugeMetricFamily(
            "rekindle_jobs_degraded", "Jobs that need attention, by reason", labels=["reason"]
        )
        for reason, number in seen.degraded.items():
            degraded.add_metric([reason], number)
        longest = GaugeMetricFamily(
            "rekindle_job_degraded_seconds_max",
            "Seconds for which the job that has needed attention longest has, by reason",
            labels=["reason"],
        )
        for reason, seconds in seen.degraded_seconds.items():
            longest.add_metric([reason], seconds)
        return (
            jobs,
            GaugeMetricFamily(
                "rekindle_jobs_not_reconciled",
                "TrainingJobs whose condition Reconciled is False",
                value=self.troubled(),
            ),
            waiting,
            degraded,
            longest,
            GaugeMetricFamily(
                "rekindle_jobs_failed_lately",
                "Jobs that have failed within the last hour",
                value=seen.failed_lately,
            ),
            GaugeMetricFamily(
                "rekindle_job_commit_overdue_seconds_max",
                "Seconds for which a training job has committed nothing beyond its interval",
                value=seen.overdue,
            ),
        )


FLEET = FleetCollector()
REGISTRY.register(FLEET)
