"""How long a save holds up the training, beside a plain copy and what torch offers.

Run it alone: `python tests/bench/checkpoint_stall.py [--mib 512] [--rounds 11]`. The last line is
JSON with medians in seconds:

- memcpy_s             one copy of the same bytes into memory that has been touched before
- stall_s              `Saver.save`, whose snapshot is then stored by another process
- dcp_async_stall_s    `torch.distributed.checkpoint.async_save`, until it returns
- torch_save_s         `torch.save` to a file

All four take turns in every round, and each round begins when the last save of everybody is done,
so that what else the machine does meets all alike.
"""

import argparse
import json
import logging
import os
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "runtime"))

import torch

from rekindle.checkpoint import Saver, Store


def state_of(size: int) -> dict[str, torch.Tensor]:
    """Layers of 16 MiB (parameter and two moments each), and the small tensors between them."""
    state: dict[str, torch.Tensor] = {}
    left, layer = size // 4, 0
    while left > 0:
        count = min(left, 4 * 2**20)
        state[f"layers.{layer}.weight"] = torch.randn(count)
        state[f"layers.{layer}.bias"] = torch.randn(256)
        left, layer = left - count, layer + 1
    return state


def timed(call) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def dcp_async(state: dict[str, torch.Tensor], path: Path):
    """A function that begins an asynchronous DCP save and returns what to wait for."""
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp

    if not dist.is_initialized():
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        store = dist.HashStore()
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    shutil.rmtree(path, ignore_errors=True)
    return dcp.async_save(state, checkpoint_id=path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=float, default=512.0)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--folder", default=None, help="where checkpoints go; a temporary one")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.INFO)
    size = int(arguments.mib * 2**20)
    state = state_of(size)
    total = sum(tensor.nbytes for tensor in state.values())
    found: dict[str, list[float]] = {
        name: [] for name in ("memcpy_s", "stall_s", "dcp_async_stall_s", "torch_save_s")
    }
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        root = Path(folder)
        touched = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
        store = Store.open(f"file://{root}/rekindle")
        fence = store.acquire(owner="bench").fence
        saver = Saver(store, lease_fence=fence, base=None, rank=0, world_size=1, keep_latest=1)
        saver.prepare({"model": state})

        def memcpy() -> None:
            for name, tensor in state.items():
                touched[name].copy_(tensor)

        for round_ in range(-1, arguments.rounds):
            for tensor in state.values():
                tensor.view(-1)[0] = round_  # a new state each time, as in training
            copy = timed(memcpy)
            stall = saver.save(round_ + 2, {"model": state})
            copy = (copy + timed(memcpy)) / 2  # before and after: the machine may have other work
            saver._drain(time.monotonic() + 600)
            if saver.error is not None:
                raise saver.error
            began = time.perf_counter()
            future = dcp_async(state, root / "dcp")
            dcp = time.perf_counter() - began
            future.result()
            whole = timed(lambda: torch.save(state, root / "torch.pt"))
            if round_ < 0:
                continue  # the first of everything pays for what it sets up
            for name, value in zip(found, (copy, stall, dcp, whole), strict=True):
                found[name].append(value)
        saver.close()
    result = {name: statistics.median(values) for name, values in found.items()}
    result["stall_over_memcpy"] = result["stall_s"] / result["memcpy_s"]
    for name, values in found.items():
        print(f"{name:20} median {result[name]:.4f}  all {[round(v, 4) for v in values]}")
    print(json.dumps({"bytes": total, "rounds": arguments.rounds, **result}))


if __name__ == "__main__":
    main()
