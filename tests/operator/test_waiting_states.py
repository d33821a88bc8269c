"""After five minutes of any waiting state, nothing that people look at is empty or wrong."""

import math
from dataclasses import replace

import pytest

from rekindle_cli.jobs.explain import explain
from rekindle_cli.jobs.snapshot import JobView
from rekindle_operator.controller import status_writer
from rekindle_operator.incidents.incidents import stamp
from rekindle_operator.merge_patch import merge_patch
from rekindle_operator.pods.manifests import PodAccess
from rekindle_operator.reconcile.reconcile import reconcile

TRAINER = {"name": "trainer", "image": "i", "args": ["t.py"]}
MINUTES = 300.0
MIN3 = {"elastic": {"minReplicas": 3}}


def no_node(world):
    return world(nodes=0)


def gated(world):
    pod = {"containers": [TRAINER], "schedulingGates": [{"name": "queue.ml/admission"}]}
    return world(template={"spec": pod})


def quota(world):
    w = world()
    w.quota = 0
    return w


def forbidden(world):
    w = world()
    w.quota = 0
    w.run(1)
    w.quota, w.refuses = None, None
    words = 'pods "digits-0" is forbidden: violates PodSecurity "restricted:latest"'
    w.hindered = f"pod digits-0 cannot be created: API server: 403 {words}"
    for pod in list(w.pods.values()):
        w.vanish(pod.name)
    w.create = lambda child: None
    return w


def strange_scheduler(world):
    w = world(template={"spec": {"containers": [TRAINER], "schedulerName": "volcano"}})
    w.fits = lambda *_: False
    w.kubernetes = lambda: None
    return w


def no_image(world):
    return world().settle_with_broken_image("*")


def one_image_missing(world):
    w = world(**MIN3)
    w.broken_image = {"digits-1"}
    return w


def warming(world):
    w = world()
    w.warms_for = 1e6
    return w


def silent(world):
    w = world()
    w.hear = lambda agent: None
    return w


def silent_beside_others(world):
    w = world(elastic={"minReplicas": 2})
    real = w.hear
    w.hear = lambda agent: None if agent.pod.index == 1 else real(agent)
    return w


def cut_off_from_each_other(world):
    """Pods reach the operator and not each other."""
    w = world(**MIN3)
    real = w.obey
    w.obey = lambda agent: None if agent.pod.index == 1 and w.round else real(agent)
    return w


def initializing(world):
    w = world(template={"spec": {"containers": [TRAINER], "initContainers": [{"name": "get"}]}})
    w.broken_image = {"*"}
    w.settle()
    for pod in w.pods.values():
        state = {"running": {"startedAt": stamp(w.now)}}
        pod.beside["initContainerStatuses"] = [{"name": "get", "state": state}]
    w.kubernetes = lambda: [setattr(p, "waiting", ("PodInitializing", "")) for p in w.pods.values()]
    return w


def no_step(world):
    w = world()
    w.trains = False
    return w


def held_by_somebody_else(world):
    w = world(**MIN3)
    w.held_by = "s3://bucket/run is in use by bob on b2 (pid 8) since 2026-11-30T10:00:00+00:00"
    return w


def recovering_without_an_image(world):
    w = world(**MIN3).start()
    w.broken_image = {f"digits-1r{n}" for n in range(1, 9)}
    return w.kill("digits-1")


def recovering_without_a_node(world):
    w = world(nodes=3, **MIN3).start()
    return w.lose_node("digits-1")


def recovering_without_a_step(world):
    w = world(**MIN3).start()
    w.trains = False
    return w.kill("digits-1")


def backing_off(world):
    """Its init container fails for ever: no pod is there while the operator waits."""
    w = world(
        template={"spec": {"containers": [TRAINER], "initContainers": [{"name": "get"}]}},
        restart={"user": {"max": None}},
    )
    w.broken_image = {"*"}

    def fail():
        for pod in w.alive:
            w.fail_init(pod.name, container="get")

    real = w.kubernetes
    w.kubernetes = lambda: (real(), fail())
    return w


def suspended_on_a_dead_machine(world):
    w = world().start().die_unnoticed("digits-1")
    return w.change(suspend=True)


