"""What the chart renders: valid for every supported Kubernetes, restricted, and wired together."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from rekindle.api import (
    COORDINATOR_PORT,
    LABEL_INDEX,
    LABEL_JOB,
    LABEL_MANAGED_BY,
    OPERATOR_METRICS_PORT,
    POD_METRICS_PORT_NAME,
)
from rekindle.api.spec import parse
from rekindle_operator import __main__ as operator
from rekindle_operator.pods import manifests

pytestmark = pytest.mark.processes

Document = dict[str, Any]

ROOT = Path(__file__).parents[2]
KUBERNETES = ["1.29", "1.30", "1.31", "1.32", "1.33", "1.34"]
# Kinds of the Prometheus operator, for which Kubernetes has no schema.
FOREIGN = {"PodMonitor", "PrometheusRule"}

EVERYTHING: Document = {
    "imagePullSecrets": [{"name": "registry"}],
    "image": {"digest": "sha256:" + "0" * 64},
    "serviceAccount": {"annotations": {"team": "ml"}},
    "extraArgs": ["--verbose"],
    "extraEnv": [{"name": "A", "value": "1"}],
    "podAnnotations": {"note": "x"},
    "podLabels": {"tier": "control"},
    "nodeSelector": {"kubernetes.io/arch": "amd64"},
    "tolerations": [{"key": "dedicated", "operator": "Exists", "effect": "NoSchedule"}],
    "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
    "priorityClassName": "system-cluster-critical",
    "networkPolicy": {
        "enabled": True,
        "agentsFrom": [{"ipBlock": {"cidr": "10.0.0.0/8"}}],
        "metricsFrom": [{"namespaceSelector": {"matchLabels": {"team": "monitoring"}}}],
    },
    "monitoring": {"enabled": True, "labels": {"release": "prometheus"}},
}
VARIANTS: dict[str, Document] = {
    "defaults": {},
    "namespaces": {"watchNamespaces": ["default"], "rbac": {"aggregateRoles": False}},
    "namespaces and nodes": {"watchNamespaces": ["default"], "watchNodes": True},
    "no nodes": {"watchNodes": False},
    "everything": EVERYTHING,
    "bare": {
        "rbac": {"create": False, "aggregateRoles": False},
        "serviceAccount": {"create": False, "name": "existing"},
        "resources": None,
    },
}


@pytest.fixture(scope="module")
def rendered(helm: Any, prometheus_operator: None) -> dict[str, list[Document]]:
    """By variant, what Helm applied."""
    return {name: helm.render(values) for name, values in VARIANTS.items()}


def only(documents: list[Document], kind: str, suffix: str = "") -> Document:
    (found,) = [
        document
        for document in documents
        if document["kind"] == kind and document["metadata"]["name"].endswith(suffix)
    ]
    return found


def selects(selector: Document, labels: Document) -> bool:
    """Whether a selector, of matchLabels only, holds for these labels."""
    assert selector.keys() <= {"matchLabels"}
    return selector.get("matchLabels", {}).items() <= labels.items()


def training_pod() -> Document:
    """A pod as the operator makes it."""
    job = parse(
        {
            "metadata": {"name": "digits", "namespace": "team", "uid": "u", "generation": 1},
            "spec": {
                "template": {"spec": {"containers": [{"name": "trainer", "image": "x"}]}},
                "checkpoint": {"uri": "s3://bucket/digits"},
            },
        },
        created_at=0.0,
    )
    return manifests.pod(job, 0, 0)


@pytest.fixture(scope="module")
def distinct(rendered: dict[str, list[Document]]) -> list[Document]:
    """The CRDs and all objects of all variants, those once that differ in the namespace only."""
    crds = [yaml.safe_load(path.read_text()) for path in (ROOT / "crds").iterdir()]
    ours = [document for documents in rendered.values() for document in documents]
    texts = {re.sub(r"\bteam-\d+\b", "team", json.dumps(document)) for document in (*ours, *crds)}
    return [json.loads(text) for text in sorted(texts)]


@pytest.mark.parametrize("version", KUBERNETES)
def test_each_object_passes_the_strict_schema(distinct: list[Document], version: str) -> None:
    assert {d["kind"] for d in distinct if d["kind"] in FOREIGN} == FOREIGN
    for document in distinct:
        if document["kind"] not in FOREIGN:
            kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_object_names_its_release_and_stays_in_a_namespace(
    rendered: dict[str, list[Document]], variant: str
) -> None:
    for document in rendered[variant]:
        labels = document["metadata"]["labels"]
        assert labels["app.kubernetes.io/instance"] == "rk"
        assert labels["app.kubernetes.io/managed-by"] == "Helm"
        assert document["kind"].startswith("Cluster") or document["metadata"]["namespace"]


def restricted_violations(pod: Document) -> list[str]:
    """The rules of the restricted Pod Security profile that this pod spec breaks."""
    found = [name for name in ("hostNetwork", "hostPID", "hostIPC") if pod.get(name)]
    context = pod.get("securityContext") or {}
    volumes = {
        "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim",
        "projected", "secret",
    }  # fmt: skip
    found += [f"volume {v['name']}" for v in pod.get("volumes", []) if not v.keys() & volumes]
    for container in pod["containers"] + pod.get("initContainers", []):
        own = {**context, **(container.get("securityContext") or {})}
        capabilities = own.get("capabilities") or {}
        seccomp = (own.get("seccompProfile") or {}).get("type")
        rules = {
            "privileged": own.get("privileged"),
            "allowPrivilegeEscalation": own.get("allowPrivilegeEscalation") is not False,
            "drop ALL": capabilities.get("drop") != ["ALL"],
            "add capabilities": set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"},
            "runAsNonRoot": own.get("runAsNonRoot") is not True,
            "runAsUser": own.get("runAsUser") == 0,
            "seccompProfile": seccomp not in {"RuntimeDefault", "Localhost"},
            "hostPort": any("hostPort" in port for port in container.get("ports", [])),
            "procMount": own.get("procMount", "Default") != "Default",
        }
        found += [name for name, broken in rules.items() if broken]
    return found


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_operator_passes_the_restricted_profile(
    rendered: dict[str, list[Document]], variant: str
) -> None:
    pod = only(rendered[variant], "Deployment")["spec"]["template"]["spec"]
    assert restricted_violations(pod) == []
    assert pod["containers"][0]["securityContext"]["readOnlyRootFilesystem"] is True


def test_the_check_of_the_restricted_profile_sees_each_rule(
    rendered: dict[str, list[Document]],
) -> None:
    pod = copy.deepcopy(only(rendered["defaults"], "Deployment")["spec"]["template"]["spec"])
    pod |= {"hostPID": True, "securityContext": {"runAsUser": 0}}
    pod["volumes"].append({"name": "host", "hostPath": {"path": "/"}})
    pod["containers"][0]["securityContext"] = {"capabilities": {"add": ["SYS_ADMIN"]}}
    assert restricted_violations(pod) == [
        "hostPID", "volume host", "allowPrivilegeEscalation", "drop ALL", "add capabilities",
        "runAsNonRoot", "runAsUser", "seccompProfile",
    ]  # fmt: skip


def test_there_is_never_more_than_one_operator(rendered: dict[str, list[Document]]) -> None:
    spec = only(rendered["defaults"], "Deployment")["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})


def test_ports_and_probes_are_those_of_the_contract(rendered: dict[str, list[Document]]) -> None:
    pod = only(rendered["defaults"], "Deployment")["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"coordinator": COORDINATOR_PORT, "metrics": OPERATOR_METRICS_PORT}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"] == {"path": "/healthz", "port": "metrics"}
    starts = container["startupProbe"]
    assert starts["periodSeconds"] * starts["failureThreshold"] >= 120


def test_the_coordinator_url_is_the_service_and_the_service_selects_the_operator(
    rendered: dict[str, list[Document]],
) -> None:
    service = only(rendered["defaults"], "Service")
    template = only(rendered["defaults"], "Deployment")["spec"]["template"]
    metadata = service["metadata"]
    url = f"https://{metadata['name']}.{metadata['namespace']}.svc:{COORDINATOR_PORT}"
    assert f"--coordinator-url={url}" in template["spec"]["containers"][0]["args"]
    assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
    (port,) = service["spec"]["ports"]
    assert (port["port"], port["targetPort"]) == (COORDINATOR_PORT, "coordinator")


@pytest.mark.parametrize(
    ("variant", "namespaces", "without_nodes"),
    [
        ("defaults", None, False),
        ("no nodes", None, True),
        ("namespaces", ["default"], True),
        ("namespaces and nodes", ["default"], False),
    ],
)
def test_the_operator_understands_what_it_is_told(
    rendered: dict[str, list[Document]],
    variant: str,
    namespaces: list[str] | None,
    without_nodes: bool,
) -> None:
    pod = only(rendered[variant], "Deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == ["python", "-m", "rekindle_operator"]
    options = operator.parse(container["args"])
    assert (options.port, options.metrics_port) == (COORDINATOR_PORT, OPERATOR_METRICS_PORT)
    assert (options.namespace, options.all_namespaces) == (namespaces, namespaces is None)
    assert options.no_watch_nodes is without_nodes


@pytest.mark.parametrize(
    ("tls", "option"),
    [({}, "tls_secret"), ({"secretName": "mine"}, "tls_files"), ({"enabled": False}, None)],
)
def test_the_coordinator_has_what_it_proves_itself_with(
    helm: Any, tls: Document, option: str | None
) -> None:
    documents = helm.render({"tls": tls, "watchNamespaces": [helm.namespace()]})
    deployment = only(documents, "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    options = operator.parse(container["args"])
    given = {name for name in ("tls_secret", "tls_directory", "tls_files") if vars(options)[name]}
    assert given == ({option} if option else set())
    assert options.coordinator_url.startswith("https://") is bool(option)
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    secrets = {v["name"]: v["secret"]["secretName"] for v in pod["volumes"] if "secret" in v}
    mounted = {mounts[name]: secret for name, secret in secrets.items()}
    assert mounted == ({str(options.tls_files): "mine"} if options.tls_files else {})
    named = {
        (document["metadata"]["namespace"], name)
        for document in documents
        if document["kind"] == "Role"
        for rule in document["rules"]
        for name in rule.get("resourceNames", ())
    }
    assert named == ({tuple(options.tls_secret.split("/"))} if options.tls_secret else set())


def test_labels_and_arguments_of_the_user_are_added_and_replace_none_of_ours(helm: Any) -> None:
    documents = helm.render(
        {**EVERYTHING, "monitoring": {}, "podLabels": {"app.kubernetes.io/name": "mine", "a": "b"}}
    )
    template = only(documents, "Deployment")["spec"]["template"]
    assert template["metadata"]["labels"]["app.kubernetes.io/name"] == "rekindle"
    assert template["metadata"]["labels"]["a"] == "b"
    (container,) = template["spec"]["containers"]
    assert container["args"][-1] == "--verbose"
    assert container["image"] == "rekindle/operator@sha256:" + "0" * 64


def test_nothing_optional_is_rendered_by_default(rendered: dict[str, list[Document]]) -> None:
    kinds = {document["kind"] for document in rendered["defaults"]}
    assert kinds == {
        "ClusterRole", "ClusterRoleBinding", "Deployment", "Service", "ServiceAccount",
    }  # fmt: skip


def test_no_value_and_no_object_is_a_secret(rendered: dict[str, list[Document]]) -> None:
    for documents in rendered.values():
        assert "Secret" not in {document["kind"] for document in documents}


def test_an_existing_service_account_is_used_as_it_is(rendered: dict[str, list[Document]]) -> None:
    documents = rendered["bare"]
    assert {document["kind"] for document in documents} == {"Deployment", "Service"}
    pod = only(documents, "Deployment")["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == "existing"


def test_one_pod_monitor_selects_the_operator(rendered: dict[str, list[Document]]) -> None:
    documents = rendered["everything"]
    monitor = only(documents, "PodMonitor", "-operator")
    template = only(documents, "Deployment")["spec"]["template"]
    assert selects(monitor["spec"]["selector"], template["metadata"]["labels"])
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    names = [port["name"] for port in template["spec"]["containers"][0]["ports"]]
    assert endpoint["port"] in names
    assert monitor["metadata"]["labels"]["release"] == "prometheus"


def test_the_other_pod_monitor_selects_training_pods_and_only_them(
    rendered: dict[str, list[Document]],
) -> None:
    documents = rendered["everything"]
    spec = only(documents, "PodMonitor", "-training")["spec"]
    pod = training_pod()
    assert selects(spec["selector"], pod["metadata"]["labels"])
    template = only(documents, "Deployment")["spec"]["template"]
    assert not selects(spec["selector"], template["metadata"]["labels"])
    assert [e["port"] for e in spec["podMetricsEndpoints"]] == [POD_METRICS_PORT_NAME]
    assert POD_METRICS_PORT_NAME in [p["name"] for p in pod["spec"]["containers"][0]["ports"]]
    assert spec["podTargetLabels"] == [LABEL_JOB, LABEL_INDEX]
    assert spec["namespaceSelector"] == {"any": True}


def test_the_network_policy_lets_training_pods_reach_the_coordinator(
    rendered: dict[str, list[Document]],
) -> None:
    documents = rendered["everything"]
    spec = only(documents, "NetworkPolicy")["spec"]
    template = only(documents, "Deployment")["spec"]["template"]
    assert selects(spec["podSelector"], template["metadata"]["labels"])
    agents, metrics = spec["ingress"]
    assert [port["port"] for port in agents["ports"]] == ["coordinator"]
    pods, extra = agents["from"]
    assert pods["namespaceSelector"] == {}
    assert selects(pods["podSelector"], training_pod()["metadata"]["labels"])
    assert pods["podSelector"]["matchLabels"] == {LABEL_MANAGED_BY: "rekindle"}
    assert extra == {"ipBlock": {"cidr": "10.0.0.0/8"}}
    assert [port["port"] for port in metrics["ports"]] == ["metrics"]
    assert metrics["from"] == EVERYTHING["networkPolicy"]["metricsFrom"]
