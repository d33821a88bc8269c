"""Every way in which a kubelet or a controller ends a pod: what it shows, what it means, who pays.

`ROWS` is one table. A row says how it is recognised (see `pod_signs`), which cause it has, and with
it which budget pays, what people are told, and what they can do. The first row that fits is the
answer, so the order is part of the table: what the kubelet says of the pod as a whole explains more
than who told it to go, and that more than how its containers then ended.

A row whose ``retry`` holds is of a kind that may end well next time although the user's budget
pays: it is tried again within that budget even before the first step.
"""

from dataclasses import dataclass

from rekindle.api import Cause
from rekindle_operator.failures import pod_signs as signs
from rekindle_operator.failures.pod_signs import Look, Sign
from rekindle_operator.observed.observations import Observed, Pod

UNEXPLAINED = "why is not known yet"
"""Ends the evidence of a lost pod until Kubernetes says more."""


@dataclass(frozen=True, kw_only=True)
class PodEndingRow:
    """One way in which a pod ends."""

    name: str
    cause: Cause
    fits: Sign
    """What the message is made of; None when it did not end like this."""
    says: str
    """Message, with the fields of ``fits``."""
    todo: str = ""
    """What its owner can do; nothing where it needs nobody's hand."""
    retry: bool = False
    """Whether it may end well next time, although the user's budget pays."""
    reason: str | None = None
    """Stable code for the job's conditions, where the cause is too wide a word."""


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How one pod ended."""

    row: str
    cause: Cause
    evidence: str
    reason: str | None = None
    retry: bool = False


def ending(observed: Observed, pod: Pod, *, pinned: str | None = None) -> Ending:
    """Why a pod has ended, or is about to."""
    agent = observed.agents.get(pod.uid)
    look = Look(
        pod=pod,
        going=None if pod.told else observed.going(pod),
        notice=agent.report.notice if agent else None,
        node_going=observed.node_going(pod),
        node_lost=observed.node_lost(pod),
        silent=observed.loss(pod),
        pinned=pinned,
        now=observed.now,
    )
    return explain(look)


def explain(look: Look) -> Ending:
    """The first row that fits."""
    for row in ROWS:
        fields = row.fits(look)
        if fields is None:
            continue
        words = row.says.format_map({"pod": look.pod.name, **fields}).strip().rstrip(":")
        todo = row.todo.format_map({"pod": look.pod.name, **fields})
        own = fields.get("cause")
        return Ending(
            row=row.name,
            cause=own if isinstance(own, Cause) else row.cause,
            evidence=f"{words}; {todo}" if todo else words,
            reason=str(fields["code_of_outcome"]) if fields.get("code_of_outcome") else row.reason,
            retry=bool(fields.get("retry", row.retry)),
        )
    raise AssertionError("the last row fits whatever there is")


ROWS: tuple[PodEndingRow, ...] = (
    # What the kubelet says of the pod as a whole.
    PodEndingRow(
        name="own storage limit",
        cause=Cause.OUT_OF_STORAGE,
        fits=signs.evicted(own=True),
        says="{pod} was evicted: {words}",
        todo="write less there, or raise the limit in spec.template",
        retry=True,
    ),
    PodEndingRow(
        name="node pressure",
        cause=Cause.EVICTED,
        fits=signs.evicted(own=False),
        says="{pod} was evicted: {words}",
        todo="requests in spec.template that are as high as its use keep it from such a node",
    ),
    PodEndingRow(
        name="pod deadline",
        cause=Cause.CONFIGURATION,
        fits=signs.past_its_deadline,
        says="{pod} was ended by spec.template.spec.activeDeadlineSeconds ({deadline} s), which "
        "holds for one pod and not for the job",
        todo="leave it out and set spec.deadlines.active",
        reason="PodDeadline",
    ),
    PodEndingRow(
        name="node of that name missing",
        cause=Cause.START_FAILED,
        fits=signs.pinned_to_no_node,
        says="{pod} is for node {node}, which is not there: spec.template.spec.nodeName names it, "
        "past the scheduler",
        todo="leave it out and choose nodes by nodeSelector",
        retry=True,
        reason="NoSuchNode",
    ),
    PodEndingRow(
        name="rejected by the node of that name",
        cause=Cause.START_FAILED,
        fits=signs.rejected_where_pinned,
        says="{pod} was not taken by node {node}, which spec.template.spec.nodeName names past the "
        "scheduler: {why}: {words}",
        todo="leave nodeName out and choose nodes by nodeSelector",
        retry=True,
        reason="NodeRejects",
    ),
    PodEndingRow(
        name="rejected by the node",
        cause=Cause.REJECTED,
        fits=signs.rejected,
        says="{pod} was not taken by node {node}: {why}: {words}",
    ),
    PodEndingRow(
        name="asks for what the node forbids",
        cause=Cause.START_FAILED,
        fits=signs.says(*sorted(signs.FORBIDDEN)),
        says="{pod} was not taken by its node: {why}: {words}",
        todo="correct spec.template, or have the nodes allow it",
        retry=True,
        reason="PodForbidden",
    ),
    PodEndingRow(
        name="node shuts down",
        cause=Cause.PREEMPTED,
        fits=signs.says(*sorted(signs.GRACEFUL)),
        says="{pod}: {why}: {words}",
    ),
    PodEndingRow(
        name="preempted by a critical pod",
        cause=Cause.PREEMPTED,
        fits=signs.says("Preempting", "Preempted"),
        says="{pod}: {why}: {words}",
    ),
    PodEndingRow(
        name="node lost, as the node controller says",
        cause=Cause.NODE_LOST,
        fits=signs.says("NodeLost"),
        says="{pod}: {why}: {words}",
    ),
    PodEndingRow(
        name="killed by its probe",
        cause=Cause.PROBE_FAILED,
        fits=signs.ended_by_a_probe,
        says="{pod}: the kubelet ended container {name} because its {kind} probe failed: {detail}",
        todo="correct the {kind}Probe in spec.template or leave it out: a run that hangs is found "
        "without one (spec.hang)",
        retry=True,
    ),
    # Who told it to go.
    PodEndingRow(
        name="disruption",
        cause=Cause.PREEMPTED,
        fits=signs.disrupted,
        says="{pod}: {words}",
    ),
    PodEndingRow(
        name="node lost", cause=Cause.NODE_LOST, fits=signs.node_lost, says="{pod}: {words}"
    ),
    PodEndingRow(
        name="deleted by force",
        cause=Cause.POD_LOST,
        fits=signs.deleted_by_force,
        says="{pod} was deleted by force, without time to save",
    ),
    PodEndingRow(
        name="told to go", cause=Cause.PREEMPTED, fits=signs.told_why, says="{pod}: {words}"
    ),
    PodEndingRow(
        name="SIGTERM",
        cause=Cause.PREEMPTED,
        fits=signs.told_to_go,
        says="{pod} was told to go (SIGTERM){code}",
    ),
    PodEndingRow(
        name="node goes", cause=Cause.PREEMPTED, fits=signs.node_going, says="{pod}: {words}"
    ),
    PodEndingRow(
        name="lifeline broken",
        cause=Cause.POD_LOST,
        fits=signs.vanished,
        says=f"{{pod}}: its first process has died, {UNEXPLAINED}",
    ),
    PodEndingRow(
        name="not heard",
        cause=Cause.POD_LOST,
        fits=signs.not_heard,
        says=f"{{pod}} is not heard: {{words}}; {UNEXPLAINED}",
    ),
    # How its containers ended.
    PodEndingRow(
        name="in no round",
        cause=Cause.START_FAILED,
        fits=signs.in_no_round,
        says="{pod}: the container {name} ended with exit code 0 and was in no round, so nothing "
        "has trained; its command does not start the launcher",
        todo="compare `kubectl get pod {pod} -o yaml` with spec.template, an admission webhook may "
        "have changed it",
    ),
    PodEndingRow(
        name="out of memory",
        cause=Cause.OUT_OF_MEMORY,
        fits=signs.out_of_memory,
        says="{pod} was killed for using more memory than its limit (OOMKilled)",
    ),
    PodEndingRow(
        name="init container out of memory",
        cause=Cause.INIT_FAILED,
        fits=signs.init_failed(oom=True),
        says="{pod}: {container} was killed for using more memory than its limit (OOMKilled, exit "
        "code {code}): {log}",
        todo="raise its memory limit in spec.template",
        retry=True,
    ),
    PodEndingRow(
        name="init container failed",
        cause=Cause.INIT_FAILED,
        fits=signs.init_failed(oom=False),
        says="{pod}: {container} failed (exit code {code}, {why}): {log}",
        todo="correct it in spec.template; the trainer starts after it",
        retry=True,
    ),
    PodEndingRow(
        name="the agent's last word",
        cause=Cause.USER_ERROR,
        fits=signs.outcome,
        says="{pod}: {words}",
    ),
    PodEndingRow(
        name="command not found",
        cause=Cause.START_FAILED,
        fits=signs.not_started(127),
        says="{pod} could not start: {words}",
        todo="command names a program that the image does not have",
    ),
    PodEndingRow(
        name="command not executable",
        cause=Cause.START_FAILED,
        fits=signs.not_started(126),
        says="{pod} could not start: {words}",
        todo="command names a file that cannot be executed",
    ),
    PodEndingRow(
        name="could not start",
        cause=Cause.START_FAILED,
        fits=signs.not_started(128, reasons=("StartError", "ContainerCannotRun")),
        says="{pod} could not start: {words}",
        todo="correct command, image or mounts in spec.template",
    ),
    PodEndingRow(
        name="container lost",
        cause=Cause.POD_LOST,
        fits=signs.status_unknown,
        says="{pod}: its node does not know any more what became of the container "
        "(ContainerStatusUnknown): {words}",
    ),
    PodEndingRow(
        name="killed",
        cause=Cause.POD_LOST,
        fits=signs.killed,
        says="{pod} was killed, exit code {code}{beside}",
    ),
    PodEndingRow(
        name="exited",
        cause=Cause.USER_ERROR,
        fits=signs.exited,
        says="{pod} exited with {code}: {tail}{beside}",
    ),
    PodEndingRow(
        name="sidecar failed",
        cause=Cause.INIT_FAILED,
        fits=signs.sidecar_failed,
        says="{pod}: {container} failed (exit code {code}, {why}) and nothing is said of the "
        "trainer: {log}",
        todo="correct it in spec.template",
        retry=True,
    ),
    PodEndingRow(
        name="another reason",
        cause=Cause.POD_LOST,
        fits=signs.some_reason,
        says="{pod}: {why} {words}",
    ),
    PodEndingRow(
        name="by its events",
        cause=Cause.POD_LOST,
        fits=signs.by_event,
        says="{pod} failed: {why}: {words}",
    ),
    PodEndingRow(
        name="no reason",
        cause=Cause.POD_LOST,
        fits=signs.anything,
        says="{pod} failed, and neither its status nor its events say why",
    ),
)
"""In the order in which they are tried."""
