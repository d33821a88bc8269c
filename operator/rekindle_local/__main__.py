"""`python -m rekindle_local`: an embedded cluster in the foreground until Ctrl-C."""

import argparse
import asyncio
import contextlib
import logging
import signal
from collections.abc import Sequence
from pathlib import Path

from rekindle_local.cluster import Cluster, ClusterConfig
from rekindle_local.images import Image, python_image


def parse(argv: Sequence[str] | None = None) -> ClusterConfig:
    """The configuration from the command line."""
    parser = argparse.ArgumentParser(prog="python -m rekindle_local", description=__doc__)
    parser.add_argument("--nodes", type=int, default=3, help="how many nodes (3)")
    parser.add_argument("--port", type=int, default=0, help="of the API server (a free one)")
    parser.add_argument("--kubeconfig", type=Path, help="where to write it (a temporary place)")
    parser.add_argument("--no-s3", action="store_true", help="without the object store")
    parser.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="PATTERN=DIRECTORY",
        help="images that are this Python with a working directory (python*=the current one)",
    )
    arguments = parser.parse_args(argv)
    images: dict[str, Image] = {}
    for text in arguments.image or [f"python*={Path.cwd()}"]:
        pattern, separator, directory = text.rpartition("=")
        if not separator or not Path(directory).is_dir():
            parser.error(f"--image {text!r} must be PATTERN=DIRECTORY with an existing directory")
        images[pattern] = python_image(Path(directory).resolve())
    if arguments.nodes < 0:
        parser.error(f"--nodes {arguments.nodes} must not be negative")
    return ClusterConfig(
        nodes=arguments.nodes,
        port=arguments.port,
        kubeconfig=arguments.kubeconfig.resolve() if arguments.kubeconfig else None,
        s3=not arguments.no_s3,
        images=images,
    )


async def run(config: ClusterConfig) -> None:
    """Start, say where, wait for SIGINT or SIGTERM, stop."""
    end = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):
            loop.add_signal_handler(number, end.set)
    async with Cluster(config) as cluster:
        print(f"export KUBECONFIG={cluster.kubeconfig}")
        if cluster.s3_endpoint:
            key, secret = cluster.s3_credentials
            print(f"export AWS_ENDPOINT_URL={cluster.s3_endpoint}")
            print(f"export AWS_ACCESS_KEY_ID={key} AWS_SECRET_ACCESS_KEY={secret}")
        print(f"# {len(cluster.nodes)} nodes at {cluster.url}; Ctrl-C ends it", flush=True)
        await end.wait()


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    asyncio.run(run(parse(argv)))


if __name__ == "__main__":
    main()
