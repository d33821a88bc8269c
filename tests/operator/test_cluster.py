"""Every call that the operator makes, against the embedded API server and the installed client.

The same file runs with the oldest client that the bounds admit, so it uses nothing of the client
but what `KubernetesApi` uses. Templates are told apart by one judge only, the API server: what is
valid for Kubernetes makes a pod, what is not becomes a condition and an event with the field.
"""

import asyncio
import base64
import copy
import inspect
import json
import time
from functools import cached_property
from pathlib import Path

import pytest
import yaml
from aiohttp import web
from kubernetes.aio import client

from rekindle_local.apiserver.http.server import ApiServer
from rekindle_local.apiserver.writes.options import DeleteOptions, WriteOptions
from rekindle_local.quantity import parse_quantity
from rekindle_operator.controller import handlers
from rekindle_operator.controller.controller import Controller
from rekindle_operator.kube import cluster as module
from rekindle_operator.kube.cluster import KubernetesApi, KubernetesError, ObjectRefused
from rekindle_operator.plan import Deletion, Event

pytestmark = pytest.mark.servers

ROOT = Path(__file__).parents[2]
CRD = yaml.safe_load((ROOT / "crds" / "trainingjob.yaml").read_text())
JOBS = "/apis/rekindle.dev/v1alpha1/namespaces/default/trainingjobs"
CORE = "/api/v1/namespaces/default"
TOKEN = base64.b64encode(b"secret-of-the-job").decode()


def template(**container):
    trainer = {"name": "trainer", "image": "i", "args": ["t.py"], **container}
    return {"spec": {"containers": [trainer]}}


def job_manifest(name="digits", **changes):
    return {
        "apiVersion": "rekindle.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"template": template(), "checkpoint": {"uri": "s3://bucket/run"}, **changes},
    }


class Bench:
    """An API server, the operator's client, and a way around it to look and to meddle."""

    def __init__(self, server, cluster):
        self.server, self.cluster = server, cluster

    def resource(self, kind):
        api = "rekindle.dev/v1alpha1" if kind == "TrainingJob" else "v1"
        return self.server._registry.find_kind(api, kind)

    def make(self, manifest):
        """Create an object past the operator."""
        body = copy.deepcopy(manifest)
        objects = self.server._objects
        return objects.create(self.resource(body["kind"]), "default", body, WriteOptions()).object

    def get(self, kind, name):
        return self.server._objects.get(self.resource(kind), "default", name)

    def all(self, kind):
        return self.server._objects.select(self.resource(kind), "default", lambda _: True)

    @cached_property
    def uid(self):
        """Of a job, that children are made for: those of no job are collected as garbage."""
        return self.make(job_manifest())["metadata"]["uid"]

    def child(self, kind, name, **more):
        """A child as the operator makes it."""
        reference = {"apiVersion": "rekindle.dev/v1alpha1", "kind": "TrainingJob"}
        owners = [{**reference, "name": "digits", "uid": self.uid, "controller": True}]
        labels = {"app.kubernetes.io/managed-by": "rekindle", "rekindle.dev/job": "digits"}
        meta = {"name": name, "namespace": "default", "labels": labels, "ownerReferences": owners}
        return {"apiVersion": "v1", "kind": kind, "metadata": meta, **more}


def on_a_server(scenario, **options):
    """Run a scenario with a bench of its own."""

    async def whole():
        server = ApiServer(**options)
        server.load([CRD])
        await server.start()
        configuration = client.Configuration()
        configuration.host = server.url
        cluster = KubernetesApi(client.ApiClient(configuration))
        try:
            await scenario(Bench(server, cluster))
        finally:
            await cluster.close()
            await server.stop()

    asyncio.run(asyncio.wait_for(whole(), 60))


POD = {"containers": [{"name": "c", "image": "i"}]}
POD_X = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "x", "namespace": "default"},
    "spec": POD,
}
SECRET = {"data": {"token": TOKEN}}
SERVICE = {"spec": {"clusterIP": "None", "ports": [{"port": 1}], "selector": {"a": "b"}}}


