"""The embedded S3 server, through boto3 as users reach it."""

import asyncio
import concurrent.futures
import threading

import boto3
import psutil
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from rekindle_local.objectstore.server import ObjectStore, one_at_a_time

pytestmark = pytest.mark.processes


class Running:
    """A store in a thread with its own event loop."""

    def __init__(self):
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.store = ObjectStore(deny={"forbidden", "open/private/"})
        self.run(self.store.start())
        for bucket in ("open", "forbidden"):
            self.run(self.store.create_bucket(bucket))

    def run(self, work):
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    def stop(self):
        self.run(self.store.stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    def client(self, **changes):
        key, secret = self.store.credentials
        return boto3.client("s3", **{
            "endpoint_url": self.store.endpoint,
            "region_name": "us-east-1",
            "aws_access_key_id": key,
            "aws_secret_access_key": secret,
            "config": Config(retries={"max_attempts": 1}),
            **changes,
        })  # fmt: skip


@pytest.fixture(scope="module")
def running():
    store = Running()
    yield store
    store.stop()


@pytest.fixture(scope="module")
def s3(running):
    return running.client()


def code(call, **arguments):
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    return caught.value.response["Error"]["Code"]


def test_objects_with_difficult_names_come_back(s3):
    name = "a b/ü+x~(1)!*'.bin"
    s3.put_object(Bucket="open", Key=name, Body=b"content")
    assert s3.get_object(Bucket="open", Key=name, Range="bytes=3-4")["Body"].read() == b"te"
    listed = s3.list_objects_v2(Bucket="open", Prefix="a b/")["Contents"]
    assert [one["Key"] for one in listed] == [name]


def test_of_many_conditional_writers_one_wins(s3):
    def write(number):
        try:
            s3.put_object(Bucket="open", Key="race", Body=b"%d" % number, IfNoneMatch="*")
        except ClientError as error:
            return error.response["Error"]["Code"]
        return "won"

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        results = list(pool.map(write, range(8)))
    assert sorted(results) == ["PreconditionFailed"] * 7 + ["won"]


def test_if_match_guards_an_overwrite(s3):
    etag = s3.put_object(Bucket="open", Key="guarded", Body=b"1")["ETag"]
    s3.put_object(Bucket="open", Key="guarded", Body=b"2", IfMatch=etag)
    stale = {"Bucket": "open", "Key": "guarded", "Body": b"3", "IfMatch": etag}
    assert code(s3.put_object, **stale) == "PreconditionFailed"


def test_wrong_credentials_are_refused_as_s3_refuses_them(running):
    wrong_secret = running.client(aws_secret_access_key="wrong")
    assert code(wrong_secret.list_objects_v2, Bucket="open") == "SignatureDoesNotMatch"
    wrong_key = running.client(aws_access_key_id="wrong")
    assert code(wrong_key.list_objects_v2, Bucket="open") == "InvalidAccessKeyId"


def test_denied_buckets_and_prefixes_are_access_denied_until_allowed(running, s3):
    assert code(s3.put_object, Bucket="forbidden", Key="k", Body=b"x" * 100_000) == "AccessDenied"
    assert code(s3.head_bucket, Bucket="forbidden") == "403"
    assert code(s3.put_object, Bucket="open", Key="private/k", Body=b"") == "AccessDenied"
    running.run(running.store.set_deny(()))
    s3.put_object(Bucket="forbidden", Key="k", Body=b"now")
    running.run(running.store.set_deny({"forbidden", "open/private/"}))
    assert code(s3.get_object, Bucket="forbidden", Key="k") == "AccessDenied"


def test_a_bucket_that_does_not_exist_is_told_apart(s3):
    assert code(s3.get_object, Bucket="missing", Key="k") == "NoSuchBucket"


def test_the_memory_of_deleted_and_overwritten_objects_is_given_back(running, s3):
    process = psutil.Process(running.store.pid)
    body = b"x" * (8 << 20)
    s3.put_object(Bucket="open", Key="warm-up", Body=body)
    before = process.memory_info().rss
    for _ in range(32):
        s3.put_object(Bucket="open", Key="same", Body=body)
    s3.delete_object(Bucket="open", Key="same")
    assert process.memory_info().rss - before < 96 << 20  # of 256 that went through


def test_a_store_that_is_not_running_says_so():
    with pytest.raises(RuntimeError, match=r"call start\(\) first"):
        asyncio.run(ObjectStore().create_bucket("x"))


@pytest.mark.parametrize(
    ("method", "query", "path", "together"),
    [
        ("PUT", "", "/open/lease/1", False),
        ("DELETE", "", "/open/lease/1", False),
        ("POST", "uploadId=1", "/open/lease/1", False),
        ("PUT", "partNumber=2&uploadId=1", "/open/lease/1", True),
        ("GET", "", "/open/lease/1", True),
        ("HEAD", "", "/open/lease/1", True),
    ],
)
def test_whoever_changes_an_object_waits_for_others_that_do(method, query, path, together):
    """moto looks whether a condition is met, and then writes: nobody may come in between."""
    inside, leave = threading.Semaphore(0), threading.Event()

    def app(environ, _answer):
        inside.release()
        assert leave.wait(60)
        return []

    served = one_at_a_time(app)
    environ = {"REQUEST_METHOD": "PUT", "QUERY_STRING": "", "PATH_INFO": "/open/lease/1"}
    other = {"REQUEST_METHOD": method, "QUERY_STRING": query, "PATH_INFO": path}
    with concurrent.futures.ThreadPoolExecutor() as pool:
        first = pool.submit(served, environ, None)
        assert inside.acquire(timeout=60)
        second = pool.submit(served, other, None)
        came = inside.acquire(timeout=60 if together else 0.2)
        leave.set()
        assert first.result(60) == second.result(60) == []
    assert came == together
