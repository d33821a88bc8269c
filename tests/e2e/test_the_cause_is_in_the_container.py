"""Pods that end, or do not, for what their own containers do: the condition says which, and why.

All jobs are submitted at once and waited for together: starting processes is what costs.
"""

import pytest

pytestmark = [pytest.mark.processes, pytest.mark.timeout(600)]

FETCH = "echo fetching; printf '\\033[31mno such bucket\\033[0m\\n' >&2; exit 3"


def shell(site, name, script, **more):
    return {"name": name, "image": site.image, "command": ["sh", "-c", script], **more}


def never():
    """No try beyond the first."""
    return {"replicas": 1, "restart": {"user": {"max": 0, "window": "1h"}}}


def test_what_ends_a_pod_is_named_with_its_container_and_its_last_lines(submit, site):
    init = submit("init", pod={"initContainers": [shell(site, "get-data", FETCH)]}, **never())
    mute = shell(site, "get-data", FETCH, terminationMessagePolicy="File")
    silent = submit("silent", pod={"initContainers": [mute]}, **never())
    probe = {"exec": {"command": ["false"]}, "periodSeconds": 1, "failureThreshold": 2}
    long = ("--steps=100000", "--delay=0.02")
    probed = submit("probed", *long, container={"livenessProbe": probe}, **never())
    deadline = submit("deadline", *long, pod={"activeDeadlineSeconds": 5}, **never())
    node = submit("node", pod={"nodeName": "gpu-7"}, **never())

    for job in (init, silent):
        failed = job.failed()
        assert failed["reason"] == "InitFailed"
        for word in ("init container get-data", "exit code 3, Error", "fetching", "no such bucket"):
            assert word in failed["message"]
        assert "\x1b" not in failed["message"]
        assert job.status["restarts"]["user"] == 1
        assert "no such bucket" in job.why()
    failed = probed.failed()
    assert failed["reason"] == "ProbeFailed", failed
    assert "container trainer" in failed["message"]
    assert "livenessProbe" in failed["message"]
    failed = deadline.failed()
    assert failed["reason"] == "PodDeadline", failed
    assert "spec.deadlines.active" in failed["message"]
    failed = node.failed()
    assert failed["reason"] == "NoSuchNode", failed
    assert "gpu-7" in failed["message"]
    assert len(node.status["incidents"]) == 1


def test_a_volume_that_cannot_be_mounted_is_named_by_the_events_of_its_pod(submit):
    volumes = [
        {"name": "scripts", "configMap": {"name": "scripts"}},
        {"name": "data", "configMap": {"name": "nobody-made-this"}},
    ]
    mounts = [{"name": v["name"], "mountPath": f"/{v['name']}"} for v in volumes]
    container = {"volumeMounts": mounts}
    job = submit("mount", container=container, pod={"volumes": volumes}, replicas=1)

    def told(status):
        found = {c["type"]: c for c in status.get("conditions") or ()}
        return found["Degraded"] if found.get("Degraded", {}).get("status") == "True" else None

    degraded = job.wait(told, "the condition to name what cannot be mounted")
    assert degraded["reason"] == "FailedMount"
    assert "nobody-made-this" in degraded["message"]
    assert "correct volumes in spec.template" in job.why()


def test_the_log_of_the_trainer_outlives_a_sidecar_that_never_ends(submit, site, eventually):
    endless = shell(site, "proxy", "trap '' TERM; while true; do sleep 1; done")
    job = submit("endless", "--steps=20", replicas=1, sidecars=(endless,), grace=2)
    job.wait_phase("Succeeded")
    eventually(
        lambda: [pod.status.phase for pod in job.pods()] == ["Failed"], "the sidecar to be ended"
    )
    (pod,) = job.pods()
    assert pod.status.reason == "DeadlineExceeded"
    log = site.core.read_namespaced_pod_log(
        pod.metadata.name, job.namespace, container="trainer", tail_lines=5
    )
    assert log.strip()
    assert job.status["phase"] == "Succeeded"
    assert job.status["restarts"]["total"] == 0


def test_a_native_sidecar_runs_beside_the_trainer_and_ends_with_it(submit, site, eventually):
    proxy = shell(site, "proxy", "while true; do sleep 1; done", restartPolicy="Always")
    job = submit("native", "--steps=20", replicas=1, pod={"initContainers": [proxy]}, grace=2)
    job.wait_phase("Succeeded")
    eventually(
        lambda: [pod.status.phase for pod in job.pods()] == ["Succeeded"], "the pod to succeed"
    )
    assert job.status["restarts"]["total"] == 0
    assert not job.status["incidents"]
