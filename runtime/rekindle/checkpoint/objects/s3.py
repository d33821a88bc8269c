"""Objects in an S3 bucket, by plain boto3 calls.

`upload_file` and its relatives cannot write conditionally and copy the data on the way, so the low
level calls are used: one `put_object` for a body up to 32 MiB, and parts of 32 MiB sent from views
of the same buffer above that, with the condition on the completing call.

How the client is set up, and why:

- bodies are not hashed into the request signature: SHA-256 is slower than the network, TLS
  protects the transport, and every chunk has a CRC in the manifest that the reader checks. AWS also
  gets CRC64NVME, its own default and by far the cheapest; other endpoints get no checksum, since
  several of them reject the headers;
- path-style addressing for other endpoints, whose names rarely resolve as `bucket.host`;
- credentials come from where botocore finds them: environment, shared profile, web identity (IRSA),
  container and instance metadata; `profile` picks a profile. No message shows them;
- `ca_bundle` (else `AWS_CA_BUNDLE`, else the profile) names the CA of a private endpoint;
- every wait has a limit and retries are bounded; what is still failing then is `Unreachable`.

A conditional write that botocore repeats after a lost answer may be told 412 although it was its
own first try that won. The callers know: they read the object and compare.
"""

import base64
import contextlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    ResponseStreamingError,
    SSLError,
    TokenRetrievalError,
)
from botocore.exceptions import (
    ConnectionError as ConnectError,
)
from urllib3.exceptions import HTTPError as StreamError

from rekindle.checkpoint.format import checksum
from rekindle.checkpoint.objects.interface import (
    AccessDenied,
    Body,
    Conflict,
    InvalidCredentials,
    NoSuchBucket,
    NotFound,
    PreconditionFailed,
    RequestRefused,
    Stat,
    StoreError,
    Unreachable,
    check_key,
)
from rekindle.checkpoint.objects.location import ADDRESSING, InvalidLocation, without_credentials

PART_BYTES = 32 * 2**20
"""Bodies above this size go up in parts of this size."""
PARALLEL_PARTS = 8
"""Parts in flight at once per upload; each is one connection."""
_SEND_BYTES = 4 * 2**20

_CREDENTIALS = {
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "InvalidToken",
    "ExpiredToken",
    "ExpiredTokenException",
    "TokenRefreshRequired",
    "RequestTimeTooSkewed",
    "AuthFailure",
    "InvalidClientTokenId",
    "UnrecognizedClientException",
    "NotSignedUp",
    "InvalidSecurity",
    "401",
}
_DENIED = {"AccessDenied", "AccessDeniedException", "AllAccessDisabled", "AccountProblem", "403"}
_BUSY = {
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "RequestTimeout",
    "InternalError",
    "ServiceUnavailable",
    "RequestLimitExceeded",
}


T = TypeVar("T")


