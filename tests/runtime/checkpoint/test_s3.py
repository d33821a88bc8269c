"""What only S3 can get wrong: connections that break, configuration, bodies without copies."""

import itertools
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from botocore.exceptions import ClientError
from botocore.httpchecksum import AwsChunkedWrapper
from botocore.retries import standard

from rekindle.checkpoint.objects import s3
from rekindle.checkpoint.objects.interface import AccessDenied, Unreachable
from rekindle.checkpoint.objects.s3 import S3Objects

pytestmark = pytest.mark.servers

CONTENT = bytes(range(200))


@pytest.fixture
def breaking():
    """A server whose first `count` answers end in the middle of the body."""
    servers = []

    def start(count: int) -> str:
        left = itertools.count(count, -1)

        class Handler(BaseHTTPRequestHandler):
            disable_nagle_algorithm = True  # headers and body are two packets
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                self.send_response(200)
                self.send_header("Content-Length", str(len(CONTENT)))
                self.end_headers()
                self.wfile.write(CONTENT[:50] if next(left) > 0 else CONTENT)
                self.close_connection = True

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_an_answer_that_breaks_off_is_read_again(breaking):
    assert S3Objects("bucket", endpoint_url=breaking(2)).get("a") == CONTENT
    buffer = bytearray(len(CONTENT))
    objects = S3Objects("bucket", endpoint_url=breaking(2))
    assert objects.get_into("a", memoryview(buffer)) == len(CONTENT)
    assert buffer == CONTENT


def test_answers_that_always_break_off_end_in_unreachable(breaking):
    objects = S3Objects("bucket", endpoint_url=breaking(99), attempts=2)
    with pytest.raises(Unreachable, match="the answer broke off 2 times"):
        objects.get("a")
    with pytest.raises(Unreachable, match="the answer broke off 2 times"):
        objects.get_into("a", memoryview(bytearray(200)))


def test_the_endpoint_comes_from_the_argument_or_the_environment(monkeypatch):
    assert S3Objects("bucket").endpoint == "AWS"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://minio:9000")
    assert S3Objects("bucket").endpoint == "http://minio:9000"
    assert S3Objects("bucket", endpoint_url="http://ceph:80").endpoint == "http://ceph:80"


@pytest.mark.parametrize(
    ("endpoint", "checksums", "style"),
    [
        (None, "when_supported", "auto"),
        ("https://s3.eu-central-1.amazonaws.com", "when_supported", "auto"),
        ("http://minio:9000", "when_required", "path"),
    ],
)
def test_only_aws_gets_default_checksums_and_bucket_hosts(endpoint, checksums, style):
    config = S3Objects("bucket", endpoint_url=endpoint)._client.meta.config
    assert config.request_checksum_calculation == checksums
    assert config.s3["addressing_style"] == style
    assert config.s3["payload_signing_enabled"] is False


def test_a_large_body_is_sent_from_the_callers_memory(endpoint, bucket):
    objects = S3Objects(bucket, endpoint_url=endpoint)
    sent = []
    objects._client.meta.events.register(
        "before-send.s3.PutObject", lambda request, **_: sent.append(request)
    )
    body = bytearray(2**20)
    objects.put("a", memoryview(body))
    assert isinstance(sent[0].body, s3._Pieces)
    assert [len(piece) for piece in sent[0].body] == [2**20]
    assert next(iter(sent[0].body)).obj is body
    assert sent[0].headers["X-Amz-Content-SHA256"] == b"UNSIGNED-PAYLOAD"


