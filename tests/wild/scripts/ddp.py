"""Plain PyTorch and DDP: nothing in it knows of Rekindle. It keeps no checkpoints."""

import argparse
import os
import time

import torch
import torch.distributed as dist

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--delay", type=float, default=0.0)
parser.add_argument("--world", type=int, default=None, help="fail with another number of workers")
asked = parser.parse_args()

dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
if asked.world is not None and world != asked.world:
    raise SystemExit(f"trains with {world} workers, not {asked.world}")
torch.manual_seed(0)
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(8, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
for step in range(1, asked.steps + 1):
    x = torch.randn(16, 8)
    optimizer.zero_grad()
    torch.nn.functional.mse_loss(model(x), x.sum(1, keepdim=True)).backward()
    optimizer.step()
    time.sleep(asked.delay)
    if rank == 0:
        print(f"step {step} of {asked.steps} on {world}", flush=True)
print(f"rank {rank} of {world} done, restart {os.environ.get('TORCHELASTIC_RESTART_COUNT')}")
dist.destroy_process_group()
