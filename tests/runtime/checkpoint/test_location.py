"""Checkpoint URIs: two schemes, one meaning each, everything else refused with the reason."""

from pathlib import Path

import pytest

from rekindle.checkpoint import InvalidLocation, Store
from rekindle.checkpoint.objects.location import OF_S3, check_options, parse, without_credentials


@pytest.mark.parametrize(
    ("uri", "scheme", "bucket", "path", "text"),
    [
        ("s3://bucket/team/run", "s3", "bucket", "team/run", "s3://bucket/team/run"),
        ("s3://bucket/team/run//", "s3", "bucket", "team/run", "s3://bucket/team/run"),
        ("s3://bucket", "s3", "bucket", "", "s3://bucket"),
        ("file:///data/run/", "file", "", "/data/run", "file:///data/run"),
        ("file:///data/a%20b", "file", "", "/data/a b", "file:///data/a%20b"),
        ("/data//run", "file", "", "/data/run", "file:///data/run"),
        (Path("/data/run"), "file", "", "/data/run", "file:///data/run"),
    ],
)
def test_a_location_is_parsed_once(uri, scheme, bucket, path, text):
    where = parse(uri)
    assert (where.scheme, where.bucket, where.path) == (scheme, bucket, path)
    assert str(where) == text
    assert parse(str(where)) == where
    assert where.uri("commit/x") == f"{text}/commit/x"


@pytest.mark.parametrize("uri", ["s3:/bucket/x", "file:/x", Path("s3://bucket/x")])
def test_a_collapsed_url_is_r25(uri):
    with pytest.raises(InvalidLocation) as caught:
        Store.open(uri)
    assert str(caught.value) == (
        f"R25 root '{uri}' is not a URL (one slash). Did pathlib collapse it?"
    )


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("", "empty"),
        ("run/checkpoints", "relative path"),
        ("./run", "relative path"),
        ("gs://bucket/x", "unknown scheme 'gs'"),
        ("https://bucket.s3.amazonaws.com/x", "unknown scheme 'https'"),
        ("S3://bucket/x", "unknown scheme 'S3'"),
        ("s3:bucket", "not a URL"),
        ("s3://", "not a bucket name"),
        ("s3://Bucket/x", "not a bucket name"),
        ("s3://bucket/a/../b", "segment"),
        ("s3://bucket/a//b", "segment"),
        ("s3://bucket/a?versionId=1", "query"),
        ("file://host/x", "names a host"),
        ("file:///", "root of the file system"),
        ("/data/../etc", "segment"),
        ("s3://bucket/a\nb", "control characters"),
    ],
)
def test_anything_else_is_refused_with_what_is_allowed(uri, why):
    with pytest.raises(InvalidLocation, match=why):
        parse(uri)


def test_credentials_in_a_uri_are_refused_and_not_repeated():
    with pytest.raises(InvalidLocation) as caught:
        parse("s3://AKID:hunter2@bucket/x")
    assert "hunter2" not in str(caught.value)
    assert "AKID:" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "https://me:hunter2@minio:9000",
        "https://hunter2@minio",
        "http://me:hunt/er2@minio",
        "me:hunter2@minio",
    ],
)
def test_credentials_in_an_endpoint_are_refused_and_not_repeated(url):
    with pytest.raises(
        InvalidLocation, match="^--endpoint-url holds credentials, .*AWS_"
    ) as caught:
        without_credentials(url, "--endpoint-url")
    assert not any(part in str(caught.value) for part in ("hunter2", "hunt", "me:", "minio"))


def test_an_endpoint_without_credentials_stays_as_it_is():
    assert without_credentials("https://minio:9000/a?b#c") == "https://minio:9000/a?b#c"


@pytest.mark.parametrize("option", OF_S3)
@pytest.mark.parametrize("root", ["file:///data/run", "/data/run"])
def test_an_option_of_s3_is_refused_for_a_file_system(option, root):
    with pytest.raises(InvalidLocation, match=f"^--it: for s3:// only, and {root} is on a file sy"):
        check_options(root, {"commit": "--commit", option: "--it"})
    check_options("s3://bucket/run", {option: "--it"})
    check_options(root, {"commit": "--commit"})
