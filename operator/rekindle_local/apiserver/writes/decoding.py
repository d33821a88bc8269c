"""From a body to an object of a resource: identity, unknown fields, types, defaults, validation.

The order is the real server's. Custom resources are read by the schema of their CRD, built-in kinds
by the Kubernetes schemas; both end in the same two outcomes: a 400 for what cannot be decoded (with
`fieldValidation=Strict` also for unknown and duplicate fields), a 422 with every cause for what can
and is not allowed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rekindle_local.apiserver import errors, names
from rekindle_local.apiserver.errors import Json, StatusCause
from rekindle_local.apiserver.kinds import builtins, models
from rekindle_local.apiserver.registry import Resource
from rekindle_local.apiserver.schemas.rules import check as check_rules
from rekindle_local.apiserver.schemas.schema import Schema, fill_defaults, prune, validate
from rekindle_local.apiserver.writes.crds import check_crd
from rekindle_local.apiserver.writes.options import WriteOptions


@dataclass(kw_only=True)
class Draft:
    """An object on its way into the store, with what was remarked about it."""

    body: Json
    warnings: list[str] = field(default_factory=list)


def decode(resource: Resource, namespace: str, body: Any, options: WriteOptions) -> Draft:
    """Turn a body into an object of the resource: identity, unknown fields, types, defaults."""
    if not isinstance(body, dict):
        raise errors.bad_request("the object provided is unrecognized: a JSON object is expected")
    body = dict(body)
    body.setdefault("apiVersion", resource.api_version)
    body.setdefault("kind", resource.kind)
    if body["kind"] != resource.kind:
        raise errors.bad_request(
            f"{body['kind']} in version {body['apiVersion']!r} cannot be handled as a "
            f"{resource.kind}"
        )
    if body["apiVersion"] != resource.api_version:
        raise errors.bad_request(
            f"the API version in the data ({body['apiVersion']}) does not match the expected "
            f"API version ({resource.api_version})"
        )
    metadata = body.get("metadata")
    if metadata is None:
        metadata = {}
    if not isinstance(metadata, dict):
        raise errors.bad_request(f"{resource.kind}: metadata must be an object")
    metadata = dict(metadata)
    if resource.namespaced:
        own = metadata.setdefault("namespace", namespace) or namespace
        metadata["namespace"] = own
        if own != namespace:
            raise errors.bad_request(
                "the namespace of the provided object does not match the namespace sent on "
                f"the request ({own} and {namespace})"
            )
    else:
        metadata.pop("namespace", None)
    body["metadata"] = metadata
    draft = Draft(body=body)
    unknown: list[str] = []
    if resource.custom:
        assert resource.schema is not None
        draft.body = prune(body, resource.schema, meta=models.object_meta(), unknown=unknown)
    else:
        draft.body = prune(body, model(resource), unknown=unknown)
    _report_unknown(resource, unknown, options, draft)
    if resource.custom:
        models.check_types(
            draft.body["metadata"],
            models.object_meta(),
            resource.kind,
            resource.version,
            "metadata",
        )
        draft.body["metadata"] = models.without_nulls(draft.body["metadata"])
        assert resource.schema is not None
        draft.body = fill_defaults(draft.body, resource.schema)
    else:
        models.check_types(draft.body, model(resource), resource.kind, resource.version)
        keep_nulls = resource.kind == "CustomResourceDefinition"
        draft.body = draft.body if keep_nulls else models.without_nulls(draft.body)
        draft.body = models.canonical_quantities(draft.body, model(resource))
        if resource.bucket:
            draft.body = builtins.to_api_version(draft.body, builtins.STORED[resource.kind])
    return draft


def model(resource: Resource) -> Schema:
    """Return the Kubernetes schema of a built-in resource."""
    return models.builtin(resource.group, resource.version, resource.kind)


def _report_unknown(
    resource: Resource, unknown: list[str], options: WriteOptions, draft: Draft
) -> None:
    texts = [f'duplicate field "{path}"' for path in options.duplicates]
    texts += [f'unknown field "{path}"' for path in unknown]
    if not texts or options.validation == "Ignore":
        return
    if options.validation == "Strict":
        raise errors.bad_request(
            f'{resource.kind} in version "{resource.version}" cannot be handled as a '
            f"{resource.kind}: strict decoding error: {', '.join(texts)}"
        )
    draft.warnings += texts


def check(resource: Resource, obj: Json, old: Json | None, *, metadata_only: bool = False) -> None:
    """Raise the 422 with every cause, or return; `metadata_only` is for a spec known to be good."""
    causes: list[StatusCause] = names.check_metadata(
        obj["metadata"],
        name_rule=builtins.name_rule(resource.kind) if not resource.custom else names.dns_subdomain,
    )
    if metadata_only:
        pass
    elif resource.custom:
        assert resource.schema is not None
        schema_causes = validate(obj, resource.schema)
        if resource.rules is not None and not resource.rules.empty():
            if schema_causes:
                schema_causes.append(
                    StatusCause(
                        field="<nil>",
                        reason="FieldValueInvalid",
                        message="Invalid value: null: some validation rules were not checked "
                        "because the object was invalid; correct the existing errors to "
                        "complete validation",
                    )
                )
            else:
                schema_causes = check_rules(resource.rules, obj, old)
        causes += schema_causes
        if resource.scale is not None and not schema_causes:
            value = dig(obj, resource.scale.spec_replicas)
            if isinstance(value, int) and value < 0:
                causes.append(
                    errors.bad_value(
                        resource.scale.spec_replicas.lstrip("."),
                        value,
                        "should be a non-negative integer",
                    )
                )
    elif resource.kind == "CustomResourceDefinition":
        causes += check_crd(obj, old)
    else:
        schema = model(resource)
        root = schema.resolve(schema.root)
        for key in ("spec", "roleRef", "rules"):
            inner = (root.get("properties") or {}).get(key)
            if inner is not None and key in obj:
                found = models.missing_fields(obj[key], inner, schema, key)
                causes += found
        own = builtins.check(resource.kind, obj, old)
        fields = {cause.field for cause in causes}
        causes += [cause for cause in own if cause.field not in fields]
    if causes:
        raise errors.invalid(resource.kind, resource.group, obj["metadata"].get("name", ""), causes)


def decode_config(
    resource: Resource, namespace: str, name: str, config: Any, options: WriteOptions
) -> Draft:
    """Decode an applied configuration: as any body, but without defaults, which nobody owns."""
    if not isinstance(config, dict):
        raise errors.bad_request("an applied configuration is an object")
    for key in ("apiVersion", "kind"):
        if not config.get(key):
            raise errors.bad_request(f"an applied configuration needs {key}")
    metadata = dict(config.get("metadata") or {})
    if metadata.get("managedFields"):
        raise errors.bad_request("metadata.managedFields must be nil")
    metadata.setdefault("name", name)
    body = {**config, "metadata": metadata}
    if metadata["name"] != name:
        raise errors.bad_request(
            f"the name of the object ({metadata['name']}) does not match the name on the URL "
            f"({name})"
        )
    draft = decode(resource, namespace, body, options)
    unknown: list[str] = []
    if resource.custom:
        assert resource.schema is not None
        draft.body = prune(body, resource.schema, meta=models.object_meta(), unknown=unknown)
    else:
        draft.body = models.without_nulls(prune(body, model(resource), unknown=unknown))
    return draft


def dig(obj: Any, path: str) -> Any:
    """Return the value at a simple path such as .spec.replicas, None when it is absent."""
    for part in path.strip(".").split("."):
        if not isinstance(obj, dict):
            return None
        obj = obj.get(part)
    return obj
