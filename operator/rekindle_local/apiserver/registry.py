"""Which kinds are served, and what each of them can do.

A `Resource` is one (group, version, plural): discovery, routing, tables and operations all read it
and nothing else knows a list of kinds. Built-in kinds are rows of a table; a CRD adds its own rows
when it is established and takes them away when it is deleted. Two versions of one kind share a
bucket, so an object written through one is read through the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rekindle_local.apiserver.errors import Json, qualified
from rekindle_local.apiserver.schemas.rules import Rules
from rekindle_local.apiserver.schemas.schema import Schema

ALL_VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")

COMMON_FIELDS = ("metadata.name", "metadata.namespace")
"""What every resource can be selected by."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of the table form: a name, an OpenAPI type, and where the value is."""

    name: str
    type: str
    path: str
    format: str = ""
    description: str = ""
    priority: int = 0


@dataclass(frozen=True, kw_only=True)
class ScalePaths:
    """Where a custom resource keeps the numbers that its scale subresource shows."""

    spec_replicas: str
    status_replicas: str
    selector: str = ""


@dataclass(frozen=True, kw_only=True)
class Resource:
    """One served (group, version, plural)."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool
    singular: str = ""
    list_kind: str = ""
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    verbs: tuple[str, ...] = ALL_VERBS
    subresources: tuple[str, ...] = ()
    selectable: tuple[str, ...] = ()
    """Fields beyond `COMMON_FIELDS` that a field selector may name."""
    generation: bool = False
    """Whether `metadata.generation` counts changes of the desired state."""
    conditional_update: bool = False
    """Whether a PUT without resourceVersion is refused."""
    bucket: str = ""
    schema: Schema | None = field(default=None, compare=False)
    custom: bool = False
    rules: Rules | None = field(default=None, compare=False)
    columns: tuple[Column, ...] = ()
    scale: ScalePaths | None = None
    storage_version: str = ""

    @property
    def api_version(self) -> str:
        """The `apiVersion` of its objects."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def store(self) -> str:
        """The bucket its objects live in."""
        return self.bucket or qualified(self.plural, self.group)


POD_FIELDS = (
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.schedulerName",
    "spec.serviceAccountName",
    "spec.hostNetwork",
    "status.phase",
    "status.podIP",
    "status.nominatedNodeName",
)
EVENT_FIELDS = (
    *(f"involvedObject.{key}" for key in ("kind", "namespace", "name", "uid", "apiVersion")),
    "involvedObject.resourceVersion",
    "involvedObject.fieldPath",
    "reason",
    "reportingComponent",
    "source",
    "type",
)


def _row(group: str, version: str, plural: str, kind: str, **more: Any) -> Resource:
    return Resource(
        group=group,
        version=version,
        plural=plural,
        kind=kind,
        namespaced=more.pop("namespaced", True),
        singular=more.pop("singular", kind.lower()),
        list_kind=f"{kind}List",
        **more,
    )


_RBAC = "rbac.authorization.k8s.io"

