"""Bodies are written here by hand, field by field, as the wire format describes them."""

import pytest

from rekindle_local.apiserver.errors import ApiError
from rekindle_local.apiserver.http.protobuf import decode_body


def varint(number):
    out = b""
    while True:
        number, low = number >> 7, number & 0x7F
        if not number:
            return out + bytes([low])
        out += bytes([low | 0x80])


def part(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value & (1 << 64) - 1)
    raw = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(raw)) + raw


def body(api_version, kind, raw):
    return b"k8s\0" + part(1, part(1, api_version) + part(2, kind)) + part(2, raw)


def metadata(name):
    return part(1, part(1, name) + part(2, "") + part(7, 0) + part(8, b""))


def test_a_namespace_is_read_without_its_zero_values():
    raw = metadata("foo") + part(2, b"") + part(3, b"")
    assert decode_body(body("v1", "Namespace", raw)) == {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": "foo"},
        "spec": {},
    }


def test_bytes_of_a_secret_become_base64():
    entry = part(1, "key") + part(2, b"\x00\xffab")
    read = decode_body(body("v1", "Secret", metadata("s") + part(2, entry) + part(3, "Opaque")))
    assert read["data"] == {"key": "AP9hYg=="}
    assert read["type"] == "Opaque"


def test_a_grace_period_of_zero_is_kept():
    read = decode_body(body("v1", "DeleteOptions", part(1, 0) + part(4, "Background")))
    assert read["gracePeriodSeconds"] == 0
    assert read["propagationPolicy"] == "Background"


def test_negative_numbers_and_int_or_strings_are_read():
    assert decode_body(body("v1", "DeleteOptions", part(1, -1)))["gracePeriodSeconds"] == -1
    spec = part(1, part(1, 1) + part(2, 0) + part(3, "50%")) + part(3, part(1, 0) + part(2, 2))
    raw = metadata("p") + part(2, spec)
    read = decode_body(body("policy/v1", "PodDisruptionBudget", raw))
    assert read["spec"] == {"minAvailable": "50%", "maxUnavailable": 2}


def test_an_eviction_carries_its_delete_options():
    raw = metadata("p") + part(2, part(1, 5) + part(2, part(1, "u-1")))
    assert decode_body(body("policy/v1", "Eviction", raw))["deleteOptions"] == {
        "gracePeriodSeconds": 5,
        "preconditions": {"uid": "u-1"},
    }


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"{}", 400),
        (b"k8s\0\x0a\xff", 400),
        (body("v1", "Pod", b""), 415),
        (body("v1", "Namespace", part(99, "x")), 415),
        (body("v1", "Namespace", b"\x0a\x05ab"), 400),
    ],
)
def test_what_is_not_understood_is_refused_and_never_dropped(raw, code):
    with pytest.raises(ApiError) as refusal:
        decode_body(raw)
    assert refusal.value.code == code
