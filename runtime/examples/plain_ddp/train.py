"""Plain PyTorch and DDP, with checkpoints: torchrun --nproc-per-node 2 train.py s3://bucket/run"""

import sys

import torch
import torch.distributed as dist

from rekindle.checkpoint import Saver, Store

uri, steps, every = sys.argv[1], 60, 5
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(32, 256), torch.nn.ReLU(), torch.nn.Linear(256, 1))
ddp = torch.nn.parallel.DistributedDataParallel(model)
optimizer = torch.optim.AdamW(ddp.parameters(), lr=1e-3)

store, begin = Store.open(uri), [0, None]
if rank == 0:  # takes the lease, and picks the checkpoint for all
    begin = [store.acquire(owner="plain").fence, next(iter(store.commits()), None)]
dist.broadcast_object_list(begin)
fence, base = begin
first = 0
if base is not None:  # each rank reads a share, and they exchange the rest
    found = store.load(store.read(base), group=dist.group.WORLD)
    model.load_state_dict(found.state["model"])
    optimizer.load_state_dict(found.state["optimizer"])
    first = found.meta["step"]

saver = Saver(store, lease_fence=fence, base=base, rank=rank, world_size=world)
for step in range(first + 1, steps + 1):
    torch.manual_seed(1000 * step + rank)  # the data, as a function of the step
    x = torch.randn(64, 32)
    optimizer.zero_grad()
    torch.nn.functional.mse_loss(ddp(x), x.sum(1, keepdim=True)).backward()
    optimizer.step()
    if step % every == 0:  # one copy; the rest goes on beside the training
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        saver.save(step, state, meta={"step": step}, wait=step == steps)
    print(f"step {step}", flush=True)
saver.close()
dist.destroy_process_group()
