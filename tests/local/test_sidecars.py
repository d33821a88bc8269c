"""Init containers and sidecars: in which order they start, hold each other, and end."""

import ssl
from urllib.request import Request, urlopen

import pytest

pytestmark = pytest.mark.processes

EMPTY = [{"name": "e", "emptyDir": {}}]
MOUNT = [{"name": "e", "mountPath": "/e"}]


def init(name, script, **more):
    return {
        "name": name,
        "image": "py:1",
        "command": ["sh", "-c", script],
        "volumeMounts": MOUNT,
        **more,
    }


def sidecar(name, script="exec sleep 60", **more):
    return init(name, script, restartPolicy="Always", **more)


def states(pod, kind="initContainerStatuses"):
    return {one["name"]: one for one in pod["status"].get(kind) or ()}


def message(pod, name="main"):
    found = {**states(pod), **states(pod, "containerStatuses")}
    return found[name]["state"]["terminated"]["message"]


def events(bench, name, reason):
    found = bench.request("GET", f"/api/v1/namespaces/{bench.namespace}/events")["items"]
    return [
        one for one in found if one["involvedObject"]["name"] == name and one["reason"] == reason
    ]


def test_a_pod_completes_beside_a_sidecar_that_never_ends(bench):
    pod = bench.run("a", "exit 0", volumes=EMPTY, initContainers=[sidecar("s")])
    assert pod["status"]["phase"] == "Succeeded"
    assert states(pod)["s"]["state"]["terminated"]["exitCode"] == 143
    assert states(pod, "containerStatuses")["main"]["state"]["terminated"]["exitCode"] == 0


def test_what_follows_waits_until_the_startup_probe_of_a_sidecar_passes(bench):
    probe = {"exec": {"command": ["cat", "/e/up"]}, "periodSeconds": 1, "failureThreshold": 30}
    bench.pod("a", "cat /e/order > /dev/termination-log", volumes=EMPTY,
              container={"volumeMounts": MOUNT},
              initContainers=[
                  sidecar("s", "until test -e /e/go; do sleep 0.1; done; echo s > /e/order;"
                          " touch /e/up; exec sleep 60", startupProbe=probe),
                  init("i", "echo i >> /e/order")])  # fmt: skip
    pod = bench.wait("a", lambda pod: states(pod).get("s", {}).get("state", {}).get("running"))
    assert states(pod)["s"]["started"] is False
    assert states(pod)["i"]["state"]["waiting"]["reason"] == "PodInitializing"
    assert pod["status"]["phase"] == "Pending"
    # The probe is told why it fails, on the container that fails it.
    [event] = bench.wait_for(lambda: events(bench, "a", "Unhealthy"), bool)[:1]
    assert event["message"].startswith("Startup probe failed: cat: ")
    assert event["involvedObject"]["fieldPath"] == "spec.initContainers{s}"
    where = bench.cluster.cluster.state_dir
    [folder] = where.glob(f"*/pods/{pod['metadata']['uid']}/volumes/e")
    (folder / "go").touch()
    assert message(bench.ended("a")) == "s\ni\n"


def test_a_sidecar_that_dies_is_started_again_though_the_pod_never_restarts(bench):
    bench.pod("a", volumes=EMPTY, initContainers=[sidecar("s", "sleep 0.1; exit 3")])
    pod = bench.wait("a", lambda pod: states(pod).get("s", {}).get("restartCount", 0) >= 2)
    assert pod["status"]["phase"] == "Running"
    assert states(pod)["s"]["lastState"]["terminated"]["exitCode"] == 3


def test_the_log_of_an_init_container_can_be_read(bench):
    bench.run("a", "true", volumes=EMPTY, initContainers=[init("i", "echo one")])
    url = f"{bench.cluster.cluster.url}/api/v1/namespaces/{bench.namespace}/pods/a/log?container=i"
    shown = {"Authorization": f"Bearer {bench.cluster.token}"}
    trusted = ssl.create_default_context(cadata=bench.cluster.cluster.authority)
    with urlopen(Request(url, headers=shown), context=trusted) as answer:
        assert answer.read() == b"one\n"


def test_sidecars_end_after_the_others_the_last_one_first(bench):
    def tells(name):
        return f"trap 'echo {name} >> /e/order; exit 0' TERM; touch /e/{name};" + LOOP

    last = sidecar("x", "trap 'echo x >> /e/order; cat /e/order > /dev/termination-log; exit 0'"
                   " TERM; touch /e/x;" + LOOP)  # fmt: skip
    bench.pod("a", "until test -e /e/x -a -e /e/y; do sleep 0.05; done;" + tells("main"),
              volumes=EMPTY, container={"volumeMounts": MOUNT}, terminationGracePeriodSeconds=5,
              initContainers=[last, sidecar("y", tells("y"))])  # fmt: skip
    up = {"x", "y", "main"}
    pod = bench.running("a")
    where = bench.cluster.cluster.state_dir
    [folder] = where.glob(f"*/pods/{pod['metadata']['uid']}/volumes/e")
    bench.wait_for(lambda: {path.name for path in folder.iterdir()}, up.issubset)
    body = {"metadata": {"finalizers": ["test/keep"]}}
    path = f"/api/v1/namespaces/{bench.namespace}/pods/a"
    bench.request("PATCH", path, body=body, content_type="application/merge-patch+json")
    bench.delete("a")
    pod = bench.ended("a")
    assert message(pod, "x") == "main\ny\nx\n"
    body = {"metadata": {"finalizers": None}}
    bench.request("PATCH", path, body=body, content_type="application/merge-patch+json")
    bench.gone("a")


LOOP = " while :; do sleep 0.05; done"


def test_a_failing_init_container_is_tried_again_with_a_back_off(bench):
    bench.pod("a", "true", restartPolicy="OnFailure", volumes=EMPTY,
              initContainers=[init("i", "echo why >&2; exit 4",
                                   terminationMessagePolicy="FallbackToLogsOnError")])  # fmt: skip

    def backs_off(pod):
        state = states(pod).get("i", {}).get("state", {})
        return state.get("waiting", {}).get("reason") == "CrashLoopBackOff"

    pod = bench.wait("a", backs_off)
    assert states(pod)["i"]["lastState"]["terminated"]["message"] == "why\n"
    assert pod["status"]["phase"] == "Pending"
    waiting = states(pod, "containerStatuses")["main"]["state"]["waiting"]
    assert waiting["reason"] == "PodInitializing"


def test_a_failed_init_container_takes_the_sidecars_along(bench):
    pod = bench.run("a", "true", volumes=EMPTY,
                    initContainers=[sidecar("s"), init("i", "exit 4")])  # fmt: skip
    assert pod["status"]["phase"] == "Failed"
    assert states(pod)["i"]["state"]["terminated"]["exitCode"] == 4
    assert "terminated" in states(pod)["s"]["state"]


def test_a_deadline_patched_into_a_running_pod_ends_it_and_leaves_its_log(bench):
    bench.pod("a", "echo up; exec sleep 60", volumes=EMPTY, initContainers=[sidecar("s")])
    bench.wait("a", lambda pod: pod["status"].get("phase") == "Running")
    path = f"/api/v1/namespaces/{bench.namespace}/pods/a"
    for seconds in (3600, 1):
        body = {"spec": {"activeDeadlineSeconds": seconds}}
        bench.request("PATCH", path, body=body, content_type="application/merge-patch+json")
    pod = bench.ended("a")
    assert pod["status"]["phase"] == "Failed"
    assert pod["status"]["reason"] == "DeadlineExceeded"
    assert "terminated" in states(pod)["s"]["state"]
    assert bench.logs("a") == "up\n"
