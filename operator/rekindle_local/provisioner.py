"""Claims and volumes: binds each claim to a volume, makes volumes of the class `standard`.

A volume of that class is a directory under the cluster's state directory, named after namespace and
claim, so that a claim that a later cluster on the same directory gets again has its files again;
deleting the claim deletes them (reclaim policy Delete). All nodes are one machine and share its
file system: every access mode holds, ReadWriteMany included, and no node is nearer than another.

A claim in use is not removed before its last pod is (finalizer kubernetes.io/pvc-protection). Every
step follows from what is stored, so it can be repeated and interrupted anywhere; `match` is pure.
"""

import asyncio
import logging
import shutil
from collections.abc import Awaitable, Iterable
from fractions import Fraction
from pathlib import Path

import aiohttp

from rekindle_local.client import (
    MERGE,
    STRATEGIC,
    CollectionReflector,
    KubeClient,
    Manifest,
    RequestError,
)
from rekindle_local.events import EventRecorder
from rekindle_local.quantity import parse_quantity
from rekindle_local.scheduling import constraints

NAME = "rekindle.dev/local-path"
PROTECTION = "kubernetes.io/pvc-protection"
CLASSES = "/apis/storage.k8s.io/v1/storageclasses"
STANDARD: Manifest = {
    "apiVersion": "storage.k8s.io/v1",
    "kind": "StorageClass",
    "metadata": {
        "name": "standard",
        "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
    },
    "provisioner": NAME,
    "reclaimPolicy": "Delete",
    "volumeBindingMode": "Immediate",
}
_VOLUMES = "/api/v1/persistentvolumes"
_RETRY = 1.0
_log = logging.getLogger(__name__)


def match(claim: Manifest, volumes: Iterable[Manifest]) -> Manifest | None:
    """The smallest free volume that gives what a claim asks for; its own, if it has one already."""
    spec = claim["spec"]
    wanted = _size(spec)
    found = []
    for volume in volumes:
        offered = volume["spec"]
        ref = offered.get("claimRef")
        if ref is not None and not _refers(ref, claim):
            continue
        if spec.get("volumeName") and spec["volumeName"] != volume["metadata"]["name"]:
            continue
        if (spec.get("storageClassName") or "") != (offered.get("storageClassName") or ""):
            continue
        if not set(spec.get("accessModes") or ()) <= set(offered.get("accessModes") or ()):
            continue
        if spec.get("volumeMode", "Filesystem") != offered.get("volumeMode", "Filesystem"):
            continue
        labels = volume["metadata"].get("labels") or {}
        if spec.get("selector") and not constraints.matches_labels(spec["selector"], labels):
            continue
        size = parse_quantity((offered.get("capacity") or {}).get("storage", "0"))
        if size >= wanted and not volume["metadata"].get("deletionTimestamp"):
            found.append((ref is None, size, volume["metadata"]["name"], volume))
    return min(found, key=lambda one: one[:3])[3] if found else None


def _size(spec: Manifest) -> Fraction:
    requests = (spec.get("resources") or {}).get("requests") or {}
    return parse_quantity(requests.get("storage", "0"))


def _refers(ref: Manifest, claim: Manifest) -> bool:
    meta = claim["metadata"]
    same = (ref.get("namespace"), ref.get("name")) == (meta["namespace"], meta["name"])
    return same and ref.get("uid") in (None, "", meta["uid"])