BUILTIN: tuple[Resource, ...] = (
    _row("", "v1", "configmaps", "ConfigMap", short_names=("cm",)),
    _row("", "v1", "events", "Event", short_names=("ev",), selectable=EVENT_FIELDS),
    _row(
        "",
        "v1",
        "namespaces",
        "Namespace",
        namespaced=False,
        short_names=("ns",),
        subresources=("status",),
        selectable=("status.phase",),
        verbs=tuple(verb for verb in ALL_VERBS if verb != "deletecollection"),
    ),
    _row(
        "",
        "v1",
        "nodes",
        "Node",
        namespaced=False,
        short_names=("no",),
        subresources=("status",),
        selectable=("spec.unschedulable",),
    ),
    _row(
        "",
        "v1",
        "pods",
        "Pod",
        short_names=("po",),
        categories=("all",),
        generation=True,
        subresources=("status", "log", "binding", "eviction"),
        selectable=POD_FIELDS,
    ),
    _row("", "v1", "secrets", "Secret", selectable=("type",)),
    _row("", "v1", "serviceaccounts", "ServiceAccount", short_names=("sa",)),
    _row(
        "",
        "v1",
        "services",
        "Service",
        short_names=("svc",),
        categories=("all",),
        subresources=("status",),
        selectable=("spec.clusterIP", "spec.type"),
    ),
    _row(
        "",
        "v1",
        "persistentvolumeclaims",
        "PersistentVolumeClaim",
        short_names=("pvc",),
        subresources=("status",),
    ),
    _row(
        "",
        "v1",
        "persistentvolumes",
        "PersistentVolume",
        namespaced=False,
        short_names=("pv",),
        subresources=("status",),
    ),
    _row("", "v1", "limitranges", "LimitRange", short_names=("limits",)),
    _row(
        "",
        "v1",
        "resourcequotas",
        "ResourceQuota",
        short_names=("quota",),
        subresources=("status",),
    ),
    _row(
        "autoscaling",
        "v2",
        "horizontalpodautoscalers",
        "HorizontalPodAutoscaler",
        short_names=("hpa",),
        categories=("all",),
        subresources=("status",),
    ),
    _row(
        "autoscaling",
        "v1",
        "horizontalpodautoscalers",
        "HorizontalPodAutoscaler",
        short_names=("hpa",),
        categories=("all",),
        subresources=("status",),
        bucket="horizontalpodautoscalers.autoscaling",
    ),
    _row(
        "storage.k8s.io",
        "v1",
        "storageclasses",
        "StorageClass",
        namespaced=False,
        short_names=("sc",),
    ),
    _row(
        "apps",
        "v1",
        "deployments",
        "Deployment",
        short_names=("deploy",),
        categories=("all",),
        subresources=("status", "scale"),
        generation=True,
    ),
    _row("coordination.k8s.io", "v1", "leases", "Lease", conditional_update=True),
    _row(
        "events.k8s.io",
        "v1",
        "events",
        "Event",
        short_names=("ev",),
        bucket="events",
        selectable=(
            "regarding.kind",
            "regarding.namespace",
            "regarding.name",
            "regarding.uid",
            "reason",
            "reportingController",
            "type",
        ),
    ),
    _row(
        "networking.k8s.io",
        "v1",
        "ingresses",
        "Ingress",
        singular="ingress",
        short_names=("ing",),
        subresources=("status",),
        generation=True,
    ),
    _row(
        "networking.k8s.io",
        "v1",
        "ingressclasses",
        "IngressClass",
        namespaced=False,
        generation=True,
    ),
    _row(
        "networking.k8s.io",
        "v1",
        "networkpolicies",
        "NetworkPolicy",
        short_names=("netpol",),
        generation=True,
    ),
    _row(
        "policy",
        "v1",
        "poddisruptionbudgets",
        "PodDisruptionBudget",
        short_names=("pdb",),
        subresources=("status",),
        generation=True,
        conditional_update=True,
    ),
    _row(_RBAC, "v1", "clusterrolebindings", "ClusterRoleBinding", namespaced=False),
    _row(_RBAC, "v1", "clusterroles", "ClusterRole", namespaced=False),
    _row(_RBAC, "v1", "rolebindings", "RoleBinding"),
    _row(_RBAC, "v1", "roles", "Role"),
    _row(
        "scheduling.k8s.io",
        "v1",
        "priorityclasses",
        "PriorityClass",
        namespaced=False,
        short_names=("pc",),
    ),
    _row(
        "apiextensions.k8s.io",
        "v1",
        "customresourcedefinitions",
        "CustomResourceDefinition",
        namespaced=False,
        short_names=("crd", "crds"),
        categories=("api-extensions",),
        subresources=("status",),
        generation=True,
        conditional_update=True,
    ),
)
"""The built-in kinds that are stored. Requests that are only answered are in `REVIEWS`."""

