"""A live server in a thread, a plain HTTP client for it, and the Widget kind that tests define."""

import asyncio
import contextlib
import copy
import http.client
import itertools
import json
import shutil
import subprocess
import threading
import time
from urllib.parse import urlencode, urlsplit

import pytest
import yaml

from rekindle_local.apiserver.http.server import ApiServer
from rekindle_local.apiserver.registry import Registry
from rekindle_local.apiserver.storage import ObjectTable
from rekindle_local.apiserver.writes.operations import ApiOperations
from rekindle_local.apiserver.writes.options import WriteOptions

WIDGET_CRD = yaml.safe_load("""
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.example.dev}
spec:
  group: example.dev
  scope: Namespaced
  names: {plural: widgets, kind: Widget, shortNames: [wd], categories: [all]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources:
      status: {}
      scale:
        specReplicasPath: .spec.replicas
        statusReplicasPath: .status.replicas
        labelSelectorPath: .status.selector
    selectableFields: [{jsonPath: .spec.color}]
    additionalPrinterColumns:
    - {name: Phase, type: string, jsonPath: .status.phase}
    - {name: Replicas, type: integer, jsonPath: .spec.replicas}
    - {name: Age, type: date, jsonPath: .metadata.creationTimestamp}
    schema:
      openAPIV3Schema:
        type: object
        description: A thing that has a colour.
        required: [spec]
        properties:
          spec:
            type: object
            description: What is wanted.
            required: [color]
            x-kubernetes-validations:
            - {rule: self.min <= self.replicas, message: min is above replicas, fieldPath: .min}
            - {rule: self.color == oldSelf.color, message: color is immutable}
            properties:
              color: {type: string, enum: [red, blue], description: The colour.}
              replicas: {type: integer, minimum: 0, default: 1}
              min: {type: integer, default: 0}
              free: {type: object, x-kubernetes-preserve-unknown-fields: true}
              parts:
                type: array
                x-kubernetes-list-type: map
                x-kubernetes-list-map-keys: [name]
                items:
                  type: object
                  required: [name]
                  properties:
                    name: {type: string, maxLength: 5}
                    size: {type: integer, default: 3}
          status:
            type: object
            properties:
              phase: {type: string}
              replicas: {type: integer}
              selector: {type: string}
""")

_NAMES = itertools.count()


@pytest.fixture
def widget_crd():
    return copy.deepcopy(WIDGET_CRD)


@pytest.fixture
def widget():
    def make(name="one", **spec):
        return {
            "apiVersion": "example.dev/v1",
            "kind": "Widget",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"color": "red", **spec},
        }

    return make


@pytest.fixture
def pod():
    def make(name="p", **more):
        spec = {"containers": [{"name": "c", "image": "img:1"}], **more.pop("spec", {})}
        metadata = {"name": name, "namespace": "default", **more.pop("metadata", {})}
        return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, **more}

    return make


class Bench:
    """The operations on a store, without HTTP, with a clock that tests set."""

    def __init__(self):
        self.now = 1_700_000_000.0
        self.store = ObjectTable()
        self.registry = Registry()
        self.objects = ApiOperations(self.store, self.registry, lambda: self.now)
        self.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}})
        self.create(WIDGET_CRD)

    def resource(self, obj):
        return self.registry.find_kind(obj["apiVersion"], obj["kind"])

    def create(self, obj, **options):
        resource = self.resource(obj)
        namespace = obj["metadata"].get("namespace", "") if resource.namespaced else ""
        return self.objects.create(resource, namespace, obj, WriteOptions(**options)).object

    def update(self, obj, subresource="", **options):
        metadata = obj["metadata"]
        resource, namespace = self.resource(obj), metadata.get("namespace", "")
        options = WriteOptions(**options)
        return self.objects.update(
            resource, namespace, metadata["name"], obj, options, subresource
        ).object

    def get(self, obj):
        resource = self.resource(obj)
        return self.objects.get(
            resource, obj["metadata"].get("namespace", ""), obj["metadata"]["name"]
        )

    def exists(self, obj):
        return self.store.find_uid(obj["metadata"]["uid"]) is not None


@pytest.fixture
def bench():
    return Bench()


