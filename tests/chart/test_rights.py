"""The operator's rights are what its code asks of the API server, no less and no more."""

import ast
import asyncio
import inspect
import json
import re
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from rekindle.api import GROUP, PLURAL
from rekindle_operator.controller import handlers
from rekindle_operator.kube.cluster import KubernetesApi
from rekindle_operator.plan import Deletion, Event
from rekindle_operator.pods import manifests

pytestmark = pytest.mark.processes

Rights = set[tuple[str, str, str]]
"""Group, resource, verb."""

OPERATOR = Path(handlers.__file__).parents[1]
CHILDREN = ("Pod", "Secret", "Service")
# kopf looks for changes of the CRDs it serves.
KOPF: Rights = {
    ("apiextensions.k8s.io", "customresourcedefinitions", "list"),
    ("apiextensions.k8s.io", "customresourcedefinitions", "watch"),
}


VERBS = {"POST": "create", "PATCH": "patch", "DELETE": "delete"}
PATH = re.compile(
    r"/(?:api/v1|apis/(?P<group>[^/]+)/[^/]+)(?:/namespaces/[^/]+)?/(?P<plural>[a-z]+)"
    r"(?:/(?P<name>[^/]+))?(?:/(?P<part>[a-z]+))?"
)


class Asked(KubernetesApi):
    """A cluster that notes what right each request needs, and in which everything is there."""

    def __init__(self) -> None:
        self.rights: Rights = set()

    async def _send(self, method: str, path: str, **_: Any) -> tuple[int, str]:
        match = PATH.fullmatch(path)
        assert match, f"teach this test what right {method} {path} needs"
        verb = VERBS.get(method) or ("get" if match["name"] else "list")
        plural = "/".join(filter(None, (match["plural"], match["part"])))
        self.rights.add((match["group"] or "", plural, verb))
        return 200, json.dumps({"metadata": {"ownerReferences": [{"uid": "u"}]}})


def child(kind: str) -> dict[str, Any]:
    owners = [{"uid": "u"}]
    return {
        "kind": kind,
        "metadata": {"name": "x", "namespace": "n", "ownerReferences": owners},
    }


async def every_call(cluster: KubernetesApi) -> None:
    for kind in CHILDREN:
        await cluster.create(child(kind))
        await cluster.find(kind, "n", "x")
        await cluster.patch(kind, "n", "x", {})
    await cluster.delete_pod("n", Deletion(name="x", uid="u", force=True))
    await cluster.end_pod("n", Deletion(name="x", uid="u"))
    await cluster.pod_events("n", "u")
    await cluster.pod_log("n", "x", "c", 10)
    await cluster.patch_status("n", "x", {})
    await cluster.delete_job("n", "x", "u")
    await cluster.job("n", "x")
    for listener in handlers.listeners(Mock(), watch_nodes=True):
        await cluster.list_all(listener.kind)
    job = {"metadata": {"name": "x", "namespace": "n", "uid": "u"}}
    await cluster.post(job, [Event(kind="Normal", reason="R", message="m")], 0.0)


def asked() -> Rights:
    """What the calls of cluster.py need, all of which are made here."""
    source = inspect.getsource(every_call)
    for name, _ in inspect.getmembers(KubernetesApi, inspect.iscoroutinefunction):
        local = name.startswith("_") or name in {"connect", "close"}
        assert local or f"cluster.{name}(" in source, f"make the call {name} here"
    cluster = Asked()
    asyncio.run(every_call(cluster))
    return cluster.rights


def watched() -> Rights:
    """What kopf lists and watches for the handlers, and what reflectors watch beside that."""
    found: Rights = set()
    for node in ast.walk(ast.parse(Path(handlers.__file__).read_text())):
        match node:
            case ast.Call(func=ast.Attribute(attr="event"), args=[group, _, plural]):
                group, plural = (
                    part.value if isinstance(part, ast.Constant) else getattr(handlers, part.id)
                    for part in (group, plural)
                    if isinstance(part, ast.Constant | ast.Name)
                )
                found |= {(group, plural, "list"), (group, plural, "watch")}
    for listener in handlers.listeners(Mock(), watch_nodes=True):
        found.add(("", f"{listener.kind.lower()}s", "watch"))
    return found


def used() -> Rights:
    finalizers = (GROUP, f"{PLURAL}/finalizers", "update")
    assert '"blockOwnerDeletion": True' in Path(manifests.__file__).read_text(), (
        f"children block no deletion any more: {finalizers} can go"
    )
    return asked() | watched() | {finalizers} | KOPF