class S3Objects:
    """The objects below one prefix of one bucket."""

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        endpoint_url: str | None = None,
        region: str | None = None,
        profile: str | None = None,
        ca_bundle: str | None = None,
        addressing: str | None = None,
        timeout: float = 60.0,
        attempts: int = 5,
        session: Any = None,
    ) -> None:
        if addressing is not None and addressing not in ADDRESSING:
            raise ValueError(f"store.addressing is {addressing!r}: allowed are {ADDRESSING}")
        self._looks_before_deleting = False
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._options: dict[str, Any] = {
            "endpoint_url": endpoint_url,
            "region": region,
            "ca_bundle": ca_bundle,
            "addressing": addressing,
        }
        self._attempts = attempts
        self._timeout = timeout
        self.uri = f"s3://{bucket}/{prefix}".rstrip("/")
        self.endpoint = "AWS"
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._session: Any = None
        with self._errors("connect", ""):
            self._session = session or boto3.session.Session(profile_name=profile)
            self._client = self._connect(self._session)

    def _connect(self, session: Any) -> Any:
        """The client; at most an instance's metadata service is asked, for credentials."""
        endpoint = self._options["endpoint_url"] or _configured_endpoint(session)
        self.endpoint = without_credentials(endpoint) if endpoint else "AWS"
        foreign = endpoint is not None and not _is_aws(endpoint)
        self._checksums = not foreign and checksum.CRC64NVME in checksum.AVAILABLE
        bundle = self._options["ca_bundle"] or session._session.get_config_variable("ca_bundle")
        if isinstance(bundle, str) and not os.path.exists(bundle):
            # The TLS library would say "no such file" and not which one.
            raise RequestRefused(
                f"cannot use the CA bundle {bundle}: there is no such file. Correct ca_bundle or "
                f"AWS_CA_BUNDLE."
            )
        # The first connection must not cost more than the read limit of an impatient caller.
        config = Config(
            connect_timeout=min(10.0, self._timeout),
            read_timeout=self._timeout,
            retries={"mode": "standard", "total_max_attempts": self._attempts},
            max_pool_connections=2 * PARALLEL_PARTS,
            request_checksum_calculation="when_required" if foreign else "when_supported",
            response_checksum_validation="when_required",
            s3={
                "payload_signing_enabled": False,
                "addressing_style": self._options["addressing"] or ("path" if foreign else "auto"),
            },
        )
        client = session.client(
            "s3",
            endpoint_url=endpoint,
            region_name=self._options["region"] or session.region_name or "us-east-1",
            # None leaves it to AWS_CA_BUNDLE and the profile.
            verify=self._options["ca_bundle"],
            config=config,
        )
        client.meta.events.register("before-send.s3", _in_large_pieces)
        return client

    def put(
        self, key: str, body: Body, *, if_none_match: bool = False, if_match: str | None = None
    ) -> str:
        """One request, or parts and a completing request that carries the condition."""
        view = memoryview(body).cast("B")
        condition = {"IfNoneMatch": "*"} if if_none_match else {}
        if if_match is not None:
            condition = {"IfMatch": if_match}
        if len(view) > PART_BYTES:
            return self._put_parts(key, view, condition)
        with self._errors("PutObject", key):
            try:
                answer = self._client.put_object(
                    **self._at(key),
                    Body=_body(view),
                    ContentLength=len(view),
                    **self._crc(view),
                    **condition,
                )
            except ClientError as error:
                if if_match is None or _code(error) not in {"NoSuchKey", "404"}:
                    raise
                raise PreconditionFailed(f"PutObject {self._full(key)}: it is gone") from None
            return str(answer["ETag"])

    def _put_parts(self, key: str, view: memoryview, condition: dict[str, str]) -> str:
        kind = {}
        if self._checksums:
            kind = {"ChecksumAlgorithm": "CRC64NVME", "ChecksumType": "FULL_OBJECT"}
        with self._errors("CreateMultipartUpload", key):
            upload = self._client.create_multipart_upload(**self._at(key), **kind)["UploadId"]
        at = {**self._at(key), "UploadId": upload}

        def send(number: int) -> dict[str, object]:
            begin = (number - 1) * PART_BYTES
            part = view[begin : begin + PART_BYTES]
            with self._errors("UploadPart", key):
                answer = self._client.upload_part(
                    **at,
                    PartNumber=number,
                    Body=_body(part),
                    ContentLength=len(part),
                    **self._crc(part),
                )
            return {"PartNumber": number, "ETag": answer["ETag"]}

        count = -(-len(view) // PART_BYTES)
        futures: list[Future[dict[str, object]]] = []
        try:
            futures += [self._threads().submit(send, number) for number in range(1, count + 1)]
            parts = [future.result() for future in futures]
            with self._errors("CompleteMultipartUpload", key):
                answer = self._client.complete_multipart_upload(
                    **at, MultipartUpload={"Parts": parts}, **condition
                )
            return str(answer["ETag"])
        except BaseException:
            for future in futures:
                future.cancel()
            for future in futures:
                # A part that arrives after the abort would be stored, and billed, for ever.
                with contextlib.suppress(BaseException):
                    future.result()
            with contextlib.suppress(Exception):
                self._client.abort_multipart_upload(**at)
            raise

    def get(
        self,
        key: str,
        start: int | None = None,
        stop: int | None = None,
        *,
        limit: int | None = None,
    ) -> bytes:
        """A ranged or whole read; the announced size is compared with `limit` before the body."""

        def once() -> bytes:
            answer = self._open(key, start or 0, stop)
            if answer is None:
                return b""
            with contextlib.closing(answer["Body"]) as stream:
                size = int(answer["ContentLength"])
                if limit is not None and size > limit:
                    raise RequestRefused(
                        f"GetObject {self._full(key)}: {size} bytes, at most {limit} are expected"
                    )
                return bytes(stream.read())

        return self._stream(key, once)

    def get_into(self, key: str, buffer: memoryview, start: int = 0) -> int:
        """A ranged read straight into the caller's memory."""
        view = buffer.cast("B")

        def once() -> int:
            answer = self._open(key, start, start + len(view))
            if answer is None:
                return 0
            done = 0
            with contextlib.closing(answer["Body"]) as stream:
                while done < len(view):
                    count = stream.readinto(view[done:])
                    if not count:
                        break
                    done += count
                announced = min(int(answer["ContentLength"]), len(view))
            if done < announced:
                raise ConnectionError(f"the answer ended after {done} of {announced} bytes")
            return done

        return self._stream(key, once)

    def _open(self, key: str, start: int, stop: int | None) -> Any:
        """A GET answer, or None where the range has no bytes."""
        if stop is not None and stop <= start:
            return None
        byte_range = {}
        if start or stop is not None:
            byte_range = {"Range": f"bytes={start}-{'' if stop is None else stop - 1}"}
        with self._errors("GetObject", key):
            try:
                return self._client.get_object(**self._at(key), **byte_range)
            except ClientError as error:
                if _code(error) in {"InvalidRange", "416"}:
                    return None
                raise

    def _stream(self, key: str, once: Callable[[], T]) -> T:
        """Run a read again when the connection breaks in the body, which botocore does not."""
        for attempt in range(1, self._attempts + 1):
            try:
                return once()
            except StoreError:
                raise
            except (BotoCoreError, StreamError, OSError) as error:
                if attempt == self._attempts:
                    raise Unreachable(
                        f"GetObject {self._full(key)}: the answer broke off {attempt} times "
                        f"({self._scrub(str(error))}). Check the network to {self.endpoint}."
                    ) from error
                time.sleep(0.05 * 2**attempt)
        raise AssertionError("unreachable")

    def head(self, key: str) -> Stat:
        """Size and etag."""
        with self._errors("HeadObject", key):
            answer = self._client.head_object(**self._at(key))
            return Stat(key=key, size=int(answer["ContentLength"]), etag=str(answer["ETag"]))

    def list(self, prefix: str) -> list[Stat]:
        """All pages, sorted here because not every server sorts."""
        found: list[Stat] = []
        token: dict[str, str] = {}
        with self._errors("ListObjectsV2", prefix):
            while True:
                answer = self._client.list_objects_v2(
                    Bucket=self._bucket, Prefix=self._prefix + prefix, **token
                )
                for entry in answer.get("Contents", ()):
                    key = str(entry["Key"])[len(self._prefix) :]
                    found.append(Stat(key=key, size=int(entry["Size"]), etag=str(entry["ETag"])))
                if not answer.get("IsTruncated"):
                    return sorted(found, key=lambda stat: stat.key)
                token = {"ContinuationToken": answer["NextContinuationToken"]}

    def delete(self, key: str, *, if_match: str | None = None) -> None:
        """Delete one object, on the condition that it is still this one when an etag is given.

        A server that knows no conditional delete is asked for the etag before: what comes between
        the two is lost, but retention, which alone asks for this, has one deleter per run.
        """
        if if_match is None or self._looks_before_deleting:
            self._compare_and_delete(key, if_match)
            return
        try:
            self._delete(key, if_match)
        except RequestRefused:
            self._compare_and_delete(key, if_match)
            # It was the condition, then. Not asked again.
            self._looks_before_deleting = True

    def _compare_and_delete(self, key: str, if_match: str | None) -> None:
        if if_match is not None:
            try:
                found = self.head(key).etag
            except NotFound:
                found = None
            if found != if_match:
                raise PreconditionFailed(
                    f"DeleteObject {self._full(key)}: the object has changed or is gone"
                )
        self._delete(key, None)

    def _delete(self, key: str, if_match: str | None) -> None:
        condition = {} if if_match is None else {"IfMatch": if_match}
        with self._errors("DeleteObject", key):
            try:
                self._client.delete_object(**self._at(key), **condition)
            except ClientError as error:
                if _code(error) not in {"NoSuchKey", "404"}:
                    raise
                if if_match is not None:
                    raise PreconditionFailed(
                        f"DeleteObject {self._full(key)}: the object is gone"
                    ) from None

    def delete_many(self, keys: Iterable[str]) -> None:
        """Batches of 1000; an endpoint that does not take the batch call gets single ones."""
        todo = list(keys)
        for begin in range(0, len(todo), 1000):
            batch = todo[begin : begin + 1000]
            names = [{"Key": self._prefix + check_key(key)} for key in batch]
            try:
                with self._errors("DeleteObjects", batch[0]):
                    answer = self._client.delete_objects(
                        Bucket=self._bucket, Delete={"Objects": names, "Quiet": True}
                    )
            except RequestRefused:
                for key in batch:
                    self.delete(key)
                continue
            for error in answer.get("Errors", ()):
                key = str(error.get("Key", ""))[len(self._prefix) :]
                raise self._translate(
                    "DeleteObjects", key, str(error.get("Code")), str(error.get("Message")), 0
                )

    def try_upload(self, key: str) -> None:
        """Create an upload in parts and abort it."""
        with self._errors("CreateMultipartUpload", key):
            upload = self._client.create_multipart_upload(**self._at(key))["UploadId"]
        with self._errors("AbortMultipartUpload", key):
            self._client.abort_multipart_upload(**self._at(key), UploadId=upload)

    def abandon_uploads(
        self, prefix: str, *, older_than: float, only: Callable[[str], bool] | None = None
    ) -> int:
        """Abort uploads a killed writer left; their parts are stored and billed until then."""
        count = 0
        token: dict[str, str] = {}
        with self._errors("ListMultipartUploads", prefix):
            while True:
                answer = self._client.list_multipart_uploads(
                    Bucket=self._bucket, Prefix=self._prefix + prefix, **token
                )
                for upload in answer.get("Uploads", ()):
                    age = (datetime.now(UTC) - upload["Initiated"]).total_seconds()
                    key = str(upload["Key"])[len(self._prefix) :]
                    if age >= older_than and (only is None or only(key)):
                        self._client.abort_multipart_upload(
                            Bucket=self._bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                        )
                        count += 1
                if not answer.get("IsTruncated"):
                    return count
                token = {
                    "KeyMarker": answer["NextKeyMarker"],
                    "UploadIdMarker": answer["NextUploadIdMarker"],
                }

    def impatient(self) -> "S3Objects":
        """The same place, with two tries of three seconds each."""
        return S3Objects(
            self._bucket,
            self._prefix.rstrip("/"),
            **self._options,
            timeout=3.0,
            attempts=2,
            session=self._session,
        )

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._prefix + check_key(key)}

    def _crc(self, view: memoryview) -> dict[str, str]:
        """The checksum that AWS compares with what arrived."""
        if not self._checksums:
            return {}
        value = checksum.crc(checksum.CRC64NVME)(view)
        return {"ChecksumCRC64NVME": base64.b64encode(value.to_bytes(8, "big")).decode()}

    def _full(self, key: str) -> str:
        return f"{self.uri}/{key}" if key else self.uri

    def _threads(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(PARALLEL_PARTS, thread_name_prefix="rekindle-s3")
            return self._pool

    @contextlib.contextmanager
    def _errors(self, operation: str, key: str) -> Iterator[None]:
        try:
            yield
        except ClientError as error:
            details = error.response.get("Error", {})
            metadata = error.response.get("ResponseMetadata", {})
            raise self._translate(
                operation,
                key,
                str(details.get("Code") or ""),
                str(details.get("Message") or ""),
                int(metadata.get("HTTPStatusCode", 0)),
            ) from error
        except (
            NoCredentialsError,
            PartialCredentialsError,
            CredentialRetrievalError,
            TokenRetrievalError,
            ProfileNotFound,
        ) as error:
            raise InvalidCredentials(
                f"{operation} {self._full(key)}: {self._scrub(str(error))}. Give the pod "
                f"AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or an identity of its own."
            ) from error
        except SSLError as error:
            raise Unreachable(
                f"{operation} {self._full(key)}: TLS to {self.endpoint} failed "
                f"({self._scrub(str(error))}). Check the certificate; AWS_CA_BUNDLE names your CA."
            ) from error
        except (
            ConnectError,
            HTTPClientError,
            ResponseStreamingError,
            StreamError,
            OSError,
        ) as error:
            raise Unreachable(
                f"{operation} {self._full(key)}: no answer from {self.endpoint} in "
                f"{self._attempts} tries ({self._scrub(str(error))}). Check the endpoint URL and "
                f"the network."
            ) from error
        except BotoCoreError as error:
            raise RequestRefused(
                f"{operation} {self._full(key)}: the request cannot be made "
                f"({self._scrub(str(error))}). Check region, endpoint and AWS configuration."
            ) from error
        except ValueError as error:
            # boto3 says so for an endpoint URL that is none.
            if operation != "connect" or isinstance(error, InvalidLocation):
                raise
            raise RequestRefused(
                f"cannot use endpoint {self.endpoint}: {self._scrub(str(error))}. It must be a URL "
                f"such as https://s3.example.com."
            ) from error

    def _translate(
        self, operation: str, key: str, code: str, message: str, status: int
    ) -> StoreError:
        """The typed error for an S3 error code; 404 without a code is a missing object."""
        head = f"{code or status} on {operation} {self._full(key)}"
        said = f" ({self._scrub(message)})" if message and message != code else ""
        if code == "NoSuchBucket":
            return NoSuchBucket(
                f"{head}: bucket {self._bucket!r} does not exist at {self.endpoint}. Create it, or "
                f"correct the URI or the endpoint."
            )
        if code in {"NoSuchKey", "NoSuchUpload", "404"} or (status == 404 and not code):
            if operation in {"PutObject", "CreateMultipartUpload", "ListObjectsV2"}:
                return RequestRefused(
                    f"{head}: {self.endpoint} does not answer like an S3 server. Check the "
                    f"endpoint URL."
                )
            return NotFound(f"{head}: no such object")
        if code in {"PreconditionFailed", "412"} or status == 412:
            return PreconditionFailed(f"{head}: the condition did not hold")
        if code in {"ConditionalRequestConflict", "OperationAborted"} or status == 409:
            return Conflict(f"{head}: another write of the key is under way{said}")
        if code in _CREDENTIALS or status == 401:
            return InvalidCredentials(
                f"{head}{said}. The credentials are unknown to {self.endpoint}, wrong or expired: "
                f"renew the secret or the identity of the pod."
            )
        if code in _DENIED or status == 403:
            return AccessDenied(
                f"{head}{said}. Allow {_permission(operation)} on {self.uri} for this identity."
            )
        if code in {"PermanentRedirect", "AuthorizationHeaderMalformed", "301"}:
            return NoSuchBucket(
                f"{head}{said}: bucket {self._bucket!r} is in another region. Set AWS_REGION."
            )
        if code in _BUSY or (status >= 500 and status != 501):
            return Unreachable(
                f"{head}{said}: {self.endpoint} fails or is overloaded, {self._attempts} tries."
            )
        return RequestRefused(f"{head}{said}: {self.endpoint} does not accept this request.")

    def _scrub(self, text: str) -> str:
        """No credential in any message, whatever a server or a library quotes."""
        text = mask(text, _secrets(self._session))
        return text if len(text) <= 300 else text[:300] + "..."


def mask(text: str, secrets: Iterable[str | None]) -> str:
    """The text without these secrets, without signatures, and without user parts of URLs.

    Secrets are masked as whole words and only from 8 characters on: shorter ones are those of test
    servers, and words of a message would vanish with them.
    """
    for secret in secrets:
        if secret and len(secret) >= 8:
            text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", "***", text)
    text = re.sub(r"(?i)((?:signature|security-token|credential)=)[^&\s,;<>\"']+", r"\1***", text)
    return re.sub(r"//[^/@\s]*@", "//***@", text)


def _secrets(session: Any) -> list[str | None]:
    """The credentials in use, without asking anybody for fresh ones."""
    core = getattr(session, "_session", None)
    found = getattr(core, "_credentials", None)
    frozen = getattr(found, "_frozen_credentials", None) or found
    return [getattr(frozen, name, None) for name in ("access_key", "secret_key", "token")]


def _configured_endpoint(session: Any) -> str | None:
    """What the environment or the profile says, for deciding which dialect is spoken."""
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if os.environ.get(name):
            return os.environ[name]
    try:
        scoped = session._session.get_scoped_config()
    except BotoCoreError:
        return None
    found = scoped.get("endpoint_url")
    return found if isinstance(found, str) else None


def _permission(operation: str) -> str:
    """The IAM action behind an operation."""
    if operation == "ListObjectsV2":
        return "s3:ListBucket"
    if operation == "ListMultipartUploads":
        return "s3:ListBucketMultipartUploads"
    if operation in {"CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"}:
        return "s3:PutObject"
    if operation in {"DeleteObject", "DeleteObjects"}:
        return "s3:DeleteObject"
    if operation == "HeadObject":
        return "s3:GetObject"
    return f"s3:{operation}"


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code") or "")


def _is_aws(endpoint: str) -> bool:
    host = urlsplit(endpoint).hostname or ""
    return host.endswith((".amazonaws.com", ".amazonaws.com.cn"))


class _View:
    """A file over a view of somebody else's memory, for botocore bodies without a copy."""

    def __init__(self, view: memoryview) -> None:
        self.view = self._view = view
        self._at = 0

    def read(self, size: int | None = -1) -> memoryview | bytes:
        end = len(self._view) if size is None or size < 0 else self._at + size
        piece = self._view[self._at : end]
        self._at += len(piece)
        # An empty view is not false enough for every reader loop.
        return piece if len(piece) else b""

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: len(self._view)}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def __len__(self) -> int:
        return len(self._view)


class _Pieces:
    """The same memory for the connection: it sends what it is given at once, without asking.

    A file it would read and send in pieces of 128 kB, a third of the cost of an upload. One piece
    has to pass within the read limit, so a part in one piece would fail on a slow line.
    """

    def __init__(self, view: memoryview) -> None:
        self._view = view

    def __iter__(self) -> Iterator[memoryview]:
        for at in range(0, len(self._view), _SEND_BYTES):
            yield self._view[at : at + _SEND_BYTES]

    def seek(self, _offset: int) -> None:
        """Every iteration begins anew; botocore asks for this before it tries again."""


def _in_large_pieces(request: Any, **_: Any) -> None:
    """Called by botocore when a request is complete and signed."""
    if isinstance(request.body, _View):
        request.body = _Pieces(request.body.view)


def _body(view: memoryview) -> Any:
    """Small bodies as bytes (one send with the headers), large ones as a file over the view."""
    return bytes(view) if len(view) <= 2**16 else _View(view)
