"""The check before training: each way in which a store can be wrong has its message."""

import socket
import time
from types import MethodType

import pytest
from botocore.exceptions import ClientError

from rekindle.checkpoint import ProbeError, Store
from rekindle.checkpoint.objects import probe
from rekindle.checkpoint.objects.interface import (
    AccessDenied,
    PreconditionFailed,
    RequestRefused,
    Unreachable,
)
from rekindle.checkpoint.objects.s3 import S3Objects
from rekindle.errors.requirement import passes

pytestmark = pytest.mark.servers


def test_a_good_store_passes_and_nothing_is_left(objects):
    Store(objects=objects).probe("attempt-1")
    assert objects.list("") == []


class Wrapped:
    def __init__(self, inner):
        self.inner = inner

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def impatient(self):
        return self


def test_a_store_that_ignores_conditions_is_refused(objects):
    class Ignoring(Wrapped):
        def put(self, key, body, *, if_none_match=False):
            return self.inner.put(key, body)

    with pytest.raises(ProbeError) as caught:
        Store(objects=Ignoring(objects)).probe("a")
    assert str(caught.value).startswith(
        f"R5 endpoint {objects.endpoint} ignored If-None-Match; commits would not be atomic. "
        f"Use a store with conditional writes or set store.commit='lease'"
    )
    assert objects.list("") == [], "the probe cleans up after a refusal too"


def test_a_store_that_does_not_know_conditions_is_refused(objects):
    class Unable(Wrapped):
        def put(self, key, body, *, if_none_match=False):
            if if_none_match:
                raise RequestRefused("NotImplemented on PutObject")
            return self.inner.put(key, body)

    with pytest.raises(ProbeError, match="does not support If-None-Match.*store.commit='lease'"):
        Store(objects=Unable(objects)).probe("a")
    assert objects.list("") == []


def test_501_is_no_passing_trouble(answering):
    with pytest.raises(RequestRefused, match="NotImplemented on GetObject"):
        Store.open("s3://bucket/p", endpoint_url=answering(501, "NotImplemented")).objects.get("x")


def test_a_store_that_returns_other_bytes_is_refused(objects):
    class Lying(Wrapped):
        def get(self, *args, **kwargs):
            return self.inner.get(*args, **kwargs)[::-1]

    with pytest.raises(ProbeError, match="returned other bytes"):
        Store(objects=Lying(objects)).probe("a")
    assert objects.list("") == []


def test_a_store_that_may_not_delete_is_refused(objects):
    class Keeping(Wrapped):
        def delete(self, *_, **__):
            raise AccessDenied("AccessDenied on DeleteObject.")

    with pytest.raises(ProbeError, match="cannot remove old checkpoints .*DeleteObject"):
        Store(objects=Keeping(objects)).probe("a")


def test_removal_is_tried_as_retention_does_it(objects):
    class Stubborn(Wrapped):
        def delete(self, key, *, if_match=None):
            if if_match is not None:
                raise RequestRefused("NotImplemented on DeleteObject.")

    with pytest.raises(ProbeError, match="cannot remove old checkpoints .*NotImplemented"):
        Store(objects=Stubborn(objects)).probe("a")

    class Silent(Wrapped):
        def delete(self, key, *, if_match=None):
            pass

    with pytest.raises(ProbeError, match="cannot remove old checkpoints .*answered, but not done"):
        Store(objects=Silent(objects)).probe("a")