def granted(documents: list[dict[str, Any]]) -> dict[str, Rights]:
    """By kind and namespace of the role, the rights of the operator's roles."""
    found: dict[str, Rights] = {}
    for document in documents:
        labels = document["metadata"]["labels"]
        if document["kind"] in {"Role", "ClusterRole"} and not any(
            "aggregate" in x for x in labels
        ):
            where = document["metadata"].get("namespace", "everywhere")
            found[where] = {
                (group, resource, verb)
                for rule in document["rules"]
                for group in rule["apiGroups"]
                for resource in rule["resources"]
                for verb in rule["verbs"]
            }
    return found


def outside(rights: Rights) -> Rights:
    """The part of the rights that is about objects outside of namespaces."""
    return {r for r in rights if r[1] in {"nodes", "customresourcedefinitions"}}


READ = {"get", "list", "watch"}
NODES = {("", "nodes", "list"), ("", "nodes", "watch")}


def test_the_operator_may_do_what_it_does_and_nothing_else(helm: Any) -> None:
    assert granted(helm.render()) == {"everywhere": used()}


def test_only_cluster_py_speaks_to_the_api() -> None:
    speakers = {
        str(path.relative_to(OPERATOR))
        for path in OPERATOR.rglob("*.py")
        if re.search(r"^(from|import) kubernetes\b|\bApiClient\b", path.read_text(), re.MULTILINE)
    }
    assert speakers == {"kube/cluster.py"}


def test_without_nodes_only_the_rights_on_nodes_go(helm: Any) -> None:
    assert granted(helm.render({"watchNodes": False})) == {"everywhere": used() - NODES}


def test_with_namespaces_the_same_rights_hold_there_and_nowhere_else(
    helm: Any, cluster: Any
) -> None:
    names = sorted(helm.namespace() for _ in range(2))
    documents = helm.render({"watchNamespaces": names, "rbac": {"aggregateRoles": False}})
    inside = used() - outside(used())
    (home,) = {d["metadata"]["namespace"] for d in documents if d["kind"] == "Deployment"}
    # For the operator's authority.
    own = {home: {("", "secrets", verb) for verb in ("get", "create", "patch")}}
    assert granted(documents) == dict.fromkeys(names, inside) | own
    assert not [document for document in documents if document["kind"].startswith("Cluster")]


def test_with_namespaces_nodes_can_be_granted_on_their_own(helm: Any) -> None:
    name = helm.namespace()
    values = {"watchNamespaces": [name], "watchNodes": True, "tls": {"enabled": False}}
    rights = granted(helm.render(values))
    assert rights.keys() == {name, "everywhere"}
    assert rights["everywhere"] == NODES


@pytest.mark.parametrize("values", [{}, {"watchNamespaces": ["default"]}])
def test_each_role_is_bound_to_the_service_account_of_the_operator(
    helm: Any, values: dict[str, Any]
) -> None:
    documents = helm.render(values)
    (account,) = [d["metadata"] for d in documents if d["kind"] == "ServiceAccount"]
    (deployment,) = [d for d in documents if d["kind"] == "Deployment"]
    assert deployment["spec"]["template"]["spec"]["serviceAccountName"] == account["name"]
    subject = {
        "kind": "ServiceAccount",
        "name": account["name"],
        "namespace": account["namespace"],
    }
    bindings = [d for d in documents if d["kind"].endswith("Binding")]
    assert bindings
    for binding in bindings:
        assert binding["subjects"] == [subject]
        role = (binding["roleRef"]["kind"], binding["roleRef"]["name"])
        assert role in [(d["kind"], d["metadata"]["name"]) for d in documents]


@pytest.mark.parametrize(
    ("role", "verbs"),
    [
        ("view", READ),
        ("edit", READ | {"create", "update", "patch", "delete", "deletecollection"}),
    ],
)
def test_people_who_may_view_or_edit_a_namespace_may_do_so_with_jobs(
    helm: Any, role: str, verbs: set[str]
) -> None:
    (found,) = [d for d in helm.render() if d["metadata"]["name"].endswith(f"-{role}")]
    assert found["metadata"]["labels"][f"rbac.authorization.k8s.io/aggregate-to-{role}"] == "true"
    by_resource = {rule["resources"][0]: set(rule["verbs"]) for rule in found["rules"]}
    assert by_resource[PLURAL] == verbs
    for rule in found["rules"]:
        assert rule["apiGroups"] == [GROUP]
        if f"{PLURAL}/status" in rule["resources"]:
            assert set(rule["verbs"]) <= READ, "the status is the operator's"