def silent_after_the_operator_has_gone(world):
    w = world(**MIN3).start()
    return w.restart_operator(quiet=("digits-0", "digits-1", "digits-2"))


# State, phase, the condition that has the reason, its reason, words that are told.
STATES = [
    (no_node, "Pending", "Degraded", "Unschedulable", ["no node can take pod digits-0"]),
    (gated, "Pending", "Progressing", "SchedulingGated", ["queue.ml/admission"]),
    (quota, "Pending", "Degraded", "QuotaExceeded", ["exceeded quota", "ResourceQuota"]),
    (forbidden, "Pending", "Degraded", "PodSecurity", ["restricted", "securityContext"]),
    (strange_scheduler, "Pending", "Degraded", "NotScheduled", ["volcano"]),
    (no_image, None, "Degraded", "ErrImagePull", ["no such image", "2 other pods"]),
    (one_image_missing, "Starting", "Degraded", "ErrImagePull", ["pod digits-1 cannot start"]),
    (warming, "Starting", "Progressing", "Warming", ["importing"]),
    (
        silent,
        "Starting",
        "Degraded",
        "AgentSilent",
        ["http://rekindle:8430", "DNS", "NetworkPolicy", "kubectl logs digits-0"],
    ),
    (
        silent_beside_others,
        "Running",
        "Degraded",
        "AgentSilent",
        ["http://rekindle:8430", "kubectl logs digits-1"],
    ),
    (
        cut_off_from_each_other,
        "Starting",
        "Degraded",
        "NotJoined",
        ["pod digits-1 has not begun round 1", "digits-0 at 10.0.0.0", "kubectl logs digits-1"],
    ),
    (initializing, None, "Progressing", "Initializing", ["init container get", "digits-0"]),
    (
        no_step,
        "Starting",
        "Progressing",
        "FirstStep",
        ["round 1 of 3 pods", "kubectl logs digits-0", "first step"],
    ),
    (
        held_by_somebody_else,
        "Starting",
        "Degraded",
        "CheckpointInUse",
        [
            "in use by bob on b2 (pid 8) since 2026",
            "looks every two seconds",
            "spec.checkpoint.uri",
        ],
    ),
    (
        recovering_without_an_image,
        "Recovering",
        "Degraded",
        "ErrImagePull",
        ["digits-1 was killed", "digits-1r1"],
    ),
    (
        recovering_without_a_node,
        "Recovering",
        "Degraded",
        "Unschedulable",
        ["node is gone", "no node can take"],
    ),
    (recovering_without_a_step, "Recovering", "Progressing", "Recovering", ["digits-1 was killed"]),
    (
        backing_off,
        "Recovering",
        "Progressing",
        "Recovering",
        ["exit code 3", "the next pods are made at"],
    ),
    (
        suspended_on_a_dead_machine,
        "Suspended",
        "Suspended",
        "SpecSuspend",
        ["1 pod to save and end", "digits-1 should have ended", "spec.suspend"],
    ),
    (
        silent_after_the_operator_has_gone,
        None,
        "Degraded",
        "AgentSilent",
        ["has not reached the operator"],
    ),
]


@pytest.mark.parametrize(
    ("state", "phase", "kind", "reason", "words"), STATES, ids=[s[0].__name__ for s in STATES]
)
def test_a_waiting_state_is_told_everywhere(world, state, phase, kind, reason, words):
    w = state(world)
    w.run(MINUTES, pace=5.0)
    assert phase is None or w.phase == phase
    told = w.condition(kind)
    assert (told["status"], told["reason"]) == ("True", reason)
    for word in words:
        assert word in w.status["message"]
    for condition in w.status["conditions"]:
        assert condition["reason"]
        assert condition["message"].strip()
    for word in words[-1:]:
        assert word in w.condition("Progressing")["message"]
    why = " ".join(one.text for one in explain(JobView.read({**w.body, "status": w.status})))
    for word in words:
        assert word in why
    assert "round 2 of 3 pods starts" in why or state is not recovering_without_a_step
    if kind == "Degraded" or reason not in {"Starting", "Recovering", "SpecSuspend"}:
        events = [event for event in w.events if event.reason == reason]
        assert len(events) == 1, "said once, not every few seconds"
        assert events[0].kind == ("Warning" if kind == "Degraded" else "Normal")
        assert any(word in events[0].message for word in words)


