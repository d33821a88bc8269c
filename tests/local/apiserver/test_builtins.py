import pytest

from rekindle_local.apiserver.errors import ApiError


def causes(bench, obj):
    with pytest.raises(ApiError) as refusal:
        bench.create(obj)
    assert refusal.value.code == 422, refusal.value.message
    return {cause["field"]: cause["message"] for cause in refusal.value.details["causes"]}


def named(api_version, kind, name="x", **fields):
    metadata = {"name": name, "namespace": "default"}
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **fields}


def test_a_pod_reads_back_with_the_fields_a_real_one_has(bench, pod):
    made = bench.create(pod())
    spec, container = made["spec"], made["spec"]["containers"][0]
    assert made["status"] == {"phase": "Pending", "qosClass": "BestEffort"}
    assert spec["restartPolicy"] == "Always"
    assert spec["terminationGracePeriodSeconds"] == 30
    assert spec["schedulerName"] == "default-scheduler"
    assert {item["key"] for item in spec["tolerations"]} == {
        "node.kubernetes.io/not-ready",
        "node.kubernetes.io/unreachable",
    }
    assert container["imagePullPolicy"] == "IfNotPresent"
    assert container["terminationMessagePath"] == "/dev/termination-log"


@pytest.mark.parametrize(
    ("image", "policy"),
    [("a", "Always"), ("a:latest", "Always"), ("r:5000/a", "Always"), ("a:1", "IfNotPresent")],
)
def test_only_the_latest_tag_is_always_pulled(bench, pod, image, policy):
    made = bench.create(pod(spec={"containers": [{"name": "c", "image": image}]}))
    assert made["spec"]["containers"][0]["imagePullPolicy"] == policy


@pytest.mark.parametrize(
    ("resources", "quality"),
    [
        ({}, "BestEffort"),
        ({"requests": {"cpu": "1"}}, "Burstable"),
        ({"limits": {"cpu": "1", "memory": "1Gi"}}, "Guaranteed"),
        (
            {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}},
            "Burstable",
        ),
    ],
)
def test_the_quality_of_service_follows_from_the_resources(bench, pod, resources, quality):
    container = {"name": "c", "image": "i", "resources": resources}
    made = bench.create(pod(spec={"containers": [container]}))
    assert made["status"]["qosClass"] == quality


def test_quantities_may_be_numbers_and_read_back_as_texts(bench, pod):
    resources = {"limits": {"cpu": 1, "nvidia.com/gpu": 1, "memory": "1024Mi"}}
    volume = {"name": "v", "emptyDir": {"sizeLimit": 1073741824}}
    container = {"name": "c", "image": "i", "resources": resources}
    made = bench.create(pod(spec={"containers": [container], "volumes": [volume]}))
    kept = {"cpu": "1", "nvidia.com/gpu": "1", "memory": "1Gi"}
    assert made["spec"]["containers"][0]["resources"] == {"limits": kept, "requests": kept}
    assert made["spec"]["volumes"][0]["emptyDir"]["sizeLimit"] == "1073741824"


def test_a_number_where_a_text_belongs_is_refused_with_its_path(bench, pod):
    container = {"name": "c", "image": "i", "env": [{"name": "A", "value": 8}]}
    with pytest.raises(ApiError) as refusal:
        bench.create(pod(spec={"containers": [container]}))
    assert refusal.value.code == 400
    assert "spec.containers[0].env[0].value: expected string" in refusal.value.message


def one_container(**fields):
    return {"containers": [{"name": "c", "image": "i", **fields}]}


def one_init(**fields):
    return {**one_container(), "initContainers": [{"name": "i", "image": "i", **fields}]}


PROBE = {"tcpSocket": {"port": 80}}


@pytest.mark.parametrize(
    ("spec", "field", "text"),
    [
        (one_container(restartPolicy="Always"), "containers[0].restartPolicy", "non-init"),
        (one_init(restartPolicy="OnFailure"), "initContainers[0].restartPolicy", '"Always"'),
        (one_init(livenessProbe=PROBE), "initContainers[0].livenessProbe", "restartPolicy=Always"),
        (one_container(livenessProbe={}), "containers[0].livenessProbe", "handler type"),
        (
            one_container(livenessProbe={**PROBE, "successThreshold": 2}),
            "containers[0].livenessProbe.successThreshold",
            "must be 1",
        ),
        (
            one_container(readinessProbe={**PROBE, "exec": {"command": ["x"]}}),
            "containers[0].readinessProbe.tcpSocket",
            "more than 1 handler",
        ),
        (
            one_container(ports=[{"containerPort": 1, "hostPort": 7}] * 2),
            "containers[0].ports[1].hostPort",
            "Duplicate",
        ),
        (
            {"hostNetwork": True, **one_container(ports=[{"containerPort": 1, "hostPort": 7}])},
            "containers[0].ports[0].containerPort",
            "hostNetwork",
        ),
    ],
)
def test_what_only_some_containers_may_have_is_refused_elsewhere(bench, pod, spec, field, text):
    assert text in causes(bench, pod(spec=spec))[f"spec.{field}"]


