"""Whatever holds a pod is named: reason, words, and what to do."""

import pytest

from rekindle.api import AgentPhase, AgentReport, Member, Round
from rekindle_operator.failures import pod_waits
from rekindle_operator.failures.pod_waits import ROWS
from rekindle_operator.failures.scheduler_messages import (
    REFUSALS,
    SENTENCES,
    of_refusal,
    scheduling_advice,
)
from rekindle_operator.incidents.incidents import stamp
from rekindle_operator.observed.containers import parse_event
from rekindle_operator.observed.documents import parse_pod
from rekindle_operator.observed.observations import AgentState, Observed

NOW = 1_750_000_600.0
LABELS = {"rekindle.dev/index": "1", "rekindle.dev/generation": "0"}
SCHEDULED = {"type": "PodScheduled", "status": "True", "lastTransitionTime": stamp(NOW - 400)}


def unscheduled(message, reason="Unschedulable"):
    return {"type": "PodScheduled", "status": "False", "reason": reason, "message": message}


def waiting(reason, message="", **more):
    return {"state": {"waiting": {"reason": reason, "message": message}}, **more}


def running(since=400, **more):
    return {"state": {"running": {"startedAt": stamp(NOW - since)}}, **more}


def ended(code, reason="Error", message=""):
    return {"terminated": {"exitCode": code, "reason": reason, "message": message}}


def pod(
    phase="Pending",
    *,
    node="node-1",
    age=400,
    started=True,
    conditions=(SCHEDULED,),
    trainer=None,
    init=None,
    sidecar=None,
    spec=None,
    meta=None,
):
    containers = {"trainer": trainer or {}} | ({"proxy": sidecar} if sidecar else {})
    given = {"trainer": (trainer or {}).pop("spec", {}) if trainer else {}}
    states = {
        "containerStatuses": [{"name": n, **s} for n, s in containers.items() if s],
        "initContainerStatuses": [{"name": n, **s} for n, (s, _) in (init or {}).items() if s],
    }
    return {
        "metadata": {
            "name": "digits-1",
            "uid": "u1",
            "labels": LABELS,
            "creationTimestamp": stamp(NOW - age),
            **(meta or {}),
        },
        "spec": {
            **({"nodeName": node} if node else {}),
            "containers": [{"name": n, **given.get(n, {})} for n in containers],
            "initContainers": [{"name": n, **more} for n, (_, more) in (init or {}).items()],
            **(spec or {}),
        },
        "status": {
            "phase": phase,
            "conditions": list(conditions),
            **({"startTime": stamp(NOW - age)} if started else {}),
            **states,
        },
    }


CREATING = {"trainer": waiting("ContainerCreating")}
NATIVE = {"restartPolicy": "Always"}
GOING = {"deletionTimestamp": stamp(NOW - 60), "deletionGracePeriodSeconds": 30}

