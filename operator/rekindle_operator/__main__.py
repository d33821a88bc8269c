"""Run the operator: ``python -m rekindle_operator``.

Four things share one event loop: kopf's watch of jobs, the watches of what is around them, the
coordinator that agents talk to, and the port for Prometheus and probes. On SIGTERM all of them end
within a second or two; training goes on without, and the next operator takes over where this one
was.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence

import kopf
from aiohttp import web
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from rekindle.contract import COORDINATOR_PORT, OPERATOR_METRICS_PORT
from rekindle_operator import connections, handlers, logs, metrics, resources
from rekindle_operator.cluster import Cluster
from rekindle_operator.controller import Controller


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="rekindle-operator", description=__doc__.split("\n")[0])
    scope = parser.add_mutually_exclusive_group()
    scope.add_argument(
        "--namespace", action="append", metavar="NS", help="look after this one only; repeatable"
    )
    scope.add_argument(
        "--all-namespaces", action="store_true", help="look after all of them (the default)"
    )
    parser.add_argument(
        "--coordinator-url",
        required=True,
        metavar="URL",
        help="how pods reach the coordinator, http://rekindle.rekindle-system.svc:8430 for example",
    )
    parser.add_argument("--host", default="0.0.0.0", help="address to listen on")
    parser.add_argument(
        "--port", type=int, default=COORDINATOR_PORT, help="port of the coordinator"
    )
    parser.add_argument(
        "--metrics-port",
        type=int,
        default=OPERATOR_METRICS_PORT,
        help="port of /metrics and /healthz",
    )
    parser.add_argument(
        "--no-watch-nodes",
        action="store_true",
        help="do without nodes: notices of spot reclaim are then seen on pods only",
    )
    parser.add_argument(
        "--runtime-image",
        default=resources.RUNTIME_IMAGE,
        metavar="IMAGE",
        help="where the launcher is copied from into images that do not have it "
        "(spec.launcher.inject)",
    )
    parser.add_argument(
        "--log-format", choices=logs.FORMATS, default="text", help="json: an object in each line"
    )
    parser.add_argument("--verbose", action="store_true", help="log what kopf does, too")
    return parser.parse_args(arguments)


def observability(*ready: asyncio.Event) -> web.Application:
    """The application with /metrics and /healthz."""

    async def metrics_page(_: web.Request) -> web.Response:
        return web.Response(
            body=generate_latest(metrics.REGISTRY), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    async def health(_: web.Request) -> web.Response:
        if not all(event.is_set() for event in ready):
            return web.Response(status=503, text="not yet watching\n")
        return web.Response(text="ok\n")

    app = web.Application()
    app.router.add_get("/metrics", metrics_page)
    app.router.add_get("/healthz", health)
    return app


async def run(options: argparse.Namespace) -> None:
    """Serve until SIGTERM or SIGINT."""
    cluster = await Cluster.connect()
    watch_nodes = not options.no_watch_nodes
    controller = Controller(
        cluster,
        coordinator_url=options.coordinator_url,
        watch_nodes=watch_nodes,
        runtime_image=options.runtime_image,
    )
    ready = asyncio.Event()
    files = connections.raise_file_limit()
    servers = [
        (controller.coordinator.application(), options.port, connections.limits(files)),
        (
            observability(ready, controller.listed),
            options.metrics_port,
            connections.WITHOUT_TOKENS,
        ),
    ]
    runners, doors = [], []
    around: asyncio.Task[None] | None = None
    try:
        for app, port, allowed in servers:
            runner = web.AppRunner(app, shutdown_timeout=0.5)
            runners.append(runner)
            await runner.setup()
            doors.append(connections.Door(runner, options.host, port, allowed))
            doors[-1].open()
        around = asyncio.create_task(
            handlers.follow(
                controller,
                cluster,
                namespaces=options.namespace or (),
                watch_nodes=watch_nodes,
            )
        )
        await kopf.operator(
            registry=handlers.register(controller),
            settings=handlers.settings(clusterwide=not options.namespace),
            standalone=True,
            clusterwide=not options.namespace,
            namespaces=options.namespace or (),
            ready_flag=ready,
        )
    finally:
        if around is not None:
            around.cancel()
            await asyncio.gather(around, return_exceptions=True)
        await controller.close()
        for door in doors:
            await door.close()
        for runner in runners:
            await runner.cleanup()
        await cluster.close()


def main() -> None:
    """Entry point of the ``rekindle-operator`` command."""
    options = parse(sys.argv[1:])
    logs.configure(options.log_format, verbose=options.verbose)
    asyncio.run(run(options))


if __name__ == "__main__":
    main()