async def create(bench):
    for kind, more in (("Pod", {"spec": POD}), ("Secret", SECRET), ("Service", SERVICE)):
        manifest = bench.child(kind, "x", **more)
        made = await bench.cluster.create(manifest)
        assert made["metadata"]["uid"] == bench.get(kind, "x")["metadata"]["uid"]
        with pytest.raises(KubernetesError, match="already exists") as caught:
            await bench.cluster.create(manifest)
        assert caught.value.status == 409
    bad = bench.child("Pod", "bad", spec={"containers": [{"name": "c"}]})
    with pytest.raises(ObjectRefused, match=r"spec\.containers\[0\]\.image"):
        await bench.cluster.create(bad)


async def delete_pod(bench):
    made = bench.make(bench.child("Pod", "x", spec=POD))
    await bench.cluster.delete_pod("default", Deletion(name="x", uid="of-another"))
    assert bench.get("Pod", "x")
    await bench.cluster.delete_pod("default", Deletion(name="x", uid=made["metadata"]["uid"]))
    assert not bench.all("Pod")
    forced = Deletion(name="x", uid=made["metadata"]["uid"], force=True)
    await bench.cluster.delete_pod("default", forced)


async def end_pod(bench):
    made = bench.make(bench.child("Pod", "x", spec=POD))
    await bench.cluster.end_pod("default", Deletion(name="x", uid="of-another"))
    assert "activeDeadlineSeconds" not in bench.get("Pod", "x")["spec"]
    meant = Deletion(name="x", uid=made["metadata"]["uid"])
    for _ in range(2):
        await bench.cluster.end_pod("default", meant)
        assert bench.get("Pod", "x")["spec"]["activeDeadlineSeconds"] == 1
    await bench.cluster.end_pod("default", Deletion(name="gone", uid="u"))


async def pod_events(bench):
    about = {"kind": "Pod", "name": "x", "namespace": "default", "uid": "u1"}
    for number, uid in enumerate(("u1", "u2")):
        bench.make(
            {
                "apiVersion": "v1",
                "kind": "Event",
                "metadata": {"name": f"e{number}", "namespace": "default"},
                "involvedObject": {**about, "uid": uid},
                "reason": "FailedMount",
                "message": "no",
                "type": "Warning",
            }
        )
    (found,) = await bench.cluster.pod_events("default", "u1")
    assert found["involvedObject"]["uid"] == "u1"


async def pod_log(bench):
    with pytest.raises(KubernetesError):
        await bench.cluster.pod_log("default", "nobody", "c", 10)

    async def answer(request):
        assert dict(request.query) == {"container": "c", "tailLines": "2", "limitBytes": "16384"}
        return web.Response(text="one\ntwo\n")

    async def ask(cluster):
        assert await cluster.pod_log("default", "x", "c", 2) == "one\ntwo\n"

    await against(answer, ask)


async def patch_status(bench):
    bench.make(job_manifest())
    assert await bench.cluster.patch_status("default", "digits", {"phase": "Running", "round": 1})
    written = await bench.cluster.patch_status("default", "digits", {"round": None})
    assert written == bench.get("TrainingJob", "digits")
    assert written["status"] == {"phase": "Running"}
    assert not await bench.cluster.patch_status("default", "nobody", {"phase": "Running"})
    with pytest.raises(KubernetesError, match=r"status\.phase"):
        await bench.cluster.patch_status("default", "digits", {"phase": "Flying"})


async def delete_job(bench):
    made = bench.make(job_manifest())
    await bench.cluster.delete_job("default", "digits", "of-another")
    assert bench.all("TrainingJob")
    for _ in range(2):
        await bench.cluster.delete_job("default", "digits", made["metadata"]["uid"])
        assert not bench.all("TrainingJob")


