"""Each way in which a kubelet or a controller ends a pod: cause, who pays, what is told."""

import json
from dataclasses import replace

import pytest

from rekindle.api import AgentPhase, AgentReport, Cause, Outcome
from rekindle_cli.output.causes import HAPPENED, SHORT
from rekindle_operator.failures.pod_endings import ROWS, ending
from rekindle_operator.failures.pod_signs import needs_events, needs_log
from rekindle_operator.incidents.incidents import USER, Incident
from rekindle_operator.observed.containers import parse_event
from rekindle_operator.observed.documents import parse_node, parse_pod
from rekindle_operator.observed.observations import AgentState, Observed, gone

NOW = 1_750_000_600.0
STARTED = "2025-06-15T15:06:40Z"
"""600 s before NOW."""
LABELS = {"rekindle.dev/index": "1", "rekindle.dev/generation": "0"}
PROBE = {"livenessProbe": {"httpGet": {"port": 80}}}


def ended(code, reason="Error", message="", **more):
    return {"terminated": {"exitCode": code, "reason": reason, "message": message, **more}}


def trainer(state, **spec):
    return {"containers": {"trainer": (state, spec)}}


def pod(
    *,
    phase="Failed",
    containers=None,
    init=None,
    spec=None,
    conditions=(),
    deleting=False,
    force=False,
    **status,
):
    containers = {"trainer": ({}, {})} if containers is None else containers
    groups = {"initContainers": init or {}, "containers": containers}
    meta = {"name": "digits-1", "uid": "u1", "labels": LABELS, "creationTimestamp": STARTED}
    if deleting:
        meta["deletionTimestamp"] = "2025-06-15T15:17:00Z"
        meta["deletionGracePeriodSeconds"] = 0 if force else 30
    states = {
        key: [{"name": name, "state": state} for name, (state, _) in group.items() if state]
        for key, group in (
            ("initContainerStatuses", groups["initContainers"]),
            ("containerStatuses", groups["containers"]),
        )
    }
    return {
        "metadata": meta,
        "spec": {
            "nodeName": "node-1",
            **(spec or {}),
            **{
                key: [{"name": name, **more} for name, (_, more) in group.items()]
                for key, group in groups.items()
            },
        },
        "status": {
            "phase": phase,
            "startTime": STARTED,
            "conditions": list(conditions),
            **states,
            **status,
        },
    }


def disruption(reason, message):
    return [{"type": "DisruptionTarget", "status": "True", "reason": reason, "message": message}]


def outcome(**fields):
    return json.dumps(Outcome(**{"code": 1, "at": NOW, **fields}).to_json())


def event(reason, message, kind="Warning"):
    return {"reason": reason, "message": message, "type": kind, "lastTimestamp": STARTED}


KILLED = [
    event("Unhealthy", "Liveness probe failed: HTTP probe failed with statuscode: 503"),
    event("Killing", "Container trainer failed liveness probe, will be restarted", "Normal"),
]
LOW = "The node was low on resource: ephemeral-storage. Threshold quantity: 1Gi, available: 3Mi."

