"""Every refusal of the API server, as the `Status` object a real one sends.

Clients branch on `reason` and `code` (kubectl prints `message`, kopf and the Python client look at
the code, `kubectl apply` reads `details.causes`), so all of them are built here and nowhere else.
`Invalid` gathers one cause per bad field: the user sees every mistake at once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class StatusCause:
    """One bad field: its path, the machine-readable reason, and a sentence for the user."""

    field: str
    reason: str
    message: str

    def text(self) -> str:
        """Return the cause as it appears in a top-level message."""
        return f"{self.field}: {self.message}" if self.field else self.message


class ApiError(Exception):
    """A refusal that becomes an HTTP response with a `Status` body."""

    def __init__(
        self,
        code: int,
        reason: str,
        message: str,
        *,
        details: Json | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.details = details or {}
        self.headers = headers or {}

    def status(self) -> Json:
        """Return the `Status` object."""
        body: Json = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
        }
        if self.details:
            body["details"] = self.details
        body["code"] = self.code
        return body


def success(*, name: str = "", group: str = "", kind: str = "", uid: str = "") -> Json:
    """Return the `Status` a finished delete or a bulk operation answers with."""
    details = {"name": name, "group": group, "kind": kind, "uid": uid}
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "details": {key: value for key, value in details.items() if value},
    }


def qualified(plural: str, group: str) -> str:
    """Return `plural` or `plural.group`, the way messages name a resource."""
    return f"{plural}.{group}" if group else plural


def not_found(plural: str, group: str, name: str) -> ApiError:
    """Return the 404 for an object that does not exist."""
    return ApiError(
        404,
        "NotFound",
        f'{qualified(plural, group)} "{name}" not found',
        details=_details(name, group, plural),
    )


def no_such_resource() -> ApiError:
    """Return the 404 for a path that names no resource here."""
    return ApiError(
        404,
        "NotFound",
        "the server could not find the requested resource",
        details={
            "causes": [{"reason": "UnexpectedServerResponse", "message": "404 page not found"}]
        },
    )


def already_exists(plural: str, group: str, name: str) -> ApiError:
    """Return the 409 for a create of a name that is taken."""
    return ApiError(
        409,
        "AlreadyExists",
        f'{qualified(plural, group)} "{name}" already exists',
        details=_details(name, group, plural),
    )


def conflict(plural: str, group: str, name: str, message: str) -> ApiError:
    """Return the 409 for a stale write or an unmet precondition."""
    return ApiError(
        409,
        "Conflict",
        f'Operation cannot be fulfilled on {qualified(plural, group)} "{name}": {message}',
        details=_details(name, group, plural),
    )


def stale(plural: str, group: str, name: str) -> ApiError:
    """Return the 409 for a write with an old resourceVersion."""
    return conflict(
        plural,
        group,
        name,
        "the object has been modified; please apply your changes to the latest version and try "
        "again",
    )


def bad_request(message: str) -> ApiError:
    """Return the 400 for a request that cannot be understood."""
    return ApiError(400, "BadRequest", message)


def forbidden(
    plural: str, group: str, name: str, message: str, causes: Sequence[Json] = ()
) -> ApiError:
    """Return the 403 for something that is understood and not allowed."""
    details = _details(name, group, plural)
    if causes:
        details["causes"] = list(causes)
    target = f'{qualified(plural, group)} "{name}"' if name else qualified(plural, group)
    return ApiError(403, "Forbidden", f"{target} is forbidden: {message}", details=details)


def unauthorized() -> ApiError:
    """Return the 401 for a missing or wrong bearer token."""
    return ApiError(401, "Unauthorized", "Unauthorized", headers={"WWW-Authenticate": "Bearer"})


def method_not_allowed(message: str = "") -> ApiError:
    """Return the 405 for a verb that the resource does not serve."""
    return ApiError(
        405,
        "MethodNotAllowed",
        message or "the server does not allow this method on the requested resource",
    )


def unsupported_media_type(content_type: str, allowed: Sequence[str]) -> ApiError:
    """Return the 415 for a body in a format that this resource does not take."""
    return ApiError(
        415,
        "UnsupportedMediaType",
        f"the body of the request was in an unknown format ({content_type}) - "
        f"accepted media types include: {', '.join(allowed)}",
    )


def not_acceptable(accepted: Sequence[str]) -> ApiError:
    """Return the 406 for an Accept header that nothing here satisfies."""
    return ApiError(
        406,
        "NotAcceptable",
        f"only the following media types are accepted: {', '.join(accepted)}",
    )


def not_implemented(what: str, instead: str = "") -> ApiError:
    """Return the 501 for a feature of Kubernetes that this server does not have."""
    text = f"{what}: the embedded API server does not do this"
    return ApiError(501, "NotImplemented", f"{text}: {instead}" if instead else text)


def gone(message: str) -> ApiError:
    """Return the 410 for a resourceVersion or continue token that has left the history."""
    return ApiError(410, "Expired", message)


def too_many_requests(message: str, causes: Sequence[Json] = (), retry_after: int = 0) -> ApiError:
    """Return the 429, which an eviction under a disruption budget gets."""
    details: Json = {"causes": list(causes)} if causes else {}
    headers = {}
    if retry_after:
        details["retryAfterSeconds"] = retry_after
        headers["Retry-After"] = str(retry_after)
    return ApiError(429, "TooManyRequests", message, details=details, headers=headers)


def invalid(kind: str, group: str, name: str, causes: Sequence[StatusCause]) -> ApiError:
    """Return the 422 that lists every bad field of one object."""
    assert causes
    texts = list(dict.fromkeys(cause.text() for cause in causes))
    summary = texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"
    return ApiError(
        422,
        "Invalid",
        f'{qualified(kind, group)} "{name}" is invalid: {summary}',
        details={
            **_details(name, group, kind),
            "causes": [
                {"reason": cause.reason, "message": cause.message, "field": cause.field}
                for cause in causes
            ],
        },
    )


def show(value: Any) -> str:
    """Return a value as the messages quote it: JSON for all but numbers of the Go kind."""
    return json.dumps(value, ensure_ascii=False)


def bad_value(field: str, value: Any, message: str) -> StatusCause:
    """Return the cause for a value that breaks a constraint."""
    return StatusCause(
        field=field,
        reason="FieldValueInvalid",
        message=f"Invalid value: {show(value)}: {message}",
    )


def bad_type(field: str, value: Any, expected: str, actual: str) -> StatusCause:
    """Return the cause for a value of the wrong JSON type."""
    return StatusCause(
        field=field,
        reason="FieldValueTypeInvalid",
        message=f'Invalid value: "{actual}": {field} in body must be of type {expected}: '
        f'"{actual}"',
    )


def required(field: str, message: str = "") -> StatusCause:
    """Return the cause for a missing field."""
    return StatusCause(
        field=field,
        reason="FieldValueRequired",
        message=f"Required value: {message}" if message else "Required value",
    )


def duplicate(field: str, value: Any) -> StatusCause:
    """Return the cause for a second item with the same key."""
    return StatusCause(
        field=field, reason="FieldValueDuplicate", message=f"Duplicate value: {show(value)}"
    )


def forbidden_field(field: str, message: str) -> StatusCause:
    """Return the cause for a field that may not be set or changed."""
    return StatusCause(field=field, reason="FieldValueForbidden", message=f"Forbidden: {message}")


def not_supported(field: str, value: Any, allowed: Sequence[Any]) -> StatusCause:
    """Return the cause for a value outside an enumeration, naming what is allowed."""
    return StatusCause(
        field=field,
        reason="FieldValueNotSupported",
        message=f"Unsupported value: {show(value)}: supported values: "
        + ", ".join(show(item) for item in allowed),
    )


def _details(name: str, group: str, kind: str) -> Json:
    details = {"name": name, "group": group, "kind": kind}
    return {key: value for key, value in details.items() if value}
