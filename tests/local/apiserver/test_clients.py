"""The clients that the operator uses: the Kubernetes Python client, and kopf."""

import asyncio
import threading

import kopf
import pytest

pytestmark = pytest.mark.servers

kubernetes = pytest.importorskip("kubernetes")


@pytest.fixture
def core(api):
    configuration = kubernetes.client.Configuration()
    configuration.host = api.url
    with kubernetes.client.ApiClient(configuration) as client:
        yield kubernetes.client.CoreV1Api(client)


def pod(name):
    client = kubernetes.client
    container = client.V1Container(name="c", image="i:1")
    return client.V1Pod(
        metadata=client.V1ObjectMeta(name=name, labels={"a": "b"}),
        spec=client.V1PodSpec(containers=[container]),
    )


def test_the_python_client_creates_replaces_and_conflicts(api, core):
    home = api.namespace().name
    made = core.create_namespaced_pod(home, pod("p"))
    assert made.status.phase == "Pending"
    made.metadata.labels = {"c": "d"}
    assert core.replace_namespaced_pod("p", home, made).metadata.labels == {"c": "d"}
    with pytest.raises(kubernetes.client.ApiException) as refusal:
        core.replace_namespaced_pod("p", home, made)
    assert refusal.value.status == 409


def test_the_python_client_patches_statuses_strategically(api, core):
    home = api.namespace().name
    core.create_namespaced_pod(home, pod("p"))
    for kind in ("Ready", "Initialized"):
        status = {"status": {"conditions": [{"type": kind, "status": "True"}]}}
        patched = core.patch_namespaced_pod_status("p", home, status)
    assert [item.type for item in patched.status.conditions] == ["Ready", "Initialized"]


def test_the_python_client_watches(api, core):
    home = api.namespace().name
    listed = core.list_namespaced_pod(home)
    core.create_namespaced_pod(home, pod("p"))
    core.delete_namespaced_pod("p", home)
    stream = kubernetes.watch.Watch().stream(
        core.list_namespaced_pod,
        home,
        resource_version=listed.metadata.resource_version,
        timeout_seconds=1,
    )
    assert [event["type"] for event in stream] == ["ADDED", "DELETED"]


def test_the_python_client_reads_what_deletes_answer(api, core):
    home = api.namespace().name
    core.create_namespaced_pod(home, pod("p"))
    assert core.delete_namespaced_pod("p", home).metadata.name == "p"
    secret = kubernetes.client.V1Secret(
        metadata=kubernetes.client.V1ObjectMeta(name="s"), string_data={"a": "b"}
    )
    assert core.create_namespaced_secret(home, secret).data == {"a": "Yg=="}
    assert core.delete_namespaced_secret("s", home)["status"] == "Success"


def test_a_lease_is_taken_by_one_of_two(api):
    client = kubernetes.client
    configuration = client.Configuration()
    configuration.host = api.url
    home = api.namespace().name
    with client.ApiClient(configuration) as connection:
        leases = client.CoordinationV1Api(connection)
        spec = client.V1LeaseSpec(holder_identity="", lease_duration_seconds=5)
        body = client.V1Lease(metadata=client.V1ObjectMeta(name="l"), spec=spec)
        one = leases.create_namespaced_lease(home, body)
        two = leases.read_namespaced_lease("l", home)
        one.spec.holder_identity, two.spec.holder_identity = "one", "two"
        leases.replace_namespaced_lease("l", home, one)
        with pytest.raises(client.ApiException) as refusal:
            leases.replace_namespaced_lease("l", home, two)
        assert refusal.value.status == 409


class Operator:
    """A kopf operator with its own registry, in a thread."""

    def __init__(self, api, namespace):
        self.registry = kopf.OperatorRegistry()
        self.settings = kopf.OperatorSettings()
        self.settings.posting.enabled = False
        self.namespace = namespace
        self.stop = threading.Event()
        self.ready = threading.Event()

        @kopf.on.login(registry=self.registry)
        def login(**_):
            return kopf.ConnectionInfo(server=api.url, default_namespace="default")

    def __enter__(self):
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        assert self.ready.wait(60)
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join(60)

    def _run(self):
        asyncio.run(
            kopf.operator(
                registry=self.registry,
                settings=self.settings,
                standalone=True,
                namespaces=[self.namespace],
                stop_flag=self.stop,
                ready_flag=self.ready,
            )
        )


def test_a_kopf_operator_sees_events_with_an_index_and_patches_status(api):
    home = api.namespace()
    operator = Operator(api, home.name)

    @kopf.index("v1", "pods", id="phases", registry=operator.registry)
    def phases(name, status, **_):
        return {name: status.get("phase")}

    @kopf.on.event("example.dev", "v1", "widgets", id="seen", registry=operator.registry)
    def seen(status, patch, phases, **_):
        if status.get("phase") is None:
            patch.status["phase"] = ",".join(sorted(phases))

    api.post(home.pods, {"metadata": {"name": "p"}, "spec": {"containers": [CONTAINER]}})
    with operator:
        api.post(home.widgets, {"metadata": {"name": "one"}, "spec": {"color": "red"}})
        path = f"{home.widgets}/one"
        api.eventually(lambda: api.get(path).body.get("status") == {"phase": "p"}, 20)


def test_a_kopf_operator_creates_and_finalizes(api):
    home = api.namespace()
    operator, deleted = Operator(api, home.name), []

    @kopf.on.create("example.dev", "v1", "widgets", id="created", registry=operator.registry)
    def created(patch, **_):
        patch.status["replicas"] = 7

    @kopf.on.delete("example.dev", "v1", "widgets", id="gone", registry=operator.registry)
    def gone(name, **_):
        deleted.append(name)

    with operator:
        api.post(home.widgets, {"metadata": {"name": "one"}, "spec": {"color": "red"}})
        path = f"{home.widgets}/one"
        api.eventually(lambda: api.get(path).body.get("status") == {"replicas": 7}, 20)
        assert api.get(path).body["metadata"]["finalizers"]
        api.delete(path)
        api.eventually(lambda: api.get(path).status == 404, 20)
    assert deleted == ["one"]


CONTAINER = {"name": "c", "image": "i:1"}