async def find(bench):
    for kind, more in (("Pod", {"spec": POD}), ("Secret", SECRET), ("Service", SERVICE)):
        assert await bench.cluster.find(kind, "default", "x") is None
        bench.make(bench.child(kind, "x", **more))
        assert await bench.cluster.find(kind, "default", "x") == bench.get(kind, "x")


async def patch(bench):
    for kind, more in (("Pod", {"spec": POD}), ("Secret", SECRET), ("Service", SERVICE)):
        change = {"metadata": {"labels": {"a": "b"}, "ownerReferences": []}}
        assert await bench.cluster.patch(kind, "default", "x", change) is None
        made = bench.make(bench.child(kind, "x", **more))
        written = await bench.cluster.patch(kind, "default", "x", change)
        assert written == bench.get(kind, "x")
        assert written["metadata"]["labels"]["a"] == "b"
        assert not written["metadata"].get("ownerReferences")
        other = {"metadata": {"uid": "of-another", "labels": {"a": "c"}}}
        with pytest.raises(KubernetesError) as caught:
            await bench.cluster.patch(kind, "default", "x", other)
        assert caught.value.status == 409
        assert made["metadata"]["uid"] == bench.get(kind, "x")["metadata"]["uid"]


async def job(bench):
    assert await bench.cluster.job("default", "digits") is None
    bench.make(job_manifest())
    assert await bench.cluster.job("default", "digits") == bench.get("TrainingJob", "digits")


async def list_all(bench):
    found, version = await bench.cluster.list_all("Node")
    assert found == []
    assert version
    for name in ("n", "m", "o"):
        bench.make({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
    found, _ = await bench.cluster.list_all("Node")
    assert [node["metadata"]["name"] for node in found] == ["m", "n", "o"], "in more than one page"
    bench.make(bench.child("Pod", "x", spec=POD))
    bench.make({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "other"}, "spec": POD})
    for namespace in ("", "default"):
        (pod,), _ = await bench.cluster.list_all("Pod", namespace)
        assert pod == bench.get("Pod", "x"), "what comes back is the server's JSON"
    assert (await bench.cluster.list_all("Pod", "elsewhere"))[0] == []


async def watch(bench):
    _, version = await bench.cluster.list_all("Pod")
    bench.make({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "other"}, "spec": POD})
    made = bench.make(bench.child("Pod", "x", spec=POD))
    async for kind, body in bench.cluster.watch("Pod", "", version):
        assert (kind, body) == ("ADDED", made)
        break
    with pytest.raises(KubernetesError):
        async for _ in bench.cluster.watch("Pod", "", "not-a-version"):
            pass


async def post(bench):
    body = bench.make(job_manifest())
    told = [Event(kind="Normal", reason="R", message="m" * 2000)]
    assert await bench.cluster.post(body, told, 0.0)
    (found,) = bench.all("Event")
    assert (found["reason"], len(found["message"])) == ("R", 1000)
    assert found["involvedObject"]["uid"] == body["metadata"]["uid"]


async def connect(bench):
    cluster = await KubernetesApi.connect()
    assert await cluster.job("default", "digits") is None
    await cluster.close()


async def close(bench):
    assert await bench.cluster.job("default", "digits") is None
    await bench.cluster.close()


CALLS = {
    call.__name__: call
    for call in (
        *(
            create,
            delete_pod,
            end_pod,
            pod_events,
            pod_log,
            patch_status,
            delete_job,
            find,
            patch,
            list_all,
            watch,
            job,
        ),
        *(post, connect, close),
    )
}


def test_every_call_of_the_operator_is_in_the_table():
    public = {n for n, _ in inspect.getmembers(KubernetesApi, callable) if not n.startswith("_")}
    assert public == CALLS.keys()


