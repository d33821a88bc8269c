from datetime import UTC, datetime

import pytest

from rekindle_local.kubelet.status import (
    ContainerState,
    PodState,
    Running,
    Terminated,
    WaitingState,
    build,
    phase,
    qos_class,
)

NOW = datetime(2030, 1, 1, tzinfo=UTC)
RUNNING = Running(started_at=NOW)
CREATING = WaitingState(reason="ContainerCreating")


def ended(code):
    return Terminated(
        exit_code=code,
        signal=0,
        reason="x",
        message="m",
        started_at=NOW,
        finished_at=NOW,
        container_id="1",
    )


def one(state, *, last=None, ready=False, name="c", **more):
    return ContainerState(name=name, image="i", state=state, last=last, ready=ready, **more)


def sidecar(state, **more):
    return one(state, name="s", sidecar=True, **more)


def pod(**status):
    return {"metadata": {"name": "p"}, "spec": {"restartPolicy": "Never"}, "status": status}


def state(*containers, init=(), **fields):
    return PodState(
        init=init,
        containers=containers,
        pod_ip="127.64.0.2",
        host_ip="127.64.0.1",
        started_at=NOW,
        **fields,
    )


@pytest.mark.parametrize(
    ("policy", "states", "expected"),
    [
        ("Never", [CREATING], "Pending"),
        ("Never", [RUNNING, ended(0)], "Running"),
        ("Never", [ended(0), ended(0)], "Succeeded"),
        ("Never", [ended(0), ended(1)], "Failed"),
        ("OnFailure", [ended(1)], "Running"),
        ("OnFailure", [ended(0)], "Succeeded"),
        ("Always", [ended(0)], "Running"),
    ],
)
def test_the_phase_follows_from_the_containers_and_the_policy(policy, states, expected):
    assert phase(policy, (), [one(item) for item in states]) == expected


def test_a_container_in_back_off_leaves_the_pod_running():
    waiting = one(WaitingState(reason="CrashLoopBackOff"), last=ended(1))
    assert phase("OnFailure", (), [waiting]) == "Running"


def test_init_containers_hold_the_phase():
    assert phase("Never", [one(RUNNING)], [one(CREATING)]) == "Pending"
    assert phase("Never", [one(ended(1))], [one(CREATING)]) == "Failed"
    assert phase("OnFailure", [one(ended(1))], [one(CREATING)]) == "Pending"


@pytest.mark.parametrize(
    ("policy", "init", "main", "expected"),
    [
        # It holds what follows until it has started, and no longer.
        ("Never", [sidecar(RUNNING)], CREATING, "Pending"),
        ("Never", [sidecar(RUNNING, started=True)], CREATING, "Pending"),
        ("Never", [sidecar(RUNNING, started=True)], RUNNING, "Running"),
        ("Never", [sidecar(CREATING, last=ended(1))], RUNNING, "Running"),
        # How it ends never counts; that it still runs does.
        ("Never", [sidecar(RUNNING, started=True)], ended(0), "Running"),
        ("Never", [sidecar(ended(137))], ended(0), "Succeeded"),
        ("Never", [sidecar(ended(0))], ended(1), "Failed"),
        # An init container after it failed: the pod has failed once the sidecar has ended.
        ("Never", [sidecar(RUNNING, started=True), one(ended(1))], CREATING, "Pending"),
        ("Never", [sidecar(ended(0)), one(ended(1))], CREATING, "Failed"),
        ("OnFailure", [sidecar(ended(143))], ended(0), "Succeeded"),
    ],
)
def test_a_sidecar_counts_by_having_started(policy, init, main, expected):
    assert phase(policy, init, [one(main)]) == expected


def test_a_sidecar_that_is_not_ready_keeps_the_pod_from_being_ready():
    init = [sidecar(RUNNING, started=True)]
    status = build(pod(), state(one(RUNNING, ready=True), init=init), NOW)
    assert condition(status, "Initialized")["status"] == "True"
    assert condition(status, "Ready")["message"] == "containers with unready status: [s]"


def test_what_is_not_initialized_is_named():
    init = [sidecar(RUNNING), one(CREATING, name="i")]
    found = condition(build(pod(), state(one(CREATING), init=init), NOW), "Initialized")
    assert found["message"] == "containers with incomplete status: [s i]"


def test_a_readiness_gate_holds_the_pod_until_somebody_opens_it():
    gated = pod(conditions=[{"type": "x/open", "status": "False"}])
    gated["spec"]["readinessGates"] = [{"conditionType": "x/open"}, {"conditionType": "x/other"}]
    ready = condition(build(gated, state(one(RUNNING, ready=True)), NOW), "Ready")
    assert ready["reason"] == "ReadinessGatesNotReady"
    assert 'readiness gate "x/other" does not exist' in ready["message"]
    opened = [{"type": f"x/{name}", "status": "True"} for name in ("open", "other")]
    gated["status"]["conditions"] = opened
    ready = condition(build(gated, state(one(RUNNING, ready=True)), NOW), "Ready")
    assert ready["status"] == "True"


def condition(status, kind):
    return next(item for item in status["conditions"] if item["type"] == kind)


def test_an_unready_container_is_named_in_the_ready_condition():
    status = build(pod(), state(one(RUNNING, ready=True), one(RUNNING, name="b")), NOW)
    ready = condition(status, "Ready")
    assert ready["status"] == "False"
    assert ready["message"] == "containers with unready status: [b]"


def test_a_condition_keeps_its_transition_time_while_its_status_stays():
    before = {"type": "Ready", "status": "True", "lastTransitionTime": "2020-01-01T00:00:00Z"}
    status = build(pod(conditions=[before]), state(one(RUNNING, ready=True)), NOW)
    assert condition(status, "Ready")["lastTransitionTime"] == "2020-01-01T00:00:00Z"
    status = build(pod(conditions=[before]), state(one(ended(0))), NOW)
    assert condition(status, "Ready")["lastTransitionTime"] == "2030-01-01T00:00:00Z"


def test_the_words_of_an_earlier_state_are_cleared():
    before = {"type": "Ready", "status": "False", "reason": "ContainersNotReady", "message": "m"}
    status = build(pod(conditions=[before]), state(one(RUNNING, ready=True)), NOW)
    assert condition(status, "Ready")["reason"] is None


def test_an_ended_container_tells_its_code_message_and_times():
    shown = build(pod(), state(one(ended(76))), NOW)["containerStatuses"][0]["state"]["terminated"]
    assert shown["exitCode"] == 76
    assert shown["message"] == "m"
    assert shown["finishedAt"] == "2030-01-01T00:00:00Z"


def test_an_eviction_by_the_node_sets_disruption_target():
    wanted = state(one(ended(137)), disruption=("TerminationByKubelet", "too big"), phase="Failed")
    assert condition(build(pod(), wanted, NOW), "DisruptionTarget")["reason"] == (
        "TerminationByKubelet"
    )


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        ({}, "BestEffort"),
        ({"requests": {"cpu": "1"}}, "Burstable"),
        ({"limits": {"cpu": "1", "memory": "1Gi"}}, "Guaranteed"),
        ({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}, "Burstable"),
    ],
)
def test_the_qos_class_follows_from_requests_and_limits(resources, expected):
    assert qos_class({"containers": [{"name": "c", "resources": resources}]}) == expected
