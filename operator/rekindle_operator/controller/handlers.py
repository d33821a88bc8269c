"""What feeds the controller: kopf's watch of jobs, and a reflector for each kind around them.

kopf finds the definition of TrainingJob whenever it comes, and tells of jobs. Only ``on.event`` is
used. It keeps no annotations on the objects and no finalizers (children go with their owner), costs
no request of its own, and is the fastest of kopf's ways; retries are the controller's.

What is around the jobs comes by reflectors (see `reflectors`): kopf does not tell when everything
was listed, nor what was deleted while its watch was interrupted, and takes all pods of a cluster in
to give away ours.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import kopf

from rekindle.api import GROUP, PLURAL, VERSION
from rekindle_operator.controller.controller import Controller
from rekindle_operator.kube.cluster import KubernetesApi
from rekindle_operator.kube.reflectors import Listener, Reflector


def listeners(controller: Controller, *, watch_nodes: bool) -> list[Listener]:
    """Who is told of what there is around the jobs; nodes last: pods tell which of them count."""
    pods = Listener(
        kind="Pod",
        take=partial(_hand_over, controller, "pod", controller.pod_event),
        key=_uid,
        known=controller.known_pods,
        trouble=controller.obstacle,
    )
    nodes = Listener(
        kind="Node",
        take=partial(_hand_over, controller, "node", controller.node_event),
        key=_name,
        known=controller.known_nodes,
        trouble=controller.obstacle,
    )
    return [pods, nodes] if watch_nodes else [pods]


async def follow(
    controller: Controller, cluster: KubernetesApi, *, namespaces: Sequence[str], watch_nodes: bool
) -> None:
    """Follow everything around the jobs until cancelled; no namespaces: all of them."""
    async with asyncio.TaskGroup() as group:
        for listener in listeners(controller, watch_nodes=watch_nodes):
            where = ("",) if listener.kind == "Node" else namespaces or ("",)
            found = [Reflector(cluster, listener, namespace) for namespace in where]
            for reflector in found:
                group.create_task(reflector.run(), name=f"watch of {listener.kind}")
            for reflector in found:
                await reflector.listed.wait()
        controller.listed.set()


def _hand_over(
    controller: Controller,
    what: str,
    take: Callable[[str | None, Mapping[str, Any]], None],
    kind: str | None,
    body: Mapping[str, Any],
) -> None:
    try:
        take(kind, body)
    except Exception as error:  # it would be logged, and nobody else would know
        controller.event_failed(what, body, error)


def _name(body: Mapping[str, Any]) -> str:
    return str(body["metadata"]["name"])


def _uid(body: Mapping[str, Any]) -> str:
    return str(body["metadata"]["uid"])


def register(controller: Controller) -> kopf.OperatorRegistry:
    """Make a registry whose handlers feed a controller."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry, id="login")
    async def login(**kwargs: Any) -> Any:
        return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=registry, id="job")
    async def job(type: str | None, body: kopf.Body, **_: Any) -> None:
        _hand_over(controller, "job", controller.job_event, type, body)

    return registry


def settings(*, clusterwide: bool) -> kopf.OperatorSettings:
    """How kopf is to behave.

    Scanning for namespaces and definitions needs rights on the whole cluster; an operator of named
    namespaces has none, and would try for a minute before it watches anything.

    An event waits for nothing on its way: kopf gathers none before it calls a handler (it did so
    for 0.1 s before 1.45), and only a task per object that was heard of lately stays behind.
    """
    chosen = kopf.OperatorSettings()
    chosen.scanning.disabled = not clusterwide
    chosen.posting.enabled = False  # our events are about jobs, not about handlers
    chosen.networking.request_timeout = 30
    chosen.networking.error_backoffs = (0.1, 0.5, 1, 2, 5, 10, 10, 30)
    # Each object that an event was about keeps a worker for a while; an end waits for them.
    chosen.queueing.idle_timeout = 0.5
    chosen.queueing.exit_timeout = 0.5
    chosen.watching.server_timeout = 300
    chosen.watching.inactivity_timeout = 120
    chosen.watching.reconnect_backoff = 0.1
    return chosen
