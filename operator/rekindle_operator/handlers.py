"""Every kopf decorator of the project: each handler hands an event on and returns.

Only ``on.event`` is used. It keeps no annotations on the objects and no finalizers (children go
with their owner), costs no request of its own, and is the fastest of kopf's ways; retries and
resyncs are the controller's.
"""

from collections.abc import Callable, Mapping
from typing import Any

import kopf

from rekindle.contract import GROUP, LABEL_MANAGED_BY, PLURAL, VERSION
from rekindle_operator.controller import Controller


def register(controller: Controller, *, watch_nodes: bool) -> kopf.OperatorRegistry:
    """Make a registry whose handlers feed a controller."""
    registry = kopf.OperatorRegistry()

    def hand_over(
        what: str,
        take: Callable[[str | None, Mapping[str, Any]], None],
        kind: str | None,
        body: kopf.Body,
    ) -> None:
        try:
            take(kind, body)
        except Exception as error:  # kopf would log it, and nobody else would know
            controller.event_failed(what, body, error)

    @kopf.on.login(registry=registry, id="login")
    async def login(**kwargs: Any) -> Any:
        return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=registry, id="job")
    async def job(type: str | None, body: kopf.Body, **_: Any) -> None:
        hand_over("job", controller.job_event, type, body)

    @kopf.on.event(
        "", "v1", "pods", registry=registry, id="pod", labels={LABEL_MANAGED_BY: "rekindle"}
    )
    async def pod(type: str | None, body: kopf.Body, **_: Any) -> None:
        hand_over("pod", controller.pod_event, type, body)

    if watch_nodes:

        @kopf.on.event("", "v1", "nodes", registry=registry, id="node")
        async def node(type: str | None, body: kopf.Body, **_: Any) -> None:
            hand_over("node", controller.node_event, type, body)

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
