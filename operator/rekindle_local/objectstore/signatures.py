"""A gate in front of the embedded S3 server: signatures (AWS Signature Version 4) and permissions.

moto takes any credentials; this goes in front of it, because "wrong secret" and "no permission" are
among the first things that go wrong with a real bucket and have to be seen on a laptop. botocore
signs the request as received again (header or presigned query form), and the two signatures are
compared; the payload hash is used as the client states it. What it does not look at is checked
here: the form of the claim, its age, and what is denied. Refusals carry S3's codes and wording.

It imports botocore, so nothing but the server process imports it.
"""

import hmac
import secrets as random
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, quote, unquote, urlsplit
from xml.sax.saxutils import escape

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.compat import HTTPHeaders
from botocore.credentials import Credentials
from werkzeug.datastructures import EnvironHeaders
from werkzeug.wrappers import Response

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

_ALGORITHM = "AWS4-HMAC-SHA256"
_MAX_SKEW_SECONDS = 15 * 60


class SignatureRefused(Exception):
    """A request that S3 would refuse, with its error code and HTTP status."""

    def __init__(self, code: str, message: str, status: int = 403) -> None:
        super().__init__(message)
        self.code = code
        self.status = status


@dataclass(frozen=True, kw_only=True)
class SignedRequest:
    """What was received: `target` is path and query as on the request line, names lower case."""

    method: str
    target: str
    headers: Mapping[str, str]


@dataclass(frozen=True)
class _Claim:
    access_key: str
    scope: str
    signed: str
    signature: str
    stamp: str
    payload: str
    expires: int | None


def denied(target: str, deny: Collection[str]) -> bool:
    """Whether a target is under a denied bucket (`name`) or prefix (`name/some/prefix`)."""
    bucket, _, key = unquote(urlsplit(target).path).lstrip("/").partition("/")
    return any(
        bucket == entry if "/" not in entry else f"{bucket}/{key}".startswith(entry)
        for entry in deny
    )


def verify(
    request: SignedRequest, secrets: Mapping[str, str], deny: Collection[str], now: datetime
) -> None:
    """Raise SignatureRefused unless the request is signed by a known key and not denied."""
    claim = _claim(request)
    if claim.access_key not in secrets:
        raise SignatureRefused(
            "InvalidAccessKeyId",
            "The AWS Access Key Id you provided does not exist in our records.",
        )
    _check_time(claim, now)
    wanted = _signature(request, claim, secrets[claim.access_key])
    if not hmac.compare_digest(wanted.encode(), claim.signature.encode()):
        raise SignatureRefused(
            "SignatureDoesNotMatch",
            "The request signature we calculated does not match the signature you provided. "
            "Check your key and signing method.",
        )
    source = request.headers.get("x-amz-copy-source")
    if denied(request.target, deny) or (source and denied("/" + source.lstrip("/"), deny)):
        raise SignatureRefused("AccessDenied", "Access Denied")


def _signature(request: SignedRequest, claim: _Claim, secret: str) -> str:
    """What botocore says the signature must be."""
    split = urlsplit(request.target)
    query = parse_qsl(split.query, keep_blank_values=True)
    received = AWSRequest(
        method=request.method,
        url="http://store" + (quote(unquote(split.path), safe="/-_.~") or "/"),
        params=[pair for pair in query if pair[0] != "X-Amz-Signature"],
        headers={"X-Amz-Content-SHA256": claim.payload},
    )
    received.context["timestamp"] = claim.stamp
    signed = HTTPHeaders()
    for name in claim.signed.split(";"):
        signed[name] = request.headers.get(name, "")
    signer = S3SigV4Auth(Credentials(claim.access_key, secret), "s3", claim.scope.split("/")[1])
    # The client chooses both.
    signer.headers_to_sign = lambda _request: signed
    signer.credential_scope = lambda _request: claim.scope
    text = signer.string_to_sign(received, signer.canonical_request(received))
    return str(signer.signature(text, received))


def _claim(request: SignedRequest) -> _Claim:
    headers = request.headers
    authorization = headers.get("authorization", "")
    query = dict(parse_qsl(urlsplit(request.target).query, keep_blank_values=True))
    try:
        if authorization.startswith(_ALGORITHM):
            parts = authorization.removeprefix(_ALGORITHM).split(",")
            given = dict(part.strip().split("=", 1) for part in parts)
            stamp, payload, expires = headers["x-amz-date"], headers["x-amz-content-sha256"], None
        elif query.get("X-Amz-Algorithm") == _ALGORITHM:
            given = {name[6:]: text for name, text in query.items() if name.startswith("X-Amz-")}
            stamp, expires = given["Date"], int(given["Expires"])
            payload = headers.get("x-amz-content-sha256", "UNSIGNED-PAYLOAD")
        elif authorization or "Signature" in query:
            message = "The authorization mechanism you have provided is not supported. "
            raise SignatureRefused("InvalidRequest", message + f"Use {_ALGORITHM}.", 400)
        else:
            raise SignatureRefused("AccessDenied", "Access Denied")
        access_key, _, scope = given["Credential"].partition("/")
        day, region, service, end = scope.split("/")
        if not (len(day) == 8 and region and service == "s3" and end == "aws4_request"):
            raise ValueError(f"the credential scope {scope!r}")
        signed, signature = given["SignedHeaders"], given["Signature"]
    except (KeyError, ValueError) as error:
        message = f"The authorization is malformed: {error} is missing or wrong."
        raise SignatureRefused("AuthorizationHeaderMalformed", message, 400) from error
    return _Claim(access_key, scope, signed, signature, stamp, payload, expires)


def _check_time(claim: _Claim, now: datetime) -> None:
    try:
        signed_at = datetime.strptime(claim.stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    except ValueError as error:
        message = "AWS authentication requires a valid Date or x-amz-date header"
        raise SignatureRefused("AccessDenied", message) from error
    age = (now - signed_at).total_seconds()
    if claim.expires is not None:
        if age > claim.expires:
            raise SignatureRefused("AccessDenied", "Request has expired")
    elif abs(age) > _MAX_SKEW_SECONDS:
        raise SignatureRefused(
            "RequestTimeTooSkewed",
            "The difference between the request time and the current time is too large.",
        )


class SignatureGate:
    """WSGI middleware: a request passes when `verify` lets it."""

    def __init__(
        self, app: "WSGIApplication", credentials: dict[str, str], deny: Collection[str]
    ) -> None:
        self._app = app
        self._credentials = credentials
        self.deny = frozenset(deny)

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Verify, then pass on or answer as S3 does."""
        headers = {name.lower(): value for name, value in EnvironHeaders(environ).items()}
        request = SignedRequest(
            method=environ["REQUEST_METHOD"], target=environ["REQUEST_URI"], headers=headers
        )
        try:
            verify(request, self._credentials, self.deny, datetime.now(UTC))
        except SignatureRefused as refusal:
            body = (
                '<?xml version="1.0" encoding="UTF-8"?>\n'
                f"<Error><Code>{refusal.code}</Code><Message>{escape(str(refusal))}</Message>"
                f"<Resource>{escape(urlsplit(request.target).path)}</Resource>"
                f"<RequestId>{random.token_hex(8).upper()}</RequestId></Error>"
            )
            answer = Response(body, refusal.status, content_type="application/xml")
            return answer(environ, start_response)
        return self._app(environ, start_response)
