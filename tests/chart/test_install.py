"""Helm installs, upgrades and removes the chart on an API server."""

from typing import Any

import pytest

pytestmark = pytest.mark.processes

JOB = {
    "apiVersion": "rekindle.dev/v1alpha1",
    "kind": "TrainingJob",
    "metadata": {"name": "digits"},
    "spec": {
        "template": {"spec": {"containers": [{"name": "trainer", "image": "rekindle/runtime"}]}},
        "checkpoint": {"uri": "s3://bucket/digits"},
    },
}


def deployment_path(namespace: str) -> str:
    return f"/apis/apps/v1/namespaces/{namespace}/deployments/rk-rekindle"


def test_lint_has_nothing_to_say_but_that_there_is_no_icon(helm: Any) -> None:
    report = helm.call("lint", namespace="default")
    assert report["TotalChartsLinted"] == 1
    assert not report["Errors"]
    assert [message for message in report["Messages"] if message["Severity"] > 1] == []


@pytest.mark.parametrize("server_side", [False, True], ids=["client-side", "server-side"])
def test_installs_upgrades_and_goes_without_a_trace_but_the_crd(
    helm: Any, cluster: Any, server_side: bool
) -> None:
    namespace = helm.namespace()
    release = {"release": "rk", "namespace": namespace}
    installed = helm.call("install", **release, options={"server_side_apply": server_side})
    assert installed["info"]["status"] == "deployed"
    spec = cluster.get(deployment_path(namespace))["spec"]
    assert spec["replicas"] == 1

    values = {"image": {"tag": "next"}, "watchNamespaces": [namespace]}
    upgraded = helm.call("upgrade", **release, options={"values": values})
    assert upgraded["version"] == 2
    (container,) = cluster.get(deployment_path(namespace))["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "rekindle/operator:next"
    assert f"--namespace={namespace}" in container["args"]
    roles = cluster.get(f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/roles")
    assert len(roles["items"]) == 1

    helm.call("uninstall", **release)
    rbac = "/apis/rbac.authorization.k8s.io/v1"
    for path in (
        f"/apis/apps/v1/namespaces/{namespace}/deployments",
        f"/api/v1/namespaces/{namespace}/services",
        f"/api/v1/namespaces/{namespace}/secrets",
        f"{rbac}/namespaces/{namespace}/roles",
        f"{rbac}/clusterroles",
        f"{rbac}/clusterrolebindings",
    ):
        names = [item["metadata"]["name"] for item in cluster.get(path)["items"]]
        if "/namespaces/" not in path:  # others' roles are there, too
            names = [name for name in names if name.startswith(f"{namespace}-")]
        assert names == []
    crd = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/trainingjobs.rekindle.dev"
    assert cluster.get(crd)


def test_an_install_serves_training_jobs_with_their_defaults(helm: Any, cluster: Any) -> None:
    namespace = helm.namespace()
    helm.call("install", release="rk", namespace=namespace)
    jobs = f"/apis/rekindle.dev/v1alpha1/namespaces/{namespace}/trainingjobs"
    assert cluster.create(jobs, JOB)["spec"]["elastic"]["minReplicas"] == 1
    helm.call("uninstall", release="rk", namespace=namespace)
    assert cluster.get(f"{jobs}/digits"), "uninstalling the operator must not remove jobs"


def test_releases_of_one_name_in_two_namespaces_do_not_touch_each_other(helm: Any) -> None:
    releases = [{"release": "rk", "namespace": helm.namespace()} for _ in range(2)]
    for release in releases:
        values = {"watchNamespaces": [release["namespace"]]}
        helm.call("install", **release, options={"values": values})
    for release in releases:
        helm.call("uninstall", **release)


def test_the_notes_say_what_the_release_serves(helm: Any) -> None:
    namespace = helm.namespace()
    release = {"release": "rk", "namespace": namespace}
    values = {"watchNamespaces": [namespace]}
    notes = helm.call("install", **release, options={"values": values})["info"]["notes"]
    helm.call("uninstall", **release)
    assert f"serves the namespaces {namespace}." in notes
    assert "does not read nodes" in notes
