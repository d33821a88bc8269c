"""Helm in a process of its own: reads one JSON request per line, answers with one JSON line.

The SDK is a Go library. Its threads and signal handlers would stay in the test process for the rest
of the run, and Python warns about a fork from a process with threads.
"""

import asyncio
import json
import sys
from typing import Any

import helm_sdkpy as helm


def answer(request: dict[str, Any]) -> Any:
    config = helm.Configuration(
        namespace=request["namespace"], kubeconfig=request.get("kubeconfig")
    )
    chart, options = request["chart"], request.get("options", {})
    match request["action"]:
        case "lint":
            return asyncio.run(helm.Lint(config).run(chart))
        case "install":
            action = helm.Install(config).run
            return asyncio.run(action(request["release"], chart, wait=False, timeout=30, **options))
        case "upgrade":
            action = helm.Upgrade(config).run
            return asyncio.run(action(request["release"], chart, wait=False, timeout=30, **options))
        case "uninstall":
            action = helm.Uninstall(config).run
            return asyncio.run(action(request["release"], wait=False, timeout=30))
        case other:
            raise ValueError(f"unknown action {other!r}")


for line in sys.stdin:
    try:
        reply = {"result": answer(json.loads(line))}
    except helm.HelmError as error:
        reply = {"refused": str(error)}
    print(json.dumps(reply), flush=True)