class Api:
    """A client that hides nothing: status, headers and body of every answer."""

    def __init__(self, server, loop):
        self.server, self.loop = server, loop
        self.url = server.url

    def call(self, method, path, body=None, media="application/json", headers=(), **query):
        address = urlsplit(self.url)
        connection = http.client.HTTPConnection(address.hostname, address.port, timeout=60)
        sent = {"Content-Type": media, **dict(headers)}
        raw = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        with contextlib.closing(connection):
            connection.request(method, path + (f"?{urlencode(query)}" if query else ""), raw, sent)
            answer = connection.getresponse()
            text = answer.read()
            kind = answer.headers.get("Content-Type", "")
            return Answer(
                answer.status, json.loads(text) if "json" in kind else text, answer.headers
            )

    def get(self, path, **more):
        return self.call("GET", path, **more)

    def post(self, path, body, **more):
        return self.call("POST", path, body, **more)

    def put(self, path, body, **more):
        return self.call("PUT", path, body, **more)

    def patch(self, path, body, kind="merge-patch+json", **more):
        return self.call("PATCH", path, body, media=f"application/{kind}", **more)

    def delete(self, path, body=None, **more):
        return self.call("DELETE", path, body, **more)

    def namespace(self):
        """Make a namespace for one test and return the path of its core kinds."""
        name = f"t{next(_NAMES)}"
        self.post("/api/v1/namespaces", {"metadata": {"name": name}})
        return Namespace(name)

    @contextlib.contextmanager
    def watch(self, path, headers=(), **query):
        """Open a watch; `next` on what this gives waits for an event, at most 5 seconds."""
        address = urlsplit(self.url)
        connection = http.client.HTTPConnection(address.hostname, address.port, timeout=60)
        try:
            connection.request(
                "GET", f"{path}?{urlencode({'watch': 'true', **query})}", headers=dict(headers)
            )
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            yield (json.loads(line) for line in answer)
        finally:
            connection.close()

    def eventually(self, check, seconds=30.0):
        """Return what `check` gives as soon as it is true."""
        deadline = time.monotonic() + seconds
        while not (found := check()):
            assert time.monotonic() < deadline, "the condition did not come true"
            threading.Event().wait(0.01)
        return found


class Answer:
    def __init__(self, status, body, headers):
        self.status, self.body, self.headers = status, body, headers


class Namespace:
    def __init__(self, name):
        self.name = name
        self.core = f"/api/v1/namespaces/{name}"
        self.pods = f"{self.core}/pods"
        self.widgets = f"/apis/example.dev/v1/namespaces/{name}/widgets"


@contextlib.contextmanager
def running(server):
    """Run a server in a loop of its own, in a thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def call(coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(60)

    call(server.start())
    try:
        yield Api(server, loop)
    finally:
        call(server.stop())
        loop.call_soon_threadsafe(loop.stop)
        thread.join(60)
        loop.close()


@pytest.fixture(scope="module")
def api():
    server = ApiServer()
    server.load([WIDGET_CRD])
    with running(server) as api:
        yield api


@pytest.fixture
def fresh_api():
    """Start a server for one test, with options."""
    with contextlib.ExitStack() as stack:
        yield lambda **options: stack.enter_context(running(ApiServer(**options)))


@pytest.fixture
def kubectl(api, tmp_path):
    """Run kubectl in a namespace of its own; gives the finished process, or checks its success."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    home = api.namespace()
    config = tmp_path / "config"
    cluster = {"name": "t", "cluster": {"server": api.url}}
    context = {"name": "t", "context": {"cluster": "t", "user": "t", "namespace": home.name}}
    config.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [cluster],
                "contexts": [context],
                "current-context": "t",
                "users": [{"name": "t", "user": {}}],
            }
        )
    )
    return Kubectl(api, home, config, tmp_path)


class Kubectl:
    def __init__(self, api, home, config, folder):
        self.api, self.home, self.config, self.folder = api, home, config, folder

    def command(self, *arguments):
        cache = f"--cache-dir={self.folder}/cache"
        return ["kubectl", f"--kubeconfig={self.config}", cache, *arguments]

    def run(self, *arguments, stdin=None):
        return subprocess.run(
            self.command(*arguments),
            check=False,
            input=stdin,
            text=True,
            capture_output=True,
            timeout=30,
        )

    def __call__(self, *arguments, stdin=None):
        done = self.run(*arguments, stdin=stdin)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def refused(self, *arguments, stdin=None):
        done = self.run(*arguments, stdin=stdin)
        assert done.returncode != 0, done.stdout
        return done.stderr
