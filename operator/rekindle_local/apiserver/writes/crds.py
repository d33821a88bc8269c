"""CustomResourceDefinitions: is one acceptable, and which resources does it add.

A CRD is compiled when it is written (schema checked for structure, rules compiled, paths parsed),
so that a bad one is refused with the place of the fault, and never fails later on somebody else's
write.
"""

from __future__ import annotations

import re
from typing import Any

from rekindle_local.apiserver import names
from rekindle_local.apiserver.errors import (
    Json,
    StatusCause,
    bad_value,
    duplicate,
    not_supported,
    required,
)
from rekindle_local.apiserver.registry import Column, Resource, ScalePaths
from rekindle_local.apiserver.schemas.rules import compile_rules
from rekindle_local.apiserver.schemas.schema import Schema, check_structural

CLEANUP = "customresourcecleanup.apiextensions.k8s.io"
"""The finalizer that keeps a CRD until its last object is gone."""

_SIMPLE_PATH = re.compile(r"(\.[A-Za-z_][A-Za-z0-9_]*)+")
_AGE = Column(
    name="Age",
    type="date",
    path=".metadata.creationTimestamp",
    description="CreationTimestamp is a timestamp representing the server time when this "
    "object was created.",
)


def check_crd(obj: Json, old: Json | None) -> list[StatusCause]:
    """Return the causes for a CRD that cannot be served; `old` is None on create."""
    spec = obj.get("spec") or {}
    own = spec.get("names") or {}
    causes: list[StatusCause] = []
    for key in ("plural", "kind"):
        if not own.get(key):
            causes.append(required(f"spec.names.{key}"))
    for key in ("plural", "singular"):
        if own.get(key):
            causes += [
                bad_value(f"spec.names.{key}", own[key], t) for t in names.dns_1035_label(own[key])
            ]
    if spec.get("scope") not in {"Namespaced", "Cluster"}:
        causes.append(not_supported("spec.scope", spec.get("scope", ""), ("Cluster", "Namespaced")))
    group = spec.get("group") or ""
    causes += [bad_value("spec.group", group, text) for text in names.dns_subdomain(group)]
    if "." not in group:
        causes.append(bad_value("spec.group", group, "should be a domain with at least one dot"))
    wanted = f"{own.get('plural')}.{group}"
    if obj["metadata"].get("name") != wanted:
        causes.append(
            bad_value(
                "metadata.name",
                obj["metadata"].get("name"),
                f'must be spec.names.plural+"."+spec.group ({wanted})',
            )
        )
    if old is not None:
        for path in (("group",), ("scope",), ("names", "plural"), ("names", "kind")):
            before: Any = old["spec"]
            after: Any = spec
            for part in path:
                before, after = before.get(part), after.get(part)
            if before != after:
                causes.append(bad_value("spec." + ".".join(path), after, "field is immutable"))
    if (spec.get("conversion") or {}).get("strategy") != "None":
        causes.append(
            not_supported("spec.conversion.strategy", spec["conversion"].get("strategy"), ("None",))
        )
    if spec.get("preserveUnknownFields"):
        causes.append(
            bad_value(
                "spec.preserveUnknownFields",
                True,
                "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in "
                "spec.versions[*].schema instead",
            )
        )
    versions = spec.get("versions") or []
    if not versions:
        causes.append(
            required("spec.versions", "must have exactly one version marked as storage version")
        )
    elif sum(bool(version.get("storage")) for version in versions) != 1:
        causes.append(
            bad_value(
                "spec.versions",
                [v.get("name") for v in versions],
                "must have exactly one version marked as storage version",
            )
        )
    seen: list[str] = []
    for at, version in enumerate(versions):
        where = f"spec.versions[{at}]"
        name = version.get("name") or ""
        causes += [bad_value(f"{where}.name", name, text) for text in names.dns_1035_label(name)]
        if name in seen:
            causes.append(duplicate(f"{where}.name", name))
        seen.append(name)
        causes += _check_version(version, where)
    return causes


def _check_version(version: Json, path: str) -> list[StatusCause]:
    schema = (version.get("schema") or {}).get("openAPIV3Schema")
    if schema is None:
        return [required(f"{path}.schema.openAPIV3Schema", "schemas are required")]
    where = f"{path}.schema.openAPIV3Schema"
    causes = check_structural(schema, where, root=True)
    if not causes:
        causes += compile_rules(schema, where)[1]
    subresources = version.get("subresources") or {}
    scale = subresources.get("scale")
    if scale is not None:
        for key, under in (
            ("specReplicasPath", ".spec."),
            ("statusReplicasPath", ".status."),
            ("labelSelectorPath", "."),
        ):
            text = scale.get(key) or ""
            if not text and key == "labelSelectorPath":
                continue
            if not _SIMPLE_PATH.fullmatch(text) or not text.startswith(under):
                causes.append(
                    bad_value(
                        f"{path}.subresources.scale.{key}",
                        text,
                        f"should be a json path under {under.rstrip('.') or 'the root'}, "
                        "without array notation",
                    )
                )
    for at, column in enumerate(version.get("additionalPrinterColumns") or []):
        where = f"{path}.additionalPrinterColumns[{at}]"
        for key in ("name", "type", "jsonPath"):
            if not column.get(key):
                causes.append(required(f"{where}.{key}"))
        if column.get("type") not in {"integer", "number", "string", "boolean", "date", None}:
            causes.append(
                not_supported(
                    f"{where}.type",
                    column["type"],
                    ("boolean", "date", "integer", "number", "string"),
                )
            )
        if column.get("jsonPath") and not column["jsonPath"].startswith("."):
            causes.append(
                bad_value(
                    f"{where}.jsonPath",
                    column["jsonPath"],
                    "is an invalid json path: must begin with .",
                )
            )
    for at, item in enumerate(version.get("selectableFields") or []):
        if not _SIMPLE_PATH.fullmatch(item.get("jsonPath") or ""):
            causes.append(
                bad_value(
                    f"{path}.selectableFields[{at}].jsonPath",
                    item.get("jsonPath"),
                    "must be a simple path such as .spec.field",
                )
            )
    if version.get("served") is None:
        causes.append(required(f"{path}.served"))
    return causes


