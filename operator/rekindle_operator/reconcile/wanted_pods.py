"""Which pods there should be: the ones to create, and the ones that nobody wants any more.

Each index has one pod that stays. A pod that has to go gets its successor while it still trains, on
another node; one that is lost is replaced under a new name beside it, because the name of the old
one may stay taken for as long as its node does not answer, and deleted by force only where its node
is known to be gone. A pod that no node takes, and that keeps away from one which nobody avoids any
more, is made anew. Names that are used up are remembered in the
record, and replacements come at a limited rate whatever took their predecessors.
"""

from dataclasses import replace
from typing import Any

from rekindle.api.spec import TrainingJob
from rekindle_operator.failures.pod_signs import AT_ONCE
from rekindle_operator.observed.observations import Observed, Pod
from rekindle_operator.plan import Deletion
from rekindle_operator.pods import manifests
from rekindle_operator.rounds import rounds, stragglers
from rekindle_operator.status.status import JobRecord

REPLACE_SECONDS = 20.0
"""How often all pods of a job may be replaced for long, once a first burst is through."""
KEEP_FINISHED = 5
"""Finished pods that are kept while the job runs, for their logs."""


def note_template(job: TrainingJob, record: JobRecord) -> tuple[TrainingJob, JobRecord]:
    """Remember what else the present template was called, for as long as it is the present one."""
    if record.template != job.template_hash:
        record = replace(record, template=job.template_hash, template_alias=job.earlier_hash)
    return replace(job, template_alias=record.template_alias), record


def note_names(job: TrainingJob, record: JobRecord, observed: Observed, now: float) -> JobRecord:
    """Remember names that are used up although nobody could write that down in advance."""
    used = dict(record.generations or {})
    fresh = [pod for pod in observed.pods if pod.generation > used.get(pod.index, -1)]
    if not fresh:
        return record
    for pod in fresh:
        used[pod.index] = max(pod.generation, used.get(pod.index, -1))
    left = _tokens(job, record, now) - sum(pod.generation > 0 for pod in fresh)
    return replace(record, generations=used, tokens=(max(left, 0.0), now))


def missing(
    job: TrainingJob,
    record: JobRecord,
    observed: Observed,
    now: float,
    *,
    runtime_image: str = manifests.RUNTIME_IMAGE,
) -> tuple[list[dict[str, Any]], JobRecord, float]:
    """A pod for every index that has none which stays or is done; seconds to wait for the rest.

    Replacements are created at a limited rate, whatever the reason for which their predecessors
    went: something in the cluster may delete pods as fast as they come.
    """
    used, tokens = dict(record.generations or {}), _tokens(job, record, now)
    inside = {m.uid for m in observed.round.members} if observed.round else set()
    missing: list[dict[str, Any]] = []
    mtbf = record.seconds_between_failures(now)
    pause = 0.0
    avoid = _avoided(record, observed)
    for index in range(job.pods):
        valid = [pod for pod in observed.of_index(index) if rounds.wanted(job, pod)]
        if any(observed.stays(pod) or pod.succeeded for pod in valid):
            continue
        outside = [pod for pod in valid if pod.alive and pod.uid not in inside]
        if any(not observed.lost(pod) for pod in outside):
            continue  # Told to go before it has come to train: its successor waits for its end.
        generation = used.get(index, -1) + 1
        if generation and tokens < 1.0:
            pause = REPLACE_SECONDS / job.pods
            break
        tokens -= 1.0 if generation else 0.0
        used[index] = generation
        missing.append(
            manifests.pod(job, index, generation, mtbf, avoid, runtime_image=runtime_image)
        )
    if missing and not observed.hindered:  # else the same names are tried again
        record = replace(record, generations=used, tokens=(tokens, now))
    return missing, record, pause


def _tokens(job: TrainingJob, record: JobRecord, now: float) -> float:
    """How many replacements may be created now."""
    most = 2.0 * job.pods + 4.0
    if record.tokens is None:
        return most
    left, at = record.tokens
    return min(most, left + max(0.0, now - at) * job.pods / REPLACE_SECONDS)


