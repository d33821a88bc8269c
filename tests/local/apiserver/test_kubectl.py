"""The real kubectl, as users type it."""

import json
import subprocess
import time

import pytest
import yaml

pytestmark = pytest.mark.processes


def manifest(name="one", **spec):
    metadata = {"name": name}
    body = {"apiVersion": "example.dev/v1", "kind": "Widget", "metadata": metadata}
    return yaml.safe_dump({**body, "spec": {"color": "red", **spec}})


def deployment(**container):
    containers = [{"name": "a", "image": "img:1", **container}]
    template = {"metadata": {"labels": {"app": "d"}}, "spec": {"containers": containers}}
    spec = {"replicas": 2, "selector": {"matchLabels": {"app": "d"}}, "template": template}
    body = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": spec}
    return yaml.safe_dump(body)


def test_apply_creates_configures_and_leaves_alone(kubectl):
    assert "created" in kubectl("apply", "-f", "-", stdin=manifest())
    assert "configured" in kubectl("apply", "-f", "-", stdin=manifest(replicas=3))
    assert "unchanged" in kubectl("apply", "-f", "-", stdin=manifest(replicas=3))
    lines = kubectl("get", "wd").splitlines()
    assert lines[0].split() == ["NAME", "PHASE", "REPLICAS", "AGE"]
    assert lines[1].split()[:2] == ["one", "3"]


def test_apply_refuses_what_the_crd_refuses_and_names_it(kubectl):
    assert 'unknown field "spec.foo"' in kubectl.refused("apply", "-f", "-", stdin=manifest(foo=1))
    text = kubectl.refused("apply", "-f", "-", stdin=manifest(color="green", replicas=-1))
    assert '* spec.color: Unsupported value: "green": supported values: "red", "blue"' in text
    assert "* spec.replicas: Invalid value: -1" in text
    text = kubectl.refused("apply", "-f", "-", stdin=manifest(min=5))
    assert "spec.min: Invalid value" in text
    assert "min is above replicas" in text


def test_explain_shows_types_and_descriptions(kubectl):
    text = kubectl("explain", "widget.spec.color")
    assert "FIELD: color <string>" in text
    assert "The colour." in text
    assert "ENUM" in text
    assert "containerPort" in kubectl("explain", "pod.spec.containers.ports")


def test_a_builtin_is_applied_strategically(kubectl):
    env = [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]
    kubectl("apply", "-f", "-", stdin=deployment(env=env))
    kubectl("apply", "-f", "-", stdin=deployment(env=env[1:], image="img:2"))
    got = json.loads(kubectl("get", "deploy", "d", "-o", "json"))
    [container] = got["spec"]["template"]["spec"]["containers"]
    assert container["env"] == env[1:]
    assert container["image"] == "img:2"
    assert kubectl.run("diff", "-f", "-", stdin=deployment(image="img:3")).returncode == 1


def test_server_side_apply_conflicts_and_is_forced(kubectl):
    kubectl("apply", "--server-side", "-f", "-", stdin=deployment())
    kubectl("scale", "deploy/d", "--replicas=5")
    text = kubectl.refused("apply", "--server-side", "-f", "-", stdin=deployment())
    assert ".spec.replicas" in text
    kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=deployment())
    assert kubectl("get", "deploy", "d", "-o", "jsonpath={.spec.replicas}") == "2"


def test_scale_patch_replace_label_and_describe_work_on_a_custom_resource(kubectl):
    kubectl("create", "-f", "-", stdin=manifest())
    kubectl("scale", "wd/one", "--replicas=4")
    kubectl("patch", "wd", "one", "--type=merge", "-p", '{"spec":{"min":1}}')
    kubectl("patch", "wd", "one", "--type=json", "-p", PATCH)
    kubectl("label", "wd", "one", "a=b")
    kubectl("annotate", "wd", "one", "c=d")
    got = json.loads(kubectl("get", "wd", "one", "-o", "json"))
    assert got["spec"] == {"color": "red", "replicas": 6, "min": 1}
    assert got["metadata"]["labels"] == {"a": "b"}
    assert "immutable" in kubectl.refused(
        "patch", "wd", "one", "--type=merge", "-p", '{"spec":{"color":"blue"}}'
    )
    kubectl("replace", "-f", "-", stdin=yaml.safe_dump(got))
    assert "Replicas:  6" in kubectl("describe", "wd", "one")


PATCH = '[{"op":"replace","path":"/spec/replicas","value":6}]'