# Reason, pod, what surrounds it, words that must be told.
CASES = [
    ("Terminating", pod("Running", meta=GOING), {}, ["should have ended", "node node-1"]),
    (
        "Terminating",
        pod("Running", meta={**GOING, "finalizers": ["batch/hold"]}),
        {},
        ["batch/hold"],
    ),
    (
        "SchedulingGated",
        pod(
            node=None,
            started=False,
            conditions=[unscheduled("", "SchedulingGated")],
            spec={"schedulingGates": [{"name": "kueue.x-k8s.io/admission"}, {"name": "b"}]},
        ),
        {},
        ["scheduling gates kueue.x-k8s.io/admission, b"],
    ),
    (
        "Unschedulable",
        pod(
            node=None,
            started=False,
            conditions=[unscheduled("0/3 nodes are available: 3 Insufficient nvidia.com/gpu.")],
        ),
        {},
        ["3 Insufficient nvidia.com/gpu", "free or add nvidia.com/gpu"],
    ),
    (
        "NotScheduled",
        pod(node=None, started=False, conditions=[], spec={"schedulerName": "volcano"}),
        {},
        ["it is for volcano", "schedulerName"],
    ),
    *(
        (
            reason,
            pod(trainer=waiting(reason, "no such image")),
            {},
            ["container trainer", "no such image", "imagePullSecrets"],
        )
        for reason in (
            *("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"),
            *("ImageInspectError", "RegistryUnavailable", "SignatureValidationFailed"),
        )
    ),
    (
        "ErrImagePull",
        pod(init={"get": (waiting("ErrImagePull", "x"), {})}, trainer=waiting("PodInitializing")),
        {},
        ["init container get: x"],
    ),
    (
        "CreateContainerConfigError",
        pod(trainer=waiting("CreateContainerConfigError", 'configmap "nope" not found')),
        {},
        ['configmap "nope" not found', "Secret, ConfigMap or key"],
    ),
    *(
        (reason, pod(trainer=waiting(reason, "denied")), {}, ["denied", "spec.template"])
        for reason in (
            *("CreateContainerError", "RunContainerError", "PreStartHookError"),
            *("PostStartHookError", "PreCreateHookError"),
        )
    ),
    (
        "CrashLoopBackOff",
        pod(
            init={
                "proxy": (
                    waiting("CrashLoopBackOff", lastState=ended(2, message="no port\n")),
                    NATIVE,
                )
            },
            trainer=waiting("PodInitializing"),
        ),
        {},
        ["native sidecar proxy", "exit code 2, Error: no port"],
    ),
    (
        "Initializing",
        pod(init={"get": (running(), {})}, trainer=waiting("PodInitializing")),
        {},
        ["init container get", "since 2025-06-15T15:10:00Z", "kubectl logs digits-1 -c get"],
    ),
    (
        "SidecarStarting",
        pod(init={"proxy": (running(started=False), NATIVE)}, trainer=waiting("PodInitializing")),
        {},
        ["native sidecar proxy", "startup probe"],
    ),
    ("KubeletSilent", pod(started=False), {}, ["node node-1", "has not taken it"]),
    ("KubeletSilent", pod(started=False), {"pinned": "node-1"}, ["spec.nodeName"]),
    *(
        (
            reason,
            pod(**CREATING),
            {"events": [{"reason": reason, "message": words, "type": "Warning"}]},
            [words, todo],
        )
        for reason, words, todo in (
            ("FailedMount", 'configmap "nope" not found', "correct volumes"),
            ("FailedAttachVolume", "Multi-Attach error", "attached elsewhere"),
            ("FailedCreatePodSandBox", "plugin not ready", "network"),
            ("NetworkNotReady", "cni config uninitialized", "network"),
        )
    ),
    ("ContainerCreating", pod(**CREATING), {}, ["node node-1", "kubectl describe pod digits-1"]),
    (
        "AgentSilent",
        pod("Running", trainer=running()),
        {},
        ["has not reached the operator", "kubectl logs digits-1", "NetworkPolicy"],
    ),
    (
        "AgentSilent",
        pod("Running", trainer=running()),
        {"agent": AgentPhase.RUNNING, "quiet": 90},
        ["not heard", "since 2025-06-15T15:15:10Z"],
    ),
    (
        "Warming",
        pod("Running", trainer=running()),
        {"agent": AgentPhase.WARMING},
        ["importing", "since 2025-06-15T15:11:40Z"],
    ),
    (
        "SidecarFailed",
        pod("Running", trainer=running(), sidecar={"state": ended(137, "OOMKilled")}),
        {"agent": AgentPhase.RUNNING},
        ["sidecar proxy of pod digits-1", "exit code 137, OOMKilled"],
    ),
    (
        "SidecarFailed",
        pod("Pending", trainer=running(), sidecar=waiting("ErrImagePull", "no such image")),
        {"agent": AgentPhase.RUNNING},
        ["sidecar proxy", "does not start: ErrImagePull: no such image"],
    ),
    (
        "SidecarFailed",
        pod(
            "Running",
            trainer=running(),
            init={
                "proxy": (waiting("CrashLoopBackOff", lastState=ended(1, message="gone")), NATIVE)
            },
        ),
        {"agent": AgentPhase.RUNNING},
        ["native sidecar proxy", "gone"],
    ),
    (
        "NotReady",
        pod("Running", trainer={**running(), "spec": {"readinessProbe": {"exec": {}}}}),
        {"agent": AgentPhase.RUNNING, "member": True},
        ["trains", "readiness probe"],
    ),
    (
        "NotJoined",
        pod("Running", trainer=running()),
        {"agent": AgentPhase.WAITING, "member": True, "formed": 90},
        ["has not begun round 1", "digits-1 at a", "NetworkPolicy", "node node-1"],
    ),
    (
        "CheckpointInUse",
        pod("Running", trainer=running()),
        {"agent": AgentPhase.RUNNING, "member": True, "joined": True, "waits": "s3://b/r is bob's"},
        ["waits: s3://b/r is bob's", "silent for a minute", "spec.checkpoint.uri"],
    ),
    (
        "FirstStep",
        pod("Running", trainer=running()),
        {"agent": AgentPhase.RUNNING, "member": True, "formed": 90, "joined": True},
        ["round 1 of 1 pods", "first step", "kubectl logs digits-1"],
    ),
]


def held(
    document,
    *,
    agent=None,
    quiet=0,
    events=(),
    pinned=None,
    member=False,
    formed=0,
    joined=False,
    waits=None,
    now=NOW,
):
    told = tuple(parse_event(one) for one in events)
    found = vars(parse_pod(document)) | {"events": told}
    one = type(parse_pod(document))(**found)
    current = None
    if member:
        us = Member(pod=one.name, uid=one.uid, address="a", store_port=1, nproc=1)
        current = Round(number=1, members=(us,), reason="first round", formed_at=NOW - formed)
    agents = {}
    if agent:
        report = AgentReport(
            pod=one.name,
            uid=one.uid,
            address="10.0.0.1",
            store_port=1,
            nproc=1,
            phase=agent,
            round=current if joined else None,
            waits=waits,
        )
        agents[one.uid] = AgentState(report=report, seen_at=now - quiet, phase_since=now - 300)
    observed = Observed(pods=(one,), agents=agents, round=current, now=now)
    return pod_waits.held_of(observed, one, pinned)


