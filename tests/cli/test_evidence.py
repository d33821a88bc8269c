import json
import subprocess
import time

import pytest

from rekindle.checkpoint.format import manifest
from rekindle.checkpoint.objects.file import FileObjects
from rekindle.data.ledger import Ledger
from rekindle.data.sampling.order import Cursor
from rekindle_cli.jobs import evidence
from rekindle_cli.jobs.evidence import Evidence
from rekindle_cli.manifest import S3Access

CURSOR = Cursor(epoch=0, sample=0, G=4, m=2, seed=3, N=10, length=10)


def trained(cursor: Cursor) -> dict:
    """The meta of a run that used every sample of its first epoch once."""
    ledger = Ledger()
    for step in cursor.remaining():
        ledger.used(0, cursor.global_order.ids(0, step.start, step.stop))
        ledger.covered(0, step.start, step.stop)
        cursor = cursor.after(step)
    return {"cursor": cursor.to_json(), "ledger": ledger.totals([ledger.own()])}


def commit(root, meta: dict, *, step: int = 3, fence: int = 1, base=None) -> None:
    document = manifest.Commit(
        ref=manifest.CommitRef(step=step, fence=fence),
        base=base,
        world_size=2,
        created=time.time(),
        chunk=2**20,
        objects=(),
        tensors=(),
        tree=None,
        meta=meta,
        parts=tuple(manifest.PartEntry(rank=rank, size=1, sha256="0" * 64) for rank in range(2)),
    )
    objects = FileObjects(str(root))
    objects.put(manifest.commit_key(document.ref), manifest.commit_bytes(document))


def test_the_ledger_of_the_newest_commit_is_audited(tmp_path) -> None:
    first = manifest.CommitRef(step=3, fence=1)
    commit(tmp_path, {"cursor": {}})
    commit(tmp_path, {**trained(CURSOR), "metrics": {"acc": 0.5}}, step=5, fence=2, base=first)
    found = evidence.examine(f"file://{tmp_path}")
    assert found.samples is not None
    assert found.samples.exact
    assert (found.samples.used, found.samples.expected) == (10, 10)
    assert [(one.step, one.fence, one.base) for one in found.commits] == [(5, 2, 3), (3, 1, None)]
    assert found.metrics == {"acc": 0.5}


def test_a_sample_used_twice_is_found(tmp_path) -> None:
    meta = trained(CURSOR)
    meta["ledger"]["spans"].append([0, 0, 2, 1])
    commit(tmp_path, meta)
    samples = evidence.examine(f"file://{tmp_path}").samples
    assert samples is not None
    assert (samples.repeated, samples.exact) == (2, False)


def test_a_commit_without_a_ledger_proves_nothing(tmp_path) -> None:
    commit(tmp_path, {"cursor": CURSOR.to_json()})
    found = evidence.examine(f"file://{tmp_path}")
    assert found.samples is None
    assert "no ledger of its samples" in found.problem
    assert len(found.commits) == 1


def test_what_a_lightning_script_saves_is_no_key_error(tmp_path) -> None:
    commit(tmp_path, {"step": 9, "epoch": 1, "samples": 288, "metrics": {"val/loss": 0.5}})
    found = evidence.examine(f"file://{tmp_path}")
    assert found.problem.startswith("of the newest checkpoint, it has no ledger of its samples")
    assert "KeyError" not in found.problem
    assert found.metrics == {"val/loss": 0.5}


def test_a_place_without_checkpoints_is_a_problem_and_no_error(tmp_path, capsys) -> None:
    assert evidence.main([f"file://{tmp_path}/none"]) == 0
    assert "holds no checkpoint" in json.loads(capsys.readouterr().out)["problem"]


def test_a_place_that_is_none_is_a_problem_too(capsys) -> None:
    assert evidence.main(["ftp://x/y"]) == 0
    assert "ftp" in json.loads(capsys.readouterr().out)["problem"]


def test_nothing_of_the_callers_account_reaches_the_embedded_store() -> None:
    caller = {"AWS_ENDPOINT_URL": "http://real", "AWS_PROFILE": "me", "HOME": "/h"}
    access = S3Access(endpoint="e", access_key="a", secret_key="s")
    found = evidence._environment(caller, access)
    assert "AWS_ENDPOINT_URL" not in found
    assert "AWS_PROFILE" not in found
    assert (found["AWS_ACCESS_KEY_ID"], found["HOME"]) == ("a", "/h")
    assert evidence._environment(caller, None)["AWS_PROFILE"] == "me"


def test_a_password_in_the_endpoint_never_becomes_an_argument_of_a_process(monkeypatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a process was started"))
    options = {"endpoint_url": "http://me:hunter2@minio:9000"}
    found = evidence.gather("s3://bucket/x", options=options, access=None)
    assert "the endpoint URL holds credentials" in found.problem
    assert "hunter2" not in found.problem


@pytest.mark.processes
def test_the_process_opens_the_store_as_the_job_does() -> None:
    options = {"endpoint_url": "http://127.0.0.1:9", "region": "r", "commit": "none"}
    found = evidence.gather("s3://bucket/x", options=options, access=None)
    assert "store.commit is 'none'" in found.problem


@pytest.mark.processes
def test_the_evidence_is_read_by_a_process_of_its_own(tmp_path) -> None:
    commit(tmp_path, trained(CURSOR))
    found = evidence.gather(f"file://{tmp_path}", options={}, access=None)
    assert found == Evidence.from_json(json.loads(json.dumps(_plain(found))))
    assert found.samples is not None
    assert found.samples.exact


def _plain(found: Evidence) -> dict:
    return {
        "commits": [vars(one) for one in found.commits],
        "samples": vars(found.samples),
        "metrics": dict(found.metrics),
        "problem": found.problem,
    }
