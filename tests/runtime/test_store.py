"""The trainer on stores that need to be told how: by the script, and by the job's environment."""

import itertools
import re
import threading

import pytest

import rekindle as rk
from rekindle.checkpoint import Store, store
from rekindle.checkpoint.format import manifest
from rekindle.checkpoint.saving import saver

ACCUMULATING = {"accumulate_grad_batches": 3}
URI = "s3://training/run"
_numbers = itertools.count()


@pytest.fixture(autouse=True)
def account(monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def careless(monkeypatch):
    """The URL of an S3 server that does not look at conditions, and a place in an empty bucket."""
    from moto.moto_server.werkzeug_app import create_backend_app
    from moto.s3.models import s3_backends
    from werkzeug.serving import WSGIRequestHandler, make_server

    moto = create_backend_app("s3")

    def app(environ, start_response):
        for condition in ("HTTP_IF_NONE_MATCH", "HTTP_IF_MATCH"):
            environ.pop(condition, None)
        return moto(environ, start_response)

    class Quiet(WSGIRequestHandler):
        def log(self, *_):
            pass

    bucket = f"training-{next(_numbers)}"
    s3_backends["123456789012"]["aws"].create_bucket(bucket, "us-east-1")
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setattr(store, "SETTLE_SECONDS", 0.05)
    yield f"http://127.0.0.1:{server.server_port}", f"s3://{bucket}/run"
    server.shutdown()
    server.server_close()


def told(monkeypatch, by, endpoint, commit):
    """Flags of a trainer on that server, told by its script or by its job."""
    if by == "script":
        options = {"endpoint_url": endpoint, "region": "eu-1", "addressing": "path"}
        return {"store": {**options, "commit": commit}}
    monkeypatch.setenv("REKINDLE_CHECKPOINT_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("REKINDLE_CHECKPOINT_COMMIT", commit)
    return {}


@pytest.mark.servers
@pytest.mark.parametrize("by", ["script", "job"])
def test_a_store_that_ignores_conditions_is_not_trained_on_unasked(
    program, careless, monkeypatch, by
):
    endpoint, uri = careless
    flags = told(monkeypatch, by, endpoint, "conditional")
    result = program["main"]({"root": uri, "flags": flags})
    assert result["step"] == 0
    assert not result["used"]
    assert result["error"].startswith(
        f"ProbeError: R5 endpoint {endpoint} ignored If-None-Match; commits would not be atomic. "
    )
    assert "Trainer(store={'commit': 'lease'})" in result["error"]
    assert "spec.checkpoint.commit: lease" in result["error"]
    assert Store.open(uri, endpoint_url=endpoint).objects.list("") == []


@pytest.mark.servers
@pytest.mark.processes
@pytest.mark.parametrize(("by", "own_process_from"), [("script", 1 << 40), ("job", 0)])
def test_in_the_weaker_mode_it_trains_saves_and_resumes_bit_equal(
    program, careless, monkeypatch, tmp_path, by, own_process_from
):
    monkeypatch.setattr(saver, "PROCESS_BYTES", own_process_from)
    expected = program["main"]({"root": str(tmp_path / "whole"), "flags": ACCUMULATING})
    endpoint, uri = careless
    flags = {**ACCUMULATING, **told(monkeypatch, by, endpoint, "lease")}
    first = program["main"]({"root": uri, "flags": flags, "steps": 4, "stop_at": 10})
    assert (first["error"], first["exit"], first["step"]) == (None, 75, 10)
    second = program["main"]({"root": uri, "flags": flags, "steps": 4})
    assert (second["error"], second["exit"], second["step"]) == (None, 0, 27)
    assert second["weights"] == expected["weights"]
    assert first["used"] + second["used"] == expected["used"]
    found = Store.open(uri, endpoint_url=endpoint)
    commits = [found.read(ref) for ref in found.commits()]
    assert {commit.ref.step for commit in commits} >= {27, 24, 10}
    assert {commit.mode for commit in commits} == {"lease"}
    assert {manifest.fence_of(stat.key) for stat in found.objects.list("lease/")} == {1, 2}
    assert rk.audit(commits[0].meta).exact


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (
            {"ca_bundle": "/nowhere/ca.pem"},
            "R5 .*s3://training/run: .*/nowhere/ca.pem: there is no",
        ),
        ({"profile": "nope"}, "R5 .*s3://training/run: .*profile.*nope"),
    ],
)
def test_an_option_that_cannot_be_used_stops_the_job_before_training(program, options, why):
    result = program["main"]({"root": URI, "flags": {"store": options}})
    assert result["error"].startswith("RequirementError: R5 cannot write checkpoints to ")
    assert re.search(why, result["error"])
    assert not result["used"]


@pytest.mark.parametrize("option", ["endpoint_url", "region", "profile", "ca_bundle", "addressing"])
def test_an_option_of_s3_for_a_root_of_files_stops_the_job_before_training(
    program, tmp_path, option
):
    value = {"endpoint_url": "http://minio", "addressing": "path"}.get(option, "x")
    result = program["main"]({"root": str(tmp_path / "run"), "flags": {"store": {option: value}}})
    assert result["error"].startswith(
        f"RequirementError: R5 cannot write checkpoints to {tmp_path}/run: store['{option}']: for "
        f"s3:// only, and {tmp_path}/run is on a file system."
    )
    assert not result["used"]


def test_where_the_job_names_files_the_scripts_words_about_its_own_bucket_do_no_harm(
    program, tmp_path, monkeypatch
):
    monkeypatch.setenv("REKINDLE_CHECKPOINT_URI", f"file://{tmp_path}/run")
    flags = {"store": {"endpoint_url": "http://minio", "region": "eu-1"}}
    assert program["main"]({"root": URI, "flags": flags})["error"] is None


def test_a_profile_and_a_ca_of_the_pods_environment_are_used(program, monkeypatch):
    monkeypatch.setenv("AWS_CA_BUNDLE", "/mounted/ca.pem")
    assert "/mounted/ca.pem: there is no such file" in program["main"]({"root": URI})["error"]
    monkeypatch.setenv("AWS_PROFILE", "team")
    assert "profile (team) could not be found" in program["main"]({"root": URI})["error"]
