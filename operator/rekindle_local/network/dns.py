"""Names of services and pods: what a cluster's DNS would answer, as lines of /etc/hosts.

`records` is the rule, pure: a headless service has the addresses of its ready pods (of all with
publishNotReadyAddresses), and a pod with `hostname` and the service as `subdomain` a name below it.
A service with an address of its own is answered with that of one ready pod, because nothing here
forwards: its port has to be the pod's. `NameTable` keeps the records and tells those who wrote them
down when they have changed.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable

from rekindle_local.client import CollectionReflector, KubeClient, Manifest

logger = logging.getLogger(__name__)

DOMAIN = "svc.cluster.local"
_SETTLE = 0.01
"""Seconds in which several changes become one."""

Record = tuple[str, str, str]
"""Namespace, name in it, address."""


def records(services: Iterable[Manifest], pods: Iterable[Manifest]) -> list[Record]:
    """Every name that resolves, in order."""
    found: list[Record] = []
    alive = sorted(
        (pod for pod in pods if _address(pod)),
        key=lambda pod: (pod["metadata"]["namespace"], pod["metadata"]["name"]),
    )
    for service in services:
        meta, spec = service["metadata"], service.get("spec") or {}
        selector = spec.get("selector")
        if not selector or spec.get("type") == "ExternalName":
            continue
        unready = bool(spec.get("publishNotReadyAddresses"))
        behind = [
            pod
            for pod in alive
            if pod["metadata"]["namespace"] == meta["namespace"]
            and selector.items() <= (pod["metadata"].get("labels") or {}).items()
            and (unready or _is_ready(pod))
        ]
        if spec.get("clusterIP") != "None":
            behind = behind[:1]
        for pod in behind:
            found.append((meta["namespace"], meta["name"], _address(pod)))
            own = pod["spec"].get("hostname")
            if own and pod["spec"].get("subdomain") == meta["name"]:
                found.append((meta["namespace"], f"{own}.{meta['name']}", _address(pod)))
    return sorted(found)


def _address(pod: Manifest) -> str:
    status = pod.get("status") or {}
    over = status.get("phase") in ("Succeeded", "Failed")
    return "" if over else str(status.get("podIP") or "")


def _is_ready(pod: Manifest) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or ()
    ready = any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
    return ready and not pod["metadata"].get("deletionTimestamp")


def hosts_lines(found: Iterable[Record], namespace: str) -> str:
    """The records as a pod of a namespace may spell them."""
    lines = []
    for home, name, address in found:
        spellings = [f"{name}.{home}.{DOMAIN}", f"{name}.{home}.svc", f"{name}.{home}"]
        if home == namespace:
            spellings.append(name)
        lines.append(f"{address}\t{' '.join(spellings)}\n")
    return "".join(lines)


class NameTable:
    """The records of one cluster, kept up to date."""

    def __init__(self, client: KubeClient) -> None:
        self._pods = CollectionReflector(client, "/api/v1/pods", self._on_pod)
        self._services = CollectionReflector(client, "/api/v1/services", self._on_service)
        self._wake = asyncio.Event()
        self._seen: dict[str, object] = {}
        self._records: list[Record] = []
        self._subscribers: list[Callable[[], None]] = []

    async def run(self) -> None:
        """Follow services and pods until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._pods.run())
            group.create_task(self._services.run())
            group.create_task(self._loop())

    def lines(self, namespace: str) -> str:
        """What resolves now, for a pod of that namespace."""
        return hosts_lines(self._records, namespace)

    def subscribe(self, changed: Callable[[], None]) -> None:
        """Call `changed` after every change."""
        self._subscribers.append(changed)

    def unsubscribe(self, changed: Callable[[], None]) -> None:
        """Call it no more."""
        if changed in self._subscribers:
            self._subscribers.remove(changed)

    def _on_service(self, _kind: str, _service: Manifest) -> None:
        self._wake.set()

    def _on_pod(self, kind: str, pod: Manifest) -> None:
        """Most changes of a pod move no name."""
        meta = pod["metadata"]
        state = (_address(pod), _is_ready(pod), meta.get("labels")) if kind != "DELETED" else None
        if self._seen.get(meta["uid"]) == state:
            return
        if state is None:
            self._seen.pop(meta["uid"], None)
        else:
            self._seen[meta["uid"]] = state
        self._wake.set()

    async def _loop(self) -> None:
        while True:
            await self._wake.wait()
            await asyncio.sleep(_SETTLE)
            self._wake.clear()
            fresh = records(self._services.items.values(), self._pods.items.values())
            if fresh != self._records:
                self._records = fresh
                for changed in list(self._subscribers):
                    try:
                        changed()
                    except Exception:
                        # One pod's file must not end the names of all others.
                        logger.exception("names have changed, and one pod was not told")