@pytest.mark.parametrize(
    ("reason", "document", "around", "words"),
    CASES,
    ids=[f"{n}-{c[0]}" for n, c in enumerate(CASES)],
)
def test_each_hold_is_recognised_and_told(reason, document, around, words):
    wait = pod_waits.of_pod(held(document, **around))
    assert wait is not None
    assert wait.reason == reason
    for word in words:
        assert word in wait.message
    assert "digits-1" in wait.message
    assert "\n" not in wait.message


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.reason} {row.fits.__name__}")
def test_each_row_is_shown_by_a_case_and_says_something(row):
    shown = [pod_waits.row_of(held(document, **around)) for _, document, around, _ in CASES]
    assert any(found is not None and found[0] is row for found in shown), "no test shows this row"
    assert "{pod}" in row.says


def test_nothing_is_said_of_a_pod_that_trains_or_has_just_been_made():
    assert (
        pod_waits.of_pod(held(pod("Running", trainer=running()), agent=AgentPhase.RUNNING)) is None
    )
    young = pod(age=5, conditions=(), **CREATING)
    assert pod_waits.of_pod(held(young)) is None
    assert pod_waits.changes_at(held(young)) == NOW + 115


def test_events_are_read_only_of_pods_whose_kubelet_is_quiet():
    assert pod_waits.needs_events(held(pod(**CREATING)))
    assert not pod_waits.needs_events(held(pod(age=5, conditions=(), **CREATING)))
    assert not pod_waits.needs_events(held(pod(trainer=waiting("ErrImagePull"))))
    assert not pod_waits.needs_events(held(pod("Running", trainer=running())))


@pytest.mark.parametrize(
    ("sentence", "advice"),
    [
        ("0/3 nodes are available: 3 Insufficient cpu. preemption: 0/3 nodes", "free or add cpu"),
        ("1 node(s) had untolerated taint {gpu: true}", "toleration"),
        ("2 node(s) didn't match Pod's node affinity/selector", "nodeSelector"),
        ("1 node(s) didn't have free ports for the requested pod ports", "hostPort"),
        ('persistentvolumeclaim "data" not found', "create the claim data"),
        ("pod has unbound immediate PersistentVolumeClaims", "pvc"),
        ("1 node(s) had volume node affinity conflict", "another zone"),
        ("1 node(s) exceed max volume count", "as many volumes"),
        ("waiting for ephemeral volume controller to create the claim", "ephemeral volume"),
        ("1 node(s) didn't match pod topology spread constraints", "topologySpreadConstraints"),
        ("1 node(s) didn't match pod anti-affinity rules", "podAntiAffinity"),
        ("2 node(s) were unschedulable", "cordoned"),
        ("3 Too many pods", "as many pods"),
        ("cannot allocate all claims", "resourceclaim"),
        ("no nodes available to schedule pods", "no node"),
    ],
)
def test_what_the_scheduler_says_comes_with_what_can_be_done(sentence, advice):
    assert advice in scheduling_advice(sentence)


def test_each_sentence_of_the_scheduler_has_a_case():
    cases = test_what_the_scheduler_says_comes_with_what_can_be_done.pytestmark[0].args[1]
    assert len(cases) == len(SENTENCES)
    assert scheduling_advice("something new") == ""


ANSWERS = [
    ('pods "digits-0" is forbidden: exceeded quota: gpus, requested: 1', "QuotaExceeded"),
    ('pods "x" is forbidden: failed quota: q: must specify limits.cpu', "QuotaExceeded"),
    (
        'pods "x" is forbidden: violates PodSecurity "restricted:latest": runAsNonRoot',
        "PodSecurity",
    ),
    (
        'pods "x" is forbidden: no PriorityClass with name high was found',
        "PriorityClassMissing",
    ),
    (
        'pods "x" is forbidden: error looking up service account ml/bot: serviceaccount "bot" '
        "not found",
        "ServiceAccountMissing",
    ),
    (
        'pods "x" is forbidden: maximum cpu usage per Container is 1, but limit is 2',
        "LimitRange",
    ),
    ('Internal error occurred: failed calling webhook "a.b": timeout', "WebhookUnreachable"),
    ('admission webhook "policy.ml" denied the request: no latest tag', "AdmissionDenied"),
    (
        "unable to create new content because namespace ml is being terminated",
        "NamespaceTerminating",
    ),
    ('User "system:serviceaccount:a:b" cannot create resource "pods"', "OperatorForbidden"),
    ("secret digits-rekindle is not part of this job: rename or delete it", "NameTaken"),
    ("secret digits-rekindle is going away", "NameTaken"),
    ('pods "x" is forbidden: somebody says so', "Forbidden"),
]


@pytest.mark.parametrize(("answer", "reason"), ANSWERS)
def test_what_keeps_a_pod_from_being_made_has_a_name_and_a_next_step(answer, reason):
    found, message = of_refusal(f"pod digits-0 cannot be created: API server: 403 {answer}")
    assert found == reason
    assert answer in message
    assert "; " in message.removeprefix(answer)


def test_each_refusal_has_a_case():
    assert len(ANSWERS) == len(REFUSALS)
    assert of_refusal("connection reset")[0] == "CannotCreate"
