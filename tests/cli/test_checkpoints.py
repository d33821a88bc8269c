"""`rekindle checkpoints`: what each command says, and that it is true."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from rekindle.checkpoint import CommitRef, IntegrityError, Saver, Store, StoreError
from rekindle.checkpoint.format import manifest
from rekindle.checkpoint.verify import verify
from rekindle.interop.export import export
from rekindle_cli import places
from rekindle_cli.__main__ import app
from rekindle_cli.checkpoints import importing
from rekindle_cli.output.failure import CommandFailure


@pytest.fixture
def run(tmp_path):
    """A store with steps 10, 20 and 30."""
    store = Store.open(f"file://{tmp_path}/run")
    fence = store.acquire(owner="test").fence
    saver = Saver(
        store, lease_fence=fence, base=None, rank=0, world_size=1, keep_latest=9, chunk_bytes=64
    )
    for step in (10, 20, 30):
        state = {
            "model": {
                "w": torch.full((5, 7), float(step)),
                "fixed": torch.arange(9),
                "z": torch.complex(torch.ones(3), torch.zeros(3)),
            },
            "lr": 0.1 / step,
        }
        meta = {"step": step, "metrics": {"loss": 1 / step}, "cursor": {"epoch": step // 20}}
        saver.save(step, state, rank_state={"rng": torch.ones(4)}, meta=meta, wait=True)
    saver.close()
    return store


def call(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["checkpoints", *arguments])
    if isinstance(result.exception, CommandFailure):
        assert result.exception.code == code
        return "\n".join(result.exception.lines)
    assert result.exit_code == code, (result.output, result.exception)
    return result.stdout


def asked(*arguments: str, code: int = 0):
    return json.loads(call(*arguments, "--json", code=code))


def test_ls_lists_all_newest_first(run):
    lines = call("ls", run.uri).splitlines()
    assert lines[0].split() == ["STEP", "ATTEMPT", "CREATED", "RANKS", "SIZE", "METRICS", "REMARKS"]
    assert [line.split()[0] for line in lines[1:]] == ["30", "20", "10"]
    assert "loss 0.0333" in lines[1]
    found = asked("ls", run.uri)["checkpoints"]
    assert [(one["step"], one["attempt"], one["on_line"]) for one in found] == [
        (30, 1, True),
        (20, 1, True),
        (10, 1, True),
    ]
    assert found[0]["metrics"] == {"loss": 1 / 30}


def test_ls_shows_what_no_restore_would_take(run, tmp_path):
    run.quarantine(CommitRef(step=30, fence=1), "test")
    run.pin(CommitRef(step=10, fence=1), name="good")
    path = tmp_path / "run" / manifest.commit_key(CommitRef(step=20, fence=1))
    path.write_bytes(path.read_bytes()[:-3])
    remarks = [line.split("  ")[-1].strip() for line in call("ls", run.uri).splitlines()[1:]]
    assert remarks == ["damaged", "unreadable", "pin good"]


def test_an_empty_store_says_so(tmp_path):
    assert call("ls", f"file://{tmp_path}") == f"file://{tmp_path} holds no checkpoint.\n"
    assert "holds no checkpoint that can be restored" in call("show", f"{tmp_path}", code=2)


def test_show_tells_what_a_checkpoint_holds(run):
    text = call("show", run.uri, "--tensors")
    for part in (
        "step",
        "30",
        "model.w",
        "5x7",
        "float32",
        "metrics.loss",
        "resumed from",
    ):
        assert part in text
    found = asked("show", run.uri, "20")
    assert found["meta"]["cursor"] == {"epoch": 1}
    assert {"name": "model.w", "dtype": "float32", "shape": [5, 7], "bytes": 140} in found[
        "tensors"
    ]


@pytest.mark.parametrize("name", ["20", "20-1", "000000000020-00000001", "mine"])
def test_a_checkpoint_has_several_names(run, name):
    run.pin(CommitRef(step=20, fence=1), name="mine")
    assert asked("show", run.uri, name)["step"] == 20


@pytest.mark.parametrize("name", ["7", "20-9", "nothing", "../x"])
def test_an_unknown_name_is_answered_with_what_there_is(run, name):
    text = call("show", run.uri, name, code=2)
    assert f"no checkpoint '{name}'" in text
    assert "It holds the steps 30, 20, 10." in text


def test_verify_finds_nothing_in_whole_checkpoints(run):
    assert [line.split(": ")[1].split(",")[0] for line in call("verify", run.uri).splitlines()] == [
        "whole"
    ] * 3
    assert asked("verify", run.uri, "latest")["checkpoints"][0]["damage"] == []


def test_verify_finds_a_flip_of_any_bit_in_any_object(run, tmp_path):
    root = tmp_path / "run"
    ref = CommitRef(step=30, fence=1)
    files = [path for path in root.rglob(f"*{ref}*") if path.is_file()]
    files += [path for folder in root.rglob(str(ref)) for path in folder.iterdir()]
    assert {path.relative_to(root).parts[0] for path in files} == {"commit", "part", "data"}
    for path in files:
        whole = path.read_bytes()
        for at in range(0, len(whole), 1 if "data" in path.parts else 37):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
            report = verify(Store.open(run.uri), ref)
            assert report.damage, (path, at)
            assert report.damage[0].key == str(path.relative_to(root))
        path.write_bytes(whole)
    assert not verify(Store.open(run.uri), ref).damage


def test_verify_reports_marks_and_exits_with_1(run, tmp_path):
    (path,) = (tmp_path / "run" / "data" / str(CommitRef(step=30, fence=1))).iterdir()
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    text = call("verify", run.uri, "30", code=1)
    assert "1 damage" in text
    assert "failed CRC64NVME" in text
    assert asked("verify", run.uri, "--quarantine", code=1)["checkpoints"][0]["damage"]
    assert [ref.step for ref in run.commits()] == [20, 10]
    path.unlink()
    assert "is missing" in call("verify", run.uri, "30", code=1)


def test_diff_names_what_changed(run):
    found = asked("diff", run.uri, "10", "20")
    assert [(t["name"], t["change"]) for t in found["tensors"]] == [("model.w", "content")]
    assert found["same"] == 2
    assert found["meta"]["cursor.epoch"] == [0, 1]
    assert "1 tensor differ, 2 equal." in call("diff", run.uri, "10", "20")
    assert "0 tensors differ, 3 equal." in call("diff", run.uri, "20", "20")


def test_diff_between_stores_names_shapes_and_what_is_new(run, tmp_path):
    other = Store.open(f"file://{tmp_path}/other")
    saver = Saver(other, lease_fence=1, base=None, rank=0, world_size=1, chunk_bytes=64)
    saver.save(1, {"model": {"w": torch.ones(5, 8), "new": torch.ones(1)}}, wait=True)
    saver.close()
    text = call("diff", run.uri, "10", "1", "--other", other.uri)
    rows = {line.split()[0]: line.split()[1] for line in text.splitlines() if "model." in line}
    assert rows == {
        "model.w": "shape",
        "model.fixed": "removed",
        "model.z": "removed",
        "model.new": "added",
    }


def test_export_writes_a_file_that_safetensors_reads(run, tmp_path):
    out = f"{tmp_path}/out.safetensors"
    found = asked("export", run.uri, "30", out)
    loaded = load_file(out)
    assert torch.equal(loaded["model.w"], torch.full((5, 7), 30.0))
    assert torch.equal(loaded["model.fixed"], torch.arange(9))
    assert loaded["model.z"].tolist() == [[1.0, 0.0]] * 3
    skeleton = json.loads((tmp_path / "out.json").read_text())
    assert skeleton["tree"]["lr"] == 0.1 / 30
    assert skeleton["meta"]["step"] == 30
    assert skeleton["dtypes"]["model.z"] == "complex64"
    assert found["tensors"] == 3
    call("export", run.uri, "30", out, "--prefix", "model.")
    assert set(load_file(out)) == {"w", "fixed", "z"}
    assert "no tensor begins with 'nope'" in call(
        "export", run.uri, "30", out, "--prefix", "nope", code=2
    )


def test_export_of_a_damaged_checkpoint_leaves_no_file(run, tmp_path):
    commit = run.read(CommitRef(step=30, fence=1))
    (path,) = (tmp_path / "run" / "data" / str(commit.ref)).iterdir()
    whole, at = path.read_bytes(), commit.tensors[0].slices[0].offset
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    out = tmp_path / "out.safetensors"
    with pytest.raises(IntegrityError, match=f"R16 checkpoint step 30.*at byte {at}"):
        export(run.objects, commit, str(out))
    path.unlink()
    assert "is missing" in call("export", run.uri, "30", str(out), code=2)
    assert list(tmp_path.glob("out*")) == []


def test_prune_says_what_it_would_do_and_does_it(run):
    arguments = ("prune", run.uri, "--latest", "1", "--best", "loss:max")
    assert "would remove step 20" in call(*arguments, "--dry-run")
    assert len(run.commits()) == 3
    found = asked(*arguments)
    assert [one["step"] for one in found["removed"]] == [20]
    assert [ref.step for ref in run.commits()] == [30, 10]
    assert "2 checkpoints kept; removed 0 checkpoints" in call(*arguments)


def test_prune_refuses_a_rule_it_does_not_understand(run):
    for text in ("loss", "loss:most", "loss:max:0", ":max"):
        assert "Allowed is METRIC:MODE" in call("prune", run.uri, "--best", text, code=2)
    asked("prune", run.uri, "--latest", "9", "--best", "val/a:b:max:2", "--dry-run")


def test_a_pin_keeps_a_checkpoint_and_unpin_lets_it_go(run):
    assert "pin paper: step 10 of attempt 1" in call("pin", run.uri, "10", "--name", "paper")
    call("prune", run.uri, "--latest", "1")
    assert [ref.step for ref in run.commits()] == [30, 10]
    assert "It has: paper." in call("unpin", run.uri, "other", code=2)
    assert call("unpin", run.uri, "paper") == "unpinned paper\n"
    call("prune", run.uri, "--latest", "1")
    assert [ref.step for ref in run.commits()] == [30]


def test_errors_are_plain(tmp_path):
    assert "R25 root 's3:/b/x' is not a URL" in call("ls", "s3:/b/x", code=2)
    os.chmod(tmp_path, 0o700)
    (tmp_path / "file").write_text("x")
    assert "file/x does not exist" in call("verify", f"{tmp_path}/file/x", code=2)


@pytest.mark.processes
def test_nothing_but_import_needs_torch(run, tmp_path):
    script = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {{"torch", "numpy"}}:
            raise ModuleNotFoundError(f"{{name}} is blocked")
sys.meta_path.insert(0, Block())
from rekindle_cli.__main__ import app
for arguments in (["ls"], ["show"], ["verify"], ["diff", "10", "20"],
        ["export", "30", {str(tmp_path / "x.safetensors")!r}], ["pin", "10"], ["unpin", "10"],
        ["prune", "--latest", "2"]):
    try:
        app(["checkpoints", arguments[0], {run.uri!r}, *arguments[1:]])
    except SystemExit as end:
        assert end.code == 0, arguments
assert "torch" not in sys.modules
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places.python_path())}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.processes
def test_import_brings_a_file_in_and_refuses_code(tmp_path):
    torch.save({"global_step": 5, "state_dict": {"w": torch.ones(2)}}, tmp_path / "last.ckpt")
    uri = f"file://{tmp_path}/new"
    found = asked("import", str(tmp_path / "last.ckpt"), uri)
    assert (found["step"], found["tensors"]) == (5, 1)
    assert asked("show", uri)["tensors"][0]["name"] == "model.w"
    torch.save({"x": CommandFailure}, tmp_path / "evil.ckpt")
    text = call("import", str(tmp_path / "evil.ckpt"), f"{uri}2", code=2)
    assert "needs rekindle_cli.output.failure.CommandFailure, which is code and not data" in text


def test_an_import_that_dies_is_reported():
    with pytest.raises(CommandFailure, match="exit code -9 and without an answer"):
        importing.answer(-9, b"", b"")


COMMANDS = {
    "ls": [],
    "show": [],
    "verify": [],
    "diff": ["1", "2"],
    "export": ["1", "out"],
    "prune": [],
    "pin": ["1"],
    "unpin": ["1"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_opens_the_store_with_all_options(command, monkeypatch):
    given = {
        "endpoint_url": "http://minio:9000",
        "region": "eu-1",
        "profile": "team",
        "ca_bundle": "/etc/ca.pem",
        "addressing": "virtual",
        "commit": "lease",
    }
    opened = []

    def open_(uri, **options):
        opened.append((uri, options))
        raise StoreError("far enough")

    monkeypatch.setattr(Store, "open", open_)
    words = [
        word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", value)
    ]
    assert call(command, "s3://bucket/x", *COMMANDS[command], *words, code=2) == "far enough"
    assert call(command, "s3://bucket/x", *COMMANDS[command], code=2) == "far enough"
    assert opened == [("s3://bucket/x", given), ("s3://bucket/x", {})]


def test_import_hands_the_options_on(monkeypatch):
    seen = {}

    def load(source, uri, *, step, options):
        seen.update(options)
        return {"kind": "a", "step": 1, "tensors": 2}

    monkeypatch.setattr(importing, "load", load)
    call("import", "x.ckpt", "s3://bucket/new", "--commit", "lease", "--region", "eu-1")
    assert seen == {"commit": "lease", "region": "eu-1"}


@pytest.mark.parametrize("command", [*COMMANDS, "import"])
def test_a_password_in_the_endpoint_never_gets_into_a_process_or_a_message(command, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a process was started"))
    words = ["x.ckpt", "s3://bucket/x"] if command == "import" else ["s3://bucket/x"]
    words += [*COMMANDS.get(command, []), "--endpoint-url", "http://me:hunter2@minio:9000"]
    said = call(command, *words, code=2)
    assert said.startswith("the endpoint URL holds credentials, before its @; give them as AWS_")
    assert "hunter2" not in said


def test_options_of_s3_are_refused_for_files_unless_another_store_has_a_use_for_them(run):
    words = ["--endpoint-url", "http://minio:9000", "--region", "eu-1"]
    assert call("ls", run.uri, *words, code=2) == (
        f"--endpoint-url, --region: for s3:// only, and {run.uri} is on a file system. Leave out "
        f"what is for S3, or correct the URI."
    )
    assert "--region: for s3://" in call(
        "diff", run.uri, "10", "20", "--other", run.uri, "--region", "r", code=2
    )
    mixed = ["diff", run.uri, "10", "20", "--other", "s3://bucket/x", "--profile", "nobody"]
    assert "profile (nobody) could not be found" in call(*mixed, code=2)


def test_a_way_to_commit_that_nobody_knows_is_refused(run):
    said = call("ls", run.uri, "--commit", "none", code=2)
    assert said.startswith("--commit is 'none'.\nAllowed are conditional, lease.")
