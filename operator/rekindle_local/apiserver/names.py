"""What a name, a label and an annotation may look like, and the causes when they do not.

Names become DNS labels, environment variables and file paths further down, so a server that lets
a bad one in only moves the failure to a place where nobody can read it.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from typing import Any

from rekindle_local.apiserver.errors import Json, StatusCause, bad_type, bad_value, required

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_DNS1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_QUALIFIED = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")
_PATH_BAD = re.compile(r"[/%]")

_LABEL_TEXT = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and "
    "must "
    "start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for "
    "validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
)
_SUBDOMAIN_TEXT = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or "
    "'.', "
    "and must start and end with an alphanumeric character (e.g. 'example.com', regex used for "
    "validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)
_DNS1035_TEXT = (
    "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an "
    "alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', "
    "regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')"
)
_QUALIFIED_TEXT = (
    "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and "
    "end with "
    "an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for "
    "validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
)
_VALUE_TEXT = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', "
    "and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or "
    "'12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
)

_SUFFIX_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
"""No vowels, so that no word appears; no 0, 1, 3, which look like letters."""

ANNOTATIONS_LIMIT = 256 * 1024
"""Bytes of all annotations of an object together."""


def generated(prefix: str) -> str:
    """Return a name made from `generateName`: the prefix, cut to fit 63, and five characters."""
    return prefix[:58] + "".join(secrets.choice(_SUFFIX_ALPHABET) for _ in range(5))


def dns_label(value: str) -> list[str]:
    """Return why a value is no RFC 1123 label (63 characters); empty when it is one."""
    problems = []
    if len(value) > 63:
        problems.append("must be no more than 63 characters")
    if not _LABEL.fullmatch(value):
        problems.append(_LABEL_TEXT)
    return problems


def dns_subdomain(value: str) -> list[str]:
    """Return why a value is no RFC 1123 subdomain (253 characters); empty when it is one."""
    problems = []
    if len(value) > 253:
        problems.append("must be no more than 253 characters")
    if not _SUBDOMAIN.fullmatch(value):
        problems.append(_SUBDOMAIN_TEXT)
    return problems


def dns_1035_label(value: str) -> list[str]:
    """Return why a value is no RFC 1035 label, which service names must be."""
    problems = []
    if len(value) > 63:
        problems.append("must be no more than 63 characters")
    if not _DNS1035.fullmatch(value):
        problems.append(_DNS1035_TEXT)
    return problems


def path_segment(value: str) -> list[str]:
    """Return why a value cannot stand in a URL path, the only rule for RBAC object names."""
    if value in {".", ".."} or _PATH_BAD.search(value):
        return ["may not be '.' or '..' and may not contain '/' or '%'"]
    return []


def qualified_name(value: str) -> list[str]:
    """Return why a value is no label key; empty when it is one."""
    prefix, slash, name = value.rpartition("/")
    problems = []
    if slash:
        if not prefix:
            problems.append("prefix part must be non-empty")
        else:
            problems.extend(f"prefix part {text}" for text in dns_subdomain(prefix))
    if not name:
        problems.append("name part must be non-empty")
    elif len(name) > 63:
        problems.append("name part must be no more than 63 characters")
    if not _QUALIFIED.fullmatch(name):
        problems.append(_QUALIFIED_TEXT)
    return problems


def label_value(value: str) -> list[str]:
    """Return why a value is no label value; empty when it is one."""
    problems = []
    if len(value) > 63:
        problems.append("must be no more than 63 characters")
    if value and not _QUALIFIED.fullmatch(value):
        problems.append(_VALUE_TEXT)
    return problems


def check_labels(labels: Any, field: str) -> list[StatusCause]:
    """Return the causes for bad label keys and values."""
    if labels is None:
        return []
    if not isinstance(labels, dict):
        return [bad_type(field, labels, "object", type(labels).__name__)]
    causes = []
    for key, value in labels.items():
        causes += [bad_value(field, key, text) for text in qualified_name(key)]
        if not isinstance(value, str):
            causes.append(bad_type(f"{field}.{key}", value, "string", type(value).__name__))
        else:
            causes += [bad_value(field, value, text) for text in label_value(value)]
    return causes


def check_annotations(annotations: Any, field: str) -> list[StatusCause]:
    """Return the causes for bad annotation keys and for annotations that are too big."""
    if not isinstance(annotations, Mapping):
        return []
    causes, total = [], 0
    for key, value in annotations.items():
        causes += [bad_value(field, key, text) for text in qualified_name(key.lower())]
        total += len(key.encode()) + len(str(value).encode())
    if total > ANNOTATIONS_LIMIT:
        causes.append(
            StatusCause(
                field=field,
                reason="FieldValueTooLong",
                message=f"Too long: may not be more than {ANNOTATIONS_LIMIT} bytes",
            )
        )
    return causes


def check_owner_references(owners: Any, field: str) -> list[StatusCause]:
    """Return the causes for incomplete owner references and for two controllers."""
    causes: list[StatusCause] = []
    controllers = []
    for index, owner in enumerate(owners or []):
        for key in ("apiVersion", "kind", "name", "uid"):
            if not owner.get(key):
                causes.append(
                    bad_value(f"{field}[{index}].{key}", owner.get(key, ""), "must not be empty")
                )
        if owner.get("controller"):
            controllers.append(owner.get("name"))
    if len(controllers) > 1:
        causes.append(
            bad_value(
                field,
                controllers,
                "Only one reference can have Controller set to true. "
                f"Found {len(controllers)}: {', '.join(map(str, controllers))}",
            )
        )
    return causes


def check_finalizers(finalizers: Any, field: str) -> list[StatusCause]:
    """Return the causes for finalizers that are no qualified names."""
    return [
        bad_value(field, item, text)
        for item in finalizers or []
        for text in qualified_name(str(item))
    ]


def check_metadata(metadata: Json, *, name_rule: Any = dns_subdomain) -> list[StatusCause]:
    """Return every cause in an object's metadata; `name_rule` is what its kind demands of names."""
    causes = []
    name = metadata.get("name")
    if not name:
        causes.append(required("metadata.name", "name or generateName is required"))
    else:
        causes += [bad_value("metadata.name", name, text) for text in name_rule(name)]
    causes += check_labels(metadata.get("labels"), "metadata.labels")
    causes += check_annotations(metadata.get("annotations"), "metadata.annotations")
    causes += check_owner_references(metadata.get("ownerReferences"), "metadata.ownerReferences")
    causes += check_finalizers(metadata.get("finalizers"), "metadata.finalizers")
    return causes
