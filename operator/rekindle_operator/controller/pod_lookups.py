"""What has to be asked about a pod before its end, or what holds it, can be explained.

A pod's status mostly says why, and then nothing is asked. Where it leaves that open (see
`pod_signs` and `pod_waits`) its events are read, or the end of a log: late, once for each state of
a pod, of a few pods at a time, and never for longer than a moment, since a decision waits for the
answer. Without one, because the operator may not read it for example, the decision is made with
what is there.
"""

import asyncio
import logging
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from rekindle_operator.failures import pod_signs, pod_waits
from rekindle_operator.kube.cluster import TROUBLE, KubernetesApi
from rekindle_operator.observed.containers import LOG_LINES, PodEvent, parse_event
from rekindle_operator.observed.observations import Observed, Pod

logger = logging.getLogger(__name__)

PATIENCE = 3.0
"""Seconds for all questions of one decision."""
AGAIN = 20.0
"""Seconds after which the events of a pod that is still held are read again."""
ENDINGS = 8
"""Pods that have ended whose events or logs are read for one decision."""


@dataclass
class Inquiries:
    """What has been asked about the pods of one job."""

    events: dict[str, tuple[PodEvent, ...]] = field(default_factory=dict)
    logs: dict[str, dict[str, str]] = field(default_factory=dict)
    """By uid, both."""
    asked: dict[tuple[str, str], float] = field(default_factory=dict)
    """By uid and question, time.monotonic() of when it was asked last."""

    async def complete(
        self, cluster: KubernetesApi, namespace: str, observed: Observed, known: Collection[str]
    ) -> Observed:
        """What is observed, with the answers; ``known`` are pods whose end has been told."""
        self._forget({pod.uid for pod in observed.pods})
        questions = self._questions(observed, known)
        if questions:
            try:
                async with asyncio.timeout(PATIENCE):
                    await asyncio.gather(
                        *(self._ask(cluster, namespace, pod, what) for pod, what in questions)
                    )
            except TimeoutError:
                logger.warning("events and logs of %d pods took too long", len(questions))
        if not self.events and not self.logs:
            return observed
        pods = tuple(
            replace(
                pod,
                events=self.events.get(pod.uid, ()),
                logs=dict(self.logs.get(pod.uid, {})),
            )
            for pod in observed.pods
        )
        return replace(observed, pods=pods)

    def _questions(self, observed: Observed, known: Collection[str]) -> list[tuple[Pod, str]]:
        now = time.monotonic()
        endings: list[tuple[Pod, str]] = []
        waits: list[tuple[Pod, str]] = []
        for pod in observed.pods:
            agent = observed.agents.get(pod.uid)
            notice = agent.report.notice if agent else None
            if pod.name not in known or pod.vanished_at is not None:
                if pod_signs.needs_events(pod, notice):
                    endings.append((pod, "end" if pod.told else "notice"))
                if pod_signs.needs_log(pod):
                    endings.append((pod, "log"))
            if pod.alive and pod_waits.needs_events(pod_waits.held_of(observed, pod)):
                waits.append((pod, "wait"))
        fresh = [one for one in endings if (one[0].uid, one[1]) not in self.asked][:ENDINGS]
        for pod, what in waits[: pod_waits.LOOKS]:
            if now - self.asked.get((pod.uid, what), -AGAIN) >= AGAIN:
                fresh.append((pod, what))
        for pod, what in fresh:
            self.asked[pod.uid, what] = now
        return fresh

    async def _ask(self, cluster: KubernetesApi, namespace: str, pod: Pod, what: str) -> None:
        try:
            if what == "log":
                name = pod_signs.needs_log(pod) or ""
                text = await cluster.pod_log(namespace, pod.name, name, LOG_LINES)
                self.logs.setdefault(pod.uid, {})[name] = text
            else:
                found = [parse_event(one) for one in await cluster.pod_events(namespace, pod.uid)]
                self.events[pod.uid] = tuple(sorted(found, key=lambda event: event.at))
        except TROUBLE as error:
            about = "log" if what == "log" else "events"
            logger.warning("%s/%s: its %s cannot be read: %s", namespace, pod.name, about, error)

    def _forget(self, there: Collection[str]) -> None:
        for memory in (self.events, self.logs):
            for uid in memory.keys() - there:
                del memory[uid]
        for key in [key for key in self.asked if key[0] not in there]:
            del self.asked[key]


def told(status: Mapping[str, object]) -> set[str]:
    """The pods that the incidents of a status name."""
    incidents = status.get("incidents")
    found: set[str] = set()
    for incident in incidents if isinstance(incidents, list) else ():
        found.update(incident.get("victims") or (), incident.get("collateral") or ())
    return found