def resources_of(crd: Json) -> list[Resource]:
    """Return one resource for each served version of an accepted CRD."""
    spec = crd["spec"]
    own = spec["names"]
    storage = next(version["name"] for version in spec["versions"] if version.get("storage"))
    rows = []
    for version in spec["versions"]:
        if not version.get("served"):
            continue
        subresources = version.get("subresources") or {}
        schema = version["schema"]["openAPIV3Schema"]
        rules, _ = compile_rules(schema, "")
        scale = subresources.get("scale")
        rows.append(
            Resource(
                group=spec["group"],
                version=version["name"],
                plural=own["plural"],
                singular=own.get("singular") or own["kind"].lower(),
                kind=own["kind"],
                list_kind=own.get("listKind") or f"{own['kind']}List",
                namespaced=spec["scope"] == "Namespaced",
                short_names=tuple(own.get("shortNames") or ()),
                categories=tuple(own.get("categories") or ()),
                subresources=tuple(name for name in ("status", "scale") if name in subresources),
                selectable=tuple(
                    item["jsonPath"].removeprefix(".")
                    for item in version.get("selectableFields") or ()
                ),
                generation=True,
                conditional_update=True,
                schema=Schema(root=schema),
                custom=True,
                rules=rules,
                columns=_columns(version),
                scale=None
                if scale is None
                else ScalePaths(
                    spec_replicas=scale["specReplicasPath"],
                    status_replicas=scale["statusReplicasPath"],
                    selector=scale.get("labelSelectorPath") or "",
                ),
                storage_version=storage,
            )
        )
    return rows


def _columns(version: Json) -> tuple[Column, ...]:
    columns = tuple(
        Column(
            name=item["name"],
            type=item["type"],
            path=item["jsonPath"],
            format=item.get("format") or "",
            description=item.get("description") or "",
            priority=item.get("priority") or 0,
        )
        for item in version.get("additionalPrinterColumns") or ()
    )
    return columns or (_AGE,)


def established(crd: Json, conflicts: list[str], at: str) -> Json:
    """Return the status of a CRD whose names are free, or taken as `conflicts` says."""
    free = not conflicts
    message = "no conflicts found" if free else "; ".join(conflicts)
    spec = crd["spec"]
    storage = next(version["name"] for version in spec["versions"] if version.get("storage"))
    old = crd.get("status") or {}
    stored = list(old.get("storedVersions") or [])
    before = {item["type"]: item for item in old.get("conditions") or []}
    conditions = [
        _condition("NamesAccepted", free, "NoConflicts" if free else "Conflict", message, at),
        _condition(
            "Established",
            free,
            "InitialNamesAccepted" if free else "NotAccepted",
            "the initial names have been accepted" if free else "not all names are accepted",
            at,
        ),
    ]
    for condition in conditions:
        was = before.get(condition["type"])
        if was is not None and was["status"] == condition["status"]:
            condition["lastTransitionTime"] = was["lastTransitionTime"]
    return {
        "conditions": conditions,
        "acceptedNames": spec["names"] if free else {"plural": "", "kind": ""},
        "storedVersions": stored if storage in stored else [*stored, storage],
    }


def _condition(kind: str, true: bool, reason: str, message: str, at: str) -> Json:
    return {
        "type": kind,
        "status": "True" if true else "False",
        "lastTransitionTime": at,
        "reason": reason,
        "message": message,
    }


def name_conflicts(crd: Json, others: list[Resource]) -> list[str]:
    """Return which names of a CRD another kind of its group has already."""
    own = crd["spec"]["names"]
    wanted = {own["plural"], own.get("singular") or "", *(own.get("shortNames") or [])} - {""}
    conflicts = []
    for other in others:
        if other.group != crd["spec"]["group"] or other.plural == own["plural"]:
            continue
        taken = wanted & {other.plural, other.singular, *other.short_names}
        conflicts += [f'"{name}" is already in use' for name in sorted(taken)]
        if own["kind"] in {other.kind, other.list_kind}:
            conflicts.append(f'"{own["kind"]}" is already in use')
    return conflicts
