"""Hangs, slow ranks, losses that are no number, long phases: told in the incident, and obeyed."""

import pytest
from kubernetes.client import ApiException
from kubernetes.watch import Watch

from rekindle.api import ExitCode

pytestmark = [pytest.mark.processes, pytest.mark.timeout(600)]


def condition(status, kind):
    return next(c for c in status["conditions"] if c["type"] == kind)


def log(job, pod):
    return job.site.core.read_namespaced_pod_log(pod, job.namespace)


def test_a_rollback_a_slow_rank_and_a_hang_are_named_with_pod_and_stacks(submit):
    job = submit(
        "stuck", "--steps=50", "--delay=0.02", "--nan-at=15", "--slow-rank=1", "--hang-at=30",
        replicas=2, hang={"timeout": "3s"},
    )  # fmt: skip
    slow = job.wait(
        lambda s: s.get("conditions") and told_of_straggler(s), "the slow pod to be named"
    )
    assert "rank 1 on pod stuck-1" in slow["message"]
    back = job.wait(lambda s: of_cause(s, "RolledBack"), "a rollback")
    assert (back["step"], back["resumedFrom"]) in {(15, 10), (16, 10), (17, 10)}
    assert back["recovery" if "recovery" in back else "stepsLost"]
    hung = job.incident("stuck-1")
    assert hung["cause"] == "Hung"
    assert hung["victims"] == ["stuck-1"]
    assert "rank 1 on stuck-1 has not got on" in hung["evidence"]
    assert "stand_still" in hung["stacks"]
    status = job.wait_phase("Succeeded")
    assert status["restarts"] == {"user": 0, "infrastructure": 1, "preemption": 0, "total": 1}
    assert [i["cause"] for i in status["incidents"]] == ["RolledBack", "Hung"]
    assert "stand_still" in log(job, "stuck-1")
    assert "stacks of rank 0" in log(job, "stuck-0"), log(job, "stuck-0")
    why = job.why()
    assert "stuck-1" in why
    assert "has not got on" in why


def told_of_straggler(status):
    degraded = condition(status, "Degraded")
    return degraded if degraded["reason"] == "Straggler" else None


def of_cause(status, cause):
    return next((i for i in status.get("incidents", ()) if i["cause"] == cause), None)


def test_a_notice_during_a_long_validation_is_obeyed_in_time(submit, eventually):
    job = submit(
        "validating", "--steps=100000", "--delay=0.02", "--validation=0.4",
        replicas=2, elastic={"minReplicas": 2}, grace=6,
    )  # fmt: skip
    eventually(lambda: "validation begins" in log_if_any(job, "validating-1"), "a validation")
    assert_saved_in_time(job, "validating-1")


def test_a_notice_during_a_slow_save_is_obeyed_in_time(submit, eventually):
    job = submit(
        "saving", "--steps=100000", "--delay=0.02", "--saving=1.5",
        replicas=2, elastic={"minReplicas": 2}, grace=10,
    )  # fmt: skip
    eventually(lambda: log_if_any(job, "saving-1").count("saving begins") > 1, "a save")
    assert_saved_in_time(job, "saving-1")


def log_if_any(job, pod):
    """What a pod has written; nothing while it starts."""
    try:
        return log(job, pod) or ""
    except ApiException:
        return ""


def assert_saved_in_time(job, victim):
    """The pod has left before its grace was over, when it would have been killed."""
    ends = set()
    watch = Watch().stream(
        job.site.core.list_namespaced_pod,
        job.namespace,
        field_selector=f"metadata.name={victim}",
        timeout_seconds=180,
    )
    for event in watch:
        if event["type"] == "ADDED":
            job.delete_pod(victim)
        states = [each.state for each in event["object"].status.container_statuses or ()]
        ends |= {state.terminated.exit_code for state in states if state.terminated}
        if event["type"] == "DELETED":
            break
    assert ends == {ExitCode.SAVED}
    incident = job.incident(victim)
    assert incident["cause"] == "Preempted"
    assert incident["stepsLost"] == 0
    assert incident["step"] > 0
    assert job.status["restarts"] == {"user": 0, "infrastructure": 0, "preemption": 1, "total": 1}


def test_a_pod_that_dies_during_the_start_or_a_save_is_replaced(submit, site, eventually):
    job = submit("dying", "--steps=100000", "--delay=0.02", "--saving=2", replicas=2)
    job.wait(lambda s: s.get("phase") == "Starting", "the start")
    eventually(lambda: any(p.status.phase == "Running" for p in job.pods()), "a pod to run")
    first = next(p.metadata.name for p in job.pods() if p.status.phase == "Running")
    site.kill_pod(job.namespace, first)
    assert job.incident(first)["cause"] == "PodLost"
    status = job.whole()
    members = job.members()
    before = log(job, members[0]).count("saving begins")
    eventually(lambda: log(job, members[0]).count("saving begins") > before, "a save")
    site.kill_pod(job.namespace, members[1])
    incident = job.incident(members[1])
    assert incident["cause"] == "PodLost"
    assert incident["resumedFrom"] + incident["stepsLost"] == incident["step"]
    assert job.status["restarts"]["infrastructure"] == status["restarts"]["infrastructure"] + 1
