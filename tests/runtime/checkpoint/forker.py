"""A warm process that forks one child per order, so that hundreds of them can be killed quickly.

Importing torch and boto3 takes seconds, forking takes milliseconds; and the process that runs the
tests has threads, so it cannot fork itself. An order is one line of JSON on stdin; the answers are
the child's pid, and when it has ended, its exit code (negative for a signal).

    python forker.py ENDPOINT BUCKET
"""

import contextlib
import copy
import json
import os
import signal
import sys

import torch
from botocore.retries import standard

from rekindle.checkpoint import CommitRef, Retention, Saver, Store
from rekindle.checkpoint.cleanup import Cleaner
from rekindle.checkpoint.objects.file import FileObjects
from rekindle.checkpoint.objects.s3 import S3Objects

standard.ExponentialBackoff.delay_amount = lambda *_: 0.005


def state(step: int) -> dict:
    generator = torch.Generator().manual_seed(step)
    return {
        "model": {
            "weight": torch.randn(37, 11, generator=generator),
            "bias": torch.randn(5, generator=generator).to(torch.bfloat16),
        },
        "step": step,
    }


class Dying:
    """A store at whose call number `at` this process is killed, before or after the call."""

    def __init__(self, inner, at: int, after: bool):
        self.inner, self.at, self.after, self.count = inner, at, after, 0

    def __getattr__(self, name):
        value = getattr(self.inner, name)
        if name not in {"put", "get", "get_into", "head", "list", "delete", "delete_many"}:
            return value

        def call(*args, **kwargs):
            number, self.count = self.count, self.count + 1
            if number == self.at and not self.after:
                os.kill(os.getpid(), signal.SIGKILL)
            found = value(*args, **kwargs)
            if number == self.at:
                os.kill(os.getpid(), signal.SIGKILL)
            return found

        return call


def save(store: Store, order: dict) -> int:
    fence = order.get("fence") or store.acquire(owner="child").fence
    base = CommitRef(step=order["base"][0], fence=order["base"][1]) if order.get("base") else None
    saver = Saver(
        store, lease_fence=fence, base=base, rank=0, world_size=1, keep_latest=2, chunk_bytes=256
    )
    with contextlib.suppress(Exception):
        saver.save(order["step"], state(order["step"]), rank_state={"rank": 0}, wait=True)
    with contextlib.suppress(Exception):
        saver.close(timeout=20)
    return 0 if saver.last_commit is not None else 3


def load(store: Store, order: dict) -> int:
    try:
        found = store.restore(rank=0)
    except Exception as error:
        print("load:", type(error).__name__, str(error)[:200], file=sys.stderr)
        return 3
    if found is None:
        return 4
    restored, skipped = found
    wanted = state(restored.ref.step)
    same = all(torch.equal(restored.state["model"][n], t) for n, t in wanted["model"].items())
    if not same or restored.rank_state != {"rank": 0}:
        return 5  # worse than any error
    return 6 if skipped or restored.ref.step != order["step"] else 0


def clean(store: Store, order: dict) -> int:
    try:
        Cleaner(store, Retention(latest=1)).run()
    except Exception as error:
        print("clean:", type(error).__name__, str(error)[:200], file=sys.stderr)
        return 3
    return 0


def main() -> None:
    endpoint, bucket = sys.argv[1:]
    template = S3Objects(bucket, "x", endpoint_url=endpoint, attempts=3, timeout=5.0)
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if not pid:
            if "path" in order:
                objects = FileObjects(order["path"])
            else:
                objects = copy.copy(template)
                objects._prefix, objects.uri = order["prefix"] + "/", f"s3://{order['prefix']}"
            if "at" in order:
                objects = Dying(objects, order["at"], order["after"])
            code = 9
            with contextlib.suppress(Exception):
                code = {"save": save, "load": load, "clean": clean}[order["do"]](
                    Store(objects=objects), order
                )
            os._exit(code)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
