"""How many workers a job is for: what its script's batch is meant for, and how many are of use.

The batch of a job does not depend on who is there first, so workers are told how many the job wants
in all. Once it is fixed it is work for so many workers and no more; how many, only the script
knows, and its agents tell. Pods beyond that would train nothing and yet be able to break a round:
they are spares, whatever ``replicas`` says. Some scripts cannot go on with fewer workers than they
began with, which their agents tell as well: then a round waits for so many, whatever
``minReplicas`` says.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from rekindle.api import Member
from rekindle.api.spec import TrainingJob
from rekindle_operator.observed.observations import Observed


def wanted_workers(job: TrainingJob, members: Sequence[Member]) -> int:
    """How many workers the job has when all pods that it wants are there, those of a round given.

    Pods that are missing are taken to be like the largest that is there.
    """
    nproc = [member.nproc for member in members]
    return sum(nproc) + max(0, job.replicas - len(nproc)) * max(nproc)


def useful_world(observed: Observed) -> int | None:
    """Of more workers than these some have nothing to do; None: nobody knows of such a number."""
    useful = {uid: agent.report.useful_world for uid, agent in observed.agents.items()}
    return _told(useful, observed)


def useful_pods(job: TrainingJob, observed: Observed) -> int:
    """How many pods a round may have: those that are wanted, as far as they have something to do.

    A pod is of use when one of its workers is.
    """
    useful = useful_world(observed)
    return job.replicas if useful is None else min(job.replicas, _pods(useful, observed))


def least_world(observed: Observed) -> int | None:
    """Fewer workers than these cannot go on; None: nobody knows of such a number."""
    least = {uid: agent.report.least_world for uid, agent in observed.agents.items()}
    return _told(least, observed)


def least_pods(observed: Observed) -> int:
    """How many pods a round needs for its workers to be able to go on at all."""
    least = least_world(observed)
    return 1 if least is None else _pods(least, observed)


def _told(numbers: Mapping[str, int | None], observed: Observed) -> int | None:
    """What agents say; members of the round know best, others may know an old number."""
    inside = {m.uid for m in observed.round.members} if observed.round else set()
    told = {uid: number for uid, number in numbers.items() if number}
    members = [number for uid, number in told.items() if uid in inside]
    return max(members or told.values(), default=None)


def _pods(workers: int, observed: Observed) -> int:
    """How many pods have so many workers."""
    nproc = min((agent.report.nproc for agent in observed.agents.values()), default=1)
    return -(-workers // nproc)


def in_use(job: TrainingJob, observed: Observed) -> TrainingJob:
    """The job as if it wanted no more pods than are of use, and the others as spares.

    And as if it asked for as many as its script can go on with.
    """
    most = useful_pods(job, observed)
    least = min(max(job.min_replicas, least_pods(observed)), most)
    if (most, least) == (job.replicas, job.min_replicas):
        return job
    return replace(job, replicas=most, min_replicas=least, spares=job.pods - most)


def too_few(job: TrainingJob, observed: Observed) -> str | None:
    """What a round waits for that no pod of this job can be: more replicas; None if they do."""
    least = least_pods(observed)
    if least <= job.replicas:
        return None
    return (
        f"spec.replicas of at least {least} (it is {job.replicas}): the script can go on from its "
        f"checkpoints with no fewer pods"
    )


def why_fewer(job: TrainingJob, asked: int) -> str:
    """Why a round gets smaller that has more members than this job wants or can use."""
    if job.replicas == asked:
        return f"scaled down to {asked}"
    return f"{job.replicas} of {asked} pods have something to do, the others become spares"
