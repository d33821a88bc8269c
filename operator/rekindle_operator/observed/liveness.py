"""Who is heard, and when silence is enough to go on without a pod: pure functions of what is known.

A pod speaks through its agent's reports, once a second, and through its lifeline, which answers
probes. As long as one of both comes in it is alive, whatever anybody says: a node is called
unreachable when its kubelet or the API server is away, and pods train on meanwhile.

Silence alone proves nothing either: the way to here may be broken, or this operator may have stood
still. So it takes a witness that is heard: a peer that cannot reach the pod, the node controller,
the kubelet's word that the pod is not ready any more. Where no other pod of the job is heard, the
way to all of them is the more likely cause, and the witness has to wait. Without any witness a pod
is never lost, and in no new round: it can be told nothing of one.
"""

from dataclasses import dataclass

SILENT = 3.0
"""Seconds without a word after which a pod is not heard. Its agent speaks every second, and its
lifeline is asked when that stays away."""
QUIET = 1.75
"""The same for one on the node of another that is lost: all there fall silent within a second."""
ALONE = 30.0
"""The same before a witness is believed who is not a peer, when no other pod is heard either."""
OUTAGE = 10.0
"""Seconds that agents need to be back after nothing at all was heard: their connections have to
fail first, and they wait before the next try."""
REANNOUNCE = 15.0
"""Seconds that agents have to report again after this operator process began to listen."""
STALL = 2.0
"""Seconds without a turn of this process's own loop after which it has heard nobody."""


@dataclass(frozen=True, kw_only=True)
class Hearing:
    """How well this operator process hears."""

    since: float = 0.0
    """Silence counts from here on at the earliest."""
    looked: float = float("inf")
    """When its loop last turned."""

    def silence(self, heard_at: float, now: float) -> float:
        """Seconds for which a pod could have been heard and was not."""
        if now - self.looked > STALL:
            return 0.0
        return max(0.0, now - max(heard_at, self.since))


@dataclass(frozen=True, kw_only=True)
class Silence:
    """What is known of one pod that is not heard."""

    seconds: float
    """For how long it could have been heard and was not."""
    spoke: bool = True
    """Whether this operator process has ever heard it."""
    lifeline: bool = True
    """Whether its lifeline is held open, and answers no probe."""
    company: bool = True
    """Whether another pod of its job is heard."""
    peers: tuple[str, ...] = ()
    """Names of pods that are heard and cannot reach it."""
    node: str | None = None
    """In words, why nothing on its node can be expected to answer, as Kubernetes says."""
    unready: bool = False
    """Whether Kubernetes says that it runs and is not ready."""
    neighbour: str | None = None
    """Name of another pod on its node that is lost."""


def loss(silence: Silence) -> str | None:
    """In words, why a pod that is not heard is lost; None while it may be alive."""
    if silence.neighbour and silence.seconds > QUIET:
        return f"no report for {silence.seconds:.0f} s; {silence.neighbour} on its node is lost"
    if silence.seconds <= SILENT:
        return None
    patient = silence.company or silence.seconds > ALONE
    if silence.peers:
        witness = f"{_names(silence.peers)} cannot reach it"
    elif silence.node and patient:
        witness = silence.node
    elif silence.unready and silence.spoke and silence.seconds > ALONE:
        witness = "Kubernetes says that it is not ready"
    else:
        return None
    also = f", {silence.node}" if silence.node and silence.peers else ""
    if not silence.spoke:
        return f"no report has come; {witness}{also}"
    line = "its lifeline answers no probe" if silence.lifeline else "it holds no lifeline"
    return f"no report for {silence.seconds:.0f} s, {line}, {witness}{also}"


def _names(names: tuple[str, ...]) -> str:
    """At most three names."""
    more = len(names) - 3
    return ", ".join(names[:3]) + (f" and {more} more" if more > 0 else "")
