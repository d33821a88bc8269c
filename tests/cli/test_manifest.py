import base64
from pathlib import Path

import pytest
import yaml

from rekindle_cli import manifest
from rekindle_cli.manifest import S3Access
from rekindle_cli.output.failure import CommandFailure

S3 = S3Access(endpoint="http://127.0.0.1:9", access_key="embedded", secret_key="s")
JOB = """
apiVersion: rekindle.dev/v1alpha1
kind: TrainingJob
metadata: {name: digits}
spec:
  template:
    spec:
      initContainers: [{name: fetch, image: busybox}]
      containers:
      - {name: trainer, image: rekindle/runtime, args: [train.py, --epochs, "10"]}
      - {name: sidecar, image: other}
  checkpoint: {uri: "s3://bucket/team/digits"}
"""
SECRET = """
apiVersion: v1
kind: Secret
metadata: {name: s3}
stringData: {AWS_ACCESS_KEY_ID: real, AWS_SECRET_ACCESS_KEY: real}
"""


def read(text: str) -> manifest.Bundle:
    return manifest.read(text, "job.yaml", Path("/work"))


def refused(text: str) -> str:
    with pytest.raises(CommandFailure) as caught:
        read(text)
    assert caught.value.code == 2
    return str(caught.value)


def test_one_job_and_what_it_needs_are_taken_apart() -> None:
    found = read(f"---\n{SECRET}---\n{JOB}---\n")
    assert (found.name, found.namespace) == ("digits", "default")
    assert [entry["kind"] for entry in found.others] == ["Secret"]


def test_broken_yaml_is_refused_with_line_and_column() -> None:
    assert refused("a: [1,\nb: }").startswith("job.yaml:2:4: this is no YAML: ")


@pytest.mark.parametrize("text", ["just words", "- a list", "{a: 1}", "kind: 7"])
def test_a_document_that_is_no_object_is_refused(text) -> None:
    assert "document 1 is no Kubernetes object" in refused(text)


def test_a_file_without_a_job_says_how_one_begins() -> None:
    text = refused(SECRET)
    assert "holds 0 documents of kind TrainingJob, must be exactly one (found: Secret)" in text
    assert "apiVersion: rekindle.dev/v1alpha1" in text


def test_an_empty_file_is_refused() -> None:
    assert "found: nothing" in refused("")


def test_two_jobs_are_refused() -> None:
    assert "holds 2 documents" in refused(f"{JOB}---\n{JOB}")


def test_another_api_version_is_refused_with_the_right_one() -> None:
    text = refused(JOB.replace("v1alpha1", "v1"))
    assert "apiVersion is 'rekindle.dev/v1', must be rekindle.dev/v1alpha1" in text


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "there is no such file"),
        (lambda path: path.mkdir(), "is a directory"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "is no text file"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, make, words) -> None:
    path = tmp_path / "job.yaml"
    make(path)
    with pytest.raises(CommandFailure, match=words):
        manifest.load(path)


def test_every_image_counts_also_of_init_containers() -> None:
    assert manifest.images(read(JOB).job) == {"busybox", "rekindle/runtime", "other"}


@pytest.mark.parametrize(
    ("args", "script"), [("[train.py]", "train.py"), ("[-m, pkg.train]", None), ("[]", None)]
)
def test_the_program_is_the_script_of_the_trainer(args, script) -> None:
    job = read(JOB.replace('[train.py, --epochs, "10"]', args)).job
    assert manifest.program(job) == script


@pytest.mark.parametrize(
    ("existing", "where"),
    [
        ({"/work/train.py", "/examples/train.py"}, "/work"),
        ({"/examples/train.py"}, "/examples"),
        (set(), "/work"),
    ],
)
def test_containers_start_where_the_script_is(existing, where) -> None:
    found = manifest.working_directory(
        read(JOB), Path("/examples"), exists=lambda path: str(path) in existing
    )
    assert found == Path(where)


def test_checkpoints_go_to_the_embedded_store_and_the_change_is_told() -> None:
    local = manifest.localise(read(JOB), S3)
    assert local.bundle.job["spec"]["checkpoint"] == {
        "uri": "s3://bucket/team/digits",
        "endpointUrl": S3.endpoint,
    }
    assert "embedded object store at http://127.0.0.1:9." in local.notes[0]


