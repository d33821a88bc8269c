"""Whatever somebody gets wrong ends with one message, one reason and exit code 2: by command."""

import asyncio
import json
import shlex
import socket
import sys
import threading
from pathlib import Path

import pytest
import typer.main
import yaml

from rekindle_cli import __main__ as command
from rekindle_cli.local import training
from rekindle_cli.output.failure import REASONS, USAGE, CommandFailure
from rekindle_local.apiserver.http.server import ApiServer

ROOT = Path(__file__).parents[2]
KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: c
clusters: [{name: c, cluster: {server: "%s"}}]
users: [{name: u, user: {token: some-token}}]
contexts: [{name: c, context: {cluster: c, user: u}}]
"""
CRD = yaml.safe_load((ROOT / "crds" / "trainingjob.yaml").read_text())
JOB = {
    "apiVersion": "rekindle.dev/v1alpha1",
    "kind": "TrainingJob",
    "metadata": {"name": "runs", "namespace": "default"},
    "spec": {
        "template": {"spec": {"containers": [{"name": "trainer", "image": "i", "args": ["t.py"]}]}},
        "checkpoint": {"uri": "s3://rekindle/x"},
    },
}

CLUSTER = [
    ("{0} nope --kubeconfig {up}", "NotFound", "no TrainingJob nope"),
    ("{0} runs -n nope --kubeconfig {up}", "NotFound", "no namespace nope"),
    ("{0} runs --kubeconfig {bare}", "NotFound", ""),
    ("{0} runs --kubeconfig {down}", "Unreachable", "does not answer"),
    ("{0} runs --kubeconfig {locked}", "Unauthorized", "does not let you in"),
    ("{0} runs --kubeconfig {tmp}/absent", "NotFound", "does not exist"),
    ("{0} runs --kubeconfig {garbage}", "Invalid", "cannot be used"),
    ("{0} runs", "NotFound", "There is no cluster"),
    ("{0} runs --frobnicate", "Usage", "--frobnicate"),
]
"""Of each command that asks a cluster about a job."""

PLACES = [
    ("{0} file:///nope {1}", "NotFound", "file:///nope does not exist"),
    ("{0} file://{file} {1}", "NotFound", "is no directory"),
    ("{0} nonsense {1}", "Invalid", "relative path"),
    ("{0} ftp://host/x {1}", "Invalid", "unknown scheme"),
    ("{0} file:///nope {1} --region here", "Invalid", "--region"),
    ("{0} s3://bucket/x {1} --commit odd", "Invalid", "--commit"),
    ("{0} s3://bucket/x {1} --addressing odd", "Invalid", "--addressing"),
    ("{0} s3://bucket/x {1} --endpoint-url nonsense", "Invalid", "nonsense"),
    ("{0}", "Usage", "issing argument"),
]
"""Of each command that reads a store; their further arguments are in STORES."""

STORES = {
    "audit": "latest",
    "checkpoints ls": "",
    "checkpoints show": "latest",
    "checkpoints verify": "",
    "checkpoints diff": "1 2",
    "checkpoints export": "1 {tmp}/out.safetensors",
    "checkpoints prune": "",
    "checkpoints pin": "latest",
    "checkpoints unpin": "some",
}

OTHERS = [
    ("get -n nope --kubeconfig {up}", "NotFound", "no namespace nope"),
    ("get -A -n default --kubeconfig {up}", "Usage", "-A lists all namespaces"),
    ("get -A --kubeconfig {bare}", "NotFound", "does not know TrainingJobs"),
    ("get --watch -n nope --kubeconfig {up}", "NotFound", "no namespace nope"),
    ("restart runs --kubeconfig {up}", "Conflict", "has not ended: no operator has seen it"),
    ("restart", "Usage", ""),
    ("why", "Usage", ""),
    ("run {tmp}/absent.yaml", "NotFound", "no such file"),
    ("run {tmp}", "Invalid", "is a directory"),
    ("run {garbage}", "Invalid", "no YAML"),
    ("run {up}", "Invalid", "must be exactly one"),
    ("run", "Usage", ""),
    ("run {job} --workdir {tmp}/absent", "Invalid", "--workdir"),
    ("run {job} --nodes 0", "Usage", "--nodes"),
    ("demo --epochs 0", "Usage", "--epochs"),
    ("demo --seed x", "Usage", "--seed"),
    ("checkpoints show file://{tmp} latest", "NotFound", "holds no checkpoint"),
    ("checkpoints show file://{tmp} 7", "NotFound", "holds no checkpoint '7'"),
    ("checkpoints verify file://{tmp}", "NotFound", "holds no checkpoint"),
    ("checkpoints unpin file://{tmp} x", "NotFound", "has no pin"),
    ("checkpoints prune file://{tmp} --best x", "Invalid", "--best"),
    ("checkpoints prune file://{tmp} --latest 0", "Usage", "--latest"),
    ("checkpoints import {tmp}/absent.ckpt file://{tmp}/new", "NotFound", "no such file"),
    ("checkpoints import {file} nonsense", "Invalid", "relative path"),
    ("checkpoints import {file}", "Usage", ""),
    ("checkpoints frobnicate", "Usage", "frobnicate"),
    ("frobnicate", "Usage", "frobnicate"),
]

TABLE = [
    *(
        (text.replace("{0}", name), *rest)
        for name in ("get", "why", "restart")
        for text, *rest in CLUSTER
    ),
    *(
        (text.replace("{0}", name).replace("{1}", more).strip(), *rest)
        for name, more in STORES.items()
        for text, *rest in PLACES
    ),
    *OTHERS,
]  # fmt: skip


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """What the table means by its names: kubeconfigs, files and folders."""
    folder = tmp_path_factory.mktemp("places")
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def wait(work):
        return asyncio.run_coroutine_threadsafe(work, loop).result(timeout=30)

    def written(name: str, text: str) -> str:
        (folder / name).write_text(text)
        return str(folder / name)

    servers = {"up": ApiServer(), "bare": ApiServer(), "locked": ApiServer(token="another")}
    servers["up"].load([CRD, JOB])
    found = {
        name: written(name, KUBECONFIG % wait(server.start())) for name, server in servers.items()
    }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # and nobody listens there
        found["down"] = written("down", KUBECONFIG % f"http://127.0.0.1:{free.getsockname()[1]}")
        found["garbage"] = written("garbage", "a: [b")
        found["file"] = written("file", "")
        found["job"] = written("job.yaml", yaml.safe_dump(JOB))
        found["tmp"] = str(tmp_path_factory.mktemp("empty"))
        yield found
    for server in servers.values():
        wait(server.stop())
    loop.call_soon_threadsafe(loop.stop)
    thread.join(timeout=30)
    loop.close()


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """The entry point in this process: exit code, standard output, standard error."""
    monkeypatch.setattr("rekindle_cli.output.interrupts.install", lambda: None)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        monkeypatch.setenv(f"AWS_{name}", "x")

    def run(text: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["rekindle", *shlex.split(text)])
        with pytest.raises(SystemExit) as ended:
            command.main()
        said = capsys.readouterr()
        return ended.value.code or 0, said.out, said.err

    return run


@pytest.mark.servers
@pytest.mark.parametrize(("text", "reason", "part"), TABLE, ids=[row[0] for row in TABLE])
def test_a_mistake_is_told_to_people_and_to_programs(text, reason, part, call, places) -> None:
    text = text.format_map(places)
    code, out, err = call(text)
    assert (code, out) == (USAGE, ""), err
    assert part in err
    assert "Traceback" not in err
    code, out, again = call(f"{text} --json")
    assert code == USAGE
    assert again == err
    (line,) = out.splitlines()
    error = json.loads(line)["error"]
    assert set(error) == {"message", "reason", "hint"}
    assert error["reason"] == reason
    assert err.startswith(error["message"].splitlines()[0])


def commands(group, prefix: str = ""):
    for name, one in group.commands.items():
        if hasattr(one, "commands"):
            yield from commands(one, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", one


def test_every_command_that_speaks_json_is_in_the_table() -> None:
    speaking = {
        name
        for name, one in commands(typer.main.get_command(command.app))
        if any("--json" in parameter.opts for parameter in one.params)
    }
    assert speaking == {
        name for name in speaking if any(row[0].split(" -")[0].startswith(name) for row in TABLE)
    }
    assert {"get", "why", "restart", "run", "demo", "audit", "checkpoints ls"} <= speaking


@pytest.mark.servers
def test_what_is_empty_and_there_is_no_mistake(call, places) -> None:
    assert call(f"get --kubeconfig {places['up']} -n kube-system")[0] == 0
    assert call(f"checkpoints ls file://{places['tmp']}")[0] == 0
    code, out, _ = call(f"checkpoints ls file://{places['tmp']} --json")
    assert (code, json.loads(out)["checkpoints"]) == (0, [])


def test_looking_makes_no_store(call, tmp_path) -> None:
    for name in ("ls", "prune"):
        assert call(f"checkpoints {name} file://{tmp_path}/absent")[0] == USAGE
    assert not (tmp_path / "absent").exists()


def test_ctrl_c_is_an_error_for_programs_too(call, monkeypatch) -> None:
    def interrupted(*_: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "app", interrupted)
    code, out, _ = call("get --json")
    assert (code, json.loads(out)["error"]["reason"]) == (130, "Interrupted")


def test_an_error_of_ours_is_told_to_programs_too(call, monkeypatch) -> None:
    def broken(*_: object, **options: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(command, "app", broken)
    code, out, _ = call("get --json")
    assert (code, json.loads(out)["error"]["reason"]) == (1, "Internal")


def test_json_after_the_stage_of_a_training_is_the_trainings(call, monkeypatch) -> None:
    def refused(verb: str, arguments: list[str]) -> None:
        raise CommandFailure("no")

    monkeypatch.setattr(training, "hand_over", refused)
    assert call("fit --json")[:2] == (USAGE, "")


def test_a_reason_is_one_of_those_that_are_documented() -> None:
    with pytest.raises(AssertionError):
        CommandFailure("x", reason="Whatever")
    page = (ROOT / "docs" / "reference" / "exit-codes.md").read_text()
    for reason in REASONS:
        assert f"`{reason}`" in page


def test_the_help_tells_the_exit_codes(call) -> None:
    out = " ".join(call("--help")[1].split())
    assert "Exit codes: 0 done; 1 the job failed" in out
    assert out.startswith("Usage: rekindle ")


def test_the_version_is_told(call) -> None:
    code, out, _ = call("--version")
    assert code == 0
    assert out.split()[0] == "rekindle"
    assert out.split()[1] == call("version")[1].strip()


@pytest.mark.servers
@pytest.mark.parametrize("name", ["get", "why", "restart"])
@pytest.mark.parametrize(("cluster", "found"), [("up", "runs"), ("down", ""), ("bare", "")])
def test_the_shell_completes_names_of_jobs(name, cluster, found, call, places, monkeypatch) -> None:
    for variable, value in {
        "_REKINDLE_COMPLETE": "complete_bash",
        "_TYPER_COMPLETE_ARGS": f"rekindle {name} r",
        "COMP_WORDS": f"rekindle {name} r",
        "COMP_CWORD": "2",
        "KUBECONFIG": places[cluster],
    }.items():
        monkeypatch.setenv(variable, value)
    code, out, err = call("")
    assert (code, out.strip(), err) == (0, found, "")
