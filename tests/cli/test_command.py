"""The command itself, as a person starts it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rekindle_cli import __main__ as command
from rekindle_cli import places
from rekindle_cli.local import stack
from rekindle_cli.manifest import S3Access

SECONDS = 180.0
JOB = """
apiVersion: rekindle.dev/v1alpha1
kind: TrainingJob
metadata: {name: plain}
spec:
  template: {spec: {containers: [{name: trainer, image: any, args: [train.py]}]}}
  checkpoint: {uri: "s3://rekindle/plain"}
"""


def environment() -> dict[str, str]:
    own = {key: text for key, text in os.environ.items() if key != "KUBECONFIG"}
    return {
        **own,
        "PYTHONPATH": os.pathsep.join(places.python_path()),
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
        "AWS_ACCESS_KEY_ID": "callers-own",
    }


def rekindle(*arguments: str | Path, **more: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "rekindle_cli", *map(str, arguments)],
        env={**environment(), **more},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


@pytest.fixture
def call(monkeypatch, capsys):
    """Call the entry point in this process, without its signal handlers."""
    monkeypatch.setattr("rekindle_cli.output.interrupts.install", lambda: None)

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["rekindle", *arguments])
        with pytest.raises(SystemExit) as ended:
            command.main()
        return ended.value.code or 0, capsys.readouterr().err

    return run


def test_a_failure_is_told_without_a_traceback(call, tmp_path) -> None:
    code, said = call("run", str(tmp_path / "absent.yaml"))
    assert code == 2
    assert said.splitlines()[0] == f"{tmp_path}/absent.yaml: there is no such file."
    assert "Traceback" not in said


def test_ctrl_c_is_exit_code_130(call, monkeypatch) -> None:
    def interrupted(*_: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "app", interrupted)
    assert call("version")[0] == 130


@pytest.mark.parametrize(
    ("arguments", "variable", "traced"),
    [
        (("version",), None, False),
        (("version",), "0", False),
        (("version",), "1", True),
        (("--debug", "version"), None, True),
    ],
)
def test_a_bug_is_one_line_and_a_traceback_for_who_asks(
    call, monkeypatch, arguments, variable, traced
) -> None:
    def broken(given: list[str], **options: object) -> None:
        assert given == ["version"]
        raise KeyError("a\nb")

    monkeypatch.setattr(command, "app", broken)
    monkeypatch.delenv("REKINDLE_DEBUG", raising=False)
    if variable:
        monkeypatch.setenv("REKINDLE_DEBUG", variable)
    if traced:
        monkeypatch.setattr(sys, "argv", ["rekindle", *arguments])
        with pytest.raises(KeyError):
            command.main()
        return
    code, said = call(*arguments)
    assert code == 1
    (line,) = said.splitlines()
    assert line.startswith("rekindle has failed (KeyError: ")
    assert "test_command.py:" in line
    assert "'rekindle --debug' with the same arguments" in line


def test_an_unknown_option_is_a_usage_error(call) -> None:
    assert call("get", "--frobnicate")[0] == 2


def test_an_image_has_the_embedded_identity_and_nothing_of_the_callers(monkeypatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "callers-own")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://real")
    s3 = S3Access(endpoint="http://embedded", access_key="a", secret_key="s")
    inside = stack.runtime_image(Path("/w"), s3).env
    assert inside["AWS_ENDPOINT_URL"] == "http://embedded"
    assert "AWS_PROFILE" not in inside
    outside = stack.runtime_image(Path("/w"), None).env
    assert (outside["AWS_PROFILE"], outside["AWS_ENDPOINT_URL"]) == ("callers-own", "http://real")


def test_the_operator_has_nothing_of_the_callers_account_either(monkeypatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "callers-own")
    found = stack._operator_environment(Path("/kubeconfig"))
    assert "AWS_PROFILE" not in found
    assert found["KUBECONFIG"] == "/kubeconfig"


def test_the_packaged_copies_are_found_when_there_is_no_checkout(tmp_path, monkeypatch) -> None:
    (tmp_path / "data" / "crds").mkdir(parents=True)
    (tmp_path / "data" / "crds" / "trainingjob.yaml").touch()
    monkeypatch.setattr(places, "_CHECKOUT", tmp_path / "none")
    monkeypatch.setattr(places, "_HERE", tmp_path)
    assert places.crds() == tmp_path / "data" / "crds"
    assert places.examples() is None


@pytest.mark.processes
def test_a_plain_script_runs_to_its_end(tmp_path) -> None:
    (tmp_path / "job.yaml").write_text(JOB)
    (tmp_path / "train.py").write_text(
        "import os\nassert os.environ['AWS_ACCESS_KEY_ID'] == 'embedded'\n"
        "assert os.environ['AWS_ENDPOINT_URL'] != 'http://127.0.0.1:1'\n"
    )
    done = rekindle("run", tmp_path / "job.yaml", "--nodes", "1", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["phase"] == "Succeeded"
    assert [entry["members"] for entry in found["rounds"]] == [["plain-0"]]
    assert "round 1 (first round): plain-0" in done.stderr
    assert "in the embedded object store" in done.stderr


@pytest.mark.processes
def test_a_cluster_in_the_foreground_serves_and_leaves_nothing(tmp_path) -> None:
    # TMPDIR is short: programs in pods put sockets below it.
    started = subprocess.Popen(
        [sys.executable, "-m", "rekindle_cli", "up", "--nodes", "1"],
        env={**environment(), "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with started:
        try:
            line = started.stdout.readline()
            assert line.startswith("export KUBECONFIG=")
            config = line.partition("=")[2].strip()
            assert rekindle("get", KUBECONFIG=config).stdout == (
                "No TrainingJobs in namespace default.\n"
            )
            missing = rekindle("why", "digits", "--kubeconfig", config)
            assert missing.returncode == 2
            assert "There is no TrainingJob digits in namespace default" in missing.stderr
            begun = time.monotonic()
            started.send_signal(signal.SIGTERM)
            assert started.wait(SECONDS) == 0
            assert time.monotonic() - begun < 20
        finally:
            started.kill()
    assert list(tmp_path.iterdir()) == []
    assert rekindle("get", "--kubeconfig", config).returncode == 2


@pytest.mark.processes
@pytest.mark.timeout(700)
def test_the_manifest_of_the_front_page_runs_as_it_stands(tmp_path) -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("needs kubectl")
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    block = re.search(r"<!-- manifest -->\n```yaml\n(.*?)```", readme, re.DOTALL)
    assert block
    assert "secretRef" in block[1], "the secret that other clusters need is the point"
    (tmp_path / "job.yaml").write_text(block[1])
    started = subprocess.Popen(
        [sys.executable, "-m", "rekindle_cli", "up", "--nodes", "2"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with started:
        try:
            config = started.stdout.readline().strip().partition("=")[2]
            at = [kubectl, "--kubeconfig", config]
            subprocess.run([*at, "apply", "-f", str(tmp_path / "job.yaml")], check=True, timeout=60)
            done = subprocess.run(
                [*at, "wait", "tj/digits", "--for=condition=Complete", "--timeout=600s"],
                capture_output=True,
                text=True,
                timeout=620,
                check=False,
            )
            why = rekindle("why", "digits", KUBECONFIG=config)
            assert done.returncode == 0, done.stderr + why.stdout
        finally:
            started.send_signal(signal.SIGTERM)
            started.wait(SECONDS)


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_a_stage_is_handed_over_with_its_arguments_unread(stage, call, monkeypatch) -> None:
    started = []

    def execve(program, command, environment):
        started.append(command)
        raise SystemExit(7)

    monkeypatch.setattr(os, "execve", execve)
    assert call(stage, "--config", "run.yaml", "net:Net", "--help")[0] == 7
    given = ["--config", "run.yaml", "net:Net", "--help"]
    assert started == [[sys.executable, "-m", "rekindle", stage, *given]]
