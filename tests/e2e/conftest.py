"""Where the scenarios run: on the embedded cluster, and on the cluster that KUBECONFIG names.

On somebody's cluster the operator runs here, with that kubeconfig, and pods must be able to reach
this machine: REKINDLE_E2E_HOST is its address as pods see it (default: the address from which this
machine talks to the API server). REKINDLE_E2E_IMAGE names the runtime image, and
REKINDLE_E2E_PLAIN_IMAGE, for some of the tests, one with Python and torch and nothing of Rekindle.
The CRD is applied by the tests; they work in namespaces of their own, which they delete.
"""

import asyncio
import contextlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import urlsplit

import pytest
import yaml
from kubernetes import client, config

from rekindle.checkpoint import Store
from rekindle_cli.local.stack import free_ports
from rekindle_local.cluster import ClusterConfig, ClusterThread
from rekindle_local.images import python_image
from rekindle_local.nodes.node_lifecycle import AS_IN_A_CLUSTER, LifecycleTimings
from rekindle_local.objectstore.server import ObjectStore

ROOT = Path(__file__).parents[2]
GROUP, VERSION, PLURAL = "rekindle.dev", "v1alpha1", "trainingjobs"
PLAIN_IMAGE = "example.com/plain-torch:2"
AWAY = float(os.environ.get("REKINDLE_E2E_AWAY", "6"))
"""Seconds for which something is away that nobody should miss."""
PATIENCE = 180.0
"""Seconds that any single thing may take on two busy cores."""


