"""The same training as a plain DDP script for torchrun, with snapshots that a restart loads."""

import argparse
import os
import time
from pathlib import Path

import torch
from recovery_steps import StepLog
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--notes", required=True, help="folder for the times of steps")
    parser.add_argument("--snapshot", type=Path, required=True)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--delay", type=float, default=0.0, help="seconds per step")
    chosen = parser.parse_args()
    width, environment = chosen.width, os.environ
    log = StepLog(
        chosen.notes,
        f"{environment['HOSTNAME']}@{environment['HOSTNAME']}@{environment['LOCAL_RANK']}",
        generation=time.monotonic_ns(),
        world=int(environment["WORLD_SIZE"]),
    )
    distributed.init_process_group("gloo")
    net = nn.Sequential(
        nn.Linear(32, width), nn.ReLU(),
        nn.Linear(width, width), nn.ReLU(),
        nn.Linear(width, width), nn.ReLU(),
        nn.Linear(width, 1),
    )  # fmt: skip
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4)
    done = 0
    if chosen.snapshot.exists():
        found = torch.load(chosen.snapshot)
        net.load_state_dict(found["net"])
        optimizer.load_state_dict(found["optimizer"])
        done = found["step"]
    model = DistributedDataParallel(net)
    generator = torch.Generator().manual_seed(distributed.get_rank())
    while True:
        x = torch.randn(8, 32, generator=generator)
        time.sleep(chosen.delay)
        optimizer.zero_grad()
        ((model(x) - x.sum(1, keepdim=True)) ** 2).mean().backward()
        optimizer.step()
        done += 1
        log.note(done)
        if done % 100 == 0 and distributed.get_rank() == 0:
            fresh = chosen.snapshot.with_suffix(".new")
            state = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "step": done}
            torch.save(state, fresh)
            fresh.replace(chosen.snapshot)


if __name__ == "__main__":
    main()