@pytest.mark.parametrize("name", CALLS)
def test_a_call_does_what_it_says(name, tmp_path, monkeypatch):
    async def scenario(bench):
        file = tmp_path / "config"
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "t",
            "clusters": [{"name": "t", "cluster": {"server": bench.server.url}}],
            "contexts": [{"name": "t", "context": {"cluster": "t", "user": "t"}}],
            "users": [{"name": "t", "user": {"token": "t0ken"}}],
        }
        file.write_text(yaml.safe_dump(config))
        location = "kubernetes.aio.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION"
        monkeypatch.setattr(location, str(file))
        monkeypatch.setenv("KUBECONFIG", str(file))
        monkeypatch.setattr(module, "PAGE", 2)
        await CALLS[name](bench)

    on_a_server(scenario, **({"token": "t0ken"} if name == "connect" else {}))


ANSWERS = {
    "status": (
        {"status": 409, "body": '{"kind": "Status", "reason": "Conflict", "message": "not now"}'},
        (409, "Conflict", "not now"),
    ),
    "page of a proxy": (
        {"status": 502, "body": "<html>\n bad   gateway</html>"},
        (502, "NoStatus", "the answer is no JSON: <html> bad gateway</html>"),
    ),
    "page of a portal": (
        {"status": 200, "body": "<html>log in</html>"},
        (200, "NoStatus", "the answer is no JSON: <html>log in</html>"),
    ),
    "nothing": ({"status": 500, "body": ""}, (500, "", "HTTP 500")),
    "no object": (
        {"status": 200, "body": "[1]"},
        (200, "NoStatus", "the answer is no JSON: [1]"),
    ),
}