@dataclass
class Operator:
    """The operator as a process, which scenarios may kill."""

    kubeconfig: Path
    host: str
    log: Path
    port: int = 0
    process: subprocess.Popen[bytes] | None = None
    health: str = ""

    def start(self) -> None:
        coordinator, health = free_ports(2, self.host)
        self.port = self.port or coordinator
        command = [
            sys.executable, "-m", "rekindle_operator",
            "--coordinator-url", f"https://{self.host}:{self.port}",
            "--tls-directory", str(self.log.parent / "tls"),
            "--host", self.host, "--port", str(self.port), "--metrics-port", str(health),
        ]  # fmt: skip
        env = {**os.environ, "KUBECONFIG": str(self.kubeconfig)}
        env["PYTHONPATH"] = os.pathsep.join([str(ROOT / "operator"), str(ROOT / "runtime")])
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
        self.health = f"http://{self.host}:{health}"
        wait_for(self._healthy, "the operator to be ready", seconds=60)

    def _healthy(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()[-4000:]
        try:
            with urllib.request.urlopen(f"{self.health}/healthz", timeout=2) as answer:
                return answer.status == 200
        except OSError:
            return False

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(60)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(60)


def wait_for(check: Callable[[], Any], what: str, *, seconds: float = PATIENCE) -> Any:
    """The first truthy answer of a check; fails naming what was waited for."""
    end = time.monotonic() + seconds
    while True:
        value = check()
        if value:
            return value
        if time.monotonic() > end:
            pytest.fail(f"waited {seconds:.0f} s in vain for {what}")
        time.sleep(0.1)


@dataclass
class Site:
    """A cluster with our operator and an object store."""

    kubeconfig: Path
    image: str
    operator: Operator
    s3: str
    credentials: tuple[str, str]
    embedded: ClusterThread | None = None
    plain_image: str | None = None
    """With torch and a Python, and nothing of Rekindle."""
    namespaces: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.api = config.new_client_from_config(str(self.kubeconfig))
        if self.embedded is not None:
            # Its token stays; the hook reads os.environ, which pytest writes to, in any thread.
            self.api.configuration.refresh_api_key_hook = None
        self.core = client.CoreV1Api(self.api)
        self.jobs = client.CustomObjectsApi(self.api)

    def kubectl(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["kubectl", f"--kubeconfig={self.kubeconfig}", *words],
            capture_output=True, text=True, timeout=180, check=False,
        )  # fmt: skip

    def kill_pod(self, namespace: str, name: str) -> None:
        """Take a pod away without notice: SIGKILL where that can be had, else a forced deletion."""
        if self.embedded is not None:
            self.embedded.kill_pod(namespace, name)
        else:
            self.core.delete_namespaced_pod(name, namespace, grace_period_seconds=0)

    def namespace(self) -> str:
        name = f"rekindle-e2e-{uuid.uuid4().hex[:8]}"
        self.core.create_namespace({"metadata": {"name": name}})
        self.namespaces.append(name)
        # Until a controller has made it, pods of the namespace are refused.
        wait_for(lambda: self._has_account(name), f"the service account of {name}")
        scripts = {p.name: p.read_text() for p in (Path(__file__).parent / "scripts").iterdir()}
        self.core.create_namespaced_config_map(
            name, {"metadata": {"name": "scripts"}, "data": scripts}
        )
        self.secret(name, "s3", *self.credentials)
        return name

    def _has_account(self, namespace: str) -> bool:
        if self.embedded is not None:
            return True
        listed = self.core.list_namespaced_service_account(namespace).items
        return any(account.metadata.name == "default" for account in listed)

    def secret(self, namespace: str, name: str, key: str, secret: str) -> None:
        data = {
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        body = {"metadata": {"name": name}, "stringData": data}
        self.core.create_namespaced_secret(namespace, body)


@dataclass
class Job:
    """One TrainingJob of a scenario."""

    site: Site
    namespace: str
    name: str

    def get(self) -> dict[str, Any]:
        return self.site.jobs.get_namespaced_custom_object(
            GROUP, VERSION, self.namespace, PLURAL, self.name
        )

    @property
    def status(self) -> dict[str, Any]:
        return self.get().get("status") or {}

    def patch(self, spec: dict[str, Any]) -> None:
        self.site.jobs.patch_namespaced_custom_object(
            GROUP, VERSION, self.namespace, PLURAL, self.name, {"spec": spec}
        )

    def delete(self) -> None:
        self.site.jobs.delete_namespaced_custom_object(
            GROUP, VERSION, self.namespace, PLURAL, self.name
        )

    def pods(self) -> list[Any]:
        selector = f"rekindle.dev/job={self.name}"
        return self.site.core.list_namespaced_pod(self.namespace, label_selector=selector).items

    def delete_pod(self, name: str) -> None:
        self.site.core.delete_namespaced_pod(name, self.namespace)

    def step(self) -> int:
        return (self.status.get("progress") or {}).get("step", 0)

    def wait(self, check: Callable[[dict[str, Any]], Any], what: str, **kw: float) -> Any:
        try:
            return wait_for(lambda: check(self.status), f"{self.name}: {what}", **kw)
        except BaseException:
            print(self.diagnosis())
            raise

    def wait_step(self, step: int) -> None:
        self.wait(lambda s: (s.get("progress") or {}).get("step", 0) >= step, f"step {step}")

    def wait_phase(self, *phases: str, seconds: float = PATIENCE) -> dict[str, Any]:
        ended = {"Succeeded", "Failed"}

        def there(status: dict[str, Any]) -> bool:
            phase = status.get("phase")
            assert phase in phases or phase not in ended, status.get("message")
            return phase in phases

        self.wait(there, f"phase {'/'.join(phases)}", seconds=seconds)
        return self.status

    def store(self, place: str = "") -> Store:
        """Its checkpoints, or those of a place below its root."""
        key, secret = self.site.credentials
        environment = {
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        checkpoint = self.get()["spec"]["checkpoint"]
        with mock.patch.dict(os.environ, environment):
            return Store.open(checkpoint["uri"] + place, endpoint_url=checkpoint["endpointUrl"])

    def whole(self, *, besides: str = "") -> dict[str, Any]:
        """The status once everybody trains, every incident is over and no pod is on its way.

        `besides`: a pod that is not to be there any more.
        """

        def there(status: dict[str, Any]) -> dict[str, Any] | None:
            spec, pods = self.get()["spec"], self.pods()
            spares = (spec.get("elastic") or {}).get("spares", 0)
            wanted = spec.get("replicas", 1) + spares
            assert status.get("phase") not in {"Failed", "Succeeded"}, status.get("message")
            alive = [p for p in pods if p.status.phase in {"Pending", "Running"}]
            ready = [p for p in alive if self._ready(p)]
            training = status.get("phase") == "Running" and status.get("message", "").startswith(
                f"training on {spec.get('replicas', 1)} pod"
            )
            warm = status.get("spares", 0) == spares
            calm = training and warm and " until " not in status["message"]
            gone = besides not in {p.metadata.name for p in alive}
            return status if calm and gone and len(alive) == len(ready) == wanted else None

        return self.wait(there, "everybody to train")

    @staticmethod
    def _ready(pod: Any) -> bool:
        conditions = {c.type: c.status for c in pod.status.conditions or ()}
        return conditions.get("Ready") == "True" and pod.metadata.deletion_timestamp is None

    def incident(self, pod: str, *, over: bool = True) -> dict[str, Any]:
        """The newest incident that names this pod as its victim, once training goes on."""

        def there(status: dict[str, Any]) -> dict[str, Any] | None:
            named = [i for i in status.get("incidents", ()) if pod in i["victims"]]
            told = [i for i in named if not over or i.get("recoveredInRound")]
            return told[-1] if told else None

        return self.wait(there, f"an incident of {pod}")

    def measured(self, pod: str) -> dict[str, Any]:
        """That incident once all members have told how long they took."""

        def there(status: dict[str, Any]) -> dict[str, Any] | None:
            named = [i for i in status.get("incidents", ()) if pod in i["victims"]]
            return next((i for i in named if i.get("recovery")), None)

        return self.wait(there, f"the phases of {pod}'s incident")

    def members(self) -> list[str]:
        """The pods of the newest round by rank, as the event about it tells.

        The status has the round first: until its event is there, the newest one is about another.
        """
        selector = f"involvedObject.name={self.name},reason=RoundFormed"

        def there(status: dict[str, Any]) -> str | None:
            listed = self.site.core.list_namespaced_event(self.namespace, field_selector=selector)
            told = dict(e.message.removeprefix("round ").split(":", 1) for e in listed.items)
            return told.get(str(status["round"]))

        pods = self.wait(there, "the event about its newest round").split(" (")[0]
        return [name.strip() for name in pods.split(",")]

    def node_of(self, pod: str) -> str:
        return self.site.core.read_namespaced_pod(pod, self.namespace).spec.node_name

    def failed(self) -> dict[str, str]:
        """The Failed condition, once it is true."""
        self.wait_phase("Failed")
        return next(c for c in self.status["conditions"] if c["type"] == "Failed")

    def why(self) -> str:
        """What ``rekindle why`` says."""
        command = [sys.executable, "-m", "rekindle_cli", "why", self.name, "-n", self.namespace]
        env = {**os.environ, "KUBECONFIG": str(self.site.kubeconfig), "COLUMNS": "500"}
        env["PYTHONPATH"] = os.pathsep.join([str(ROOT / "operator"), str(ROOT / "runtime")])
        done = subprocess.run(
            command, env=env, capture_output=True, text=True, timeout=180, check=False
        )
        assert done.returncode in {0, 1}, done.stderr
        return done.stdout

    def diagnosis(self) -> str:
        """For a scenario that has gone wrong."""
        parts = [json.dumps(self.status, indent=1)]
        for pod in self.pods():
            parts.append(f"--- {pod.metadata.name} {pod.status.phase}")
            try:
                parts.append(
                    self.site.core.read_namespaced_pod_log(
                        pod.metadata.name, self.namespace, tail_lines=30
                    )
                    or "nothing in its log"
                )
            except client.ApiException as error:
                parts.append(f"no log: {error.status}")
        parts.append(self.site.operator.log.read_text()[-3000:])
        return "\n".join(parts)


def _crd() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "crds" / "trainingjob.yaml").read_text())


def _embedded(folder: Path) -> Iterator[Site]:
    image = python_image(ROOT / "runtime" / "examples")
    bare = runpy.run_path(str(ROOT / "tests" / "runtime" / "launch" / "bare_python.py"))
    python = bare["make"](folder / "plain-torch")
    plain = replace(image, env={**image.env, "PATH": f"{python.parent}:/usr/bin:/bin"})
    # Within less than it bears by default it takes pods from a node that is away, as it should.
    hasty = LifecycleTimings()
    patient = AWAY + hasty.node_grace >= hasty.default_toleration
    cluster_config = ClusterConfig(
        nodes=3,
        lifecycle=AS_IN_A_CLUSTER if patient else hasty,
        images={"rekindle/runtime:*": image, PLAIN_IMAGE: plain},
        crds=(_crd(),),
        s3_deny=("forbidden",),
        buckets=("rekindle", "forbidden"),
    )
    with ClusterThread(cluster_config) as thread:
        cluster = thread.cluster
        operator = Operator(cluster.kubeconfig, "127.0.0.1", folder / "operator.log")
        operator.start()
        try:
            yield Site(
                kubeconfig=cluster.kubeconfig,
                image="rekindle/runtime:0.1",
                operator=operator,
                s3=cluster.s3_endpoint,
                credentials=cluster.s3_credentials,
                embedded=thread,
                plain_image=PLAIN_IMAGE,
            )
        finally:
            operator.stop()


def _named(folder: Path) -> Iterator[Site]:
    kubeconfig = os.environ.get("KUBECONFIG")
    image = os.environ.get("REKINDLE_E2E_IMAGE")
    if not kubeconfig or not image:
        pytest.skip("KUBECONFIG and REKINDLE_E2E_IMAGE name no cluster and image to test on")
    api = config.new_client_from_config(kubeconfig)
    crds = client.ApiextensionsV1Api(api)
    crd = _crd()
    try:
        crds.create_custom_resource_definition(crd)
    except client.ApiException as error:
        if error.status != 409:
            raise
        old = crds.read_custom_resource_definition(crd["metadata"]["name"])
        crd["metadata"]["resourceVersion"] = old.metadata.resource_version
        crds.replace_custom_resource_definition(crd["metadata"]["name"], crd)
    host = os.environ.get("REKINDLE_E2E_HOST") or _own_address(api.configuration.host)
    with _Store(host) as store:
        operator = Operator(Path(kubeconfig), host, folder / "operator.log")
        operator.start()
        site = Site(
            kubeconfig=Path(kubeconfig),
            image=image,
            operator=operator,
            s3=store.endpoint,
            credentials=store.credentials,
            plain_image=os.environ.get("REKINDLE_E2E_PLAIN_IMAGE"),
        )
        try:
            yield site
        finally:
            with contextlib.ExitStack() as leaving:
                leaving.callback(operator.stop)
                for namespace in site.namespaces:
                    leaving.callback(site.core.delete_namespace, namespace)


def _own_address(server: str) -> str:
    """From which address this machine talks to the API server."""
    url = urlsplit(server)
    with socket.create_connection((url.hostname, url.port or 443), 10) as connection:
        return connection.getsockname()[0]


class _Store:
    """The embedded object store on an address that pods can reach, in a thread of its own."""

    def __init__(self, host: str) -> None:
        self._store = ObjectStore(host=host, deny=("forbidden",))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.credentials = self._store.credentials

    def _call(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def __enter__(self) -> "_Store":
        self._thread.start()
        self.endpoint = self._call(self._store.start())
        for bucket in ("rekindle", "forbidden"):
            self._call(self._store.create_bucket(bucket))
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._store.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture(scope="session", params=["embedded", "kubeconfig"])
def site(request, tmp_path_factory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp(request.param)
    yield from (_embedded if request.param == "embedded" else _named)(folder)


@pytest.fixture(scope="module")
def namespace(site: Site) -> str:
    return site.namespace()


@contextlib.contextmanager
def submitting(site: Site, namespace: str) -> Iterator[Callable[..., Job]]:
    """A function that creates jobs, which are gone with their pods at the end of the block."""
    made: list[Job] = []

    def create(
        name: str,
        *arguments: str,
        container: dict[str, Any] | None = None,
        sidecars: tuple[dict[str, Any], ...] = (),
        pod: dict[str, Any] | None = None,
        notice_file: str | None = None,
        grace: int = 20,
        **spec: Any,
    ) -> Job:
        volumes = [{"name": "scripts", "configMap": {"name": "scripts"}}]
        mounts = [{"name": "scripts", "mountPath": "/scripts"}]
        env = []
        if notice_file:
            volumes.append({"name": "told", "emptyDir": {}})
            mounts.append({"name": "told", "mountPath": str(Path(notice_file).parent)})
            env.append({"name": "REKINDLE_NOTICE_FILE", "value": notice_file})
        template = {
            "spec": {
                "terminationGracePeriodSeconds": grace,
                "containers": [
                    {
                        "name": "trainer",
                        "image": site.image,
                        "args": ["/scripts/regress.py", *arguments],
                        "volumeMounts": mounts,
                        "env": env,
                        **(container or {}),
                    },
                    *sidecars,
                ],
                "volumes": volumes,
                **(pod or {}),
            }
        }
        checkpoint = {
            "uri": f"s3://rekindle/{namespace}/{name}",
            "endpointUrl": site.s3,
            "secretRef": {"name": "s3"},
            "every": {"steps": 10},
            **spec.pop("checkpoint", {}),
        }
        body = {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": "TrainingJob",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"template": template, "checkpoint": checkpoint, **spec},
        }
        site.jobs.create_namespaced_custom_object(GROUP, VERSION, namespace, PLURAL, body)
        made.append(Job(site, namespace, name))
        return made[-1]

    yield create
    for job in made:
        try:
            job.delete()
        except client.ApiException as error:
            if error.status != 404:
                raise
    wait_for(lambda: not any(job.pods() for job in made), "the pods of the scenario to go")


@pytest.fixture
def submit(site: Site, namespace: str) -> Iterator[Callable[..., Job]]:
    """Create a job; spec fields by keyword, the script's arguments by position."""
    with submitting(site, namespace) as create:
        yield create


@pytest.fixture(scope="module")
def submit_for_all(site: Site, namespace: str) -> Iterator[Callable[..., Job]]:
    """The same for jobs that several scenarios use one after the other."""
    with submitting(site, namespace) as create:
        yield create


@pytest.fixture
def away() -> float:
    """Seconds for which something is away that nobody should miss."""
    return AWAY


@pytest.fixture
def eventually() -> Callable[..., Any]:
    return wait_for
