"""AWS Signature Version 4 for S3: verifying what a client sent, and signing a request of our own.

moto takes any credentials; this goes in front of it, because "wrong secret" and "no permission" are
among the first things that go wrong with a real bucket and have to be seen on a laptop. The
signature is computed again from the request as received (header or presigned query form) and
compared; the payload hash is used as the client states it. Refusals carry S3's codes and wording.
"""

import hashlib
import hmac
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import parse_qsl, quote, unquote, urlsplit

_ALGORITHM = "AWS4-HMAC-SHA256"
_MAX_SKEW_SECONDS = 15 * 60


class SignatureRefused(Exception):
    """A request that S3 would refuse, with its error code and HTTP status."""

    def __init__(self, code: str, message: str, status: int = 403) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status


@dataclass(frozen=True, kw_only=True)
class SignedRequest:
    """What was received: `target` is path and query as on the request line, names lower case."""

    method: str
    target: str
    headers: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class _Claim:
    access_key: str
    scope: str
    signed: tuple[str, ...]
    signature: str
    stamp: str
    payload: str
    expires: int | None


def bucket_and_key(target: str) -> tuple[str, str]:
    """The bucket and key of a path-style request target."""
    path = unquote(urlsplit(target).path).lstrip("/")
    bucket, _, key = path.partition("/")
    return bucket, key


def denied(target: str, deny: Collection[str]) -> bool:
    """Whether a target is under a denied bucket (`name`) or prefix (`name/some/prefix`)."""
    bucket, key = bucket_and_key(target)
    return any(
        bucket == entry if "/" not in entry else f"{bucket}/{key}".startswith(entry)
        for entry in deny
    )


def verify(
    request: SignedRequest, secrets: Mapping[str, str], deny: Collection[str], now: datetime
) -> None:
    """Raise Refused unless the request is signed by a known key and not denied."""
    claim = _claim(request)
    if claim.access_key not in secrets:
        raise SignatureRefused(
            "InvalidAccessKeyId",
            "The AWS Access Key Id you provided does not exist in our records.",
        )
    _check_time(claim, now)
    region = claim.scope.split("/")[1]
    key = signing_key(secrets[claim.access_key], claim.stamp[:8], region)
    wanted = _signature(request, claim, key)
    if not hmac.compare_digest(wanted, claim.signature):
        raise SignatureRefused(
            "SignatureDoesNotMatch",
            "The request signature we calculated does not match the signature you provided. "
            "Check your key and signing method.",
        )
    source = request.headers.get("x-amz-copy-source")
    if denied(request.target, deny) or (source and denied("/" + source.lstrip("/"), deny)):
        raise SignatureRefused("AccessDenied", "Access Denied")


def sign(
    request: SignedRequest, access_key: str, secret: str, region: str, payload: str, now: datetime
) -> dict[str, str]:
    """The headers to send: those of the request plus date, payload hash and authorization."""
    stamp = now.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
    headers = {**request.headers, "x-amz-date": stamp, "x-amz-content-sha256": payload}
    claim = _Claim(
        access_key=access_key,
        scope=f"{stamp[:8]}/{region}/s3/aws4_request",
        signed=tuple(sorted(headers)),
        signature="",
        stamp=stamp,
        payload=payload,
        expires=None,
    )
    full = SignedRequest(method=request.method, target=request.target, headers=headers)
    signature = _signature(full, claim, signing_key(secret, stamp[:8], region))
    headers["authorization"] = (
        f"{_ALGORITHM} Credential={access_key}/{claim.scope}, "
        f"SignedHeaders={';'.join(claim.signed)}, Signature={signature}"
    )
    return headers


def signing_key(secret: str, day: str, region: str) -> bytes:
    """The key of one day and region."""
    key = f"AWS4{secret}".encode()
    for part in (day, region, "s3", "aws4_request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return key


def _claim(request: SignedRequest) -> _Claim:
    authorization = request.headers.get("authorization", "")
    query = dict(parse_qsl(urlsplit(request.target).query, keep_blank_values=True))
    try:
        if authorization.startswith(_ALGORITHM):
            fields = dict(
                part.strip().split("=", 1)
                for part in authorization.removeprefix(_ALGORITHM).split(",")
            )
            access_key, _, scope = fields["Credential"].partition("/")
            return _Claim(
                access_key=access_key,
                scope=_checked_scope(scope),
                signed=tuple(fields["SignedHeaders"].split(";")),
                signature=fields["Signature"],
                stamp=request.headers["x-amz-date"],
                payload=request.headers["x-amz-content-sha256"],
                expires=None,
            )
        if query.get("X-Amz-Algorithm") == _ALGORITHM:
            access_key, _, scope = query["X-Amz-Credential"].partition("/")
            return _Claim(
                access_key=access_key,
                scope=_checked_scope(scope),
                signed=tuple(query["X-Amz-SignedHeaders"].split(";")),
                signature=query["X-Amz-Signature"],
                stamp=query["X-Amz-Date"],
                payload=request.headers.get("x-amz-content-sha256", "UNSIGNED-PAYLOAD"),
                expires=int(query["X-Amz-Expires"]),
            )
    except (KeyError, ValueError) as error:
        raise SignatureRefused(
            "AuthorizationHeaderMalformed",
            f"The authorization is malformed: {error} is missing or wrong.",
            400,
        ) from error
    if authorization or "Signature" in query:
        raise SignatureRefused(
            "InvalidRequest",
            f"The authorization mechanism you have provided is not supported. Use {_ALGORITHM}.",
            400,
        )
    raise SignatureRefused("AccessDenied", "Access Denied")


def _checked_scope(scope: str) -> str:
    day, region, service, end = scope.split("/")
    if not (len(day) == 8 and region and service == "s3" and end == "aws4_request"):
        raise ValueError(f"the credential scope {scope!r}")
    return scope


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


def _signature(request: SignedRequest, claim: _Claim, key: bytes) -> str:
    split = urlsplit(request.target)
    pairs = sorted(
        (quote(name, safe="-_.~"), quote(value, safe="-_.~"))
        for name, value in parse_qsl(split.query, keep_blank_values=True)
        if name != "X-Amz-Signature"
    )
    lines = [
        request.method,
        quote(unquote(split.path), safe="/-_.~") or "/",
        "&".join(f"{name}={value}" for name, value in pairs),
        *(f"{name}:{' '.join(request.headers.get(name, '').split())}" for name in claim.signed),
        "",
        ";".join(claim.signed),
        claim.payload,
    ]
    canonical = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    text = "\n".join((_ALGORITHM, claim.stamp, claim.scope, canonical))
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