def test_bodies_also_pass_with_the_checksums_that_aws_gets(endpoint, bucket, monkeypatch):
    monkeypatch.setattr(s3, "_is_aws", lambda _: True)
    objects = S3Objects(bucket, endpoint_url=endpoint)
    monkeypatch.setattr(s3, "PART_BYTES", 5 * 2**20)
    sent = []
    objects._client.meta.events.register(
        "before-send.s3", lambda request, **_: sent.append(request)
    )
    for size in (512_000, 11 * 2**20):
        body = bytes(range(256)) * (size // 256)
        objects.put("a", body)
        assert objects.get("a") == body
    puts = [request for request in sent if request.method == "PUT"]
    assert len(puts) == 4
    for request in puts:
        assert request.headers["x-amz-checksum-crc64nvme"], "computed once, by us"
        assert "x-amz-trailer" not in request.headers
    # Over TLS the checksum follows the body in chunks, which boto3 cuts with a wrapper.
    wrapped = AwsChunkedWrapper(s3._View(memoryview(body)), chunk_size=2**16)
    assert body[: 2**16] in wrapped.read()


def test_a_body_is_sent_again_from_its_beginning_after_a_lost_answer(answering, monkeypatch):
    monkeypatch.setattr(standard.ExponentialBackoff, "delay_amount", lambda *_: 0.005)
    objects = S3Objects("bucket", endpoint_url=answering(503, "SlowDown"), attempts=3)
    sizes = []

    def measure(request, **_):
        sizes.append(sum(len(piece) for piece in request.body))

    objects._client.meta.events.register_last("before-send.s3", measure)
    with pytest.raises(Unreachable, match="overloaded, 3 tries"):
        objects.put("a", memoryview(bytearray(9 * 2**20 + 5)))
    assert sizes == [9 * 2**20 + 5] * 3


def test_parts_whose_upload_fails_are_abandoned(endpoint, bucket, monkeypatch):
    monkeypatch.setattr(s3, "PART_BYTES", 5 * 2**20)
    objects = S3Objects(bucket, endpoint_url=endpoint, attempts=1)
    original = objects._client.upload_part

    def fail_on_second(**arguments):
        if arguments["PartNumber"] == 2:
            raise ConnectionError("cable cut")
        return original(**arguments)

    monkeypatch.setattr(objects._client, "upload_part", fail_on_second)
    with pytest.raises(Unreachable, match="UploadPart .*cable cut"):
        objects.put("big", bytearray(12 * 2**20))
    assert objects.abandon_uploads("", older_than=0) == 0
    assert objects.list("") == []


def test_a_long_list_comes_in_pages(endpoint, bucket, monkeypatch):
    objects = S3Objects(bucket, "run", endpoint_url=endpoint)
    for name in "abcde":
        objects.put(f"data/{name}", b"x")
    real = objects._client.list_objects_v2
    pages = []

    def two_at_a_time(**arguments):
        pages.append(arguments.get("ContinuationToken"))
        return real(**arguments, MaxKeys=2)

    monkeypatch.setattr(objects._client, "list_objects_v2", two_at_a_time)
    assert [stat.key for stat in objects.list("data/")] == [f"data/{name}" for name in "abcde"]
    assert len(pages) == 3


def test_uploads_that_were_left_are_looked_for_on_all_pages(endpoint, bucket, monkeypatch):
    objects = S3Objects(bucket, "run", endpoint_url=endpoint)
    long_ago, now = datetime.now(UTC) - timedelta(days=2), datetime.now(UTC)
    pages = {
        None: [("run/data/old", long_ago), ("run/data/new", now)],
        "more": [("run/data/kept", long_ago), ("run/data/last", long_ago)],
    }
    aborted = []

    def answer(**arguments):
        mark = arguments.get("UploadIdMarker")
        rows = [{"Key": key, "UploadId": key, "Initiated": at} for key, at in pages[mark]]
        next_page = {"IsTruncated": True, "NextKeyMarker": "k", "NextUploadIdMarker": "more"}
        return {"Uploads": rows, **({} if mark else next_page)}

    monkeypatch.setattr(objects._client, "list_multipart_uploads", answer)
    monkeypatch.setattr(
        objects._client, "abort_multipart_upload", lambda **given: aborted.append(given["Key"])
    )
    count = objects.abandon_uploads("data/", older_than=3600, only=lambda key: "kept" not in key)
    assert (count, aborted) == (2, ["run/data/old", "run/data/last"])


def test_an_endpoint_without_the_call_for_many_gets_one_delete_for_each(
    endpoint, bucket, monkeypatch
):
    objects = S3Objects(bucket, "run", endpoint_url=endpoint)
    for name in "abc":
        objects.put(name, b"x")

    def refuse(**_):
        words = {"Error": {"Code": "NotImplemented", "Message": "no such call"}}
        raise ClientError({**words, "ResponseMetadata": {"HTTPStatusCode": 501}}, "DeleteObjects")

    monkeypatch.setattr(objects._client, "delete_objects", refuse)
    objects.delete_many(["a", "b"])
    assert [stat.key for stat in objects.list("")] == ["c"]


def test_one_object_of_many_that_may_not_be_deleted_is_told(endpoint, bucket, monkeypatch):
    objects = S3Objects(bucket, "run", endpoint_url=endpoint)
    found = {"Key": "run/data/b", "Code": "AccessDenied", "Message": "not yours"}
    monkeypatch.setattr(objects._client, "delete_objects", lambda **_: {"Errors": [found]})
    with pytest.raises(AccessDenied, match=r"DeleteObjects .*run/data/b.*not yours"):
        objects.delete_many(["data/a", "data/b"])