def _avoided(record: JobRecord, observed: Observed) -> manifests.Avoid:
    """Where no new pod should go: nodes that go, and rather not those that may or were slow."""
    known = observed.nodes or {}
    slow = stragglers.nodes(record.slow or {})
    hosts: dict[bool, set[str]] = {
        True: {known[name].hostname if name in known else name for name in slow},
        False: set(),
    }
    for pod in observed.pods:
        node, told = observed.node_of(pod), observed.node_notices(pod)
        if node and told and not node.gone:
            hosts[all(notice.advice for notice in told)].add(node.hostname)
        elif pod.node and pod.alive and observed.lost(pod) and not (node and node.gone):
            # Kubernetes may not know yet that nothing can run there.
            hosts[False].add(node.hostname if node else pod.node)
    return manifests.Avoid(never=tuple(sorted(hosts[False])), rather_not=tuple(sorted(hosts[True])))


def unwanted(
    job: TrainingJob, record: JobRecord, observed: Observed, *, hold: bool
) -> list[Deletion]:
    """Pods that nobody wants: scaled down, old template, on a node that goes, long finished."""
    inside = {m.uid for m in observed.round.members} if observed.round else set()
    never = set(_avoided(record, observed).never)
    doomed: list[Deletion] = []
    for pod in observed.pods:
        if (not pod.told or pod.lingers and not pod.deleting) and observed.node_lost(pod):
            doomed.append(deletion(observed, pod))
        elif not pod.alive or pod.deleting:
            continue
        elif (
            not rounds.wanted(job, pod)
            or pod.uid not in inside
            and (_replaceable(observed, pod) or _replaced(observed, pod, inside))
            or pod.unschedulable
            and pod.avoids - never
        ):
            doomed.append(Deletion(name=pod.name, uid=pod.uid))
    doomed.extend(_twins(job, observed, inside))
    finished = [p for p in observed.pods if p.failed and not p.lingers and not p.deleting]
    finished.sort(key=lambda pod: (pod.finished_at or pod.created_at, pod.generation))
    spare = len(finished) - KEEP_FINISHED
    # An incident that has left the status must not come back through the pod that it is about.
    named = {name for i in record.incidents for name in i.victims + i.collateral}
    doomed.extend(
        Deletion(name=pod.name, uid=pod.uid)
        for number, pod in enumerate(finished)
        if pod.uid not in inside and not hold and (number < spare or pod.name not in named)
    )
    return doomed


def lingering(observed: Observed) -> list[Deletion]:
    """Pods that are through but for a sidecar that nobody ends, and have yet to be told so.

    They end by their deadline, and stay for their logs; where no kubelet answers none would hear.
    """
    return [
        Deletion(name=pod.name, uid=pod.uid)
        for pod in observed.pods
        if pod.lingers
        and not pod.deleting
        and not observed.node_lost(pod)
        and (pod.deadline is None or pod.deadline > AT_ONCE)
    ]


def _replaceable(observed: Observed, pod: Pod) -> bool:
    """Whether a pod of no round, that its node tells to go, is of no use any more.

    One that is only advised to go may still train, until its index has a better one.
    """
    told = observed.node_notices(pod)
    if all(notice.advice for notice in told):
        return bool(told) and any(observed.stays(other) for other in observed.of_index(pod.index))
    return True


def _replaced(observed: Observed, pod: Pod, inside: set[str]) -> bool:
    """Whether another pod trains in place of one that is lost, on a node that may come back.

    Nothing is forced: should its kubelet be heard again, it ends what may still run there.
    """
    others = observed.of_index(pod.index)
    return observed.lost(pod) and any(p.uid in inside and observed.stays(p) for p in others)


def deletion(observed: Observed, pod: Pod) -> Deletion:
    """Delete a pod; at once where its kubelet will never confirm that it has ended.

    The fence of the checkpoint store keeps what may still run there from doing harm.
    """
    force = not pod.told and observed.node_lost(pod)
    return Deletion(name=pod.name, uid=pod.uid, force=force)


def _twins(job: TrainingJob, observed: Observed, inside: set[str]) -> list[Deletion]:
    """Slots held by two pods that both stay, because what seemed to go did not: one is enough."""
    by_index: dict[int, list[Pod]] = {}
    for pod in observed.pods:
        if observed.stays(pod) and rounds.wanted(job, pod):
            by_index.setdefault(pod.index, []).append(pod)
    extra: list[Deletion] = []
    for pods in by_index.values():
        pods.sort(key=lambda pod: (pod.uid not in inside, pod.generation))
        extra.extend(Deletion(name=pod.name, uid=pod.uid) for pod in pods[1:])
    return extra