# Row, pod, what surrounds it, words that must be told.
CASES = [
    (
        "own storage limit",
        pod(reason="Evicted", message='Usage of EmptyDir volume "tmp" exceeds the limit "1Gi". '),
        {},
        ['volume "tmp"', "1Gi"],
    ),
    (
        "own storage limit",
        pod(
            reason="Evicted",
            message="Pod ephemeral local storage usage exceeds the total limit of containers 2Gi. ",
        ),
        {},
        ["total limit of containers 2Gi"],
    ),
    (
        "own storage limit",
        pod(
            reason="Evicted",
            message='Container trainer exceeded its local ephemeral storage limit "5Gi". ',
        ),
        {},
        ["5Gi"],
    ),
    (
        "own storage limit",
        pod(
            phase="Running",
            conditions=disruption(
                "TerminationByKubelet", 'Usage of EmptyDir volume "tmp" exceeds the limit "1Gi". '
            ),
        ),
        {},
        ['volume "tmp"'],
    ),
    ("node pressure", pod(reason="Evicted", message=LOW), {}, ["ephemeral-storage"]),
    (
        "node pressure",
        pod(phase="Running", conditions=disruption("TerminationByKubelet", LOW)),
        {},
        ["low on resource"],
    ),
    (
        "pod deadline",
        pod(reason="DeadlineExceeded", message="Pod was active", spec={"activeDeadlineSeconds": 9}),
        {},
        ["activeDeadlineSeconds (9 s)", "spec.deadlines.active"],
    ),
    (
        "pod deadline",
        pod(phase="Running", spec={"activeDeadlineSeconds": 599}),
        {"notice": "SIGTERM"},
        ["activeDeadlineSeconds (599 s)"],
    ),
    (
        "pod deadline",
        pod(
            **trainer(ended(75, message=outcome(cause="Saved", code=75, message="saved"))),
            spec={"activeDeadlineSeconds": 600},
        ),
        {},
        ["activeDeadlineSeconds (600 s)"],
    ),
    (
        "node of that name missing",
        pod(phase="Pending", spec={"nodeName": "gpu-7"}),
        {"pinned": "gpu-7", "nodes": {"gpu-7": gone("gpu-7")}},
        ["node gpu-7, which is not there", "nodeName", "nodeSelector"],
    ),
    (
        "node of that name missing",
        pod(
            phase="Pending",
            spec={"nodeName": "gpu-7"},
            conditions=disruption("DeletionByPodGC", "PodGC: node no longer exists"),
            deleting=True,
        ),
        {"pinned": "gpu-7"},
        ["node gpu-7, which is not there"],
    ),
    (
        "rejected by the node of that name",
        pod(reason="OutOfcpu", message="Node didn't have enough resource: cpu"),
        {"pinned": "node-1"},
        ["OutOfcpu", "nodeName"],
    ),
    *(
        (
            "rejected by the node",
            pod(reason=reason, message=words, containers={"trainer": ({}, {})}),
            {},
            [reason, words],
        )
        for reason, words in {
            "OutOfcpu": "Node didn't have enough resource: cpu, requested: 1000, used: 4000",
            "OutOfmemory": "Node didn't have enough resource: memory",
            "OutOfpods": "Node didn't have enough resource: pods",
            "OutOfnvidia.com/gpu": "Node didn't have enough resource: nvidia.com/gpu",
            "UnexpectedAdmissionError": "Allocate failed due to no healthy devices present",
            "NodeAffinity": "Pod was rejected: Predicate NodeAffinity failed",
            "TopologyAffinityError": "Resources cannot be allocated with Topology locality",
        }.items()
    ),
    *(
        (
            "asks for what the node forbids",
            pod(reason=reason, message="forbidden"),
            {},
            [reason, "spec.template"],
        )
        for reason in ("SysctlForbidden", "AppArmor", "PodOSNotSupported", "UnsupportedByThisNode")
    ),
    *(
        ("node shuts down", pod(reason=reason, message="imminent node shutdown"), {}, [reason])
        for reason in ("Terminated", "NodeShutdown", "Shutdown")
    ),
    (
        "preempted by a critical pod",
        pod(reason="Preempting", message="Preempted in order to admit critical pod"),
        {},
        ["critical pod"],
    ),
    (
        "node lost, as the node controller says",
        pod(phase="Running", reason="NodeLost", message="Node node-1 which was running is lost"),
        {},
        ["NodeLost"],
    ),
    (
        "killed by its probe",
        pod(**trainer(ended(137), **PROBE)),
        {"events": KILLED},
        ["container trainer", "liveness probe", "503", "livenessProbe"],
    ),
    (
        "killed by its probe",
        pod(phase="Running", **trainer({"running": {}}, **PROBE)),
        {"events": KILLED, "notice": "SIGTERM"},
        ["liveness probe"],
    ),
    (
        "killed by its probe",
        pod(**trainer(ended(137), **PROBE)),
        {"events": [*KILLED[:1], event("Killing", "Stopping container trainer", "Normal")]},
        ["container trainer", "liveness probe", "503"],
    ),
    (
        "killed",
        pod(**trainer(ended(137), **PROBE)),
        {"events": [event("Killing", "Stopping container trainer", "Normal")]},
        ["exit code 137"],
    ),
    (
        "killed by its probe",
        pod(**trainer(ended(143), startupProbe={"exec": {"command": ["true"]}})),
        {"events": [event("Killing", "Container trainer failed startup probe", "Normal")]},
        ["startupProbe"],
    ),
    *(
        ("disruption", pod(phase="Running", conditions=disruption(reason, "m")), {}, [reason])
        for reason in (
            "EvictionByEvictionAPI",
            "PreemptionByScheduler",
            "DeletionByTaintManager",
            "DeletionByPodGC",
        )
    ),
    (
        "disruption",
        pod(
            phase="Running",
            conditions=disruption(
                "TerminationByKubelet", "Pod was terminated in response to imminent node shutdown."
            ),
        ),
        {},
        ["node shutdown"],
    ),
    (
        "node lost",
        pod(phase="Running"),
        {"nodes": {"node-1": gone("node-1")}},
        ["node is gone"],
    ),
    ("deleted by force", pod(phase="Running", deleting=True, force=True), {}, ["by force"]),
    ("told to go", pod(phase="Running", deleting=True), {}, ["being deleted"]),
    (
        "SIGTERM",
        pod(**trainer(ended(143))),
        {"notice": "SIGTERM"},
        ["SIGTERM", "exit code 143"],
    ),
    (
        "node goes",
        pod(**trainer(ended(143))),
        {
            "nodes": {
                "node-1": parse_node(
                    {
                        "metadata": {"name": "node-1"},
                        "spec": {"taints": [{"key": "karpenter.sh/disrupted"}]},
                    },
                    NOW,
                )
            }
        },
        ["Karpenter"],
    ),
    ("lifeline broken", pod(phase="Running"), {"vanished_at": NOW}, ["not known yet"]),
    (
        "not heard",
        pod(phase="Running"),
        {"unheard": True},
        ["no report for 4 s", "holds no lifeline", "digits-0 cannot reach it", "not known yet"],
    ),
    (
        "in no round",
        pod(phase="Succeeded", **trainer(ended(0, "Completed"))),
        {"stranger": True},
        ["exit code 0", "in no round", "kubectl get pod digits-1 -o yaml"],
    ),
    ("out of memory", pod(**trainer(ended(137, "OOMKilled"))), {}, ["OOMKilled"]),
    (
        "init container out of memory",
        pod(init={"unpack": (ended(137, "OOMKilled", "unpacking"), {})}),
        {},
        ["init container unpack", "OOMKilled", "unpacking"],
    ),
    (
        "init container failed",
        pod(init={"get-data": (ended(3, message="line one\nno such bucket\n"), {})}),
        {},
        ["init container get-data", "exit code 3", "Error", "line one | no such bucket"],
    ),
    (
        "init container failed",
        pod(init={"get-data": (ended(128, "StartError", 'exec: "nope": not found'), {})}),
        {},
        ["exit code 128, StartError", "nope"],
    ),
    (
        "init container failed",
        pod(init={"get-data": (ended(2), {})}),
        {"logs": {"get-data": "\x1b[31mred\x1b[0m \x07bell\n" + "y" * 5000}},
        ["exit code 2", "yyy"],
    ),
    (
        "the agent's last word",
        pod(**trainer(ended(1, message=outcome(cause="UserError", message="KeyError: x", rank=3)))),
        {},
        ["rank 3: KeyError: x"],
    ),
    ("command not found", pod(**trainer(ended(127, message="sh: foo: not found"))), {}, ["foo"]),
    ("command not executable", pod(**trainer(ended(126))), {}, ["exit code 126"]),
    (
        "could not start",
        pod(**trainer(ended(128, "StartError", 'exec: "/no": stat /no: no such file'))),
        {},
        ["/no", "command, image or mounts"],
    ),
    (
        "could not start",
        pod(**trainer(ended(1, "ContainerCannotRun", "mount denied"))),
        {},
        ["mount denied"],
    ),
    (
        "container lost",
        pod(**trainer(ended(137, "ContainerStatusUnknown", "could not be located"))),
        {},
        ["ContainerStatusUnknown", "could not be located"],
    ),
    ("killed", pod(**trainer(ended(137))), {}, ["exit code 137"]),
    (
        "killed",
        pod(
            containers={
                "trainer": (ended(134, finishedAt="2025-06-15T15:10:09Z"), {}),
                "proxy": (ended(137, "OOMKilled", finishedAt="2025-06-15T15:10:00Z"), {}),
            }
        ),
        {},
        ["exit code 134", "sidecar proxy had failed before (exit code 137, OOMKilled)"],
    ),
    ("exited", pod(**trainer(ended(3, message="a\nbad luck"))), {}, ["exited with 3: bad luck"]),
    (
        "sidecar failed",
        pod(containers={"trainer": ({}, {}), "proxy": (ended(1, message="no port"), {})}),
        {},
        ["sidecar proxy", "no port"],
    ),
    ("another reason", pod(reason="Odd", message="because"), {}, ["Odd because"]),
    (
        "by its events",
        pod(),
        {"events": [event("FailedCreatePodSandBox", "no network\nplugin")]},
        ["FailedCreatePodSandBox: no network plugin"],
    ),
    ("no reason", pod(), {}, ["neither its status nor its events"]),
]
PAYS = {
    "own storage limit": "user",
    "node pressure": "infrastructure",
    "pod deadline": "user",
    "node of that name missing": "user",
    "rejected by the node of that name": "user",
    "rejected by the node": "infrastructure",
    "asks for what the node forbids": "user",
    "node shuts down": "preemption",
    "preempted by a critical pod": "preemption",
    "node lost, as the node controller says": "infrastructure",
    "killed by its probe": "user",
    "disruption": "preemption",
    "node lost": "infrastructure",
    "deleted by force": "infrastructure",
    "told to go": "preemption",
    "SIGTERM": "preemption",
    "node goes": "preemption",
    "lifeline broken": "infrastructure",
    "not heard": "infrastructure",
    "in no round": "user",
    "out of memory": "user",
    "init container out of memory": "user",
    "init container failed": "user",
    "the agent's last word": "user",
    "command not found": "user",
    "command not executable": "user",
    "could not start": "user",
    "container lost": "infrastructure",
    "killed": "infrastructure",
    "exited": "user",
    "sidecar failed": "user",
    "another reason": "infrastructure",
    "by its events": "infrastructure",
    "no reason": "infrastructure",
}
"""Whose budget each row is charged to."""


