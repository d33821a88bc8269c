"""Jobs on a whole stack, one for all tests of this file."""

import io
import os
import signal
import time
from pathlib import Path

import pytest
import yaml

from rekindle_cli import manifest
from rekindle_cli.jobs.evidence import Evidence
from rekindle_cli.jobs.explain import explain
from rekindle_cli.jobs.query import Query, explained, listed
from rekindle_cli.jobs.view import PlainView
from rekindle_cli.local.run import RunRequest, last_words, prepare, run_job
from rekindle_cli.local.stack import LocalStack, Options
from rekindle_cli.output.failure import CommandFailure

JOB = """
apiVersion: rekindle.dev/v1alpha1
kind: TrainingJob
metadata: {name: %s}
spec:
  template: {spec: {containers: [{name: trainer, image: any, args: [%s]}]}}
  checkpoint: {uri: "s3://rekindle/plain"}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("job")


@pytest.fixture(scope="module")
def stack(folder):
    with LocalStack(Options(nodes=1, workdirs={"*": folder}), print) as stack:
        yield stack


def bundle(folder: Path, name: str, script: str) -> manifest.Bundle:
    (folder / f"{name}.py").write_text(script)
    return manifest.read(JOB % (name, f"{name}.py"), "job.yaml", folder)


def test_what_a_cluster_has_to_have_is_read_from_the_manifest(folder) -> None:
    path = folder / "job.yaml"
    path.write_text(JOB % ("x", "x.py"))
    _, options = prepare(RunRequest(path=path))
    assert (options.buckets, dict(options.workdirs)) == (("rekindle",), {"any": folder.resolve()})
    _, options = prepare(RunRequest(path=path, real_s3=True))
    assert (options.buckets, options.real_s3) == ((), True)


def test_a_working_directory_that_does_not_exist_is_refused(folder) -> None:
    path = folder / "job.yaml"
    path.write_text(JOB % ("x", "x.py"))
    with pytest.raises(CommandFailure, match="is no directory"):
        prepare(RunRequest(path=path, workdir=folder / "absent"))


@pytest.mark.processes
def test_a_script_that_raises_fails_the_job_and_is_quoted(stack, folder) -> None:
    job = bundle(folder, "raises", "raise ValueError('lr is negative')\n")
    report = run_job(stack, job, PlainView(io.StringIO()), started=time.monotonic())
    assert report.job.phase == "Failed"
    assert report.job.incidents[0].cause == "UserError"
    assert "raise ValueError('lr is negative')" in "\n".join(last_words(stack.api(), report))
    assert report.evidence == Evidence(problem="s3://rekindle/plain holds no checkpoint")
    query = Query(name="raises", kubeconfig=stack.kubeconfig)
    assert "Failed" in listed(query, as_json=False)
    found, said = explained(query)
    assert said == explain(found)
    assert any("ValueError: lr is negative" in one.text for one in said if one.about == "advice")


@pytest.mark.processes
def test_a_job_outlives_its_operator(stack, folder) -> None:
    job = bundle(folder, "patient", "import time\ntime.sleep(3)\n")
    killed: list[int] = []

    def kill(snapshot) -> None:
        if not killed and snapshot.rounds:
            killed.append(stack.operator.pid)
            os.kill(killed[0], signal.SIGKILL)

    report = run_job(stack, job, PlainView(io.StringIO()), started=time.monotonic(), each=kill)
    assert killed
    assert report.job.phase == "Succeeded"
    assert stack.operator.restarts == 1


@pytest.mark.processes
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"replicas": 0}, "spec.replicas: Invalid value: 0"),
        ({"replica": 2}, 'unknown field "spec.replica"; correct its name or remove it'),
        ({"checkpoint": {"uri": "s3:/x"}}, "for example s3://training/team/digits"),
        ({"elastic": {"minReplicas": 3}}, "raise spec.replicas or lower spec.elastic"),
        ({"template": 5}, "spec.template"),
    ],
)
def test_a_bad_manifest_is_refused_with_the_field(stack, folder, change, words) -> None:
    document = yaml.safe_load(JOB % ("bad", "bad.py"))
    document["spec"] |= change
    job = manifest.Bundle(job=document, folder=folder)
    with pytest.raises(CommandFailure) as caught:
        run_job(stack, job, PlainView(io.StringIO()), started=0.0)
    assert caught.value.code == 2
    assert caught.value.lines[0] == "The API server refuses TrainingJob bad:"
    assert words in str(caught.value)