def test_where_no_delete_takes_a_condition_the_etag_is_looked_at_before(
    endpoint, bucket, monkeypatch
):
    objects = S3Objects(bucket, "run", endpoint_url=endpoint)
    asked = []

    def unable(self, *, IfMatch=None, **at):
        asked.append(IfMatch)
        if IfMatch is not None:
            answer = {"Error": {"Code": "NotImplemented", "Message": "no conditions"}}
            raise ClientError(answer, "DeleteObject")
        return plain(**at)

    plain = objects._client.delete_object
    monkeypatch.setattr(objects._client, "delete_object", MethodType(unable, objects._client))
    monkeypatch.setattr(objects, "impatient", lambda: objects)
    Store(objects=objects).probe("a")
    assert len(asked) == 2
    assert asked[0]
    assert asked[1] is None
    assert objects.list("") == []
    etag = objects.put("commit/a.json", b"one")
    with pytest.raises(PreconditionFailed, match="has changed or is gone"):
        objects.delete("commit/a.json", if_match='"another"')
    objects.delete("commit/a.json", if_match=etag)
    assert asked[2:] == [None], "it is not asked for a condition again"
    with pytest.raises(PreconditionFailed, match="has changed or is gone"):
        objects.delete("commit/a.json", if_match=etag)


@pytest.mark.parametrize(
    ("status", "code", "why"),
    [
        (403, "AccessDenied", r"AccessDenied on PutObject .*Allow s3:PutObject on s3://bucket/p"),
        (403, "InvalidAccessKeyId", r"InvalidAccessKeyId on PutObject .*renew the secret"),
        (403, "SignatureDoesNotMatch", "renew the secret or the identity"),
        (400, "ExpiredToken", "expired: renew the secret"),
        (404, "NoSuchBucket", "bucket 'bucket' does not exist at http.*Create it, or correct"),
        (404, "", "does not answer like an S3 server. Check the endpoint URL"),
        (301, "PermanentRedirect", "another region. Set AWS_REGION"),
        (400, "InvalidRequest", "InvalidRequest on PutObject .*does not accept this request"),
    ],
)
def test_an_error_of_the_server_is_explained_and_shows_no_credential(answering, status, code, why):
    store = Store.open("s3://bucket/p", endpoint_url=answering(status, code))
    with pytest.raises(ProbeError, match=why) as caught:
        store.probe("a")
    text = str(caught.value)
    assert text.startswith("R5 cannot write checkpoints to s3://bucket/p: ")
    assert text.endswith("Training was not started.")
    assert "AKIDTEST" not in text
    assert "verysecret" not in text


def test_a_missing_bucket_of_a_real_server_is_explained(endpoint):
    with pytest.raises(ProbeError, match="NoSuchBucket on PutObject .*'no-such-bucket' does not"):
        Store.open("s3://no-such-bucket/x", endpoint_url=endpoint).probe("a")


def test_missing_credentials_are_explained(endpoint, bucket, monkeypatch, tmp_path):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(ProbeError, match="Unable to locate credentials.*AWS_ACCESS_KEY_ID"):
        Store.open(f"s3://{bucket}/x", endpoint_url=endpoint).probe("a")


def test_an_endpoint_that_nobody_serves_is_reported_in_seconds():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        begun = time.monotonic()
        with pytest.raises(ProbeError, match="no answer from http://127.0.0.1:.* in 2 tries") as e:
            Store.open("s3://bucket/x", endpoint_url=url).probe("a")
    assert time.monotonic() - begun < 15
    assert isinstance(e.value.__cause__, Unreachable)


def test_a_check_that_takes_too_long_has_had_no_answer(monkeypatch, tmp_path):
    monkeypatch.setattr(probe, "PROBE_SECONDS", -1.0)
    with pytest.raises(ProbeError, match="R5 .* answers too slowly: .* not started") as caught:
        Store.open(tmp_path.as_uri()).probe("a")
    assert passes(caught.value)


def test_an_overloaded_server_is_no_permanent_error(answering):
    store = Store.open("s3://bucket/p", endpoint_url=answering(503, "SlowDown"))
    with pytest.raises(Unreachable, match="overloaded") as caught:
        store.objects.impatient().get("x")
    assert caught.value.transient


def test_a_malformed_endpoint_is_refused_when_the_store_is_opened():
    with pytest.raises(Exception, match="It must be a URL such as https://"):
        Store.open("s3://bucket/p", endpoint_url="minio:9000")