def test_a_sidecar_may_have_probes_and_hooks(bench, pod):
    hook = {"preStop": {"sleep": {"seconds": 1}}}
    fields = {"restartPolicy": "Always", "startupProbe": PROBE, "lifecycle": hook}
    made = bench.create(pod(spec=one_init(**fields)))
    assert made["spec"]["initContainers"][0]["startupProbe"]["failureThreshold"] == 3


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"containers": []}, "spec.containers"),
        ({"containers": [{"image": "i"}]}, "spec.containers[0].name"),
        ({"containers": [{"name": "c"}]}, "spec.containers[0].image"),
        ({"containers": [{"name": "C_C", "image": "i"}]}, "spec.containers[0].name"),
        ({"containers": [{"name": "c", "image": "i"}] * 2}, "spec.containers[1].name"),
        ({"restartPolicy": "Sometimes"}, "spec.restartPolicy"),
        ({"terminationGracePeriodSeconds": -1}, "spec.terminationGracePeriodSeconds"),
        ({"nodeSelector": {"a b": "c"}}, "spec.nodeSelector"),
        ({"tolerations": [{"operator": "Perhaps"}]}, "spec.tolerations[0].operator"),
        ({"volumes": [{"name": "v"}, {"name": "v"}]}, "spec.volumes[1].name"),
        ({"volumes": [{"name": "v", "secret": {}}]}, "spec.volumes[0].secret.secretName"),
        (
            {"containers": [{"name": "c", "image": "i", "env": [{"value": "x"}]}]},
            "spec.containers[0].env[0].name",
        ),
        (
            {
                "containers": [
                    {"name": "c", "image": "i", "volumeMounts": [{"name": "no", "mountPath": "/"}]}
                ]
            },
            "spec.containers[0].volumeMounts[0].name",
        ),
        (
            {"containers": [{"name": "c", "image": "i", "resources": {"limits": {"cpu": "lots"}}}]},
            "spec.containers[0].resources.limits[cpu]",
        ),
        (
            {"containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 70000}]}]},
            "spec.containers[0].ports[0].containerPort",
        ),
    ],
)
def test_a_bad_pod_is_refused_with_the_field(bench, pod, spec, field):
    assert field in causes(bench, pod(spec=spec))


def test_a_field_of_the_wrong_type_is_a_400_with_its_path(bench, pod):
    with pytest.raises(ApiError, match=r"spec\.containers\[0\]\.image: expected string") as refusal:
        bench.create(pod(spec={"containers": [{"name": "c", "image": 3}]}))
    assert refusal.value.code == 400


def test_unknown_fields_of_a_pod_are_named_under_strict_validation(bench, pod):
    body = pod(spec={"containers": [{"name": "c", "image": "i", "imagee": "x"}]})
    with pytest.raises(ApiError, match=r'unknown field "spec\.containers\[0\]\.imagee"'):
        bench.create(body, validation="Strict")


def test_a_pod_spec_is_fixed_but_for_a_few_fields(bench, pod):
    made = bench.create(pod())
    spec = made["spec"]
    image = {**made, "spec": {**spec, "containers": [{**spec["containers"][0], "image": "img:2"}]}}
    made = bench.update(image)
    more = [*spec["tolerations"], {"key": "a", "operator": "Exists"}]
    made = bench.update({**made, "spec": {**made["spec"], "tolerations": more}})
    for change in ({"nodeName": "n2"}, {"restartPolicy": "Never"}, {"tolerations": []}):
        with pytest.raises(ApiError) as refusal:
            bench.update({**made, "spec": {**made["spec"], **change}})
        assert refusal.value.code == 422


def test_a_priority_class_sets_the_priority_of_pods_that_name_it(bench, pod):
    bench.create({**named("scheduling.k8s.io/v1", "PriorityClass", "high"), "value": 10})
    assert bench.create(pod(spec={"priorityClassName": "high"}))["spec"]["priority"] == 10
    with pytest.raises(ApiError, match="no PriorityClass with name low was found"):
        bench.create(pod("q", spec={"priorityClassName": "low"}))


def test_string_data_of_a_secret_becomes_data(bench):
    made = bench.create(named("v1", "Secret", stringData={"a": "b"}))
    assert made["data"] == {"a": "Yg=="}
    assert "stringData" not in made
    assert "must be base64" in causes(bench, named("v1", "Secret", "y", data={"a": "?"}))["data[a]"]


