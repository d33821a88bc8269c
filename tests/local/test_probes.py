"""Probes and hooks of pods on the embedded cluster: what they find, say and do."""

import pytest

pytestmark = pytest.mark.processes


def main(pod):
    return pod["status"]["containerStatuses"][0]


def events(bench, name, reason):
    found = bench.request("GET", f"/api/v1/namespaces/{bench.namespace}/events")["items"]
    return [
        one["message"]
        for one in found
        if one["involvedObject"]["name"] == name and one["reason"] == reason
    ]


def test_a_failed_liveness_probe_ends_a_pod_that_never_restarts(bench):
    probe = {"exec": {"command": ["sh", "-c", "echo no pulse; exit 2"]}, "periodSeconds": 1,
             "failureThreshold": 1}  # fmt: skip
    bench.pod("a", "trap 'exit 7' TERM; while :; do sleep 0.05; done",
              container={"livenessProbe": probe}, terminationGracePeriodSeconds=5)  # fmt: skip
    pod = bench.ended("a")
    assert pod["status"]["phase"] == "Failed"
    assert main(pod)["state"]["terminated"]["exitCode"] in (7, 143)  # 143 before the trap is set
    assert bench.wait_for(lambda: events(bench, "a", "Unhealthy"), bool) == [
        "Liveness probe failed: no pulse"
    ]
    assert events(bench, "a", "Killing") == ["Stopping container main"]


def test_a_container_that_ignores_the_liveness_kill_is_killed_after_its_grace(bench):
    probe = {"tcpSocket": {"port": 1}, "periodSeconds": 1, "failureThreshold": 1,
             "terminationGracePeriodSeconds": 1}  # fmt: skip
    up = {"exec": {"command": ["sh", "-c", "test -e /e/up"]}, "periodSeconds": 1}
    bench.pod("a", "trap '' TERM; touch /e/up; while :; do sleep 0.05; done",
              volumes=[{"name": "e", "emptyDir": {}}],
              container={"livenessProbe": probe, "startupProbe": up,
                         "volumeMounts": [{"name": "e", "mountPath": "/e"}]})  # fmt: skip
    pod = bench.ended("a")
    assert main(pod)["state"]["terminated"]["exitCode"] == 137
    text = bench.wait_for(lambda: events(bench, "a", "Unhealthy"), bool)[-1]
    assert text.startswith("Liveness probe failed: dial tcp 127.")
    assert text.endswith(":1: connect: connection refused")


def test_a_failed_startup_probe_restarts_the_container(bench):
    probe = {"httpGet": {"port": "web", "path": "/up"}, "periodSeconds": 1, "failureThreshold": 1}
    bench.pod("a", "exec sleep 60", restartPolicy="OnFailure", terminationGracePeriodSeconds=1,
              container={"startupProbe": probe, "ports": [
                  {"name": "web", "containerPort": 8080}]})  # fmt: skip
    pod = bench.wait("a", lambda pod: pod["status"].get("phase") == "Running"
                     and main(pod)["restartCount"] == 1)  # fmt: skip
    assert main(pod)["started"] is False or main(pod)["state"].get("waiting")
    [text] = bench.wait_for(lambda: events(bench, "a", "Unhealthy"), bool)[:1]
    assert text.startswith('Startup probe failed: Get "http://127.')
    assert "connection refused" in text
    assert "Container main failed startup probe, will be restarted" in events(bench, "a", "Killing")


def test_a_command_that_takes_too_long_is_told_and_killed(bench):
    probe = {"exec": {"command": ["sleep", "30"]}, "periodSeconds": 1, "timeoutSeconds": 1}
    bench.pod("a", "exec sleep 60", container={"readinessProbe": probe})
    [text] = bench.wait_for(lambda: events(bench, "a", "Unhealthy"), bool)[:1]
    assert text == 'Readiness probe failed: command timed out: "sleep 30" timed out after 1s'


def test_hooks_run_after_the_start_and_before_the_end(bench):
    hooks = {
        "postStart": {"exec": {"command": ["sh", "-c", "echo up > /e/said"]}},
        "preStop": {"exec": {"command": ["sh", "-c", "echo going >> /e/said"]}},
    }
    script = "trap 'cat /e/said > /dev/termination-log; exit 0' TERM; while :; do sleep 0.05; done"
    bench.pod("a", script, volumes=[{"name": "e", "emptyDir": {}}], activeDeadlineSeconds=3,
              container={"lifecycle": hooks,
                         "volumeMounts": [{"name": "e", "mountPath": "/e"}]})  # fmt: skip
    pod = bench.ended("a")
    assert main(pod)["state"]["terminated"]["message"] == "up\ngoing\n"


def test_a_failed_post_start_hook_kills_the_container(bench):
    hooks = {"postStart": {"exec": {"command": ["sh", "-c", "echo broken; exit 1"]}}}
    bench.pod("a", "exec sleep 60", container={"lifecycle": hooks})
    pod = bench.ended("a")
    assert main(pod)["state"]["terminated"]["exitCode"] == 137
    assert bench.wait_for(lambda: events(bench, "a", "FailedPostStartHook"), bool) == [
        "PostStartHook failed: broken"
    ]
