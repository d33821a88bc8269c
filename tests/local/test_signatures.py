from datetime import UTC, datetime, timedelta

import pytest
from botocore.auth import S3SigV4Auth, S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from rekindle_local.objectstore.signatures import SignatureRefused, SignedRequest, denied, verify

SECRETS = {"key": "secret"}


def signed(url, *, secret="secret", access_key="key", method="GET", signer=S3SigV4Auth, data=b""):
    """What botocore would send, as the server receives it."""
    request = AWSRequest(method=method, url=url, data=data, headers={"x-amz-meta-a": "b  c"})
    signer(Credentials(access_key, secret), "s3", "eu-west-1").add_auth(request)
    prepared = request.prepare()
    target = "/" + prepared.url.split("/", 3)[3]
    headers = {name.lower(): value for name, value in prepared.headers.items()}
    text = {k: v.decode() if isinstance(v, bytes) else v for k, v in headers.items()}
    return SignedRequest(method=method, target=target, headers={"host": "h:1", **text})


def check(request, deny=(), later=0):
    verify(request, SECRETS, deny, datetime.now(UTC) + timedelta(seconds=later))


@pytest.mark.parametrize(
    "url",
    [
        "http://h:1/bucket",
        "http://h:1/bucket/key",
        "http://h:1/bucket/a%20b/%C3%BC~%2B%28%29%27%21%2A.bin",
        "http://h:1/bucket?list-type=2&prefix=a%2Fb%20c&delimiter=%2F",
        "http://h:1/bucket/key?uploads",
    ],
)
@pytest.mark.parametrize("signer", [S3SigV4Auth, S3SigV4QueryAuth])
def test_what_botocore_signs_is_accepted(url, signer):
    check(signed(url, signer=signer))


def code_of(request, **options):
    with pytest.raises(SignatureRefused) as caught:
        check(request, **options)
    return caught.value.code


def test_a_wrong_secret_is_a_wrong_signature():
    assert code_of(signed("http://h:1/b/k", secret="other")) == "SignatureDoesNotMatch"


def test_an_unknown_key_is_told_apart_from_a_wrong_secret():
    assert code_of(signed("http://h:1/b/k", access_key="who")) == "InvalidAccessKeyId"


def test_a_changed_request_does_not_match_its_signature():
    good = signed("http://h:1/b/k")
    for changed in (
        SignedRequest(method="PUT", target=good.target, headers=good.headers),
        SignedRequest(method="GET", target="/b/other", headers=good.headers),
        SignedRequest(
            method="GET", target=good.target, headers={**good.headers, "x-amz-meta-a": "z"}
        ),
    ):
        assert code_of(changed) == "SignatureDoesNotMatch"


def test_an_old_request_and_an_expired_link_are_refused():
    assert code_of(signed("http://h:1/b/k"), later=1000) == "RequestTimeTooSkewed"
    link = signed("http://h:1/b/k", signer=S3SigV4QueryAuth)
    assert code_of(link, later=4000) == "AccessDenied"


def test_an_anonymous_request_is_denied():
    assert code_of(SignedRequest(method="GET", target="/b/k", headers={})) == "AccessDenied"


@pytest.mark.parametrize(
    "header", ["AWS key:signature", "AWS4-HMAC-SHA256 Credential=key/x, Signature=1"]
)
def test_what_is_no_version_4_signature_is_a_bad_request(header):
    headers = {"authorization": header}
    with pytest.raises(SignatureRefused) as caught:
        check(SignedRequest(method="GET", target="/b", headers=headers))
    assert caught.value.status == 400


def test_denied_buckets_and_prefixes_are_refused_after_the_signature():
    assert code_of(signed("http://h:1/no/k"), deny={"no"}) == "AccessDenied"
    assert code_of(signed("http://h:1/no/k", secret="x"), deny={"no"}) == "SignatureDoesNotMatch"
    check(signed("http://h:1/nobody/k"), deny={"no"})


def test_a_denied_prefix_leaves_the_rest_of_its_bucket_open():
    assert denied("/b/secret/x", {"b/secret/"})
    assert not denied("/b/open", {"b/secret/"})
    assert denied("/b/secret%2Fx", {"b/secret/"})


def test_a_credential_of_another_day_does_not_match():
    good = signed("http://h:1/b/k")
    other = good.headers["authorization"].replace("Credential=key/2", "Credential=key/1")
    headers = {**good.headers, "authorization": other}
    assert (
        code_of(SignedRequest(method="GET", target="/b/k", headers=headers))
        == "SignatureDoesNotMatch"
    )
