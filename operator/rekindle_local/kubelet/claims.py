"""The volumes behind a pod's claims, as this node can give them: directories of this machine."""

from rekindle_local.client import Manifest
from rekindle_local.kubelet.environment import Sources
from rekindle_local.kubelet.host import Host
from rekindle_local.kubelet.volumes import VolumeError, claim_name, mounted

CLAIM = "PersistentVolumeClaim"


async def bound_volumes(host: Host, namespace: str, pod: Manifest) -> Sources:
    """The PersistentVolume of every claim that a pod mounts; raises VolumeError."""
    found: dict[tuple[str, str], Manifest | None] = {}
    for volume in mounted(pod):
        name = claim_name(pod, volume)
        if name is None:
            continue
        head = f'Unable to attach or mount volume "{volume["name"]}": '
        path = f"/api/v1/namespaces/{namespace}/persistentvolumeclaims/{name}"
        claim = await host.client.find(path)
        if claim is None:
            raise VolumeError(f'{head}persistentvolumeclaim "{name}" not found')
        if claim["metadata"].get("deletionTimestamp"):
            raise VolumeError(f'{head}persistentvolumeclaim "{name}" is being deleted')
        bound = claim["spec"].get("volumeName")
        if not bound or (claim.get("status") or {}).get("phase") != "Bound":
            raise VolumeError(f'{head}persistentvolumeclaim "{name}" is not bound')
        found[CLAIM, name] = await host.client.find(f"/api/v1/persistentvolumes/{bound}")
        if found[CLAIM, name] is None:
            raise VolumeError(f'{head}persistentvolume "{bound}" not found')
    return found