def test_the_bundle_itself_is_not_changed() -> None:
    bundle = read(JOB)
    manifest.localise(bundle, S3)
    assert "endpointUrl" not in bundle.job["spec"]["checkpoint"]


def test_a_named_secret_gets_the_embedded_credentials_and_never_the_real_ones() -> None:
    text = JOB.replace('digits"}', 'digits", secretRef: {name: s3}}')
    local = manifest.localise(read(f"{SECRET}---\n{text}"), S3)
    (secret,) = local.bundle.others
    assert secret["metadata"] == {"name": "s3", "namespace": "default"}
    assert base64.b64decode(secret["data"]["AWS_ACCESS_KEY_ID"]) == b"embedded"
    assert "stringData" not in secret


def test_another_endpoint_with_a_password_is_refused_and_not_repeated() -> None:
    text = JOB.replace('digits"}', 'digits", endpointUrl: "http://me:hunter2@minio:9000"}')
    with pytest.raises(
        CommandFailure, match="spec.checkpoint.endpointUrl holds credentials"
    ) as caught:
        manifest.localise(read(text), S3)
    assert "hunter2" not in "".join(caught.value.lines)


def test_another_endpoint_is_replaced_and_named() -> None:
    text = JOB.replace('digits"}', 'digits", endpointUrl: "http://minio:9000"}')
    local = manifest.localise(read(text), S3)
    assert local.bundle.job["spec"]["checkpoint"]["endpointUrl"] == S3.endpoint
    assert "instead of http://minio:9000" in local.notes[0]


def test_the_embedded_store_has_no_bucket_in_its_host_name() -> None:
    text = JOB.replace('digits"}', 'digits", addressing: virtual, region: eu-1, commit: lease}')
    job = manifest.localise(read(text), S3).bundle.job
    assert manifest.store_options(job) == {
        "endpoint_url": S3.endpoint,
        "region": "eu-1",
        "addressing": "path",
        "commit": "lease",
    }
    wrong = read(JOB.replace('digits"}', 'digits", addressing: dns}'))
    changed = manifest.localise(wrong, S3).bundle.job
    assert changed["spec"]["checkpoint"]["addressing"] == "dns", "for the API server to refuse"


def test_with_real_s3_and_with_files_nothing_is_changed() -> None:
    bundle = read(JOB)
    assert manifest.localise(bundle, None).bundle is bundle
    local = read(JOB.replace("s3://bucket/team/digits", "file:///tmp/x"))
    assert manifest.localise(local, S3).bundle is local


@pytest.mark.parametrize(
    "spec",
    [
        5,
        None,
        {"checkpoint": 7},
        {"checkpoint": {"uri": 9}},
        {"checkpoint": {"uri": "s3://"}},
        {"checkpoint": {"uri": "s3://b/x", "secretRef": "s3", "endpointUrl": 4}},
        {"template": []},
        {"template": {"spec": {"containers": {"name": "trainer"}}}},
        {"template": {"spec": {"containers": [3, {"name": "trainer", "image": 4, "args": "x"}]}}},
    ],
)
def test_nonsense_is_left_for_the_api_server_to_refuse(spec) -> None:
    job = {**yaml.safe_load(JOB), "spec": spec, "metadata": spec}
    bundle = manifest.Bundle(job=job, folder=Path("/work"))
    local = manifest.localise(bundle, S3).bundle
    assert manifest.images(job) == set()
    assert manifest.program(job) is None
    assert local.namespace == "default"
    checkpoint = spec.get("checkpoint") if isinstance(spec, dict) else None
    if isinstance(checkpoint, dict) and "secretRef" in checkpoint:
        assert local.job["spec"]["checkpoint"]["secretRef"] == "s3"
        assert local.job["spec"]["checkpoint"]["endpointUrl"] == 4


def test_an_option_of_the_script_can_be_given_another_value() -> None:
    job = read(JOB).job
    changed = manifest.with_argument(job, "--epochs", "2")
    assert changed["spec"]["template"]["spec"]["containers"][0]["args"][-1] == "2"
    assert manifest.program(job) == "train.py"
    assert manifest.with_argument(job, "--lr", "2") is None
