"""What a request does to objects: create, update, patch, delete and their subresources. No HTTP.

Every write runs through the same steps, in the real server's order: decode (unknown and duplicate
fields, types), defaults, the system's own metadata, validation, rules, and one `ObjectTable.put`.
All of it is synchronous, so that two requests can never interleave within a write; optimistic
locking is then a comparison.

A deletion is one of four things: removal at once, waiting for finalizers, waiting for a kubelet
(a pod that is bound and not finished), or waiting for a controller (namespaces, CRDs, foreground
and orphan propagation, see `garbage`).
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rekindle_local.apiserver import errors, names
from rekindle_local.apiserver.errors import Json, forbidden_field
from rekindle_local.apiserver.kinds import builtins
from rekindle_local.apiserver.kinds.admission import admit
from rekindle_local.apiserver.registry import Registry, Resource, plain
from rekindle_local.apiserver.selectors import Predicate
from rekindle_local.apiserver.storage import Key, ObjectTable, key_of
from rekindle_local.apiserver.writes.crds import CLEANUP, established, name_conflicts, resources_of
from rekindle_local.apiserver.writes.decoding import Draft, check, decode, decode_config, dig, model
from rekindle_local.apiserver.writes.options import (
    APPLY_PATCH,
    JSON_PATCH,
    MERGE_PATCH,
    STRATEGIC_PATCH,
    DeleteOptions,
    WriteOptions,
)
from rekindle_local.apiserver.writes.ownership import apply_owned, track_update
from rekindle_local.apiserver.writes.patches import json_patch, merge_patch, strategic_merge_patch

FOREGROUND = "foregroundDeletion"
ORPHAN = "orphan"

PROTECTED_NAMESPACES = ("default", "kube-system", "kube-node-lease")


@dataclass(frozen=True, kw_only=True)
class Written:
    """The outcome of a write."""

    object: Json
    created: bool = False
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Deleted:
    """The outcome of a delete: the last state, and whether it is gone already."""

    object: Json
    gone: bool


class ApiOperations:
    """The verbs of the API on the store."""

    def __init__(
        self, store: ObjectTable, registry: Registry, clock: Callable[[], float] = time.time
    ) -> None:
        self.store = store
        self.registry = registry
        self.clock = clock
        self._services = 0

    # --- reading --------------------------------------------------------------------------------

    def get(self, resource: Resource, namespace: str, name: str) -> Json:
        """Return one object in the version of the resource; raises 404."""
        return self._out(resource, self._stored(resource, namespace, name))

    def select(self, resource: Resource, namespace: str, matches: Predicate) -> list[Json]:
        """Return the matching objects in key order."""
        found = (self._out(resource, obj) for obj in self.store.select(resource.store, namespace))
        return [obj for obj in found if matches(obj)]

    def now(self) -> str:
        """Return the clock as a timestamp of the API."""
        return timestamp(self.clock())

    def _out(self, resource: Resource, obj: Json) -> Json:
        return builtins.to_api_version(obj, resource.api_version)

    def _stored(self, resource: Resource, namespace: str, name: str) -> Json:
        obj = self.store.get(resource.store, (namespace, name))
        if obj is None:
            raise errors.not_found(resource.plural, resource.group, name)
        return obj

    # --- creating -------------------------------------------------------------------------------

    def create(
        self, resource: Resource, namespace: str, body: Json, options: WriteOptions
    ) -> Written:
        """Store a new object."""
        draft = decode(resource, namespace, body, options)
        return self._create(resource, namespace, draft, options)

    def _create(
        self, resource: Resource, namespace: str, draft: Draft, options: WriteOptions
    ) -> Written:
        obj = draft.body
        metadata = dict(obj["metadata"])
        if metadata.get("resourceVersion"):
            raise errors.bad_request("resourceVersion should not be set on objects to be created")
        for key in (
            "uid",
            "selfLink",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "generation",
        ):
            metadata.pop(key, None)
        if not metadata.get("name") and metadata.get("generateName"):
            metadata["name"] = names.generated(metadata["generateName"])
        self._check_namespace(resource, namespace, metadata.get("name", ""))
        metadata["uid"] = str(uuid.uuid4())
        metadata["creationTimestamp"] = self.now()
        if resource.generation:
            metadata["generation"] = 1
        obj = {**obj, "metadata": metadata}
        if resource.custom:
            if "status" in resource.subresources:
                obj.pop("status", None)
        else:
            obj = builtins.fill_defaults(resource.kind, obj)
            obj = builtins.start(resource.kind, obj, self.now())
            obj = self._assign(resource, obj)
        check(resource, obj, None)
        obj = admit(self.store, resource.plural, resource.group, obj)
        if self.store.get(resource.store, key_of(obj)) is not None:
            raise errors.already_exists(resource.plural, resource.group, metadata["name"])
        if resource.kind == "CustomResourceDefinition" and not resource.custom:
            obj = self._establish(obj)
        if not options.dry_run:
            obj = self.store.put(resource.store, obj)
            self._serve(resource, obj)
            if resource.kind == "Namespace" and not resource.custom:
                self._give_account(metadata["name"])
        return Written(
            object=self._out(resource, obj), created=True, warnings=tuple(draft.warnings)
        )

    def _assign(self, resource: Resource, obj: Json) -> Json:
        """Fill what only the server can know: a service's address."""
        spec = obj.get("spec") or {}
        if (
            resource.kind == "Service"
            and not spec.get("clusterIP")
            and spec["type"] != "ExternalName"
        ):
            self._services += 1
            high, low = divmod(self._services, 250)
            spec = {**spec, "clusterIP": f"10.96.{high % 250}.{low + 1}"}
        if resource.kind == "Service" and spec.get("clusterIP"):
            spec = {**spec, "clusterIPs": [spec["clusterIP"]]}
        return {**obj, "spec": spec} if spec else obj

    def _give_account(self, namespace: str) -> None:
        """Create the service account that every namespace has."""
        accounts = self.registry.find("", "v1", "serviceaccounts")
        assert accounts is not None
        self.create(accounts, namespace, {"metadata": {"name": "default"}}, WriteOptions())

    def _check_namespace(self, resource: Resource, namespace: str, name: str) -> None:
        if not resource.namespaced:
            return
        home = self.store.get("namespaces", ("", namespace))
        if home is None:
            raise errors.not_found("namespaces", "", namespace)
        if home["metadata"].get("deletionTimestamp"):
            text = (
                f"unable to create new content in namespace {namespace} because it is being "
                "terminated"
            )
            raise errors.forbidden(
                resource.plural,
                resource.group,
                name,
                text,
                [
                    {
                        "reason": "NamespaceTerminating",
                        "message": f"namespace {namespace} is being terminated",
                        "field": "metadata.namespace",
                    }
                ],
            )

    # --- updating -------------------------------------------------------------------------------

    def update(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        body: Json,
        options: WriteOptions,
        subresource: str = "",
    ) -> Written:
        """Replace an object, or its status when `subresource` is status."""
        draft = decode(resource, namespace, body, options)
        given = draft.body["metadata"].get("name")
        if given != name:
            raise errors.bad_request(
                f"the name of the object ({given}) does not match the name on the URL ({name})"
            )
        old = self.store.get(resource.store, (namespace if resource.namespaced else "", name))
        if old is None and resource.plural in {"leases", "events"} and not subresource:
            draft.body["metadata"].pop("resourceVersion", None)
            return self._create(resource, namespace, draft, options)
        if old is None:
            raise errors.not_found(resource.plural, resource.group, name)
        if resource.conditional_update and not draft.body["metadata"].get("resourceVersion"):
            raise errors.invalid(
                resource.kind,
                resource.group,
                name,
                [
                    errors.bad_value(
                        "metadata.resourceVersion", 0, "must be specified for an update"
                    )
                ],
            )
        return self._replace(resource, old, draft, options, subresource)

    def patch(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        kind: str,
        patch: Any,
        options: WriteOptions,
        subresource: str = "",
    ) -> Written:
        """Change an object by a patch; raises 415 for a media type the kind does not take."""
        key = (namespace if resource.namespaced else "", name)
        if kind == APPLY_PATCH:
            return self._apply(resource, namespace, name, patch, options, subresource)
        stored = self._stored(resource, *key)
        current = self._out(resource, stored)
        if kind == JSON_PATCH:
            body = json_patch(current, patch)
        elif kind == MERGE_PATCH:
            body = merge_patch(current, patch)
        elif kind == STRATEGIC_PATCH and not resource.custom:
            schema = model(resource)
            body = strategic_merge_patch(current, patch, schema.root, schema.resolve)
        else:
            allowed = [JSON_PATCH, MERGE_PATCH, APPLY_PATCH]
            if not resource.custom:
                allowed.insert(2, STRATEGIC_PATCH)
            raise errors.unsupported_media_type(kind, allowed)
        draft = decode(resource, namespace, body, options)
        if draft.body["metadata"].get("name") != name:
            raise errors.invalid(
                resource.kind,
                resource.group,
                name,
                [
                    errors.bad_value(
                        "metadata.name", draft.body["metadata"].get("name"), "field is immutable"
                    )
                ],
            )
        return self._replace(resource, stored, draft, options, subresource)

    def _apply(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        config: Any,
        options: WriteOptions,
        subresource: str,
    ) -> Written:
        draft = decode_config(resource, namespace, name, config, options)
        key = (namespace if resource.namespaced else "", name)
        stored = self.store.get(resource.store, key)
        if stored is None and subresource:
            raise errors.not_found(resource.plural, resource.group, name)
        schema = resource.schema if resource.custom else model(resource)
        assert schema is not None
        current = None if stored is None else self._out(resource, stored)
        merged = apply_owned(
            current,
            draft.body,
            schema,
            manager=options.manager,
            force=options.force,
            subresource=subresource,
            now=self.now(),
        )
        fields = merged["metadata"].pop("managedFields")
        full = decode(resource, namespace, merged, options)
        full.warnings = draft.warnings
        full.body["metadata"]["managedFields"] = fields
        if stored is None:
            full.body["metadata"].pop("resourceVersion", None)
            return self._create(resource, namespace, full, options)
        return self._replace(resource, stored, full, options, subresource, tracked=True)

    def _replace(
        self,
        resource: Resource,
        old: Json,
        draft: Draft,
        options: WriteOptions,
        subresource: str,
        *,
        tracked: bool = False,
    ) -> Written:
        body, was = draft.body, old["metadata"]
        given = body["metadata"]
        name = was["name"]
        if given.get("uid") and given["uid"] != was["uid"]:
            raise errors.conflict(
                resource.plural,
                resource.group,
                name,
                _unmet("UID", given["uid"], was["uid"]),
            )
        if given.get("resourceVersion") and given["resourceVersion"] != was["resourceVersion"]:
            raise errors.stale(resource.plural, resource.group, name)
        metadata = {**given}
        for key in (
            "uid",
            "creationTimestamp",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "generation",
            "resourceVersion",
            "selfLink",
        ):
            metadata.pop(key, None)
            if key in was:
                metadata[key] = was[key]
        if not tracked:
            metadata.pop("managedFields", None)
            if was.get("managedFields"):
                metadata["managedFields"] = was["managedFields"]
        storage = old["apiVersion"]
        new = {**body, "apiVersion": storage, "metadata": metadata}
        new = self._confine(resource, old, new, subresource)
        # Through its status endpoint a built-in object keeps the spec that was checked before.
        checked = subresource == "status" and not resource.custom
        if not resource.custom and not checked:
            new = builtins.fill_defaults(resource.kind, new)
        self._check_finalizers(resource, old, new)
        if resource.generation and desired(new) != desired(old):
            new["metadata"] = {**new["metadata"], "generation": was.get("generation", 1) + 1}
        check(resource, new, old, metadata_only=checked)
        if resource.kind == "CustomResourceDefinition" and not resource.custom:
            new = self._establish(new)
        if not tracked and was.get("managedFields"):
            schema = resource.schema if resource.custom else model(resource)
            assert schema is not None
            new["metadata"] = {
                **new["metadata"],
                "managedFields": track_update(
                    old,
                    new,
                    schema,
                    manager=options.manager,
                    subresource=subresource,
                    now=self.now(),
                ),
            }
        warnings = tuple(draft.warnings)
        if plain(new) == plain(old) and new["metadata"].get("managedFields") == was.get(
            "managedFields"
        ):
            return Written(object=self._out(resource, old), warnings=warnings)
        if options.dry_run:
            return Written(object=self._out(resource, new), warnings=warnings)
        return Written(object=self._out(resource, self.commit(resource, new)), warnings=warnings)

    def commit(self, resource: Resource, new: Json) -> Json:
        """Store a changed object, or remove it when nothing holds its deletion any more."""
        metadata = new["metadata"]
        if (
            metadata.get("deletionTimestamp")
            and not metadata.get("finalizers")
            and not metadata.get("deletionGracePeriodSeconds")
            and not (resource.kind == "Namespace" and (new.get("spec") or {}).get("finalizers"))
        ):
            final = self.store.remove(resource.store, key_of(new), last=new)
            self._unserve(resource, final)
            return final
        stored = self.store.put(resource.store, new)
        self._serve(resource, stored)
        return stored

    def _confine(self, resource: Resource, old: Json, new: Json, subresource: str) -> Json:
        """Keep a write to what its endpoint may change: the status, or everything else."""
        if "status" not in resource.subresources:
            return new
        if subresource == "status":
            kept = {key: value for key, value in old.items() if key != "status"}
            if not resource.custom:
                # The status endpoints of built-in kinds let labels and annotations through.
                changed = {
                    k: new["metadata"][k]
                    for k in ("labels", "annotations", "finalizers")
                    if k in new["metadata"]
                }
                rest = {
                    k: v
                    for k, v in old["metadata"].items()
                    if k not in {"labels", "annotations", "finalizers"}
                }
                kept["metadata"] = {**rest, **changed}
            if "managedFields" in new["metadata"]:
                kept["metadata"] = {
                    **kept["metadata"],
                    "managedFields": new["metadata"]["managedFields"],
                }
            return {**kept, "status": new["status"]} if "status" in new else kept
        rest = {key: value for key, value in new.items() if key != "status"}
        return {**rest, "status": old["status"]} if "status" in old else rest

    def _check_finalizers(self, resource: Resource, old: Json, new: Json) -> None:
        if not old["metadata"].get("deletionTimestamp"):
            return
        before = old["metadata"].get("finalizers") or []
        added = [item for item in new["metadata"].get("finalizers") or [] if item not in before]
        if added:
            raise errors.invalid(
                resource.kind,
                resource.group,
                new["metadata"]["name"],
                [
                    forbidden_field(
                        "metadata.finalizers",
                        "no new finalizers can be added if the object is being deleted, "
                        f"found new finalizers {added}",
                    )
                ],
            )

    # --- deleting -------------------------------------------------------------------------------

    def delete(
        self, resource: Resource, namespace: str, name: str, options: DeleteOptions
    ) -> Deleted:
        """Delete an object, or begin to."""
        key: Key = (namespace if resource.namespaced else "", name)
        obj = self._stored(resource, *key)
        metadata = obj["metadata"]
        if options.uid and options.uid != metadata["uid"]:
            raise errors.conflict(
                resource.plural,
                resource.group,
                name,
                _unmet("UID", options.uid, metadata["uid"]),
            )
        if options.resource_version and options.resource_version != metadata["resourceVersion"]:
            raise errors.conflict(
                resource.plural,
                resource.group,
                name,
                _unmet("ResourceVersion", options.resource_version, metadata["resourceVersion"]),
            )
        if resource.kind == "Namespace" and name in PROTECTED_NAMESPACES:
            raise errors.forbidden("namespaces", "", name, "this namespace may not be deleted")
        if options.propagation not in {None, "Background", "Foreground", "Orphan"}:
            raise errors.invalid(
                "DeleteOptions",
                "",
                "",
                [
                    errors.not_supported(
                        "propagationPolicy",
                        options.propagation,
                        ("Background", "Foreground", "Orphan"),
                    )
                ],
            )
        finalizers = self._delete_finalizers(resource, obj, options)
        grace = self._grace(resource, obj, options)
        if not finalizers and not grace:
            if not options.dry_run:
                obj = self.store.remove(resource.store, key)
                self._unserve(resource, obj)
            return Deleted(object=self._out(resource, obj), gone=True)
        marked = self._marked(resource, obj, finalizers, grace)
        if plain(marked) == plain(obj) or options.dry_run:
            return Deleted(object=self._out(resource, obj), gone=False)
        stored = self.commit(resource, marked)
        return Deleted(object=self._out(resource, stored), gone=False)

    def _delete_finalizers(
        self, resource: Resource, obj: Json, options: DeleteOptions
    ) -> list[str]:
        finalizers = list(obj["metadata"].get("finalizers") or [])
        if obj["metadata"].get("deletionTimestamp"):
            return finalizers if not self._waits(resource, obj) else [*finalizers, ""]
        if options.propagation is not None:
            finalizers = [item for item in finalizers if item not in {FOREGROUND, ORPHAN}]
            extra = {"Foreground": FOREGROUND, "Orphan": ORPHAN}.get(options.propagation)
            finalizers += [extra] if extra else []
        if resource.kind == "CustomResourceDefinition" and CLEANUP not in finalizers:
            finalizers.append(CLEANUP)
        return [*finalizers, ""] if self._waits(resource, obj) else finalizers

    def _waits(self, resource: Resource, obj: Json) -> bool:
        """Tell whether a namespace still waits to be emptied; its finalizer is in its spec."""
        return resource.kind == "Namespace" and bool((obj.get("spec") or {}).get("finalizers"))

    def _grace(self, resource: Resource, obj: Json, options: DeleteOptions) -> int:
        """Return the seconds a pod has left to stop; other kinds have none."""
        if resource.kind != "Pod" or resource.custom:
            return 0
        spec, phase = obj.get("spec") or {}, (obj.get("status") or {}).get("phase")
        if not spec.get("nodeName") or phase in {"Succeeded", "Failed"}:
            return 0
        wanted = options.grace_seconds
        if wanted is None:
            wanted = int(spec.get("terminationGracePeriodSeconds", 30))
        return 1 if wanted < 0 else wanted

    def _marked(self, resource: Resource, obj: Json, finalizers: list[str], grace: int) -> Json:
        metadata = dict(obj["metadata"])
        finalizers = [item for item in finalizers if item]
        if finalizers:
            metadata["finalizers"] = finalizers
        else:
            metadata.pop("finalizers", None)
        if not metadata.get("deletionTimestamp"):
            metadata["deletionTimestamp"] = timestamp(self.clock() + grace)
            metadata["deletionGracePeriodSeconds"] = grace
            if metadata.get("generation"):
                metadata["generation"] += 1
        elif grace < (before := metadata.get("deletionGracePeriodSeconds") or 0):
            # Once begun, the time to stop can only be shortened; it counts from the first request.
            ends = datetime.fromisoformat(metadata["deletionTimestamp"]).timestamp()
            metadata["deletionTimestamp"] = timestamp(ends - before + grace)
            metadata["deletionGracePeriodSeconds"] = grace
        marked = {**obj, "metadata": metadata}
        if resource.kind == "Namespace":
            marked["status"] = {**(obj.get("status") or {}), "phase": "Terminating"}
        if resource.kind == "CustomResourceDefinition":
            status = dict(obj.get("status") or {})
            status["conditions"] = [
                *(c for c in status.get("conditions") or [] if c["type"] != "Terminating"),
                {
                    "type": "Terminating",
                    "status": "True",
                    "reason": "InstanceDeletionPending",
                    "message": "marked for deletion; its custom resources are deleted first",
                    "lastTransitionTime": self.now(),
                },
            ]
            marked["status"] = status
        return marked

    # --- custom resource definitions ------------------------------------------------------------

    def _establish(self, crd: Json) -> Json:
        conflicts = name_conflicts(crd, list(self.registry))
        old = [
            c
            for c in (crd.get("status") or {}).get("conditions") or []
            if c["type"] == "Terminating"
        ]
        status = established(crd, conflicts, self.now())
        status["conditions"] += old
        return {**crd, "status": status}

    def _serve(self, resource: Resource, obj: Json) -> None:
        if resource.kind != "CustomResourceDefinition" or resource.custom:
            return
        accepted = any(
            item["type"] == "Established" and item["status"] == "True"
            for item in obj["status"]["conditions"]
        )
        self.registry.set_custom(obj["metadata"]["name"], resources_of(obj) if accepted else ())

    def _unserve(self, resource: Resource, obj: Json) -> None:
        if resource.kind == "CustomResourceDefinition" and not resource.custom:
            self.registry.set_custom(obj["metadata"]["name"], ())

    # --- scale ----------------------------------------------------------------------------------

    def scale(self, resource: Resource, namespace: str, name: str) -> Json:
        """Return the Scale of an object."""
        return self._scale_of(resource, self.get(resource, namespace, name))

    def _scale_of(self, resource: Resource, obj: Json) -> Json:
        metadata = obj["metadata"]
        keep = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
        if resource.scale is not None:
            paths = resource.scale
            replicas = dig(obj, paths.spec_replicas)
            current = dig(obj, paths.status_replicas)
            selector = dig(obj, paths.selector) if paths.selector else None
        else:
            replicas = dig(obj, ".spec.replicas")
            current = dig(obj, ".status.replicas")
            labels = dig(obj, ".spec.selector.matchLabels") or {}
            selector = ",".join(f"{key}={value}" for key, value in sorted(labels.items()))
        status: Json = {"replicas": current if isinstance(current, int) else 0}
        if isinstance(selector, str) and selector:
            status["selector"] = selector
        return {
            "kind": "Scale",
            "apiVersion": "autoscaling/v1",
            "metadata": {key: metadata[key] for key in keep if key in metadata},
            "spec": {"replicas": replicas} if isinstance(replicas, int) else {},
            "status": status,
        }

    def set_scale(
        self, resource: Resource, namespace: str, name: str, body: Any, options: WriteOptions
    ) -> Json:
        """Write the number of replicas from a Scale, and nothing else."""
        old = self._stored(resource, namespace, name)
        if not isinstance(body, dict) or body.get("kind", "Scale") != "Scale":
            raise errors.bad_request("the object provided is no autoscaling/v1 Scale")
        replicas = (body.get("spec") or {}).get("replicas", 0)
        if not isinstance(replicas, int) or isinstance(replicas, bool) or replicas < 0:
            raise errors.invalid(
                "Scale",
                "autoscaling",
                name,
                [errors.bad_value("spec.replicas", replicas, "must be greater than or equal to 0")],
            )
        current = self._out(resource, old)
        path = resource.scale.spec_replicas if resource.scale else ".spec.replicas"
        changed = planted(current, path, replicas)
        given = (body.get("metadata") or {}).get("resourceVersion")
        changed["metadata"] = {
            **changed["metadata"],
            "resourceVersion": given or old["metadata"]["resourceVersion"],
        }
        draft = decode(resource, namespace, changed, options)
        written = self._replace(resource, old, draft, options, "")
        return self._scale_of(resource, written.object)

    def patch_scale(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        kind: str,
        patch: Any,
        options: WriteOptions,
    ) -> Json:
        """Patch the Scale of an object."""
        current = self.scale(resource, namespace, name)
        if kind == JSON_PATCH:
            body = json_patch(current, patch)
        elif kind in {MERGE_PATCH, STRATEGIC_PATCH}:
            # A Scale holds no list, so both merges are the same.
            body = merge_patch(current, patch)
        else:
            raise errors.unsupported_media_type(kind, [JSON_PATCH, MERGE_PATCH])
        return self.set_scale(resource, namespace, name, body, options)

    # --- pods -----------------------------------------------------------------------------------

    def bind(self, namespace: str, name: str, body: Json, options: WriteOptions) -> None:
        """Put a pod on the node that a Binding names; a bound pod cannot be bound again."""
        pods = self._pods()
        node = ((body.get("target") or {}).get("name")) or ""
        if not node:
            raise errors.invalid("Binding", "", name, [errors.required("target.name")])
        pod = self._stored(pods, namespace, name)
        if pod["metadata"].get("deletionTimestamp"):
            raise errors.conflict(
                "pods/binding",
                "",
                name,
                f"pod {name} is being deleted, cannot be assigned to a host",
            )
        if pod["spec"].get("nodeName"):
            raise errors.conflict(
                "pods/binding",
                "",
                name,
                f"pod {name} is already assigned to node {pod['spec']['nodeName']!r}",
            )
        status = dict(pod.get("status") or {})
        status["conditions"] = [
            *(c for c in status.get("conditions") or [] if c["type"] != "PodScheduled"),
            {
                "type": "PodScheduled",
                "status": "True",
                "lastProbeTime": None,
                "lastTransitionTime": self.now(),
            },
        ]
        bound = {**pod, "spec": {**pod["spec"], "nodeName": node}, "status": status}
        if not options.dry_run:
            self.store.put(pods.store, bound)

    def _pods(self) -> Resource:
        pods = self.registry.find("", "v1", "pods")
        assert pods is not None
        return pods


def _unmet(what: str, wanted: str, found: str) -> str:
    return f"Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {found}"


def desired(obj: Json) -> Json:
    """Return the part of an object whose changes count as a new generation."""
    return {
        key: value
        for key, value in obj.items()
        if key not in {"metadata", "status", "apiVersion", "kind"}
    }


def timestamp(seconds: float) -> str:
    """Return seconds since the epoch as the API writes times."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def planted(obj: Json, path: str, value: Any) -> Json:
    """Return an object with a value at a simple path."""
    first, _, rest = path.lstrip(".").partition(".")
    if not rest:
        return {**obj, first: value}
    return {**obj, first: planted(obj.get(first) or {}, rest, value)}
