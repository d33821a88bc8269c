"""What N jobs that wait for nodes cost: calls, writes and lists of the API server, CPU and memory.

Each job wants four pods that no node can take, which is what most jobs of a queue on spot capacity
do for most of their life. The operator is a process of its own, as it is deployed; the embedded API
server and its scheduler live in this one, where every request of the operator is counted as it
arrives. First all jobs are created at once and the calls are counted until all pods exist, and on
until nothing more comes; then nothing happens for a while, and nothing is what it should cost.

    python tests/bench/operator_scale.py [--jobs 50 200] [--rest 75]

The last line is JSON, for each number of jobs: `calls_per_job` until all pods exist (at most 12 and
the 4 pods), `settled_calls_per_job` until it is quiet, `writes_per_job_minute` and
`lists_per_minute` at rest (both 0), `looks_per_job_minute` (reconciles at rest, without a call),
`jobs_per_s` until all pods exist, `cpu_s_per_job` for that, `rest_cpu_percent` of one core,
`rss_mb`, and `p99_reconcile_s` over all reconciles.
"""

import argparse
import asyncio
import contextlib
import json
import os
import re
import socket
import sys
import time
from collections import Counter
from pathlib import Path

import aiohttp
import psutil
import yaml

from rekindle_local import cluster as embedded
from rekindle_local.apiserver.http.server import ApiServer
from rekindle_local.client import KubeClient

PODS = 4
QUIET = 3.0
"""Seconds without a call by which a start counts as over."""
PATIENCE = 300.0
CRD = Path(__file__).parents[2] / "crds" / "trainingjob.yaml"
JOBS = "/apis/rekindle.dev/v1alpha1/namespaces/default/trainingjobs"
BUCKET = re.compile(r'rekindle_reconcile_seconds_bucket\{le="([^"]+)"\} ([\d.e+]+)')
COUNT = re.compile(r"rekindle_reconcile_seconds_count ([\d.e+]+)")


class CountingServer(ApiServer):
    """The embedded API server; it notes what the operator asks of it."""

    calls: Counter = Counter()
    last = 0.0

    async def _handle(self, request):
        agent = request.headers.get("User-Agent", "")
        if agent.startswith(("rekindle-operator", "kopf")):
            watch = request.query.get("watch") in {"true", "1"}
            parts = [part for part in request.path.split("/") if part]
            item = request.method != "GET" or re.search(
                r"/(pods|secrets|services)/|jobs/.", request.path
            )
            kind = "watch" if watch else request.method if item else "LIST"
            type(self).calls[kind, parts[-1] if kind == "LIST" else ""] += 1
            if not watch:
                type(self).last = time.monotonic()
        return await super()._handle(request)


def job(number: int) -> dict:
    trainer = {"name": "trainer", "image": "python", "args": ["train.py"]}
    return {
        "apiVersion": "rekindle.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": f"job-{number}", "namespace": "default"},
        "spec": {
            "replicas": PODS,
            "template": {"spec": {"containers": [trainer], "nodeSelector": {"no": "where"}}},
            "checkpoint": {"uri": f"s3://bucket/job-{number}"},
        },
    }


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


async def until(condition, what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not await condition():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        await asyncio.sleep(0.05)


def total(calls: Counter, *kinds: str) -> int:
    return sum(count for (kind, _), count in calls.items() if not kinds or kind in kinds)


def quantile(page: str, share: float) -> float:
    """Of a histogram, within its bucket by the straight line."""
    found = [(float(le), float(count)) for le, count in BUCKET.findall(page)]
    wanted, low, below = share * found[-1][1], 0.0, 0.0
    for high, count in found:
        if count >= wanted:
            return (
                low
                if high == float("inf")
                else low + (high - low) * (wanted - below) / max(count - below, 1)
            )
        low, below = high, count
    return low


async def measure(jobs: int, rest: float) -> dict:
    crd = yaml.safe_load(CRD.read_text())
    config = embedded.ClusterConfig(nodes=1, s3=False, crds=(crd,))
    async with embedded.Cluster(config) as cluster, contextlib.AsyncExitStack() as stack:
        metrics = f"http://127.0.0.1:{(port := free_port())}"
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "rekindle_operator", "--host", "127.0.0.1",
            "--coordinator-url", "http://127.0.0.1:1", "--port", str(free_port()),
            "--metrics-port", str(port),
            env={**os.environ, "KUBECONFIG": str(cluster.kubeconfig)},
        )  # fmt: skip

        async def end():
            process.terminate()
            await process.wait()

        stack.push_async_callback(end)
        session = await stack.enter_async_context(aiohttp.ClientSession())
        seen = psutil.Process(process.pid)

        async def ready():
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(f"{metrics}/healthz") as answer:
                    return answer.status == 200

        await until(ready, "the operator does not get ready")
        calls = CountingServer.calls
        await asyncio.sleep(1)
        calls.clear()
        client: KubeClient = cluster.client
        cpu, began = sum(seen.cpu_times()[:2]), time.monotonic()
        for number in range(jobs):
            await client.create(JOBS, job(number))

        async def whole():
            return calls["POST", ""] and await pods() >= PODS * jobs

        async def pods():
            found = await client.get("/api/v1/namespaces/default/pods")
            return len(found["items"])

        await until(whole, "not all pods were created")
        took, until_pods = time.monotonic() - began, total(calls) - total(calls, "watch")

        async def quiet():
            return time.monotonic() - CountingServer.last > QUIET

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(60):
                await until(quiet, "")

        async def reconciles():
            async with session.get(f"{metrics}/metrics") as answer:
                page = await answer.text()
            return page, float(COUNT.search(page)[1])

        started = dict(calls)
        settled, start_cpu = total(calls) - total(calls, "watch"), sum(seen.cpu_times()[:2]) - cpu
        calls.clear()
        _, looks = await reconciles()
        cpu, began = sum(seen.cpu_times()[:2]), time.monotonic()
        await asyncio.sleep(rest)
        minutes = (time.monotonic() - began) / 60
        rest_cpu = sum(seen.cpu_times()[:2]) - cpu
        page, end = await reconciles()
        print(f"{jobs} jobs: start {started}; rest {dict(calls)}", flush=True)
        return {
            "calls_per_job": round(until_pods / jobs, 2),
            "settled_calls_per_job": round(settled / jobs, 2),
            "writes_per_job_minute": round(
                total(calls, "POST", "PATCH", "PUT", "DELETE") / jobs / minutes, 3
            ),
            "lists_per_minute": round(total(calls, "LIST") / minutes, 2),
            "looks_per_job_minute": round((end - looks) / jobs / minutes, 2),
            "jobs_per_s": round(jobs / took, 1),
            "cpu_s_per_job": round(start_cpu / jobs, 4),
            "rest_cpu_percent": round(100 * rest_cpu / (minutes * 60), 2),
            "rss_mb": round(seen.memory_info().rss / 2**20, 1),
            "p99_reconcile_s": round(quantile(page, 0.99), 4),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--jobs", type=int, nargs="+", default=[50, 200])
    parser.add_argument("--rest", type=float, default=75.0, help="seconds to look at the rest")
    chosen = parser.parse_args()
    embedded.ApiServer = CountingServer
    result = {number: asyncio.run(measure(number, chosen.rest)) for number in chosen.jobs}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