def seen(
    document, *, notice=None, nodes=None, pinned=None, events=(), logs=None, unheard=False, **more
):
    found = parse_pod(document)
    told = tuple(parse_event(one) for one in events)
    found = vars(found) | {"events": told, "logs": logs or {}, **more}
    one = type(parse_pod(document))(**found)
    report = AgentReport(
        pod=one.name,
        uid=one.uid,
        address="10.0.0.1",
        store_port=1,
        nproc=1,
        phase=AgentPhase.RUNNING,
        notice=notice,
    )
    agent = AgentState(report=report, seen_at=NOW, phase_since=NOW)
    agents = {one.uid: agent} if notice else {}
    pods = (one,)
    if unheard:
        peer = replace(one, name="digits-0", uid="u0", index=0)
        says = replace(report, pod="digits-0", uid="u0", unreachable=("u1",))
        agents = {
            "u0": AgentState(report=says, seen_at=NOW, phase_since=NOW),
            "u1": AgentState(report=report, seen_at=NOW - 4, phase_since=NOW - 4),
        }
        pods = (peer, one)
    observed = Observed(pods=pods, nodes=nodes, agents=agents, now=NOW)
    return observed, one, pinned


@pytest.mark.parametrize(
    ("row", "document", "around", "words"), CASES, ids=[f"{n}-{c[0]}" for n, c in enumerate(CASES)]
)
def test_each_way_to_end_is_recognised_told_and_paid_for(row, document, around, words):
    observed, one, pinned = seen(document, **around)
    found = ending(observed, one, pinned=pinned)
    assert found.row == row
    for word in words:
        assert word in found.evidence
    assert "digits-1" in found.evidence
    assert "\n" not in found.evidence
    assert "\x1b" not in found.evidence
    assert "\x07" not in found.evidence
    assert len(found.evidence) < 1500
    charged = Incident(at=0, round=0, cause=found.cause, evidence="", victims=())
    assert charged.klass == PAYS[row]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_each_row_of_the_table_is_whole(row):
    assert row.name in {case[0] for case in CASES}, "no test shows this row"
    assert row.cause in HAPPENED, "the command has no words for its cause"
    assert row.cause in SHORT
    assert "{pod}" in row.says
    by_the_template = row.cause in USER and row.name not in {
        "out of memory",
        "exited",
        "the agent's last word",
    }
    assert bool(row.todo) or not by_the_template, "its owner has to know what to do"
    assert not row.retry or row.cause in USER, "other classes are tried again anyway"


