"""How much memory a save and a load take, over the size of the state.

Run it alone: `python tests/bench/checkpoint_memory.py [--mib 1024]`. The last line is JSON:

- save_ratio             peak extra memory of two saves with one snapshot slot
- save_ratio_two_slots   the same with two
- load_ratio             of a load into the tensors of an existing state
- peers                  torch.save, torch.load, DCP save, async_save and load, measured alike

Each case runs in a process of its own, which builds the state first and has done the same once with
a small one. Counted is the memory of that process and of all it has started, every 5 ms, less what
it was right before the call: anonymous and file-backed pages in their share (PSS), and every file
of shared memory that they hold, once. (PSS of shared memory as well would count pages twice that
move from one process's share to another's between two looks.) The file system's cache belongs to
nobody and is not counted.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "runtime"))
sys.path.insert(0, str(Path(__file__).parent))

CASES = (
    "save_ratio",
    "save_ratio_two_slots",
    "load_ratio",
    "torch_save",
    "torch_load",
    "dcp_save",
    "dcp_async_save",
    "dcp_load",
)


def family() -> list[int]:
    """This process and all below it."""
    found, todo = [], [os.getpid()]
    while todo:
        pid = todo.pop()
        found.append(pid)
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            try:
                todo += map(int, task.read_text().split())
            except OSError:
                continue
    return found


def used() -> int:
    """Bytes of the whole family."""
    total, shared = 0, {}
    for pid in family():
        try:
            rows = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            descriptors = list(Path(f"/proc/{pid}/fd").iterdir())
        except OSError:
            continue
        total += sum(
            int(row.split()[1]) * 1024 for row in rows if row.startswith(("Pss_Anon:", "Pss_File:"))
        )
        for descriptor in descriptors:
            try:
                if os.readlink(descriptor).startswith(("/memfd:", "/dev/shm/")):
                    found = descriptor.stat()
                    shared[found.st_dev, found.st_ino] = found.st_blocks * 512
            except OSError:
                continue
    return total + sum(shared.values())


def peak_over(call) -> int:
    """Peak of `used` while the call runs, less what it was before."""
    before, peak, stop = used(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not stop.is_set():
            peak = max(peak, used())
            stop.wait(0.005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        call()
    finally:
        stop.set()
        watcher.join()
    return max(peak, used()) - before


def run_case(case: str, size: int, root: Path) -> float:
    """One case, in a process of its own."""
    import torch
    from checkpoint_stall import state_of

    torch.set_num_threads(1)
    small = prepare(case, state_of(2**16), root / "small")
    small()
    state = state_of(size)
    call = prepare(case, state, root / "large")
    return peak_over(call) / sum(tensor.nbytes for tensor in state.values())


def prepare(case: str, state: dict[str, Any], root: Path) -> Callable[[], Any]:
    """Do what comes before the case, and give the case."""
    import torch
    import torch.distributed.checkpoint as dcp
    from checkpoint_stall import dcp_async

    from rekindle.checkpoint import Saver, Store

    root.mkdir()
    store = Store.open(f"file://{root}/rekindle")

    def save(slots: int, steps: int) -> None:
        saver = Saver(
            store,
            lease_fence=store.acquire(owner="bench").fence,
            base=None,
            rank=0,
            world_size=1,
            keep_latest=1,
            slots=slots,
            process=True,
        )
        for step in range(1, steps + 1):
            saver.save(step, {"model": state})
        saver.close()
        assert saver.error is None, saver.error

    def torch_load() -> None:
        for name, tensor in torch.load(root / "torch.pt").items():
            state[name].copy_(tensor)

    if case == "load_ratio":
        save(1, 1)
        commit = store.read(store.commits()[0])
        return lambda: store.load(commit, into={"model": state})
    if case == "torch_load":
        torch.save(state, root / "torch.pt")
        return torch_load
    if case == "dcp_load":
        dcp.save(state, checkpoint_id=root / "dcp")
    return {
        "save_ratio": lambda: save(1, 2),
        "save_ratio_two_slots": lambda: save(2, 3),
        "torch_save": lambda: torch.save(state, root / "torch.pt"),
        "dcp_save": lambda: dcp.save(state, checkpoint_id=root / "dcp"),
        "dcp_async_save": lambda: dcp_async(state, root / "dcp").result(),
        "dcp_load": lambda: dcp.load(state, checkpoint_id=root / "dcp"),
    }[case]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=float, default=1024.0)
    parser.add_argument("--folder", default=None, help="where checkpoints go; a temporary one")
    parser.add_argument("--case", choices=CASES)
    arguments = parser.parse_args()
    size = int(arguments.mib * 2**20)
    if arguments.case:
        print(run_case(arguments.case, size, Path(arguments.folder)))
        return
    found = {}
    for case in CASES:  # one after the other, each from a clean slate
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            words = ["--mib", str(arguments.mib), "--folder", folder, "--case", case]
            done = subprocess.run(
                [sys.executable, "-W", "ignore", __file__, *words],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
        found[case] = float(done.stdout.split()[-1])
        print(f"{case:22} {found[case]:.3f}")
    own = {name: value for name, value in found.items() if name.endswith(("ratio", "slots"))}
    peers = {name: value for name, value in found.items() if name not in own}
    print(json.dumps({"bytes": size, **own, "peers": peers}))


if __name__ == "__main__":
    main()
