"""Decode the Kubernetes protobuf bodies that kubectl 1.33 and later sends for typed calls.

(Placeholder until the message tables exist: every protobuf body is refused with 415.)
"""

from __future__ import annotations

from rekindle_local.apiserver import errors
from rekindle_local.apiserver.errors import Json

PROTOBUF = "application/vnd.kubernetes.protobuf"


def decode_body(raw: bytes) -> Json:
    """Return the object in a protobuf body."""
    raise errors.unsupported_media_type(PROTOBUF, ["application/json"])