REVIEWS: tuple[Resource, ...] = (
    _row(
        "authorization.k8s.io",
        "v1",
        "selfsubjectaccessreviews",
        "SelfSubjectAccessReview",
        namespaced=False,
        verbs=("create",),
    ),
    _row(
        "authorization.k8s.io",
        "v1",
        "selfsubjectrulesreviews",
        "SelfSubjectRulesReview",
        namespaced=False,
        verbs=("create",),
    ),
)
"""Kinds that are answered and never stored. Everything is allowed: there is no authorisation."""


class Registry:
    """The resources that are served now."""

    def __init__(self) -> None:
        self._resources: dict[tuple[str, str, str], Resource] = {}
        self._custom: dict[str, tuple[Resource, ...]] = {}
        for resource in (*BUILTIN, *REVIEWS):
            self._resources[(resource.group, resource.version, resource.plural)] = resource

    def find(self, group: str, version: str, plural: str) -> Resource | None:
        """Return the resource behind a path, or None."""
        return self._resources.get((group, version, plural))

    def find_kind(self, api_version: str, kind: str) -> Resource | None:
        """Return the resource of an object's apiVersion and kind, or None."""
        group, _, version = api_version.rpartition("/")
        for resource in self._resources.values():
            if (resource.group, resource.version, resource.kind) == (group, version, kind):
                return resource
        return None

    def by_bucket(self, bucket: str) -> Resource | None:
        """Return the resource whose version is the stored one, for a bucket."""
        found = None
        for resource in self._resources.values():
            if resource.store == bucket:
                if resource.storage_version in {"", resource.version} and not resource.bucket:
                    return resource
                found = found or resource
        return found

    def __iter__(self) -> Any:
        return iter(self._resources.values())

    def groups(self) -> Mapping[str, list[str]]:
        """Return the versions of each group, the preferred one first."""
        found: dict[str, list[str]] = {}
        for resource in self._resources.values():
            versions = found.setdefault(resource.group, [])
            if resource.version not in versions:
                versions.append(resource.version)
        return {group: sorted(found[group], key=version_priority) for group in sorted(found)}

    def in_version(self, group: str, version: str) -> list[Resource]:
        """Return the resources of one group version, by name."""
        rows = [r for r in self._resources.values() if (r.group, r.version) == (group, version)]
        return sorted(rows, key=lambda row: row.plural)

    def set_custom(self, crd_name: str, resources: Iterable[Resource]) -> None:
        """Serve exactly these versions for a CRD; none takes the CRD out of service."""
        for old in self._custom.pop(crd_name, ()):
            self._resources.pop((old.group, old.version, old.plural), None)
        rows = tuple(resources)
        for row in rows:
            self._resources[(row.group, row.version, row.plural)] = row
        if rows:
            self._custom[crd_name] = rows

    def custom(self, crd_name: str) -> tuple[Resource, ...]:
        """Return the resources that a CRD has registered."""
        return self._custom.get(crd_name, ())


def version_priority(version: str) -> tuple[int, int, int, str]:
    """Return the sort key of API versions: v2, v1, v2beta1, v1beta1, v1alpha1, then the rest."""
    name = version.removeprefix("v")
    for stage, rank in (("alpha", 2), ("beta", 1)):
        major, found, minor = name.partition(stage)
        if found and major.isdigit() and minor.isdigit():
            return (rank, -int(major), -int(minor), version)
    return (0, -int(name), 0, version) if name.isdigit() else (3, 0, 0, version)


def plain(obj: Json) -> Json:
    """Return an object without the fields that only bookkeeping touches, for comparisons."""
    metadata = {
        key: value
        for key, value in obj["metadata"].items()
        if key not in {"resourceVersion", "managedFields", "generation", "selfLink"}
    }
    return {**obj, "metadata": metadata}
