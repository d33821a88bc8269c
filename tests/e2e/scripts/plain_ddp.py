"""Data-parallel training as many write it: torch and nothing else, so nobody counts its steps.

It goes on until it is alone, and then makes twenty more steps.
"""

import argparse
import time

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

parser = argparse.ArgumentParser()
parser.add_argument("--delay", type=float, default=0.05, help="seconds per step")
args = parser.parse_args()

dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
print(f"rank {rank} of {world} begins", flush=True)
model = DistributedDataParallel(torch.nn.Linear(8, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
generator = torch.Generator().manual_seed(rank)
step = 0
while world > 1 or step < 20:
    x = torch.randn(16, 8, generator=generator)
    loss = ((model(x) - x.sum(1, keepdim=True)) ** 2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    step += 1
    time.sleep(args.delay)
print(f"rank {rank} of {world} is done, loss {loss.item():.3f}", flush=True)
dist.destroy_process_group()