def test_rows_have_names_of_their_own():
    assert len({row.name for row in ROWS}) == len(ROWS)


def test_a_container_that_has_ended_before_its_pods_deadline_has_ended_by_itself():
    early = pod(
        reason="DeadlineExceeded",
        message="Pod was active",
        spec={"activeDeadlineSeconds": 300},
        **trainer(ended(1, message="ValueError: no", finishedAt="2025-06-15T15:08:20Z")),
    )
    observed, one, _ = seen(early)
    assert ending(observed, one).row == "exited"
    ours = pod(
        reason="DeadlineExceeded",
        spec={"activeDeadlineSeconds": 1},
        **trainer(ended(1, message="ValueError: no")),
    )
    observed, one, _ = seen(ours)
    assert ending(observed, one).row == "exited"


@pytest.mark.parametrize(
    ("document", "notice", "needed"),
    [
        (pod(**trainer(ended(137), **PROBE)), None, True),
        (pod(phase="Running", **trainer({"running": {}}, **PROBE)), "SIGTERM", True),
        (pod(phase="Running", **trainer({"running": {}}, **PROBE)), None, False),
        (
            pod(phase="Running", **trainer({"running": {}}, **PROBE), deleting=True),
            "SIGTERM",
            False,
        ),
        (pod(**trainer(ended(137))), None, False),
        (pod(**trainer(ended(0, "Completed"), **PROBE)), None, False),
        (pod(), None, True),
        (pod(reason="Evicted"), None, False),
    ],
)
def test_events_are_read_only_where_the_status_leaves_open_why(document, notice, needed):
    assert needs_events(parse_pod(document), notice) is needed


@pytest.mark.parametrize(
    ("document", "container"),
    [
        (pod(init={"get": (ended(2), {})}), "get"),
        (pod(init={"get": (ended(2, message="no"), {})}), None),
        (pod(**trainer(ended(1))), "trainer"),
        (pod(**trainer(ended(137))), None),
        (pod(phase="Running"), None),
        (pod(reason="Evicted"), None),
    ],
)
def test_a_log_is_read_only_of_a_container_that_has_failed_without_a_word(document, container):
    assert needs_log(parse_pod(document)) == container


def test_causes_of_the_table_are_those_of_the_contract():
    assert {row.cause for row in ROWS} <= set(Cause)