def test_edit_writes_what_the_editor_leaves(kubectl, tmp_path, monkeypatch):
    kubectl("create", "-f", "-", stdin=manifest(replicas=2))
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\nsed -i "s/replicas: 2/replicas: 8/" "$1"\n')
    editor.chmod(0o755)
    monkeypatch.setenv("KUBE_EDITOR", str(editor))
    kubectl("edit", "wd", "one")
    assert kubectl("get", "wd", "one", "-o", "jsonpath={.spec.replicas}") == "8"


def test_typed_creates_and_deletes_speak_protobuf(kubectl):
    other = f"{kubectl.home.name}-x"
    kubectl("create", "namespace", other)
    kubectl("create", "secret", "generic", "s", "--from-literal=a=b")
    kubectl("create", "configmap", "c", "--from-literal=a=b")
    kubectl("create", "serviceaccount", "sa")
    kubectl("create", "deployment", "d", "--image=i:1", "--port=80")
    kubectl("create", "role", "r", "--verb=get", "--resource=pods")
    kubectl("create", "rolebinding", "r", "--role=r", f"--serviceaccount={other}:sa")
    kubectl("create", "service", "clusterip", "svc", "--tcp=80:8080")
    kubectl("create", "pdb", "b", "--selector=a=b", "--min-available=50%")
    assert kubectl("get", "secret", "s", "-o", "jsonpath={.data.a}") == "Yg=="
    assert kubectl("get", "pdb", "b", "-o", "jsonpath={.spec.minAvailable}") == "50%"
    kubectl("delete", "secret/s", "deploy/d", "role/r", "--cascade=foreground")
    kubectl("delete", "namespace", other)
    assert "NotFound" in kubectl.refused("get", "ns", other)


def test_a_pod_is_run_described_and_deleted(kubectl):
    kubectl("run", "web", "--image=i:1", "--labels=app=web")
    assert kubectl("get", "pods").splitlines()[1].split()[:3] == ["web", "0/1", "Pending"]
    uid = kubectl("get", "pod", "web", "-o", "jsonpath={.metadata.uid}")
    about = {"apiVersion": "v1", "kind": "Pod", "name": "web", "uid": uid}
    about["namespace"] = kubectl.home.name
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": "e"},
        "involvedObject": about,
        "reason": "Pulled",
        "message": "it came",
        "type": "Normal",
    }
    kubectl("create", "-f", "-", stdin=yaml.safe_dump(event))
    assert "it came" in kubectl("describe", "pod", "web")
    assert "pod/web" in kubectl("get", "events")
    assert "Pulled" in kubectl("events", "--for", "pod/web")
    kubectl("delete", "pod", "web")
    assert "not found" in kubectl.refused("get", "pod", "web")


def test_get_watches_changes_as_rows(kubectl):
    kubectl("create", "-f", "-", stdin=manifest())
    command = kubectl.command("get", "wd", "-w")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watcher:
        assert watcher.stdout.readline().startswith("NAME")
        assert watcher.stdout.readline().split()[:2] == ["one", "1"]
        kubectl("scale", "wd/one", "--replicas=3")
        assert watcher.stdout.readline().split()[:2] == ["one", "3"]
        watcher.terminate()
        watcher.wait(60)


