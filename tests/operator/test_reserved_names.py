"""What a template may not name, because the operator does."""

import pytest

from rekindle.api import spec
from rekindle.api.spec import SpecError
from rekindle_operator.pods import manifests, reserved_names

TRAINER = "spec.template.spec.containers[0]"


def job(bodies, pod=(), metadata=None, *, inject=False, **container):
    template = {
        "metadata": metadata or {},
        "spec": {"containers": [{"name": "trainer", "image": "i", **container}], **dict(pod)},
    }
    return spec.parse(bodies(template=template, launcher={"inject": inject}), 0.0)


SIDECAR = {"name": "logs", "image": "i", "ports": [{"containerPort": 9430}]}
REFUSED = {
    "a variable": (
        {"env": [{"name": "A"}, {"name": "REKINDLE_JOB_NAME"}]},
        f"{TRAINER}.env[1].name: ",
    ),
    "the port": ({"ports": [{"containerPort": 9430}]}, f"{TRAINER}.ports[0].containerPort: "),
    "the port's name": (
        {"ports": [{"name": "rkd-metrics", "containerPort": 1}]},
        f"{TRAINER}.ports[0].name: ",
    ),
    "the port of a sidecar": (
        {"pod": {"initContainers": [SIDECAR]}},
        "spec.template.spec.initContainers[0].ports[0].containerPort: ",
    ),
    "a volume": (
        {"pod": {"volumes": [{"name": "rekindle-shm", "emptyDir": {}}]}},
        "spec.template.spec.volumes[0].name: ",
    ),
    "the volume with the secret": (
        {"pod": {"volumes": [{"name": "rekindle-access", "emptyDir": {}}]}},
        "spec.template.spec.volumes[0].name: ",
    ),
    "a mount over the secret": (
        {"volumeMounts": [{"name": "a", "mountPath": "/var/run/secrets/rekindle.dev/"}]},
        f"{TRAINER}.volumeMounts[0].mountPath: ",
    ),
    "an init container": (
        {"pod": {"initContainers": [{"name": "rekindle-launcher", "image": "i"}]}},
        "spec.template.spec.initContainers[0].name: ",
    ),
    "a mount over the launcher": (
        {"inject": True, "volumeMounts": [{"name": "a", "mountPath": "/rekindle/x"}]},
        f"{TRAINER}.volumeMounts[0].mountPath: ",
    ),
    "a label": (
        {"metadata": {"labels": {"rekindle.dev/index": "1"}}},
        "spec.template.metadata.labels[rekindle.dev/index]: ",
    ),
    "another place for last words": (
        {"terminationMessagePath": "/tmp/words"},
        f"{TRAINER}.terminationMessagePath: ",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_name_of_the_operators_is_refused_with_its_field(bodies, name):
    given, field = REFUSED[name]
    with pytest.raises(SpecError) as caught:
        reserved_names.check(job(bodies, **given))
    assert str(caught.value).startswith(field)


FINE = {
    "a switch for people": {"env": [{"name": "REKINDLE_WARM", "value": "0"}]},
    "shared memory of its own": {"volumeMounts": [{"name": "m", "mountPath": "/dev/shm"}]},
    "the launcher's place without a launcher": {
        "volumeMounts": [{"name": "a", "mountPath": "/rekindle"}]
    },
    "another protocol": {"ports": [{"containerPort": 9430, "protocol": "UDP"}]},
    "the usual place for last words": {"terminationMessagePath": "/dev/termination-log"},
    "what is none": {"env": "word", "ports": [8], "volumeMounts": {"a": 1}},
    "labels of others": {"metadata": {"labels": {"app.kubernetes.io/managed-by": "Helm"}}},
}


@pytest.mark.parametrize("name", FINE)
def test_everything_else_is_the_users(bodies, name):
    reserved_names.check(job(bodies, **FINE[name]))


def test_every_variable_that_the_operator_sets_is_reserved(bodies):
    body = bodies(
        checkpoint={
            "uri": "s3://b/r",
            "endpointUrl": "http://s3",
            "region": "r",
            "every": {"steps": 3},
        },
        progress={"file": "/p"},
    )
    body["spec"]["checkpoint"] |= {"addressing": "path"}
    pod = manifests.pod(spec.parse(body, 0.0), 0, 0, 60.0)
    env = {variable["name"] for variable in pod["spec"]["containers"][0]["env"]}
    assert env <= manifests.VARIABLES
