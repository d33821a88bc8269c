"""Programs that know nothing of Rekindle lose a pod, are told to go, grow, shrink and pause.

One job per kind of program; all of them live through the same events at once. Beside that somebody
looks at each status that the API server ever had: what it says has to be true at every moment.
"""

import json
import threading
from typing import Any

import pytest
from kubernetes import watch

pytestmark = [pytest.mark.processes, pytest.mark.timeout(900)]

LONG = ["--steps=1000000", "--delay=0.05"]
PLAIN_IMAGE = "example.com/plain-torch:2"
KINDS: dict[str, dict[str, Any]] = {
    "ddp": {"args": ["/scripts/ddp.py", *LONG]},
    "torchrun": {
        "command": ["torchrun", "--nnodes=1:3", "--nproc_per_node=1", "--rdzv_backend=c10d"],
        "args": ["/scripts/ddp.py", *LONG],
    },
    "no-launcher": {"image": PLAIN_IMAGE, "command": ["python", "/scripts/ddp.py", *LONG]},
    "accelerate": {"command": ["accelerate", "launch", "/scripts/accelerated.py", *LONG]},
    "lightning": {"command": ["python", "/scripts/lit.py", *LONG]},
}
"""The container that trains."""