def test_wait_returns_when_a_condition_or_a_value_comes_true(kubectl):
    kubectl("run", "web", "--image=i:1")
    waiting = subprocess.Popen(
        kubectl.command("wait", "pod/web", "--for=condition=Ready", "--timeout=20s"),
        stdout=subprocess.PIPE,
        text=True,
    )
    status = {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
    kubectl.api.patch(f"{kubectl.home.pods}/web/status", status)
    with waiting:
        assert "condition met" in waiting.communicate(timeout=60)[0]
    kubectl("wait", "pod/web", "--for=jsonpath={.status.phase}=Pending", "--timeout=5s")


def test_nodes_are_cordoned_tainted_and_drained_under_budgets(kubectl):
    node = f"node-{kubectl.home.name}"
    kubectl.api.post("/api/v1/nodes", {"metadata": {"name": node}})
    overrides = json.dumps({"spec": {"nodeName": node}})
    kubectl("run", "web", "--image=i:1", "--labels=a=b", f"--overrides={overrides}")
    status = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
    kubectl.api.patch(f"{kubectl.home.pods}/web/status", {"status": status})
    kubectl("create", "pdb", "b", "--selector=a=b", "--min-available=1")
    kubectl("taint", "node", node, "spot=going:NoSchedule")
    kubectl("cordon", node)
    assert "SchedulingDisabled" in kubectl("get", "node", node)
    refused = kubectl.refused("drain", node, "--force", "--timeout=1s")
    assert "violate the pod's disruption budget" in refused
    kubectl("delete", "pdb", "b")
    done = kubectl.run("drain", node, "--force", "--timeout=1s")
    assert "evicting pod" in done.stdout + done.stderr
    assert "Terminating" in kubectl("get", "pod", "web")
    kubectl("delete", "pod", "web", "--grace-period=0", "--force")
    kubectl("uncordon", node)


def test_can_i_and_api_resources_answer(kubectl):
    assert kubectl("auth", "can-i", "delete", "nodes") == "yes\n"
    assert "system-node-critical" in kubectl("get", "priorityclasses")
    assert "widgets" in kubectl("api-resources", "--api-group=example.dev")
    assert "v1.34" in kubectl("version")


def test_what_is_not_there_is_said_plainly(kubectl):
    kubectl("run", "web", "--image=i:1")
    kubectl.api.patch(f"{kubectl.home.pods}/web/status", {"status": {"phase": "Running"}})
    for words in (
        ("exec", "web", "--", "ls"),
        ("attach", "web"),
        ("cp", "web:/x", "/tmp/never"),
        ("port-forward", "web", "8080:80"),
        ("debug", "web", "--image=i:1"),
    ):
        assert "does not do this" in kubectl.refused(*words), words
    assert "doesn't have a resource type" in kubectl.refused("get", "endpointslices")


@pytest.mark.parametrize("verb", ["apply", "create"])
@pytest.mark.parametrize("version", ["kubeflow.org/v1", "example.dev/v9"])
def test_an_unknown_kind_is_named_with_its_version(kubectl, verb, version):
    body = yaml.safe_dump({"apiVersion": version, "kind": "PyTorchJob", "metadata": {"name": "x"}})
    text = kubectl.refused(verb, "-f", "-", stdin=body)
    assert f'no matches for kind "PyTorchJob" in version "{version}"' in text


def test_what_is_valid_is_tried_without_being_done(kubectl):
    for flags in (["create", "--validate=true"], ["apply"]):
        assert "server dry run" in kubectl(
            *flags, "--dry-run=server", "-f", "-", stdin=manifest()
        ).replace("(dry run)", "(server dry run)")
    assert kubectl("get", "wd", "--ignore-not-found") == ""
    text = kubectl.refused("create", "--validate=true", "-f", "-", stdin=manifest(foo=1))
    assert 'unknown field "spec.foo"' in text
    done = kubectl.run("create", "--validate=warn", "-f", "-", stdin=manifest(foo=1))
    assert 'Warning: unknown field "spec.foo"' in done.stderr


def test_custom_resources_and_deployments_are_autoscaled_on_paper(kubectl):
    kubectl("create", "-f", "-", stdin=manifest(replicas=2))
    kubectl("create", "deployment", "d", "--image=i:1")
    kubectl("autoscale", "wd", "one", "--min=1", "--max=4")
    kubectl("autoscale", "deployment", "d", "--max=4", "--cpu-percent=50")
    rows = {row.split()[0]: row for row in kubectl("get", "hpa").splitlines()}
    assert "cpu: <unknown>/50%" in rows["d"]
    assert "Widget/one" in rows["one"]
    assert "this cluster has no metrics server" in kubectl("describe", "hpa", "one")
    kubectl("scale", "wd/one", "--replicas=3", "--current-replicas=2")
    assert kubectl("get", "wd", "one", "-o", "jsonpath={.spec.replicas}") == "3"


def test_quotas_are_shown_and_enforced(kubectl):
    kubectl("create", "quota", "q", "--hard=count/configmaps=1,pods=2")
    kubectl("create", "configmap", "a")
    text = kubectl.refused("create", "configmap", "b")
    assert "exceeded quota: q, requested: count/configmaps=1, used: count/configmaps=1" in text
    assert "count/configmaps  1     1" in kubectl("describe", "quota", "q")


def test_a_crd_lives_and_dies_with_its_objects(kubectl, widget_crd):
    names = {"plural": "gadgets", "kind": "Gadget", "singular": "gadget"}
    widget_crd["metadata"]["name"] = "gadgets.example.dev"
    widget_crd["spec"]["names"] = names
    kubectl("apply", "-f", "-", stdin=yaml.safe_dump(widget_crd))
    kubectl("wait", "crd/gadgets.example.dev", "--for=condition=Established", "--timeout=5s")
    kubectl("apply", "-f", "-", stdin=manifest().replace("Widget", "Gadget"))
    started = time.monotonic()
    kubectl("delete", "crd", "gadgets.example.dev")
    assert time.monotonic() - started < 10
    assert "could not find the requested resource" in kubectl.refused("get", "gadgets")