def test_an_immutable_config_map_stays_as_it_is(bench):
    made = bench.create(named("v1", "ConfigMap", data={"a": "1"}, immutable=True))
    with pytest.raises(ApiError, match="field is immutable"):
        bench.update({**made, "data": {"a": "2"}})


def test_a_service_gets_an_address_unless_it_is_headless(bench):
    ports = [{"port": 80}]
    one, two = (
        bench.create(named("v1", "Service", name, spec={"ports": ports}))["spec"]
        for name in ("a", "b")
    )
    assert one["clusterIP"] != two["clusterIP"]
    assert one["ports"] == [{"port": 80, "protocol": "TCP", "targetPort": 80}]
    headless = bench.create(named("v1", "Service", "c", spec={"clusterIP": "None"}))
    assert headless["spec"]["clusterIP"] == "None"
    assert "spec.ports" in causes(bench, named("v1", "Service", "d", spec={}))
    assert "metadata.name" in causes(bench, named("v1", "Service", "1d", spec={"ports": ports}))


@pytest.mark.parametrize(
    ("obj", "field"),
    [
        (
            named(
                "policy/v1", "PodDisruptionBudget", spec={"minAvailable": 1, "maxUnavailable": 1}
            ),
            "spec",
        ),
        (
            named("policy/v1", "PodDisruptionBudget", spec={"minAvailable": "half"}),
            "spec.minAvailable",
        ),
        (
            named("coordination.k8s.io/v1", "Lease", spec={"leaseDurationSeconds": 0}),
            "spec.leaseDurationSeconds",
        ),
        (named("v1", "Event", involvedObject={"namespace": "other"}), "involvedObject.namespace"),
        (named("apps/v1", "Deployment", spec={}), "spec.selector"),
        (
            {
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {"name": "n"},
                "spec": {"taints": [{"key": "a", "effect": "Never"}]},
            },
            "spec.taints[0].effect",
        ),
    ],
)
def test_other_kinds_are_checked_too(bench, obj, field):
    assert field in causes(bench, obj)


def claim(**spec):
    full = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1024Mi"}},
        **spec,
    }
    return named("v1", "PersistentVolumeClaim", spec=full)


def storage_class(name, *, default=False, **fields):
    made = named("storage.k8s.io/v1", "StorageClass", name, provisioner="p", **fields)
    del made["metadata"]["namespace"]
    if default:
        made["metadata"]["annotations"] = {"storageclass.kubernetes.io/is-default-class": "true"}
    return made


def test_a_claim_is_protected_and_of_the_default_class(bench):
    bench.create(storage_class("other"))
    bench.create(storage_class("usual", default=True))
    made = bench.create(claim())
    assert made["spec"]["storageClassName"] == "usual"
    assert made["metadata"]["finalizers"] == ["kubernetes.io/pvc-protection"]
    assert made["spec"]["resources"]["requests"]["storage"] == "1Gi"
    assert made["status"] == {"phase": "Pending"}


@pytest.mark.parametrize(
    ("obj", "field"),
    [
        (claim(accessModes=[]), "spec.accessModes"),
        (claim(accessModes=["Often"]), "spec.accessModes"),
        (claim(resources={}), "spec.resources[storage]"),
        (claim(resources={"requests": {"storage": "0"}}), "spec.resources[storage]"),
        (storage_class("x", volumeBindingMode="Later"), "volumeBindingMode"),
        (storage_class("x", reclaimPolicy="Recycle"), "reclaimPolicy"),
    ],
)
def test_what_is_no_claim_or_class_is_refused_with_its_field(bench, obj, field):
    assert field in causes(bench, obj)


def test_gates_are_only_taken_away_and_a_gated_pod_may_be_told_where_to_go(bench, pod):
    gates = [{"name": "example.com/a"}, {"name": "example.com/b"}]
    made = bench.create(pod(spec={"schedulingGates": gates}))
    more = {**made["spec"], "schedulingGates": [*gates, {"name": "example.com/c"}]}
    with pytest.raises(ApiError, match="found new scheduling gate 'example.com/c'"):
        bench.update({**made, "spec": more})
    told = {**made["spec"], "schedulingGates": gates[:1], "nodeSelector": {"pool": "x"}}
    made = bench.update({**made, "spec": told})
    free = {key: value for key, value in made["spec"].items() if key != "schedulingGates"}
    made = bench.update({**made, "spec": free})
    assert "schedulingGates" not in made["spec"]
    with pytest.raises(ApiError, match="pod updates may not change fields"):
        bench.update({**made, "spec": {**free, "nodeSelector": {"pool": "y"}}})