AT_REST = [s[0] for s in STATES if s[1] != "Running"]
"""Whoever trains is heard of all the time."""


@pytest.fixture(scope="module")
def rested():
    """A world that has been in a state for minutes; tests look at it, and change nothing."""
    known = {}

    def find(world, state):
        if state not in known:
            known[state] = state(world).run(MINUTES, pace=5.0)
        return known[state]

    return find


def plan_after(w, seconds, *, speaking=False):
    """What is decided so much later, when nothing has happened; or agents still report."""
    observed, now = w.observed(), w.now + seconds
    if speaking:
        agents = {u: replace(a, seen_at=a.seen_at + seconds) for u, a in observed.agents.items()}
        observed = replace(observed, agents=agents)
    access = PodAccess(token="t", url="http://rekindle:8430")
    return reconcile(w.job, w.status, replace(observed, now=now), access=access, now=now)


@pytest.mark.parametrize("state", AT_REST, ids=lambda state: state.__name__)
def test_nothing_that_is_told_changes_by_time_alone(world, rested, state):
    """A status that said for how long would be written anew at each look, by all that wait."""
    w, looks = rested(world, state), 0
    for seconds in (0.1, 1.0, 4.7, 61.3, 600.1):
        later = plan_after(w, seconds)
        made = later.create and not w.hindered
        if made or later.delete or later.publish or later.events:
            break  # it was time for something to happen
        looks += 1
        assert merge_patch(w.status, dict(later.status)).keys() <= status_writer.CLOCKS
    assert looks


@pytest.mark.parametrize("state", AT_REST, ids=lambda state: state.__name__)
def test_whoever_waits_is_looked_at_when_time_brings_something_and_else_rarely(
    world, rested, state
):
    """Events tell of all else; a look at each of 500 jobs every few seconds is a core for nothing.

    What keeps pods from being created is tried again by whoever creates them, at paces of its own.
    """
    w = rested(world, state)

    def brings(seconds):
        later = plan_after(w, seconds, speaking=True)
        made = later.create and not w.hindered
        changed = merge_patch(w.status, dict(later.status)).keys()
        changed -= {*status_writer.CLOCKS, "progress"}  # which says when agents have reported last
        return bool(made or later.delete or later.publish or later.events or changed)

    wakes = plan_after(w, 0.0, speaking=True).requeue or math.inf
    for seconds in (0.1, 1.0, 4.7, 9.9, 29.0, 61.3, 299.0, 600.1):
        if seconds < wakes:
            assert not brings(seconds), f"due after {seconds} s, looked at after {wakes} s"
    assert wakes >= 10 or brings(wakes), f"looked at every {wakes} s for nothing"


def test_a_sidecar_that_dies_beside_a_training_job_is_told_and_stops_nothing(world):
    w = world().start()
    state = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}
    for pod in w.pods.values():
        pod.beside["containerStatuses"] = [
            {"name": "trainer", "state": {"running": {}}},
            *([{"name": "proxy", "state": state}] if pod.name == "digits-1" else []),
        ]
    w.run(5)
    assert w.phase == "Running"
    assert w.condition("Degraded")["reason"] == "SidecarFailed"
    assert "sidecar proxy of pod digits-1" in w.condition("Degraded")["message"]
    assert w.condition("Ready")["status"] == "True"


def test_what_no_longer_holds_is_no_longer_told(world):
    w = world().settle_with_broken_image("digits-1").run(30)
    assert w.condition("Degraded")["reason"] == "ErrImagePull"
    w.broken_image = set()
    w.until(w.training)
    assert w.condition("Degraded") | {"lastTransitionTime": ""} == {
        "type": "Degraded",
        "status": "False",
        "reason": "AsExpected",
        "message": "nothing needs attention",
        "lastTransitionTime": "",
        "observedGeneration": 1,
    }
