"""Run the operator: ``python -m rekindle_operator``.

Four things share one event loop: kopf's watch of jobs, the watches of what is around them, the
coordinator that agents talk to, and the port for Prometheus and probes. On SIGTERM all of them end
within a second or two; training goes on without, and the next operator takes over where this one
was.
"""

import argparse
import asyncio
import contextlib
import signal
import ssl
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import kopf
from aiohttp import web
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from rekindle.api import COORDINATOR_PORT, OPERATOR_METRICS_PORT
from rekindle_operator import logs, metrics
from rekindle_operator.controller import handlers
from rekindle_operator.controller.controller import Controller
from rekindle_operator.coordinator import connections, tls
from rekindle_operator.kube.cluster import KubernetesApi
from rekindle_operator.pods import manifests


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
        help="how pods reach the coordinator, https://rekindle.rekindle-system.svc:8430 for "
        "example; https needs one of the --tls options, http sends tokens in the clear",
    )
    tls_options = parser.add_mutually_exclusive_group()
    tls_options.add_argument(
        "--tls-secret",
        metavar="NAMESPACE/NAME",
        help="keep an authority of the operator's own in this secret",
    )
    tls_options.add_argument(
        "--tls-directory", type=Path, metavar="DIR", help="or in this directory"
    )
    tls_options.add_argument(
        "--tls-files",
        type=Path,
        metavar="DIR",
        help="or show tls.crt with tls.key of this directory; pods trust its ca.crt, or else whom "
        "their image trusts",
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
        default=manifests.RUNTIME_IMAGE,
        metavar="IMAGE",
        help="where the launcher is copied from into images that do not have it "
        "(spec.launcher.inject)",
    )
    parser.add_argument(
        "--log-format", choices=logs.FORMATS, default="text", help="json: an object in each line"
    )
    parser.add_argument("--verbose", action="store_true", help="log what kopf does, too")
    options = parser.parse_args(arguments)
    secure = options.tls_secret or options.tls_directory or options.tls_files
    if options.coordinator_url.startswith("https://") != bool(secure):
        parser.error("an https:// URL and one of the --tls options belong together")
    if not host_of(options):
        parser.error(f"--coordinator-url is {options.coordinator_url!r}, must name a host")
    if options.tls_secret and options.tls_secret.count("/") != 1:
        parser.error(f"--tls-secret is {options.tls_secret!r}, must be NAMESPACE/NAME")
    return options


def host_of(options: argparse.Namespace) -> str:
    """What pods know the coordinator by."""
    return urlsplit(options.coordinator_url).hostname or ""


def source_of(options: argparse.Namespace, cluster: KubernetesApi) -> tls.CertificateSource | None:
    """Where the coordinator's certificate comes from; None where it speaks in the clear."""
    if options.tls_secret:
        load = partial(tls.in_secret, cluster, *options.tls_secret.split("/"))
        return tls.Own(load, [host_of(options)])
    if options.tls_directory:
        return tls.Own(partial(tls.in_directory, options.tls_directory), [host_of(options)])
    return tls.CertificateFiles(options.tls_files) if options.tls_files else None


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
    # kopf has handlers of its own once it runs. Until then, a container's first process would not
    # even notice; it may have to wait for the API server, or for its secret.
    this = asyncio.current_task()
    assert this is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, this.cancel)
    cluster = await KubernetesApi.connect()
    watch_nodes = not options.no_watch_nodes
    source = source_of(options, cluster)
    controller = Controller(
        cluster,
        coordinator_url=options.coordinator_url,
        watch_nodes=watch_nodes,
        authority=source.authority if source else str,
        runtime_image=options.runtime_image,
    )
    ready = asyncio.Event()
    files = connections.raise_file_limit()
    runners: list[web.AppRunner] = []
    doors: list[connections.Door] = []
    beside: list[asyncio.Task[None]] = []

    async def serve(
        app: web.Application,
        port: int,
        allowed: connections.Limits,
        context: ssl.SSLContext | None = None,
    ) -> None:
        runners.append(web.AppRunner(app, shutdown_timeout=0.5))
        await runners[-1].setup()
        doors.append(connections.Door(runners[-1], options.host, port, allowed, context))
        doors[-1].open()

    try:
        app = observability(ready, controller.listed)
        await serve(app, options.metrics_port, connections.WITHOUT_TOKENS)
        context = None
        if source:
            try:
                context, shown = await tls.context(source)
            except (OSError, ValueError) as error:
                sys.exit(f"the coordinator has nothing to prove itself with: {error}")
            keeping = tls.keep(
                context, source, shown, host_of(options), controller.authority_changed
            )
            beside.append(asyncio.create_task(keeping, name="certificate"))
        app = controller.coordinator.application()
        await serve(app, options.port, connections.limits(files), context)
        following = handlers.follow(
            controller, cluster, namespaces=options.namespace or (), watch_nodes=watch_nodes
        )
        beside.append(asyncio.create_task(following, name="watches"))
        await kopf.operator(
            registry=handlers.register(controller),
            settings=handlers.settings(clusterwide=not options.namespace),
            standalone=True,
            clusterwide=not options.namespace,
            namespaces=options.namespace or (),
            ready_flag=ready,
        )
    finally:
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
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
    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(run(options))


if __name__ == "__main__":
    main()