class Provisioner:
    """One for the whole cluster; `directory` is where its volumes are."""

    def __init__(self, client: KubeClient, directory: Path) -> None:
        self._client = client
        self._directory = directory
        self._events = EventRecorder(client, "persistentvolume-controller")
        self._wake = asyncio.Event()
        self._told: dict[str, str] = {}
        self._claims = CollectionReflector(
            client, "/api/v1/persistentvolumeclaims", self._on_change
        )
        self._volumes = CollectionReflector(client, _VOLUMES, self._on_change)
        self._classes = CollectionReflector(client, CLASSES, self._on_change)
        self._pods = CollectionReflector(client, "/api/v1/pods", self._on_pod)
        self._reflectors = (self._claims, self._volumes, self._classes, self._pods)

    async def run(self) -> None:
        """Bind, provision and reclaim until cancelled."""
        async with asyncio.TaskGroup() as group:
            for reflector in self._reflectors:
                group.create_task(reflector.run())
            group.create_task(self._events.run())
            group.create_task(self._loop())

    def _on_change(self, kind: str, item: Manifest) -> None:
        if kind == "DELETED":
            self._told.pop(item["metadata"]["uid"], None)
        self._wake.set()

    def _on_pod(self, _kind: str, pod: Manifest) -> None:
        if constraints.claims_of(pod):  # most pods have none, and change all the time
            self._wake.set()

    async def _loop(self) -> None:
        for reflector in self._reflectors:
            await reflector.synced.wait()
        while True:
            await self._wake.wait()
            self._wake.clear()
            if not await self._tick():
                asyncio.get_running_loop().call_later(_RETRY, self._wake.set)

    async def _tick(self) -> bool:
        """Bring everything one step on; False when something has to be tried again."""
        done = True
        for pod in list(self._pods.items.values()):
            done &= await self._attempt(self._make_ephemeral(pod))
        for claim in list(self._claims.items.values()):
            done &= await self._attempt(self._serve(claim))
        for volume in self._known():
            done &= await self._attempt(self._reclaim(volume))
        return done

    async def _attempt(self, work: Awaitable[None]) -> bool:
        try:
            await work
        except RequestError as error:
            if error.code not in (404, 409):  # gone or changed: the watch will tell
                _log.warning("volumes: %s", error)
                return False
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            _log.warning("volumes: %s", error)
            return False
        return True

    # --- claims ------------------------------------------------------------------------------

    async def _make_ephemeral(self, pod: Manifest) -> None:
        """Create the claims that a pod brings along; they go with it."""
        meta = pod["metadata"]
        for volume in pod["spec"].get("volumes") or ():
            template = (volume.get("ephemeral") or {}).get("volumeClaimTemplate")
            if template is None or meta.get("deletionTimestamp"):
                continue
            name = f"{meta['name']}-{volume['name']}"
            if self._claim(meta["namespace"], name) is not None:
                continue
            owner = {
                "apiVersion": "v1",
                "kind": "Pod",
                "name": meta["name"],
                "uid": meta["uid"],
                "controller": True,
                "blockOwnerDeletion": True,
            }
            metadata = {**(template.get("metadata") or {}), "name": name}
            metadata["ownerReferences"] = [owner]
            body = {"metadata": metadata, "spec": template.get("spec") or {}}
            await self._client.create(_claim_path(meta["namespace"]), body)

    def _claim(self, namespace: str, name: str) -> Manifest | None:
        for claim in self._claims.items.values():
            meta = claim["metadata"]
            if (meta["namespace"], meta["name"]) == (namespace, name):
                return claim
        return None

    async def _serve(self, claim: Manifest) -> None:
        meta, status = claim["metadata"], claim.get("status") or {}
        if meta.get("deletionTimestamp"):
            await self._unprotect(claim)
        elif status.get("phase") == "Bound":
            await self._check_bound(claim)
        elif volume := match(claim, self._known()):
            await self._bind(claim, volume)
        else:
            await self._provision(claim)

    def _users(self, claim: Manifest) -> list[Manifest]:
        meta = claim["metadata"]
        return [
            pod
            for pod in self._pods.items.values()
            if pod["metadata"]["namespace"] == meta["namespace"]
            and meta["name"] in constraints.claims_of(pod)
        ]

    async def _unprotect(self, claim: Manifest) -> None:
        meta = claim["metadata"]
        finalizers = list(meta.get("finalizers") or ())
        in_use = any(pod["spec"].get("nodeName") for pod in self._users(claim))
        if PROTECTION not in finalizers or in_use:
            return
        finalizers.remove(PROTECTION)
        body = {
            "metadata": {
                "resourceVersion": meta["resourceVersion"],
                "finalizers": finalizers or None,
            }
        }
        await self._client.patch(_claim_path(meta["namespace"], meta["name"]), body)

    async def _check_bound(self, claim: Manifest) -> None:
        name = claim["spec"].get("volumeName", "")
        known = any(one["metadata"]["name"] == name for one in self._known())
        if known or await self._client.find(f"{_VOLUMES}/{name}") is not None:
            return
        await self._set_phase(claim, {"phase": "Lost"})
        text = f"Bound claim has lost its PersistentVolume {name}. Its data is lost!"
        self._events.record(claim, "Warning", "ClaimLost", text)

    async def _bind(self, claim: Manifest, volume: Manifest) -> None:
        """Both sides say so; the volume first, so that no two claims can have it."""
        meta, name = claim["metadata"], volume["metadata"]["name"]
        ref = {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "namespace": meta["namespace"],
            "name": meta["name"],
            "uid": meta["uid"],
        }
        body = {
            "metadata": {"resourceVersion": volume["metadata"]["resourceVersion"]},
            "spec": {"claimRef": ref},
        }
        if (volume["spec"].get("claimRef") or {}).get("uid") != meta["uid"]:
            await self._client.patch(f"{_VOLUMES}/{name}", body)
        await self._set_volume_phase(name, "Bound")
        await self._client.patch(
            _claim_path(meta["namespace"], meta["name"]), {"spec": {"volumeName": name}}
        )
        status = {
            "phase": "Bound",
            "accessModes": volume["spec"].get("accessModes") or [],
            "capacity": volume["spec"].get("capacity") or {},
        }
        await self._set_phase(claim, status)

    async def _set_phase(self, claim: Manifest, status: Manifest) -> None:
        meta = claim["metadata"]
        path = _claim_path(meta["namespace"], meta["name"], "status")
        body = {"metadata": {"uid": meta["uid"]}, "status": status}
        await self._client.patch(path, body, MERGE)

    async def _set_volume_phase(self, name: str, phase: str) -> None:
        path = f"{_VOLUMES}/{name}/status"
        await self._client.patch(path, {"status": {"phase": phase}}, STRATEGIC)

    # --- volumes -----------------------------------------------------------------------------

    async def _provision(self, claim: Manifest) -> None:
        """Make a volume for a claim that no existing one serves, or say why there will be none."""
        spec = claim["spec"]
        class_name = spec.get("storageClassName") or ""
        if spec.get("volumeName") or spec.get("selector"):
            return  # it wants a certain volume, which may come yet
        if not class_name:
            self._tell(
                claim,
                "Normal",
                "FailedBinding",
                "no persistent volumes available for this claim and no storage class is set",
            )
            return
        found = next(
            (one for one in self._classes.items.values() if one["metadata"]["name"] == class_name),
            None,
        )
        if found is None:
            text = f'storageclass.storage.k8s.io "{class_name}" not found'
            self._tell(claim, "Warning", "ProvisioningFailed", text)
            return
        if found["provisioner"] != NAME:
            text = (
                "Waiting for a volume to be created either by the external provisioner "
                f"'{found['provisioner']}' or manually by the system administrator: "
                f"this cluster has {NAME} only"
            )
            self._tell(claim, "Normal", "ExternalProvisioning", text)
            return
        waits = found.get("volumeBindingMode") == "WaitForFirstConsumer"
        if waits and not self._users(claim):
            text = "waiting for first consumer to be created before binding"
            self._tell(claim, "Normal", "WaitForFirstConsumer", text)
            return
        if spec.get("volumeMode") == "Block":
            text = "a volume is a directory here: volumeMode Block cannot be provided"
            self._tell(claim, "Warning", "ProvisioningFailed", text)
            return
        await self._make(claim, found)

    async def _make(self, claim: Manifest, storage_class: Manifest) -> None:
        meta, spec = claim["metadata"], claim["spec"]
        path = self._directory / f"{meta['namespace']}_{meta['name']}"
        taken = [(one["spec"].get("hostPath") or {}).get("path") for one in self._known()]
        if str(path) in taken:  # of a claim of that name that is gone, its files not yet
            path = path.with_name(f"{path.name}_{meta['uid']}")
        await asyncio.to_thread(path.mkdir, mode=0o700, parents=True, exist_ok=True)
        name = f"pvc-{meta['uid']}"
        volume: Manifest = {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {
                "name": name,
                "annotations": {"pv.kubernetes.io/provisioned-by": NAME},
            },
            "spec": {
                "capacity": {"storage": spec["resources"]["requests"]["storage"]},
                "accessModes": spec["accessModes"],
                "persistentVolumeReclaimPolicy": storage_class.get("reclaimPolicy", "Delete"),
                "storageClassName": storage_class["metadata"]["name"],
                "hostPath": {"path": str(path), "type": "DirectoryOrCreate"},
                "claimRef": {
                    "apiVersion": "v1",
                    "kind": "PersistentVolumeClaim",
                    "namespace": meta["namespace"],
                    "name": meta["name"],
                    "uid": meta["uid"],
                },
            },
        }
        made = await self._client.create(_VOLUMES, volume)
        text = f"Successfully provisioned volume {name}"
        self._events.record(claim, "Normal", "ProvisioningSucceeded", text)
        await self._bind(claim, made)

    async def _reclaim(self, volume: Manifest) -> None:
        """Follow the claim of a volume: Available without one, released and removed after it."""
        name, spec = volume["metadata"]["name"], volume["spec"]
        phase = (volume.get("status") or {}).get("phase")
        ref = spec.get("claimRef")
        if ref is None or not ref.get("uid"):
            if phase != "Available":
                await self._set_volume_phase(name, "Available")
            return
        if ref["uid"] in self._claims.items:
            return
        claim = await self._client.find(_claim_path(ref["namespace"], ref["name"]))
        if claim is not None and claim["metadata"]["uid"] == ref["uid"]:
            return
        if phase != "Released":
            await self._set_volume_phase(name, "Released")
        provisioned = (volume["metadata"].get("annotations") or {}).get(
            "pv.kubernetes.io/provisioned-by"
        )
        if spec.get("persistentVolumeReclaimPolicy") != "Delete" or provisioned != NAME:
            return
        path = Path(spec["hostPath"]["path"])
        if path.parent == self._directory:
            await asyncio.to_thread(shutil.rmtree, path, ignore_errors=True)
        await self._client.delete(f"{_VOLUMES}/{name}")

    def _known(self) -> list[Manifest]:
        return list(self._volumes.items.values())

    def _tell(self, claim: Manifest, kind: str, reason: str, message: str) -> None:
        """An event, once as long as it stays true."""
        uid = claim["metadata"]["uid"]
        if self._told.get(uid) != message:
            self._told[uid] = message
            self._events.record(claim, kind, reason, message)


def _claim_path(namespace: str, name: str = "", subresource: str = "") -> str:
    path = f"/api/v1/namespaces/{namespace}/persistentvolumeclaims"
    return "/".join(part for part in (path, name, subresource) if part)
