"""Pods on the embedded cluster: what they get, how they end, what their status says."""

import base64
import os
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.processes


def container(pod, kind="containerStatuses"):
    return pod["status"][kind][0]


def terminated(pod):
    return container(pod)["state"]["terminated"]


def condition(pod, kind):
    found = [one for one in pod["status"]["conditions"] if one["type"] == kind]
    return found[0] if found else {}


def is_ready(pod):
    return any(
        one["type"] == "Ready" and one["status"] == "True"
        for one in pod["status"].get("conditions") or ()
    )


def waits_with(reason):
    return lambda pod: (
        (pod["status"].get("containerStatuses") or [{}])[0]
        .get("state", {})
        .get("waiting", {})
        .get("reason")
        == reason
    )


def test_a_pod_that_exits_0_succeeds_and_leaves_its_log(bench):
    pod = bench.run("a", "echo one; echo two")
    assert pod["status"]["phase"] == "Succeeded"
    assert terminated(pod)["reason"] == "Completed"
    assert condition(pod, "Ready")["reason"] == "PodCompleted"
    assert bench.logs("a", tailLines=1) == "two\n"


def test_a_failed_pod_tells_code_and_termination_message(bench):
    pod = bench.run("a", 'printf "why" > /dev/termination-log; exit 76')
    assert pod["status"]["phase"] == "Failed"
    assert terminated(pod)["exitCode"] == 76
    assert terminated(pod)["message"] == "why"


def test_the_message_path_is_known_to_programs_by_a_variable(bench):
    env = [{"name": "MINE", "value": "/dev/termination-log"}]
    pod = bench.run("a", "test $MINE = $TERMINATION_LOG && echo ok > $MINE", container={"env": env})
    assert terminated(pod)["message"] == "ok\n"


def test_without_a_message_the_end_of_the_log_is_one_when_asked_for(bench):
    policy = {"terminationMessagePolicy": "FallbackToLogsOnError"}
    pod = bench.run("a", "echo Traceback; exit 1", container=policy)
    assert terminated(pod)["message"] == "Traceback\n"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs all of 127.0.0.0/8")