async def against(handler, scenario):
    """Run a scenario against a server that answers as it is told."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    configuration = client.Configuration()
    configuration.host = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
    cluster = KubernetesApi(client.ApiClient(configuration))
    try:
        await scenario(cluster)
    finally:
        await cluster.close()
        await runner.cleanup()


@pytest.mark.parametrize("name", ANSWERS)
def test_what_is_no_success_is_an_error_with_status_and_words(name):
    given, wanted = ANSWERS[name]

    async def handler(_):
        return web.Response(status=given["status"], body=given["body"].encode())

    async def scenario(cluster):
        with pytest.raises(KubernetesError) as caught:
            await cluster.list_all("Node")
        error = caught.value
        assert (error.status, error.reason, error.message) == wanted
        assert str(error) == f"{wanted[0]} {wanted[2] if given['body'] else ''}".strip()

    asyncio.run(against(handler, scenario))


def test_an_answer_that_never_ends_is_given_up(monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT", 0.2)

    async def handler(request):
        response = web.StreamResponse(headers={"Content-Length": "100"})
        await response.prepare(request)
        await response.write(b"{")
        await asyncio.Event().wait()

    async def scenario(cluster):
        with pytest.raises(TimeoutError):
            await cluster.list_all("Node")

    asyncio.run(against(handler, scenario))


def test_a_create_that_a_webhook_forbids_may_be_allowed_later():
    async def handler(_):
        words = 'admission webhook "policy.example.com" denied the request: no team label'
        return web.json_response({"kind": "Status", "message": words}, status=400)

    async def scenario(cluster):
        with pytest.raises(KubernetesError, match="no team label"):
            await cluster.create(POD_X)

    asyncio.run(against(handler, scenario))


# Templates.

GPUS = {"limits": {"nvidia.com/gpu": 1, "cpu": 1, "memory": 1073741824}, "requests": {"cpu": 0.5}}
MEMORY = {"name": "m", "emptyDir": {"medium": "Memory", "sizeLimit": 1073741824}}
MOUNT = {"name": "m", "mountPath": "/m"}


def spec_of(pod=(), **container):
    made = template(**container)
    made["spec"].update(dict(pod))
    return made


VALID = {
    "whole numbers as quantities": template(resources=GPUS),
    "a volume of memory in bytes": spec_of({"volumes": [MEMORY]}, volumeMounts=[MOUNT]),
    "lists that are null": spec_of(
        {
            "volumes": None,
            "initContainers": None,
            "tolerations": None,
            "nodeSelector": None,
            "affinity": None,
            "imagePullSecrets": None,
        },
        env=None,
        envFrom=None,
        ports=None,
        volumeMounts=None,
        resources=None,
    ),
    "metadata that is empty": {**template(), "metadata": {}},
    "labels that are null": {**template(), "metadata": {"labels": None, "annotations": None}},
    "a grace of its own": spec_of({"terminationGracePeriodSeconds": 5}),
    "fields that the client does not know": spec_of(
        {"hostUsers": False, "schedulingGates": [{"name": "example.com/wait"}]},
        restartPolicyRules=None,
    ),
    "an expression of a probe's port": template(
        ports=[{"containerPort": 80, "name": "http"}],
        livenessProbe={"httpGet": {"port": "http", "path": "/"}},
    ),
    "affinity in pieces": spec_of({"affinity": {"nodeAffinity": None, "podAntiAffinity": {}}}),
    "names that Kubernetes expands": template(
        args=["t.py", "$(STEPS)"], env=[{"name": "STEPS", "value": "8"}, {"name": "EMPTY"}]
    ),
}

INVALID = {
    "a number in env": (
        template(env=[{"name": "A", "value": 8}]),
        "spec.containers[0].env[",
    ),
    "a typo": (template(imagePulPolicy="Always"), "spec.containers[0].imagePulPolicy"),
    "an unknown field of the pod": (spec_of({"nodeSelektor": {"a": "b"}}), "spec.nodeSelektor"),
    "an object for a list": (spec_of({"volumes": {"name": "v"}}), "spec.volumes"),
    "a list for an object": (spec_of({"nodeSelector": ["a"]}), "spec.nodeSelector"),
    "a quantity that is none": (
        template(resources={"limits": {"cpu": "many"}}),
        "spec.containers[0].resources.limits[cpu]",
    ),
    "a mount without a volume": (
        template(volumeMounts=[{"name": "none", "mountPath": "/m"}]),
        "spec.containers[0].volumeMounts[0].name",
    ),
    "a port out of range": (
        template(ports=[{"containerPort": 70000}]),
        "spec.containers[0].ports[0].containerPort",
    ),
    "a string for a number": (
        spec_of({"activeDeadlineSeconds": "soon"}),
        "spec.activeDeadlineSeconds",
    ),
    "a variable that is a word": (template(env=["A=8"]), "spec.containers[0].env["),
    "variables that are a map": (template(env={"A": "8"}), "spec.containers[0].env"),
    "a mount without a name": (
        template(volumeMounts=[{"mountPath": "/m"}]),
        "spec.containers[0].volumeMounts[0].name",
    ),
    "a mount that is a word": (
        template(volumeMounts=["/m"]),
        "spec.containers[0].volumeMounts[0]",
    ),
    "mounts that are a map": (
        template(volumeMounts={"m": "/m"}),
        "spec.containers[0].volumeMounts",
    ),
    "ports that are a number": (template(ports=80), "spec.containers[0].ports"),
    "resources that are a list": (template(resources=["gpu"]), "spec.containers[0].resources"),
    "init containers that are a map": (
        spec_of({"initContainers": {"name": "a"}}),
        "spec.initContainers",
    ),
    "a volume that is a word": (spec_of({"volumes": ["data"]}), "spec.volumes[0]"),
    "affinity that is a word": (spec_of({"affinity": "zone"}), "spec.affinity"),
}


async def until(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "not in time"
        await asyncio.sleep(0.01)
    return found


def judged(job, condition):
    """What the operator has told of a job, once that is something."""
    seen = {}

    async def scenario(bench):
        controller = Controller(bench.cluster, coordinator_url="http://op:8430", watch_nodes=False)
        controller.listed.set()
        try:
            controller.job_event(None, bench.make(job))
            name = job["metadata"]["name"]
            await until(lambda: condition(bench, bench.get("TrainingJob", name).get("status")))
            seen["status"] = bench.get("TrainingJob", name)["status"]
            seen["pods"] = bench.all("Pod")
            seen["events"] = await until(lambda: bench.all("Event") or seen["pods"])
        finally:
            await controller.close()

    on_a_server(scenario)
    return seen


@pytest.mark.parametrize("name", VALID)
def test_a_template_that_is_valid_for_kubernetes_makes_a_pod(name):
    seen = judged(
        job_manifest(template=VALID[name]), lambda bench, status: status and bench.all("Pod")
    )
    (pod,) = seen["pods"]
    assert seen["status"]["phase"] == "Pending"
    given = VALID[name]["spec"]["containers"][0]
    trainer = next(c for c in pod["spec"]["containers"] if c["name"] == "trainer")
    for kind in ("limits", "requests"):
        for key, value in ((given.get("resources") or {}).get(kind) or {}).items():
            assert parse_quantity(trainer["resources"][kind][key]) == parse_quantity(value)


@pytest.mark.parametrize("name", INVALID)
def test_what_the_server_refuses_is_told_in_its_words(name):
    given, field = INVALID[name]
    seen = judged(
        job_manifest(template=given), lambda _, status: status and status["phase"] == "Failed"
    )
    failed = next(c for c in seen["status"]["conditions"] if c["type"] == "Failed")
    assert failed["reason"] == "PodRefused"
    assert field in failed["message"], failed["message"]
    assert any(field in event["message"] for event in seen["events"])
    assert not seen["pods"]


TOKENS = [({}, None), ({"token": "//8="}, None), ({"token": ""}, None), ({"token": TOKEN}, 17)]


@pytest.mark.parametrize(("data", "length"), [*TOKENS, (None, None)])
def test_a_token_that_cannot_be_read_is_none(data, length):
    token = module.token_in({"data": data})
    assert (token and len(token)) == length


def test_nothing_of_a_template_is_dropped_on_its_way(monkeypatch):
    sent = []

    async def handler(request):
        if request.method == "POST":
            sent.append(json.loads(await request.read()))
            return web.json_response(sent[-1])
        return web.json_response({"items": []})

    body = {"future": {"field": [1, 2.5, None, {"deep": True}]}, "containers": [{"cpu": 1}]}

    async def scenario(cluster):
        await cluster.create({**POD_X, "spec": body})

    asyncio.run(against(handler, scenario))
    assert sent[0]["spec"] == body


def test_a_job_after_one_that_was_deleted_without_its_children_takes_over_and_runs():
    async def scenario(bench):
        controller = Controller(bench.cluster, coordinator_url="http://op:8430", watch_nodes=False)
        following = asyncio.create_task(
            handlers.follow(controller, bench.cluster, namespaces=(), watch_nodes=False)
        )
        objects, jobs = bench.server._objects, bench.resource("TrainingJob")
        try:
            first = bench.make(job_manifest())
            controller.job_event(None, first)
            before = await until(lambda: bench.all("Pod"))
            token = bench.get("Secret", "digits-rekindle")["data"]
            options = DeleteOptions(propagation="Orphan")
            objects.delete(jobs, "default", "digits", options)
            await until(lambda: not bench.all("TrainingJob"))
            controller.job_event("DELETED", first)
            assert bench.all("Pod")
            assert not bench.all("Pod")[0]["metadata"].get("ownerReferences")
            second = bench.make(job_manifest())
            controller.job_event("ADDED", second)
            uid = second["metadata"]["uid"]

            def of_the_second(kind):
                found = bench.all(kind)
                owners = [o["metadata"].get("ownerReferences") or [{}] for o in found]
                return found and all(owner[0].get("uid") == uid for owner in owners)

            for kind in ("Pod", "Secret", "Service"):
                await until(lambda kind=kind: of_the_second(kind))
            assert bench.all("Pod")[0]["metadata"]["uid"] != before[0]["metadata"]["uid"]
            assert bench.get("Secret", "digits-rekindle")["data"] == token
            status = await until(lambda: bench.get("TrainingJob", "digits").get("status"))
            assert status["phase"] != "Failed"
        finally:
            following.cancel()
            await controller.close()

    on_a_server(scenario)