def test_each_pod_has_an_address_where_it_can_bind_the_same_port(bench):
    program = (
        "import os, socket, time\n"
        "server = socket.create_server((os.environ['IP'], 29500))\n"
        "time.sleep(60)"
    )
    ip = {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
    probe = {"tcpSocket": {"port": 29500}, "periodSeconds": 1}
    main = {"command": ["python", "-c", program], "env": [ip], "readinessProbe": probe}
    for name in ("a", "b"):
        bench.pod(name, container=main)
    pods = [bench.wait(name, is_ready) for name in ("a", "b")]
    assert len({pod["status"]["podIP"] for pod in pods}) == 2


def test_volumes_are_where_the_pod_names_them(bench):
    bench.create("configmaps", "c", data={"mode": "fast"})
    bench.create("secrets", "s", data={"key": base64.b64encode(b"s3cret").decode()})
    volumes = [
        {"name": "c", "configMap": {"name": "c"}},
        {"name": "s", "secret": {"secretName": "s"}},
        {"name": "e", "emptyDir": {}},
        {"name": "d", "downwardAPI": {"items": [
            {"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}},
    ]  # fmt: skip
    mounts = [{"name": one["name"], "mountPath": f"/mnt/{one['name']}"} for one in volumes]
    pod = bench.run(
        "a",
        "cat /mnt/c/mode /mnt/s/key /mnt/d/name > /mnt/e/out; cat /mnt/e/out >/dev/termination-log",
        container={"volumeMounts": mounts},
        volumes=volumes,
    )
    assert terminated(pod)["message"] == "fasts3creta"


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="no /dev/shm here")
def test_a_memory_volume_is_memory_and_goes_with_its_pod(bench):
    volumes = [{"name": "m", "emptyDir": {"medium": "Memory"}}]
    mounts = {"volumeMounts": [{"name": "m", "mountPath": "/dev/shm"}]}
    script = "echo x > /dev/shm/file; echo /dev/shm > /dev/termination-log"
    pod = bench.run("a", script, container=mounts, volumes=volumes)
    path = Path(terminated(pod)["message"].strip())
    assert path.is_relative_to("/dev/shm")
    assert (path / "file").exists()
    bench.delete("a")
    bench.wait("a", lambda pod: pod is None and not path.exists())


def test_a_missing_secret_is_waited_for(bench):
    ref = {"secretKeyRef": {"name": "late", "key": "k"}}
    bench.pod("a", "echo $K > /dev/termination-log", container={
        "env": [{"name": "K", "valueFrom": ref}]})  # fmt: skip
    pod = bench.wait("a", waits_with("CreateContainerConfigError"))
    assert container(pod)["state"]["waiting"]["message"] == 'secret "late" not found'
    bench.create("secrets", "late", data={"k": base64.b64encode(b"here").decode()})
    assert terminated(bench.ended("a"))["message"] == "here\n"


def test_an_unknown_image_is_a_failed_pull_with_a_way_out(bench):
    bench.pod("a", container={"image": "registry.example/unknown:1"})
    bench.wait("a", waits_with("ErrImagePull"))
    pod = bench.wait("a", waits_with("ImagePullBackOff"))
    assert "knows no image that matches" in container(pod)["state"]["waiting"]["message"]
    assert pod["status"]["phase"] == "Pending"


def test_a_command_that_does_not_exist_is_a_start_error(bench):
    pod = bench.run("a", "", container={"command": ["no-such-command"]})
    assert terminated(pod)["reason"] == "StartError"
    assert terminated(pod)["exitCode"] == 128
    assert "executable file not found in $PATH" in terminated(pod)["message"]


def test_deletion_gives_sigterm_and_the_grace_period(bench):
    volumes = [{"name": "h", "hostPath": {"path": "/tmp"}}]
    bench.pod("a", "trap 'sleep 0.3; exit 75' TERM; echo up; sleep 60 & wait", volumes=volumes)
    bench.wait("a", lambda _: pod_is_up(bench))
    bench.delete("a", grace=5)
    pod = bench.wait("a", lambda pod: pod is None or "terminated" in container(pod)["state"])
    bench.gone("a")
    assert pod is None or terminated(pod)["exitCode"] == 75


def pod_is_up(bench):
    pod = bench.get("a")
    return pod["status"].get("phase") == "Running" and bench.logs("a") == "up\n"


def test_a_pod_that_ignores_sigterm_is_killed_after_its_grace(bench):
    bench.pod("a", "trap '' TERM; echo up; while :; do sleep 0.1; done")
    bench.wait("a", lambda _: pod_is_up(bench))
    pids = bench.cluster.pids(bench.namespace, "a")
    bench.delete("a", grace=1)
    bench.gone("a")
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_a_killed_pod_fails_with_137(bench):
    bench.pod("a", "sleep 60 & sleep 60")
    bench.running("a")
    bench.cluster.kill_pod(bench.namespace, "a")
    pod = bench.ended("a")
    assert terminated(pod)["exitCode"] == 137
    assert terminated(pod)["signal"] == 9


def test_a_failing_container_is_restarted_with_a_growing_back_off(bench):
    bench.pod("a", "echo run; exit 1", restartPolicy="OnFailure")
    pod = bench.wait("a", waits_with("CrashLoopBackOff"))
    assert container(pod)["lastState"]["terminated"]["exitCode"] == 1
    assert "back-off" in container(pod)["state"]["waiting"]["message"]
    pod = bench.wait("a", lambda pod: container(pod)["restartCount"] >= 2)
    assert pod["status"]["phase"] == "Running"
    assert bench.logs("a", previous="true") == "run\n"


def test_init_containers_run_in_order_and_hold_the_others(bench):
    volumes = [{"name": "e", "emptyDir": {}}]
    mount = {"volumeMounts": [{"name": "e", "mountPath": "/e"}]}

    def step(name):
        return {"name": name, "image": "py:1", "command": ["sh", "-c", f"echo {name} >> /e/o"],
                **mount}  # fmt: skip

    pod = bench.run("a", "cat /e/o > /dev/termination-log", container=mount, volumes=volumes,
                    initContainers=[step("x"), step("y")])  # fmt: skip
    assert terminated(pod)["message"] == "x\ny\n"


def test_a_failed_init_container_fails_the_pod(bench):
    init = {"name": "i", "image": "py:1", "command": ["sh", "-c", "exit 4"]}
    pod = bench.run("a", "true", initContainers=[init])
    assert pod["status"]["phase"] == "Failed"
    assert container(pod, "initContainerStatuses")["state"]["terminated"]["exitCode"] == 4
    assert container(pod)["state"]["waiting"]["reason"] == "PodInitializing"


def test_a_container_over_its_memory_limit_is_oom_killed(bench):
    program = "x = bytearray(200 << 20)\nimport time\ntime.sleep(60)"
    pod = bench.run("a", "", container={
        "command": ["python", "-c", program],
        "resources": {"limits": {"memory": "100Mi"}},
    })  # fmt: skip
    assert terminated(pod)["reason"] == "OOMKilled"
    assert terminated(pod)["exitCode"] == 137


def test_a_pod_over_its_volume_limit_is_evicted_by_the_node(bench):
    volumes = [{"name": "e", "emptyDir": {"sizeLimit": "1Mi"}}]
    mount = {"volumeMounts": [{"name": "e", "mountPath": "/e"}]}
    script = "head -c 3000000 /dev/zero > /e/big; sleep 60"
    pod = bench.run("a", script, container=mount, volumes=volumes)
    assert pod["status"]["reason"] == "Evicted"
    assert 'EmptyDir volume "e" exceeds the limit "1Mi"' in pod["status"]["message"]
    assert condition(pod, "DisruptionTarget")["reason"] == "TerminationByKubelet"


def test_a_pod_over_its_ephemeral_storage_is_evicted_by_the_node(bench):
    limits = {"resources": {"limits": {"ephemeral-storage": "1Mi"}}}
    pod = bench.run("a", "head -c 3000000 /dev/zero > $TMPDIR/big; sleep 60", container=limits)
    assert pod["status"]["reason"] == "Evicted"
    assert "exceeds the total limit of containers 1Mi" in pod["status"]["message"]


def test_a_pod_past_its_active_deadline_fails(bench):
    pod = bench.run("a", "sleep 60", activeDeadlineSeconds=1)
    assert pod["status"]["reason"] == "DeadlineExceeded"
    assert terminated(pod)["exitCode"] == 143


def test_liveness_restarts_and_readiness_only_reports(bench):
    bench.pod("a", "sleep 60", restartPolicy="Always", container={
        "readinessProbe": {"exec": {"command": ["false"]}, "periodSeconds": 1},
        "livenessProbe": {"exec": {"command": ["false"]}, "periodSeconds": 1,
                          "failureThreshold": 1, "initialDelaySeconds": 1},
    }, terminationGracePeriodSeconds=1)  # fmt: skip
    pod = bench.running("a")
    assert condition(pod, "Ready")["status"] == "False"
    assert container(pod)["restartCount"] == 0
    bench.wait("a", lambda pod: container(pod)["restartCount"] == 1)


def test_a_pod_this_node_cannot_run_is_refused_with_the_field(bench):
    pod = bench.run("a", "true", volumes=[{"name": "v", "nfs": {"server": "s", "path": "/"}}])
    assert pod["status"]["reason"] == "UnsupportedByThisNode"
    assert "spec.volumes[0].nfs" in pod["status"]["message"]
